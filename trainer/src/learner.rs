//! A model that learns: steps and losses over a backend.
//!
//! A batch is cut into shards by its size and the model's alone; each shard replays the program on its own, with its own
//! gradient, and the gradients are summed in shard order. A large model has one shard, whose operations are split
//! instead. No number of threads enters a result.
//!
//! A step may have several micro-batches, one after the other: their cross-entropies are summed over all tokens and
//! divided once, so that they are the large batch. The balancing terms of mixtures are each micro-batch's own.

use crate::backend::Backend;
use crate::memory::MemoryPlan;
use crate::mixing::{Load, Mixing};
use crate::ops::dropout::Noise;
use crate::ops::hands::Crowd;
use crate::ops::route::Router;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::params::Params;
use crate::tape::recompute::Recompute;
use crate::tape::record::record;
use crate::tape::replay::{Place, Replay};
use crate::tape::{Mode, Shape};
use crate::windows::{Shared, Windows};
use formats::layout::FeedForward;
use formats::{Config, Error, Layout, Result};
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most shards of a batch: each has a gradient of its own, which must be summed.
const MAX_SHARDS: usize = 4;
/// Fewest rows of a shard; smaller products waste their packing.
const MIN_SHARD_ROWS: usize = 64;
/// Most parameters of a model that is cut into shards: of more, several gradients cost more than they save.
const MAX_SHARD_PARAMETERS: usize = 1 << 24;
/// Most rows a shard computes at once, unless one window is longer: what it saves stays near the caches.
const MAX_PASS_ROWS: usize = 1024;
/// Rows of one evaluation pass, unless one window is longer.
const EVALUATION_ROWS: usize = 128;

/// The shape of a training batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Windows.
    pub sequences: usize,
    /// Tokens of a window.
    pub block: usize,
}

/// How a batch is cut: `shards x passes x sequences` windows, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Shards side by side.
    pub shards: usize,
    /// Passes of one shard, one after the other.
    pub passes: usize,
    /// Windows of one pass.
    pub sequences: usize,
}

impl BatchShape {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.sequences * self.block
    }

    /// The cut of this batch for a model of so many parameters, a function of these sizes alone.
    pub fn cut_for(&self, parameters: usize) -> Cut {
        if parameters > MAX_SHARD_PARAMETERS { self.cut_into(1) } else { self.cut() }
    }

    /// The cut of this batch for a small model.
    pub fn cut(&self) -> Cut {
        self.cut_into((self.rows() / MIN_SHARD_ROWS).clamp(1, MAX_SHARDS))
    }

    /// Into at most so many shards.
    fn cut_into(&self, most: usize) -> Cut {
        let divides = |count: &usize| self.sequences.is_multiple_of(*count);
        let shards = (1..=most).rev().find(divides).unwrap_or(1);
        let each = self.sequences / shards;
        let fits =
            |passes: &usize| each.is_multiple_of(*passes) && each / passes * self.block <= MAX_PASS_ROWS;
        let passes = (1..=each).find(fits).unwrap_or(each);
        Cut { shards, passes, sequences: each / passes }
    }
}

/// What changes from update to update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The schedule's learning rate.
    pub learning_rate: f32,
    /// Number of this update, from 1.
    pub step: u64,
    /// Seed of the noise.
    pub seed: u64,
}

/// What an update saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss of the batch before the update, nats a token.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
}

/// One shard of training.
struct Shard<B: Backend> {
    replay: Replay<B>,
    grads: B::Floats,
    losses: Vec<f32>,
    /// What its rows of one pass asked of each router.
    loads: Vec<Vec<f64>>,
    loss: f64,
    outcome: Result<()>,
}

/// One lane of evaluation.
struct Lane<B: Backend> {
    replay: Replay<B>,
    losses: Vec<f32>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    outcome: Result<()>,
}

/// Some windows of an evaluation, and what came of them.
struct Pass {
    part: Part,
    /// The loss of each window, summed over its places.
    losses: Vec<f64>,
    /// What its rows asked of each router.
    loads: Vec<Vec<f64>>,
}

impl Pass {
    /// Rows that it computes.
    fn rows(&self) -> usize {
        match &self.part {
            Part::Whole(ids) => ids.len(),
            Part::Shared(shared) => shared.ids.len(),
        }
    }
}

/// What one pass of an evaluation computes.
enum Part {
    /// Some of the ids, one row each.
    Whole(Range<usize>),
    /// Windows that share rows.
    Shared(Shared),
}

impl<B: Backend> Lane<B> {
    fn carry_out(
        &mut self,
        backend: &B,
        params: &Params<B>,
        inputs: &[u32],
        targets: &[u32],
        pass: &mut Pass,
    ) -> Result<()> {
        let filled = match &pass.part {
            Part::Whole(ids) => {
                self.inputs[..ids.len()].copy_from_slice(&inputs[ids.clone()]);
                self.targets[..ids.len()].copy_from_slice(&targets[ids.clone()]);
                ids.len()
            }
            Part::Shared(shared) => {
                self.inputs[..shared.ids.len()].copy_from_slice(&shared.ids);
                shared.ids.len()
            }
        };
        // A pass may be short; its missing rows repeat id 0 and are not counted.
        self.inputs[filled..].fill(0);
        self.targets[filled..].fill(0);
        self.replay.upload(backend, &self.inputs, &self.targets);
        let windows = match &pass.part {
            Part::Whole(_) => Windows::Whole,
            Part::Shared(shared) => Windows::Shared(shared),
        };
        self.replay.forward(backend, params, Place { windows, ..Place::default() })?;
        let sum = |losses: &[f32]| losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        let block = self.replay.program().shape.block;
        match &pass.part {
            Part::Whole(_) => {
                let losses = &mut self.losses[..filled];
                self.replay.losses(backend, losses);
                pass.losses.extend(losses.chunks(block).map(sum));
            }
            Part::Shared(shared) => {
                let losses = &mut self.losses[..shared.questions.len()];
                self.replay.losses(backend, losses);
                let loss_of = |&answer: &u32| f64::from(losses[answer as usize]);
                pass.losses.extend(
                    shared.answers.chunks(block).map(|answers| answers.iter().map(loss_of).sum::<f64>()),
                );
            }
        }
        self.replay.load(backend, filled, &mut pass.loads);
        Ok(())
    }
}

/// A model, its optimiser and its buffers on one device.
pub struct Learner<B: Backend> {
    backend: B,
    config: Config,
    shape: BatchShape,
    cut: Cut,
    params: Params<B>,
    optimizer: Optimizer<B>,
    mixing: Mixing,
    /// What the last step's rows, or the last evaluation's, asked of each router.
    loads: Vec<Load>,
    shards: Vec<Shard<B>>,
    lanes: Vec<Lane<B>>,
}

impl<B: Backend> Learner<B> {
    /// Everything a run needs in memory, weights and moments zero; mixtures are left to themselves.
    pub fn new(
        backend: B,
        config: &Config,
        shape: BatchShape,
        optimizer: &OptimizerOptions,
    ) -> Result<Learner<B>> {
        Learner::with(backend, config, shape, optimizer, &Mixing::default(), Recompute::Nothing)
    }

    /// The same with what keeps experts alive, and with what the backward pass makes again.
    pub fn with(
        backend: B,
        config: &Config,
        shape: BatchShape,
        optimizer: &OptimizerOptions,
        mixing: &Mixing,
        recompute: Recompute,
    ) -> Result<Learner<B>> {
        let layout = Layout::new(config);
        let parameters = layout.parameters();
        let cut = shape.cut_for(parameters);
        let windows = Shape { sequences: cut.sequences, block: shape.block };
        let program = record(config, &layout, windows, Mode::Train, mixing, recompute);
        let loads = program.routers.iter().map(|router| Load::new(router.layer, router.active, router.count));
        let loads = loads.collect();
        let shards = (0..cut.shards)
            .map(|_| {
                Ok(Shard {
                    replay: Replay::new(&backend, program.clone())?,
                    grads: backend.floats(parameters)?,
                    losses: vec![0.0; program.shape.rows()],
                    loads: empty_loads(&program.routers),
                    loss: 0.0,
                    outcome: Ok(()),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Learner {
            params: Params::new(&backend, layout)?,
            optimizer: Optimizer::new(&backend, parameters, optimizer)?,
            config: config.clone(),
            shape,
            cut,
            mixing: *mixing,
            loads,
            shards,
            lanes: vec![],
            backend,
        })
    }

    /// What [`Learner::new`] and evaluation will take with `lanes` lanes.
    pub fn memory(config: &Config, shape: BatchShape, lanes: usize, recompute: Recompute) -> MemoryPlan {
        let layout = Layout::new(config);
        let cut = shape.cut_for(layout.parameters());
        let parameters = layout.parameters() as u64;
        let bytes = |sequences: usize, mode: Mode| {
            record(
                config,
                &layout,
                Shape { sequences, block: shape.block },
                mode,
                &Mixing::default(),
                recompute,
            )
            .bytes()
        };
        let evaluation = bytes(evaluation_sequences(shape.block), Mode::Evaluate);
        MemoryPlan {
            weights: 2 * 4 * parameters,
            gradients: 4 * parameters * cut.shards as u64,
            moments: 2 * 4 * parameters,
            activations: bytes(cut.sequences, Mode::Train) * cut.shards as u64
                + evaluation * lanes as u64
                + if cut.shards == 1 { Crowd::BYTES } else { 0 },
            copies: 3 * 4 * parameters,
        }
    }

    /// The model's parameters.
    pub fn layout(&self) -> &Layout {
        &self.params.layout
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Sets weights and moments, each a whole arena in the layout's order.
    pub fn load(&mut self, weights: &[f32], first: &[f32], second: &[f32]) -> Result<()> {
        let parameters = self.params.layout.parameters();
        for (name, values) in [("weights", weights), ("first moment", first), ("second moment", second)] {
            if values.len() != parameters {
                let found = values.len();
                return Err(Error::Internal(format!("{name}: {found} values for {parameters} parameters")));
            }
        }
        self.backend.upload(weights, &mut self.params.master);
        self.backend.upload(first, &mut self.optimizer.first);
        self.backend.upload(second, &mut self.optimizer.second);
        self.backend.refresh(&mut self.params);
        Ok(())
    }

    /// Every weight, in the layout's order.
    pub fn weights(&self) -> Vec<f32> {
        self.arena(&self.params.master)
    }

    /// Every first moment.
    pub fn first_moment(&self) -> Vec<f32> {
        self.arena(&self.optimizer.first)
    }

    /// Every second moment.
    pub fn second_moment(&self) -> Vec<f32> {
        self.arena(&self.optimizer.second)
    }

    fn arena(&self, values: &B::Floats) -> Vec<f32> {
        let mut host = vec![0.0; self.params.layout.parameters()];
        self.backend.download(values, &mut host);
        host
    }

    /// One update from one or more micro-batches of `sequences x block` ids and their successors. A loss or gradient that is not finite
    /// changes nothing and is [`Error::Diverged`].
    pub fn step(&mut self, inputs: &[u32], targets: &[u32], rates: Rates) -> Result<Outcome> {
        let noise = Noise::new(rates.seed, rates.step, self.config.dropout);
        let outcome = self.accumulate(inputs, targets, Some(noise))?;
        if !(outcome.loss.is_finite() && outcome.gradient_norm.is_finite()) {
            self.clear();
            return Err(Error::Diverged(format!(
                "step {}: the loss is {} and the gradient's norm {}; nothing was updated\n  help: resume from the \
                 last checkpoint with a smaller --learning-rate, or set --clip",
                rates.step, outcome.loss, outcome.gradient_norm
            )));
        }
        if let Some(shard) = self.shards.first_mut() {
            self.optimizer.update(
                &self.backend,
                &mut self.params,
                &mut shard.grads,
                outcome.gradient_norm,
                rates.learning_rate,
                rates.step,
            );
        }
        self.shift_selection();
        Ok(outcome)
    }

    /// Mean loss and the gradient of every parameter over as many, with no update and no noise.
    pub fn gradients(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(f64, Vec<f32>)> {
        let outcome = self.accumulate(inputs, targets, None)?;
        let grads = self.shards.first().map(|shard| self.arena(&shard.grads)).unwrap_or_default();
        self.clear();
        Ok((outcome.loss, grads))
    }

    /// Forward and backward over every micro-batch and every shard; the summed gradient is left with the first.
    fn accumulate(&mut self, inputs: &[u32], targets: &[u32], noise: Option<Noise>) -> Result<Outcome> {
        self.check(inputs, targets)?;
        let (total, batch) = (inputs.len(), self.shape.rows());
        if total == 0 || !total.is_multiple_of(batch) {
            return Err(Error::Internal(format!("{total} ids are no whole batches of {batch} rows")));
        }
        self.loads.iter_mut().for_each(Load::clear);
        let Learner { backend, params, shards, cut, shape, loads, mixing, .. } = self;
        shards.iter_mut().for_each(|shard| shard.loss = 0.0);
        let rows = cut.sequences * shape.block;
        let passes = (0..total / batch).flat_map(|micro| (0..cut.passes).map(move |pass| (micro, pass)));
        for (micro, pass) in passes {
            let first_sequence =
                |index: usize| micro * shape.sequences + (index * cut.passes + pass) * cut.sequences;
            let ahead = |index: usize, shard: &mut Shard<B>| {
                let first_sequence = first_sequence(index);
                let at = first_sequence * shape.block..(first_sequence + cut.sequences) * shape.block;
                shard.replay.upload(backend, &inputs[at.clone()], &targets[at]);
                shard.outcome = {
                    let place = Place { noise, first_sequence, ..Place::default() };
                    shard.replay.forward(backend, params, place)
                };
                shard.loads.iter_mut().for_each(|load| load.fill(0.0));
                shard.replay.load(backend, rows, &mut shard.loads);
            };
            let back = |index: usize, shard: &mut Shard<B>| {
                let place = Place { noise, first_sequence: first_sequence(index), ..Place::default() };
                if shard.outcome.is_ok() {
                    shard.outcome = shard.replay.backward(backend, params, place, total, &mut shard.grads);
                }
                shard.replay.losses(backend, &mut shard.losses);
                shard.loss += shard.losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            };
            if mixing.needs_load() && !loads.is_empty() {
                // The balancing loss is that of the whole micro-batch: its shards meet between the two passes.
                backend.each(shards, ahead);
                balance(backend, shards, loads);
                backend.each(shards, back);
            } else {
                backend.each(shards, |index, shard| {
                    ahead(index, shard);
                    back(index, shard);
                });
            }
            for shard in shards.iter_mut() {
                std::mem::replace(&mut shard.outcome, Ok(()))?;
                for (total, load) in loads.iter_mut().zip(&shard.loads) {
                    total.add(rows, load);
                }
            }
        }
        let loss = shards.iter().map(|shard| shard.loss).sum::<f64>() / total as f64;
        let norm_squared = backend.gather(shards, |shard| &mut shard.grads);
        Ok(Outcome { loss, gradient_norm: norm_squared.sqrt() })
    }

    /// Moves the selection biases against the load of the step (Wang et al. 2024, algorithm 1).
    fn shift_selection(&mut self) {
        if self.mixing.bias_rate == 0.0 {
            return;
        }
        let mut loads = self.loads.iter();
        for layer in 0..self.params.layout.layers.len() {
            let FeedForward::Experts(bank) = self.params.layout.layers[layer].feed_forward else { continue };
            let (Some(load), Some(id)) = (loads.next(), bank.selection_bias) else { continue };
            let mean = load.counts.iter().sum::<f64>() / load.counts.len() as f64;
            let shift = load.counts.iter().map(|count| match count.total_cmp(&mean) {
                Ordering::Less => self.mixing.bias_rate,
                Ordering::Equal => 0.0,
                Ordering::Greater => -self.mixing.bias_rate,
            });
            self.backend.nudge(&mut self.params, id, &shift.collect::<Vec<_>>());
        }
    }

    /// What the rows of the last step, or of the last evaluation, asked of each router, layer by layer.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    fn clear(&mut self) {
        for shard in &mut self.shards {
            self.backend.clear(&mut shard.grads);
        }
    }

    /// Ids are numbers from outside: none may reach a table unchecked.
    fn check(&self, inputs: &[u32], targets: &[u32]) -> Result<()> {
        if inputs.len() != targets.len() {
            return Err(Error::Internal(format!("{} ids but {} targets", inputs.len(), targets.len())));
        }
        let vocabulary = self.config.vocabulary;
        match inputs.iter().chain(targets).find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Usage(format!("token {id} is beyond the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
    }

    /// Mean loss of any number of windows, without noise, nats a token.
    pub fn evaluate(&mut self, inputs: &[u32], targets: &[u32]) -> Result<f64> {
        Ok(self.window_losses(inputs, targets)?.iter().sum::<f64>() / inputs.len() as f64)
    }

    /// The loss of each of any number of windows, without noise: nats, summed over its places.
    pub fn window_losses(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Vec<f64>> {
        self.check(inputs, targets)?;
        let block = self.shape.block;
        if inputs.is_empty() || !inputs.len().is_multiple_of(block) {
            return Err(Error::Internal(format!("{} ids are no whole windows of {block}", inputs.len())));
        }
        self.make_lanes()?;
        let rows = evaluation_sequences(block) * block;
        let Learner { backend, params, lanes, loads, .. } = self;
        let Some(lane) = lanes.first() else { return Ok(vec![]) };
        let parts: Vec<Part> = if lane.replay.shares_rows() {
            Shared::cut(inputs, targets, block, rows).into_iter().map(Part::Shared).collect()
        } else {
            let starts = (0..inputs.len()).step_by(rows);
            starts.map(|start| Part::Whole(start..inputs.len().min(start + rows))).collect()
        };
        let loads_of =
            |part| Pass { part, losses: vec![], loads: empty_loads(&lane.replay.program().routers) };
        let mut passes: Vec<Pass> = parts.into_iter().map(loads_of).collect();
        // Whoever is free takes the next pass; what they give is summed in order.
        let waiting = Mutex::new(passes.iter_mut());
        backend.each(lanes, |_, lane| {
            loop {
                let pass = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(pass) = pass else { return };
                lane.outcome = lane.carry_out(backend, params, inputs, targets, pass);
                if lane.outcome.is_err() {
                    return;
                }
            }
        });
        for lane in lanes.iter_mut() {
            std::mem::replace(&mut lane.outcome, Ok(()))?;
        }
        loads.iter_mut().for_each(Load::clear);
        for pass in &passes {
            loads.iter_mut().zip(&pass.loads).for_each(|(total, load)| total.add(pass.rows(), load));
        }
        let mut losses = vec![0.0; inputs.len() / block];
        for pass in &passes {
            match &pass.part {
                Part::Whole(ids) => {
                    losses[ids.start / block..][..pass.losses.len()].copy_from_slice(&pass.losses)
                }
                Part::Shared(shared) => {
                    let numbers = shared.numbers.iter().map(|&number| number as usize);
                    numbers.zip(&pass.losses).for_each(|(number, loss)| losses[number] = *loss);
                }
            }
        }
        Ok(losses)
    }

    /// The logits of every row of any number of windows, `[ids, vocabulary]`.
    pub fn logits(&self, inputs: &[u32], block: usize) -> Result<Vec<f32>> {
        self.check(inputs, inputs)?;
        if inputs.is_empty()
            || block == 0
            || block > self.config.context
            || !inputs.len().is_multiple_of(block)
        {
            return Err(Error::Internal(format!("{} ids are no whole windows of {block}", inputs.len())));
        }
        let shape = Shape { sequences: inputs.len() / block, block };
        let program =
            record(&self.config, &self.params.layout, shape, Mode::Logits, &self.mixing, Recompute::Nothing);
        let mut replay = Replay::new(&self.backend, program)?;
        replay.upload(&self.backend, inputs, &[]);
        replay.forward(&self.backend, &self.params, Place::default())?;
        let mut logits = vec![0.0; inputs.len() * self.config.vocabulary];
        replay.result(&self.backend, &mut logits);
        Ok(logits)
    }

    fn make_lanes(&mut self) -> Result<()> {
        let shape = Shape { sequences: evaluation_sequences(self.shape.block), block: self.shape.block };
        while self.lanes.len() < self.backend.lanes() {
            let program = record(
                &self.config,
                &self.params.layout,
                shape,
                Mode::Evaluate,
                &self.mixing,
                Recompute::Nothing,
            );
            self.lanes.push(Lane {
                losses: vec![0.0; 2 * shape.rows()],
                inputs: vec![0; shape.rows()],
                targets: vec![0; shape.rows()],
                replay: Replay::new(&self.backend, program)?,
                outcome: Ok(()),
            });
        }
        Ok(())
    }
}

/// Room for what each router is asked.
fn empty_loads(routers: &[Router]) -> Vec<Vec<f64>> {
    routers.iter().map(|router| vec![0.0; router.load()]).collect()
}

/// Tells every shard what share of the micro-batch's choices each expert had.
fn balance<B: Backend>(backend: &B, shards: &mut [Shard<B>], loads: &[Load]) {
    for (router, load) in loads.iter().enumerate() {
        let mut whole = Load::new(load.layer, load.active, load.counts.len());
        shards.iter().for_each(|shard| whole.add(0, &shard.loads[router]));
        let shares: Vec<f32> = whole.shares().map(|share| share as f32).collect();
        shards.iter_mut().for_each(|shard| shard.replay.balance(backend, router, &shares));
    }
}

/// Windows of one evaluation pass.
fn evaluation_sequences(block: usize) -> usize {
    (EVALUATION_ROWS / block).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_covers_the_batch_whatever_its_size() {
        for sequences in 1..=70 {
            for block in [1, 8, 64, 256, 1024, 2000] {
                let shape = BatchShape { sequences, block };
                let cut = shape.cut();
                assert_eq!(cut.shards * cut.passes * cut.sequences, sequences, "{shape:?}");
                assert!(cut.sequences * block <= MAX_PASS_ROWS.max(block), "{shape:?} {cut:?}");
            }
        }
        assert_eq!(BatchShape { sequences: 16, block: 8 }.cut(), Cut { shards: 2, passes: 1, sequences: 8 });
        assert_eq!(
            BatchShape { sequences: 64, block: 256 }.cut_for(MAX_SHARD_PARAMETERS),
            Cut { shards: 4, passes: 4, sequences: 4 }
        );
        assert_eq!(
            BatchShape { sequences: 64, block: 256 }.cut_for(MAX_SHARD_PARAMETERS + 1),
            Cut { shards: 1, passes: 16, sequences: 4 }
        );
    }
}
