//! One thread of a session at work: the model's operations over the slots its team shares.
//!
//! Every thread walks the same `forward` and writes its own part of each result: a range of output columns in a
//! projection, of rows or heads in attention. An element is computed by one thread, in an order of operations that
//! no thread count enters, so any number of threads gives the same bytes. Few rows (decode) multiply the mapped
//! weights as they stand; many (prefill) widen a block of weights once and use it for all rows.
//!
//! Of a prompt only the last row's logits are wanted: once the last layer has the keys and values of all rows, the
//! others are dropped.

use crate::attention::{Attention, Cached};
use crate::cache::{Cache, Past};
use crate::memory;
use crate::model::Shared;
use crate::simd::product::{Operand, Product, Write};
use crate::simd::{PANEL, Simd, packed_len};
use crate::team::{Cut, Member, Mine, Part, Place, Slots, Whole};
use formats::architecture::{Machine, forward};
use formats::checkpoint::Tensor;
use formats::config::Activation;
use formats::layout::{Linear, Norm};
use formats::{Config, Error, Layout, Result};
use std::ops::Range;

/// Most rows that multiply the weights one by one, and whose norms every thread computes for itself: below it,
/// widening a block of weights, or waiting at a barrier, costs more than it saves.
const FEW_ROWS: usize = 4;
/// Columns whose weights are widened together: enough to reuse each activation loaded, few enough that the block
/// stays in the second-level cache.
const BLOCK: usize = 4 * PANEL;
/// Most logits a session keeps at once.
const MOST_LOGITS: usize = 1 << 22;

/// The shared buffers of one session.
#[derive(Debug)]
pub(crate) struct Board {
    /// Activations, with their columns; which hold something is each worker's own bookkeeping.
    places: Vec<(usize, Place<f32>)>,
    /// What attention gives, `[rows, width]`, cut between heads.
    heads: usize,
    /// `[logit_rows, vocabulary]`.
    pub(crate) logits: Place<f32>,
    /// Most rows of logits one step can give.
    pub(crate) logit_rows: usize,
}

impl Board {
    /// Buffers for steps of up to `rows` rows.
    pub(crate) fn new(slots: &mut Slots, config: &Config, rows: usize) -> Result<Board> {
        // The residual stream and one more: no layer holds three rows of this width but attention's, which
        // stands apart because it is cut between heads.
        let columns = [config.width, config.width, 3 * config.width, config.feed_forward];
        let mut places = Vec::with_capacity(columns.len() + 1);
        for columns in columns {
            places.push((columns, slots.add(rows, columns, PANEL)?));
        }
        places.push((config.width, slots.add(rows, config.width, config.head_size())?));
        let logit_rows = Board::logit_rows(config, rows);
        let logits = slots.add(logit_rows, config.vocabulary, PANEL)?;
        Ok(Board { heads: places.len() - 1, places, logits, logit_rows })
    }

    /// Bytes that [`Board::new`] and `threads` times [`Local::new`] take.
    pub(crate) fn bytes(config: &Config, rows: usize, capacity: usize, threads: usize) -> u64 {
        let shared = rows * (6 * config.width + config.feed_forward)
            + Board::logit_rows(config, rows) * config.vocabulary;
        let local = Local::lengths(config, rows, capacity).iter().sum::<usize>();
        (shared as u64 + local as u64 * threads as u64) * size_of::<f32>() as u64
    }

    fn logit_rows(config: &Config, rows: usize) -> usize {
        (MOST_LOGITS / config.vocabulary).clamp(1, rows)
    }
}

/// One thread's own buffers.
#[derive(Debug)]
pub(crate) struct Local {
    /// A few normalised rows, `[FEW_ROWS, width]`.
    norm: Vec<f32>,
    /// A block of widened weights.
    panels: Vec<f32>,
    /// A block of results, `[rows, BLOCK]`, before it is laid into the shared rows.
    block: Vec<f32>,
    /// One row of attention weights.
    scores: Vec<f32>,
    /// One widened embedding.
    embedding: Vec<f32>,
}

impl Local {
    /// Buffers for steps of up to `rows` rows in a session of `capacity` positions.
    pub(crate) fn new(config: &Config, rows: usize, capacity: usize) -> Result<Local> {
        let [norm, panels, block, scores, embedding] = Local::lengths(config, rows, capacity);
        Ok(Local {
            norm: memory::filled(norm, 0.0)?,
            panels: memory::filled(panels, 0.0)?,
            block: memory::filled(block, 0.0)?,
            scores: memory::filled(scores, 0.0)?,
            embedding: memory::filled(embedding, 0.0)?,
        })
    }

    fn lengths(config: &Config, rows: usize, capacity: usize) -> [usize; 5] {
        // A session of few rows never widens a block of weights.
        let inputs = config.width.max(config.feed_forward);
        let panels = if rows > FEW_ROWS { packed_len(BLOCK, inputs) } else { 0 };
        [FEW_ROWS * config.width, panels, rows * BLOCK, capacity, config.width]
    }
}

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
    let mut worker =
        Worker { member, local, model, board, cache, step, from: 0, taken: [false; PLACES], failure: None };
    forward(&mut worker, &model.layout);
    worker.failure.map_or(Ok(()), Err)
}

/// Places of a [`Board`].
const PLACES: usize = 5;

/// Where rows of activations are.
#[derive(Debug)]
pub(crate) enum Rows {
    /// In a place of the board.
    Shared(usize),
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
    taken: [bool; PLACES],
    /// Why the rest of the walk does nothing.
    failure: Option<Error>,
}

impl Worker<'_, '_> {
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

    fn config(&self) -> &Config {
        &self.model.config
    }

    /// The new rows that are still wanted.
    fn rows(&self) -> Range<usize> {
        self.from..self.step.ids.len()
    }

    fn place(&self, index: usize) -> Place<f32> {
        self.board.places[index].1
    }

    /// The place of rows that must be shared.
    fn shared(&self, rows: &Rows) -> Result<(usize, Place<f32>)> {
        match rows {
            Rows::Shared(index) => Ok((*index, self.place(*index))),
            _ => Err(Error::Internal("rows that every thread keeps for itself are to be shared".into())),
        }
    }

    /// A place of so many columns that holds nothing.
    fn take(&mut self, columns: usize) -> Result<(usize, Place<f32>)> {
        let free = (0..PLACES).find(|&index| {
            index != self.board.heads && !self.taken[index] && self.board.places[index].0 == columns
        });
        let index = free.ok_or_else(|| Error::Internal(format!("no free buffer has {columns} columns")))?;
        self.taken[index] = true;
        Ok((index, self.place(index)))
    }

    fn release(&mut self, rows: Rows) {
        if let Rows::Shared(index) = rows {
            self.taken[index] = false;
        }
    }

    /// `x W^T + b` of the rows still wanted, into the rows of `out` from `to` on.
    fn project(&mut self, x: &Rows, linear: &Linear, out: Place<f32>, to: usize) -> Result<()> {
        let rows = self.rows();
        if rows.is_empty() {
            return Ok(());
        }
        let cancelled = self.member.cancelled();
        let (x, mut out) = match x {
            Rows::Shared(index) => {
                let (x, out) =
                    self.member.open((Whole(self.board.places[*index].1), Mine(out, Cut::Columns)))?;
                (&x[rows.start * linear.inputs..rows.end * linear.inputs], out)
            }
            Rows::Local => {
                let (out,) = self.member.open((Mine(out, Cut::Columns),))?;
                (&self.local.norm[..rows.len() * linear.inputs], out)
            }
            Rows::Nowhere => return Ok(()),
        };
        let projection = Projection {
            simd: self.model.simd,
            weight: self.model.weights.tensor(linear.weight),
            packed: self.model.packed(linear.weight),
            bias: linear.bias.map(|id| self.model.vector(id)),
            inputs: linear.inputs,
            x,
            rows: rows.len(),
            to,
        };
        let columns = out.columns();
        for first in columns.clone().step_by(BLOCK) {
            cancelled.check()?;
            let count = BLOCK.min(columns.end - first);
            // Packed weights serve one row as they serve many, so a small model's logits do not depend on how its
            // prompt was cut: the product sums in one order whatever the rows beside it.
            if rows.len() <= FEW_ROWS && projection.packed.is_none() {
                projection.row_by_row(first, count, &mut out);
            } else {
                projection.as_product(first, count, &mut out, &mut self.local.panels, &mut self.local.block);
            }
        }
        Ok(())
    }

    fn attend<T: Cached>(&mut self, qkv: Place<f32>, past: Past<T>, out: Place<f32>) -> Result<()> {
        let config = self.config();
        let attention = Attention {
            simd: self.model.simd,
            rows: self.step.ids.len(),
            first: self.step.first,
            wanted: self.from,
            heads: config.heads,
            head_size: config.head_size(),
            capacity: self.step.capacity,
            scale: config.score_scale(),
        };
        if self.rows().len() <= FEW_ROWS {
            attention.by_heads(self.member, qkv, past, out, &mut self.local.scores)
        } else {
            attention.by_rows(self.member, qkv, past, out, &mut self.local.scores)
        }
    }
}

impl Machine for Worker<'_, '_> {
    type Rows = Rows;

    fn embed(&mut self, layout: &Layout) -> Rows {
        self.attempt(|worker| {
            let width = worker.config().width;
            let (index, place) = worker.take(width)?;
            let (mut out,) = worker.member.open((Mine(place, Cut::Columns),))?;
            let (simd, columns) = (worker.model.simd, out.columns());
            let tokens = worker.model.weights.tensor(layout.token_embedding);
            let positions = worker.model.weights.tensor(layout.position_embedding);
            let embedding = &mut worker.local.embedding[..columns.len()];
            for (row, &id) in worker.step.ids.iter().enumerate() {
                let out = out.row(row);
                widen(simd, tokens, id as usize * width + columns.start, out);
                widen(simd, positions, (worker.step.first + row) * width + columns.start, embedding);
                (simd.add)(out, embedding);
            }
            Ok(Rows::Shared(index))
        })
    }

    fn norm(&mut self, x: &Rows, norm: &Norm) -> Rows {
        self.attempt(|worker| {
            let (width, eps) = (worker.config().width, worker.config().norm_eps);
            let (_, x) = worker.shared(x)?;
            let model = worker.model;
            let normalise = |x: &[f32], out: &mut [f32]| {
                (model.simd.layer_norm)(
                    x,
                    model.vector(norm.gain),
                    norm.bias.map(|id| model.vector(id)),
                    eps,
                    out,
                );
            };
            let rows = worker.rows();
            if rows.len() <= FEW_ROWS {
                let (x,) = worker.member.open((Whole(x),))?;
                let own = worker.local.norm.chunks_exact_mut(width);
                for (x, out) in x[rows.start * width..rows.end * width].chunks_exact(width).zip(own) {
                    normalise(x, out);
                }
                return Ok(Rows::Local);
            }
            let (index, out) = worker.take(width)?;
            let (x, mut out) = worker.member.open((Whole(x), Mine(out, Cut::Rows { rows: rows.end })))?;
            for row in out.rows() {
                normalise(&x[row * width..][..width], out.row(row));
            }
            Ok(Rows::Shared(index))
        })
    }

    fn linear(&mut self, x: Rows, linear: &Linear) -> Rows {
        self.attempt(|worker| {
            let (index, out) = worker.take(linear.outputs)?;
            worker.project(&x, linear, out, worker.from)?;
            worker.release(x);
            Ok(Rows::Shared(index))
        })
    }

    fn attention(&mut self, qkv: Rows, layer: usize) -> Rows {
        self.attempt(|worker| {
            let (_, place) = worker.shared(&qkv)?;
            if layer + 1 == worker.config().layers {
                worker.from = worker.step.wanted.first(worker.step.ids.len());
            }
            let index = worker.board.heads;
            let out = worker.place(index);
            match worker.cache {
                Cache::F16(layers) => worker.attend(place, layers[layer], out)?,
                Cache::F32(layers) => worker.attend(place, layers[layer], out)?,
            }
            worker.release(qkv);
            Ok(Rows::Shared(index))
        })
    }

    fn activation(&mut self, x: Rows) -> Rows {
        self.attempt(|worker| {
            let (_, place) = worker.shared(&x)?;
            let apply = match worker.config().activation {
                Activation::Relu => worker.model.simd.relu,
                Activation::GeluErf => worker.model.simd.gelu_erf,
                Activation::GeluTanh => worker.model.simd.gelu_tanh,
            };
            let rows = worker.rows();
            let (mut own,) = worker.member.open((Mine(place, Cut::Columns),))?;
            for row in rows {
                apply(own.row(row));
            }
            Ok(x)
        })
    }

    fn add(&mut self, stream: Rows, branch: Rows) -> Rows {
        self.attempt(|worker| {
            let (_, to) = worker.shared(&stream)?;
            let (_, from) = worker.shared(&branch)?;
            let rows = worker.rows();
            let (mut to, mut from) =
                worker.member.open((Mine(to, Cut::Columns), Mine(from, Cut::Columns)))?;
            for row in rows {
                (worker.model.simd.add)(to.row(row), from.row(row));
            }
            worker.release(branch);
            Ok(stream)
        })
    }

    fn logits(&mut self, x: Rows, head: &Linear) -> Rows {
        self.attempt(|worker| {
            worker.project(&x, head, worker.board.logits, 0)?;
            Ok(Rows::Nowhere)
        })
    }
}

/// A projection of some rows.
struct Projection<'a> {
    simd: &'a Simd,
    /// `[outputs, inputs]`.
    weight: Tensor<'a>,
    /// The same, packed, where the model keeps it so.
    packed: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    inputs: usize,
    /// `[rows, inputs]`.
    x: &'a [f32],
    rows: usize,
    /// The row of the result that the first becomes.
    to: usize,
}

impl Projection<'_> {
    /// Outputs `first .. first + count`, each row a product of its own with the weights as stored.
    fn row_by_row(&self, first: usize, count: usize, out: &mut Part<f32>) {
        let weights = first * self.inputs..(first + count) * self.inputs;
        let start = first - out.columns().start;
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let y = &mut out.row(self.to + row)[start..][..count];
            match self.weight {
                Tensor::F32(weight) => (self.simd.gemv_f32)(&weight[weights.clone()], x, y),
                Tensor::F16(weight) => (self.simd.gemv_f16)(&weight[weights.clone()], x, y),
                Tensor::Bf16(weight) => (self.simd.gemv_bf16)(&weight[weights.clone()], x, y),
            }
            if let Some(bias) = self.bias {
                (self.simd.add)(y, &bias[first..][..count]);
            }
        }
    }

    /// The same outputs by widening their weights once for all rows. One of several threads' columns of a shared
    /// buffer are not one slice, so the product goes to a block of its own first, and is laid out from there.
    fn as_product(
        &self,
        first: usize,
        count: usize,
        out: &mut Part<f32>,
        panels: &mut [f32],
        block: &mut [f32],
    ) {
        let len = packed_len(count, self.inputs);
        let panels = match self.packed {
            // Blocks begin on whole panels.
            Some(packed) => &packed[first * self.inputs..][..len],
            None => {
                let weights = first * self.inputs..(first + count) * self.inputs;
                let panels = &mut panels[..len];
                match self.weight {
                    Tensor::F32(weight) => (self.simd.pack_f32)(&weight[weights], count, self.inputs, panels),
                    Tensor::F16(weight) => (self.simd.pack_f16)(&weight[weights], count, self.inputs, panels),
                    Tensor::Bf16(weight) => {
                        (self.simd.pack_bf16)(&weight[weights], count, self.inputs, panels)
                    }
                }
                panels
            }
        };
        let product = |c_stride: usize, c: &mut [f32]| {
            let sizes = Product {
                rows: self.rows,
                inner: self.inputs,
                columns: count,
                a_row_stride: self.inputs,
                a_inner_stride: 1,
                b: Operand::Panels,
                c_stride,
                write: Write::Set,
            };
            let bias = self.bias.map(|bias| &bias[first..][..count]);
            (self.simd.product)(&sizes, self.x, panels, bias, c);
        };
        let columns = out.columns();
        if let Some(out) = out.rest(self.to) {
            return product(columns.len(), &mut out[first..]);
        }
        let block = &mut block[..self.rows * count];
        product(count, block);
        for (row, block) in block.chunks_exact(count).enumerate() {
            out.row(self.to + row)[first - columns.start..][..count].copy_from_slice(block);
        }
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
