//! The backward pass as a list: every operation reversed, last first, and before a layer whose activations were not
//! kept, those of its operations that are carried out again.
//!
//! What is made again is an activation of its own, so that a plan sees two short lives instead of a long one. Operations
//! made again read what they read before and draw the same noise, so that every byte is the same. What a router chose
//! is kept.

use super::{Act, Op, Step};
use crate::backend::Write;
use formats::Layout;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which activations a training program keeps for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// All of them.
    #[default]
    Nothing,
    /// The inputs of layers, and the last layer's own: every other layer is computed a second time (Chen et al. 2016).
    Layers,
}

/// A backward pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Backward {
    /// The operations of layers that are computed again, over activations of their own; numbered after the forward ones.
    pub again: Vec<Op>,
    /// The pass.
    pub steps: Vec<Step>,
}

/// The pass that reverses `ops`; `widths` gains the activations that are made again.
pub(super) fn backward(
    ops: &[Op],
    layout: &Layout,
    recompute: Recompute,
    widths: &mut Vec<usize>,
) -> Backward {
    let layers = match recompute {
        Recompute::Nothing => vec![],
        Recompute::Layers => layers(ops, layout),
    };
    let mut backward = Backward::default();
    // The operation that is reversed in the place of each.
    let mut reversed: Vec<usize> = (0..ops.len()).collect();
    let mut before: Vec<Vec<Step>> = vec![vec![]; ops.len()];
    for layer in layers {
        let made = made_again(ops, layer.clone());
        let first = widths.len() as u32;
        let twin = |act: Act| {
            made.iter().position(|made| *made == act).map_or(act, |index| Act(first + index as u32))
        };
        widths.extend(made.iter().map(|act| widths[act.index()]).collect::<Vec<_>>());
        let needed = needed(&ops[layer.clone()], &made);
        for index in layer.clone() {
            reversed[index] = ops.len() + backward.again.len();
            if ops[index].out().is_some_and(|out| needed.contains(&out)) {
                before[layer.end - 1].push(Step::Again { op: reversed[index] });
            }
            backward.again.push(ops[index].over(twin));
        }
    }
    let mut written = vec![false; widths.len()];
    let mut first_write = |input: Option<Act>| match input {
        Some(act) if !std::mem::replace(&mut written[act.index()], true) => Write::Set,
        _ => Write::Accumulate,
    };
    for (index, again) in before.into_iter().enumerate().rev() {
        backward.steps.extend(again);
        let op = reversed[index];
        let inputs = if op < ops.len() { ops[op] } else { backward.again[op - ops.len()] }.inputs();
        backward.steps.push(Step::Reverse { op, writes: inputs.map(&mut first_write) });
    }
    backward
}

/// The operations of each layer but the last, which is reversed as soon as it is made.
fn layers(ops: &[Op], layout: &Layout) -> Vec<Range<usize>> {
    let begins = layout.layers.iter().filter_map(|layer| {
        ops.iter().position(|op| match op {
            Op::Norm { norm, .. } => *norm == layer.attention_norm,
            Op::Linear { linear, .. } => *linear == layer.qkv,
            _ => false,
        })
    });
    let begins: Vec<usize> = begins.collect();
    begins.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// The activations of a layer that are not kept: all but its result, and its router's weights.
fn made_again(ops: &[Op], layer: Range<usize>) -> Vec<Act> {
    let read_later = |act: Act| ops[layer.end..].iter().any(|op| op.inputs().contains(&Some(act)));
    let chosen = |op: &Op| matches!(op, Op::Route { .. });
    let made = ops[layer.clone()].iter().filter(|op| !chosen(op)).filter_map(Op::out);
    made.filter(|act| !read_later(*act)).collect()
}

/// Those of `made` whose values the backward pass reads, and those they are made from.
fn needed(ops: &[Op], made: &[Act]) -> Vec<Act> {
    let mut needed: Vec<Act> = vec![];
    let need = |needed: &mut Vec<Act>, acts: [Option<Act>; 2]| {
        needed.extend(acts.into_iter().flatten().filter(|act| made.contains(act)));
    };
    ops.iter().for_each(|op| need(&mut needed, op.saved()));
    for op in ops.iter().rev() {
        if op.out().is_some_and(|out| needed.contains(&out)) {
            need(&mut needed, op.inputs());
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixing::Mixing;
    use crate::presets;
    use crate::tape::record::record;
    use crate::tape::{Mode, Program, Shape};

    fn program(preset: &str, layers: usize, recompute: Recompute) -> Program {
        let options = presets::find(preset).expect("a preset");
        let options = crate::options::Options { layers, ..options };
        let config = options.model(65).expect("a valid preset");
        let (layout, shape) = (Layout::new(&config), Shape { sequences: 2, block: 8 });
        record(&config, &layout, shape, Mode::Train, &Mixing::default(), recompute, false)
    }

    #[test]
    fn a_deeper_model_costs_one_more_input_a_layer() {
        for preset in ["gpt-zero", "moe-nano", "gpt1"] {
            let slots =
                |layers, recompute| -> usize { program(preset, layers, recompute).plan.slots.iter().sum() };
            let width = presets::find(preset).expect("a preset").width;
            // A router's weights are kept too, two a row.
            let most = 16 * (width + 2);
            let grown = slots(9, Recompute::Layers) - slots(5, Recompute::Layers);
            assert!(grown <= 4 * most, "{preset}: {grown} for four layers");
            assert!(slots(9, Recompute::Nothing) - slots(5, Recompute::Nothing) > 4 * 4 * most);
        }
    }

    #[test]
    fn nothing_is_chosen_again_and_no_layer_is_left_out() {
        let program = program("moe-nano", 4, Recompute::Layers);
        let again = program.backward.iter().filter_map(|step| match step {
            Step::Again { op } => Some(*program.op(*op)),
            Step::Reverse { .. } => None,
        });
        let again: Vec<Op> = again.collect();
        assert!(again.iter().all(|op| !matches!(op, Op::Route { .. } | Op::Loss { .. })));
        assert_eq!(again.iter().filter(|op| matches!(op, Op::Attention { .. })).count(), 3);
        let reversed = program.backward.iter().filter(|step| matches!(step, Step::Reverse { .. })).count();
        assert_eq!(reversed, program.forward.len());
    }
}
