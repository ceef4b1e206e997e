//! The only room that speaks to CUDA: a device, its memory, its kernels and their launches.
//!
//! One context, one stream of our own, no events: work runs in the order in which it is asked for. A call on the stream
//! returns nothing; the first thing that goes wrong is kept, whatever follows does nothing, and [`Device::check`] says
//! it. That is also what the hardware does: after a failed kernel every call fails. Nothing here knows an operation.

mod blas;
mod compile;
mod graph;
mod imagined;
pub mod kernels;
mod launch;
mod libraries;
mod memory;
pub mod nccl;
pub mod probe;
pub mod ranks;
pub mod signature;
mod staging;
mod watch;

pub use blas::{Epilogue, Factor, Product};
pub use graph::Graph;
pub use launch::{Argument, Grid};
pub use memory::{Buffer, Element, Number, View, ViewMut};

use crate::ops::KERNELS;
use blas::Blas;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUresult, CUstream};
use cudarc::nvrtc::result::NvrtcError;
use formats::{Error, Result};
use imagined::Imagined;
use kernels::Kernels;
use serde::{Deserialize, Serialize};
use staging::Staging;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What activations and working weights are kept in. Statistics, gradients, moments and master weights are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Eight bits of fraction and the range of f32; products on tensor cores, summed in f32.
    Bf16,
    /// 32-bit floats throughout, products included.
    F32,
}

/// Why a device cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A library is not on this machine, or is not whole.
    #[error("{0}")]
    Library(String),
    /// The driver refuses.
    #[error("{0}")]
    Driver(String),
    /// It has no memory left.
    #[error("{0}")]
    Memory(String),
    /// The card is too old.
    #[error("{0}")]
    Capability(String),
    /// The kernels do not compile or load.
    #[error("{0}")]
    Compiler(String),
    /// A mistake of ours.
    #[error("{0}")]
    Bug(String),
}

impl Stop {
    fn of_driver(call: &str, error: DriverError) -> Stop {
        let said = driver_said(call, error);
        if is_of_memory(error) { Stop::Memory(said) } else { Stop::Driver(said) }
    }

    fn of_compiler(call: &str, error: NvrtcError) -> Stop {
        Stop::Compiler(format!("{call}: {}", compile::said(error)))
    }

    fn bug(file: &str, problem: &str) -> Stop {
        Stop::Bug(format!("{file}: {problem}"))
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        match stop {
            Stop::Bug(problem) => Error::Internal(problem),
            Stop::Memory(problem) => Error::DeviceMemory(out_of_memory(&problem)),
            stop => Error::Device(format!(
                "CUDA cannot be used: {stop}\n  help: pass --device cpu, or --device auto"
            )),
        }
    }
}

/// A device at work. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
    /// Whether products are left to cuBLASLt, where it is.
    library: bool,
}

/// What its buffers and graphs share.
struct Inner {
    ordinal: CUdevice,
    context: CUcontext,
    stream: CUstream,
    precision: Precision,
    capability: (u32, u32),
    multiprocessors: u32,
    name: String,
    kernels: ManuallyDrop<Kernels>,
    staging: ManuallyDrop<Mutex<Staging>>,
    blas: ManuallyDrop<Option<Blas>>,
    /// Whether what is put on the stream is recorded and not run.
    recording: AtomicBool,
    failure: OnceLock<Failure>,
    kept: Mutex<Kept>,
    /// Bytes of its buffers.
    held: AtomicU64,
    /// In the place of a driver.
    imagined: Option<Imagined>,
}

/// Memory that was given up while a recorded graph may still name it.
#[derive(Default)]
struct Kept {
    graphs: usize,
    memory: Vec<CUdeviceptr>,
}

/// The first thing that went wrong.
enum Failure {
    /// On the device.
    Device(String),
    /// It had no memory left.
    Memory(String),
    /// Another process of the run ended without a word.
    Deserted(usize),
    /// In our own code.
    Bug(String),
}

// SAFETY: the handles are plain data to the driver, whose calls may come from any thread as long as the thread has bound the
// context, which every call here does first.
unsafe impl Send for Inner {}
// SAFETY: as above; what changes is behind a lock or set once.
unsafe impl Sync for Inner {}

impl Device {
    /// The first device, or the one this process is told to take, with every kernel loaded.
    pub fn open(precision: Precision) -> Result<Device> {
        let local = ranks::Ranks::from_environment()?.map_or(0, |ranks| ranks.local);
        Ok(probe::open(precision, local)?)
    }

    /// Makes the device of a number, its stream and its kernels; the libraries are known to be there.
    fn start(ordinal: i32, precision: Precision) -> Result<Device, Stop> {
        let of = Stop::of_driver;
        let device = result::device::get(ordinal).map_err(|error| of("cuDeviceGet", error))?;
        let name = result::device::get_name(device).map_err(|error| of("cuDeviceGetName", error))?;
        let attribute = |attribute| {
            // SAFETY: the device comes from the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map(i32::unsigned_abs).map_err(|error| of("cuDeviceGetAttribute", error))
        };
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            return Err(Stop::Capability(format!(
                "{name} has compute capability {}.{}, 8.0 or more is needed",
                capability.0, capability.1
            )));
        }
        let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: the device comes from the driver; the context is released once, when `Inner` is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| of("cuDevicePrimaryCtxRetain", error))?;
        let mut inner = Inner::new(precision, name, capability, multiprocessors);
        (inner.ordinal, inner.context) = (device, context);
        inner.bind().map_err(|error| of("cuCtxSetCurrent", error))?;
        inner.stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| of("cuStreamCreate", error))?;
        *inner.staging = Mutex::new(Staging::new().map_err(|error| of("cuMemHostAlloc", error))?);
        *inner.kernels = Kernels::load(KERNELS, precision, capability)?;
        *inner.blas = Blas::open().map_err(|error| of("cuMemAlloc for cuBLASLt", error))?;
        Ok(Device { inner: Arc::new(inner), library: true })
    }

    /// The same device, every product by our own kernels.
    pub fn without_library(&self) -> Device {
        Device { library: false, ..self.clone() }
    }

    /// What activations are kept in.
    pub fn precision(&self) -> Precision {
        self.inner.precision
    }

    /// How many groups of blocks run at once. It may size a grid only where no byte of the result depends on it.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// Its compute capability.
    pub fn capability(&self) -> (u32, u32) {
        self.inner.capability
    }

    /// Bytes of the buffers that it holds now.
    pub fn held(&self) -> u64 {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// What its maker calls it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Itself in a few words: its name, its architecture, and who multiplies.
    pub fn describe(&self) -> String {
        let (major, minor) = self.capability();
        let products = match &*self.inner.blas {
            None => "products by our own kernels as cuBLASLt is not found".to_owned(),
            Some(_) if !self.library => "products by our own kernels".to_owned(),
            Some(blas) => {
                // As NVIDIA counts: 130200 is 13.2.
                let version = blas.version();
                format!("products by cuBLASLt {}.{}", version / 10_000, version / 100 % 100)
            }
        };
        let precision = match self.precision() {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        format!("{}, sm_{major}{minor}, {precision}, {products}", self.name())
    }

    /// Whether all has gone well so far. Work still on its way may go wrong later; see [`Device::synchronize`].
    pub fn check(&self) -> Result<()> {
        match self.inner.failure.get() {
            None => Ok(()),
            Some(Failure::Bug(problem)) => Err(Error::Internal(problem.clone())),
            Some(Failure::Deserted(rank)) => Err(Error::Device(format!(
                "process {rank} of this run is gone, and what all of them sum cannot be\n  help: see how it ended; what \
                 was saved before is intact; continue with --resume"
            ))),
            Some(Failure::Memory(problem)) => Err(Error::DeviceMemory(out_of_memory(problem))),
            Some(Failure::Device(problem)) => Err(Error::Device(format!(
                "the device failed: {problem}\n  help: what was saved before is intact; continue with --resume"
            ))),
        }
    }

    /// Waits for all work and says whether it went well.
    pub fn synchronize(&self) -> Result<()> {
        self.only_outside_of_recording("waiting");
        self.attempt("cuStreamSynchronize", |inner| {
            // SAFETY: the stream lives as long as the device.
            unsafe { result::stream::synchronize(inner.stream) }
        });
        self.check()
    }

    fn failed(&self) -> bool {
        self.inner.failure.get().is_some()
    }

    /// Does one call on the context, unless something went wrong before, and keeps its error.
    fn attempt(&self, call: &str, work: impl FnOnce(&Inner) -> Result<(), DriverError>) {
        if self.failed() {
            return;
        }
        match &self.inner.imagined {
            Some(imagined) => imagined.count(),
            None => self.note(call, self.inner.bind().and_then(|()| work(&self.inner))),
        }
    }

    /// Keeps the first error.
    fn note(&self, call: &str, result: Result<(), DriverError>) {
        match result {
            Err(error) if is_of_memory(error) => {
                let _ = self.inner.failure.set(Failure::Memory(driver_said(call, error)));
            }
            Err(error) => self.lost(driver_said(call, error)),
            Ok(()) => {}
        }
    }

    /// Keeps what went wrong on the device, if it is the first: what follows is its consequence.
    fn lost(&self, problem: String) {
        let _ = self.inner.failure.set(Failure::Device(problem));
    }

    /// Keeps that another process of the run is gone, if it is the first thing to go wrong.
    fn deserted(&self, rank: usize) {
        let _ = self.inner.failure.set(Failure::Deserted(rank));
    }

    /// Keeps a mistake of ours, if it is the first thing to go wrong.
    fn bug(&self, problem: String) {
        let _ = self.inner.failure.set(Failure::Bug(problem));
    }

    /// Whether memory is this device's, which is kept as our mistake if not.
    fn holds(&self, owner: Option<&Inner>, work: &str) -> bool {
        let ours = owner.is_some_and(|owner| std::ptr::eq(owner, Arc::as_ptr(&self.inner)));
        if !ours {
            self.bug(format!("{work}: memory of another device"));
        }
        ours
    }

    /// Keeps as our mistake what cannot be part of a recording.
    fn only_outside_of_recording(&self, what: &str) {
        if self.inner.recording.load(Ordering::Relaxed) {
            self.bug(format!("{what} within a recording"));
        }
    }

    /// An error as a value, kept as well.
    fn refused(&self, call: &str, error: DriverError) -> Error {
        self.note(call, Err(error));
        self.check().err().unwrap_or_else(|| Error::Device(driver_said(call, error)))
    }
}

impl Inner {
    /// Of a context that is not there yet.
    fn new(precision: Precision, name: String, capability: (u32, u32), multiprocessors: u32) -> Inner {
        Inner {
            ordinal: 0,
            context: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            precision,
            capability,
            multiprocessors,
            name,
            kernels: ManuallyDrop::new(Kernels::default()),
            staging: ManuallyDrop::new(Mutex::default()),
            blas: ManuallyDrop::new(None),
            recording: AtomicBool::new(false),
            failure: OnceLock::new(),
            kept: Mutex::default(),
            held: AtomicU64::new(0),
            imagined: None,
        }
    }

    /// Makes the context the calling thread's own.
    fn bind(&self) -> Result<(), DriverError> {
        if self.imagined.is_some() {
            return Ok(());
        }
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Frees memory that nothing names any more.
    fn free(&self, pointer: CUdeviceptr) {
        if self.imagined.is_none() && self.bind().is_ok() {
            // SAFETY: allocated once by `Device::buffer` and given up once by its buffer; the driver waits for work that
            // uses it. Nobody can be told of an error, which a broken context gives for every call.
            let _ = unsafe { result::free_sync(pointer) };
        }
    }

    fn kept_for_graphs(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.imagined.is_some() {
            return;
        }
        // Nobody can be told of an error here, and a broken context gives one for every call.
        if self.bind().is_ok() {
            if !self.stream.is_null() {
                // SAFETY: the stream is this device's and nothing is put on it any more.
                let _ = unsafe { result::stream::synchronize(self.stream) };
            }
            // SAFETY: dropped once, here, while the context is current and nothing runs.
            unsafe {
                ManuallyDrop::drop(&mut self.kernels);
                ManuallyDrop::drop(&mut self.staging);
                ManuallyDrop::drop(&mut self.blas);
            }
            if !self.stream.is_null() {
                // SAFETY: created once and destroyed once, here.
                let _ = unsafe { result::stream::destroy(self.stream) };
            }
        }
        // SAFETY: retained once and released once, here.
        let _ = unsafe { result::primary_ctx::release(self.ordinal) };
    }
}

/// Whether the driver had no memory for what it was asked.
fn is_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// What to say where it does not say how much is wanted.
fn out_of_memory(problem: &str) -> String {
    format!(
        "the device has no memory left: {problem}\n  help: see what else runs on it, or choose a smaller --batch with \
         --accumulate; what was saved before is intact"
    )
}

/// An error of the driver's as one line.
fn driver_said(call: &str, error: DriverError) -> String {
    let text = error.error_string().map_or("no text of the driver's".into(), |text| text.to_string_lossy());
    format!("{call}: {:?} ({}): {text}", error.0, error.0 as u32)
}
