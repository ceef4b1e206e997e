//! A model that is asked: the losses of many windows, and logits, without noise and without gradients.
//!
//! Windows are cut into passes by their number and their ids alone, and whichever lane is free takes the next pass; what
//! they give is summed in order. Where a backend and a model allow it, passes compute equal beginnings once, and what
//! depends on an id and its place alone is computed before all passes, see [`crate::windows`].

use crate::backend::{Backend, Held, Phase};
use crate::memory::MemoryPlan;
use crate::mixing::{Load, Mixing};
use crate::params::Params;
use crate::tape::recompute::Recompute;
use crate::tape::record::record;
use crate::tape::replay::{Place, Replay};
use crate::tape::{Mode, Program, Shape};
use crate::windows::{Shared, Window, Windows};
use formats::{Config, Error, Layout, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most rows that are computed before all passes.
const MOST_PLACED: usize = 1 << 13;
/// How many times as many rows must be evaluated for that to be worth it.
const PLACED_SHARE: usize = 8;

/// A model on one device, and what asking it takes.
pub struct Evaluator<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: Config,
    pub(crate) params: Params<B>,
    pub(crate) mixing: Mixing,
    /// What the rows of the last evaluation, or of the last steps, asked of each router.
    pub(crate) loads: Vec<Load>,
    /// What all routers were asked, on its way from the device.
    pub(crate) asked: Vec<f64>,
    /// Tokens of a window.
    block: usize,
    lanes: Vec<Lane<B>>,
    /// What evaluation computes once for all lanes.
    placed: Option<Replay<B>>,
}

/// Who carries out passes, one after the other.
struct Lane<B: Backend> {
    replay: Replay<B>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    shared: Shared,
    /// What each question of a shared pass was answered.
    losses: Vec<f32>,
    loss: B::Sums,
    loads: B::Sums,
    outcome: Result<()>,
}

/// Some windows, and what came of them.
struct Pass {
    part: Part,
    /// The losses of the windows of each stretch, summed.
    losses: Vec<f64>,
    /// What the rows asked of the routers.
    loads: Vec<f64>,
}

/// What one pass computes.
enum Part {
    /// Some of the ids, one row each, all of one stretch.
    Whole { ids: Range<usize>, stretch: usize },
    /// Some of the sorted windows, which share rows.
    Shared(Range<usize>),
}

/// What is evaluated.
struct Evaluated<'a, B: Backend> {
    inputs: &'a [u32],
    targets: &'a [u32],
    /// The same as sorted windows, where they share rows.
    sorted: Vec<Window<'a>>,
    /// What the first attention reads, if it is computed for all passes.
    placed: Option<&'a Replay<B>>,
    /// The number of the window after each stretch.
    ends: Vec<usize>,
}

impl<B: Backend> Evaluator<B> {
    /// Room for a model, its weights zero, to be asked in windows of `block` tokens; refused if it does not fit.
    pub fn new(backend: B, config: &Config, block: usize) -> Result<Evaluator<B>> {
        let plan = Evaluator::plan(&backend, config, block);
        let available = backend.available().unwrap_or(u64::MAX);
        if plan.total() > available {
            return Err(Error::Memory {
                what: format!(
                    "evaluating (weights {} MiB as they are read and {} MiB as they are used, activations {} MiB)",
                    plan.copies >> 20,
                    plan.weights >> 20,
                    plan.activations >> 20
                ),
                needed: plan.total(),
                available,
                help: "free memory, or evaluate where there is more".to_owned(),
            });
        }
        Evaluator::with(backend, config, block, &Mixing::default())
    }

    /// The same beside training, which knows what the two take together.
    pub(crate) fn with(backend: B, config: &Config, block: usize, mixing: &Mixing) -> Result<Evaluator<B>> {
        let layout = Layout::new(config);
        let program = program::<B>(config, &layout, Shape { sequences: 1, block }, Mode::Evaluate, mixing);
        let loads = program.routers.iter().map(|router| Load::new(router.layer, router.active, router.count));
        Ok(Evaluator {
            loads: loads.collect(),
            asked: vec![0.0; program.loads()],
            params: Params::new(&backend, layout)?,
            config: config.clone(),
            mixing: *mixing,
            block,
            lanes: vec![],
            placed: None,
            backend,
        })
    }

    /// What it takes where the buffers are.
    fn plan(backend: &B, config: &Config, block: usize) -> MemoryPlan {
        let layout = Layout::new(config);
        let (evaluation, placed) = programs::<B>(config, &layout, block);
        let held = Held {
            parameters: layout.parameters(),
            program: &evaluation,
            shards: 0,
            evaluation: &evaluation,
            placed: placed.as_ref(),
        };
        // Nothing is learned, and only weights come in.
        let plan = backend.plan(&held);
        MemoryPlan { gradients: 0, moments: 0, copies: plan.copies / 3, ..plan }
    }

    /// The model's parameters.
    pub fn layout(&self) -> &Layout {
        &self.params.layout
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Sets the weights, a whole arena in the layout's order.
    pub fn load(&mut self, weights: &[f32]) -> Result<()> {
        self.check_arena("weights", weights)?;
        self.backend.upload(weights, &mut self.params.master);
        self.backend.refresh(&mut self.params);
        Ok(())
    }

    /// Refuses an arena of another layout.
    pub(crate) fn check_arena(&self, name: &str, values: &[f32]) -> Result<()> {
        match (values.len(), self.params.layout.parameters()) {
            (found, parameters) if found != parameters => {
                Err(Error::Internal(format!("{name}: {found} values for {parameters} parameters")))
            }
            _ => Ok(()),
        }
    }

    /// Every weight, in the layout's order.
    pub fn weights(&self) -> Result<Vec<f32>> {
        self.arena(&self.params.master)
    }

    /// An arena's values.
    pub(crate) fn arena(&self, values: &B::Floats) -> Result<Vec<f32>> {
        let mut host = vec![0.0; self.params.layout.parameters()];
        self.backend.download(values, &mut host)?;
        Ok(host)
    }

    /// What the rows of the last evaluation, or of the last steps, asked of each router, layer by layer.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Mean loss of any number of windows, without noise, nats a token.
    pub fn evaluate(&mut self, inputs: &[u32], targets: &[u32]) -> Result<f64> {
        let windows = inputs.len() / self.block;
        let loss = self.evaluate_stretches(inputs, targets, &[windows])?;
        Ok(loss.iter().sum::<f64>() / inputs.len() as f64)
    }

    /// The losses of so many windows after so many others, each stretch summed over its tokens, in nats, without noise.
    pub fn evaluate_stretches(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        stretches: &[usize],
    ) -> Result<Vec<f64>> {
        self.check(inputs, targets)?;
        let block = self.block;
        if inputs.is_empty() || stretches.iter().sum::<usize>() * block != inputs.len() {
            return Err(Error::Internal(format!("{} ids are no whole windows of {block}", inputs.len())));
        }
        let sequences = (inputs.len() / block).min(evaluation_sequences::<B>(block));
        self.make_lanes(sequences)?;
        let places = self.make_placed(inputs.len())?;
        let rows = self.lanes.first().map_or(block, |lane| lane.inputs.len());
        let Evaluator { backend, params, lanes, placed, loads, asked, .. } = self;
        let shares = lanes.first().is_some_and(|lane| Replay::<B>::shares_rows(lane.replay.program()));
        let placed = placed.as_mut().filter(|_| places).map(|placed| {
            placed.forward(backend, params, Place::default());
            &*placed
        });
        let ends = stretches.iter().scan(0, |end, windows| {
            *end += windows;
            Some(*end)
        });
        let evaluated = Evaluated {
            inputs,
            targets,
            sorted: if shares { Window::sorted(inputs, targets, block) } else { vec![] },
            placed,
            ends: ends.collect(),
        };
        let parts = if shares {
            Window::passes(&evaluated.sorted, rows).into_iter().map(Part::Shared).collect()
        } else {
            whole_parts(&evaluated.ends, block, rows)
        };
        let mut passes: Vec<Pass> = parts
            .into_iter()
            .map(|part| Pass { part, losses: vec![0.0; stretches.len()], loads: vec![0.0; asked.len()] })
            .collect();
        let waiting = Mutex::new(passes.iter_mut());
        backend.each(lanes, |_, lane| {
            loop {
                let pass = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(pass) = pass else { return };
                lane.outcome = lane.carry_out(backend, params, &evaluated, pass);
                if lane.outcome.is_err() {
                    return;
                }
            }
        });
        for lane in lanes.iter_mut() {
            std::mem::replace(&mut lane.outcome, Ok(()))?;
        }
        let mut losses = vec![0.0; stretches.len()];
        asked.fill(0.0);
        for pass in &passes {
            asked.iter_mut().zip(&pass.loads).for_each(|(total, load)| *total += load);
            losses.iter_mut().zip(&pass.losses).for_each(|(total, loss)| *total += loss);
        }
        count_loads(loads, asked, inputs.len());
        Ok(losses)
    }

    /// Ids are numbers from outside: none may reach a table unchecked.
    pub(crate) fn check(&self, inputs: &[u32], targets: &[u32]) -> Result<()> {
        if inputs.len() != targets.len() {
            return Err(Error::Internal(format!("{} ids but {} targets", inputs.len(), targets.len())));
        }
        let vocabulary = self.config.vocabulary;
        match inputs.iter().chain(targets).find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Usage(format!("token {id} is beyond the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
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
        let program = program::<B>(&self.config, &self.params.layout, shape, Mode::Logits, &self.mixing);
        let mut replay = Replay::new(&self.backend, program)?;
        replay.upload(&self.backend, inputs, &[]);
        replay.forward(&self.backend, &self.params, Place::default());
        let mut logits = vec![0.0; inputs.len() * self.config.vocabulary];
        replay.result(&self.backend, &mut logits)?;
        Ok(logits)
    }

    /// Lanes for passes of so many windows, unless those there are take more.
    fn make_lanes(&mut self, sequences: usize) -> Result<()> {
        let shape = Shape { sequences, block: self.block };
        if self.lanes.first().is_some_and(|lane| lane.inputs.len() < shape.rows()) {
            self.lanes.clear();
        }
        while self.lanes.len() < self.backend.lanes() {
            let program =
                program::<B>(&self.config, &self.params.layout, shape, Mode::Evaluate, &self.mixing);
            self.lanes.push(Lane {
                loss: self.backend.sums(1)?,
                loads: self.backend.sums(program.loads())?,
                inputs: vec![0; shape.rows()],
                targets: vec![0; shape.rows()],
                shared: Shared::default(),
                losses: vec![0.0; Replay::<B>::losses_of(&program)],
                replay: Replay::new(&self.backend, program)?,
                outcome: Ok(()),
            });
        }
        Ok(())
    }

    /// Room for what the first attention reads of each id at each place; whether that is worth it for so many rows.
    fn make_placed(&mut self, rows: usize) -> Result<bool> {
        let lane = self.lanes.first();
        let shape = lane.and_then(|lane| placed_shape::<B>(lane.replay.program()));
        let Some(shape) = shape.filter(|shape| shape.rows() * PLACED_SHARE <= rows) else {
            return Ok(false);
        };
        if self.placed.is_none() {
            let Evaluator { config, params, mixing, backend, .. } = self;
            let program = program::<B>(config, &params.layout, shape, Mode::Placed, mixing);
            let mut placed = Replay::new(backend, program)?;
            let ids = (0..shape.sequences as u32).flat_map(|id| std::iter::repeat_n(id, shape.block));
            placed.upload(backend, &ids.collect::<Vec<u32>>(), &[]);
            self.placed = Some(placed);
        }
        Ok(true)
    }
}

impl<B: Backend> Lane<B> {
    fn carry_out(
        &mut self,
        backend: &B,
        params: &Params<B>,
        evaluated: &Evaluated<'_, B>,
        pass: &mut Pass,
    ) -> Result<()> {
        match &pass.part {
            Part::Whole { ids, stretch } => {
                self.fill(backend, &evaluated.inputs[ids.clone()], &evaluated.targets[ids.clone()]);
                let Lane { replay, inputs, loss, loads, .. } = self;
                let phase = Phase::Evaluate { rows: inputs.len(), counted: ids.len() };
                backend.replayed(phase, None, || {
                    backend.clear(loss);
                    backend.clear(loads);
                    replay.forward(backend, params, Place::default());
                    replay.total(backend, ids.len(), loss);
                    replay.load(backend, ids.len(), loads);
                })?;
                backend.read(loss, std::slice::from_mut(&mut pass.losses[*stretch]))?;
                backend.read(loads, &mut pass.loads)
            }
            Part::Shared(windows) => {
                let windows = &evaluated.sorted[windows.clone()];
                let mut shared = std::mem::take(&mut self.shared);
                shared.lay(windows);
                self.fill(backend, &shared.ids, &[]);
                match evaluated.placed {
                    Some(placed) => self.replay.forward_placed(backend, params, &shared, placed),
                    None => {
                        let place = Place { windows: Windows::Shared(&shared), ..Place::default() };
                        self.replay.forward(backend, params, place);
                    }
                }
                let losses = &mut self.losses[..shared.questions.len()];
                self.replay.losses(backend, losses)?;
                let block = self.replay.program().shape.block;
                for (window, answers) in windows.iter().zip(shared.answers.chunks(block)) {
                    let number = window.number as usize;
                    let stretch = evaluated.ends.partition_point(|&end| end <= number);
                    let answers = answers.iter().map(|&answer| f64::from(losses[answer as usize]));
                    pass.losses[stretch] += answers.sum::<f64>();
                }
                self.shared = shared;
                Ok(())
            }
        }
    }

    /// Ids to the device; a pass may be short, and its missing rows repeat id 0 and are not counted.
    fn fill(&mut self, backend: &B, inputs: &[u32], targets: &[u32]) {
        for (room, ids) in [(&mut self.inputs, inputs), (&mut self.targets, targets)] {
            let (filled, missing) = room.split_at_mut(ids.len());
            filled.copy_from_slice(ids);
            missing.fill(0);
        }
        self.replay.upload(backend, &self.inputs, &self.targets);
    }
}

/// Takes what each router was asked from all of their sums.
pub(crate) fn count_loads(loads: &mut [Load], asked: &[f64], rows: usize) {
    let mut rest = asked;
    for load in loads {
        let (own, after) = rest.split_at(2 * load.counts.len() + 2);
        load.clear();
        load.add(rows, own);
        rest = after;
    }
}

/// A program without a backward pass.
fn program<B: Backend>(
    config: &Config,
    layout: &Layout,
    shape: Shape,
    mode: Mode,
    mixing: &Mixing,
) -> Program {
    record(config, layout, shape, mode, mixing, Recompute::Nothing, B::GATHERS)
}

/// What one lane of evaluation carries out, and what is carried out once for all lanes, if that is done.
pub(crate) fn programs<B: Backend>(
    config: &Config,
    layout: &Layout,
    block: usize,
) -> (Program, Option<Program>) {
    let of = |shape, mode| program::<B>(config, layout, shape, mode, &Mixing::default());
    let evaluation = of(Shape { sequences: evaluation_sequences::<B>(block), block }, Mode::Evaluate);
    let placed = placed_shape::<B>(&evaluation).map(|shape| of(shape, Mode::Placed));
    (evaluation, placed)
}

/// Most windows of one evaluation pass.
fn evaluation_sequences<B: Backend>(block: usize) -> usize {
    (B::LIMITS.evaluation_rows / block).max(1)
}

/// A window of each id alone, if a program of evaluation can have its first rows from them.
fn placed_shape<B: Backend>(evaluation: &Program) -> Option<Shape> {
    let shape = Shape { sequences: evaluation.config.vocabulary, block: evaluation.shape.block };
    let few = shape.sequences <= MOST_PLACED / shape.block;
    (few && Replay::<B>::shares_rows(evaluation)).then_some(shape)
}

/// Stretches of windows in passes of at most `rows` rows.
fn whole_parts(ends: &[usize], block: usize, rows: usize) -> Vec<Part> {
    let (mut parts, mut begin) = (vec![], 0);
    for (stretch, end) in ends.iter().map(|end| end * block).enumerate() {
        let starts = (begin..end).step_by(rows);
        parts.extend(starts.map(|start| Part::Whole { ids: start..end.min(start + rows), stretch }));
        begin = end;
    }
    parts
}

#[cfg(test)]
mod tests;
