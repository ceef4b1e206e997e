//! Where a parameter's values, its gradient and its packed form are: parts of the arenas, as operations read them.

use super::{Cpu, STRETCH};
use crate::ops::loss::Head;
use crate::ops::route::Weights;
use crate::params::Params;
use formats::Layout;
use formats::layout::{Bank, Linear, ParameterId};
use runtime::simd::PANEL;

/// A parameter's values.
pub(super) fn part(params: &Params<Cpu>, id: ParameterId) -> &[f32] {
    &params.master[params.layout.parameter(id).range()]
}

/// A map's matrix as its product reads it, and its bias.
pub(super) fn weights<'a>(params: &'a Params<Cpu>, linear: &Linear) -> (&'a [f32], Option<&'a [f32]>) {
    (&params.working[linear.weight.index()], linear.bias.map(|bias| part(params, bias)))
}

/// A parameter's gradient.
pub(super) fn grad<'a>(layout: &Layout, grads: &'a mut [f32], id: ParameterId) -> &'a mut [f32] {
    &mut grads[layout.parameter(id).range()]
}

/// The gradients of two parameters at once; the first stands before the second in the arena.
pub(super) fn grad_pair<'a>(
    layout: &Layout,
    grads: &'a mut [f32],
    first: ParameterId,
    second: Option<ParameterId>,
) -> (&'a mut [f32], Option<&'a mut [f32]>) {
    let Some(second) = second else { return (grad(layout, grads, first), None) };
    let (low, high) = (layout.parameter(first).range(), layout.parameter(second).range());
    let (left, right) = grads.split_at_mut(high.start);
    (&mut left[low], Some(&mut right[..high.len()]))
}

/// Rows of a parameter that are updated and packed in one go: whole panels of about [`STRETCH`] values.
pub(super) fn piece_rows(columns: usize) -> usize {
    (STRETCH / columns / PANEL).max(1) * PANEL
}

/// The first `len` values, which `rest` then begins after.
pub(super) fn split_off<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (part, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    part
}

/// A router's parameters.
pub(super) fn router_of<'a>(params: &'a Params<Cpu>, bank: &Bank) -> Weights<'a> {
    let packed = |id: ParameterId| &params.working[id.index()][..];
    Weights {
        panels: packed(bank.router.weight),
        router: part(params, bank.router.weight),
        selection_bias: bank.selection_bias.map(|id| part(params, id)),
        noise: bank.noise.map(|id| (part(params, id), packed(id))),
    }
}

/// The head as the loss reads it.
pub(super) fn head_of<'a>(params: &'a Params<Cpu>, head: &'a Linear) -> Head<'a> {
    Head {
        linear: head,
        panels: &params.working[head.weight.index()],
        weight: part(params, head.weight),
        bias: head.bias.map(|bias| part(params, bias)),
    }
}
