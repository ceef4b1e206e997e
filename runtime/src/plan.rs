//! Which buffer each step of the forward pass writes.
//!
//! [`forward`] is walked once, when a session is made, by a machine that computes nothing: it takes a free slot
//! for each result and gives it back when the result is used up. The walk does not depend on what is fed, so the
//! workers follow the list.

use crate::linear::GROUP;
use crate::machine::FEW;
use crate::simd::PANEL;
use crate::team::{Place, Slots};
use formats::architecture::{Machine, forward};
use formats::layout::{Layout, Linear, Norm};
use formats::{Config, Result};

/// Most bytes of logits that one pass gives, except that it gives at least one row.
const LOGITS: usize = 64 << 20;

/// The buffers of a session, but for its cache.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The slot of each result, in the order of [`forward`]; what works in place has none.
    pub(crate) outputs: Vec<Place<f32>>,
    /// `[logit_rows, vocabulary]`.
    pub(crate) logits: Place<f32>,
    /// Most rows of logits in one pass.
    pub(crate) logit_rows: usize,
    /// For each member, a few rows that it keeps to itself.
    pub(crate) normed: Place<f32>,
    /// For each member, the scores of one row and head.
    pub(crate) scores: Place<f32>,
    /// For each member, a group of packed columns.
    pub(crate) panels: Place<f32>,
    /// For each member, a group of a product's columns.
    pub(crate) block: Place<f32>,
}

impl Plan {
    /// Makes the buffers for `rows` rows at once and `capacity` positions.
    pub(crate) fn new(
        config: &Config,
        layout: &Layout,
        slots: &mut Slots,
        members: usize,
        rows: usize,
        capacity: usize,
    ) -> Result<Plan> {
        let mut planner =
            Planner { config, rows, slots, shelf: Vec::new(), outputs: Vec::new(), made: Ok(()) };
        forward(&mut planner, layout);
        planner.made?;
        let outputs = planner.outputs;
        let logit_rows = (LOGITS / size_of::<f32>() / config.vocabulary).clamp(1, rows);
        // Whole cache lines, so that no two members share one.
        let mut own = |len: usize| slots.add(members, len.next_multiple_of(PANEL), 1);
        Ok(Plan {
            outputs,
            logit_rows,
            normed: own(FEW * config.width)?,
            scores: own(capacity)?,
            panels: own(GROUP * config.width.max(config.feed_forward))?,
            block: own(GROUP * rows)?,
            logits: slots.add(logit_rows, config.vocabulary, PANEL)?,
        })
    }
}

struct Planner<'a> {
    config: &'a Config,
    rows: usize,
    slots: &'a mut Slots,
    shelf: Vec<Shelved>,
    outputs: Vec<Place<f32>>,
    made: Result<()>,
}

/// A slot and whether it waits for its next use.
struct Shelved {
    place: Place<f32>,
    columns: usize,
    grain: usize,
    free: bool,
}

impl Planner<'_> {
    /// The index on the shelf of a slot for the next result, whose columns are dealt at multiples of `grain`.
    fn output(&mut self, columns: usize, grain: usize) -> Option<usize> {
        if self.made.is_err() {
            return None;
        }
        let fits = |slot: &Shelved| slot.free && slot.columns == columns && slot.grain == grain;
        let index = match self.shelf.iter().position(fits) {
            Some(index) => index,
            None => {
                let place =
                    self.slots.add(self.rows, columns, grain).map_err(|error| self.made = Err(error)).ok()?;
                self.shelf.push(Shelved { place, columns, grain, free: true });
                self.shelf.len() - 1
            }
        };
        self.shelf[index].free = false;
        self.outputs.push(self.shelf[index].place);
        Some(index)
    }

    fn release(&mut self, index: Option<usize>) {
        if let Some(index) = index {
            self.shelf[index].free = true;
        }
    }
}

impl Machine for Planner<'_> {
    /// An index on the shelf; none once memory has run out.
    type Rows = Option<usize>;

    fn embed(&mut self, _: &Layout) -> Option<usize> {
        self.output(self.config.width, PANEL)
    }

    fn norm(&mut self, _: &Option<usize>, _: &Norm) -> Option<usize> {
        self.output(self.config.width, PANEL)
    }

    fn linear(&mut self, x: Option<usize>, linear: &Linear) -> Option<usize> {
        let out = self.output(linear.outputs, PANEL);
        self.release(x);
        out
    }

    fn attention(&mut self, qkv: Option<usize>, _: usize) -> Option<usize> {
        let out = self.output(self.config.width, self.config.head_size());
        self.release(qkv);
        out
    }

    fn activation(&mut self, x: Option<usize>) -> Option<usize> {
        x
    }

    fn add(&mut self, stream: Option<usize>, branch: Option<usize>) -> Option<usize> {
        self.release(branch);
        stream
    }

    fn logits(&mut self, x: Option<usize>, _: &Linear) -> Option<usize> {
        self.release(x);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::config;

    #[test]
    fn every_layer_uses_the_same_slots() {
        for feed_forward in [50, 30, 90] {
            let bytes = |layers: usize| {
                let (config, mut slots) = (Config { feed_forward, ..config(layers) }, Slots::default());
                let plan = Plan::new(&config, &Layout::new(&config), &mut slots, 2, 8, 8).expect("memory");
                // One result for the embedding and the last norm, seven a layer.
                assert_eq!(plan.outputs.len(), 2 + 7 * layers);
                slots.bytes()
            };
            assert_eq!(bytes(1), bytes(5));
        }
    }
}
