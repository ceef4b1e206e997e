//! A recorded sequence of launches that is replayed as one.
//!
//! Recording runs nothing. What changes from replay to replay stands in device memory.

use super::Device;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};
use formats::Result;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A recorded sequence, ready to be launched.
pub struct Graph {
    device: Device,
    launchable: CUgraphExec,
    nodes: usize,
}

// SAFETY: the handle is plain data to the driver, whose calls may come from any thread; each call binds the context first.
unsafe impl Send for Graph {}
// SAFETY: as above; replaying only reads the handle.
unsafe impl Sync for Graph {}

impl Device {
    /// Records what `work` puts on the stream: launches, copies within the device and zeroing. Uploads, downloads and
    /// new memory within are a bug of ours.
    pub fn capture(&self, work: impl FnOnce()) -> Result<Graph> {
        self.check()?;
        if let Some(imagined) = &self.inner.imagined {
            imagined.counted();
            self.record(work);
            let nodes = imagined.counted();
            self.check()?;
            return Ok(Graph { device: self.clone(), launchable: ptr::null_mut(), nodes });
        }
        self.attempt("cuStreamBeginCapture", |inner| {
            // SAFETY: the stream is the device's own and not the null stream.
            unsafe {
                result::stream::begin_capture(
                    inner.stream,
                    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                )
            }
        });
        self.check()?;
        self.record(work);
        let mut graph = ptr::null_mut();
        let ended = self.inner.bind().and_then(|()| {
            // SAFETY: the capture began above; it is ended even where the work failed, so that the stream is usable.
            unsafe { sys::cuStreamEndCapture(self.inner.stream, &mut graph).result() }
        });
        self.note("cuStreamEndCapture", ended);
        let (mut launchable, mut nodes) = (ptr::null_mut(), 0);
        self.attempt("cuGraphInstantiate", |_| {
            // SAFETY: `graph` is the one just captured; asked without room for nodes, the driver only counts them.
            unsafe {
                sys::cuGraphGetNodes(graph, ptr::null_mut(), &mut nodes).result()?;
                launchable = result::graph::instantiate(graph, CUgraphInstantiate_flags(0))?;
            }
            Ok(())
        });
        if !graph.is_null() {
            // SAFETY: what is instantiated does not need the graph it was made from.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        self.check()?;
        self.inner.kept_for_graphs().graphs += 1;
        Ok(Graph { device: self.clone(), launchable, nodes })
    }

    /// Does `work` while the stream records.
    fn record(&self, work: impl FnOnce()) {
        self.inner.recording.store(true, Ordering::Relaxed);
        work();
        self.inner.recording.store(false, Ordering::Relaxed);
    }
}

impl Device {
    /// Does all of a recorded sequence again, in the order of the stream; what goes wrong is recorded in the device.
    pub fn replay(&self, graph: &Graph) {
        if !Arc::ptr_eq(&self.inner, &graph.device.inner) {
            return self.bug("a graph of another device".to_owned());
        }
        self.attempt("cuGraphLaunch", |inner| {
            // SAFETY: instantiated by `capture` and destroyed only when dropped; no memory of the device is freed before that.
            unsafe { result::graph::launch(graph.launchable, inner.stream) }
        });
    }
}

impl Graph {
    /// How many launches and copies it is made of.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.launchable.is_null() {
            return;
        }
        if self.device.inner.bind().is_ok() {
            // SAFETY: made by `capture` and destroyed once, here; the driver waits for a replay under way.
            let _ = unsafe { result::graph::exec_destroy(self.launchable) };
        }
        let mut kept = self.device.inner.kept_for_graphs();
        kept.graphs -= 1;
        if kept.graphs == 0 {
            kept.memory.drain(..).for_each(|pointer| self.device.inner.free(pointer));
        }
    }
}
