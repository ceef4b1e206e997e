//! The model in plain float64: loops one can check by eye, no cache, no threads, no vector instructions.
//! It walks the same [`formats::architecture::forward`] as the runtime and the trainer and judges both; what
//! judges it are PyTorch's logits in `tests/fixtures`.

use formats::architecture::{Machine, forward};
use formats::config::{
    Activation, AttentionScale, Config, NormKind, QueryKeyNorm, RouterScore, RouterWeight,
};
use formats::layout::{Bank, Layout, Linear, Norm, ParameterId};

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
        forward(&mut Walk { model: self, ids, routed: vec![] }, &self.layout).values
    }

    /// The load-balancing loss of windows of `block` ids, each layer's `E sum_i f_i P_i` summed (Fedus et al. 2021,
    /// eq. 4), the probabilities of logistic scores being their shares of the sum.
    pub fn balance(&self, inputs: &[u32], block: usize) -> f64 {
        let mut routed = vec![];
        for ids in inputs.chunks(block) {
            let mut walk = Walk { model: self, ids, routed };
            forward(&mut walk, &self.layout);
            routed = walk.routed;
        }
        let layers: std::collections::BTreeSet<usize> = routed.iter().map(|row| row.layer).collect();
        let of_layer = |layer: usize| {
            let rows: Vec<&Routed> = routed.iter().filter(|row| row.layer == layer).collect();
            let count = rows[0].scores.len();
            let choices: usize = rows.iter().map(|row| row.chosen.len()).sum();
            let share = |expert: usize| {
                rows.iter().filter(|row| row.chosen.contains(&expert)).count() as f64 / choices as f64
            };
            let mean = |expert: usize| {
                let part = |row: &&Routed| row.scores[expert] / row.scores.iter().sum::<f64>();
                rows.iter().map(part).sum::<f64>() / rows.len() as f64
            };
            count as f64 * (0..count).map(|expert| share(expert) * mean(expert)).sum::<f64>()
        };
        layers.into_iter().map(of_layer).sum()
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
    /// What each router said of each row.
    routed: Vec<Routed>,
}

/// What a router said of one row.
struct Routed {
    layer: usize,
    scores: Vec<f64>,
    chosen: Vec<usize>,
}

impl Machine for Walk<'_> {
    type Rows = Matrix;
    /// For each row, its experts and their weights.
    type Routing = Vec<Vec<(usize, f64)>>;

    fn embed(&mut self, layout: &Layout) -> Matrix {
        let width = self.model.config.width;
        let tokens = self.model.values(layout.token_embedding);
        let positions = layout.position_embedding.map(|id| self.model.values(id));
        let mut values = Vec::new();
        for (place, &id) in self.ids.iter().enumerate() {
            for column in 0..width {
                let position = positions.map_or(0.0, |positions| positions[place * width + column]);
                values.push(tokens[id as usize * width + column] + position);
            }
        }
        Matrix { columns: width, values }
    }

    fn norm(&mut self, x: &Matrix, norm: Option<&Norm>) -> Matrix {
        let Some(norm) = norm else { return Matrix { columns: x.columns, values: x.values.clone() } };
        let gain = self.model.values(norm.gain);
        let bias = norm.bias.map(|bias| self.model.values(bias));
        let mut values = Vec::new();
        for row in x.rows() {
            let mean = match self.model.config.norm {
                NormKind::LayerNorm => row.iter().sum::<f64>() / row.len() as f64,
                NormKind::RmsNorm => 0.0,
            };
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

    fn query_key_norm(&mut self, mut qkv: Matrix, norms: &[Norm; 2]) -> Matrix {
        let config = &self.model.config;
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        for row in qkv.values.chunks_mut(qkv.columns) {
            let (queries, rest) = row.split_at_mut(queries);
            for (part, norm) in [(queries, norms[0]), (&mut rest[..keys], norms[1])] {
                let gain = self.model.values(norm.gain);
                let together = match config.query_key_norm {
                    QueryKeyNorm::Whole => part.len(),
                    _ => config.head_size,
                };
                for values in part.chunks_mut(together) {
                    let square = values.iter().map(|v| v * v).sum::<f64>() / together as f64;
                    let root = (square + f64::from(config.norm_eps)).sqrt();
                    values.iter_mut().zip(gain).for_each(|(value, gain)| *value *= gain / root);
                }
            }
        }
        qkv
    }

    fn rotate(&mut self, mut qkv: Matrix) -> Matrix {
        let config = &self.model.config;
        let (size, half) = (config.head_size, config.head_size / 2);
        for (place, row) in qkv.values.chunks_mut(qkv.columns).enumerate() {
            for head in row[..(config.heads + config.kv_heads) * size].chunks_mut(size) {
                for pair in 0..half {
                    let exponent = 2.0 * pair as f64 / size as f64;
                    let (sin, cos) = (place as f64 / f64::from(config.rotary_base).powf(exponent)).sin_cos();
                    let (low, high) = (head[pair], head[pair + half]);
                    head[pair] = low * cos - high * sin;
                    head[pair + half] = high * cos + low * sin;
                }
            }
        }
        qkv
    }

    fn attention(&mut self, qkv: Matrix, _: usize) -> Matrix {
        let config = &self.model.config;
        let (size, width) = (config.head_size, config.heads * config.head_size);
        let divisor = match config.attention_scale {
            AttentionScale::HeadSize => size,
            AttentionScale::Width => config.width,
        };
        let rows: Vec<&[f64]> = qkv.rows().collect();
        let mut out = vec![0.0; rows.len() * width];
        for place in 0..rows.len() {
            for head in 0..config.heads {
                let query = &rows[place][head * size..][..size];
                let key_at = width + head / (config.heads / config.kv_heads) * size;
                let value_at = key_at + config.kv_heads * size;
                let scores: Vec<f64> = rows[..=place]
                    .iter()
                    .map(|row| {
                        let key = &row[key_at..][..size];
                        query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (divisor as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (row, score) in rows.iter().zip(&scores) {
                    let share = (score - largest).exp() / sum;
                    for column in 0..size {
                        out[place * width + head * size + column] += share * row[value_at + column];
                    }
                }
            }
        }
        Matrix { columns: width, values: out }
    }

    fn activation(&mut self, x: Matrix) -> Matrix {
        let config = &self.model.config;
        let function = match config.activation {
            Activation::Relu => |x: f64| x.max(0.0),
            Activation::GeluErf => |x: f64| 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Activation::GeluTanh => |x: f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            },
            Activation::SwiGlu => |x: f64| x / (1.0 + (-x).exp()),
        };
        if !config.activation.gated() {
            return Matrix { columns: x.columns, values: x.values.into_iter().map(function).collect() };
        }
        let columns = x.columns / 2;
        let gated = x.rows().flat_map(|row| {
            let (gate, value) = row.split_at(columns);
            gate.iter().zip(value).map(|(gate, value)| function(*gate) * value)
        });
        Matrix { columns, values: gated.collect() }
    }

    fn route(&mut self, x: &Matrix, bank: &Bank, layer: usize) -> Vec<Vec<(usize, f64)>> {
        let experts = *self.model.config.experts_of(layer).expect("a layer with experts");
        let copy = Matrix { columns: x.columns, values: x.values.clone() };
        let logits = self.linear(copy, &bank.router);
        let model = self.model;
        let bias = bank.selection_bias.map(|bias| model.values(bias));
        let routed = &mut self.routed;
        let mut route = |logits: &[f64]| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            let scores: Vec<f64> = match experts.score {
                RouterScore::Softmax => logits.iter().map(|logit| (logit - largest).exp() / sum).collect(),
                RouterScore::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
            };
            let choice = |expert: usize| scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
            let mut order: Vec<usize> = (0..bank.count).collect();
            order.sort_by(|&a, &b| choice(b).total_cmp(&choice(a)).then(a.cmp(&b)));
            let chosen = &order[..bank.active];
            routed.push(Routed { layer, scores: scores.clone(), chosen: chosen.to_vec() });
            let divisor = match experts.weight {
                RouterWeight::Score => 1.0,
                RouterWeight::Renormalised => chosen.iter().map(|&expert| scores[expert]).sum(),
            };
            let weighted = chosen.iter().map(|&expert| (expert, scores[expert] / divisor));
            weighted.chain((0..bank.shared).map(|shared| (bank.count + shared, 1.0))).collect()
        };
        logits.rows().map(&mut route).collect()
    }

    fn experts(&mut self, x: Matrix, routing: Vec<Vec<(usize, f64)>>, bank: &Bank) -> Matrix {
        let mut values = vec![];
        for (row, routed) in x.rows().zip(routing) {
            let mut sum = vec![0.0; x.columns];
            for (expert, weight) in routed {
                let one = Matrix { columns: x.columns, values: row.to_vec() };
                let hidden = self.linear(one, &bank.up(expert));
                let hidden = self.activation(hidden);
                let out = self.linear(hidden, &bank.down(expert));
                sum.iter_mut().zip(&out.values).for_each(|(sum, value)| *sum += weight * value);
            }
            values.extend(sum);
        }
        Matrix { columns: x.columns, values }
    }

    fn add(&mut self, mut stream: Matrix, branch: Matrix, norm: Option<&Norm>) -> Matrix {
        for (sum, value) in stream.values.iter_mut().zip(&branch.values) {
            *sum += value;
        }
        self.norm(&stream, norm)
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
