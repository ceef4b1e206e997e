//! Pinned host memory that uploads pass through, so that the host never waits for the work before them.
//!
//! A few slots are used in turn. A slot is filled again only when the copy from it has ended, which its event tells; a copy
//! from memory that is not pinned would let the driver wait for the whole stream instead.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUdeviceptr, CUevent, CUevent_flags, CUstream};
use std::ptr;
use std::slice;

/// How many copies may be under way.
const SLOTS: usize = 4;
/// Bytes of a slot.
const SLOT: usize = 1 << 20;

/// The slots, and which comes next.
#[derive(Default)]
pub(super) struct Staging {
    slots: [Slot; SLOTS],
    next: usize,
}

/// Pinned memory, and the end of the last copy from it.
struct Slot {
    memory: *mut u8,
    copied: CUevent,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot { memory: ptr::null_mut(), copied: ptr::null_mut() }
    }
}

// SAFETY: the memory is owned, and the event is plain data to the driver, whose calls may come from any thread.
unsafe impl Send for Slot {}

impl Staging {
    /// Asks for the slots; the context is current.
    pub fn new() -> Result<Staging, DriverError> {
        let mut staging = Staging::default();
        for slot in &mut staging.slots {
            // SAFETY: the memory is given back once, when the slot is dropped, and written before it is read.
            slot.memory = unsafe { result::malloc_host(SLOT, 0) }?.cast();
            slot.copied = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        }
        Ok(staging)
    }

    /// Puts a copy of `from` on the stream; `from` is free again on return.
    ///
    /// # Safety
    ///
    /// `to` must name as many live bytes of the current context, to which `stream` belongs.
    pub unsafe fn upload(
        &mut self,
        from: &[u8],
        to: CUdeviceptr,
        stream: CUstream,
    ) -> Result<(), DriverError> {
        for (number, piece) in from.chunks(SLOT).enumerate() {
            let slot = &mut self.slots[self.next];
            self.next = (self.next + 1) % SLOTS;
            // SAFETY: the event is the slot's own. Once it has passed nothing reads the slot, which holds `SLOT` bytes that
            // only this borrow of `self` reaches; `to` is as the caller promises.
            unsafe {
                result::event::synchronize(slot.copied)?;
                let held = slice::from_raw_parts_mut(slot.memory, piece.len());
                held.copy_from_slice(piece);
                result::memcpy_htod_async(to + (number * SLOT) as u64, held, stream)?;
                result::event::record(slot.copied, stream)?;
            }
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: each was made once and is given back once, here, by whoever has bound the context and waited for the
        // stream. A broken context refuses, and nobody can be told.
        unsafe {
            if !self.copied.is_null() {
                let _ = result::event::destroy(self.copied);
            }
            if !self.memory.is_null() {
                let _ = result::free_host(self.memory.cast());
            }
        }
    }
}
