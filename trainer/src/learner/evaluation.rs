//! The losses of many windows, without noise and without gradients.
//!
//! Windows are cut into passes by their number and their ids alone, and whichever lane is free takes the next pass; what
//! they give is summed in order. Where a backend and a model allow it, passes compute equal beginnings once, and what
//! depends on an id and its place alone is computed before all passes, see [`crate::windows`].

use super::{Learner, count_loads};
use crate::backend::{Backend, Phase};
use crate::params::Params;
use crate::tape::recompute::Recompute;
use crate::tape::record::record;
use crate::tape::replay::{Place, Replay};
use crate::tape::{Mode, Program, Shape};
use crate::windows::{Shared, Window, Windows};
use formats::{Error, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most rows that are computed before all passes.
const MOST_PLACED: usize = 1 << 13;
/// How many times as many rows must be evaluated for that to be worth it.
const PLACED_SHARE: usize = 8;

/// Who carries out passes, one after the other.
pub(super) struct Lane<B: Backend> {
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

impl<B: Backend> Learner<B> {
    /// Mean loss of any number of windows, without noise, nats a token.
    pub fn evaluate(&mut self, inputs: &[u32], targets: &[u32]) -> Result<f64> {
        let windows = inputs.len() / self.shape.block;
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
        let block = self.shape.block;
        if inputs.is_empty() || stretches.iter().sum::<usize>() * block != inputs.len() {
            return Err(Error::Internal(format!("{} ids are no whole windows of {block}", inputs.len())));
        }
        let sequences = (inputs.len() / block).min(evaluation_sequences::<B>(block));
        self.make_lanes(sequences)?;
        let places = self.make_placed(inputs.len())?;
        let rows = self.lanes.first().map_or(block, |lane| lane.inputs.len());
        let Learner { backend, params, lanes, placed, loads, asked, .. } = self;
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

    /// Lanes for passes of so many windows, unless those there are take more.
    fn make_lanes(&mut self, sequences: usize) -> Result<()> {
        let shape = Shape { sequences, block: self.shape.block };
        if self.lanes.first().is_some_and(|lane| lane.inputs.len() < shape.rows()) {
            self.lanes.clear();
        }
        while self.lanes.len() < self.backend.lanes() {
            let program = record(
                &self.config,
                &self.params.layout,
                shape,
                Mode::Evaluate,
                &self.mixing,
                Recompute::Nothing,
                B::GATHERS,
            );
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
            let Learner { config, params, mixing, backend, .. } = self;
            let program =
                record(config, &params.layout, shape, Mode::Placed, mixing, Recompute::Nothing, B::GATHERS);
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

/// Most windows of one evaluation pass.
pub(super) fn evaluation_sequences<B: Backend>(block: usize) -> usize {
    (B::LIMITS.evaluation_rows / block).max(1)
}

/// A window of each id alone, if a program of evaluation can have its first rows from them.
pub(super) fn placed_shape<B: Backend>(evaluation: &Program) -> Option<Shape> {
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
