//! What the cases are made of: drawn numbers that both sides hold exactly, the smallest model that has a parameter of
//! the wanted shape, and buffers filled and read back.

use super::compare::Rounding;
use crate::backend::{Backend, Phase};
use crate::mixing::Mixing;
use crate::ops::adamw::Adam;
use crate::params::Params;
use crate::tape::recompute::Recompute;
use crate::tape::record::record;
use crate::tape::{Mode, Shape};
use formats::config::{Activation, AttentionScale, Config, NormKind, NormOrder, Position, QueryKeyNorm};
use formats::layout::{FeedForward, Linear, Part, Role};
use formats::{Layout, Result};
use runtime::random::{Purpose, Stream};

/// `count` numbers in (-1, 1), none near zero, that storing as an activation does not change.
pub(super) fn drawn(rounding: Rounding, count: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Init);
    (0..count as u64)
        .map(|index| {
            let value = 2.0 * stream.uniform(0, index) - 1.0;
            rounding.of(value + value.signum() * 0.02)
        })
        .collect()
}

/// `count` ids below `limit`, so drawn that many are the same.
pub(super) fn ids(count: usize, limit: usize, seed: u64) -> Vec<u32> {
    let stream = Stream::new(seed, Purpose::Batch);
    let few = (limit as u32).min(1 + count as u32 / 2).max(1);
    (0..count as u64)
        .map(|index| {
            let spread = if index % 3 == 0 { limit as u32 } else { few };
            stream.draw(1, index) % spread
        })
        .collect()
}

/// A decoder of one layer, of which a case uses one part.
pub(super) fn config(width: usize) -> Config {
    Config {
        vocabulary: 3,
        context: 2,
        width,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_size: 2,
        feed_forward: 2,
        experts: None,
        position: Position::Learned,
        rotary_base: 10_000.0,
        norm: NormKind::LayerNorm,
        norm_order: NormOrder::Pre,
        query_key_norm: QueryKeyNorm::None,
        activation: Activation::GeluErf,
        attention_scale: AttentionScale::HeadSize,
        norm_eps: 1e-5,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        tied: false,
        head_bias: true,
        dropout: 0.0,
    }
}

/// A model with drawn weights and a gradient that is not zero.
#[derive(Clone)]
pub(super) struct Subject {
    pub config: Config,
    pub layout: Layout,
    pub weights: Vec<f32>,
    pub grads: Vec<f32>,
}

impl Subject {
    /// A model of `config`'s shape.
    pub fn new(config: Config, rounding: Rounding, seed: u64) -> Subject {
        let layout = Layout::new(&config);
        let count = layout.parameters();
        let mut weights = drawn(rounding, count, seed);
        let mut grads = drawn(Rounding::F32, count, seed + 1);
        for (_, parameter) in layout.iter() {
            // What no gradient reaches has none.
            if parameter.role == Role::SelectionBias {
                grads[parameter.range()].fill(0.0);
            }
            // Vectors are read in single precision, but for biases: NVIDIA's library adds the working ones.
            let bias = matches!(
                parameter.role,
                Role::Qkv(Part::Bias)
                    | Role::AttentionOut(Part::Bias)
                    | Role::Up(Part::Bias)
                    | Role::Down(Part::Bias)
                    | Role::Head(Part::Bias)
            );
            if !parameter.is_matrix() && !bias {
                let values = drawn(Rounding::F32, parameter.len(), seed + 2 + parameter.offset as u64);
                weights[parameter.range()].copy_from_slice(&values);
            }
        }
        Subject { config, layout, weights, grads }
    }

    /// The same with every number's size.
    pub fn sizes(&self) -> Subject {
        Subject { weights: sizes(&self.weights), grads: sizes(&self.grads), ..self.clone() }
    }

    /// The map into the dense layer.
    pub fn up(&self) -> Linear {
        match self.layout.layers[0].feed_forward {
            FeedForward::Dense { up, .. } => up,
            FeedForward::Experts(bank) => bank.up(0),
        }
    }

    /// The map out of it.
    pub fn down(&self) -> Linear {
        match self.layout.layers[0].feed_forward {
            FeedForward::Dense { down, .. } => down,
            FeedForward::Experts(bank) => bank.down(0),
        }
    }

    /// Its weights on a device.
    pub fn params<B: Backend>(&self, backend: &B) -> Result<Params<B>> {
        let mut params = Params::new(backend, self.layout.clone())?;
        backend.upload(&self.weights, &mut params.master);
        backend.refresh(&mut params);
        Ok(params)
    }

    /// What a program of this model over so many rows gets to work in.
    pub fn scratch<B: Backend>(&self, backend: &B, sequences: usize, block: usize) -> Result<B::Floats> {
        let (shape, mixing) = (Shape { sequences, block }, Mixing::default());
        let (config, layout) = (&self.config, &self.layout);
        backend.scratch(&record(config, layout, shape, Mode::Train, &mixing, Recompute::Nothing, B::GATHERS))
    }
}

/// The step whose noise the cases draw.
pub(super) const STEP: u64 = 3;

/// What an update is told, where nothing else is asked for.
pub(super) const ADAM: Adam = Adam {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    decay_vectors: false,
    coupled: false,
    step: STEP,
    clip: 0.0,
    gradient_scale: 1.0,
};

/// Verbs carried out as part of an update, which is how a device learns whose noise it draws. A device that records its
/// work would carry out the first case's again: it is asked not to.
pub(super) fn at_step<B: Backend>(backend: &B, adam: &Adam, work: impl FnOnce()) -> Result<()> {
    backend.replayed(Phase::Train { seed: 0, pass: 0, passes: 1, last: false }, Some(adam), work)
}

/// The size of each number.
pub(super) fn sizes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value.abs()).collect()
}

/// Numbers as the bounds take them.
pub(super) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Activations on a device.
pub(super) fn values<B: Backend>(backend: &B, from: &[f32]) -> Result<B::Values> {
    let mut to = backend.values(from.len())?;
    backend.upload_values(from, &mut to);
    Ok(to)
}

/// Room for activations that are not yet numbers: what an operation leaves unwritten fails.
pub(super) fn unwritten<B: Backend>(backend: &B, len: usize) -> Result<B::Values> {
    values(backend, &vec![f32::NAN; len])
}

/// Single-precision numbers on a device.
pub(super) fn floats<B: Backend>(backend: &B, from: &[f32]) -> Result<B::Floats> {
    let mut to = backend.floats(from.len())?;
    backend.upload(from, &mut to);
    Ok(to)
}

/// Ids on a device.
pub(super) fn indices<B: Backend>(backend: &B, from: &[u32]) -> Result<B::Indices> {
    let mut to = backend.indices(from.len())?;
    backend.upload_indices(from, &mut to);
    Ok(to)
}

/// Activations back on the host.
pub(super) fn read<B: Backend>(backend: &B, from: &B::Values, len: usize) -> Result<Vec<f32>> {
    let mut to = vec![f32::NAN; len];
    backend.download_values(from, &mut to)?;
    Ok(to)
}

/// Single-precision numbers back on the host.
pub(super) fn read_floats<B: Backend>(backend: &B, from: &B::Floats, len: usize) -> Result<Vec<f32>> {
    let mut to = vec![f32::NAN; len];
    backend.download(from, &mut to)?;
    Ok(to)
}

/// Sums back on the host.
pub(super) fn read_sums<B: Backend>(backend: &B, from: &B::Sums, len: usize) -> Result<Vec<f64>> {
    let mut to = vec![f64::NAN; len];
    backend.read(from, &mut to)?;
    Ok(to)
}
