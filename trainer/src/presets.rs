//! Named runs: complete sets of options, from which a config file and flags depart.

use crate::data::{HELD_OUT, TokenizerSource};
use crate::optimizer::{Decay, OptimizerKind};
use crate::options::{Options, nearest};
use crate::progress::ProgressMode;
use crate::random::RngKind;
use crate::schedule::Curve;
use crate::tape::recompute::Recompute;
use formats::checkpoint::Dtype;
use formats::config::{Activation, AttentionScale, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore};
use formats::layout::InitScheme;
use formats::{Error, Result};

/// TinyShakespeare's characters.
const CHARACTERS: usize = 65;
/// GPT-1's byte pairs and its special tokens.
const GPT1_TOKENS: usize = 40_478;
/// GPT-2's and GPT-3's byte pairs and their end of text.
const GPT2_TOKENS: usize = 50_257;

/// A run with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What `--preset` takes.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Tokens of the vocabulary its size is told for; a run takes its tokenizer's.
    pub vocabulary: usize,
    options: fn() -> Options,
}

/// Every preset: of characters, the dense ones first, by size; then those of byte pairs.
pub const PRESETS: &[Preset] = &[
    of_characters("gpt-zero", "the lecture's GPT: block 8, exact GELU", gpt_zero),
    of_characters("gpt-dev", "its larger-context kin: block 32, ReLU", gpt_dev),
    of_characters("nano-cpu", "nanoGPT's character model for a CPU", nano_cpu),
    of_characters("nano", "nanoGPT's character model", nano),
    of_characters("moe-zero", "gpt-zero with 4 experts, top-1; its dense twin is gpt-zero", moe_zero),
    of_characters("moe-nano", "nano-cpu's shape as a small Mixtral: 8 experts, top-2", moe_nano),
    of_characters("moe-nano-dense", "moe-nano's dense twin: equal active FLOPs", moe_nano_dense),
    Preset {
        name: "gpt1",
        about: "GPT-1, 117M: norms follow (Radford et al. 2018)",
        vocabulary: GPT1_TOKENS,
        options: gpt1,
    },
    of_byte_pairs("gpt2", "GPT-2, 124M (Radford et al. 2019)", || gpt2("gpt2", 12, 768, 12, 6e-4)),
    of_byte_pairs(
        "moe-gpt2",
        "gpt2 with 8 experts of half its hidden width, top-2; its dense twin is gpt2",
        moe_gpt2,
    ),
    of_byte_pairs("gpt2-medium", "GPT-2, 355M", || gpt2("gpt2-medium", 24, 1024, 16, 3e-4)),
    of_byte_pairs("gpt2-large", "GPT-2, 774M", || gpt2("gpt2-large", 36, 1280, 20, 2.5e-4)),
    of_byte_pairs("gpt2-xl", "GPT-2, 1.6B", || gpt2("gpt2-xl", 48, 1600, 25, 2e-4)),
    of_byte_pairs("gpt3-small", "GPT-3 Small, 125M (Brown et al. 2020, table 2.1)", || {
        gpt3("gpt3-small", 12, 768, 12, 64, 256, 6e-4)
    }),
    of_byte_pairs("gpt3-medium", "GPT-3 Medium, 350M", || gpt3("gpt3-medium", 24, 1024, 16, 64, 256, 3e-4)),
    of_byte_pairs("gpt3-large", "GPT-3 Large, 760M", || gpt3("gpt3-large", 24, 1536, 16, 96, 256, 2.5e-4)),
    // The table says 24 heads of 128, which neither fill the model's width nor make its 1.3B parameters.
    of_byte_pairs("gpt3-xl", "GPT-3 XL, 1.3B", || gpt3("gpt3-xl", 24, 2048, 16, 128, 512, 2e-4)),
    of_byte_pairs("gpt3-2.7b", "GPT-3 2.7B", || gpt3("gpt3-2.7b", 32, 2560, 32, 80, 512, 1.6e-4)),
    of_byte_pairs("gpt3-6.7b", "GPT-3 6.7B", || gpt3("gpt3-6.7b", 32, 4096, 32, 128, 1024, 1.2e-4)),
    of_byte_pairs("gpt3-13b", "GPT-3 13B: its heads together are narrower than its width", || {
        gpt3("gpt3-13b", 40, 5140, 40, 128, 1024, 1e-4)
    }),
    of_byte_pairs("gpt3-175b", "GPT-3", || gpt3("gpt3-175b", 96, 12_288, 96, 128, 1562, 6e-5)),
];

const fn of_characters(name: &'static str, about: &'static str, options: fn() -> Options) -> Preset {
    Preset { name, about, vocabulary: CHARACTERS, options }
}

const fn of_byte_pairs(name: &'static str, about: &'static str, options: fn() -> Options) -> Preset {
    Preset { name, about, vocabulary: GPT2_TOKENS, options }
}

impl Preset {
    /// Its options.
    pub fn options(&self) -> Options {
        (self.options)()
    }
}

/// The options of the preset called `name`.
pub fn find(name: &str) -> Result<Options> {
    named(name).map(Preset::options)
}

/// The vocabulary that the size of the preset called `name` is told for.
pub fn vocabulary(name: &str) -> Result<usize> {
    named(name).map(|preset| preset.vocabulary)
}

fn named(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known = PRESETS.iter().map(|preset| preset.name);
        let hint = nearest(name, known).map_or(String::new(), |name| format!(" (did you mean {name}?)"));
        Error::Usage(format!("there is no preset {name}{hint}\n  help: the presets are {}", names()))
    })
}

/// The names of all presets, for a sentence.
pub fn names() -> String {
    PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ")
}

/// The lecture's from-scratch GPT.
fn gpt_zero() -> Options {
    Options {
        preset: "gpt-zero".to_owned(),
        tokenizer: TokenizerSource::Characters,
        block: 8,
        context: None,
        width: 64,
        layers: 4,
        heads: 4,
        kv_heads: None,
        head_size: None,
        feed_forward: None,
        experts: 0,
        active_experts: 1,
        expert_width: None,
        expert_every: 1,
        shared_experts: 0,
        router_score: RouterScore::Softmax,
        router_weight: None,
        router_noise: false,
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
        init: InitScheme::Torch,
        batch: 16,
        held_out: HELD_OUT,
        accumulate: 1,
        steps: 5000,
        optimizer: OptimizerKind::Adamw,
        learning_rate: 1e-3,
        schedule: Curve::Constant,
        final_learning_rate: 1e-4,
        warmup: 0,
        decay_steps: None,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decay: Decay::Everything,
        clip: 0.0,
        balance: 0.01,
        router_z: 0.001,
        bias_rate: 0.0,
        router_jitter: 0.0,
        expert_dropout: 0.0,
        output_dropout: 0.0,
        router_dropout: 0.0,
        capacity_factor: 0.0,
        eval_every: 100,
        eval_batches: 200,
        seed: 1337,
        rng: RngKind::Counter,
        device: crate::options::Device::Auto,
        precision: None,
        threads: None,
        recompute: Recompute::Nothing,
        dtype: Dtype::F16,
        save_every: 1000,
        keep: 2,
        log_every: 10,
        sample: 2000,
        progress: ProgressMode::Auto,
    }
}

/// The lecture's table, Karpathy's `gpt_dev`: attention is scaled by the width, as his code does.
fn gpt_dev() -> Options {
    Options {
        preset: "gpt-dev".to_owned(),
        block: 32,
        activation: Activation::Relu,
        attention_scale: AttentionScale::Width,
        qkv_bias: false,
        sample: 500,
        ..gpt_zero()
    }
}

/// nanoGPT's `train_shakespeare_char`: no biases, a tied head, warm-up and cosine.
fn nano() -> Options {
    Options {
        preset: "nano".to_owned(),
        block: 256,
        width: 384,
        layers: 6,
        heads: 6,
        norm_bias: false,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        tied: true,
        head_bias: false,
        dropout: 0.2,
        init: InitScheme::Gpt2,
        batch: 64,
        schedule: Curve::Cosine,
        warmup: 100,
        beta2: 0.99,
        weight_decay: 0.1,
        decay: Decay::Matrices,
        clip: 1.0,
        eval_every: 250,
        save_every: 250,
        sample: 500,
        ..gpt_zero()
    }
}

/// The same for "I only have a macbook", as its README has it.
fn nano_cpu() -> Options {
    Options {
        preset: "nano-cpu".to_owned(),
        block: 64,
        width: 128,
        layers: 4,
        heads: 4,
        dropout: 0.0,
        batch: 12,
        steps: 2000,
        eval_batches: 20,
        ..nano()
    }
}

/// The lecture's mixture: its GPT with each feed-forward layer four times, of which a router picks one.
fn moe_zero() -> Options {
    Options { preset: "moe-zero".to_owned(), experts: 4, active_experts: 1, ..gpt_zero() }
}

/// A dense Llama of nano-cpu's shape, whose gated layer costs what nano-cpu's ungated one does.
fn moe_nano_dense() -> Options {
    Options {
        preset: "moe-nano-dense".to_owned(),
        position: Position::Rotary,
        norm: NormKind::RmsNorm,
        activation: Activation::SwiGlu,
        feed_forward: Some(352),
        ..nano_cpu()
    }
}

/// The same with eight half-sized experts, of which two are active: written as a Mixtral.
fn moe_nano() -> Options {
    Options {
        preset: "moe-nano".to_owned(),
        experts: 8,
        active_experts: 2,
        expert_width: Some(176),
        ..moe_nano_dense()
    }
}

/// GPT-1 (Radford et al. 2018, section 4.1): 64 windows of 512 tokens, a hundred epochs of its books. What it calls
/// modified L2 is the decay that AdamW decouples, on all but biases and gains.
fn gpt1() -> Options {
    Options {
        preset: "gpt1".to_owned(),
        block: 512,
        norm_order: NormOrder::Post,
        batch: 64,
        steps: 2_400_000,
        final_learning_rate: 0.0,
        beta2: 0.999,
        weight_decay: 0.01,
        ..gpt2("gpt1", 12, 768, 12, 2.5e-4)
    }
}

/// GPT-2 of one of its sizes, trained as its reproductions are (nanoGPT, llm.c): half a million tokens a step, a
/// cosine to a tenth. The dropout is its published config's.
fn gpt2(name: &str, layers: usize, width: usize, heads: usize, learning_rate: f64) -> Options {
    Options {
        preset: name.to_owned(),
        tokenizer: TokenizerSource::Bytes,
        block: 1024,
        width,
        layers,
        heads,
        activation: Activation::GeluTanh,
        tied: true,
        head_bias: false,
        dropout: 0.1,
        init: InitScheme::Gpt2,
        batch: 512,
        steps: 600_000,
        learning_rate,
        schedule: Curve::Cosine,
        final_learning_rate: learning_rate / 10.0,
        warmup: 2000,
        beta2: 0.95,
        weight_decay: 0.1,
        decay: Decay::Matrices,
        clip: 1.0,
        eval_every: 1000,
        eval_batches: 1,
        sample: 500,
        ..gpt_zero()
    }
}

/// GPT-2 with eight half-sized experts in each layer, of which two are active: a token costs what it costs GPT-2.
fn moe_gpt2() -> Options {
    Options {
        preset: "moe-gpt2".to_owned(),
        experts: 8,
        active_experts: 2,
        expert_width: Some(1536),
        ..gpt2("moe-gpt2", 12, 768, 12, 6e-4)
    }
}

/// GPT-3 of one of its sizes (Brown et al. 2020, table 2.1 and appendix B): 300 billion tokens in windows of 2048, the
/// rate rising over 375 million of them and falling to a tenth over 260 billion.
fn gpt3(
    name: &str,
    layers: usize,
    width: usize,
    heads: usize,
    head_size: usize,
    batch: usize,
    learning_rate: f64,
) -> Options {
    const BLOCK: usize = 2048;
    let steps = |tokens: u64| tokens / (batch * BLOCK) as u64;
    Options {
        block: BLOCK,
        // Unless it says otherwise, a smaller model made of this one has heads of its own share.
        head_size: (heads * head_size != width).then_some(head_size),
        dropout: 0.0,
        batch,
        steps: steps(300_000_000_000),
        warmup: steps(375_000_000),
        decay_steps: Some(steps(260_000_000_000)),
        ..gpt2(name, layers, width, heads, learning_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::architecture::count;
    use formats::layout::Layout;

    #[test]
    fn the_presets_have_their_published_sizes() {
        // nanoGPT leaves position embeddings out of the counts it prints (795,904 and 10,646,784).
        let counts = [208_961, 209_729, 795_904 + 64 * 128, 10_646_784 + 256 * 384];
        // The lecture's feed-forward layers three times more, and a router a layer.
        let mixture = 208_961 + 4 * (3 * (2 * 64 * 256 + 256 + 64) + 4 * 64);
        let counts = counts.into_iter().chain([mixture]);
        for (preset, count) in PRESETS.iter().zip(counts) {
            assert_eq!(parameters(preset.name), count, "{}", preset.name);
        }
    }

    fn parameters(name: &str) -> usize {
        let config = find(name).and_then(|options| options.model(vocabulary(name)?)).expect("a valid preset");
        Layout::new(&config).parameters()
    }

    #[test]
    fn published_models_have_their_published_sizes() {
        for (name, count) in [
            ("gpt1", 116_534_784),
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("gpt2-xl", 1_557_611_200),
            ("gpt3-small", 125_226_240),
            ("gpt3-medium", 355_871_744),
            ("gpt3-large", 760_300_032),
            ("gpt3-xl", 1_315_723_264),
            ("gpt3-2.7b", 2_651_553_280),
            ("gpt3-6.7b", 6_658_404_352),
            // If heads filled its width it would have 12,952,938,780.
            ("gpt3-13b", 12_952_938_780 - 40 * 20 * (4 * 5140 + 3)),
            ("gpt3-175b", 174_604_259_328),
        ] {
            assert_eq!(parameters(name), count, "{name}");
        }
    }

    #[test]
    fn a_published_model_scales_down_by_flags() {
        let options = find("gpt3-small").expect("a preset");
        let small = Options { block: 64, width: 64, layers: 2, heads: 4, ..options };
        assert_eq!(small.model(CHARACTERS).map(|config| config.attention_width()).ok(), Some(64));
    }

    #[test]
    fn a_mixture_and_its_dense_twin_cost_the_same_but_for_the_router() {
        for (mixture, dense) in
            [("moe-zero", "gpt-zero"), ("moe-nano", "moe-nano-dense"), ("moe-gpt2", "gpt2")]
        {
            let [mixture, dense] = [mixture, dense].map(|name| {
                let config = find(name).and_then(|options| options.model(CHARACTERS)).expect("a preset");
                (count(&config, &Layout::new(&config)).flops, config)
            });
            let experts = mixture.1.experts.expect("a mixture");
            let routers = 2 * (mixture.1.layers * experts.count * mixture.1.width) as u64;
            assert_eq!(mixture.0, dense.0 + routers);
        }
    }

    #[test]
    fn every_preset_is_valid_and_knows_its_name() {
        for preset in PRESETS {
            assert_eq!(preset.options().preset, preset.name);
            preset.options().validate(preset.name).expect("a valid preset");
        }
    }

    #[test]
    fn a_misspelt_preset_is_answered_with_the_nearest() {
        let error = find("nano-gpu").expect_err("no such preset").to_string();
        assert!(error.contains("did you mean nano-cpu?"), "{error}");
    }
}
