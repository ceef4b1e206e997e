//! The model in plain float64: loops one can check by eye, no cache, no threads, no vector instructions.
//! It walks the same [`formats::architecture::forward`] as the runtime and the trainer and judges both; what
//! judges it are PyTorch's logits in `tests/fixtures`.

use formats::architecture::{Machine, forward};
use formats::config::{Activation, AttentionScale, Config};
use formats::layout::{Layout, Linear, Norm, ParameterId};

/// A model whose weights are float64.
#[derive(Clone, Debug)]
pub struct Reference {
    config: Config,
    layout: Layout,
    /// Every parameter, in layout order; tests may change a value and look what follows.
    pub weights: Vec<f64>,
}

impl Reference {
    /// A model of the given weights, in layout order.
    pub fn new<T: Copy + Into<f64>>(config: &Config, weights: &[T]) -> Reference {
        let layout = Layout::new(config);
        assert_eq!(weights.len(), layout.parameters(), "one weight for each parameter");
        let weights = weights.iter().map(|&weight| weight.into()).collect();
        Reference { config: config.clone(), layout, weights }
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The logits of every place of one window, `[ids, vocabulary]`.
    pub fn logits(&self, ids: &[u32]) -> Vec<f64> {
        assert!(!ids.is_empty() && ids.len() <= self.config.context, "{} ids in one window", ids.len());
        forward(&mut Walk { model: self, ids }, &self.layout).values
    }

    /// The logits of the window's last place.
    pub fn last_logits(&self, ids: &[u32]) -> Vec<f64> {
        self.logits(ids).split_off((ids.len() - 1) * self.config.vocabulary)
    }

    /// Mean loss in nats over sequences of `block` ids, each a window of its own.
    pub fn loss(&self, inputs: &[u32], targets: &[u32], block: usize) -> f64 {
        assert_eq!(inputs.len(), targets.len());
        assert_eq!(inputs.len() % block, 0);
        let mut sum = 0.0;
        for (window, wanted) in inputs.chunks(block).zip(targets.chunks(block)) {
            let logits = self.logits(window);
            for (row, &target) in logits.chunks(self.config.vocabulary).zip(wanted) {
                sum -= log_probability(row, target);
            }
        }
        sum / inputs.len() as f64
    }

    /// `count` greedy ids after `prompt`, each from the window of the last `context` ids.
    pub fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        for _ in 0..count {
            ids.push(best(&self.last_logits(self.window(&ids))).0);
        }
        ids.split_off(prompt.len())
    }

    /// The difference between the two best logits after `ids`.
    pub fn gap(&self, ids: &[u32]) -> f64 {
        best(&self.last_logits(self.window(ids))).1
    }

    /// The last `context` ids.
    fn window<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        &ids[ids.len().saturating_sub(self.config.context)..]
    }

    fn values(&self, id: ParameterId) -> &[f64] {
        &self.weights[self.layout.parameter(id).range()]
    }
}

/// `log softmax(logits)[id]`.
pub fn log_probability(logits: &[f64], id: u32) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits[id as usize] - largest - sum.ln()
}

/// The id of the largest value, the lower one of equals, and how far the second lies below it.
pub fn best(logits: &[f64]) -> (u32, f64) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let second = order.get(1).map_or(f64::NEG_INFINITY, |&index| logits[index]);
    (order[0] as u32, logits[order[0]] - second)
}

/// `2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (1 3 5 .. (2n+1))`: every term positive, so nothing cancels
/// (Abramowitz and Stegun, 7.1.6).
pub fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (size, 0.0, 1.0);
    while term > sum * 1e-17 {
        sum += term;
        term *= 2.0 * size * size / (2.0 * n + 1.0);
        n += 1.0;
    }
    x.signum() * std::f64::consts::FRAC_2_SQRT_PI * (-size * size).exp() * sum
}

/// `[rows, columns]`.
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.columns)
    }
}

/// One window on its way through one model.
struct Walk<'a> {
    model: &'a Reference,
    ids: &'a [u32],
}

impl Machine for Walk<'_> {
    type Rows = Matrix;

    fn embed(&mut self, layout: &Layout) -> Matrix {
        let width = self.model.config.width;
        let tokens = self.model.values(layout.token_embedding);
        let positions = self.model.values(layout.position_embedding);
        let mut values = Vec::new();
        for (place, &id) in self.ids.iter().enumerate() {
            for column in 0..width {
                values.push(tokens[id as usize * width + column] + positions[place * width + column]);
            }
        }
        Matrix { columns: width, values }
    }

    fn norm(&mut self, x: &Matrix, norm: &Norm) -> Matrix {
        let gain = self.model.values(norm.gain);
        let bias = norm.bias.map(|bias| self.model.values(bias));
        let mut values = Vec::new();
        for row in x.rows() {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let deviation = (variance + f64::from(self.model.config.norm_eps)).sqrt();
            for (column, value) in row.iter().enumerate() {
                let scaled = (value - mean) / deviation * gain[column];
                values.push(scaled + bias.map_or(0.0, |bias| bias[column]));
            }
        }
        Matrix { columns: x.columns, values }
    }

    fn linear(&mut self, x: Matrix, linear: &Linear) -> Matrix {
        let weight = self.model.values(linear.weight);
        let bias = linear.bias.map(|bias| self.model.values(bias));
        let mut values = Vec::new();
        for row in x.rows() {
            for (output, weights) in weight.chunks(linear.inputs).enumerate() {
                let product: f64 = row.iter().zip(weights).map(|(x, w)| x * w).sum();
                values.push(product + bias.map_or(0.0, |bias| bias[output]));
            }
        }
        Matrix { columns: linear.outputs, values }
    }

    fn attention(&mut self, qkv: Matrix, _: usize) -> Matrix {
        let config = &self.model.config;
        let (width, size) = (config.width, config.width / config.heads);
        let divisor = match config.attention_scale {
            AttentionScale::HeadSize => size,
            AttentionScale::Width => width,
        };
        let rows: Vec<&[f64]> = qkv.rows().collect();
        let mut out = vec![0.0; rows.len() * width];
        for place in 0..rows.len() {
            for head in (0..width).step_by(size) {
                let query = &rows[place][head..head + size];
                let scores: Vec<f64> = rows[..=place]
                    .iter()
                    .map(|row| {
                        let key = &row[width + head..width + head + size];
                        query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (divisor as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (row, score) in rows.iter().zip(&scores) {
                    let share = (score - largest).exp() / sum;
                    for column in head..head + size {
                        out[place * width + column] += share * row[2 * width + column];
                    }
                }
            }
        }
        Matrix { columns: width, values: out }
    }

    fn activation(&mut self, mut x: Matrix) -> Matrix {
        let function = match self.model.config.activation {
            Activation::Relu => |x: f64| x.max(0.0),
            Activation::GeluErf => |x: f64| 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Activation::GeluTanh => |x: f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            },
        };
        for value in &mut x.values {
            *value = function(*value);
        }
        x
    }

    fn add(&mut self, mut stream: Matrix, branch: Matrix) -> Matrix {
        for (sum, value) in stream.values.iter_mut().zip(&branch.values) {
            *sum += value;
        }
        stream
    }

    fn logits(&mut self, x: Matrix, head: &Linear) -> Matrix {
        self.linear(x, head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Tolerance, assert_close};
    use crate::models::{random_weights, small};

    #[test]
    fn erf_is_the_published_table() {
        // Abramowitz and Stegun, table 7.1, and the tail's 1 - 1.537e-12 at 5.
        let table = [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650)];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 1e-10, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((1.0 - erf(5.0) - 1.537e-12).abs() < 1e-14);
    }

    #[test]
    fn a_later_token_changes_no_earlier_logit() {
        let config = small();
        let model = Reference::new(&config, &random_weights(&config, 1));
        let (a, b) = (model.logits(&[1, 2, 3, 4]), model.logits(&[1, 2, 3, 5]));
        assert_eq!(a[..3 * config.vocabulary], b[..3 * config.vocabulary]);
        assert_ne!(a[3 * config.vocabulary..], b[3 * config.vocabulary..]);
        assert_close(
            "a shorter window",
            &model.logits(&[1, 2]),
            &a[..2 * config.vocabulary],
            Tolerance { absolute: 1e-14, relative: 0.0 },
        );
    }

    #[test]
    fn zero_weights_lose_the_logarithm_of_the_vocabulary() {
        let config = small();
        let model = Reference::new(&config, &vec![0.0; Layout::new(&config).parameters()]);
        let loss = model.loss(&[1, 2, 3, 4], &[2, 3, 4, 5], 2);
        assert!((loss - (config.vocabulary as f64).ln()).abs() < 1e-12, "{loss}");
    }

    #[test]
    fn the_best_of_equals_is_the_first() {
        assert_eq!(best(&[1.0, 3.0, 3.0]), (1, 0.0));
        assert_eq!(best(&[4.0, 3.0, 1.0]), (0, 1.0));
        assert_eq!(best(&[4.0]), (0, f64::INFINITY));
    }
}
