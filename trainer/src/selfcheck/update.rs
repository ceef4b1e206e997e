//! Cases of what surrounds the operations: numbers to the device and back, gradients gathered, weights updated.

use super::compare::{Allowance, Kept};
use super::subject::{
    ADAM, Subject, at_step, config, drawn, floats, read, read_floats, read_sums, sizes, unwritten, values,
    widened,
};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Seen};
use crate::ops::adamw::{Adam, DIVERGED, RECORD};
use formats::Result;
use formats::config::{Config, Experts, RouterScore, RouterWeight};

/// Numbers that go to the device and come back.
struct Transfer {
    numbers: Vec<f32>,
}

impl Case for Transfer {
    const NAME: &'static str = "transfer";

    fn shape(&self) -> String {
        format!("{} numbers", self.numbers.len())
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let len = self.numbers.len();
        let (floats, values) = (floats(backend, &self.numbers)?, values(backend, &self.numbers)?);
        // Sums count up, add up and go back to zero.
        let (mut sums, mut more) = (backend.sums(3)?, backend.sums(3)?);
        backend.total(&floats, 1, &mut sums);
        backend.tally(&sums, &mut more);
        backend.tally(&sums, &mut more);
        backend.clear(&mut sums);
        let sums = [read_sums(backend, &sums, 3)?, read_sums(backend, &more, 3)?].concat();
        Ok(vec![
            Found::new("floats", read_floats(backend, &floats, len)?),
            Found::new("values", read(backend, &values, len)?),
            Found::new("sums", sums.iter().map(|sum| *sum as f32).collect()),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let len = self.numbers.len();
        Ok(vec![Allowance::none(len), Allowance::none(len), Allowance::none(6)])
    }
}

pub(super) fn transfers<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    for (index, len) in [1, 2, 7, 8, 33, 1000, 65_537].into_iter().enumerate() {
        suite.check(&Transfer { numbers: drawn(suite.rounding, len, 400 + index as u64) })?;
    }
    Ok(())
}

/// Gradients of several shards added up.
struct Gathered {
    grads: Vec<Vec<f32>>,
}

impl Case for Gathered {
    const NAME: &'static str = "gather";

    fn shape(&self) -> String {
        format!("{} gradients of {}", self.grads.len(), self.grads[0].len())
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let len = self.grads[0].len();
        let mut shards = self.grads.iter().map(|from| floats(backend, from)).collect::<Result<Vec<_>>>()?;
        let mut squared = backend.sums(1)?;
        backend.gather(&mut shards, |grads| grads, &mut squared);
        let (sum, others) = shards.split_first().expect("one gradient or more");
        let others =
            others.iter().map(|grads| read_floats(backend, grads, len)).collect::<Result<Vec<_>>>()?;
        let mut found = vec![
            Found::new("sum", read_floats(backend, sum, len)?),
            Found::new("squared norm", vec![read_sums(backend, &squared, 1)?[0] as f32]),
        ];
        if self.grads.len() > 1 {
            found.push(Found::new("others, cleared", others.concat()));
        }
        Ok(found)
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let len = self.grads[0].len();
        let mut sum = vec![0.0; len];
        for grads in &self.grads {
            sum.iter_mut().zip(grads).for_each(|(sum, grad)| *sum += f64::from(grad.abs()));
        }
        let squares = vec![sum.iter().map(|sum| sum * sum).sum()];
        let allowance =
            |magnitude, sum, steps| Allowance { magnitude, sum, steps, narrowed: 0, kept: Kept::Float };
        let mut allowances = vec![allowance(sum, self.grads.len(), 2), allowance(squares, len, 8)];
        if self.grads.len() > 1 {
            allowances.push(Allowance::none((self.grads.len() - 1) * len));
        }
        Ok(allowances)
    }
}

pub(super) fn gathers<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    // A device has as many shards as it can work on side by side.
    let most = suite.device.lanes().min(3);
    for (index, len) in [1, 17, 1000, 40_001].into_iter().enumerate() {
        for shards in [1, most] {
            let seed = |shard: usize| 420 + (10 * index + shard) as u64;
            let grads = (0..shards).map(|shard| drawn(super::Rounding::F32, len, seed(shard))).collect();
            suite.check(&Gathered { grads })?;
        }
    }
    Ok(())
}

/// Several updates of every parameter of a model, and a product with what the last one left.
struct Updated {
    subject: Subject,
    adam: Adam,
    updates: u64,
    /// The loss it is judged by.
    loss: f32,
    first: Vec<f32>,
    second: Vec<f32>,
    /// A row for the map into the dense layer.
    x: Vec<f32>,
}

impl Updated {
    fn gradient(&self, step: u64) -> Vec<f32> {
        let grads = &self.subject.grads;
        let turn = |index: usize| if (index as u64 + step).is_multiple_of(3) { -0.5 } else { 1.0 };
        grads.iter().enumerate().map(|(index, grad)| grad * turn(index)).collect()
    }
}

impl Case for Updated {
    const NAME: &'static str = "adamw";

    fn shape(&self) -> String {
        let Adam { coupled, decay_vectors, clip, .. } = self.adam;
        format!(
            "{} weights, coupled {coupled}, vectors decay {decay_vectors}, clip {clip}, loss {}",
            self.subject.weights.len(),
            self.loss
        )
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (mut params, len) = (self.subject.params(backend)?, self.subject.weights.len());
        let (mut first, mut second) = (floats(backend, &self.first)?, floats(backend, &self.second)?);
        let mut grads = backend.floats(len)?;
        let (mut loss, mut record, mut squared) = (backend.sums(1)?, backend.sums(RECORD)?, backend.sums(1)?);
        backend.total(&floats(backend, &[self.loss])?, 1, &mut loss);
        for step in 0..self.updates {
            backend.upload(&self.gradient(step), &mut grads);
            let adam = Adam { step: self.adam.step + step, ..self.adam };
            at_step(backend, &adam, || {
                backend.gather(std::slice::from_mut(&mut grads), |grads| grads, &mut squared);
                let seen = Seen { rows: 1, loss: &loss, squared: &squared, record: &mut record };
                backend.adamw(&adam, seen, &mut params, &mut first, &mut second, &mut grads);
            })?;
        }
        let record = read_sums(backend, &record, RECORD)?;
        let map = self.subject.up();
        let (x, mut out) = (values(backend, &self.x)?, unwritten(backend, map.outputs)?);
        backend.linear(1, &x, &map, &params, &mut out);
        Ok(vec![
            Found::new("weights", read_floats(backend, &params.master, len)?),
            Found::new("first moment", read_floats(backend, &first, len)?),
            Found::new("second moment", read_floats(backend, &second, len)?),
            Found::new("diverged", vec![record[DIVERGED] as f32]),
            Found::new("gradient, cleared", read_floats(backend, &grads, len)?),
            Found::new("working weights", read(backend, &out, map.outputs)?),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        const STEPS: u32 = 32;
        let Adam { learning_rate, weight_decay, beta1, .. } = self.adam;
        let weights = widened(&sizes(&self.subject.weights));
        let decay = if self.adam.coupled { weight_decay } else { 0.0 };
        let largest: Vec<f64> = (0..weights.len())
            .map(|at| f64::from(self.subject.grads[at].abs()) + decay * (1.0 + weights[at]))
            .collect();
        let moment: Vec<f64> =
            (0..weights.len()).map(|at| f64::from(self.first[at].abs()) + largest[at]).collect();
        // The quotient of the moments where what there was weighs most: an update's size in learning rates.
        let quotient = |at: usize| {
            let root = f64::from(self.second[at]).sqrt().max(largest[at] / 4.0).max(1e-3);
            moment[at] / root / (1.0 - beta1)
        };
        let moved: Vec<f64> = (0..weights.len())
            .map(|at| weights[at] + self.updates as f64 * learning_rate * quotient(at))
            .collect();
        let squares = (0..weights.len()).map(|at| f64::from(self.second[at]) + largest[at] * largest[at]);
        let map = self.subject.up();
        let range = self.subject.layout.parameter(map.weight).range();
        let bias = self.subject.layout.parameter(map.bias.expect("the case's model has one")).range();
        let product = (0..map.outputs).map(|output| {
            let row = &moved[range.clone()][output * map.inputs..][..map.inputs];
            moved[bias.clone()][output]
                + row.iter().zip(&self.x).map(|(w, x)| w * f64::from(x.abs())).sum::<f64>()
        });
        // The factor of the gradient is made of the norm of all.
        let sum = if self.adam.clip > 0.0 { weights.len() } else { 1 };
        let allowance =
            |magnitude, steps| Allowance { magnitude, sum, steps, narrowed: 0, kept: Kept::Float };
        Ok(vec![
            allowance(moved.clone(), STEPS),
            allowance(moment.clone(), STEPS),
            allowance(squares.collect(), STEPS),
            Allowance::none(1),
            Allowance::none(weights.len()),
            // The working weights are rounded to the activations' type.
            Allowance {
                magnitude: product.collect(),
                sum: map.inputs,
                steps: STEPS,
                narrowed: 1,
                kept: Kept::Value,
            },
        ])
    }
}

pub(super) fn updates<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let experts = Experts {
        count: 3,
        active: 2,
        width: 5,
        every: 1,
        shared: 1,
        score: RouterScore::Softmax,
        weight: RouterWeight::Score,
        selection_bias: true,
        noise: true,
    };
    for (index, coupled) in [false, true, false, true].into_iter().enumerate() {
        for (width, experts) in [(7, None), (16, Some(experts)), (33, None)] {
            if suite.quick() && (width == 33 || index > 1) {
                continue;
            }
            let config = Config { experts, feed_forward: 19, ..config(width) };
            let subject = Subject::new(config, suite.rounding, 450 + index as u64);
            let len = subject.weights.len();
            let drawn = |seed| drawn(super::Rounding::F32, len, seed);
            // What no gradient reaches has no moments either.
            let without = |mut moments: Vec<f32>| {
                let still = moments.iter_mut().zip(&subject.grads).filter(|(_, grad)| **grad == 0.0);
                still.for_each(|(moment, _)| *moment = 0.0);
                moments
            };
            suite.check(&Updated {
                adam: Adam {
                    decay_vectors: index > 1,
                    coupled,
                    step: if index > 1 { 1000 } else { 1 },
                    clip: if index % 3 == 0 { 4.0 } else { 0.0 },
                    ..ADAM
                },
                updates: 3,
                // After a loss that is none, nothing is updated.
                loss: if index == 1 && width == 7 { f32::INFINITY } else { 1.5 },
                first: without(drawn(470)),
                second: without(drawn(471)).iter().map(|x| 0.25 * x * x).collect(),
                x: super::subject::drawn(suite.rounding, width, 472),
                subject,
            })?;
        }
    }
    Ok(())
}
