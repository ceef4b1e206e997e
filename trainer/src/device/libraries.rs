//! Where NVIDIA's libraries are: on the loader's path, or in a toolkit's own folder, which is often not on it.
//!
//! The bindings look for a library by name alone. One that was loaded by its path is found by its name afterwards.

use libloading::Library;
use std::path::PathBuf;

/// Whether the library called `stem` is there: if not by its name, as `present` asks, then from a toolkit's folder.
pub(super) fn found(stem: &str, present: impl Fn() -> bool) -> bool {
    present() || {
        folders().iter().for_each(|folder| load(folder, stem));
        present()
    }
}

/// Folders of toolkits, the one that was named first.
fn folders() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.chain([PathBuf::from("/usr/local/cuda")]).map(|toolkit| toolkit.join("lib64")).collect()
}

/// Loads what stands in a folder under a name that begins so: the library, and what it will itself load by name. They
/// stay loaded. What cannot be loaded is left: whoever needs it will say so.
fn load(folder: &PathBuf, stem: &str) {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut paths: Vec<PathBuf> =
        names.filter(|path| belongs(path.file_name().and_then(|name| name.to_str()), stem)).collect();
    paths.sort();
    for path in paths {
        // SAFETY: loading a library runs its initialisers, which for NVIDIA's own do not depend on us.
        if let Ok(library) = unsafe { Library::new(path) } {
            std::mem::forget(library);
        }
    }
}

/// Whether a file is the library `stem`, or a part of it, and not one for linking.
fn belongs(name: Option<&str>, stem: &str) -> bool {
    let rest = name.and_then(|name| name.strip_prefix(stem));
    rest.is_some_and(|rest| rest.starts_with(".so.") || rest.starts_with("-builtins.so."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_to_load_are_loaded() {
        for (name, ours) in [
            ("libnvrtc.so.13", true),
            ("libnvrtc-builtins.so.13.0", true),
            ("libnvrtc.so", false),
            ("libnvrtc_static.a", false),
            ("libnvrtc.alt.so.13", false),
            ("libnvrtcx.so.13", false),
        ] {
            assert_eq!(belongs(Some(name), "libnvrtc"), ours, "{name}");
        }
        assert!(!belongs(None, "libnvrtc"));
        assert!(!found("libof_nobody", || false));
        assert!(found("libof_nobody", || true));
    }
}
