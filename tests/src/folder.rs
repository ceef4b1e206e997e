//! Directories that vanish with the test that made them. Called by every suite that writes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A new directory, removed with everything in it when dropped, unless the test is failing: then it stays for
/// whoever looks for the reason.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one in the system's place for such things.
    #[track_caller]
    pub fn new(name: &str) -> Folder {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lectern-{name}-{}-{number}", std::process::id()));
        // A process id comes back one day; what a failing test of the same id left must not be mistaken for ours.
        remove(&path);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Folder(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file inside it.
    #[track_caller]
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).expect("a file for the test");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.0.display());
        } else {
            remove(&self.0);
        }
    }
}

/// Removes a tree if it is there.
#[track_caller]
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        panic!("cannot remove {}: {error}", path.display());
    }
}

/// Copies a tree: directories, files and links as links.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory for the copy");
    for entry in std::fs::read_dir(from).expect("a directory to copy") {
        let entry = entry.expect("an entry");
        let (kind, target) = (entry.file_type().expect("a type"), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            let link = std::fs::read_link(entry.path()).expect("a link");
            std::os::unix::fs::symlink(link, &target).expect("a copied link");
        } else {
            std::fs::copy(entry.path(), &target).expect("a copied file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_new_and_goes() {
        let folder = Folder::new("folder");
        let other = Folder::new("folder");
        assert_ne!(folder.path(), other.path());
        let file = folder.write("a", "text");
        copy(folder.path(), &other.join("copy"));
        assert_eq!(std::fs::read(other.join("copy/a")).expect("the copy"), b"text");
        drop(folder);
        assert!(!file.exists());
    }
}
