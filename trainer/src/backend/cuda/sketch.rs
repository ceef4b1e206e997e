//! What a step would be on a device, found without one: every launch is checked and counted, nothing is computed.

use super::Cuda;
use crate::device::{Device, Precision};
use crate::learner::{BatchShape, Learner, Rates};
use crate::memory::MemoryPlan;
use crate::options::Options;
use formats::{Config, Result};

/// Multiprocessors of an H100; the counts do not depend on them.
const MULTIPROCESSORS: u32 = 132;
/// Bytes of its memory.
pub const MEMORY: u64 = 80 << 30;

/// A training step of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sketch {
    /// Windows of the micro-batch.
    pub micro_batch: usize,
    /// Launches, copies and clearings in the graph that is the step.
    pub nodes: usize,
    /// What the run holds on the device.
    pub memory: MemoryPlan,
    /// Bytes that were asked for, without those of evaluation.
    pub held: u64,
}

/// The step of the largest half, quarter and so on of `options`' batch that fits into `memory` bytes; none where one window
/// does not.
pub fn sketch(
    options: &Options,
    config: &Config,
    precision: Precision,
    memory: u64,
) -> Result<Option<Sketch>> {
    let cuda = Cuda::new(Device::imagined(precision, MULTIPROCESSORS)?)?;
    let mut micro_batch = options.batch;
    let plan = loop {
        let shape = BatchShape { sequences: micro_batch, block: options.block };
        let plan = Learner::plan(&cuda, config, shape, options.recompute)?;
        if plan.total() <= memory {
            break plan;
        }
        if micro_batch == 1 {
            return Ok(None);
        }
        micro_batch = micro_batch.div_ceil(2);
    };
    let shape = BatchShape { sequences: micro_batch, block: options.block };
    let mut learner =
        Learner::with(cuda, config, shape, &options.optimizer(), &options.mixing(), options.recompute)?;
    let held = learner.model().backend().device().held();
    let ids = vec![0; shape.rows()];
    for step in 1..=2 {
        learner.step(&ids, &ids, Rates { learning_rate: 0.0, step, seed: options.seed })?;
    }
    let nodes = learner.nodes().map_or(0, |(_, nodes)| nodes);
    Ok(Some(Sketch { micro_batch, nodes, memory: plan, held }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::PRESETS;

    #[test]
    fn every_preset_has_a_step_and_asks_for_what_was_planned() {
        for precision in [Precision::Bf16, Precision::F32] {
            for preset in PRESETS {
                let options = preset.options();
                let config = options.model(preset.vocabulary).expect("a preset");
                let Some(sketch) = sketch(&options, &config, precision, MEMORY).expect(preset.name) else {
                    assert!(config.width >= 4096, "{} fits into no device", preset.name);
                    continue;
                };
                // Forward and backward are at least a launch for each matrix, and a few hundred for each layer at most.
                let layers = config.layers;
                assert!(
                    (8 * layers..300 * layers + 1000).contains(&sketch.nodes),
                    "{}: {sketch:?}",
                    preset.name
                );
                let planned = sketch.memory.total();
                assert!(sketch.held <= planned, "{}: {sketch:?}", preset.name);
            }
        }
    }
}
