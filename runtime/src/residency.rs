//! Which experts are kept in memory, for models whose experts are more than there is room for.
//!
//! Experts are read where they are mapped; what is counted here is what the system was told: an expert that a router
//! chose and that was not there is asked for at once, all of a layer's together, and the least recently used are
//! given back when the budget is passed. A wrong guess costs time and never a bit: pages that were given back are read
//! from the file again.

use formats::checkpoint::{Advice, Weights};
use formats::layout::{Bank, FeedForward, Layout};

/// What a budget of experts has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Bytes of experts that may stay.
    pub budget: u64,
    /// Bytes of experts that were asked for and not given back.
    pub bytes: u64,
    /// The most that these were.
    pub most: u64,
    /// Choices of a layer's expert that found it there.
    pub hits: u64,
    /// Choices that did not.
    pub misses: u64,
    /// Bytes asked for.
    pub read: u64,
}

/// Keeps to a budget.
#[derive(Debug)]
pub(crate) struct Keeper {
    report: Residency,
    /// Experts of a layer that a router chooses from.
    count: usize,
    /// `[layers, count]`: when each was last chosen; 0 where it is not there.
    last: Vec<u64>,
    now: u64,
    /// Bytes of one expert.
    size: u64,
}

impl Keeper {
    /// A budget of `budget` bytes; none for a dense model.
    pub(crate) fn new(layout: &Layout, weights: &Weights, budget: u64) -> Option<Keeper> {
        let bank = layout.layers.iter().find_map(|layer| bank(&layer.feed_forward))?;
        let values =
            |id| weights.pieces(id).map(|p| (p.values.len() * p.values.dtype().size()) as u64).sum::<u64>();
        Some(Keeper {
            report: Residency { budget, ..Residency::default() },
            count: bank.count,
            last: vec![0; layout.layers.len() * bank.count],
            now: 0,
            size: parameters(bank, 0).into_iter().flatten().map(values).sum(),
        })
    }

    /// The experts of one layer are about to be used. Allocates nothing.
    pub(crate) fn choose(
        &mut self,
        layout: &Layout,
        weights: &Weights,
        layer: usize,
        experts: impl Iterator<Item = u32>,
    ) {
        self.now += 1;
        for expert in experts {
            let last = &mut self.last[layer * self.count + expert as usize];
            let before = std::mem::replace(last, self.now);
            if before == self.now {
                continue;
            }
            if before > 0 {
                self.report.hits += 1;
                continue;
            }
            self.report.misses += 1;
            self.report.read += self.size;
            self.report.bytes += self.size;
            tell(layout, weights, layer, expert as usize, Advice::WillNeed);
        }
        while self.report.bytes > self.report.budget {
            let others = self.last.iter().enumerate().filter(|(_, last)| (1..self.now).contains(*last));
            let Some((oldest, _)) = others.min_by_key(|(_, last)| **last) else { break };
            self.last[oldest] = 0;
            self.report.bytes -= self.size;
            tell(layout, weights, oldest / self.count, oldest % self.count, Advice::DontNeed);
        }
        self.report.most = self.report.most.max(self.report.bytes);
    }

    pub(crate) fn report(&self) -> Residency {
        self.report
    }
}

fn bank(layer: &FeedForward) -> Option<&Bank> {
    match layer {
        FeedForward::Experts(bank) => Some(bank),
        FeedForward::Dense { .. } => None,
    }
}

/// The parameters of one expert.
fn parameters(bank: &Bank, expert: usize) -> [Option<formats::layout::ParameterId>; 4] {
    let (up, down) = (bank.up(expert), bank.down(expert));
    [Some(up.weight), up.bias, Some(down.weight), down.bias]
}

fn tell(layout: &Layout, weights: &Weights, layer: usize, expert: usize, advice: Advice) {
    if let Some(bank) = bank(&layout.layers[layer].feed_forward) {
        parameters(bank, expert).into_iter().flatten().for_each(|id| weights.advise(id, advice));
    }
}
