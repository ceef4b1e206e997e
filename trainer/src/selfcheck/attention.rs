//! Cases of causal attention.

use super::compare::{Allowance, Kept};
use super::subject::{ADAM, STEP, Subject, at_step, config, drawn, floats, read, unwritten, values, widened};
use super::{Case, Found, Suite};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::ops::attention::Heads;
use crate::ops::dropout::{Mask, Noise};
use crate::windows::Windows;
use formats::Result;
use formats::config::Config;

/// Roundings of a softmax and of what is made of it, both sides' together.
const STEPS: u32 = 64;
/// Weights and their gradients are a tensor core's factors: they are rounded to the activations' type, as is the output
/// that the backward pass reads again.
const NARROWED: u32 = 3;

struct Attended {
    s: Heads,
    /// A model with such heads.
    subject: Subject,
    dropout: f32,
    qkv: Vec<f32>,
    d_out: Vec<f32>,
}

impl Attended {
    fn mask(&self) -> Mask {
        // The second shard's: its first row is not the batch's.
        Noise::new(17, STEP, self.dropout).at(4, self.s.heads * self.s.block, self.s.block)
    }
}

impl Case for Attended {
    const NAME: &'static str = "attention";

    fn shape(&self) -> String {
        let Heads { sequences, block, heads, kv_heads, size, .. } = self.s;
        format!(
            "{sequences} windows of {block}, {heads} heads, {kv_heads} with keys, of {size}, dropout {}",
            self.dropout
        )
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (mask, len) = (self.mask(), self.qkv.len());
        let qkv = values(backend, &self.qkv)?;
        let mut out = unwritten(backend, self.d_out.len())?;
        let mut kept = floats(backend, &vec![f32::NAN; self.s.kept()])?;
        let mut scratch = self.subject.scratch(backend, self.s.sequences, self.s.block)?;
        let (d_out, mut d_qkv) = (values(backend, &self.d_out)?, unwritten(backend, len)?);
        at_step(backend, &ADAM, || {
            backend.attention(&self.s, Windows::Whole, &qkv, mask, &mut out, &mut kept, &mut scratch);
            backend.attention_backward(&self.s, &qkv, &out, &kept, mask, &d_out, &mut d_qkv, &mut scratch);
        })?;
        Ok(vec![
            Found::new("forward", read(backend, &out, self.d_out.len())?),
            Found::new("d_qkv", read(backend, &d_qkv, len)?),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let Heads { sequences, block, heads, kv_heads, size, scale } = self.s;
        let (qkv, d_out) = (widened(&self.qkv), widened(&self.d_out));
        let (mut out, mut d_qkv) = (vec![0.0; d_out.len()], vec![0.0; qkv.len()]);
        let scale = f64::from(scale);
        for sequence in 0..sequences {
            for head in 0..heads {
                let shared = head / (heads / kv_heads);
                let row = |place: usize| (sequence * block + place) * self.s.row();
                let query = |place: usize| row(place) + head * size;
                let key = |place: usize| row(place) + (heads + shared) * size;
                let value = |place: usize| row(place) + (heads + kv_heads + shared) * size;
                let given = |place: usize| (sequence * block + place) * self.s.width() + head * size;
                let sum = |a: usize, b: &[f64], b_at: usize, size_of: fn(f64) -> f64| -> f64 {
                    (0..size).map(|at| size_of(qkv[a + at] * b[b_at + at])).sum()
                };
                for place in 0..block {
                    let scores: Vec<f64> =
                        (0..=place).map(|j| scale * sum(query(place), &qkv, key(j), |x| x)).collect();
                    let most = (0..=place)
                        .map(|j| scale * sum(query(place), &qkv, key(j), f64::abs))
                        .fold(0.0, f64::max);
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                    let mut factors = vec![1.0; place + 1];
                    if let Some(mask) = self.mask() {
                        let number = (sequence * heads + head) * block + place;
                        mask.row(number, place + 1, |j, factor| factors[j] = f64::from(factor));
                    }
                    // An error of a score is a share of its weight.
                    let weights: Vec<f64> =
                        scores.iter().map(|s| (s - top).exp() / total * (1.0 + 2.0 * most)).collect();
                    let mut dot = 0.0;
                    for at in 0..size {
                        let mixed: f64 =
                            (0..=place).map(|j| weights[j] * factors[j] * qkv[value(j) + at].abs()).sum();
                        out[given(place) + at] = mixed;
                        dot += mixed * d_out[given(place) + at].abs();
                    }
                    for j in 0..=place {
                        let through = factors[j] * sum(value(j), &d_out, given(place), f64::abs);
                        let d_score = scale * weights[j] * (through + dot);
                        for at in 0..size {
                            d_qkv[query(place) + at] += d_score * qkv[key(j) + at].abs();
                            d_qkv[key(j) + at] += d_score * qkv[query(place) + at].abs();
                            d_qkv[value(j) + at] += weights[j] * factors[j] * d_out[given(place) + at].abs();
                        }
                    }
                }
            }
        }
        let allowance = |magnitude, sum| Allowance {
            magnitude,
            sum,
            steps: STEPS,
            narrowed: NARROWED,
            kept: Kept::Value,
        };
        let group = heads / kv_heads;
        Ok(vec![allowance(out, block + size), allowance(d_qkv, block * group + size)])
    }
}

/// Windows, their rows, heads, those with keys, and their size.
const SHAPES: &[[usize; 5]] = &[
    [1, 1, 1, 1, 8],
    [3, 2, 2, 1, 8],
    [2, 3, 1, 1, 16],
    [5, 8, 4, 4, 16],
    [2, 7, 3, 1, 24],
    [1, 9, 4, 2, 16],
    [2, 17, 2, 2, 17],
    [1, 31, 2, 1, 32],
    [2, 33, 3, 3, 32],
    [1, 64, 2, 1, 48],
    [1, 65, 2, 2, 64],
    [2, 63, 4, 2, 64],
    [1, 97, 2, 1, 80],
    [1, 128, 1, 1, 96],
    [1, 129, 2, 1, 128],
    [1, 200, 6, 2, 64],
    [3, 13, 6, 6, 5],
    [1, 40, 2, 1, 1],
    [1, 37, 1, 1, 160],
];
const FEW_SHAPES: &[[usize; 5]] = &[
    [2, 3, 2, 1, 8],
    [1, 9, 4, 2, 16],
    [1, 33, 1, 1, 17],
    [1, 70, 2, 1, 32],
    [1, 20, 2, 1, 64],
    [1, 19, 1, 1, 96],
    [1, 35, 1, 1, 128],
    [1, 9, 1, 1, 160],
];

pub(super) fn attentions<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(SHAPES, FEW_SHAPES).to_vec();
    for (index, [sequences, block, heads, kv_heads, size]) in shapes.into_iter().enumerate() {
        let scale = if index % 4 == 3 { 0.5 } else { (1.0 / (size as f64).sqrt()) as f32 };
        let s = Heads { sequences, block, heads, kv_heads, size, scale };
        let config = Config { heads, kv_heads, head_size: size, context: block, ..config(4) };
        suite.check(&Attended {
            s,
            subject: Subject::new(config, suite.rounding, 0),
            dropout: [0.0, 0.0, 0.2][index % 3],
            // Wide enough that some weights are small.
            qkv: drawn(suite.rounding, s.rows() * s.row(), 300 + index as u64)
                .iter()
                .map(|x| suite.rounding.of(2.0 * x))
                .collect(),
            d_out: drawn(suite.rounding, s.rows() * s.width(), 320 + index as u64),
        })?;
    }
    Ok(())
}
