//! The only list of parameters: role, shape, initialisation, decay and place of each.
//!
//! Nothing else in the project identifies a parameter by a number or a formatted string. The trainer's arena
//! is this list laid end to end; [`crate::families`] says under which names the same list stands in a file.

use crate::config::Config;

/// Names one parameter of one [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(u32);

impl ParameterId {
    /// The parameter's place in [`Layout::parameters`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a parameter does in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `[vocabulary, width]`, one row a token.
    TokenEmbedding,
    /// `[context, width]`, one row a place.
    PositionEmbedding,
    /// The norm before attention.
    AttentionNorm(Part),
    /// The fused projection to queries, keys and values: `[3 width, width]`.
    Qkv(Part),
    /// The projection back from the heads: `[width, width]`.
    AttentionOut(Part),
    /// The norm before the feed-forward layer.
    FeedForwardNorm(Part),
    /// The projection into the feed-forward layer: `[feed_forward, width]`.
    Up(Part),
    /// The projection out of it: `[width, feed_forward]`.
    Down(Part),
    /// The norm before the head.
    FinalNorm(Part),
    /// The projection to logits: `[vocabulary, width]`.
    Head(Part),
}

/// Which half of an affine map a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The matrix, or a norm's gain.
    Weight,
    /// What is added.
    Bias,
}

/// How a parameter begins, in the terms both of our generators understand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
    /// Normal with mean zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

/// Which published recipe initialises the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitScheme {
    /// PyTorch's defaults: linear weight and bias uniform in `1/sqrt(fan_in)`, embeddings standard normal.
    Torch,
    /// GPT-2's: normal 0.02, residual projections divided by `sqrt(2 layers)`, biases zero
    /// (Radford et al. 2019, section 2.3).
    Gpt2,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// What it does.
    pub role: Role,
    /// The layer it belongs to, if any.
    pub layer: Option<usize>,
    /// Rows: outputs of a projection, entries of an embedding, 1 for a vector.
    pub rows: usize,
    /// Columns: inputs of a projection, width of an embedding, length of a vector.
    pub columns: usize,
    /// Where its values start in the arena, in elements.
    pub offset: usize,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether it has no values; a valid layout has no such parameter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its values' range in the arena.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Whether it is a matrix rather than a vector.
    pub fn is_matrix(&self) -> bool {
        !matches!(
            self.role,
            Role::AttentionNorm(_)
                | Role::FeedForwardNorm(_)
                | Role::FinalNorm(_)
                | Role::Qkv(Part::Bias)
                | Role::AttentionOut(Part::Bias)
                | Role::Up(Part::Bias)
                | Role::Down(Part::Bias)
                | Role::Head(Part::Bias)
        )
    }

    /// How it begins under `scheme` in a model of `config`'s shape.
    pub fn init(&self, scheme: InitScheme, config: &Config) -> Init {
        use Role::*;
        let fan_in = |inputs: usize| Init::Uniform { bound: (1.0 / (inputs as f64).sqrt()) as f32 };
        match (scheme, self.role) {
            (_, AttentionNorm(part) | FeedForwardNorm(part) | FinalNorm(part)) => match part {
                Part::Weight => Init::Ones,
                Part::Bias => Init::Zeros,
            },
            (InitScheme::Torch, TokenEmbedding | PositionEmbedding) => Init::Normal { std: 1.0 },
            (InitScheme::Torch, Qkv(_) | AttentionOut(_) | Up(_) | Head(_)) => fan_in(config.width),
            (InitScheme::Torch, Down(_)) => fan_in(config.feed_forward),
            (
                InitScheme::Gpt2,
                Qkv(Part::Bias)
                | AttentionOut(Part::Bias)
                | Up(Part::Bias)
                | Down(Part::Bias)
                | Head(Part::Bias),
            ) => Init::Zeros,
            (InitScheme::Gpt2, AttentionOut(Part::Weight) | Down(Part::Weight)) => {
                Init::Normal { std: (0.02 / (2.0 * config.layers as f64).sqrt()) as f32 }
            }
            (InitScheme::Gpt2, _) => Init::Normal { std: 0.02 },
        }
    }
}

/// A normalisation's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// The gain, `[width]`.
    pub gain: ParameterId,
    /// The bias, `[width]`, if the model has one.
    pub bias: Option<ParameterId>,
}

/// A projection's parameters: `y = x W^T + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: ParameterId,
    /// `[outputs]`, if it has one.
    pub bias: Option<ParameterId>,
    /// Width of a row that goes in.
    pub inputs: usize,
    /// Width of a row that comes out.
    pub outputs: usize,
}

/// One decoder layer's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Before attention.
    pub attention_norm: Norm,
    /// To queries, keys and values.
    pub qkv: Linear,
    /// Back to the residual stream.
    pub attention_out: Linear,
    /// Before the feed-forward layer.
    pub feed_forward_norm: Norm,
    /// Into it.
    pub up: Linear,
    /// Out of it.
    pub down: Linear,
}

/// Every parameter of a model, in the order of the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    parameters: Vec<Parameter>,
    /// `[vocabulary, width]`.
    pub token_embedding: ParameterId,
    /// `[context, width]`.
    pub position_embedding: ParameterId,
    /// The decoder layers.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub final_norm: Norm,
    /// To logits; its weight is the token embedding when the model is tied.
    pub head: Linear,
}

impl Layout {
    /// Lists the parameters of a valid config.
    pub fn new(config: &Config) -> Layout {
        let mut list = List::default();
        let token_embedding = list.matrix(Role::TokenEmbedding, config.vocabulary, config.width);
        let position_embedding = list.matrix(Role::PositionEmbedding, config.context, config.width);
        let layers = (0..config.layers)
            .map(|layer| {
                list.layer = Some(layer);
                Layer {
                    attention_norm: list.norm(Role::AttentionNorm, config),
                    qkv: list.linear(Role::Qkv, config.width, 3 * config.width, config.qkv_bias),
                    attention_out: list.linear(
                        Role::AttentionOut,
                        config.width,
                        config.width,
                        config.attention_bias,
                    ),
                    feed_forward_norm: list.norm(Role::FeedForwardNorm, config),
                    up: list.linear(Role::Up, config.width, config.feed_forward, config.feed_forward_bias),
                    down: list.linear(
                        Role::Down,
                        config.feed_forward,
                        config.width,
                        config.feed_forward_bias,
                    ),
                }
            })
            .collect();
        list.layer = None;
        let final_norm = list.norm(Role::FinalNorm, config);
        let head = if config.tied {
            Linear {
                weight: token_embedding,
                bias: config.head_bias.then(|| list.vector(Role::Head(Part::Bias), config.vocabulary)),
                inputs: config.width,
                outputs: config.vocabulary,
            }
        } else {
            list.linear(Role::Head, config.width, config.vocabulary, config.head_bias)
        };
        Layout { parameters: list.parameters, token_embedding, position_embedding, layers, final_norm, head }
    }

    /// One parameter.
    pub fn parameter(&self, id: ParameterId) -> &Parameter {
        &self.parameters[id.index()]
    }

    /// All parameters with their ids, in arena order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        (0u32..).map(ParameterId).zip(&self.parameters)
    }

    /// Number of values in all: the model's parameter count and the arena's length.
    pub fn parameters(&self) -> usize {
        self.parameters.iter().map(Parameter::len).sum()
    }
}

/// The list under construction.
#[derive(Default)]
struct List {
    parameters: Vec<Parameter>,
    layer: Option<usize>,
    offset: usize,
}

impl List {
    fn matrix(&mut self, role: Role, rows: usize, columns: usize) -> ParameterId {
        let id =
            ParameterId(u32::try_from(self.parameters.len()).expect("a validated config has few parameters"));
        self.parameters.push(Parameter { role, layer: self.layer, rows, columns, offset: self.offset });
        self.offset += rows * columns;
        id
    }

    fn vector(&mut self, role: Role, len: usize) -> ParameterId {
        self.matrix(role, 1, len)
    }

    fn norm(&mut self, role: fn(Part) -> Role, config: &Config) -> Norm {
        Norm {
            gain: self.vector(role(Part::Weight), config.width),
            bias: config.norm_bias.then(|| self.vector(role(Part::Bias), config.width)),
        }
    }

    fn linear(&mut self, role: fn(Part) -> Role, inputs: usize, outputs: usize, bias: bool) -> Linear {
        Linear {
            weight: self.matrix(role(Part::Weight), outputs, inputs),
            bias: bias.then(|| self.vector(role(Part::Bias), outputs)),
            inputs,
            outputs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::lecture;

    #[test]
    fn the_lecture_counts_208961_parameters() {
        assert_eq!(Layout::new(&lecture()).parameters(), 208_961);
    }

    #[test]
    fn gpt_dev_counts_209729_parameters() {
        let config = Config { context: 32, qkv_bias: false, ..lecture() };
        assert_eq!(Layout::new(&config).parameters(), 209_729);
    }

    #[test]
    fn parameters_fill_the_arena_without_hole_or_overlap() {
        for tied in [false, true] {
            let layout = Layout::new(&Config { tied, ..lecture() });
            let mut end = 0;
            for (_, parameter) in layout.iter() {
                assert_eq!(parameter.offset, end);
                assert!(!parameter.is_empty());
                end = parameter.range().end;
            }
            assert_eq!(end, layout.parameters());
        }
    }

    #[test]
    fn a_tied_head_is_the_token_embedding() {
        let layout = Layout::new(&Config { tied: true, head_bias: false, ..lecture() });
        assert_eq!(layout.head.weight, layout.token_embedding);
        assert_eq!(layout.parameters(), 208_961 - 65 * 64 - 65);
    }
}
