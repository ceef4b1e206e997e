//! How a mixture of experts is trained: what keeps its experts alive, and how to see whether they are.
//!
//! Nothing here is part of a stored model.

use formats::{Error, Result};
use runtime::load;
use serde::{Deserialize, Serialize};

/// The switches. All zero is a mixture left to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mixing {
    /// Factor of the load-balancing loss (Fedus et al. 2021, eq. 4).
    pub balance: f32,
    /// Factor of the router's z-loss (Zoph et al. 2022, eq. 5).
    pub router_z: f32,
    /// What an update adds to the selection bias of an expert below the mean load, and takes from one above it
    /// (Wang et al. 2024, algorithm 1).
    pub bias_rate: f32,
    /// How far the factors on the router's input lie from one (Fedus et al. 2021, section 2.2).
    pub jitter: f32,
    /// Dropout inside experts, after the nonlinearity.
    pub expert_dropout: f32,
    /// Probability that an expert's whole output for a row is masked.
    pub output_dropout: f32,
    /// Probability that a step does without an expert.
    pub router_dropout: f32,
    /// Rows an expert takes, as a multiple of its even share of a shard's; 0 takes all.
    pub capacity: f32,
}

impl Mixing {
    /// Checks every bound. `origin` names where the values came from.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let within = |field: &str, value: f32, most: f32| {
            if (0.0..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::config(origin, field, value, format!("0 to {most}")))
        };
        within("balance", self.balance, 1e3)?;
        within("router_z", self.router_z, 1e3)?;
        within("bias_rate", self.bias_rate, 1.0)?;
        within("router_jitter", self.jitter, 0.999)?;
        within("expert_dropout", self.expert_dropout, 0.999)?;
        within("output_dropout", self.output_dropout, 0.999)?;
        within("router_dropout", self.router_dropout, 0.999)?;
        within("capacity_factor", self.capacity, 1e3)
    }

    /// Whether a gradient depends on the load of the whole micro-batch.
    pub fn needs_load(&self) -> bool {
        self.balance > 0.0
    }

    /// Whether a step draws noise for them.
    pub fn disturbs(&self) -> bool {
        [self.jitter, self.expert_dropout, self.output_dropout, self.router_dropout]
            .iter()
            .any(|size| *size > 0.0)
    }

    /// Most rows one of `count` experts takes of `rows` that choose `active` each.
    pub fn capacity_of(&self, rows: usize, active: usize, count: usize) -> Option<usize> {
        let even = rows as f64 * active as f64 / count as f64;
        (self.capacity > 0.0).then(|| (f64::from(self.capacity) * even).ceil() as usize)
    }
}

/// Choices an expert should have had before its share means anything.
const ENOUGH: f64 = 200.0;

/// One layer's experts in a row of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The layer, from 0.
    pub layer: usize,
    /// Each expert's share of all choices.
    pub load: Vec<f64>,
    /// See [`Load::load_entropy`].
    pub load_entropy: f64,
    /// See [`Load::max_violation`].
    pub max_violation: f64,
    /// See [`Load::dead`].
    pub dead: usize,
    /// See [`Load::dropped_share`].
    pub dropped: f64,
    /// See [`Load::router_entropy`].
    pub router_entropy: f64,
    /// See [`Load::balance_loss`].
    pub balance_loss: f64,
}

/// The worst of all layers, for one line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// Lowest load entropy.
    pub load_entropy: f64,
    /// Highest MaxVio.
    pub max_violation: f64,
    /// Experts without a row, all layers together.
    pub dead: usize,
    /// Highest share of dropped assignments.
    pub dropped: f64,
    /// Lowest router entropy.
    pub router_entropy: f64,
}

impl Worst {
    /// Of no layer there is none.
    pub fn of(loads: &[Load]) -> Option<Worst> {
        let least = |value: fn(&Load) -> f64| loads.iter().map(value).fold(f64::INFINITY, f64::min);
        let most = |value: fn(&Load) -> f64| loads.iter().map(value).fold(0.0, f64::max);
        (!loads.is_empty()).then(|| Worst {
            load_entropy: least(Load::load_entropy),
            max_violation: most(Load::max_violation),
            dead: loads.iter().map(Load::dead).sum(),
            dropped: most(Load::dropped_share),
            router_entropy: least(Load::router_entropy),
        })
    }
}

/// What some rows asked of one layer's experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The layer.
    pub layer: usize,
    /// How many experts each row chose.
    pub active: usize,
    /// Rows that were counted.
    pub rows: f64,
    /// How often each expert was chosen.
    pub counts: Vec<f64>,
    /// The sum of each expert's probabilities.
    pub probabilities: Vec<f64>,
    /// The sum of the rows' router entropies, nats.
    pub entropy: f64,
    /// Assignments that a full expert dropped.
    pub dropped: f64,
}

impl Load {
    /// No rows yet.
    pub fn new(layer: usize, active: usize, count: usize) -> Load {
        Load {
            layer,
            active,
            rows: 0.0,
            counts: vec![0.0; count],
            probabilities: vec![0.0; count],
            entropy: 0.0,
            dropped: 0.0,
        }
    }

    /// Forgets every row.
    pub fn clear(&mut self) {
        *self = Load::new(self.layer, self.active, self.counts.len());
    }

    /// Adds `rows` rows as [`crate::ops::route::load`] gives them.
    pub fn add(&mut self, rows: usize, values: &[f64]) {
        let count = self.counts.len();
        self.rows += rows as f64;
        self.counts.iter_mut().zip(&values[..count]).for_each(|(sum, value)| *sum += value);
        self.probabilities.iter_mut().zip(&values[count..]).for_each(|(sum, value)| *sum += value);
        self.entropy += values[2 * count];
        self.dropped += values[2 * count + 1];
    }

    /// Adds the rows of another count of the same router.
    pub fn merge(&mut self, other: &Load) {
        self.rows += other.rows;
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, value)| *sum += value);
        self.probabilities.iter_mut().zip(&other.probabilities).for_each(|(sum, value)| *sum += value);
        self.entropy += other.entropy;
        self.dropped += other.dropped;
    }

    /// The numbers people look at.
    pub fn health(&self) -> Health {
        Health {
            layer: self.layer,
            load: self.shares().collect(),
            load_entropy: self.load_entropy(),
            max_violation: self.max_violation(),
            dead: self.dead(),
            dropped: self.dropped_share(),
            router_entropy: self.router_entropy(),
            balance_loss: self.balance_loss(),
        }
    }

    /// The experts that get less than a tenth of an even share, where enough rows were counted to tell.
    pub fn starving(&self) -> impl Iterator<Item = usize> + '_ {
        let even = self.counts.iter().sum::<f64>() / self.counts.len() as f64;
        let starves = move |count: f64| even >= ENOUGH && count < even / 10.0;
        (0..self.counts.len()).filter(move |&expert| starves(self.counts[expert]))
    }

    /// Each expert's share of all choices.
    pub fn shares(&self) -> impl Iterator<Item = f64> + '_ {
        load::shares(&self.counts)
    }

    /// See [`load::entropy`].
    pub fn load_entropy(&self) -> f64 {
        load::entropy(&self.counts)
    }

    /// See [`load::max_violation`].
    pub fn max_violation(&self) -> f64 {
        load::max_violation(&self.counts)
    }

    /// Experts that no row chose.
    pub fn dead(&self) -> usize {
        self.counts.iter().filter(|count| **count == 0.0).count()
    }

    /// Mean entropy of a row's probabilities over that of indifference: 1 is a router that does not care.
    pub fn router_entropy(&self) -> f64 {
        if self.counts.len() < 2 {
            return 0.0;
        }
        self.entropy / self.rows.max(1.0) / (self.counts.len() as f64).ln()
    }

    /// Assignments dropped, of all that were made.
    pub fn dropped_share(&self) -> f64 {
        self.dropped / (self.rows * self.active as f64).max(1.0)
    }

    /// `E sum f_i P_i`: one where the load is even (Fedus et al. 2021, eq. 4).
    pub fn balance_loss(&self) -> f64 {
        let means = self.probabilities.iter().map(|sum| sum / self.rows.max(1.0));
        self.counts.len() as f64 * self.shares().zip(means).map(|(share, mean)| share * mean).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(counts: &[f64]) -> Load {
        let rows = counts.iter().sum();
        Load { rows, counts: counts.to_vec(), ..Load::new(0, 1, counts.len()) }
    }

    #[test]
    fn experts_without_rows_are_dead() {
        assert_eq!((load(&[5.0; 4]).dead(), load(&[0.0, 20.0, 0.0, 0.0]).dead()), (0, 3));
        assert!((load(&[5.0; 4]).balance_loss()).abs() < 1e-12, "no probability was counted");
    }

    #[test]
    fn an_expert_starves_below_a_tenth_of_its_share_and_not_for_want_of_rows() {
        let starving = |counts: &[f64]| load(counts).starving().collect::<Vec<_>>();
        assert_eq!(starving(&[990.0, 10.0, 1000.0, 0.0]), [1, 3]);
        assert_eq!(starving(&[300.0, 250.0]), [0usize; 0]);
        assert_eq!(starving(&[3.0, 0.0]), [0usize; 0]);
        let worst = Worst::of(&[load(&[5.0; 4]), load(&[20.0, 0.0, 0.0, 0.0])]).expect("two layers");
        assert_eq!((worst.load_entropy, worst.max_violation, worst.dead), (0.0, 3.0, 3));
        assert_eq!(Worst::of(&[]), None);
    }

    #[test]
    fn every_switch_has_its_bounds() {
        assert!(Mixing::default().validate("test").is_ok());
        for bad in [f32::NAN, -0.1, f32::INFINITY] {
            for mixing in [
                Mixing { balance: bad, ..Mixing::default() },
                Mixing { router_z: bad, ..Mixing::default() },
                Mixing { bias_rate: bad, ..Mixing::default() },
                Mixing { jitter: bad, ..Mixing::default() },
                Mixing { expert_dropout: bad, ..Mixing::default() },
                Mixing { output_dropout: bad, ..Mixing::default() },
                Mixing { router_dropout: bad, ..Mixing::default() },
                Mixing { capacity: bad, ..Mixing::default() },
            ] {
                assert!(mixing.validate("test").is_err(), "{mixing:?}");
            }
        }
    }
}
