//! What a device must be able to do to train: the verbs, and the buffers they work on.
//!
//! A backend's buffers are associated types, so a buffer of one device cannot be handed to another. Verbs
//! mirror the operations in [`crate::ops`], where equations, code and tests stand; a backend only forwards.
//! Called by [`crate::tape::replay`] and [`crate::learner`].

pub mod choice;
pub mod cpu;
pub mod cuda;
mod storage;

use crate::ops::activation::Hidden;
use crate::ops::adamw::Adam;
use crate::ops::attention::Heads;
use crate::ops::dropout::Mask;
use crate::ops::experts::Way;
use crate::ops::loss::Classes;
use crate::ops::query_key_norm::Stretches;
use crate::ops::route::{Disturbance, Router};
use crate::params::Params;
use crate::windows::Windows;
use formats::config::{Activation, NormKind};
use formats::layout::{Bank, Linear, Norm, ParameterId};
use formats::{Layout, Result};
pub use runtime::simd::product::Write;
pub use storage::{Held, Storage};

/// A device that can train. Work is done in the order of the calls, at the latest when something is read back; what goes
/// wrong meanwhile is said then, and by [`Backend::replayed`].
pub trait Backend: Storage {
    /// How it likes a batch to be cut.
    const LIMITS: Limits;
    /// Whether what a step left can be read at no cost.
    const AT_HAND: bool;

    /// Whether its evaluation takes [`Windows::Shared`]: the verbs that ask for windows are otherwise given whole ones only.
    const SHARES_ROWS: bool;

    /// Whether a product adds a residual stream to what it makes: [`Backend::linear_add`] is then asked for in place of
    /// [`Backend::add_norm`] where nothing is dropped.
    const ADDS_IN_PRODUCTS: bool = false;

    /// Does `work`, which calls only verbs without a result and is the same work on the same buffers whenever `phase` is
    /// the same: all that may differ is what `adam` says of the step. A device may record it and carry out the record.
    fn replayed(&self, phase: Phase, adam: Option<&Adam>, work: impl FnOnce()) -> Result<()>;
    /// Which of the processes that share every batch this is, and how many there are.
    fn ranks(&self) -> (usize, usize) {
        (0, 1)
    }
    /// Says to the other processes that this one has done all it does together with them.
    fn part(&self) {}
    /// Replaces what each process summed over its part of a batch by the sums over all of it.
    fn unite(&self, _: &mut Self::Sums) {}
    /// How many launches and copies the record of a phase is made of, if there is one.
    fn nodes(&self, _: Phase) -> Option<usize> {
        None
    }
    /// How many shards it can work on side by side.
    fn lanes(&self) -> usize;
    /// Does `work` for each shard, side by side where the device can.
    fn each<T: Send>(&self, shards: &mut [T], work: impl Fn(usize, &mut T) + Sync + Send);

    /// See [`crate::ops::embedding`].
    fn embed(
        &self,
        s: &Embed,
        windows: Windows<'_>,
        ids: &Self::Indices,
        params: &Params<Self>,
        mask: Mask,
        out: &mut Self::Values,
    );
    /// Its backward pass.
    fn embed_backward(
        &self,
        s: &Embed,
        ids: &Self::Indices,
        layout: &Layout,
        mask: Mask,
        d_out: &Self::Values,
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );

    /// See [`crate::ops::norm`]; `moments` keeps each row's mean and reciprocal deviation.
    fn norm(
        &self,
        s: &Rows,
        x: &Self::Values,
        norm: &Norm,
        params: &Params<Self>,
        out: &mut Self::Values,
        moments: &mut Self::Floats,
    );
    /// Its backward pass.
    fn norm_backward(
        &self,
        s: &Rows,
        x: &Self::Values,
        norm: &Norm,
        params: &Params<Self>,
        moments: &Self::Floats,
        d_out: &Self::Values,
        d_x: (&mut Self::Values, Write),
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );

    /// See [`crate::ops::linear`].
    fn linear(
        &self,
        rows: usize,
        x: &Self::Values,
        linear: &Linear,
        params: &Params<Self>,
        out: &mut Self::Values,
    );
    /// Its backward pass.
    fn linear_backward(
        &self,
        rows: usize,
        x: &Self::Values,
        linear: &Linear,
        params: &Params<Self>,
        d_out: &Self::Values,
        d_x: (&mut Self::Values, Write),
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );

    /// See [`crate::ops::attention`]; `kept` is what the backward pass needs.
    fn attention(
        &self,
        s: &Heads,
        windows: Windows<'_>,
        qkv: &Self::Values,
        mask: Mask,
        out: &mut Self::Values,
        kept: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );
    /// Its backward pass.
    fn attention_backward(
        &self,
        s: &Heads,
        qkv: &Self::Values,
        out: &Self::Values,
        kept: &Self::Floats,
        mask: Mask,
        d_out: &Self::Values,
        d_qkv: &mut Self::Values,
        scratch: &mut Self::Floats,
    );

    /// See [`crate::ops::query_key_norm`]; `kept` is what the backward pass needs.
    fn query_key_norm(
        &self,
        s: &Stretches,
        qkv: &Self::Values,
        norms: &[Norm; 2],
        params: &Params<Self>,
        out: &mut Self::Values,
        kept: &mut Self::Floats,
    );
    /// Its backward pass; sets the gradient.
    fn query_key_norm_backward(
        &self,
        s: &Stretches,
        qkv: &Self::Values,
        norms: &[Norm; 2],
        params: &Params<Self>,
        kept: &Self::Floats,
        d_out: &Self::Values,
        d_qkv: &mut Self::Values,
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );

    /// See [`crate::ops::rotary`]; `table` is its table, `backwards` turns the other way.
    fn rotate(
        &self,
        s: &Heads,
        table: &Self::Floats,
        backwards: bool,
        from: &Self::Values,
        to: &mut Self::Values,
    );

    /// See [`crate::ops::activation`].
    fn activation(&self, s: Hidden, x: &Self::Values, mask: Mask, out: &mut Self::Values);
    /// Its backward pass; sets the gradient. Without `d_out`, which is not for a gate, `d_x` holds that of the result.
    fn activation_backward(
        &self,
        s: Hidden,
        x: &Self::Values,
        mask: Mask,
        d_out: Option<&Self::Values>,
        d_x: &mut Self::Values,
    );

    /// Whether the next two verbs leave the bytes that is left by what they are made of, one after the other.
    fn joins_exactly(&self, _: Activation) -> bool {
        true
    }
    /// [`Backend::linear`] to `hidden`, and [`Backend::activation`] of it, which is no gate and has no mask.
    fn linear_activation(
        &self,
        rows: usize,
        x: &Self::Values,
        linear: &Linear,
        s: Hidden,
        params: &Params<Self>,
        hidden: &mut Self::Values,
        out: &mut Self::Values,
    ) {
        self.linear(rows, x, linear, params, hidden);
        self.activation(s, hidden, None, out);
    }
    /// [`Backend::linear`] to `branch`, which nobody reads, and [`Backend::add`] of it and the stream to `sum`; asked for
    /// if [`Backend::ADDS_IN_PRODUCTS`].
    fn linear_add(
        &self,
        rows: usize,
        x: &Self::Values,
        linear: &Linear,
        params: &Params<Self>,
        stream: &Self::Values,
        branch: &mut Self::Values,
        sum: &mut Self::Values,
    ) {
        self.linear(rows, x, linear, params, branch);
        self.add(rows, stream, branch, None, sum);
    }
    /// The backward pass of such an [`Backend::activation`] of `hidden` and of the [`Backend::linear`] that reads its
    /// result `x`; sets the gradient of `hidden`.
    fn activation_linear_backward(
        &self,
        rows: usize,
        s: Hidden,
        hidden: &Self::Values,
        x: &Self::Values,
        linear: &Linear,
        params: &Params<Self>,
        d_out: &Self::Values,
        d_hidden: &mut Self::Values,
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    ) {
        let d_x = (&mut *d_hidden, Write::Set);
        self.linear_backward(rows, x, linear, params, d_out, d_x, grads, scratch);
        self.activation_backward(s, hidden, None, None, d_hidden);
    }

    /// See [`crate::ops::route`].
    fn route(
        &self,
        s: &Router,
        x: &Self::Values,
        bank: &Bank,
        params: &Params<Self>,
        disturbance: &Disturbance,
        out: &mut Self::Values,
        kept: &mut Self::Floats,
        routing: &mut Self::Routing,
        scratch: &mut Self::Floats,
    );
    /// Its backward pass; `shares` and the two factors are those of [`crate::ops::route::Balance`].
    fn route_backward(
        &self,
        s: &Router,
        x: &Self::Values,
        bank: &Bank,
        params: &Params<Self>,
        disturbance: &Disturbance,
        balance: (&Self::Floats, f32, f32),
        kept: &Self::Floats,
        routing: &Self::Routing,
        d_out: &Self::Values,
        d_x: (&mut Self::Values, Write),
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );
    /// See [`crate::ops::route::load`]: of the first `rows` rows, added to `into` from `at` on.
    fn load(
        &self,
        s: &Router,
        kept: &Self::Floats,
        routing: &Self::Routing,
        rows: usize,
        into: (&mut Self::Sums, usize),
    );
    /// The shares of the choices that [`crate::ops::route::Balance`] wants, of the load that begins at `at`.
    fn shares(&self, s: &Router, load: (&Self::Sums, usize), shares: &mut Self::Floats);
    /// See [`crate::ops::route::shift`]: moves a selection bias against a load, unless `record` says that the step was not
    /// made.
    fn shift(
        &self,
        params: &mut Params<Self>,
        id: ParameterId,
        rate: f32,
        load: (&Self::Sums, usize),
        record: &Self::Sums,
    );

    /// See [`crate::ops::experts`]: rows laid out by expert. Not asked of a device that [`Storage::GATHERS`].
    fn dispatch(&self, s: &Router, routing: &Self::Routing, x: &Self::Values, out: &mut Self::Values);
    /// Its backward pass.
    fn dispatch_backward(
        &self,
        s: &Router,
        routing: &Self::Routing,
        d_out: &Self::Values,
        d_x: (&mut Self::Values, Write),
    );
    /// One affine map of each expert's rows; see [`Storage::GATHERS`] for where they stand.
    fn experts(
        &self,
        routing: &Self::Routing,
        x: &Self::Values,
        bank: &Bank,
        way: Way,
        params: &Params<Self>,
        out: &mut Self::Values,
    );
    /// Its backward pass; sets the gradient.
    fn experts_backward(
        &self,
        routing: &Self::Routing,
        x: &Self::Values,
        bank: &Bank,
        way: Way,
        params: &Params<Self>,
        d_out: &Self::Values,
        d_x: &mut Self::Values,
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );
    /// [`Backend::experts`] on the way in to `hidden`, and [`Backend::activation`] of it, which is no gate.
    fn experts_activation(
        &self,
        routing: &Self::Routing,
        x: &Self::Values,
        bank: &Bank,
        (s, mask): (Hidden, Mask),
        params: &Params<Self>,
        hidden: &mut Self::Values,
        out: &mut Self::Values,
    ) {
        self.experts(routing, x, bank, Way::In, params, hidden);
        self.activation(s, hidden, mask, out);
    }
    /// The backward pass of such an [`Backend::activation`] of `hidden` and of the [`Backend::experts`] on the way out that
    /// read its result `x`; sets the gradient of `hidden`.
    fn activation_experts_backward(
        &self,
        routing: &Self::Routing,
        (s, mask): (Hidden, Mask),
        hidden: &Self::Values,
        x: &Self::Values,
        bank: &Bank,
        params: &Params<Self>,
        d_out: &Self::Values,
        d_hidden: &mut Self::Values,
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    ) {
        self.experts_backward(routing, x, bank, Way::Out, params, d_out, d_hidden, grads, scratch);
        self.activation_backward(s, hidden, mask, None, d_hidden);
    }
    /// The weighted sum of each row's experts.
    fn combine(
        &self,
        s: &Router,
        routing: &Self::Routing,
        x: &Self::Values,
        weights: &Self::Values,
        out: &mut Self::Values,
    );
    /// Its backward pass; sets the gradients of the experts' results and of the weights.
    fn combine_backward(
        &self,
        s: &Router,
        routing: &Self::Routing,
        x: &Self::Values,
        weights: &Self::Values,
        d_out: &Self::Values,
        d_x: &mut Self::Values,
        d_weights: &mut Self::Values,
    );

    /// See [`crate::ops::add`].
    fn add(
        &self,
        rows: usize,
        stream: &Self::Values,
        branch: &Self::Values,
        mask: Mask,
        out: &mut Self::Values,
    );
    /// [`Backend::add`] to `sum`, and [`Backend::norm`] of it.
    fn add_norm(
        &self,
        s: &Rows,
        stream: &Self::Values,
        branch: &Self::Values,
        mask: Mask,
        norm: &Norm,
        params: &Params<Self>,
        sum: &mut Self::Values,
        out: &mut Self::Values,
        moments: &mut Self::Floats,
    ) {
        self.add(s.rows, stream, branch, mask, sum);
        self.norm(s, sum, norm, params, out, moments);
    }
    /// The gradient of the branch, or of the stream, which has no mask.
    fn add_backward(&self, rows: usize, d_out: &Self::Values, mask: Mask, d: (&mut Self::Values, Write));

    /// See [`crate::ops::loss`]: each row's cross-entropy.
    fn loss(
        &self,
        s: &Classes,
        windows: Windows<'_>,
        x: &Self::Values,
        head: &Linear,
        params: &Params<Self>,
        targets: &Self::Indices,
        losses: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );
    /// Each row's cross-entropy and, scaled, the gradients of the head and of its input, in one pass.
    fn loss_and_gradient(
        &self,
        s: &Classes,
        scale: f32,
        x: &Self::Values,
        head: &Linear,
        params: &Params<Self>,
        targets: &Self::Indices,
        losses: &mut Self::Floats,
        d_x: (&mut Self::Values, Write),
        grads: &mut Self::Floats,
        scratch: &mut Self::Floats,
    );

    /// Adds the losses of the first `rows` rows to the first of `into`.
    fn total(&self, losses: &Self::Floats, rows: usize, into: &mut Self::Sums);
    /// Adds sums to sums.
    fn tally(&self, from: &Self::Sums, into: &mut Self::Sums);
    /// Sets sums to zero.
    fn clear(&self, sums: &mut Self::Sums);

    /// Adds the shards' gradients, in order, into the first's and zeroes the others; and those of all processes that share
    /// the batch. The squared norm is the first of `squared`.
    fn gather<T: Send>(
        &self,
        shards: &mut [T],
        grads: impl Fn(&mut T) -> &mut Self::Floats + Sync,
        squared: &mut Self::Sums,
    );
    /// See [`crate::ops::adamw`]: one update of every parameter, if `seen` allows it; zeroes the gradient and remakes the
    /// working form.
    fn adamw(
        &self,
        adam: &Adam,
        seen: Seen<'_, Self>,
        params: &mut Params<Self>,
        first: &mut Self::Floats,
        second: &mut Self::Floats,
        grads: &mut Self::Floats,
    );
    /// Remakes the working form from the master weights.
    fn refresh(&self, params: &mut Params<Self>);
}

/// How a device likes a batch to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most shards of a batch.
    pub shards: usize,
    /// Most rows a shard computes at once, unless one window is longer.
    pub pass_rows: usize,
    /// Rows of one evaluation pass, unless one window is longer.
    pub evaluation_rows: usize,
}

/// Names work that is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A pass of a training step, over every shard.
    Train {
        /// The noise's seed.
        seed: u64,
        /// Number of the pass in its step; passes that differ in nothing have one.
        pass: usize,
        /// Passes of a step.
        passes: usize,
        /// Whether the update follows.
        last: bool,
    },
    /// A pass of an evaluation.
    Evaluate {
        /// Rows of the pass.
        rows: usize,
        /// How many of them count.
        counted: usize,
    },
}

/// What an update is judged by, and where the judgement goes.
pub struct Seen<'a, B: Backend> {
    /// Rows of the step.
    pub rows: usize,
    /// The sum of their losses.
    pub loss: &'a B::Sums,
    /// The gradient's squared norm.
    pub squared: &'a B::Sums,
    /// See [`crate::ops::adamw::judge`].
    pub record: &'a mut B::Sums,
}

/// The shape of an embedding: rows and how they fall into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embed {
    /// Rows in all.
    pub rows: usize,
    /// Rows of one window; a row's place is its number modulo this.
    pub block: usize,
    /// Width of a row.
    pub width: usize,
}

/// The shape of a row-wise operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
    /// Which norm.
    pub kind: NormKind,
}
