//! Where a parameter's values and its gradient are on a device, and what its operations need to work in.

use super::Cuda;
use crate::device::{Buffer, Device, Precision, View, ViewMut};
use crate::ops::adamw::cuda::Decays;
use crate::ops::experts::Way;
use crate::ops::experts::cuda::Maps;
use crate::ops::linear::cuda::{Bias, Shape};
use crate::ops::loss::cuda::Head;
use crate::ops::route::cuda::Weights;
use crate::ops::{attention, embedding, linear, loss, norm, query_key_norm};
use crate::params::Params;
use crate::tape::record::{classes, embed, heads, stretches};
use crate::tape::{Op, Program};
use formats::layout::{Bank, Linear, ParameterId};
use formats::{Layout, Result};

/// The weights as products read them.
pub struct Working {
    /// Every weight in the working precision, in the layout's order; empty where that is f32.
    twin: Buffer,
    /// Which weights decay.
    decays: Decays,
}

impl Working {
    pub(super) fn new(device: &Device, layout: &Layout) -> Result<Working> {
        let twin = match device.precision() {
            Precision::Bf16 => device.values(layout.parameters())?,
            Precision::F32 => Buffer::default(),
        };
        Ok(Working { twin, decays: Decays::new(device, layout)? })
    }

    /// The weights in the working precision, unless they are the master's, and which of them decay.
    pub(super) fn parts(&mut self) -> (Option<ViewMut<'_>>, &Decays) {
        ((!self.twin.is_empty()).then(|| self.twin.view_mut()), &self.decays)
    }
}

/// All weights as products read them.
fn working(params: &Params<Cuda>) -> View<'_> {
    if params.working.twin.is_empty() { params.master.view() } else { params.working.twin.view() }
}

/// A parameter as products read it.
pub(super) fn weight(params: &Params<Cuda>, id: ParameterId) -> View<'_> {
    working(params).part(params.layout.parameter(id).range())
}

/// A parameter's master values.
pub(super) fn part(params: &Params<Cuda>, id: ParameterId) -> View<'_> {
    params.master.part(params.layout.parameter(id).range())
}

/// The gradients of two parameters at once; the first stands before the second in the arena.
pub(super) fn grad_pair<'a>(
    layout: &Layout,
    grads: &'a mut Buffer,
    first: ParameterId,
    second: Option<ParameterId>,
) -> (ViewMut<'a>, Option<ViewMut<'a>>) {
    let range = |id| layout.parameter(id).range();
    let Some(second) = second else { return (grads.part_mut(range(first)), None) };
    let [first, second] = grads.parts_mut([range(first), range(second)]);
    (first, Some(second))
}

/// An affine map's matrix and bias as products read them.
pub(super) fn map_of<'a>(params: &'a Params<Cuda>, map: &Linear) -> (View<'a>, Option<Bias<'a>>) {
    let bias = |id| Bias { floats: part(params, id), values: Some(weight(params, id)) };
    (weight(params, map.weight), map.bias.map(bias))
}

/// A router's parameters.
pub(super) fn router_of<'a>(params: &'a Params<Cuda>, bank: &Bank) -> Weights<'a> {
    Weights {
        router: part(params, bank.router.weight),
        selection_bias: bank.selection_bias.map(|id| part(params, id)),
        noise: bank.noise.map(|id| part(params, id)),
    }
}

/// Where the experts' maps are, and the weights they are in.
pub(super) fn maps_of<'a>(params: &'a Params<Cuda>, bank: &Bank, way: Way) -> (Maps, View<'a>) {
    (Maps::new(&params.layout, bank, way), working(params))
}

/// The head as the loss reads it.
pub(super) fn head_of<'a>(params: &'a Params<Cuda>, head: &Linear) -> Head<'a> {
    Head { weight: weight(params, head.weight), bias: head.bias.map(|bias| part(params, bias)) }
}

/// Floats that an operation's forward pass works in.
pub(super) fn forward_scratch(cuda: &Cuda, program: &Program, op: &Op) -> usize {
    let Program { config, shape, .. } = program;
    match *op {
        Op::Route { router, .. } => program.routers[router].scratch(),
        Op::Loss { .. } => loss::cuda::scratch(cuda.device.precision(), &classes(config, *shape)),
        Op::Embed { .. }
        | Op::Norm { .. }
        | Op::Linear { .. }
        | Op::Attention { .. }
        | Op::QueryKeyNorm { .. }
        | Op::Rotate { .. }
        | Op::Activation { .. }
        | Op::Dispatch { .. }
        | Op::Experts { .. }
        | Op::Combine { .. }
        | Op::Add { .. } => 0,
    }
}

/// Floats that its backward pass works in.
pub(super) fn backward_scratch(cuda: &Cuda, program: &Program, op: &Op) -> usize {
    let Program { config, shape, .. } = program;
    match *op {
        Op::Embed { .. } => embedding::cuda::backward_scratch(&embed(config, *shape)),
        Op::Norm { x, .. } => norm::cuda::backward_scratch(shape.rows(), program.width(x)),
        Op::Linear { linear, .. } => linear::cuda::scratch(&Shape::of(&linear, shape.rows())),
        Op::Attention { .. } => attention::cuda::scratch(&heads(config, *shape)),
        Op::QueryKeyNorm { .. } => query_key_norm::cuda::backward_scratch(&stretches(config, *shape)),
        Op::Route { .. } | Op::Loss { .. } => forward_scratch(cuda, program, op),
        Op::Rotate { .. }
        | Op::Activation { .. }
        | Op::Dispatch { .. }
        | Op::Experts { .. }
        | Op::Combine { .. }
        | Op::Add { .. } => 0,
    }
}
