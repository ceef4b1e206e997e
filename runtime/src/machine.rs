//! One thread of a session at work: [`forward`] walked by every member of the team, side by side.
//!
//! A projection deals its output columns, a norm of many rows its rows, attention its heads or its rows; what is
//! done element by element is done in place, on the columns the member wrote before. A number is computed by one
//! member, by the same instructions whichever member that is, so the thread count changes no bit.
//!
//! With few rows every member computes a norm for itself, which is cheaper than waiting for each other. Rows that
//! nobody will read (all but the last of a prompt) are dropped once the last layer has stored their keys and values.

use crate::attention::Attention;
use crate::cache::Cache;
use crate::linear::Projection;
use crate::model::Shared;
use crate::plan::Plan;
use crate::team::{Cut, MAX_ROWS, Member, Mine, Place, Whole};
use formats::Result;
use formats::architecture::{Machine, forward};
use formats::checkpoint::Tensor;
use formats::config::Activation;
use formats::layout::{Layout, Linear, Norm};
use std::ops::Range;

/// Up to this many rows are computed as vectors, one after the other.
pub(crate) const FEW: usize = 4;

/// The cut of a slot that has one row for each member.
const OWN: Cut = Cut::Rows { rows: MAX_ROWS };

/// One pass over a few ids: everything its workers share but the numbers.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// The model.
    pub(crate) model: &'a Shared,
    /// Which slot each verb writes.
    pub(crate) plan: &'a Plan,
    /// Where keys and values are.
    pub(crate) cache: &'a Cache,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
    /// The ids, all below the vocabulary.
    pub(crate) ids: &'a [u32],
    /// Position of the first.
    pub(crate) first: usize,
    /// Logits are wanted from this row on; none if it is the number of ids.
    pub(crate) wanted: usize,
}

impl Pass<'_> {
    /// What each member of the team does: afterwards the logits wanted stand in [`Plan::logits`], from row 0 on.
    pub(crate) fn work(&self, member: &mut Member<'_>) -> Result<()> {
        let mut worker = Worker { pass: self, member, step: 0, outcome: Ok(()) };
        forward(&mut worker, &self.model.layout);
        worker.outcome
    }
}

/// A handle to rows `first..` of a slot.
#[derive(Clone, Copy)]
struct Rows {
    place: Place<f32>,
    first: usize,
    /// Whether each member holds the rows for itself, in [`Plan::normed`], and not in `place`.
    own: bool,
}

/// One member of the team, walking [`forward`].
struct Worker<'a, 'm> {
    pass: &'a Pass<'a>,
    member: &'a mut Member<'m>,
    /// How many of the plan's outputs are taken.
    step: usize,
    /// After the first error the remaining verbs do nothing.
    outcome: Result<()>,
}

impl Worker<'_, '_> {
    fn attempt(&mut self, verb: impl FnOnce(&mut Self) -> Result<()>) {
        if self.outcome.is_ok() {
            self.outcome = verb(self);
        }
    }

    /// The slot that the plan has for the next result.
    fn output(&mut self) -> Place<f32> {
        let place = self.pass.plan.outputs[self.step];
        self.step += 1;
        place
    }

    fn rows(&self) -> usize {
        self.pass.ids.len()
    }

    fn embed_into(&mut self, out: Place<f32>, layout: &Layout) -> Result<()> {
        let (pass, model) = (self.pass, self.pass.model);
        let width = model.config.width;
        let tokens = model.weights.tensor(layout.token_embedding);
        let positions = model.weights.tensor(layout.position_embedding);
        let (mut out, mut spare) =
            self.member.open((Mine(out, Cut::Columns), Mine(pass.plan.normed, OWN)))?;
        let columns = out.columns();
        let spare = &mut spare.own()[..columns.len()];
        for (row, id) in pass.ids.iter().enumerate() {
            let columns_of = |row: usize| row * width + columns.start..row * width + columns.end;
            let out = out.row(row);
            widen(model, tokens, columns_of(*id as usize), out);
            widen(model, positions, columns_of(pass.first + row), spare);
            (model.simd.add)(out, spare);
        }
        Ok(())
    }

    fn norm_into(&mut self, x: Rows, norm: &Norm, out: Rows) -> Result<()> {
        let (rows, pass, model) = (self.rows(), self.pass, self.pass.model);
        let width = model.config.width;
        let gain = model.prepared.vector(norm.gain);
        let bias = norm.bias.map(|bias| model.prepared.vector(bias));
        let normalise = |x: &[f32], row: usize, out: &mut [f32]| {
            (model.simd.layer_norm)(&x[row * width..][..width], gain, bias, model.config.norm_eps, out);
        };
        if out.own {
            let (x, mut normed) = self.member.open((Whole(x.place), Mine(pass.plan.normed, OWN)))?;
            for (row, out) in (out.first..rows).zip(normed.own().chunks_exact_mut(width)) {
                normalise(x, row, out);
            }
        } else {
            let (x, mut normed) = self.member.open((Whole(x.place), Mine(out.place, Cut::Rows { rows })))?;
            for row in normed.rows() {
                normalise(x, row, normed.row(row));
            }
        }
        Ok(())
    }

    /// Row `x.first` of the result becomes row `to` of `out`.
    fn project(&mut self, x: Rows, linear: &Linear, out: Place<f32>, to: usize) -> Result<()> {
        let (rows, pass, model) = (self.rows(), self.pass, self.pass.model);
        let projection = Projection {
            simd: model.simd,
            weight: model.weights.tensor(linear.weight),
            panels: model.prepared.panels(linear.weight),
            bias: linear.bias.map(|bias| model.prepared.vector(bias)),
            inputs: linear.inputs,
            rows: rows - x.first,
        };
        let scratch = (Mine(pass.plan.panels, OWN), Mine(pass.plan.block, OWN));
        if x.own {
            let views = (Mine(pass.plan.normed, OWN), Mine(out, Cut::Columns), scratch.0, scratch.1);
            let (mut x, mut out, mut panels, mut block) = self.member.open(views)?;
            projection.apply(x.own(), &mut out, to, panels.own(), block.own());
        } else {
            let views = (Whole(x.place), Mine(out, Cut::Columns), scratch.0, scratch.1);
            let (input, mut out, mut panels, mut block) = self.member.open(views)?;
            let input = &input[x.first * linear.inputs..];
            projection.apply(input, &mut out, to, panels.own(), block.own());
        }
        Ok(())
    }

    fn attend(&mut self, qkv: Rows, layer: usize, out: Rows) -> Result<()> {
        let (pass, config) = (self.pass, &self.pass.model.config);
        let attention = Attention {
            simd: pass.model.simd,
            rows: self.rows(),
            first: pass.first,
            wanted: out.first,
            heads: config.heads,
            head_size: config.head_size(),
            capacity: pass.capacity,
            scale: config.score_scale(),
            scores: (pass.plan.scores, OWN),
        };
        match pass.cache {
            Cache::F16(layers) => attention.run(self.member, qkv.place, layers[layer], out.place),
            Cache::F32(layers) => attention.run(self.member, qkv.place, layers[layer], out.place),
        }
    }
}

impl Machine for Worker<'_, '_> {
    type Rows = Rows;

    fn embed(&mut self, layout: &Layout) -> Rows {
        let place = self.output();
        self.attempt(|worker| worker.embed_into(place, layout));
        Rows { place, first: 0, own: false }
    }

    fn norm(&mut self, x: &Rows, norm: &Norm) -> Rows {
        let out = Rows { place: self.output(), first: x.first, own: self.rows() - x.first <= FEW };
        self.attempt(|worker| worker.norm_into(*x, norm, out));
        out
    }

    fn linear(&mut self, x: Rows, linear: &Linear) -> Rows {
        let out = Rows { place: self.output(), first: x.first, own: false };
        self.attempt(|worker| worker.project(x, linear, out.place, out.first));
        out
    }

    fn attention(&mut self, qkv: Rows, layer: usize) -> Rows {
        let last = layer + 1 == self.pass.model.config.layers;
        let out = Rows { place: self.output(), first: if last { self.pass.wanted } else { 0 }, own: false };
        self.attempt(|worker| worker.attend(qkv, layer, out));
        out
    }

    fn activation(&mut self, x: Rows) -> Rows {
        self.attempt(|worker| {
            let activate = match worker.pass.model.config.activation {
                Activation::Relu => worker.pass.model.simd.relu,
                Activation::GeluErf => worker.pass.model.simd.gelu_erf,
                Activation::GeluTanh => worker.pass.model.simd.gelu_tanh,
            };
            let rows = x.first..worker.rows();
            let (mut x,) = worker.member.open((Mine(x.place, Cut::Columns),))?;
            rows.for_each(|row| activate(x.row(row)));
            Ok(())
        });
        x
    }

    fn add(&mut self, stream: Rows, branch: Rows) -> Rows {
        self.attempt(|worker| {
            let rows = branch.first..worker.rows();
            let views = (Mine(stream.place, Cut::Columns), Mine(branch.place, Cut::Columns));
            let (mut stream, mut branch) = worker.member.open(views)?;
            rows.for_each(|row| (worker.pass.model.simd.add)(stream.row(row), branch.row(row)));
            Ok(())
        });
        // Rows that the branch has dropped are of no further use in the stream either.
        Rows { first: branch.first, ..stream }
    }

    fn logits(&mut self, x: Rows, head: &Linear) -> Rows {
        let place = self.pass.plan.logits;
        self.attempt(|worker| worker.project(x, head, place, 0));
        Rows { place, first: 0, own: false }
    }
}

/// Some of a tensor's numbers as f32.
fn widen(model: &Shared, tensor: Tensor<'_>, range: Range<usize>, out: &mut [f32]) {
    match tensor {
        Tensor::F32(values) => out.copy_from_slice(&values[range]),
        Tensor::F16(values) => (model.simd.widen_f16)(&values[range], out),
        Tensor::Bf16(values) => (model.simd.widen_bf16)(&values[range], out),
    }
}
