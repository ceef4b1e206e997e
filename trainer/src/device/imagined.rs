//! A device that is not there: what a run would ask of one, counted without any driver.
//!
//! Memory is made-up addresses, launches are checked against the kernels' declarations and done by nobody, a recording
//! knows how many nodes it has. What is read back is what the host's memory held before.

use super::kernels::Kernels;
use super::signature::signatures;
use super::{Device, Inner, Precision, Stop};
use crate::ops::KERNELS;
use cudarc::driver::sys::CUdeviceptr;
use formats::Result;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Where made-up memory begins: nowhere near memory of the host, and aligned as a driver aligns.
const FIRST_ADDRESS: u64 = 1 << 60;
/// What addresses are multiples of.
const ALIGNMENT: u64 = 256;

/// What an imagined device knows.
pub(super) struct Imagined {
    next: AtomicU64,
    nodes: AtomicUsize,
}

impl Imagined {
    /// An address for so many bytes.
    pub fn address(&self, bytes: usize) -> CUdeviceptr {
        self.next.fetch_add((bytes as u64).next_multiple_of(ALIGNMENT), Ordering::Relaxed)
    }

    /// Counts what would be put on the stream.
    pub fn count(&self) {
        self.nodes.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted since this was last asked.
    pub fn counted(&self) -> usize {
        self.nodes.swap(0, Ordering::Relaxed)
    }
}

impl Device {
    /// A device of that many multiprocessors that is not there.
    pub fn imagined(precision: Precision, multiprocessors: u32) -> Result<Device> {
        let mut kernels = Kernels::default();
        for source in KERNELS {
            for signature in signatures(source.text).map_err(|problem| Stop::bug(source.file, &problem))? {
                kernels.know(source, signature, ptr::null_mut())?;
            }
        }
        let imagined = Imagined { next: AtomicU64::new(FIRST_ADDRESS), nodes: AtomicUsize::new(0) };
        let mut inner = Inner::new(precision, "an imagined device".to_owned(), (8, 0), multiprocessors);
        *inner.kernels = kernels;
        inner.imagined = Some(imagined);
        Ok(Device { inner: Arc::new(inner), library: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Argument, Element, Grid};
    use crate::launch;

    #[test]
    fn what_would_be_asked_for_is_counted_and_checked() {
        let device = Device::imagined(Precision::Bf16, 132).expect("sound");
        let mut values = device.values(1000).expect("sound");
        let floats = device.floats(3).expect("sound");
        assert_eq!(device.held(), 2012);
        let graph = device.capture(|| {
            device.zero(&mut values);
            launch!(device, "norm_forward", Grid::line(0, 32));
            device.copy(values.part(0..10), device.values(0).unwrap_or_default().view_mut());
        });
        // New memory within a recording, then a copy of ten elements to none.
        assert_eq!(graph.err().map(|error| error.exit_code()), Some(1));
        drop(floats);
        assert_eq!(device.held(), 2000);

        let device = Device::imagined(Precision::F32, 132).expect("sound");
        let mut values = device.values(1000).expect("sound");
        let mut sums = device.buffer(Element::F64, 4).expect("sound");
        assert_eq!(device.held(), 4032);
        let graph = device
            .capture(|| {
                device.zero(&mut values);
                device.zero(sums.part_mut(1..2));
            })
            .expect("sound");
        assert_eq!(graph.nodes(), 2);
        device.replay(&graph);
        device.check().expect("sound");
        device.launch("no_kernel_of_ours", Grid::line(1, 32), &[Argument::NULL]);
        assert!(device.check().expect_err("refused").to_string().contains("no_kernel_of_ours"));
    }
}
