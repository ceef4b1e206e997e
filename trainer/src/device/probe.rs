//! Whether a CUDA device can be had, asked in the order in which the answers depend on each other.
//!
//! Nothing that is missing panics: a library is looked for before its first call, and so is every symbol of it.

use super::{Device, Precision, Stop};
use cudarc::driver::{result, sys as driver};
use cudarc::nvrtc::sys as nvrtc;

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

/// The device of this process, or why there is none.
pub fn open(precision: Precision) -> Result<Device, Stop> {
    driver_library()?;
    result::init().map_err(|error| Stop::of_driver("cuInit", error))?;
    let count = result::device::get_count().map_err(|error| Stop::of_driver("cuDeviceGetCount", error))?;
    if count < 1 {
        return Err(Stop::Driver("the driver knows no device".to_owned()));
    }
    compiler_library()?;
    Device::start(0, precision)
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
fn compiler_library() -> Result<(), Stop> {
    // SAFETY: as above.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(Stop::Library("no NVRTC (libnvrtc.so.13 is not found on the loader's path)".to_owned()));
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
