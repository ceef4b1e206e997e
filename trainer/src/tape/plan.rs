//! Lifetimes and slots: which buffer holds which activation, when.
//!
//! Time counts the forward entries and then the backward ones. An activation's value lives from the operation
//! that makes it to its last reader, its gradient from its first writer to the operation that made the value.
//! Two that never live at once, and are of one length, share a slot. So do gradients that are equal: what a residual
//! connection hands on to its stream, and where nothing is dropped to its branch, stays where it stands. A nonlinearity
//! that goes value by value is reversed where the gradient of its result stands. And where a device's experts find rows
//! wherever they are, what would be laid out for them is their input itself.

use super::{Act, Op, Step};
use crate::backend::Write;

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
    /// Plans a program of these operations, `again` those made again by the backward pass; `lens` has each activation's
    /// length, `result` outlives them all, `drops` says whether residual branches may have a mask, and `gathers` whether
    /// experts find their rows.
    pub fn new(
        forward: &[Op],
        again: &[Op],
        backward: &[Step],
        lens: &[usize],
        result: Act,
        drops: bool,
        gathers: bool,
    ) -> Plan {
        let op = |index: usize| forward.get(index).unwrap_or_else(|| &again[index - forward.len()]);
        let mut values = vec![None; lens.len()];
        let mut gradients = vec![None; lens.len()];
        let carry_out = |values: &mut [Option<Life>], time, op: &Op, next: Option<&Op>| {
            // Of two that are carried out as one, what the first reads is there until the second has written.
            let last = time + usize::from(next.is_some_and(|next| next.follows(op)));
            for act in op.inputs().into_iter().flatten() {
                Life::reach(&mut values[act.index()], last);
            }
            if let Some(act) = op.out() {
                Life::reach(&mut values[act.index()], time);
            }
        };
        for (time, op) in forward.iter().enumerate() {
            carry_out(&mut values, time, op, forward.get(time + 1));
        }
        for (number, step) in backward.iter().enumerate() {
            let time = forward.len() + number;
            let op = match *step {
                Step::Reverse { op: index, .. } => op(index),
                Step::Again { op: index } => {
                    let next = match backward.get(number + 1) {
                        Some(&Step::Again { op: index }) => Some(op(index)),
                        _ => None,
                    };
                    carry_out(&mut values, time, op(index), next);
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

        // What stands for an input that is not laid out lives until its last reader.
        let laid_out = forward.iter().chain(again).filter_map(|op| match *op {
            Op::Dispatch { x, out, .. } if gathers => Some((x.index(), out.index())),
            _ => None,
        });
        for (x, out) in laid_out.clone() {
            if let Some(life) = values[out].take() {
                Life::reach(&mut values[x], life.last);
            }
        }

        // Whose place each gradient takes, and how long it is taken.
        let taken = taken_over(&op, backward, lens.len(), drops);
        let holder = |mut act: usize| {
            while let Some(before) = taken[act] {
                act = before;
            }
            act
        };
        for act in (0..lens.len()).filter(|&act| taken[act].is_some()) {
            if let Some(life) = gradients[act].take() {
                Life::reach(&mut gradients[holder(act)], life.last);
            }
        }

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
        for act in (0..lens.len()).filter(|&act| taken[act].is_some()) {
            plan.gradient[act] = plan.gradient[holder(act)];
        }
        for (x, out) in laid_out {
            plan.value[out] = plan.value[x];
        }
        plan
    }

    /// Whether a value is where another is.
    pub fn shares_value(&self, act: Act, other: Act) -> bool {
        self.value[act.index()] == self.value[other.index()]
    }

    /// Whether a gradient stands where another stood.
    pub fn shares_gradient(&self, act: Act, other: Act) -> bool {
        self.gradient[act.index()] == self.gradient[other.index()]
    }
}

/// Of each activation the one whose gradient becomes its own, unchanged, if there is one.
fn taken_over<'a>(
    op: &impl Fn(usize) -> &'a Op,
    backward: &[Step],
    acts: usize,
    drops: bool,
) -> Vec<Option<usize>> {
    let reversed = |step: &Step| match *step {
        Step::Reverse { op: index, .. } => Some(op(index)),
        Step::Again { .. } => None,
    };
    let mut taken = vec![None; acts];
    for (time, step) in backward.iter().enumerate() {
        let Step::Reverse { op: index, writes } = *step else { continue };
        if let (Op::Activation { x, out, .. }, true) = (*op(index), op(index).in_place()) {
            taken[x.index()] = Some(out.index());
        }
        let Op::Add { stream, branch, out, .. } = *op(index) else { continue };
        if writes[0] == Write::Set {
            taken[stream.index()] = Some(out.index());
        }
        // The branch's gradient is read until the operation that made the branch is reversed; before that nobody may add
        // to it, nor to the stream's.
        let mut later = backward[time + 1..].iter().filter_map(reversed);
        let untouched = later.by_ref().take_while(|op| op.out() != Some(branch)).all(|op| {
            let inputs = op.inputs();
            !inputs.contains(&Some(branch)) && !inputs.contains(&Some(stream)) && op.out() != Some(stream)
        });
        let maker = backward[time + 1..].iter().filter_map(reversed).find(|op| op.out() == Some(branch));
        let apart = maker.is_some_and(|op| !op.inputs().contains(&Some(stream)));
        if !drops && writes[1] == Write::Set && stream != branch && untouched && apart {
            taken[branch.index()] = Some(out.index());
        }
    }
    taken
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
        // Gradients that are equal own a slot together, and so do a value and what stands for it.
        let mut owner: Vec<Vec<(usize, bool)>> = vec![vec![]; program.plan.slots.len()];
        let value = |act: Act| (program.plan.value[act.index()], (act.index(), false));
        let gradient = |act: Act| {
            (program.plan.gradient[act.index()].expect("training plans gradients"), (act.index(), true))
        };
        let carry_out = |op: &Op, owner: &mut Vec<Vec<(usize, bool)>>| {
            for act in op.inputs().into_iter().flatten() {
                let (slot, name) = value(act);
                assert!(owner[slot].contains(&name), "{op:?}: {:?} is not {name:?}", owner[slot]);
            }
            if let Some(act) = op.out() {
                let (slot, name) = value(act);
                if op.inputs().iter().flatten().all(|input| value(*input).0 != slot) {
                    owner[slot] = vec![name];
                } else {
                    assert!(matches!(op, Op::Dispatch { .. }), "{op:?} overwrites what it reads");
                    owner[slot].push(name);
                }
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
                assert!(owner[slot].contains(&name), "backward of {op:?}: {:?} is not {name:?}", owner[slot]);
            }
            for act in op.inputs().into_iter().flatten() {
                let (slot, name) = gradient(act);
                match op.out() {
                    Some(out) if gradient(out).0 == slot => {
                        let may = op.in_place() || matches!(op, Op::Add { .. });
                        assert!(may, "{op:?} overwrites what it reads");
                        owner[slot].push(name);
                    }
                    _ => owner[slot] = vec![name],
                }
            }
        }
    }

    #[test]
    fn what_is_done_as_one_has_all_its_buffers_at_once() {
        let (mut forward, mut backward) = (0, 0);
        for program in programs() {
            let op = |step: &Step| match *step {
                Step::Again { op } => (false, *program.op(op)),
                Step::Reverse { op, .. } => (true, *program.op(op)),
            };
            let value = |act: Act| program.plan.value[act.index()];
            let gradient = |act: Act| program.plan.gradient[act.index()];
            let made = program.forward.iter().map(|op| (false, *op)).chain(program.backward.iter().map(op));
            for pair in made.collect::<Vec<_>>().windows(2) {
                match *pair {
                    [(false, first), (false, second)] if second.follows(&first) => {
                        let [made, out] = [first, second].map(|op| op.out().expect("it makes one"));
                        for read in first.inputs().into_iter().flatten() {
                            assert!(
                                ![value(made), value(out)].contains(&value(read)),
                                "{first:?} {second:?}"
                            );
                        }
                        assert_ne!(value(made), value(out), "{first:?} {second:?}");
                        forward += 1;
                    }
                    [(true, first), (true, second)] if second.precedes(&first) => {
                        let [x, hidden] = [first, second].map(|op| op.inputs()[0].expect("it reads one"));
                        let d = gradient(hidden).expect("training plans gradients");
                        assert_eq!(gradient(x), Some(d), "{first:?} {second:?}");
                        let d_out = first.out().and_then(gradient).expect("training plans gradients");
                        assert!(![value(x), value(hidden), d_out].contains(&d), "{first:?} {second:?}");
                        backward += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(forward > 0 && backward > 0, "{forward} {backward}");
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
            false,
        );
        assert!(program.plan.slots.len() <= 8, "{:?}", program.plan.slots);
        assert!(program.plan.gradient.iter().all(Option::is_none));
    }
}
