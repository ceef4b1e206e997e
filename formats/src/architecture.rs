//! The model, written once.
//!
//! [`forward`] is the order of operations; a [`Machine`] is whoever carries them out: the trainer's recorder,
//! the runtime's session, a float64 reference in the tests, and [`count`]'s counter. Nothing here knows of
//! gradients, caches, dropout or threads: those belong inside a machine's verbs.

use crate::config::{Config, NormOrder};
use crate::layout::{Bank, FeedForward, Layout, Linear, Norm};

/// Something that can carry out a model's operations.
///
/// `Rows` is a handle to `[rows, width]` numbers, one row a token. A handle given by value is used for the
/// last time; one given by reference is needed again.
pub trait Machine {
    /// A handle to one matrix of activations.
    type Rows;
    /// Which experts each row goes to, and with what weight.
    type Routing;

    /// Token embedding, plus position embedding where positions are learned, of the rows at hand.
    fn embed(&mut self, layout: &Layout) -> Self::Rows;
    /// The residual stream as a branch or the head reads it: the config's norm of each row, or as it stands.
    fn norm(&mut self, x: &Self::Rows, norm: Option<&Norm>) -> Self::Rows;
    /// `x W^T + b`.
    fn linear(&mut self, x: Self::Rows, linear: &Linear) -> Self::Rows;
    /// RMSNorm of the queries and of the keys within fused rows, each head or all heads together.
    fn query_key_norm(&mut self, qkv: Self::Rows, norms: &[Norm; 2]) -> Self::Rows;
    /// Rotary positions on the queries and keys within fused rows.
    fn rotate(&mut self, qkv: Self::Rows) -> Self::Rows;
    /// Causal self-attention of `layer` over fused queries, keys and values: `[rows, (heads + 2 kv_heads)
    /// head_size]` to `[rows, heads head_size]`.
    fn attention(&mut self, qkv: Self::Rows, layer: usize) -> Self::Rows;
    /// The feed-forward nonlinearity, element by element; a gated one halves the columns.
    fn activation(&mut self, x: Self::Rows) -> Self::Rows;
    /// The router: scores in f32, the best `active` of them, ties to the lower index, and their weights.
    fn route(&mut self, x: &Self::Rows, bank: &Bank, layer: usize) -> Self::Routing;
    /// `sum_i w_i down_i(activation(up_i(x)))` over the experts each row was routed to, and the shared ones with
    /// weight one. Only these are computed.
    fn experts(&mut self, x: Self::Rows, routing: Self::Routing, bank: &Bank) -> Self::Rows;
    /// The residual stream plus a branch's result, normalised if there is a norm.
    fn add(&mut self, stream: Self::Rows, branch: Self::Rows, norm: Option<&Norm>) -> Self::Rows;
    /// The projection to the vocabulary; a machine may keep only the rows it needs.
    fn logits(&mut self, x: Self::Rows, head: &Linear) -> Self::Rows;
}

/// A decoder: the lecture's GPT, GPT-1, GPT-2, Llama, Mixtral and their kin.
///
/// For each layer, `x += out(attention(qkv(norm(x))))` and then `x += down(activation(up(norm(x))))`
/// (Radford et al. 2019, section 2.3), the latter summed over the chosen experts where there are several
/// (Shazeer et al. 2017, eq. 1). Where norms follow, `x = norm(x + out(attention(qkv(x))))` and so on (Vaswani et al.
/// 2017, section 3.1; GPT-1, 2018).
pub fn forward<M: Machine>(machine: &mut M, layout: &Layout) -> M::Rows {
    // Before a branch, and after it.
    let norms = |norm| match layout.norm_order {
        NormOrder::Pre => (Some(norm), None),
        NormOrder::Post => (None, Some(norm)),
    };
    let mut x = machine.embed(layout);
    for (index, layer) in layout.layers.iter().enumerate() {
        let (before, after) = norms(&layer.attention_norm);
        let h = machine.norm(&x, before);
        let h = machine.linear(h, &layer.qkv);
        let h = match &layer.query_key_norm {
            Some(norms) => machine.query_key_norm(h, norms),
            None => h,
        };
        let h = if layout.position_embedding.is_none() { machine.rotate(h) } else { h };
        let h = machine.attention(h, index);
        let h = machine.linear(h, &layer.attention_out);
        x = machine.add(x, h, after);

        let (before, after) = norms(&layer.feed_forward_norm);
        let h = machine.norm(&x, before);
        let h = match &layer.feed_forward {
            FeedForward::Dense { up, down } => {
                let h = machine.linear(h, up);
                let h = machine.activation(h);
                machine.linear(h, down)
            }
            FeedForward::Experts(bank) => {
                let routing = machine.route(&h, bank, index);
                machine.experts(h, routing, bank)
            }
        };
        x = machine.add(x, h, after);
    }
    let h = machine.norm(&x, layout.final_norm.as_ref());
    machine.logits(h, &layout.head)
}

/// What one token costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Parameters read in matrix products and norms for one token; embeddings count the rows read.
    pub active_parameters: u64,
    /// Multiplications and additions for one token in the matrix products.
    pub flops: u64,
    /// Attention's own multiplications and additions for one token, for each position attended to.
    pub attention_flops_per_position: u64,
}

/// Counts what one token costs by walking [`forward`].
pub fn count(config: &Config, layout: &Layout) -> Cost {
    let mut counter = Counter { config, layout, cost: Cost::default() };
    forward(&mut counter, layout);
    counter.cost
}

struct Counter<'a> {
    config: &'a Config,
    layout: &'a Layout,
    cost: Cost,
}

impl Machine for Counter<'_> {
    type Rows = ();
    type Routing = ();

    fn embed(&mut self, layout: &Layout) {
        let rows = 1 + u64::from(layout.position_embedding.is_some());
        self.cost.active_parameters += rows * self.config.width as u64;
    }

    fn norm(&mut self, _: &(), norm: Option<&Norm>) {
        let Some(norm) = norm else { return };
        self.cost.active_parameters += self.config.width as u64 * (1 + u64::from(norm.bias.is_some()));
    }

    fn linear(&mut self, _: (), linear: &Linear) {
        let products = linear.inputs as u64 * linear.outputs as u64;
        self.cost.active_parameters += products + linear.bias.map_or(0, |_| linear.outputs as u64);
        self.cost.flops += 2 * products;
    }

    fn query_key_norm(&mut self, _: (), norms: &[Norm; 2]) {
        for norm in norms {
            self.cost.active_parameters += self.layout.parameter(norm.gain).len() as u64;
        }
    }

    fn rotate(&mut self, _: ()) {}

    fn attention(&mut self, _: (), _: usize) {
        self.cost.attention_flops_per_position += 4 * self.config.attention_width() as u64;
    }

    fn activation(&mut self, _: ()) {}

    fn route(&mut self, _: &(), bank: &Bank, _: usize) {
        self.cost.active_parameters += bank.selection_bias.map_or(0, |_| bank.count as u64);
        self.linear((), &bank.router);
    }

    fn experts(&mut self, _: (), (): (), bank: &Bank) {
        // Experts are alike: the first stands for each that is chosen.
        for _ in 0..bank.slots() {
            self.linear((), &bank.up(0));
            self.linear((), &bank.down(0));
        }
    }

    fn add(&mut self, (): (), (): (), norm: Option<&Norm>) {
        self.norm(&(), norm);
    }

    fn logits(&mut self, x: (), head: &Linear) {
        self.linear(x, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::lecture;

    #[test]
    fn the_counter_walks_every_parameter_but_unread_embedding_rows() {
        for norm_order in [NormOrder::Pre, NormOrder::Post] {
            let config = Config { norm_order, ..lecture() };
            let layout = Layout::new(&config);
            let cost = count(&config, &layout);
            let unread = (config.vocabulary - 1 + config.context - 1) * config.width;
            assert_eq!(cost.active_parameters as usize, layout.parameters() - unread);
        }
    }
}
