//! Cases of the router, and mixtures for those of the experts it chose.

use super::compare::{Allowance, Kept, Rounding};
use super::subject::{
    ADAM, STEP, Subject, at_step, config, drawn, floats, read, read_floats, read_sums, sizes, unwritten,
    values, widened,
};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Write};
use crate::ops::dropout::Noise;
use crate::ops::route::{Disturbance, Router};
use formats::Result;
use formats::config::{Activation, Config, Experts, RouterScore, RouterWeight};
use formats::layout::{Bank, FeedForward};

/// Roundings of a softmax and what is made of it, both sides' together.
const STEPS: u32 = 64;
/// Least distance of the last chosen score to the best that is not: rounding moves no choice across it.
const CLEAR: f32 = 1e-4;

/// One mixture's shape and what disturbs it.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub width: usize,
    count: usize,
    active: usize,
    shared: usize,
    score: RouterScore,
    weight: RouterWeight,
    capacity: Option<usize>,
    selection_bias: bool,
    /// Learned noise on the logits, and how far the factors on the input lie from one.
    noisy: bool,
    jitter: f32,
    /// Probabilities that an output, and that an expert, is left out.
    left_out: [f32; 2],
}

const PLAIN: Shape = Shape {
    rows: 8,
    width: 16,
    count: 4,
    active: 2,
    shared: 0,
    score: RouterScore::Softmax,
    weight: RouterWeight::Renormalised,
    capacity: None,
    selection_bias: false,
    noisy: false,
    jitter: 0.0,
    left_out: [0.0; 2],
};

/// Every switch, on ragged sizes; more experts than assignments leave some without a row.
pub(super) fn shapes(quick: bool) -> Vec<Shape> {
    use RouterScore::{Sigmoid, Softmax};
    use RouterWeight::{Renormalised, Score};
    let all = vec![
        Shape { rows: 1, width: 1, count: 1, active: 1, weight: Score, ..PLAIN },
        Shape { rows: 3, width: 5, count: 7, active: 1, weight: Score, ..PLAIN },
        Shape { rows: 17, width: 12, count: 8, active: 2, ..PLAIN },
        Shape { rows: 5, width: 9, count: 13, active: 3, score: Sigmoid, selection_bias: true, ..PLAIN },
        Shape { rows: 33, width: 16, count: 4, active: 2, shared: 1, weight: Score, score: Sigmoid, ..PLAIN },
        Shape { rows: 31, width: 33, count: 5, active: 2, capacity: Some(7), jitter: 0.01, ..PLAIN },
        Shape { rows: 29, width: 24, count: 6, active: 2, noisy: true, weight: Score, ..PLAIN },
        Shape { rows: 23, width: 8, count: 8, active: 2, left_out: [0.3, 0.2], shared: 2, ..PLAIN },
        Shape { rows: 65, width: 64, count: 16, active: 4, capacity: Some(11), ..PLAIN },
        Shape { rows: 2, width: 40, count: 64, active: 6, shared: 1, score: Softmax, ..PLAIN },
        Shape { rows: 128, width: 31, count: 3, active: 1, weight: Score, capacity: Some(40), ..PLAIN },
        Shape { rows: 257, width: 48, count: 8, active: 2, weight: Renormalised, noisy: true, ..PLAIN },
        Shape {
            rows: 37,
            width: 20,
            count: 9,
            active: 3,
            shared: 1,
            score: Sigmoid,
            capacity: Some(14),
            selection_bias: true,
            noisy: true,
            jitter: 0.05,
            left_out: [0.2, 0.1],
            ..PLAIN
        },
    ];
    let few = [1, 3, 5, 6, 7, 11];
    all.into_iter()
        .enumerate()
        .filter(|(index, _)| !quick || few.contains(index))
        .map(|(_, shape)| shape)
        .collect()
}

/// A router's inputs.
#[derive(Clone)]
pub(super) struct Mixture {
    shape: Shape,
    pub s: Router,
    pub subject: Subject,
    pub x: Vec<f32>,
}

impl Mixture {
    /// Inputs whose choices are clear.
    pub fn new(
        shape: Shape,
        activation: Activation,
        expert_width: usize,
        rounding: Rounding,
        reference: &Cpu,
    ) -> Result<Mixture> {
        let Shape { rows, width, count, active, shared, score, weight, .. } = shape;
        let experts = Experts {
            count,
            active,
            width: expert_width,
            every: 1,
            shared,
            score,
            weight,
            selection_bias: shape.selection_bias,
            noise: shape.noisy,
        };
        let config = Config { experts: Some(experts), activation, ..config(width) };
        let s = Router {
            layer: 0,
            rows,
            width,
            count,
            active,
            shared,
            score,
            weight,
            noisy: shape.noisy,
            capacity: shape.capacity,
        };
        let mut mixture = Mixture { shape, s, subject: Subject::new(config, rounding, 500), x: vec![] };
        for seed in 510.. {
            mixture.x = drawn(rounding, rows * width, seed);
            if mixture.is_clear(reference)? {
                break;
            }
        }
        Ok(mixture)
    }

    pub fn bank(&self) -> Bank {
        match self.subject.layout.layers[0].feed_forward {
            FeedForward::Experts(bank) => bank,
            FeedForward::Dense { .. } => unreachable!("the case's model has experts"),
        }
    }

    fn disturbance(&self) -> Disturbance {
        let noise = Noise::new(23, STEP, 0.0);
        let Shape { jitter, noisy, left_out: [outputs, experts], .. } = self.shape;
        Disturbance {
            jitter: (jitter > 0.0).then(|| (noise.draws(3, 5, self.s.width), jitter)),
            noise: noisy.then(|| noise.draws(4, 5, 2 * self.s.count)),
            outputs: noise.with(outputs).at(5, 5, self.s.slots()),
            experts: noise.with(experts).at(6, 0, self.s.count),
        }
    }

    /// What a backend decides, and the weights it gives.
    pub fn route<B: Backend>(&self, backend: &B) -> Result<Routed<B>> {
        let params = self.subject.params(backend)?;
        let x = values(backend, &self.x)?;
        let mut routed = Routed {
            weights: unwritten(backend, self.s.rows * self.s.slots())?,
            kept: floats(backend, &vec![f32::NAN; self.s.kept()])?,
            routing: backend.routing(&self.s)?,
            scratch: self.subject.scratch(backend, self.s.rows, 1)?,
            params,
            x,
        };
        let Routed { params, x, weights, kept, routing, scratch } = &mut routed;
        let disturbance = self.disturbance();
        let (s, bank) = (&self.s, self.bank());
        at_step(backend, &ADAM, || {
            backend.route(s, x, &bank, params, &disturbance, weights, kept, routing, scratch);
        })?;
        Ok(routed)
    }

    /// The same with the size of every weight and gradient but the router's, whose choice stays.
    pub fn with_sizes(&self) -> Mixture {
        let mut subject = self.subject.sizes();
        let bank = self.bank();
        for id in [Some(bank.router.weight), bank.selection_bias, bank.noise].into_iter().flatten() {
            let range = subject.layout.parameter(id).range();
            subject.weights[range.clone()].copy_from_slice(&self.subject.weights[range]);
        }
        Mixture { subject, ..self.clone() }
    }

    /// Whether no row's choice is a close one.
    fn is_clear(&self, reference: &Cpu) -> Result<bool> {
        let routed = self.route(reference)?;
        let bias = self.bank().selection_bias.map(|id| self.subject.layout.parameter(id).range());
        let clear = (0..self.s.rows).all(|row| {
            let scores = &routed.kept[row * self.s.count..][..self.s.count];
            let chosen = &routed.routing.chosen[row * self.s.slots()..][..self.s.active];
            let value =
                |at: usize| scores[at] + bias.clone().map_or(0.0, |bias| self.subject.weights[bias][at]);
            let mut of_chosen: Vec<f32> = chosen.iter().map(|&expert| value(expert as usize)).collect();
            let others = (0..self.s.count).filter(|at| !chosen.contains(&(*at as u32))).map(value);
            of_chosen.push(others.fold(f32::NEG_INFINITY, f32::max));
            // The order among the chosen is the order of the slots.
            of_chosen.windows(2).all(|pair| pair[0] - pair[1] > CLEAR)
        });
        Ok(clear)
    }

    pub fn describe(&self) -> String {
        let Shape { rows, width, count, active, shared, score, weight, capacity, .. } = self.shape;
        let Shape { noisy, jitter, left_out, selection_bias, .. } = self.shape;
        format!(
            "{rows} rows of {width}, {active} of {count} experts and {shared} shared, {score:?}, {weight:?}, capacity \
             {capacity:?}, selection bias {selection_bias}, noise {noisy}, jitter {jitter}, left out {left_out:?}"
        )
    }
}

/// A router's results on one device.
pub(super) struct Routed<B: Backend> {
    pub params: crate::params::Params<B>,
    pub x: B::Values,
    weights: B::Values,
    kept: B::Floats,
    pub routing: B::Routing,
    scratch: B::Floats,
}

struct Chosen {
    mixture: Mixture,
    d_weights: Vec<f32>,
    d_x: Vec<f32>,
    write: Write,
    /// Factors of the balancing loss and of the z-loss, and the shares of the former.
    factors: [f32; 2],
    shares: Vec<f32>,
}

impl Case for Chosen {
    const NAME: &'static str = "route";

    fn shape(&self) -> String {
        format!("{}, {:?}", self.mixture.describe(), self.write)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let Mixture { s, subject, x, .. } = &self.mixture;
        let mut routed = self.mixture.route(backend)?;
        let (mut asked, narrow) = (backend.sums(3 + s.load())?, |load: &f64| *load as f32);
        backend.load(s, &routed.kept, &routed.routing, s.rows, (&mut asked, 3));
        let mut shares = floats(backend, &vec![f32::NAN; s.count])?;
        backend.shares(s, (&asked, 3), &mut shares);
        let asked = read_sums(backend, &asked, 3 + s.load())?;
        let load = &asked[3..];
        let mut grads = floats(backend, &subject.grads)?;
        let (d_weights, mut d_x) = (values(backend, &self.d_weights)?, values(backend, &self.d_x)?);
        let given = floats(backend, &self.shares)?;
        let Routed { params, x: x_device, kept, routing, scratch, .. } = &mut routed;
        at_step(backend, &ADAM, || {
            backend.route_backward(
                s,
                x_device,
                &self.mixture.bank(),
                params,
                &self.mixture.disturbance(),
                (&given, self.factors[0], self.factors[1]),
                kept,
                routing,
                &d_weights,
                (&mut d_x, self.write),
                &mut grads,
                scratch,
            );
        })?;
        Ok(vec![
            Found::new("weights", read(backend, &routed.weights, self.d_weights.len())?),
            Found::new(
                "counts",
                [&load[..s.count], &load[2 * s.count + 1..]].concat().iter().map(narrow).collect(),
            ),
            Found::new("probabilities", load[s.count..2 * s.count + 1].iter().map(narrow).collect()),
            Found::new("shares", read_floats(backend, &shares, s.count)?),
            Found::new("d_x", read(backend, &d_x, x.len())?),
            Found::new("d_router, d_noise", read_floats(backend, &grads, subject.grads.len())?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let Mixture { s, subject, shape, .. } = &self.mixture;
        let Routed { kept, routing, weights, .. } = self.mixture.route(reference)?;
        let (layout, bank) = (&subject.layout, self.mixture.bank());
        let router = layout.parameter(bank.router.weight).range();
        let noise = bank.noise.map(|id| layout.parameter(id).range());
        let factor = 1.0 / (1.0 - f64::from(shape.left_out[0]));
        let reach = 1.0 + f64::from(shape.jitter);
        let (x, all) = (widened(&sizes(&self.mixture.x)), widened(&sizes(&subject.weights)));
        let mut out = vec![0.0; s.rows * s.slots()];
        let mut d_x = match self.write {
            Write::Set => vec![0.0; x.len()],
            Write::Accumulate => widened(&sizes(&self.d_x)),
        };
        let mut d_params = widened(&sizes(&subject.grads));
        let mut probabilities = vec![0.0; s.count + 1];
        for row in 0..s.rows {
            let x = &x[row * s.width..][..s.width];
            let of = |matrix: &std::ops::Range<usize>, expert: usize| -> f64 {
                all[matrix.clone()][expert * s.width..][..s.width].iter().zip(x).map(|(w, x)| w * x).sum()
            };
            // Box and Muller's normal numbers stay below six.
            let most = (0..s.count)
                .map(|expert| {
                    let scale = noise.as_ref().map_or(0.0, |noise| 6.0 * (1.0 + of(noise, expert)));
                    reach * of(&router, expert) + scale
                })
                .fold(0.0, f64::max);
            let amplified = 1.0 + 4.0 * most;
            let scores = widened(&kept[row * s.count..][..s.count]);
            let sum: f64 = scores.iter().sum();
            let log_sum = f64::from(kept[s.rows * s.count + row].abs()) + most;
            let chosen = &routing.chosen[row * s.slots()..][..s.active];
            let chosen_sum: f64 = chosen.iter().map(|&expert| scores[expert as usize]).sum();
            let weight = |expert: usize| match s.weight {
                RouterWeight::Score => scores[expert],
                RouterWeight::Renormalised => scores[expert] / chosen_sum,
            };
            let mut through = vec![0.0; s.count];
            let mut total = 0.0;
            for (slot, &expert) in chosen.iter().enumerate() {
                let at = row * s.slots() + slot;
                out[at] = f64::from(weights[at].abs()) * amplified;
                let d = factor * f64::from(self.d_weights[at].abs());
                through[expert as usize] = d;
                total += d * weight(expert as usize);
            }
            let shares: f64 = self.shares.iter().zip(&scores).map(|(f, p)| f64::from(*f) * p / sum).sum();
            for expert in 0..s.count {
                let is_chosen = chosen.contains(&(expert as u32));
                let weighed = scores[expert] + if is_chosen { weight(expert) } else { 0.0 };
                let share = self.shares.get(expert).map_or(0.0, |share| f64::from(*share));
                let d = amplified
                    * (weighed * (through[expert] + total)
                        + f64::from(self.factors[0]) * scores[expert] / sum * (share + shares)
                        + f64::from(self.factors[1]) * log_sum);
                let slope = 6.0;
                for at in 0..s.width {
                    d_x[row * s.width + at] += reach * d * all[router.start + expert * s.width + at];
                    d_params[router.start + expert * s.width + at] += reach * d * x[at];
                    if let Some(noise) = &noise {
                        d_x[row * s.width + at] += slope * d * all[noise.start + expert * s.width + at];
                        d_params[noise.start + expert * s.width + at] += slope * d * x[at];
                    }
                }
                probabilities[expert] += scores[expert] / sum * amplified;
            }
            probabilities[s.count] += amplified * (1.0 + (s.count as f64).ln());
        }
        let allowance = |magnitude, sum, kept| Allowance { magnitude, sum, steps: STEPS, narrowed: 0, kept };
        Ok(vec![
            allowance(out, s.width, Kept::Value),
            Allowance::none(s.count + 1),
            allowance(probabilities, s.rows + s.width, Kept::Float),
            Allowance { steps: 2, ..allowance(vec![1.0; s.count], 1, Kept::Float) },
            allowance(d_x, s.width.max(s.count), Kept::Value),
            allowance(d_params, s.rows + s.width, Kept::Float),
        ])
    }
}

pub(super) fn routers<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    for (index, shape) in shapes(suite.quick()).into_iter().enumerate() {
        let mixture = Mixture::new(shape, Activation::Relu, 2, suite.rounding, suite.reference)?;
        let write = if index % 2 == 0 { Write::Set } else { Write::Accumulate };
        let (inputs, outputs) = (shape.rows * shape.width, shape.rows * mixture.s.slots());
        suite.check(&Chosen {
            d_weights: drawn(suite.rounding, outputs, 530 + index as u64),
            d_x: match write {
                Write::Set => vec![f32::NAN; inputs],
                Write::Accumulate => drawn(suite.rounding, inputs, 540),
            },
            write,
            factors: [[0.0, 0.0], [0.05, 0.0], [0.02, 0.03]][index % 3],
            shares: (0..shape.count)
                .map(|expert| (1 + expert % 3) as f32 / (2 * shape.count) as f32)
                .collect(),
            mixture,
        })?;
    }
    Ok(())
}
