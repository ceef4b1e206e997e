//! What a device must be able to do to train: the verbs, and the buffers they work on.
//!
//! A backend's buffers are associated types, so a buffer of one device cannot be handed to another. Verbs
//! mirror the operations in [`crate::ops`], where equations, code and tests stand; a backend only forwards.
//! Called by [`crate::tape::replay`] and [`crate::learner`].

pub mod cpu;

use crate::ops::activation::Hidden;
use crate::ops::adamw::Adam;
use crate::ops::attention::Heads;
use crate::ops::dropout::Mask;
use crate::ops::experts::Way;
use crate::ops::loss::Classes;
use crate::ops::query_key_norm::Stretches;
use crate::ops::route::{Disturbance, Router};
use crate::params::Params;
use formats::config::NormKind;
use formats::layout::{Bank, Linear, Norm, ParameterId};
use formats::{Layout, Result};
pub use runtime::simd::product::Write;

/// A device that can train.
pub trait Backend: Sync + Sized {
    /// Activations, in the device's working precision.
    type Values: Send + Sync;
    /// Statistics, gradients of parameters, moments and master weights: always f32.
    type Floats: Send + Sync;
    /// Token ids.
    type Indices: Send + Sync;
    /// The weights in the form the products read, remade after each update.
    type Working: Send + Sync;
    /// Which rows go to which expert, decided and read on the device.
    type Routing: Send + Sync;

    /// `len` activations, zero.
    fn values(&self, len: usize) -> Result<Self::Values>;
    /// `len` f32 values, zero.
    fn floats(&self, len: usize) -> Result<Self::Floats>;
    /// `len` ids, zero.
    fn indices(&self, len: usize) -> Result<Self::Indices>;
    /// Room for a router's choices.
    fn routing(&self, s: &Router) -> Result<Self::Routing>;
    /// The working form of a model's weights, not yet made.
    fn working(&self, layout: &Layout) -> Result<Self::Working>;

    /// Host to device.
    fn upload(&self, from: &[f32], to: &mut Self::Floats);
    /// Device to host.
    fn download(&self, from: &Self::Floats, to: &mut [f32]);
    /// Activations to the device, rounded to nearest even where they are kept narrower.
    fn upload_values(&self, from: &[f32], to: &mut Self::Values);
    /// Activations to the host, widened.
    fn download_values(&self, from: &Self::Values, to: &mut [f32]);
    /// Ids to the device.
    fn upload_indices(&self, from: &[u32], to: &mut Self::Indices);
    /// How many shards it can work on side by side.
    fn lanes(&self) -> usize;
    /// Does `work` for each shard, side by side where the device can.
    fn each<T: Send>(&self, shards: &mut [T], work: impl Fn(usize, &mut T) + Sync + Send);

    /// See [`crate::ops::embedding`].
    fn embed(
        &self,
        s: &Embed,
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
    );

    /// See [`crate::ops::attention`]; `kept` is what the backward pass needs.
    fn attention(
        &self,
        s: &Heads,
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
    /// Its backward pass; sets the gradient.
    fn activation_backward(
        &self,
        s: Hidden,
        x: &Self::Values,
        mask: Mask,
        d_out: &Self::Values,
        d_x: &mut Self::Values,
    );

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
    /// See [`crate::ops::route::load`]: of the first `rows` rows, added to `into`.
    fn load(&self, s: &Router, kept: &Self::Floats, routing: &Self::Routing, rows: usize, into: &mut [f64]);

    /// See [`crate::ops::experts`]: rows laid out by expert.
    fn dispatch(&self, s: &Router, routing: &Self::Routing, x: &Self::Values, out: &mut Self::Values);
    /// Its backward pass.
    fn dispatch_backward(
        &self,
        s: &Router,
        routing: &Self::Routing,
        d_out: &Self::Values,
        d_x: (&mut Self::Values, Write),
    );
    /// One affine map of each expert's rows.
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
    );
    /// The weighted sum of each row's experts.
    fn combine(
        &self,
        s: &Router,
        routing: &Self::Routing,
        x: &Self::Values,
        weights: &Self::Values,
        out: &mut Self::Values,
    );
    /// The gradient of the experts' results; sets it.
    fn combine_backward_experts(
        &self,
        s: &Router,
        routing: &Self::Routing,
        weights: &Self::Values,
        d_out: &Self::Values,
        d_x: &mut Self::Values,
    );
    /// The gradient of the weights; sets it.
    fn combine_backward_weights(
        &self,
        s: &Router,
        routing: &Self::Routing,
        x: &Self::Values,
        d_out: &Self::Values,
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
    /// The gradient of the stream: `d_out` itself.
    fn add_backward_stream(&self, rows: usize, d_out: &Self::Values, d_stream: (&mut Self::Values, Write));
    /// The gradient of the branch: `d_out` through the mask.
    fn add_backward_branch(
        &self,
        rows: usize,
        d_out: &Self::Values,
        mask: Mask,
        d_branch: (&mut Self::Values, Write),
    );

    /// See [`crate::ops::loss`]: each row's cross-entropy.
    fn loss(
        &self,
        s: &Classes,
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

    /// Adds the shards' gradients, in order, into the first's and zeroes the others; returns the squared norm.
    fn gather<T: Send>(&self, shards: &mut [T], grads: impl Fn(&mut T) -> &mut Self::Floats + Sync) -> f64;
    /// See [`crate::ops::adamw`]: one update of every parameter; zeroes the gradient and remakes the working form.
    fn adamw(
        &self,
        adam: &Adam,
        params: &mut Params<Self>,
        first: &mut Self::Floats,
        second: &mut Self::Floats,
        grads: &mut Self::Floats,
    );
    /// Adds to the values of one parameter that no gradient reaches.
    fn nudge(&self, params: &mut Params<Self>, id: ParameterId, by: &[f32]);
    /// Sets the gradient to zero.
    fn clear(&self, grads: &mut Self::Floats);
    /// Remakes the working form from the master weights.
    fn refresh(&self, params: &mut Params<Self>);
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
