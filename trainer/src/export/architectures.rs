//! Which of llama.cpp's models computes what ours does, with its metadata and the names of its tensors.
//!
//! llama.cpp fixes by architecture what our config says part by part, so a config fits one of these or none. What a
//! source lacks and an architecture wants is written where that changes no result: biases of zero, a head that is a copy
//! of the embedding.

use super::gguf::Value;
use super::{Misfit, misfits, refuse, spelt};
use formats::Result;
use formats::checkpoint::{Directory, Dtype};
use formats::config::{
    Activation, AttentionScale, Config, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use formats::layout::{FeedForward, Layer, Layout, Linear, Norm, ParameterId};
use std::ops::Range;

/// Most layers llama.cpp has room for.
const MOST_LAYERS: usize = 512;
/// Most experts of a layer it has room for.
const MOST_EXPERTS: usize = 1024;

/// One of llama.cpp's models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Learned positions, LayerNorm, GELU, biases everywhere, one projection to queries, keys and values.
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU; with experts it is Mixtral. Pairs of the rotation lie side by side.
    Llama,
    /// The same with queries and keys normalised head by head, and experts of renormalised weights.
    Qwen3Moe,
    /// The same with queries and keys normalised whole, and experts weighted by their probability.
    Olmoe,
}

impl Architecture {
    const ALL: [Architecture; 4] =
        [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3Moe, Architecture::Olmoe];

    /// Its name in a file, which begins the keys of its metadata.
    pub(super) fn name(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "gpt2",
            Architecture::Llama => "llama",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Olmoe => "olmoe",
        }
    }

    /// Everything of `config` that it does not compute.
    fn misfits(self, config: &Config) -> Vec<Misfit> {
        let gpt2 = self == Architecture::Gpt2;
        let (position, norm) = match gpt2 {
            true => (Position::Learned, NormKind::LayerNorm),
            false => (Position::Rotary, NormKind::RmsNorm),
        };
        let normalised = match self {
            Architecture::Gpt2 | Architecture::Llama => QueryKeyNorm::None,
            Architecture::Qwen3Moe => QueryKeyNorm::Head,
            Architecture::Olmoe => QueryKeyNorm::Whole,
        };
        let (activations, gelu): (&[Activation], _) = match gpt2 {
            true => (&[Activation::GeluTanh, Activation::GeluErf], "gelu-tanh"),
            false => (&[Activation::SwiGlu], "swiglu"),
        };
        let mut parts = misfits([
            (config.position == position, "position", spelt(config.position), spelt(position)),
            (config.norm == norm, "norm", spelt(config.norm), spelt(norm)),
            (
                config.norm_order == NormOrder::Pre,
                "norm_order",
                spelt(config.norm_order),
                spelt(NormOrder::Pre),
            ),
            (activations.contains(&config.activation), "activation", spelt(config.activation), gelu.into()),
            (
                config.query_key_norm == normalised,
                "query_key_norm",
                spelt(config.query_key_norm),
                spelt(normalised),
            ),
            (
                config.attention_scale == AttentionScale::HeadSize,
                "attention_scale",
                spelt(config.attention_scale),
                spelt(AttentionScale::HeadSize),
            ),
            (!config.head_bias, "head_bias", "true".into(), "false".into()),
            (
                config.layers <= MOST_LAYERS,
                "layers",
                config.layers.to_string(),
                format!("at most {MOST_LAYERS}"),
            ),
            // Only `llama` has a key for the size of a head that reaches every one of its tensors.
            (
                !matches!(self, Architecture::Gpt2 | Architecture::Olmoe)
                    || config.attention_width() == config.width,
                "head_size",
                config.head_size.to_string(),
                format!("{}, the width over the heads", config.width / config.heads),
            ),
        ]);
        parts.extend(self.expert_misfits(config));
        parts
    }

    fn expert_misfits(self, config: &Config) -> Vec<Misfit> {
        let Some(experts) = &config.experts else {
            let dense = matches!(self, Architecture::Gpt2 | Architecture::Llama);
            return misfits([(dense, "experts", "null".into(), "a mixture".into())]);
        };
        if self == Architecture::Gpt2 {
            return misfits([(false, "experts", "a mixture".into(), "null".into())]);
        }
        let weight = match self {
            Architecture::Olmoe => RouterWeight::Score,
            _ => RouterWeight::Renormalised,
        };
        misfits([
            (experts.every == 1, "experts.every", experts.every.to_string(), "1".into()),
            (experts.shared == 0, "experts.shared", experts.shared.to_string(), "0".into()),
            (
                experts.score == RouterScore::Softmax,
                "experts.score",
                spelt(experts.score),
                spelt(RouterScore::Softmax),
            ),
            (experts.weight == weight, "experts.weight", spelt(experts.weight), spelt(weight)),
            (!experts.selection_bias, "experts.selection_bias", "true".into(), "false".into()),
            (!config.feed_forward_bias, "feed_forward_bias", "true".into(), "false with experts".into()),
            (
                experts.count <= MOST_EXPERTS,
                "experts.count",
                experts.count.to_string(),
                format!("at most {MOST_EXPERTS}"),
            ),
        ])
    }

    /// Whether the two elements of a rotated pair lie side by side, where ours lie half a head apart.
    fn interleaves(self) -> bool {
        self == Architecture::Llama
    }

    /// What the file says of the model's shape.
    pub(super) fn metadata(self, config: &Config) -> Vec<(String, Value)> {
        let hidden = config.experts.as_ref().map_or(config.feed_forward, |experts| experts.width);
        let mut list = vec![
            ("vocab_size", Value::count(config.vocabulary)),
            ("context_length", Value::count(config.context)),
            ("embedding_length", Value::count(config.width)),
            ("block_count", Value::count(config.layers)),
            ("feed_forward_length", Value::count(hidden)),
            ("attention.head_count", Value::count(config.heads)),
            ("attention.head_count_kv", Value::count(config.kv_heads)),
        ];
        match config.norm {
            NormKind::LayerNorm => {
                list.push(("attention.layer_norm_epsilon", Value::Number(config.norm_eps)))
            }
            NormKind::RmsNorm => {
                list.push(("attention.layer_norm_rms_epsilon", Value::Number(config.norm_eps)));
            }
        }
        if config.position == Position::Rotary {
            list.extend([
                ("attention.key_length", Value::count(config.head_size)),
                ("attention.value_length", Value::count(config.head_size)),
                ("rope.dimension_count", Value::count(config.head_size)),
                ("rope.freq_base", Value::Number(config.rotary_base)),
            ]);
        }
        if let Some(experts) = &config.experts {
            list.extend([
                ("expert_count", Value::count(experts.count)),
                ("expert_used_count", Value::count(experts.active)),
                ("expert_feed_forward_length", Value::count(experts.width)),
            ]);
        }
        list.into_iter().map(|(key, value)| (format!("{}.{key}", self.name()), value)).collect()
    }

    /// The tensors of the file: matrices in `dtype`; vectors, positions and routers in f32, as llama.cpp wants them.
    pub(super) fn tensors(self, config: &Config, layout: &Layout, dtype: Dtype) -> Vec<Outgoing> {
        let mut list = List { architecture: self, config, layout, dtype, tensors: Vec::new() };
        list.matrix("token_embd.weight", layout.token_embedding, dtype);
        if let Some(id) = layout.position_embedding {
            list.matrix("position_embd.weight", id, Dtype::F32);
        }
        for (index, layer) in layout.layers.iter().enumerate() {
            list.layer(index, layer);
        }
        if let Some(norm) = &layout.final_norm {
            list.norm("output_norm", norm);
        }
        if layout.head.weight != layout.token_embedding || self == Architecture::Olmoe {
            list.matrix("output.weight", layout.head.weight, dtype);
        }
        list.tensors
    }
}

/// The architecture that computes a model, or the parts of it that stand in the way of the nearest one.
pub(super) fn of(directory: &Directory, notes: &mut Vec<String>) -> Result<Architecture> {
    let config = &directory.config;
    let mut nearest: Option<(Architecture, Vec<Misfit>)> = None;
    for architecture in Architecture::ALL {
        let misfits = architecture.misfits(config);
        if nearest.as_ref().is_none_or(|(_, fewest)| misfits.len() < fewest.len()) {
            nearest = Some((architecture, misfits));
        }
    }
    match nearest {
        Some((architecture, misfits)) if misfits.is_empty() => {
            if config.activation == Activation::GeluErf {
                notes.push(
                    "the model was trained with the exact GELU; llama.cpp computes its tanh form, whose values differ \
                     by less than 0.0005"
                        .to_owned(),
                );
            }
            Ok(architecture)
        }
        nearest => {
            let (architecture, misfits) = nearest.unwrap_or((Architecture::Gpt2, Vec::new()));
            Err(refuse(directory, &format!("llama.cpp's {}", architecture.name()), &misfits))
        }
    }
}

/// Rows of one parameter; a vector's elements count as rows of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) id: ParameterId,
    pub(super) rows: Range<usize>,
    /// The size of the heads whose halves are to be interleaved, if they are.
    pub(super) rotated: Option<usize>,
}

impl Slice {
    /// Numbers of a row.
    pub(super) fn width(&self, layout: &Layout) -> usize {
        let parameter = layout.parameter(self.id);
        if parameter.is_matrix() { parameter.columns } else { 1 }
    }

    /// Which of a head's rows comes at place `index` when its halves are interleaved.
    pub(super) fn halves(index: usize, head: usize) -> usize {
        index % 2 * (head / 2) + index / 2
    }
}

/// A tensor of the file, and where its numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outgoing {
    pub(super) name: String,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    /// One after the other; none for zeros.
    pub(super) slices: Vec<Slice>,
}

impl Outgoing {
    #[cfg(test)]
    pub(super) fn zeros(name: &str, shape: Vec<usize>, dtype: Dtype) -> Outgoing {
        Outgoing { name: name.to_owned(), shape, dtype, slices: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.len() as u64 * self.dtype.size() as u64
    }
}

/// The tensors under construction.
struct List<'a> {
    architecture: Architecture,
    config: &'a Config,
    layout: &'a Layout,
    dtype: Dtype,
    tensors: Vec<Outgoing>,
}

impl List<'_> {
    fn layer(&mut self, index: usize, layer: &Layer) {
        let name = |part: &str| format!("blk.{index}.{part}");
        self.norm(&name("attn_norm"), &layer.attention_norm);
        self.queries_keys_values(&name("attn"), &layer.qkv);
        if let Some([query, key]) = &layer.query_key_norm {
            self.norm(&name("attn_q_norm"), query);
            self.norm(&name("attn_k_norm"), key);
        }
        self.linear(&name("attn_output"), &layer.attention_out);
        self.norm(&name("ffn_norm"), &layer.feed_forward_norm);
        match &layer.feed_forward {
            FeedForward::Dense { up, down } => {
                let hidden = down.inputs;
                if self.config.activation.gated() {
                    self.rows(&name("ffn_gate"), up, 0..hidden, None);
                    self.rows(&name("ffn_up"), up, hidden..2 * hidden, None);
                } else {
                    self.linear(&name("ffn_up"), up);
                }
                self.linear(&name("ffn_down"), down);
            }
            FeedForward::Experts(bank) => {
                self.matrix(&name("ffn_gate_inp.weight"), bank.router.weight, Dtype::F32);
                let hidden = bank.down(0).inputs;
                let ups = |rows: Range<usize>| {
                    let of = |expert| Slice { id: bank.up(expert).weight, rows: rows.clone(), rotated: None };
                    (0..bank.count).map(of).collect::<Vec<_>>()
                };
                let into = vec![bank.count, hidden, self.config.width];
                self.put(name("ffn_gate_exps.weight"), into.clone(), self.dtype, ups(0..hidden));
                self.put(name("ffn_up_exps.weight"), into, self.dtype, ups(hidden..2 * hidden));
                let down = |expert| {
                    let Linear { weight, outputs, .. } = bank.down(expert);
                    Slice { id: weight, rows: 0..outputs, rotated: None }
                };
                let out = vec![bank.count, self.config.width, hidden];
                let downs = (0..bank.count).map(down).collect();
                self.put(name("ffn_down_exps.weight"), out, self.dtype, downs);
            }
        }
    }

    fn queries_keys_values(&mut self, name: &str, qkv: &Linear) {
        if self.architecture == Architecture::Gpt2 {
            return self.linear(&format!("{name}_qkv"), qkv);
        }
        let (queries, keys) = (self.config.attention_width(), self.config.kv_heads * self.config.head_size);
        let head = self.architecture.interleaves().then_some(self.config.head_size);
        self.rows(&format!("{name}_q"), qkv, 0..queries, head);
        self.rows(&format!("{name}_k"), qkv, queries..queries + keys, head);
        self.rows(&format!("{name}_v"), qkv, queries + keys..queries + 2 * keys, None);
    }

    /// A projection as it is; a bias that the architecture always has is zero where ours has none.
    fn linear(&mut self, name: &str, linear: &Linear) {
        self.rows(name, linear, 0..linear.outputs, None);
    }

    /// Some rows of a projection.
    fn rows(&mut self, name: &str, linear: &Linear, rows: Range<usize>, rotated: Option<usize>) {
        let slice = |id| vec![Slice { id, rows: rows.clone(), rotated }];
        let shape = vec![rows.len(), linear.inputs];
        self.put(format!("{name}.weight"), shape, self.dtype, slice(linear.weight));
        self.bias(name, rows.len(), linear.bias.map(slice));
    }

    fn norm(&mut self, name: &str, norm: &Norm) {
        let len = self.layout.parameter(norm.gain).len();
        let slice = |id| vec![Slice { id, rows: 0..len, rotated: None }];
        self.put(format!("{name}.weight"), vec![len], Dtype::F32, slice(norm.gain));
        self.bias(name, len, norm.bias.map(slice));
    }

    fn bias(&mut self, name: &str, len: usize, slices: Option<Vec<Slice>>) {
        if slices.is_some() || self.architecture == Architecture::Gpt2 {
            self.put(format!("{name}.bias"), vec![len], Dtype::F32, slices.unwrap_or_default());
        }
    }

    /// A whole parameter that is a matrix.
    fn matrix(&mut self, name: &str, id: ParameterId, dtype: Dtype) {
        let parameter = self.layout.parameter(id);
        let slice = Slice { id, rows: 0..parameter.rows, rotated: None };
        self.put(name.to_owned(), vec![parameter.rows, parameter.columns], dtype, vec![slice]);
    }

    fn put(&mut self, name: String, shape: Vec<usize>, dtype: Dtype, slices: Vec<Slice>) {
        self.tensors.push(Outgoing { name, shape, dtype, slices });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_interleaved_once_each() {
        let order: Vec<usize> = (0..8).map(|index| Slice::halves(index, 8)).collect();
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7]);
    }
}
