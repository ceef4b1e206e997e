//! One thread of a session at work: the model's operations over the slots its team shares.
//!
//! Every thread walks the same `forward` and writes its own part of each result: a range of output columns in a
//! projection, of rows or heads in attention. An element is computed by one thread, in an order of operations that
//! no thread count enters, so any number of threads gives the same bytes. Few rows (decode) multiply the mapped
//! weights as they stand; many (prefill) widen a block of weights once and use it for all rows. What few rows add up to
//! on the way, the residual stream and its norms, each thread computes for itself: that is cheaper than to wait for it.
//!
//! Of a prompt only the last row's logits are wanted: once the last layer has the keys and values of all rows, the
//! others are dropped.

mod board;
mod experts;
mod lines;
mod projection;
mod router;

pub(crate) use board::{Board, Local};

use crate::attention::{Attention, Cached, New, Room};
use crate::cache::{Cache, Past};
use crate::heads::{Preparation, QueryKeyGains};
use crate::model::Shared;
use crate::rotary;
use crate::shortlist::Shortlist;
use crate::simd::{PANEL, Simd};
use crate::team::{Cut, Member, Mine, Place, Whole};
use formats::architecture::{Machine, forward};
use formats::checkpoint::Tensor;
use formats::config::{NormKind, QueryKeyNorm};
use formats::layout::{Bank, Linear, Norm, Role};
use formats::{Config, Error, Layout, Result};
use lines::Stretched;
use projection::Projection;
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
    /// How many of the best of one row's logits are enough, and what finds them.
    pub(crate) best: Option<(usize, &'a Shortlist)>,
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
        stretched: None,
        stretches: 0,
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
    /// In every thread's own `stream`: the residual stream of few rows.
    Own,
    /// A product that waits for being gathered, see [`lines`].
    Stretched,
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
    /// What [`Rows::Stretched`] stands for.
    stretched: Option<Stretched<'w>>,
    /// Products that were stretched so far.
    stretches: usize,
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
            Rows::Local | Rows::Own | Rows::Stretched | Rows::Nowhere => None,
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

    /// The few rows still wanted, normalised or as they stand, on every thread.
    fn normalise_few(&mut self, x: &Rows, norm: Option<&Norm>) -> Result<()> {
        let (width, rows) = (self.config().width, self.rows());
        let place = if matches!(x, Rows::Own) { None } else { Some(self.shared(x)?) };
        let Local { stream, norm: normed, moments, .. } = &mut *self.local;
        let x = match place {
            Some(place) => self.member.open((Whole(place),))?.0,
            None => stream,
        };
        let x = &x[rows.start * width..rows.end * width];
        let out = &mut normed[..x.len()];
        match norm {
            Some(norm) => normalise(self.model, norm, x, out, moments),
            None => out.copy_from_slice(x),
        }
        Ok(())
    }

    /// Adds a branch's few rows to every thread's own stream, which may be normalised then.
    fn add_few(&mut self, branch: &Rows, norm: Option<&Norm>) -> Result<()> {
        let (width, rows, simd) = (self.config().width, self.rows(), self.model.simd);
        if rows.is_empty() {
            return Ok(());
        }
        let stretched = if matches!(branch, Rows::Stretched) { Some(self.stretched()?) } else { None };
        let place = match &stretched {
            Some(stretched) => stretched.results,
            None => self.shared(branch)?,
        };
        let (from,) = self.member.open((Whole(place),))?;
        let Local { stream, embedding, .. } = &mut *self.local;
        for row in rows.clone() {
            let to = &mut stream[row * width..][..width];
            match &stretched {
                Some(stretched) => {
                    stretched.gather(from, row - rows.start, 0..width, embedding);
                    (simd.add)(to, embedding);
                }
                None => (simd.add)(to, &from[row * width..][..width]),
            }
        }
        if norm.is_some() {
            self.normalise_few(&Rows::Own, norm)?;
            let Local { stream, norm: normed, .. } = &mut *self.local;
            let len = rows.len() * width;
            stream[rows.start * width..][..len].copy_from_slice(&normed[..len]);
        }
        Ok(())
    }

    /// The best of one row's logits, and whether that was done: each member finds those of its columns.
    fn shorten(&mut self, x: &Rows, head: &Linear) -> Result<bool> {
        self.local.candidates = 0;
        let (Some((best, shortlist)), Rows::Local, 1) = (self.step.best, x, self.rows().len()) else {
            return Ok(false);
        };
        let (model, cancelled) = (self.model, self.member.cancelled());
        let Local { norm, scratch, lower, candidates, .. } = &mut *self.local;
        let x = &norm[..head.inputs];
        let Some(size) = shortlist.norm(x) else { return Ok(false) };
        cancelled.check()?;
        let (mut out,) = self.member.open((Mine(self.board.logits, Cut::Columns),))?;
        let (columns, bias) = (out.columns(), head.bias.map(|id| model.vector(id)));
        let projection = Projection::new(model, head);
        let exact = |row: usize, logit: &mut f32| {
            projection.block(x, row..row + 1, &mut [], &mut [], std::slice::from_mut(logit), 1);
        };
        let found =
            shortlist.choose(model.simd, (x, size), columns.clone(), bias, best, lower, out.row(0), exact);
        if found.is_none() {
            projection.write(x, &mut out, 0, scratch, cancelled)?;
        }
        *candidates = found.unwrap_or(columns.len());
        Ok(true)
    }

    /// All rows normalised, into a stream of their own.
    fn normalise_many(&mut self, x: &Rows, norm: &Norm) -> Result<Rows> {
        let (width, rows, x) = (self.config().width, self.rows(), self.shared(x)?);
        let (normed, out) = self.take()?;
        let (x, mut out) = self.member.open((Whole(x), Mine(out, Cut::Rows { rows: rows.end })))?;
        let rows = out.rows();
        if let Some(out) = out.rest(rows.start) {
            normalise(self.model, norm, &x[rows.start * width..][..out.len()], out, &mut self.local.moments);
        }
        Ok(normed)
    }

    fn attend<T: Cached>(&mut self, qkv: &Rows, past: Past<T>) -> Result<()> {
        let config = self.config();
        let model = self.model;
        let stretched = if matches!(qkv, Rows::Stretched) { Some(self.stretched()?) } else { None };
        let norm = self.norms.take().map(|norms| QueryKeyGains {
            gains: norms.map(|norm| model.vector(norm.gain)),
            whole: config.query_key_norm == QueryKeyNorm::Whole,
            eps: config.norm_eps,
        });
        let Local { queries, results, scores, moments, qkv: own, angles, .. } = &mut *self.local;
        let angles = if std::mem::take(&mut self.rotary) {
            &angles[..self.step.ids.len() * config.head_size]
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
        let mut room = Room { queries, results, scores, scales: moments };
        let few = self.step.ids.len() - self.from <= FEW_ROWS;
        if few {
            let width = attention.heads.width();
            let gather = stretched.map(|stretched| {
                let rows = self.step.ids.len();
                move |results: &[f32], columns: Range<usize>, qkv: &mut [f32]| {
                    for (row, qkv) in qkv.chunks_exact_mut(width).enumerate().take(rows) {
                        stretched.gather(results, row, columns.clone(), &mut qkv[columns.start..]);
                    }
                }
            });
            let new = match (&gather, &stretched) {
                (Some(gather), Some(stretched)) => New::Gathered { from: stretched.results, gather, to: own },
                _ => New::Shared(self.board.qkv),
            };
            attention.by_heads(self.member, new, past, self.board.heads, &mut room)
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
            let (width, simd, step) = (worker.config().width, worker.model.simd, worker.step);
            let tokens = worker.model.weights.tensor(layout.token_embedding);
            let positions = layout.position_embedding.map(|id| worker.model.weights.tensor(id));
            let few = step.ids.len() <= FEW_ROWS;
            let (rows, place) =
                if few { (Rows::Own, None) } else { worker.take().map(|(r, p)| (r, Some(p)))? };
            let Local { stream, embedding, .. } = &mut *worker.local;
            let embed = |row: usize, first: usize, embedding: &mut [f32], out: &mut [f32]| {
                widen(simd, tokens, step.ids[row] as usize * width + first, out);
                if let Some(positions) = positions {
                    let embedding = &mut embedding[..out.len()];
                    widen(simd, positions, (step.first + row) * width + first, embedding);
                    (simd.add)(out, embedding);
                }
            };
            match place {
                None => {
                    for (row, out) in stream.chunks_exact_mut(width).enumerate().take(step.ids.len()) {
                        embed(row, 0, embedding, out);
                    }
                }
                Some(place) => {
                    let (mut out,) = worker.member.open((Mine(place, Cut::Columns),))?;
                    let first = out.columns().start;
                    for row in 0..step.ids.len() {
                        embed(row, first, embedding, out.row(row));
                    }
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
            if worker.walks(linear) {
                worker.stretch(&x, linear)?;
                worker.release(x);
                return Ok(Rows::Stretched);
            }
            let x = worker.settle(x)?;
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

    fn attention(&mut self, qkv: Rows, layer: usize) -> Rows {
        self.attempt(|worker| {
            if layer + 1 == worker.config().layers {
                worker.from = worker.step.wanted.first(worker.step.ids.len());
            }
            match worker.cache {
                Cache::F16(layers) => worker.attend(&qkv, layers[layer])?,
                Cache::F32(layers) => worker.attend(&qkv, layers[layer])?,
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
            if matches!(stream, Rows::Own) {
                worker.add_few(&branch, norm)?;
                worker.release(branch);
                return Ok(stream);
            }
            let branch = worker.settle(branch)?;
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
            if worker.shorten(&x, head)? {
                return Ok(Rows::Nowhere);
            }
            if worker.walks(head) {
                worker.stretch(&x, head)?;
                worker.gather_into(worker.board.logits, 0)?;
            } else {
                worker.project(&x, head, worker.board.logits, 0)?;
            }
            Ok(Rows::Nowhere)
        })
    }
}

/// The config's norm of some rows, with room for two values each.
fn normalise(model: &Shared, norm: &Norm, x: &[f32], out: &mut [f32], moments: &mut [f32]) {
    let (gain, bias, eps) =
        (model.vector(norm.gain), norm.bias.map(|id| model.vector(id)), model.config.norm_eps);
    match model.config.norm {
        NormKind::LayerNorm => {
            let moments = &mut moments[..2 * x.len() / gain.len()];
            (model.simd.layer_norm)(x, gain, bias, eps, out, moments);
        }
        NormKind::RmsNorm => {
            for (x, out) in x.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
                (model.simd.rms_norm)(x, gain, eps, out);
            }
        }
    }
}

/// `out.len()` values of a tensor from `start`, widened.
pub(crate) fn widen(simd: &Simd, tensor: Tensor, start: usize, out: &mut [f32]) {
    let range = start..start + out.len();
    match tensor {
        Tensor::F32(values) => out.copy_from_slice(&values[range]),
        Tensor::F16(values) => (simd.widen_f16)(&values[range], out),
        Tensor::Bf16(values) => (simd.widen_bf16)(&values[range], out),
    }
}
