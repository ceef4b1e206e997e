//! The kernels by name: embedded sources, compiled for the device at hand, loaded, and their signatures.
//!
//! The list of sources is [`crate::ops::KERNELS`]; how one becomes an image is [`super::compile`]'s.

use super::compile::Compiler;
use super::signature::{Parameter, Signature, signatures};
use super::{Precision, Stop};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUfunction, CUmodule, CUresult};
use formats::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::AtomicUsize;

/// What stands before every source: types, loads and stores, reductions, random draws, tensor cores.
pub const HEADER: &str = include_str!("kernel.cuh");

/// The kernels of one operation, or what several of them share.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Where it stands, for messages.
    pub file: &'static str,
    /// All of it, without what stands before it.
    pub text: &'static str,
    /// What stands between it and the header, behind what that needs itself.
    pub before: Option<&'static Source>,
}

impl Source {
    /// A source that needs only the header.
    pub const fn new(file: &'static str, text: &'static str) -> Source {
        Source { file, text, before: None }
    }

    /// The same behind another source, which may be behind others.
    pub const fn behind(self, before: &'static Source) -> Source {
        Source { before: Some(before), ..self }
    }

    /// It as text for the assembler (PTX) of an architecture, 80 for compute capability 8.0. No device is needed, only
    /// NVRTC: so the kernels are checked where there is none.
    pub fn assembly(&self, precision: Precision, architecture: u32) -> Result<String> {
        super::probe::compiler_library()?;
        let mut text = Compiler::to_text(precision, architecture).compile(self)?;
        text.retain(|&byte| byte != 0);
        String::from_utf8(text)
            .map_err(|_| Error::Internal(format!("{}: its assembly is no text", self.file)))
    }

    /// What is compiled: the header, what stands between, the source, each under its own line numbers.
    pub fn whole(&self) -> String {
        let own = format!("#line 1 \"{}\"\n{}\n", self.file, self.text);
        match self.before {
            Some(before) => before.whole() + &own,
            None => format!("#line 1 \"device/kernel.cuh\"\n{HEADER}\n{own}"),
        }
    }
}

/// A loaded kernel.
pub(super) struct Kernel {
    /// The driver's handle.
    pub function: CUfunction,
    /// What it takes.
    pub parameters: Vec<Parameter<'static>>,
    /// The most dynamic shared memory it was granted, in bytes.
    pub shared: AtomicUsize,
}

/// All kernels, by name.
#[derive(Default)]
pub(super) struct Kernels {
    modules: Vec<CUmodule>,
    kernels: HashMap<&'static str, Kernel>,
}

impl Kernels {
    /// Compiles, or finds compiled, and loads every source. The context is current.
    pub fn load(
        sources: &'static [Source],
        precision: Precision,
        capability: (u32, u32),
    ) -> Result<Kernels, Stop> {
        let compiler = Compiler::new(precision, capability)?;
        let mut kernels = Kernels::default();
        let images = compiler.images(sources)?;
        for (source, image) in sources.iter().zip(images) {
            // An image from the cache that the driver refuses is made anew, once.
            let module = match module(&image.bytes) {
                Err(_) if image.cached => {
                    let image = compiler.compile_again(source)?;
                    module(&image)
                }
                module => module,
            }
            .map_err(|error| Stop::of_driver(&format!("cuModuleLoadData of {}", source.file), error))?;
            kernels.modules.push(module);
            for signature in signatures(source.text).map_err(|problem| Stop::bug(source.file, &problem))? {
                let name =
                    CString::new(signature.name).map_err(|_| Stop::bug(source.file, "a name with a zero"))?;
                // SAFETY: the module was loaded above and is unloaded only when `kernels` is dropped.
                let found = unsafe { result::module::get_function(module, name) };
                if found == Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) {
                    // Declared for the other precision alone.
                    continue;
                }
                let function = found.map_err(|error| {
                    Stop::of_driver(&format!("cuModuleGetFunction of {}", signature.name), error)
                })?;
                kernels.know(source, signature, function)?;
            }
        }
        Ok(kernels)
    }

    /// Takes in a kernel, of which no other may have the name.
    pub fn know(
        &mut self,
        source: &Source,
        signature: Signature<'static>,
        function: CUfunction,
    ) -> Result<(), Stop> {
        let kernel = Kernel { function, parameters: signature.parameters, shared: AtomicUsize::new(0) };
        match self.kernels.insert(signature.name, kernel) {
            None => Ok(()),
            Some(_) => Err(Stop::bug(source.file, &format!("a second kernel {}", signature.name))),
        }
    }

    /// The kernel of that name.
    pub fn get(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for &module in &self.modules {
            // SAFETY: loaded once, unloaded once, here; whoever drops the kernels has bound the context and waited for the
            // stream. A broken context refuses, and nobody can be told.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Loads an image.
fn module(image: &[u8]) -> Result<CUmodule, DriverError> {
    // The driver reads text to its final zero; binary images carry their own length and do not mind one.
    let mut image = image.to_vec();
    image.push(0);
    // SAFETY: the image is whole, as its checksum or its compiler says, ends in a zero, and outlives the call.
    unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::KERNELS;
    use std::collections::HashSet;
    use std::path::Path;

    #[test]
    fn every_source_is_listed_once_and_declares_kernels_that_can_be_launched() {
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let mut on_disk = HashSet::new();
        for entry in std::fs::read_dir(&ops).expect("sound") {
            let Ok(room) = std::fs::read_dir(entry.expect("sound").path()) else { continue };
            for file in room
                .map(|file| file.expect("sound").path())
                .filter(|file| file.extension() == Some("cu".as_ref()))
            {
                let name = file
                    .strip_prefix(ops.parent().expect("sound"))
                    .expect("sound")
                    .to_str()
                    .expect("sound")
                    .to_owned();
                on_disk.insert(name);
            }
        }
        let listed: HashSet<String> = KERNELS.iter().map(|source| source.file.to_owned()).collect();
        assert_eq!(listed.len(), KERNELS.len());
        assert_eq!(listed, on_disk);
        let mut names = HashSet::new();
        for source in KERNELS {
            let found =
                signatures(source.text).unwrap_or_else(|problem| panic!("{}: {problem}", source.file));
            assert!(!found.is_empty(), "{} declares no kernel", source.file);
            for signature in found {
                assert!(names.insert(signature.name), "{}: a second {}", source.file, signature.name);
            }
        }
    }
}
