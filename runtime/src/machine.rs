//! One thread of a session at work: the model's operations over the slots its team shares.
//!
//! Every thread walks the same `forward` and writes its own part of each result: a range of output columns in a
//! projection, of rows or heads in attention. An element is computed by one thread, in an order of operations that
//! no thread count enters, so any number of threads gives the same bytes. Few rows (decode) multiply the mapped
//! weights as they stand; many (prefill) widen a block of weights once and use it for all rows.
//!
//! Of a prompt only the last row's logits are wanted: once the last layer has the keys and values of all rows, the
//! others are dropped.

mod board;
mod experts;
mod projection;
mod router;

pub(crate) use board::{Board, Local};

use crate::attention::{Attention, Cached, Room};
use crate::cache::{Cache, Past};
use crate::heads::{Preparation, QueryKeyGains};
use crate::model::Shared;
use crate::rotary;
use crate::simd::{PANEL, Simd};
use crate::team::{Cut, Member, Mine, Place, Whole};
use formats::architecture::{Machine, forward};
use formats::checkpoint::Tensor;
use formats::config::{NormKind, QueryKeyNorm};
use formats::layout::{Bank, Linear, Norm, Role};
use formats::{Config, Error, Layout, Result};
use projection::{Projection, SEGMENTS};
use std::ops::Range;

/// Most rows that multiply the weights one by one, and whose norms every thread computes for itself: below it,
/// widening a block of weights, or waiting at a barrier, costs more than it saves.
const FEW_ROWS: usize = 4;
/// Columns whose weights are widened together: enough to reuse each activation loaded, few enough that the block
/// stays in the second-level cache.
const BLOCK: usize = 4 * PANEL;

/// Which logits a step is to leave in [`Board::logits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// None: more of the prompt follows.
    Nothing,
    /// Those of the last row, as row 0.
    Last,
    /// Those of each row.
    Each,
}

impl Wanted {
    /// The first of `rows` rows whose logits are wanted.
    fn first(self, rows: usize) -> usize {
        match self {
            Wanted::Nothing => rows,
            Wanted::Last => rows - 1,
            Wanted::Each => 0,
        }
    }
}

/// New rows to be computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    /// Their tokens, each within the vocabulary.
    pub(crate) ids: &'a [u32],
    /// Position of the first.
    pub(crate) first: usize,
    /// Which logits to keep.
    pub(crate) wanted: Wanted,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
}

/// Computes a step: what each member of the team runs.
pub(crate) fn compute(
    member: &mut Member<'_>,
    local: &mut Local,
    model: &Shared,
    board: &Board,
    cache: &Cache,
    step: &Step<'_>,
) -> Result<()> {
    if !model.frequencies.is_empty() {
        let len = step.ids.len() * model.config.head_size;
        rotary::angles(&model.frequencies, step.first, &mut local.angles[..len]);
    }
    let mut worker = Worker {
        member,
        local,
        model,
        board,
        cache,
        step,
        from: 0,
        taken: [false; 2],
        norms: None,
        rotary: false,
        failure: None,
    };
    forward(&mut worker, &model.layout);
    worker.failure.map_or(Ok(()), Err)
}

/// Where rows of activations are.
#[derive(Debug)]
pub(crate) enum Rows {
    /// In one of the board's streams.
    Stream(usize),
    /// There too, and not to be given back: the residual stream as it stands.
    Lent(usize),
    /// Among the board's fused queries, keys and values.
    Qkv,
    /// In the board's place for what attention gives.
    Heads,
    /// Among the board's hidden values.
    Hidden,
    /// In every thread's own `norm`.
    Local,
    /// Nowhere: they were not wanted, or the step has failed.
    Nowhere,
}

struct Worker<'w, 'm> {
    member: &'w mut Member<'m>,
    local: &'w mut Local,
    model: &'w Shared,
    board: &'w Board,
    cache: &'w Cache,
    step: &'w Step<'w>,
    /// The first row that is still wanted.
    from: usize,
    taken: [bool; 2],
    /// What the next attention's queries and keys are normalised by.
    norms: Option<[Norm; 2]>,
    /// Whether they are rotated.
    rotary: bool,
    /// Why the rest of the walk does nothing.
    failure: Option<Error>,
}

impl<'w> Worker<'w, '_> {
    /// One verb: after a failure nothing happens, and a failure is kept.
    fn attempt(&mut self, verb: impl FnOnce(&mut Self) -> Result<Rows>) -> Rows {
        if self.failure.is_some() {
            return Rows::Nowhere;
        }
        verb(self).unwrap_or_else(|error| {
            self.failure = Some(error);
            Rows::Nowhere
        })
    }

    fn config(&self) -> &'w Config {
        &self.model.config
    }

    /// The new rows that are still wanted.
    fn rows(&self) -> Range<usize> {
        self.from..self.step.ids.len()
    }

    /// The place of rows that are shared.
    fn shared(&self, rows: &Rows) -> Result<Place<f32>> {
        let place = match rows {
            Rows::Stream(index) | Rows::Lent(index) => Some(self.board.streams[*index]),
            Rows::Qkv => Some(self.board.qkv),
            Rows::Heads => Some(self.board.heads),
            Rows::Hidden => self.board.hidden,
            Rows::Local | Rows::Nowhere => None,
        };
        place.ok_or_else(|| Error::Internal(format!("rows that are to be shared are {rows:?}")))
    }

    /// A stream that holds nothing.
    fn take(&mut self) -> Result<(Rows, Place<f32>)> {
        let free = self.taken.iter().position(|taken| !taken);
        let index = free.ok_or_else(|| Error::Internal("a third residual stream is asked for".into()))?;
        self.taken[index] = true;
        Ok((Rows::Stream(index), self.board.streams[index]))
    }

    fn release(&mut self, rows: Rows) {
        if let Rows::Stream(index) = rows {
            self.taken[index] = false;
        }
    }

    /// `x W^T + b` of the rows still wanted, with the nonlinearity that follows, into the rows of `out` from `to` on.
    fn project(&mut self, x: &Rows, linear: &Linear, out: Place<f32>, to: usize) -> Result<()> {
        let rows = self.rows();
        if rows.is_empty() || matches!(x, Rows::Nowhere) {
            return Ok(());
        }
        let cancelled = self.member.cancelled();
        let projection = Projection::new(self.model, linear);
        if let (true, Some(results)) = (projection.walks_inputs(rows.len()), self.board.stretches) {
            return self.project_lines(x, &projection, linear.inputs, results, out, to);
        }
        if matches!(x, Rows::Local) {
            let (mut out,) = self.member.open((Mine(out, Cut::Columns),))?;
            let x = &self.local.norm[..rows.len() * linear.inputs];
            return projection.write(x, &mut out, to, &mut self.local.scratch, cancelled);
        }
        let x = self.shared(x)?;
        let (x, mut out) = self.member.open((Whole(x), Mine(out, Cut::Columns)))?;
        let x = &x[rows.start * linear.inputs..rows.end * linear.inputs];
        projection.write(x, &mut out, to, &mut self.local.scratch, cancelled)
    }

    /// The same through a matrix that stores a line an input: stretches of lines first, which are then added.
    fn project_lines(
        &mut self,
        x: &Rows,
        projection: &Projection<'_>,
        inputs: usize,
        results: Place<f32>,
        out: Place<f32>,
        to: usize,
    ) -> Result<()> {
        let (rows, cancelled) = (self.rows(), self.member.cancelled());
        let cut = Cut::Rows { rows: rows.len() * SEGMENTS };
        let local = &self.local.norm;
        let (x, mut stretches) = if matches!(x, Rows::Local) {
            let (stretches,) = self.member.open((Mine(results, cut),))?;
            (&local[..], stretches)
        } else {
            let x = self.shared(x)?;
            let (x, stretches) = self.member.open((Whole(x), Mine(results, cut)))?;
            (&x[rows.start * inputs..], stretches)
        };
        for index in stretches.rows() {
            cancelled.check()?;
            let x = &x[index / SEGMENTS * inputs..][..inputs];
            projection.stretch(x, index % SEGMENTS, &mut stretches.row(index)[..projection.outputs()]);
        }
        let (results, mut out) = self.member.open((Whole(results), Mine(out, Cut::Columns)))?;
        let (columns, stride) = (out.columns(), results.len() / (FEW_ROWS * SEGMENTS));
        for (row, results) in results.chunks_exact(SEGMENTS * stride).take(rows.len()).enumerate() {
            projection.gather(results, stride, columns.clone(), &mut out.row(to + row)[..columns.len()]);
        }
        Ok(())
    }

    /// The few rows still wanted, normalised or as they stand, on every thread.
    fn normalise_few(&mut self, x: &Rows, norm: Option<&Norm>) -> Result<()> {
        let (width, rows, x) = (self.config().width, self.rows(), self.shared(x)?);
        let (x,) = self.member.open((Whole(x),))?;
        let x = x[rows.start * width..rows.end * width].chunks_exact(width);
        for (x, out) in x.zip(self.local.norm.chunks_exact_mut(width)) {
            match norm {
                Some(norm) => normalise(self.model, norm, x, out),
                None => out.copy_from_slice(x),
            }
        }
        Ok(())
    }

    /// All rows normalised, into a stream of their own.
    fn normalise_many(&mut self, x: &Rows, norm: &Norm) -> Result<Rows> {
        let (width, rows, x) = (self.config().width, self.rows(), self.shared(x)?);
        let (normed, out) = self.take()?;
        let (x, mut out) = self.member.open((Whole(x), Mine(out, Cut::Rows { rows: rows.end })))?;
        for row in out.rows() {
            normalise(self.model, norm, &x[row * width..][..width], out.row(row));
        }
        Ok(normed)
    }

    fn attend<T: Cached>(&mut self, past: Past<T>) -> Result<()> {
        let config = self.config();
        let model = self.model;
        let norm = self.norms.take().map(|norms| QueryKeyGains {
            gains: norms.map(|norm| model.vector(norm.gain)),
            whole: config.query_key_norm == QueryKeyNorm::Whole,
            eps: config.norm_eps,
        });
        let angles = if std::mem::take(&mut self.rotary) {
            &self.local.angles[..self.step.ids.len() * config.head_size]
        } else {
            &[]
        };
        let attention = Attention {
            heads: Preparation {
                simd: model.simd,
                head_size: config.head_size,
                heads: config.heads,
                kv_heads: config.kv_heads,
                norm,
                angles,
            },
            rows: self.step.ids.len(),
            first: self.step.first,
            wanted: self.from,
            capacity: self.step.capacity,
            scale: config.score_scale(),
        };
        let mut room = Room { scores: &mut self.local.scores, scales: &mut self.local.scales };
        let few = self.step.ids.len() - self.from <= FEW_ROWS;
        if few {
            attention.by_heads(self.member, self.board.qkv, past, self.board.heads, &mut room)
        } else {
            attention.by_rows(self.member, self.board.qkv, past, self.board.heads, &mut room)
        }
    }
}

impl Machine for Worker<'_, '_> {
    type Rows = Rows;
    /// Every thread has it in its [`board::Routed`].
    type Routing = usize;

    fn embed(&mut self, layout: &Layout) -> Rows {
        self.attempt(|worker| {
            let width = worker.config().width;
            let (rows, place) = worker.take()?;
            let (mut out,) = worker.member.open((Mine(place, Cut::Columns),))?;
            let (simd, columns) = (worker.model.simd, out.columns());
            let tokens = worker.model.weights.tensor(layout.token_embedding);
            let positions = layout.position_embedding.map(|id| worker.model.weights.tensor(id));
            let embedding = &mut worker.local.embedding[..columns.len()];
            for (row, &id) in worker.step.ids.iter().enumerate() {
                let out = out.row(row);
                widen(simd, tokens, id as usize * width + columns.start, out);
                if let Some(positions) = positions {
                    widen(simd, positions, (worker.step.first + row) * width + columns.start, embedding);
                    (simd.add)(out, embedding);
                }
            }
            Ok(rows)
        })
    }

    fn norm(&mut self, x: &Rows, norm: Option<&Norm>) -> Rows {
        self.attempt(|worker| {
            if worker.rows().len() <= FEW_ROWS {
                worker.normalise_few(x, norm)?;
                return Ok(Rows::Local);
            }
            match (norm, x) {
                (Some(norm), _) => worker.normalise_many(x, norm),
                (None, Rows::Stream(index)) => Ok(Rows::Lent(*index)),
                (None, other) => Err(Error::Internal(format!("the residual stream is {other:?}"))),
            }
        })
    }

    fn linear(&mut self, x: Rows, linear: &Linear) -> Rows {
        self.attempt(|worker| {
            let rows = match worker.model.layout.parameter(linear.weight).role {
                Role::Qkv(_) => Rows::Qkv,
                Role::Up(_) => Rows::Hidden,
                _ => worker.take()?.0,
            };
            let out = worker.shared(&rows)?;
            worker.project(&x, linear, out, worker.from)?;
            worker.release(x);
            Ok(rows)
        })
    }

    /// Heads are made ready where attention reads them.
    fn query_key_norm(&mut self, qkv: Rows, norms: &[Norm; 2]) -> Rows {
        self.norms = Some(*norms);
        qkv
    }

    fn rotate(&mut self, qkv: Rows) -> Rows {
        self.rotary = true;
        qkv
    }

    fn attention(&mut self, _: Rows, layer: usize) -> Rows {
        self.attempt(|worker| {
            if layer + 1 == worker.config().layers {
                worker.from = worker.step.wanted.first(worker.step.ids.len());
            }
            match worker.cache {
                Cache::F16(layers) => worker.attend(layers[layer])?,
                Cache::F32(layers) => worker.attend(layers[layer])?,
            }
            Ok(Rows::Heads)
        })
    }

    /// Applied while the projection's results were at hand, see [`Projection`].
    fn activation(&mut self, x: Rows) -> Rows {
        x
    }

    fn route(&mut self, x: &Rows, bank: &Bank, layer: usize) -> usize {
        self.attempt(|worker| worker.choose(x, bank, layer).map(|()| Rows::Nowhere));
        layer
    }

    fn experts(&mut self, x: Rows, _: usize, bank: &Bank) -> Rows {
        self.attempt(|worker| worker.mix(x, bank))
    }

    fn add(&mut self, stream: Rows, branch: Rows, norm: Option<&Norm>) -> Rows {
        self.attempt(|worker| {
            let (to, from) = (worker.shared(&stream)?, worker.shared(&branch)?);
            let rows = worker.rows();
            let (mut to, mut from) =
                worker.member.open((Mine(to, Cut::Columns), Mine(from, Cut::Columns)))?;
            for row in rows {
                (worker.model.simd.add)(to.row(row), from.row(row));
            }
            worker.release(branch);
            let Some(norm) = norm else { return Ok(stream) };
            let rows = worker.rows();
            if rows.len() > FEW_ROWS {
                let normed = worker.normalise_many(&stream, norm)?;
                worker.release(stream);
                return Ok(normed);
            }
            // Every thread has the rows whole, and gives its columns of them to the new stream.
            worker.normalise_few(&stream, Some(norm))?;
            let width = worker.config().width;
            let (normed, out) = worker.take()?;
            let (mut out,) = worker.member.open((Mine(out, Cut::Columns),))?;
            let columns = out.columns();
            for (row, from) in rows.zip(worker.local.norm.chunks_exact(width)) {
                out.row(row)[..columns.len()].copy_from_slice(&from[columns.clone()]);
            }
            worker.release(stream);
            Ok(normed)
        })
    }

    fn logits(&mut self, x: Rows, head: &Linear) -> Rows {
        self.attempt(|worker| {
            worker.project(&x, head, worker.board.logits, 0)?;
            Ok(Rows::Nowhere)
        })
    }
}

/// The config's norm of one row.
fn normalise(model: &Shared, norm: &Norm, x: &[f32], out: &mut [f32]) {
    let (gain, bias, eps) =
        (model.vector(norm.gain), norm.bias.map(|id| model.vector(id)), model.config.norm_eps);
    match model.config.norm {
        NormKind::LayerNorm => (model.simd.layer_norm)(x, gain, bias, eps, out, &mut [0.0; 2]),
        NormKind::RmsNorm => _ = (model.simd.rms_norm)(x, gain, eps, out),
    }
}

/// `out.len()` values of a tensor from `start`, widened.
fn widen(simd: &Simd, tensor: Tensor, start: usize, out: &mut [f32]) {
    let range = start..start + out.len();
    match tensor {
        Tensor::F32(values) => out.copy_from_slice(&values[range]),
        Tensor::F16(values) => (simd.widen_f16)(&values[range], out),
        Tensor::Bf16(values) => (simd.widen_bf16)(&values[range], out),
    }
}
