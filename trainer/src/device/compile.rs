//! From source to an image the driver loads: NVRTC at run time, and a cache of what it made.
//!
//! The sources are the only truth: no binary is kept beside them, and any architecture that has tensor cores for
//! bf16 is served by its own code. An image is kept under the hash of all it was made from, with a checksum of its own;
//! one that is damaged is made anew, and where nothing can be kept, each run compiles.

use super::kernels::Source;
use super::{Precision, Stop};
use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_128;

/// First bytes of a kept image; behind them its checksum, then the image.
const MAGIC: &[u8; 16] = b"lectern kernel 1";
/// Lines of the compiler's log that an error shows.
const LOG_LINES: usize = 12;

/// What the driver loads, and whether it came from the cache.
pub(super) struct Image {
    /// As the driver takes it.
    pub bytes: Vec<u8>,
    /// Whether it was made in an earlier run.
    pub cached: bool,
}

/// Compiles for one precision and one architecture.
pub(super) struct Compiler {
    options: Vec<String>,
    /// Machine code for the device's own architecture, or text that its driver finishes.
    machine_code: bool,
    version: (i32, i32),
    target: String,
    cache: Option<PathBuf>,
}

impl Compiler {
    /// A compiler for a device of compute capability `capability`.
    pub fn new(precision: Precision, capability: (u32, u32)) -> Result<Compiler, Stop> {
        let mut version = (0, 0);
        // SAFETY: both places are live.
        unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) }
            .result()
            .map_err(|error| Stop::of_compiler("nvrtcVersion", error))?;
        let known = supported().map_err(|error| Stop::of_compiler("nvrtcGetSupportedArchs", error))?;
        let wanted = capability.0 * 10 + capability.1;
        let best = known.into_iter().filter(|known| *known <= wanted).max().ok_or_else(|| {
            Stop::Compiler(format!("NVRTC {}.{} knows no architecture up to {wanted}", version.0, version.1))
        })?;
        // Machine code runs within its generation; a later generation's driver finishes text.
        let machine_code = best / 10 == capability.0;
        let target = format!("{}_{best}", if machine_code { "sm" } else { "compute" });
        let options = options(precision, &target);
        Ok(Compiler { options, machine_code, version, target, cache: cache_folder() })
    }

    /// A compiler to text for an architecture, 80 for compute capability 8.0, whatever device there is; it keeps nothing.
    pub fn to_text(precision: Precision, architecture: u32) -> Compiler {
        let target = format!("compute_{architecture}");
        let options = options(precision, &target);
        Compiler { options, machine_code: false, version: (0, 0), target, cache: None }
    }

    /// An image of every source, in their order; those not in the cache are compiled side by side.
    pub fn images(&self, sources: &[Source]) -> Result<Vec<Image>, Stop> {
        let mut images: Vec<Option<Result<Image, Stop>>> = sources
            .iter()
            .map(|source| self.kept(source).map(|bytes| Ok(Image { bytes, cached: true })))
            .collect();
        let missing: Vec<usize> = (0..sources.len()).filter(|&at| images[at].is_none()).collect();
        if !missing.is_empty() {
            eprintln!("compiling {} kernel files for {} (once)", missing.len(), self.target);
            let made = Mutex::new(Vec::new());
            let next = AtomicUsize::new(0);
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some(&at) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let image = self.compile_again(&sources[at]);
                            let mut made = made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                            made.push((at, image.map(|bytes| Image { bytes, cached: false })));
                        }
                    });
                }
            });
            for (at, image) in made.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
                images[at] = Some(image);
            }
        }
        images.into_iter().map(|image| image.expect("found or made above")).collect()
    }

    /// Compiles a source and keeps the image, if it can be kept.
    pub fn compile_again(&self, source: &Source) -> Result<Vec<u8>, Stop> {
        let image = self.compile(source)?;
        if let Some(path) = self.path(source) {
            keep(&path, &image);
        }
        Ok(image)
    }

    /// A kept image that is whole.
    fn kept(&self, source: &Source) -> Option<Vec<u8>> {
        whole(fs::read(self.path(source)?).ok()?)
    }

    /// Where an image is kept: named by all it is made from.
    fn path(&self, source: &Source) -> Option<PathBuf> {
        let (major, minor) = self.version;
        let made_from = format!("{major}.{minor}\0{}\0{}", self.options.join("\0"), source.whole());
        Some(self.cache.as_ref()?.join(format!(
            "{}-{:032x}.image",
            self.target,
            xxh3_128(made_from.as_bytes())
        )))
    }

    /// The image of a source.
    pub fn compile(&self, source: &Source) -> Result<Vec<u8>, Stop> {
        let text =
            CString::new(source.whole()).map_err(|_| Stop::bug(source.file, "a zero in the source"))?;
        let name = CString::new(source.file).map_err(|_| Stop::bug(source.file, "a zero in the name"))?;
        let program = Program(
            result::create_program(&text, Some(&name))
                .map_err(|error| Stop::of_compiler("nvrtcCreateProgram", error))?,
        );
        // SAFETY: the program was created above, and its source outlives it.
        if let Err(error) = unsafe { result::compile_program(program.0, &self.options) } {
            return Err(Stop::Compiler(format!(
                "{} does not compile: {error}\n{}",
                source.file,
                program.log()
            )));
        }
        let image = if self.machine_code { program.machine_code() } else { program.text() };
        image.map_err(|error| Stop::of_compiler(&format!("the image of {}", source.file), error))
    }
}

/// A program of NVRTC's, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    /// The first lines of what the compiler said.
    fn log(&self) -> String {
        // SAFETY: the program lives until `self` is dropped.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> =
            log.into_iter().map(|c| c.to_ne_bytes()[0]).take_while(|&byte| byte != 0).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().take(LOG_LINES).map(|line| format!("  {line}\n")).collect()
    }

    fn machine_code(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program lives, and the place for the image is as large as the first call says.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut size).result()?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()).result()?;
            Ok(image)
        }
    }

    fn text(&self) -> Result<Vec<u8>, NvrtcError> {
        // SAFETY: the program lives.
        let text = unsafe { result::get_ptx(self.0) }?;
        Ok(text.into_iter().map(|c| c.to_ne_bytes()[0]).collect())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once and destroyed once, here.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// What the compiler is told.
fn options(precision: Precision, target: &str) -> Vec<String> {
    let flag = match precision {
        Precision::Bf16 => "-DLECTERN_BF16=1",
        Precision::F32 => "-DLECTERN_F32=1",
    };
    vec![format!("--gpu-architecture={target}"), "--std=c++17".to_owned(), flag.to_owned()]
}

/// The architectures that this NVRTC compiles for, as 80 for compute capability 8.0.
fn supported() -> Result<Vec<u32>, NvrtcError> {
    let mut count = 0;
    // SAFETY: the place is live.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result()?;
    let mut known = vec![0i32; usize::try_from(count).unwrap_or(0)];
    // SAFETY: there is room for as many as the call above says.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result()?;
    Ok(known.into_iter().filter_map(|known| u32::try_from(known).ok()).collect())
}

/// What an error of NVRTC is called.
pub(super) fn said(error: NvrtcError) -> String {
    // SAFETY: the function takes any result and returns a string that lives as long as the library.
    let text = unsafe { sys::nvrtcGetErrorString(error.0) };
    if text.is_null() {
        return format!("{error}");
    }
    // SAFETY: not null, and ended by a zero as C strings are.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Where images are kept: LECTERN_CACHE, or a folder of ours in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("LECTERN_CACHE").or_else(|| {
        let user = named("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        Some(user.or_else(|| Some(named("HOME")?.join(".cache")))?.join("lectern"))
    })
}

/// The image in a kept file, if it is whole.
fn whole(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let rest = file.strip_prefix(MAGIC)?;
    let (checksum, image) = rest.split_at_checked(size_of::<u128>())?;
    let right = *checksum == xxh3_128(image).to_le_bytes();
    right.then(|| file.split_off(MAGIC.len() + size_of::<u128>()))
}

/// Keeps an image, whole or not at all. Where it cannot be kept the next run compiles again, which is no error.
fn keep(path: &Path, image: &[u8]) {
    let file = [MAGIC.as_slice(), &xxh3_128(image).to_le_bytes(), image].concat();
    // Other processes, and other threads of this one, may be at the same: each writes a file of its own, and the last
    // rename stays.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let own = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&own, file));
    if written.and_then(|()| fs::rename(&own, path)).is_err() {
        let _ = fs::remove_file(&own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_kept_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("lectern-images-{}", std::process::id()));
        let path = folder.join("deep/one.image");
        let image: Vec<u8> = (0..1000).map(|i| (i * 7) as u8).collect();
        keep(&path, &image);
        let file = fs::read(&path).expect("sound");
        assert_eq!(whole(file.clone()), Some(image.clone()));
        for at in [0, MAGIC.len(), MAGIC.len() + 16, file.len() - 1] {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(whole(damaged), None, "byte {at}");
        }
        for len in [0, 5, MAGIC.len(), MAGIC.len() + 15, file.len() - 1] {
            assert_eq!(whole(file[..len].to_vec()), None, "{len} bytes");
        }
        // A second image replaces the first, and nothing else is left behind.
        keep(&path, &image[1..]);
        assert_eq!(whole(fs::read(&path).expect("sound")), Some(image[1..].to_vec()));
        assert_eq!(fs::read_dir(path.parent().expect("sound")).expect("sound").count(), 1);
        // Where a file stands in the way of the folder, nothing is kept and nothing fails.
        keep(&path.join("below/two.image"), &image);
        fs::remove_dir_all(&folder).expect("sound");
    }

    /// With a compiler in reach, NVIDIA's or the emulated one.
    #[test]
    fn machine_code_is_made_once_and_found_again() {
        if let Err(why) = crate::device::probe::compiler_library() {
            println!("skipped: {why}");
            return;
        }
        let folder = std::env::temp_dir().join(format!("lectern-code-{}", std::process::id()));
        for precision in [Precision::Bf16, Precision::F32] {
            let mut compiler = Compiler::new(precision, (9, 0)).expect("a compiler for this architecture");
            compiler.cache = Some(folder.clone());
            let sources = &crate::ops::KERNELS[..2];
            let made = compiler.images(sources).expect("sources that compile");
            assert!(made.iter().all(|image| !image.cached && !image.bytes.is_empty()));
            let found = compiler.images(sources).expect("images that are there");
            assert!(found.iter().all(|image| image.cached));
            assert!(made.iter().zip(&found).all(|(made, found)| made.bytes == found.bytes));
            let path = compiler.path(&sources[0]).expect("a folder");
            fs::write(&path, b"damaged").expect("a folder of ours");
            let again = compiler.images(sources).expect("sources that compile");
            assert_eq!(again.iter().map(|image| image.cached).collect::<Vec<_>>(), [false, true]);
            assert_eq!(again[0].bytes, made[0].bytes);
        }
        let mistaken = Source::new("ops/none/kernels.cu", "extern \"C\" __global__ void k(u32 a) { b = a; }");
        let compiler = Compiler::new(Precision::F32, (8, 0)).expect("a compiler for this architecture");
        let said = compiler.compile(&mistaken).expect_err("a name that is not there").to_string();
        assert!(said.contains("ops/none/kernels.cu does not compile"), "{said}");
        let names =
            |line: &str| line.trim_start().starts_with("ops/none/kernels.cu") && line.contains("error: ");
        assert!(said.lines().any(names), "{said}");
        fs::remove_dir_all(&folder).expect("a folder of ours");
    }
}
