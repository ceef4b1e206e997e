//! The only list of parameters: role, shape, initialisation, decay and place of each.
//!
//! Nothing else in the project identifies a parameter by a number or a formatted string. The trainer's arena
//! is this list laid end to end; [`crate::families`] says under which names the same list stands in a file.

use crate::config::{Config, Experts, NormOrder, Position, QueryKeyNorm};

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
    /// The norm before attention, or after it.
    AttentionNorm(Part),
    /// The fused projection to queries, keys and values: `[(heads + 2 kv_heads) head_size, width]`.
    Qkv(Part),
    /// The gain on queries.
    QueryNorm,
    /// The gain on keys.
    KeyNorm,
    /// The projection back from the heads: `[width, heads head_size]`.
    AttentionOut(Part),
    /// The norm before the feed-forward layer, or after it.
    FeedForwardNorm(Part),
    /// The projection to the experts' scores: `[experts, width]`.
    Router,
    /// What is added to the scores for the choice alone: `[experts]`. Set by counting, not by a gradient.
    SelectionBias,
    /// The projection to the scale of the router's noise: `[experts, width]`. Part of training, not of a model.
    RouterNoise,
    /// The projection into the feed-forward layer or one expert: `[hidden, width]`; a gate's rows stand first.
    Up(Part),
    /// The projection out of it: `[width, hidden]`.
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
    /// The expert it belongs to, if any; shared experts are numbered after those the router knows.
    pub expert: Option<usize>,
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
                | Role::QueryNorm
                | Role::KeyNorm
                | Role::SelectionBias
        )
    }

    /// Whether gradients change it, and decay may.
    pub fn is_learned(&self) -> bool {
        self.role != Role::SelectionBias
    }

    /// Whether a stored model has it.
    pub fn is_stored(&self) -> bool {
        self.role != Role::RouterNoise
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
            (_, QueryNorm | KeyNorm) => Init::Ones,
            (_, SelectionBias | RouterNoise) => Init::Zeros,
            (InitScheme::Torch, TokenEmbedding | PositionEmbedding) => Init::Normal { std: 1.0 },
            (InitScheme::Torch, Qkv(_) | Router | Up(_) | Head(_)) => fan_in(config.width),
            (InitScheme::Torch, AttentionOut(_)) => fan_in(config.attention_width()),
            (InitScheme::Torch, Down(_)) => fan_in(match (&config.experts, self.expert) {
                (Some(experts), Some(_)) => experts.width,
                _ => config.feed_forward,
            }),
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
    /// Of what enters attention, or of what it was added to: see [`Layout::norm_order`].
    pub attention_norm: Norm,
    /// To queries, keys and values.
    pub qkv: Linear,
    /// On queries and on keys, if the model has them.
    pub query_key_norm: Option<[Norm; 2]>,
    /// Back to the residual stream.
    pub attention_out: Linear,
    /// Likewise of the feed-forward layer.
    pub feed_forward_norm: Norm,
    /// What follows it.
    pub feed_forward: FeedForward,
}

/// A layer's second half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One hidden layer for every token.
    Dense {
        /// Into it.
        up: Linear,
        /// Out of it.
        down: Linear,
    },
    /// Several, and a router.
    Experts(Bank),
}

/// The experts of one layer, whose parameters stand one expert after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// To the experts' scores.
    pub router: Linear,
    /// Added to the scores for the choice alone.
    pub selection_bias: Option<ParameterId>,
    /// To the scale of the noise on the scores; training's alone.
    pub noise: Option<ParameterId>,
    /// Experts the router chooses from.
    pub count: usize,
    /// How many it chooses.
    pub active: usize,
    /// Experts that every token passes through, numbered from `count` on.
    pub shared: usize,
    /// The first expert's way in and out.
    first: [Linear; 2],
    /// Parameters of one expert.
    stride: u32,
}

impl Bank {
    /// Number of experts, the shared ones among them.
    pub fn len(&self) -> usize {
        self.count + self.shared
    }

    /// Whether there are none; a valid layout has no such bank.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Experts whose outputs one token is given: the chosen and the shared.
    pub fn slots(&self) -> usize {
        self.active + self.shared
    }

    /// One expert's projection in; its [`Linear::outputs`] count a gate's rows too.
    pub fn up(&self, expert: usize) -> Linear {
        self.shifted(self.first[0], expert)
    }

    /// One expert's projection out.
    pub fn down(&self, expert: usize) -> Linear {
        self.shifted(self.first[1], expert)
    }

    fn shifted(&self, linear: Linear, expert: usize) -> Linear {
        assert!(expert < self.len(), "expert {expert} of {}", self.len());
        let shift = |id: ParameterId| ParameterId(id.0 + self.stride * expert as u32);
        Linear { weight: shift(linear.weight), bias: linear.bias.map(shift), ..linear }
    }
}

/// Every parameter of a model, in the order of the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    parameters: Vec<Parameter>,
    /// `[vocabulary, width]`.
    pub token_embedding: ParameterId,
    /// `[context, width]`, if positions are learned.
    pub position_embedding: Option<ParameterId>,
    /// The decoder layers.
    pub layers: Vec<Layer>,
    /// Where layers normalise.
    pub norm_order: NormOrder,
    /// Before the head, where layers normalise what enters them.
    pub final_norm: Option<Norm>,
    /// To logits; its weight is the token embedding when the model is tied.
    pub head: Linear,
}

impl Layout {
    /// Lists the parameters of a valid config.
    pub fn new(config: &Config) -> Layout {
        let mut list = List::default();
        let token_embedding = list.matrix(Role::TokenEmbedding, config.vocabulary, config.width);
        let position_embedding = (config.position == Position::Learned)
            .then(|| list.matrix(Role::PositionEmbedding, config.context, config.width));
        let mut layers: Vec<Layer> = (0..config.layers).map(|layer| list.layer(layer, config)).collect();
        list.layer = None;
        let norm_order = config.norm_order;
        let final_norm = (norm_order == NormOrder::Pre).then(|| list.norm(Role::FinalNorm, config));
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
        // Last, so that a stored model's parameters are a layout of their own with the same ids.
        for (index, layer) in layers.iter_mut().enumerate() {
            if let (FeedForward::Experts(bank), Some(true)) =
                (&mut layer.feed_forward, config.experts_of(index).map(|experts| experts.noise))
            {
                list.layer = Some(index);
                bank.noise = Some(list.matrix(Role::RouterNoise, bank.count, config.width));
            }
        }
        let parameters = list.parameters;
        Layout { parameters, token_embedding, position_embedding, layers, norm_order, final_norm, head }
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

    /// Number of values that one token is computed from: all but the experts that are not chosen.
    pub fn active_parameters(&self) -> usize {
        let idle = self.layers.iter().map(|layer| match layer.feed_forward {
            FeedForward::Dense { .. } => 0,
            FeedForward::Experts(bank) => {
                let first = self.parameter(bank.up(0).weight).offset;
                let last = bank.down(bank.len() - 1);
                let end = self.parameter(last.bias.unwrap_or(last.weight)).range().end;
                (end - first) / bank.len() * (bank.count - bank.active)
            }
        });
        self.parameters() - idle.sum::<usize>()
    }
}

/// The list under construction.
#[derive(Default)]
struct List {
    parameters: Vec<Parameter>,
    layer: Option<usize>,
    expert: Option<usize>,
    offset: usize,
}

impl List {
    fn layer(&mut self, index: usize, config: &Config) -> Layer {
        self.layer = Some(index);
        let (width, attention) = (config.width, config.attention_width());
        Layer {
            attention_norm: self.norm(Role::AttentionNorm, config),
            qkv: self.linear(Role::Qkv, width, config.qkv_width(), config.qkv_bias),
            query_key_norm: self.query_key_norm(config),
            attention_out: self.linear(Role::AttentionOut, attention, width, config.attention_bias),
            feed_forward_norm: self.norm(Role::FeedForwardNorm, config),
            feed_forward: match config.experts_of(index) {
                Some(experts) => FeedForward::Experts(self.bank(experts, config)),
                None => {
                    let [up, down] = self.feed_forward(config.feed_forward, config);
                    FeedForward::Dense { up, down }
                }
            },
        }
    }

    fn query_key_norm(&mut self, config: &Config) -> Option<[Norm; 2]> {
        let lens = match config.query_key_norm {
            QueryKeyNorm::None => return None,
            QueryKeyNorm::Head => [config.head_size; 2],
            QueryKeyNorm::Whole => [config.attention_width(), config.kv_heads * config.head_size],
        };
        let [query, key] = [(Role::QueryNorm, lens[0]), (Role::KeyNorm, lens[1])];
        Some([query, key].map(|(role, len)| Norm { gain: self.vector(role, len), bias: None }))
    }

    fn bank(&mut self, experts: &Experts, config: &Config) -> Bank {
        let router = Linear {
            weight: self.matrix(Role::Router, experts.count, config.width),
            bias: None,
            inputs: config.width,
            outputs: experts.count,
        };
        let selection_bias = experts.selection_bias.then(|| self.vector(Role::SelectionBias, experts.count));
        let begin = self.parameters.len();
        self.expert = Some(0);
        let first = self.feed_forward(experts.width, config);
        let stride = self.parameters.len() - begin;
        for expert in 1..experts.count + experts.shared {
            self.expert = Some(expert);
            self.feed_forward(experts.width, config);
        }
        self.expert = None;
        Bank {
            router,
            selection_bias,
            noise: None,
            count: experts.count,
            active: experts.active,
            shared: experts.shared,
            first,
            stride: stride as u32,
        }
    }

    /// The way into a hidden layer and out of it.
    fn feed_forward(&mut self, hidden: usize, config: &Config) -> [Linear; 2] {
        let bias = config.feed_forward_bias;
        [
            self.linear(Role::Up, config.width, config.activation.inputs(hidden), bias),
            self.linear(Role::Down, hidden, config.width, bias),
        ]
    }

    fn matrix(&mut self, role: Role, rows: usize, columns: usize) -> ParameterId {
        let id =
            ParameterId(u32::try_from(self.parameters.len()).expect("a validated config has few parameters"));
        let List { layer, expert, offset, .. } = *self;
        self.parameters.push(Parameter { role, layer, expert, rows, columns, offset });
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
    use crate::config::{Activation, NormKind, RouterScore, RouterWeight};

    #[test]
    fn the_lecture_counts_208961_parameters() {
        assert_eq!(Layout::new(&lecture()).parameters(), 208_961);
    }

    #[test]
    fn gpt_dev_counts_209729_parameters() {
        let config = Config { context: 32, qkv_bias: false, ..lecture() };
        assert_eq!(Layout::new(&config).parameters(), 209_729);
    }

    fn gpt(width: usize, layers: usize, heads: usize) -> Config {
        Config {
            vocabulary: 50257,
            context: 1024,
            width,
            layers,
            heads,
            kv_heads: heads,
            head_size: width / heads,
            feed_forward: 4 * width,
            tied: true,
            head_bias: false,
            ..lecture()
        }
    }

    #[test]
    fn the_gpts_count_what_was_published() {
        let first =
            Config { vocabulary: 40478, context: 512, norm_order: NormOrder::Post, ..gpt(768, 12, 12) };
        for (config, parameters) in [
            (first, 116_534_784),
            (gpt(768, 12, 12), 124_439_808),
            (gpt(1024, 24, 16), 354_823_168),
            (gpt(1280, 36, 20), 774_030_080),
            (gpt(1600, 48, 25), 1_557_611_200),
        ] {
            assert_eq!(Layout::new(&config).parameters(), parameters);
        }
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

    fn mixture(count: usize, active: usize, width: usize) -> Option<Experts> {
        Some(Experts {
            count,
            active,
            width,
            every: 1,
            shared: 0,
            score: RouterScore::Softmax,
            weight: RouterWeight::Renormalised,
            selection_bias: false,
            noise: false,
        })
    }

    fn llama_shaped(vocabulary: usize, width: usize, layers: usize, heads: [usize; 2]) -> Config {
        Config {
            vocabulary,
            width,
            layers,
            heads: heads[0],
            kv_heads: heads[1],
            head_size: width / heads[0],
            position: Position::Rotary,
            norm: NormKind::RmsNorm,
            norm_bias: false,
            activation: Activation::SwiGlu,
            qkv_bias: false,
            attention_bias: false,
            feed_forward_bias: false,
            head_bias: false,
            ..lecture()
        }
    }

    #[test]
    fn mixtral_and_olmoe_count_what_was_published() {
        let mixtral = Config { experts: mixture(8, 2, 14336), ..llama_shaped(32000, 4096, 32, [32, 8]) };
        let layout = Layout::new(&mixtral);
        assert_eq!((layout.parameters(), layout.active_parameters()), (46_702_792_704, 12_879_925_248));
        let olmoe = Config {
            experts: mixture(64, 8, 1024),
            query_key_norm: QueryKeyNorm::Whole,
            ..llama_shaped(50304, 2048, 16, [16, 16])
        };
        let layout = Layout::new(&olmoe);
        assert_eq!((layout.parameters(), layout.active_parameters()), (6_919_161_856, 1_282_017_280));
    }

    #[test]
    fn an_expert_is_where_the_bank_says() {
        let experts = Experts {
            shared: 1,
            every: 2,
            noise: true,
            selection_bias: true,
            ..mixture(3, 2, 8).expect("one")
        };
        let config = Config { experts: Some(experts), ..lecture() };
        let layout = Layout::new(&config);
        let stored = Layout::new(&Config { experts: Some(Experts { noise: false, ..experts }), ..lecture() });
        for (index, layer) in layout.layers.iter().enumerate() {
            let FeedForward::Experts(bank) = layer.feed_forward else {
                assert_eq!(index % 2, 0, "every second layer has experts");
                continue;
            };
            for expert in 0..bank.len() {
                for id in [bank.up(expert).weight, bank.down(expert).weight] {
                    let parameter = layout.parameter(id);
                    assert_eq!((parameter.layer, parameter.expert), (Some(index), Some(expert)));
                    assert_eq!(parameter, stored.parameter(id), "noise moves nothing that is stored");
                }
            }
            assert_eq!(layout.parameter(bank.noise.expect("noise")).role, Role::RouterNoise);
        }
    }

    #[test]
    fn a_tied_head_is_the_token_embedding() {
        let layout = Layout::new(&Config { tied: true, head_bias: false, ..lecture() });
        assert_eq!(layout.head.weight, layout.token_embedding);
        assert_eq!(layout.parameters(), 208_961 - 65 * 64 - 65);
    }
}
