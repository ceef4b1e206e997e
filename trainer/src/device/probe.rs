//! Whether a CUDA device can be had, asked in the order in which the answers depend on each other.
//!
//! Nothing that is missing panics: a library is looked for before its first call, and so is every symbol of it.

use super::libraries::found;
use super::ranks::Ranks;
use super::{Device, Precision, Stop};
use crate::options;
use cudarc::driver::{result, sys as driver};
use cudarc::nvrtc::sys as nvrtc;
use formats::{Error, Result};
use std::panic;

/// The driver's calls that a run makes.
const DRIVER: &[&str] = &[
    "cuInit",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// The compiler's calls that a run makes.
const COMPILER: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetErrorString",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
];

/// Where a run computes.
pub enum Chosen {
    /// On the CPU, and why not elsewhere, if that was not asked for.
    Cpu(Option<String>),
    /// On a device.
    Cuda(Device),
}

/// The device that was asked for, or the best there is. What was asked for and cannot be had is an error; `Auto` takes
/// the CPU instead and says why, but neither hides a mistake of ours nor rounds otherwise than was asked for.
pub fn choose(asked: options::Device, precision: Option<Precision>) -> Result<Chosen> {
    if asked == options::Device::Cpu {
        return Ok(Chosen::Cpu(None));
    }
    let local = Ranks::from_environment()?.map_or(0, |ranks| ranks.local);
    match (open(precision.unwrap_or(Precision::Bf16), local), asked) {
        (Ok(device), _) => Ok(Chosen::Cuda(device)),
        (Err(stop @ Stop::Bug(_)), _) | (Err(stop), options::Device::Cuda) => Err(stop.into()),
        (Err(stop), _) if precision == Some(Precision::Bf16) => {
            let expected = format!("f32 on the CPU, as CUDA cannot be used: {stop}");
            Err(Error::config("options", "precision", "bf16", expected))
        }
        (Err(stop), _) => Ok(Chosen::Cpu(Some(format!("CUDA not used: {stop}")))),
    }
}

/// The device of this process, or why there is none; `local` is the process's number on this machine.
pub fn open(precision: Precision, local: usize) -> Result<Device, Stop> {
    driver_library()?;
    // Every library and symbol is looked for before its first call. Should one panic all the same, as the bindings do where
    // something is missing, that is one more reason and no crash.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let opened = panic::catch_unwind(|| open_with_driver(precision, local));
    panic::set_hook(hook);
    opened.unwrap_or_else(|panic| {
        let said =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Stop::Library(said.unwrap_or("a library of CUDA's is not whole").to_owned()))
    })
}

fn open_with_driver(precision: Precision, local: usize) -> Result<Device, Stop> {
    result::init().map_err(|error| Stop::of_driver("cuInit", error))?;
    let count = result::device::get_count().map_err(|error| Stop::of_driver("cuDeviceGetCount", error))?;
    if count < 1 {
        return Err(Stop::Driver("the driver knows no device".to_owned()));
    }
    compiler_library()?;
    // Where each process sees one device of its own, that is the one.
    Device::start((local % count as usize) as i32, precision)
}

/// Whether the driver's library is there with every call we make.
fn driver_library() -> Result<(), Stop> {
    // SAFETY: loading a library runs its initialisers, which for NVIDIA's own do not depend on us.
    if !unsafe { driver::is_culib_present() } {
        return Err(Stop::Library("no NVIDIA driver (libcuda.so.1 is not found)".to_owned()));
    }
    // SAFETY: it is there, so this does not panic.
    let library = unsafe { driver::culib() };
    // SAFETY: the symbol is only looked up, never called as the type named here.
    let has = |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
    missing(DRIVER, has, "the NVIDIA driver (libcuda.so.1)")
}

/// Whether the compiler's library is there with every call we make.
pub(super) fn compiler_library() -> Result<(), Stop> {
    // SAFETY: as above.
    if !found("libnvrtc", || unsafe { nvrtc::is_culib_present() }) {
        let problem = "no NVRTC (libnvrtc.so is not found on the loader's path nor in CUDA_HOME/lib64)";
        return Err(Stop::Library(problem.to_owned()));
    }
    // SAFETY: as above.
    let library = unsafe { nvrtc::culib() };
    // SAFETY: as above.
    let has = |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
    missing(COMPILER, has, "NVRTC (libnvrtc.so)")
}

fn missing(names: &[&str], has: impl Fn(&str) -> bool, library: &str) -> Result<(), Stop> {
    match names.iter().find(|name| !has(name)) {
        Some(name) => Err(Stop::Library(format!("{library} is too old: it has no {name}"))),
        None => Ok(()),
    }
}
