//! What the CPU keeps, and how it comes there.

use super::Cpu;
use crate::backend::{Held, Storage};
use crate::memory::{self, MemoryPlan};
use crate::ops::hands::Crowd;
use crate::ops::route::{Router, Routing};
use crate::tape::Program;
use formats::layout::ParameterId;
use formats::{Error, Layout, Result};
use runtime::simd::{Aligned, packed_len};

impl Storage for Cpu {
    const GATHERS: bool = false;

    type Values = Aligned;
    type Floats = Aligned;
    type Sums = Vec<f64>;
    type Indices = Vec<u32>;
    /// Each matrix that is multiplied by, packed; empty for the others.
    type Working = Vec<Aligned>;
    type Routing = Routing;

    fn plan(&self, held: &Held<'_>) -> MemoryPlan {
        let (parameters, shards) = (held.parameters as u64, held.shards as u64);
        MemoryPlan {
            weights: 2 * 4 * parameters,
            gradients: 4 * parameters * shards,
            moments: 2 * 4 * parameters,
            activations: bytes(held.program) * shards
                + bytes(held.evaluation) * self.threads as u64
                + held.placed.map_or(0, bytes)
                + if shards == 1 { Crowd::BYTES } else { 0 },
            copies: 3 * 4 * parameters,
        }
    }

    fn available(&self) -> Option<u64> {
        memory::available()
    }

    fn values(&self, len: usize) -> Result<Aligned> {
        zeroed(len)
    }

    fn floats(&self, len: usize) -> Result<Aligned> {
        zeroed(len)
    }

    fn indices(&self, len: usize) -> Result<Vec<u32>> {
        let mut values = Vec::new();
        values.try_reserve_exact(len).map_err(|_| out_of_memory(len))?;
        values.resize(len, 0);
        Ok(values)
    }

    fn sums(&self, len: usize) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        sums.try_reserve_exact(len).map_err(|_| out_of_memory(2 * len))?;
        sums.resize(len, 0.0);
        Ok(sums)
    }

    fn scratch(&self, program: &Program) -> Result<Aligned> {
        zeroed(program.scratch)
    }

    fn routing(&self, s: &Router) -> Result<Routing> {
        Routing::new(s.rows * s.slots(), s.experts()).map_err(|_| out_of_memory(4 * s.rows * s.slots()))
    }

    fn working(&self, layout: &Layout) -> Result<Vec<Aligned>> {
        let multiplied = |id: ParameterId| {
            let looked_up = id == layout.token_embedding || Some(id) == layout.position_embedding;
            layout.parameter(id).is_matrix() && (!looked_up || id == layout.head.weight)
        };
        layout
            .iter()
            .map(|(id, p)| zeroed(if multiplied(id) { packed_len(p.rows, p.columns) } else { 0 }))
            .collect()
    }

    fn upload(&self, from: &[f32], to: &mut Aligned) {
        to[..from.len()].copy_from_slice(from);
    }

    fn download(&self, from: &Aligned, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(&from[..to.len()]);
        Ok(())
    }

    fn upload_values(&self, from: &[f32], to: &mut Aligned) {
        to[..from.len()].copy_from_slice(from);
    }

    fn download_values(&self, from: &Aligned, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(&from[..to.len()]);
        Ok(())
    }

    fn read(&self, from: &Vec<f64>, to: &mut [f64]) -> Result<()> {
        to.copy_from_slice(&from[..to.len()]);
        Ok(())
    }

    fn upload_indices(&self, from: &[u32], to: &mut Vec<u32>) {
        to[..from.len()].copy_from_slice(from);
    }
}

/// Zeroed memory, or the error that names what to change.
fn zeroed(len: usize) -> Result<Aligned> {
    Aligned::try_zeroed(len).map_err(|_| out_of_memory(len))
}

/// Bytes that carrying out a program takes.
fn bytes(program: &Program) -> u64 {
    let Program { plan, stats, scratch, shape, routers, .. } = program;
    let values = plan.slots.iter().chain(stats).sum::<usize>() + scratch + shape.rows();
    // An assignment is an expert, a place and a row.
    let routed: usize = routers.iter().map(|router| 3 * router.rows * router.slots()).sum();
    4 * (values + routed) as u64
}

fn out_of_memory(len: usize) -> Error {
    Error::Memory {
        what: "the training state".to_owned(),
        needed: (len * size_of::<f32>()) as u64,
        available: 0,
        help: "lower --batch or choose a smaller preset".to_owned(),
    }
}
