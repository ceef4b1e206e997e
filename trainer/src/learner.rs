//! A model that learns: steps and losses over a backend.
//!
//! A batch is cut into shards by its size and the model's alone; each shard replays the program on its own, with its own
//! gradient, and the gradients are summed in shard order. A large model has one shard, whose operations are split
//! instead. No number of threads enters a result.
//!
//! A step may have several micro-batches, one after the other: their cross-entropies are summed over all tokens and
//! divided once, so that they are the large batch. The balancing terms of mixtures are each micro-batch's own.

use crate::backend::{Backend, Held, Limits, Phase, Seen};
use crate::evaluator::{self, Evaluator, count_loads};
use crate::memory::{self, MemoryPlan};
use crate::mixing::Mixing;
use crate::ops::adamw::{DIVERGED, LOSS, NORM, RECORD};
use crate::ops::dropout::Noise;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::params::Params;
use crate::tape::recompute::Recompute;
use crate::tape::record::record;
use crate::tape::replay::{Place, Replay};
use crate::tape::{Mode, Program, Shape};
use formats::layout::FeedForward;
use formats::{Config, Error, Layout, Result};

/// Fewest rows of a shard; smaller products waste their packing.
const MIN_SHARD_ROWS: usize = 64;
/// Most parameters of a model that is cut into shards: of more, several gradients cost more than they save.
const MAX_SHARD_PARAMETERS: usize = 1 << 24;

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
    /// Where this process's part of a micro-batch begins.
    pub first: usize,
    /// Shards side by side.
    pub shards: usize,
    /// Passes of one shard, one after the other.
    pub passes: usize,
    /// Windows of one pass.
    pub sequences: usize,
}

impl Cut {
    /// Where a shard's windows of one pass begin in the batch; passes are counted on over the micro-batches.
    fn first_sequence(&self, shape: BatchShape, shard: usize, pass: usize) -> usize {
        let (micro, pass) = (pass / self.passes, pass % self.passes);
        micro * shape.sequences + self.first + (shard * self.passes + pass) * self.sequences
    }
}

impl BatchShape {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.sequences * self.block
    }

    /// The cut of this batch for a model of so many parameters on a device with such limits: a function of these alone.
    pub fn cut_for(&self, parameters: usize, limits: Limits) -> Cut {
        let shards = if parameters > MAX_SHARD_PARAMETERS { 1 } else { limits.shards };
        let most = (self.rows() / MIN_SHARD_ROWS).clamp(1, shards);
        let divides = |count: &usize| self.sequences.is_multiple_of(*count);
        let shards = (1..=most).rev().find(divides).unwrap_or(1);
        let each = self.sequences / shards;
        let fits =
            |passes: &usize| each.is_multiple_of(*passes) && each / passes * self.block <= limits.pass_rows;
        let passes = (1..=each).find(fits).unwrap_or(each);
        Cut { first: 0, shards, passes, sequences: each / passes }
    }

    /// The cut of this process's part of the batch, which is dealt evenly.
    fn cut_on<B: Backend>(&self, parameters: usize, backend: &B) -> Result<Cut> {
        let (rank, world) = backend.ranks();
        if !self.sequences.is_multiple_of(world) {
            let expected = format!("a multiple of the {world} processes that share it");
            return Err(Error::config("options", "batch", self.sequences, expected));
        }
        let part = BatchShape { sequences: self.sequences / world, ..*self };
        Ok(Cut { first: rank * part.sequences, ..part.cut_for(parameters, B::LIMITS) })
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// The sum of its rows' losses.
    loss: B::Sums,
    /// What its rows of one pass asked of the routers.
    loads: B::Sums,
}

/// What a step's shards sum to.
struct Totals<B: Backend> {
    /// Of the rows' losses.
    loss: B::Sums,
    /// What the rows of the step asked of the routers.
    loads: B::Sums,
    /// The same of all steps since it was last read.
    seen: B::Sums,
    /// The gradient's squared norm.
    squared: B::Sums,
    /// See [`crate::ops::adamw::judge`].
    record: B::Sums,
    /// What the rows of all shards' present pass asked of the routers.
    whole: B::Sums,
    /// Rows since `seen` was last read.
    rows: usize,
}

impl<B: Backend> Totals<B> {
    fn new(backend: &B, loads: usize) -> Result<Totals<B>> {
        Ok(Totals {
            loss: backend.sums(1)?,
            loads: backend.sums(loads)?,
            seen: backend.sums(loads)?,
            squared: backend.sums(1)?,
            record: backend.sums(RECORD)?,
            whole: backend.sums(loads)?,
            rows: 0,
        })
    }
}

/// A model, its optimiser and its buffers on one device.
pub struct Learner<B: Backend> {
    /// The model, the device it is on, and what asking it takes.
    model: Evaluator<B>,
    shape: BatchShape,
    cut: Cut,
    optimizer: Optimizer<B>,
    shards: Vec<Shard<B>>,
    totals: Totals<B>,
    /// The seed and the passes of the last step.
    made: Option<(u64, usize)>,
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
        let cut = shape.cut_on(parameters, &backend)?;
        let windows = Shape { sequences: cut.sequences, block: shape.block };
        let program = record(config, &layout, windows, Mode::Train, mixing, recompute, B::GATHERS);
        let asked = program.loads();
        let shards = (0..cut.shards)
            .map(|_| {
                Ok(Shard {
                    replay: Replay::new(&backend, program.clone())?,
                    grads: backend.floats(parameters)?,
                    loss: backend.sums(1)?,
                    loads: backend.sums(asked)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Learner {
            optimizer: Optimizer::new(&backend, parameters, optimizer)?,
            totals: Totals::new(&backend, asked)?,
            model: Evaluator::with(backend, config, shape.block, mixing)?,
            shape,
            cut,
            shards,
            made: None,
        })
    }

    /// What [`Learner::with`] and evaluation will take on a device; refused if it does not fit there.
    pub fn require_memory(
        backend: &B,
        config: &Config,
        shape: BatchShape,
        recompute: Recompute,
    ) -> Result<MemoryPlan> {
        let plan = Learner::plan(backend, config, shape, recompute)?;
        plan.require(backend.available().unwrap_or(u64::MAX))?;
        if plan.copies == 0 {
            // A checkpoint passes through the host, wherever the buffers are.
            let copies = 3 * 4 * Layout::new(config).parameters() as u64;
            let host = MemoryPlan { copies, ..MemoryPlan::default() };
            host.require(memory::available().unwrap_or(u64::MAX))?;
        }
        Ok(plan)
    }

    /// The same, whether it fits or not.
    pub fn plan(backend: &B, config: &Config, shape: BatchShape, recompute: Recompute) -> Result<MemoryPlan> {
        let layout = Layout::new(config);
        let cut = shape.cut_on(layout.parameters(), backend)?;
        let windows = Shape { sequences: cut.sequences, block: shape.block };
        let mixing = Mixing::default();
        let program = record(config, &layout, windows, Mode::Train, &mixing, recompute, B::GATHERS);
        let (evaluation, placed) = evaluator::programs::<B>(config, &layout, shape.block);
        Ok(backend.plan(&Held {
            parameters: layout.parameters(),
            program: &program,
            shards: cut.shards,
            evaluation: &evaluation,
            placed: placed.as_ref(),
        }))
    }

    /// The model, to be asked.
    pub fn model(&self) -> &Evaluator<B> {
        &self.model
    }

    /// The same for questions that need its room.
    pub fn model_mut(&mut self) -> &mut Evaluator<B> {
        &mut self.model
    }

    /// Sets weights and moments, each a whole arena in the layout's order.
    pub fn load(&mut self, weights: &[f32], first: &[f32], second: &[f32]) -> Result<()> {
        self.model.check_arena("first moment", first)?;
        self.model.check_arena("second moment", second)?;
        self.model.load(weights)?;
        self.model.backend.upload(first, &mut self.optimizer.first);
        self.model.backend.upload(second, &mut self.optimizer.second);
        Ok(())
    }

    /// Every first moment.
    pub fn first_moment(&self) -> Result<Vec<f32>> {
        self.model.arena(&self.optimizer.first)
    }

    /// Every second moment.
    pub fn second_moment(&self) -> Result<Vec<f32>> {
        self.model.arena(&self.optimizer.second)
    }

    /// One update from one or more micro-batches of `sequences x block` ids and their successors, which may still be under way
    /// when this returns. A loss or gradient that is not finite changes nothing, now or later, until [`Learner::outcome`] says
    /// so.
    pub fn step(&mut self, inputs: &[u32], targets: &[u32], rates: Rates) -> Result<()> {
        let noise = Noise::new(rates.seed, rates.step, self.model.config.dropout);
        let passes = self.passes(inputs, targets)?;
        let adam = self.optimizer.adam(rates.learning_rate, rates.step);
        let rows = inputs.len();
        self.made = Some((rates.seed, passes));
        for pass in 0..passes {
            self.upload(inputs, targets, pass);
            let (phase, last) = (self.phase(rates.seed, pass, passes), pass + 1 == passes);
            let Learner { model, optimizer, cut, shape, shards, totals, .. } = self;
            let Evaluator { backend, params, mixing, .. } = model;
            backend.replayed(phase, Some(&adam), || {
                let work = Work { backend, params, cut: *cut, shape: *shape, mixing, rows };
                work.pass(shards, totals, Some(noise), pass);
                if !last {
                    return;
                }
                work.finish(shards, totals);
                let Totals { loss, loads, seen, squared, record, .. } = totals;
                if let Some(shard) = shards.first_mut() {
                    let seen = Seen { rows, loss, squared, record };
                    let Optimizer { first, second, .. } = optimizer;
                    backend.adamw(&adam, seen, params, first, second, &mut shard.grads);
                    if mixing.bias_rate > 0.0 {
                        shift_selection(
                            backend,
                            params,
                            shard.replay.program(),
                            mixing.bias_rate,
                            loads,
                            record,
                        );
                    }
                }
                backend.tally(loads, seen);
            })?;
        }
        self.totals.rows += rows;
        Ok(())
    }

    /// What names a pass of a step; passes that draw no noise differ in nothing but their ids.
    fn phase(&self, seed: u64, pass: usize, passes: usize) -> Phase {
        let noisy = self.model.config.experts.as_ref().is_some_and(|experts| experts.noise);
        let disturbed = self.model.config.dropout > 0.0 || self.model.mixing.disturbs() || noisy;
        let place = if disturbed { pass } else { pass.min(1) };
        Phase::Train { seed, pass: place, passes, last: pass + 1 == passes }
    }

    /// Into how many records the last step was made, and how many launches and copies they are together, where the
    /// device records.
    pub fn nodes(&self) -> Option<(usize, usize)> {
        let (seed, passes) = self.made?;
        let nodes = (0..passes).map(|pass| self.model.backend.nodes(self.phase(seed, pass, passes)));
        nodes.sum::<Option<usize>>().map(|nodes| (passes, nodes))
    }

    /// What the last step saw; [`Evaluator::loads`] are then those of the steps since this was last asked. Waits for the
    /// device. Steps that were not made, because a loss or gradient was not finite, are [`Error::Diverged`].
    pub fn outcome(&mut self) -> Result<Outcome> {
        let Learner { model: Evaluator { backend, loads, asked, .. }, totals, .. } = self;
        let mut record = [0.0; RECORD];
        backend.read(&totals.record, &mut record)?;
        backend.read(&totals.seen, asked)?;
        backend.clear(&mut totals.seen);
        count_loads(loads, asked, std::mem::take(&mut totals.rows));
        let outcome = Outcome { loss: record[LOSS], gradient_norm: record[NORM] };
        if record[DIVERGED] == 0.0 {
            return Ok(outcome);
        }
        backend.clear(&mut totals.record);
        Err(Error::Diverged(format!(
            "step {}: the loss is {} and the gradient's norm {}; nothing was updated\n  help: resume from the last \
             checkpoint with a smaller --learning-rate, or set --clip",
            record[DIVERGED], outcome.loss, outcome.gradient_norm
        )))
    }

    /// The sum of a number that each process of the run gives; all of them must ask.
    pub fn united(&self, number: f32) -> Result<f64> {
        if self.model.backend.ranks().1 == 1 {
            return Ok(f64::from(number));
        }
        let (mut numbers, mut sum, mut result) =
            (self.model.backend.floats(1)?, self.model.backend.sums(1)?, [0.0]);
        self.model.backend.upload(&[number], &mut numbers);
        self.model.backend.total(&numbers, 1, &mut sum);
        self.model.backend.unite(&mut sum);
        self.model.backend.read(&sum, &mut result)?;
        Ok(result[0])
    }

    /// Mean loss and the gradient of every parameter over as many, with no update and no noise.
    pub fn gradients(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(f64, Vec<f32>)> {
        let (passes, rows) = (self.passes(inputs, targets)?, inputs.len());
        for pass in 0..passes {
            self.upload(inputs, targets, pass);
            let Learner {
                model: Evaluator { backend, params, mixing, .. }, cut, shape, shards, totals, ..
            } = self;
            Work { backend, params, cut: *cut, shape: *shape, mixing, rows }.pass(shards, totals, None, pass);
        }
        let Learner { model: Evaluator { backend, params, mixing, .. }, cut, shape, shards, totals, .. } =
            self;
        Work { backend, params, cut: *cut, shape: *shape, mixing, rows }.finish(shards, totals);
        let mut loss = 0.0;
        backend.read(&totals.loss, std::slice::from_mut(&mut loss))?;
        let grads =
            self.shards.first().map(|shard| self.model.arena(&shard.grads)).transpose()?.unwrap_or_default();
        if let Some(shard) = self.shards.first_mut() {
            self.model.backend.upload(&vec![0.0; grads.len()], &mut shard.grads);
        }
        Ok((loss / rows as f64, grads))
    }

    /// In how many passes a step over so many ids is made.
    fn passes(&self, inputs: &[u32], targets: &[u32]) -> Result<usize> {
        self.model.check(inputs, targets)?;
        let (total, batch) = (inputs.len(), self.shape.rows());
        if total == 0 || !total.is_multiple_of(batch) {
            return Err(Error::Internal(format!("{total} ids are no whole batches of {batch} rows")));
        }
        Ok(total / batch * self.cut.passes)
    }

    /// Gives every shard its ids of one pass.
    fn upload(&mut self, inputs: &[u32], targets: &[u32], pass: usize) {
        let Learner { model: Evaluator { backend, .. }, shards, cut, shape, .. } = self;
        for (index, shard) in shards.iter_mut().enumerate() {
            let first = cut.first_sequence(*shape, index, pass) * shape.block;
            let at = first..first + cut.sequences * shape.block;
            shard.replay.upload(backend, &inputs[at.clone()], &targets[at]);
        }
    }
}

/// What the passes of one step have in common.
struct Work<'a, B: Backend> {
    backend: &'a B,
    params: &'a Params<B>,
    cut: Cut,
    shape: BatchShape,
    mixing: &'a Mixing,
    /// Rows of the step.
    rows: usize,
}

impl<B: Backend> Work<'_, B> {
    /// Forward and backward over every shard's uploaded ids; gradients and losses are added to what is there.
    fn pass(&self, shards: &mut [Shard<B>], totals: &mut Totals<B>, noise: Option<Noise>, pass: usize) {
        let Work { backend, params, cut, shape, mixing, rows } = *self;
        if pass == 0 {
            shards.iter_mut().for_each(|shard| backend.clear(&mut shard.loss));
            backend.clear(&mut totals.loads);
        }
        let place = |index| {
            let first_sequence = cut.first_sequence(shape, index, pass);
            Place { noise, first_sequence, ..Place::default() }
        };
        let each = cut.sequences * shape.block;
        let ahead = |index: usize, shard: &mut Shard<B>| {
            shard.replay.forward(backend, params, place(index));
            backend.clear(&mut shard.loads);
            shard.replay.load(backend, each, &mut shard.loads);
        };
        let back = |index: usize, shard: &mut Shard<B>| {
            shard.replay.backward(backend, params, place(index), rows, &mut shard.grads);
            shard.replay.total(backend, each, &mut shard.loss);
        };
        if mixing.needs_load() && shards.first().is_some_and(|shard| shard.replay.program().loads() > 0) {
            // The balancing loss is that of the whole micro-batch: its shards meet between the two passes.
            backend.each(shards, ahead);
            balance(backend, shards, &mut totals.whole);
            backend.each(shards, back);
        } else {
            backend.each(shards, |index, shard| {
                ahead(index, shard);
                back(index, shard);
            });
        }
        shards.iter().for_each(|shard| backend.tally(&shard.loads, &mut totals.loads));
    }

    /// Sums what the passes left: the losses, and with the first shard the gradient.
    fn finish(&self, shards: &mut [Shard<B>], totals: &mut Totals<B>) {
        self.backend.clear(&mut totals.loss);
        shards.iter().for_each(|shard| self.backend.tally(&shard.loss, &mut totals.loss));
        self.backend.unite(&mut totals.loss);
        self.backend.unite(&mut totals.loads);
        self.backend.gather(shards, |shard| &mut shard.grads, &mut totals.squared);
    }
}

/// Tells every shard what share of the micro-batch's choices each expert had; `whole` is what they all were asked.
fn balance<B: Backend>(backend: &B, shards: &mut [Shard<B>], whole: &mut B::Sums) {
    backend.clear(whole);
    shards.iter().for_each(|shard| backend.tally(&shard.loads, whole));
    backend.unite(whole);
    shards.iter_mut().for_each(|shard| shard.replay.balance(backend, whole));
}

/// Moves every selection bias against the load of the step.
fn shift_selection<B: Backend>(
    backend: &B,
    params: &mut Params<B>,
    program: &Program,
    rate: f32,
    loads: &B::Sums,
    record: &B::Sums,
) {
    for (router, at) in program.routers.iter().zip(program.loads_at()) {
        let FeedForward::Experts(bank) = params.layout.layers[router.layer].feed_forward else { continue };
        if let Some(id) = bank.selection_bias {
            backend.shift(params, id, rate, (loads, at), record);
        }
    }
}

#[cfg(test)]
mod tests;
