//! Named runs: complete sets of options, from which a config file and flags depart.

use crate::data::Alphabet;
use crate::optimizer::Decay;
use crate::options::{Options, nearest};
use crate::progress::ProgressMode;
use crate::random::RngKind;
use crate::schedule::Curve;
use formats::checkpoint::Dtype;
use formats::config::{Activation, AttentionScale, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore};
use formats::layout::InitScheme;
use formats::{Error, Result};

/// The vocabulary that sizes are told for: TinyShakespeare's characters.
pub const CHARACTERS: usize = 65;

/// A run with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What `--preset` takes.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    options: fn() -> Options,
}

/// Every preset, the dense ones first, by size.
pub const PRESETS: &[Preset] = &[
    Preset { name: "gpt-zero", about: "the lecture's GPT: block 8, exact GELU", options: gpt_zero },
    Preset { name: "gpt-dev", about: "its larger-context kin: block 32, ReLU", options: gpt_dev },
    Preset { name: "nano-cpu", about: "nanoGPT's character model for a CPU", options: nano_cpu },
    Preset { name: "nano", about: "nanoGPT's character model", options: nano },
    Preset {
        name: "moe-zero",
        about: "gpt-zero with 4 experts, top-1; its dense twin is gpt-zero",
        options: moe_zero,
    },
    Preset {
        name: "moe-nano",
        about: "nano-cpu's shape as a small Mixtral: 8 experts, top-2",
        options: moe_nano,
    },
    Preset {
        name: "moe-nano-dense",
        about: "moe-nano's dense twin: equal active FLOPs",
        options: moe_nano_dense,
    },
];

impl Preset {
    /// Its options.
    pub fn options(&self) -> Options {
        (self.options)()
    }
}

/// The options of the preset called `name`.
pub fn find(name: &str) -> Result<Options> {
    PRESETS.iter().find(|preset| preset.name == name).map(Preset::options).ok_or_else(|| {
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
        tokenizer: Alphabet::Characters,
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
        steps: 5000,
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
        threads: None,
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
            let config = preset.options().model(CHARACTERS).expect("a valid preset");
            assert_eq!(Layout::new(&config).parameters(), count, "{}", preset.name);
        }
    }

    #[test]
    fn a_mixture_and_its_dense_twin_cost_the_same_but_for_the_router() {
        for (mixture, dense) in [("moe-zero", "gpt-zero"), ("moe-nano", "moe-nano-dense")] {
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
