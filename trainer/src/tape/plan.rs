//! Lifetimes and slots: which buffer holds which activation, when.
//!
//! Time counts the forward entries and then the backward ones. An activation's value lives from the operation
//! that makes it to its last reader, its gradient from its first writer to the operation that made the value.
//! Two that never live at once, and are of one length, share a slot.

use super::{Act, Op, Step};

/// Where every activation's value and gradient live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Length of each slot.
    pub slots: Vec<usize>,
    /// The slot of each activation's value.
    pub value: Vec<usize>,
    /// The slot of each activation's gradient, if the program has a backward pass.
    pub gradient: Vec<Option<usize>>,
}

/// First and last time something is needed, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    first: usize,
    last: usize,
}

impl Life {
    fn reach(life: &mut Option<Life>, time: usize) {
        match life {
            Some(life) => life.last = life.last.max(time),
            None => *life = Some(Life { first: time, last: time }),
        }
    }
}

impl Plan {
    /// Plans a program of these operations, `again` those made again by the backward pass; `lens` has each activation's length, and `result` outlives them all.
    pub fn new(forward: &[Op], again: &[Op], backward: &[Step], lens: &[usize], result: Act) -> Plan {
        let op = |index: usize| forward.get(index).unwrap_or_else(|| &again[index - forward.len()]);
        let mut values = vec![None; lens.len()];
        let mut gradients = vec![None; lens.len()];
        for (time, op) in forward.iter().enumerate() {
            for act in op.inputs().into_iter().chain([op.out()]).flatten() {
                Life::reach(&mut values[act.index()], time);
            }
        }
        for (time, step) in (forward.len()..).zip(backward) {
            let op = match *step {
                Step::Reverse { op: index, .. } => op(index),
                Step::Again { op: index } => {
                    for act in op(index).inputs().into_iter().chain([op(index).out()]).flatten() {
                        Life::reach(&mut values[act.index()], time);
                    }
                    continue;
                }
            };
            for act in op.saved().into_iter().flatten() {
                Life::reach(&mut values[act.index()], time);
            }
            for act in op.inputs().into_iter().chain([op.out()]).flatten() {
                Life::reach(&mut gradients[act.index()], time);
            }
        }
        Life::reach(&mut values[result.index()], forward.len() + backward.len());

        let mut plan =
            Plan { slots: vec![], value: vec![usize::MAX; lens.len()], gradient: vec![None; lens.len()] };
        let mut busy_until: Vec<usize> = vec![];
        let mut wanted: Vec<(Life, usize, bool)> = values
            .iter()
            .enumerate()
            .filter_map(|(act, life)| life.map(|life| (life, act, false)))
            .chain(gradients.iter().enumerate().filter_map(|(act, life)| life.map(|life| (life, act, true))))
            .collect();
        wanted.sort_by_key(|(life, act, gradient)| (life.first, *act, *gradient));
        for (life, act, gradient) in wanted {
            let free = (0..plan.slots.len())
                .find(|&slot| plan.slots[slot] == lens[act] && busy_until[slot] < life.first);
            let slot = free.unwrap_or_else(|| {
                plan.slots.push(lens[act]);
                busy_until.push(0);
                plan.slots.len() - 1
            });
            busy_until[slot] = life.last;
            if gradient {
                plan.gradient[act] = Some(slot);
            } else {
                plan.value[act] = slot;
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use crate::mixing::Mixing;
    use crate::presets;
    use crate::tape::recompute::Recompute;
    use crate::tape::record::record;
    use crate::tape::record::tests::programs;
    use crate::tape::{Act, Mode, Op, Program, Shape, Step};
    use formats::Layout;

    #[test]
    fn no_slot_is_overwritten_while_it_is_needed() {
        programs().for_each(|program| walk(&program));
    }

    /// Walks a program writing who owns each slot, and checks the owner at each read.
    fn walk(program: &Program) {
        let mut owner: Vec<Option<(usize, bool)>> = vec![None; program.plan.slots.len()];
        let value = |act: Act| (program.plan.value[act.index()], (act.index(), false));
        let gradient = |act: Act| {
            (program.plan.gradient[act.index()].expect("training plans gradients"), (act.index(), true))
        };
        let carry_out = |op: &Op, owner: &mut Vec<Option<(usize, bool)>>| {
            for act in op.inputs().into_iter().flatten() {
                let (slot, name) = value(act);
                assert_eq!(owner[slot], Some(name), "{op:?}");
            }
            if let Some(act) = op.out() {
                let (slot, name) = value(act);
                assert!(op.inputs().iter().flatten().all(|input| value(*input).0 != slot), "{op:?}");
                owner[slot] = Some(name);
            }
        };
        program.forward.iter().for_each(|op| carry_out(op, &mut owner));
        for step in &program.backward {
            let op = match *step {
                Step::Reverse { op, .. } => program.op(op),
                Step::Again { op } => {
                    carry_out(program.op(op), &mut owner);
                    continue;
                }
            };
            let reads = op.saved().into_iter().flatten().map(value).chain(op.out().map(gradient));
            for (slot, name) in reads {
                assert_eq!(owner[slot], Some(name), "backward of {op:?}");
            }
            for act in op.inputs().into_iter().flatten() {
                let (slot, name) = gradient(act);
                assert!(
                    op.out().is_none_or(|out| gradient(out).0 != slot),
                    "{op:?} overwrites what it reads"
                );
                owner[slot] = Some(name);
            }
        }
    }

    #[test]
    fn evaluation_keeps_a_handful_of_slots() {
        let config =
            presets::find("gpt-zero").and_then(|options| options.model(65)).expect("a preset is valid");
        let layout = Layout::new(&config);
        let program = record(
            &config,
            &layout,
            Shape { sequences: 2, block: 8 },
            Mode::Evaluate,
            &Mixing::default(),
            Recompute::Nothing,
        );
        assert!(program.plan.slots.len() <= 8, "{:?}", program.plan.slots);
        assert!(program.plan.gradient.iter().all(Option::is_none));
    }
}
