//! Sums over the processes of one run, by NVIDIA's NCCL.
//!
//! The library is found by its own name, which the bindings do not look for, and called through their types. One process
//! alone goes the same way.

use super::memory::{Element, ViewMut};
use super::ranks::Ranks;
use super::{Device, driver_said};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use formats::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// Names of the library.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The calls that a run makes; they live as long as the library.
struct Calls {
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> ncclResult_t,
    join: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ncclResult_t,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        cudaStream_t,
    ) -> ncclResult_t,
    leave: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t,
    abort: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t,
    text: unsafe extern "C" fn(ncclResult_t) -> *const c_char,
    /// Never closed: its threads may outlive whoever loaded it.
    _library: &'static Library,
}

impl Calls {
    fn find() -> Result<Calls, String> {
        // SAFETY: loading a library runs its initialisers, which for NVIDIA's own do not depend on us.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library: &'static Library = Box::leak(Box::new(library.ok_or("libnccl.so.2 is not found")?));
        macro_rules! call {
            ($name:literal) => {
                // SAFETY: the type of the place it goes to is that of the function in NCCL's documentation (nccl.h).
                *unsafe { library.get($name) }.map_err(|_| "libnccl.so.2 is too old".to_owned())?
            };
        }
        Ok(Calls {
            unique_id: call!(b"ncclGetUniqueId"),
            join: call!(b"ncclCommInitRank"),
            all_reduce: call!(b"ncclAllReduce"),
            leave: call!(b"ncclCommDestroy"),
            abort: call!(b"ncclCommAbort"),
            text: call!(b"ncclGetErrorString"),
            _library: library,
        })
    }

    /// A result as a sentence, unless it is a success.
    fn said(&self, call: &str, result: ncclResult_t) -> Result<(), String> {
        if result == ncclResult_t::ncclSuccess {
            return Ok(());
        }
        // SAFETY: the function takes any result and returns a string that lives as long as the library, or null.
        let text = unsafe { (self.text)(result).as_ref() };
        let text = text.map_or("no text of NCCL's".into(), |text| {
            // SAFETY: not null, and ended by a zero as C strings are.
            unsafe { CStr::from_ptr(text) }.to_string_lossy()
        });
        Err(format!("{call}: {text}"))
    }
}

/// The processes of a run, joined.
pub struct Communicator {
    device: Device,
    calls: Calls,
    communicator: ncclComm_t,
}

// SAFETY: the handle is plain data to the library, whose calls may come from any thread, one at a time, which the only user,
// the device's one stream, sees to.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Communicator {
    /// Joins the processes, each with its device; returns when all have come.
    pub fn join(device: &Device, ranks: &Ranks) -> Result<Communicator> {
        let refused = |problem: String| {
            Error::Device(format!(
                "the {} processes of this run cannot add up their gradients: {problem}\n  help: install NCCL where the \
                 loader finds it, or start one process",
                ranks.world
            ))
        };
        device.check()?;
        let calls = Calls::find().map_err(refused)?;
        device.inner.bind().map_err(|error| refused(driver_said("cuCtxSetCurrent", error)))?;
        let bytes = ranks.share(|| {
            let mut id = ncclUniqueId { internal: [0; 128] };
            // SAFETY: the place is live.
            let result = unsafe { (calls.unique_id)(&mut id) };
            calls.said("ncclGetUniqueId", result).map_err(refused)?;
            Ok(id.internal.map(|byte| byte.to_ne_bytes()[0]))
        })?;
        let id = ncclUniqueId { internal: bytes.map(|byte| c_char::from_ne_bytes([byte])) };
        let number =
            |count: usize| c_int::try_from(count).map_err(|_| refused(format!("{count} are too many")));
        let (world, rank) = (number(ranks.world)?, number(ranks.rank)?);
        let mut communicator = ptr::null_mut();
        // SAFETY: the place is live, the id came from the first process, and this device's context is current.
        let result = unsafe { (calls.join)(&mut communicator, world, id, rank) };
        calls.said("ncclCommInitRank", result).map_err(refused)?;
        Ok(Communicator { device: device.clone(), calls, communicator })
    }

    /// Replaces numbers by their sums over all processes, in the order of the stream. What goes wrong is recorded in the
    /// device.
    pub fn sum<'a>(&self, numbers: impl Into<ViewMut<'a>>) {
        let numbers = numbers.into();
        let kind = match numbers.element {
            Element::F32 => ncclDataType_t::ncclFloat32,
            Element::F64 => ncclDataType_t::ncclFloat64,
            element => return self.device.bug(format!("{element:?} summed over processes")),
        };
        if numbers.is_empty() || self.device.failed() || !self.device.holds(numbers.owner, "sum") {
            return;
        }
        let place = numbers.pointer as *mut c_void;
        let done =
            self.device.inner.bind().map_err(|error| driver_said("cuCtxSetCurrent", error)).and_then(|()| {
                // SAFETY: the view spans as many live numbers of this kind, borrowed for writing; both places may be one.
                let result = unsafe {
                    (self.calls.all_reduce)(
                        place,
                        place,
                        numbers.len(),
                        kind,
                        ncclRedOp_t::ncclSum,
                        self.communicator,
                        self.device.inner.stream.cast(),
                    )
                };
                self.calls.said("ncclAllReduce", result)
            });
        if let Err(problem) = done {
            self.device.lost(problem);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // After a failure the others may be gone, and an orderly farewell would wait for them.
        let orderly = self.device.synchronize().is_ok();
        let call = if orderly { self.calls.leave } else { self.calls.abort };
        // SAFETY: joined once and left once, here. Nobody can be told of an error.
        let _ = unsafe { call(self.communicator) };
    }
}
