//! Sums over the processes of one run, by NVIDIA's NCCL.
//!
//! The library is found by its own name, which the bindings do not look for, and called through their types. One process
//! alone goes the same way.

use super::memory::{Element, ViewMut};
use super::ranks::Ranks;
use super::watch::Watch;
use super::{Device, driver_said};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use formats::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    calls: Arc<Calls>,
    joined: Arc<Joined>,
    /// Whether the others were told that they may go on without this one.
    parted: AtomicBool,
    watch: Option<Watch>,
}

/// What stands for them to the library; none once it was left.
struct Joined(Mutex<Option<ncclComm_t>>);

// SAFETY: the handle is plain data to the library, whose calls may come from any thread, one at a time, which the lock sees
// to.
unsafe impl Send for Joined {}
// SAFETY: as above.
unsafe impl Sync for Joined {}

impl Joined {
    fn held(&self) -> MutexGuard<'_, Option<ncclComm_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves them by one of the two calls there are for it.
    fn leave(&self, call: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t) {
        if let Some(communicator) = self.held().take() {
            // SAFETY: joined once and left once, as it is taken out. Nobody can be told of an error.
            let _ = unsafe { call(communicator) };
        }
    }
}

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
        let calls = Arc::new(Calls::find().map_err(refused)?);
        device.inner.bind().map_err(|error| refused(driver_said("cuCtxSetCurrent", error)))?;
        let (bytes, lines) = ranks.share(|| {
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
        let joined = Arc::new(Joined(Mutex::new(Some(communicator))));
        let missed = {
            let (device, joined, calls) = (device.clone(), Arc::clone(&joined), Arc::clone(&calls));
            move |rank: usize| {
                device.deserted(rank);
                // Sums that wait for it end by this, and whoever waits for them.
                joined.leave(calls.abort);
            }
        };
        let watch = Watch::new(lines, missed).map_err(|error| refused(error.to_string()))?;
        let parted = AtomicBool::new(false);
        Ok(Communicator { device: device.clone(), calls, joined, parted, watch: Some(watch) })
    }

    /// Says to the other processes that this one has nothing more to sum.
    pub fn part(&self) {
        self.parted.store(true, Ordering::Relaxed);
        self.watch.iter().for_each(Watch::farewell);
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
        let joined = self.joined.held();
        let Some(communicator) = *joined else { return };
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
                        communicator,
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
        // Where a run ended otherwise than all do the others may be gone, and to leave in order would wait for them.
        let orderly = *self.parted.get_mut() && self.device.synchronize().is_ok();
        self.joined.leave(if orderly { self.calls.leave } else { self.calls.abort });
        // Only now do the others see the line break.
        self.watch = None;
    }
}
