//! What the device keeps, and how it comes there.

use super::Cuda;
use super::arena::{self, Working};
use crate::backend::{Held, Storage};
use crate::device::{Buffer, Element, Precision};
use crate::memory::MemoryPlan;
use crate::ops::route::Router;
use crate::ops::route::cuda::Routing;
use crate::tape::{Program, Step};
use formats::{Layout, Result};

impl Storage for Cuda {
    const GATHERS: bool = true;

    type Values = Buffer;
    type Floats = Buffer;
    type Sums = Buffer;
    type Indices = Buffer;
    type Working = Working;
    type Routing = Routing;

    fn plan(&self, held: &Held<'_>) -> MemoryPlan {
        let parameters = held.parameters as u64;
        let twin = match self.device.precision() {
            Precision::Bf16 => 2,
            Precision::F32 => 0,
        };
        MemoryPlan {
            weights: (4 + twin) * parameters,
            gradients: 4 * parameters * held.shards as u64,
            moments: 2 * 4 * parameters,
            activations: self.bytes(held.program) * held.shards as u64 + self.bytes(held.evaluation),
            copies: 0,
        }
    }

    fn available(&self) -> Option<u64> {
        self.device.memory().ok().map(|(free, _)| free)
    }

    fn values(&self, len: usize) -> Result<Buffer> {
        self.device.values(len)
    }

    fn floats(&self, len: usize) -> Result<Buffer> {
        self.device.floats(len)
    }

    fn indices(&self, len: usize) -> Result<Buffer> {
        self.device.indices(len)
    }

    fn sums(&self, len: usize) -> Result<Buffer> {
        self.device.buffer(Element::F64, len)
    }

    fn scratch(&self, program: &Program) -> Result<Buffer> {
        self.device.floats(self.scratch_of(program))
    }

    fn routing(&self, s: &Router) -> Result<Routing> {
        Routing::new(&self.device, s)
    }

    fn working(&self, layout: &Layout) -> Result<Working> {
        Working::new(&self.device, layout)
    }

    fn upload(&self, from: &[f32], to: &mut Buffer) {
        self.device.upload(from, to.part_mut(0..from.len()));
    }

    fn download(&self, from: &Buffer, to: &mut [f32]) -> Result<()> {
        self.device.read(from.part(0..to.len()), to)
    }

    fn upload_values(&self, from: &[f32], to: &mut Buffer) {
        self.device.upload_values(from, to.part_mut(0..from.len()));
    }

    fn download_values(&self, from: &Buffer, to: &mut [f32]) -> Result<()> {
        self.device.download_values(from.part(0..to.len()), to);
        self.device.check()
    }

    fn read(&self, from: &Buffer, to: &mut [f64]) -> Result<()> {
        self.device.read(from.part(0..to.len()), to)
    }

    fn upload_indices(&self, from: &[u32], to: &mut Buffer) {
        self.device.upload(from, to.part_mut(0..from.len()));
    }
}

impl Cuda {
    /// Floats that the operations of a program work in, the largest of them.
    fn scratch_of(&self, program: &Program) -> usize {
        let forward = program.forward.iter().map(|op| arena::forward_scratch(self, program, op));
        let backward = program.backward.iter().map(|step| match *step {
            Step::Again { op } => arena::forward_scratch(self, program, program.op(op)),
            Step::Reverse { op, .. } => arena::backward_scratch(self, program, program.op(op)),
        });
        forward.chain(backward).max().unwrap_or(0)
    }

    /// Bytes of a program's buffers.
    fn bytes(&self, program: &Program) -> u64 {
        let Program { plan, stats, shape, routers, .. } = program;
        let value = Element::Value.bytes(self.device.precision());
        // Two ids of each row, and as many losses.
        let floats = stats.iter().sum::<usize>() + self.scratch_of(program) + 4 * shape.rows();
        let routed: u64 = routers.iter().map(Routing::bytes).sum();
        (value * plan.slots.iter().sum::<usize>() + 4 * floats) as u64 + routed
    }
}
