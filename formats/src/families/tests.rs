//! Names, keys and shapes of every family, and what is refused of their configs.

use super::*;
use crate::config::tests::lecture;
use crate::config::{
    Activation, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore, RouterWeight,
};

fn read(text: &str) -> Result<Config> {
    read_config(text, Path::new("config.json"))
}

fn changed(from: &str, to: &str) -> String {
    let text = config_json(&lecture(), Dtype::F16);
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1)
}

fn refused(text: &str, words: &str) {
    let error = read(text).expect_err("must be refused");
    let message = error.to_string();
    assert!(message.contains(words), "{message:?} does not say {words:?}");
    assert!(matches!(error.exit_code(), 3 | 4), "{message}");
}

#[test]
fn every_tensor_has_a_name_of_its_own_and_the_layouts_shape() {
    let config = Config { dropout: 0.1, ..lecture() };
    let layout = Layout::new(&config);
    let tensors = stored(&config, &layout);
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert!(names.contains(&"token_embedding.weight"));
    assert!(names.contains(&"layers.3.attention.qkv.bias"));
    assert!(names.contains(&"head.bias"));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), tensors.len());
    let values: usize = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!(values, layout.parameters());
}

#[test]
fn a_vector_has_one_dimension_even_where_a_matrix_has_one_row() {
    let config = Config { vocabulary: 1, context: 1, ..lecture() };
    let shapes: Vec<_> = stored(&config, &Layout::new(&config))
        .into_iter()
        .filter(|tensor| tensor.name == "token_embedding.weight" || tensor.name == "final_norm.bias")
        .map(|tensor| tensor.shape)
        .collect();
    assert_eq!(shapes, [vec![1, 64], vec![64]]);
}

#[test]
fn a_config_survives_its_file() {
    let config = Config { dropout: 0.1, norm_eps: 1e-6, tied: true, ..lecture() };
    for dtype in Dtype::ALL {
        assert_eq!(read(&config_json(&config, dtype)).expect("our own file"), config);
    }
}

#[test]
fn numbers_are_written_as_they_were_given() {
    let text = config_json(&Config { dropout: 0.2, ..lecture() }, Dtype::Bf16);
    let start = "{\n  \"model_type\": \"lectern\",\n  \"architectures\": [\n    \"LecternForCausalLM\"\n  ],";
    assert!(text.starts_with(start), "{text}");
    for line in ["\"dtype\": \"bfloat16\"", "\"norm_eps\": 0.00001", "\"dropout\": 0.2\n"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn unknown_families_are_refused_by_name() {
    for kind in ["gpt3", "phimoe"] {
        refused(
            &changed("\"lectern\"", &format!("{kind:?}")),
            "one of lectern, openai-gpt, gpt2, llama, mixtral",
        );
        refused(&changed("\"lectern\"", &format!("{kind:?}")), kind);
    }
    refused("{}", "model_type is missing");
    refused("{\"model_type\": 1}", "model_type is 1");
}

/// A model of each public family.
fn public() -> Vec<(Family, Config)> {
    let llama = Config {
        width: 48,
        heads: 4,
        kv_heads: 2,
        head_size: 12,
        position: Position::Rotary,
        rotary_base: 500_000.0,
        norm: NormKind::RmsNorm,
        norm_eps: 1e-6,
        norm_bias: false,
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        head_bias: false,
        feed_forward: 40,
        ..lecture()
    };
    let experts = Experts {
        count: 11,
        active: 3,
        width: 40,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: false,
        noise: false,
    };
    let scored = Experts { weight: RouterWeight::Score, ..experts };
    let gpt = Config { head_bias: false, activation: Activation::GeluTanh, norm_eps: 1e-6, ..lecture() };
    let first = Config { norm_order: NormOrder::Post, ..gpt.clone() };
    vec![
        (Family::Llama, llama.clone()),
        (Family::Llama, Config { tied: true, head_size: 10, ..llama.clone() }),
        (Family::Mixtral, Config { experts: Some(experts), ..llama.clone() }),
        (
            Family::Olmoe,
            Config { experts: Some(scored), query_key_norm: QueryKeyNorm::Whole, ..llama.clone() },
        ),
        (
            Family::Qwen3Moe,
            Config {
                experts: Some(Experts { every: 2, width: 24, ..experts }),
                query_key_norm: QueryKeyNorm::Head,
                head_size: 20,
                ..llama
            },
        ),
        (Family::Gpt2, Config { tied: true, dropout: 0.1, ..gpt.clone() }),
        (Family::Gpt2, Config { feed_forward: 37, activation: Activation::GeluErf, ..gpt.clone() }),
        (Family::Gpt2, Config { activation: Activation::Relu, ..gpt }),
        (Family::OpenaiGpt, Config { tied: true, ..first.clone() }),
        (Family::OpenaiGpt, Config { activation: Activation::Relu, dropout: 0.2, ..first }),
    ]
}

#[test]
fn a_public_config_survives_its_file() {
    for (family, config) in public() {
        for dtype in Dtype::ALL {
            assert_eq!(Family::of(&config), family);
            let text = config_json(&config, dtype);
            assert!(text.contains(&format!("\"model_type\": {:?}", family.model_type())), "{text}");
            assert!(text.contains("_eps\": 0.000001") || text.contains("_epsilon\": 0.000001"), "{text}");
            assert_eq!(read(&text).expect("our own file"), config);
        }
    }
}

#[test]
fn the_pieces_of_a_public_model_cover_every_parameter_once() {
    for (_, config) in public() {
        let layout = Layout::new(&config);
        let tensors = stored(&config, &layout);
        for (id, parameter) in layout.iter() {
            let mut end = 0;
            for piece in tensors.iter().filter(|piece| piece.id == id) {
                assert_eq!(piece.range(parameter).start, end);
                end = piece.range(parameter).end;
            }
            assert_eq!(end, parameter.len(), "{parameter:?}");
        }
        let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        // In the order of the file, an expert's tensors lie side by side.
        let experts: Vec<&str> =
            names.iter().filter_map(|name| Some(name.split_once("experts.")?.1.split_once('.')?.0)).collect();
        let changes = experts.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(experts.is_empty() || changes < experts.len() / 2, "{names:?}");
        names.dedup();
        assert_eq!(names.len(), tensors.len());
    }
}

#[test]
fn both_spellings_of_the_field_are_read() {
    let (_, mixtral) = &public()[2];
    let text = config_json(mixtral, Dtype::F32);
    let without = |text: &str, key: &str| {
        let lines = text.lines().filter(|line| !line.contains(&format!("\"{key}\"")));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(read(&text.replacen("\"rope_theta\": 500000.0,", "", 1)).expect("transformers 5"), *mixtral);
    let old = text.replacen("\"rope_parameters\": {", "\"ignored\": {", 1);
    assert_eq!(read(&old).expect("transformers 4"), *mixtral);
    assert_eq!(read(&without(&text, "tie_word_embeddings")).expect("the default"), *mixtral);
    assert_eq!(read(&text.replace("\"head_dim\": 12", "\"head_dim\": null")).expect("even"), *mixtral);
    let (_, qwen) = &public()[4];
    let text = config_json(qwen, Dtype::F32);
    assert_eq!(read(&text.replace("\"num_experts\"", "\"num_local_experts\"")).expect("5"), *qwen);
}

#[test]
fn a_gpts_keys_are_read_as_transformers_reads_them() {
    let (_, gpt2) = &public()[5];
    let text = config_json(gpt2, Dtype::F32);
    for word in ["gelu_pytorch_tanh", "gelu_fast"] {
        assert_eq!(read(&text.replace("gelu_new", word)).expect("the same function"), *gpt2);
    }
    let absent = text.replace("\"activation_function\": \"gelu_new\",", "\"n_inner\": null,");
    let absent = absent.replace("\"tie_word_embeddings\": true,", "\"reorder_and_upcast_attn\": true,");
    assert_eq!(read(&absent).expect("defaults"), *gpt2);
    for (from, to, words) in [
        ("gelu_new", "silu", "activation_function is \"silu\""),
        ("\"use_cache\": true", "\"scale_attn_weights\": false", "scale_attn_weights is false"),
        (
            "\"use_cache\": true",
            "\"scale_attn_by_inverse_layer_idx\": true",
            "scale_attn_by_inverse_layer_idx is true",
        ),
        ("\"use_cache\": true", "\"add_cross_attention\": true", "add_cross_attention is true"),
        ("\"n_head\": 4", "\"n_head\": 0", "heads is 0"),
        ("\"n_head\": 4", "\"n_head\": 5", "model_type is gpt2"),
        ("\"n_embd\": 64", "\"n_embd\": 18446744073709551615", "width is"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        refused(&text.replace(from, to), words);
    }
    let text = config_json(&public()[8].1, Dtype::F32);
    refused(&text.replace("\"afn\": \"gelu\"", "\"afn\": \"gelu_new\""), "afn is \"gelu_new\"");
    // Not what it calls gelu, nor of the width it computes with: no other program would read these as meant.
    let first = &public()[8].1;
    assert_eq!(Family::of(&Config { activation: Activation::GeluErf, ..first.clone() }), Family::Lectern);
    assert_eq!(Family::of(&Config { feed_forward: 5, ..first.clone() }), Family::Lectern);
}

#[test]
fn a_config_from_before_norms_had_an_order_is_read() {
    assert_eq!(read(&changed("\"norm_order\": \"pre\",", "")).expect("an older file"), lecture());
    refused(&changed("\"norm_order\": \"pre\"", "\"norm_order\": \"both\""), "norm_order is \"both\"");
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let (_, mixtral) = &public()[2];
    let text = config_json(mixtral, Dtype::F32);
    for (from, to, words) in [
        ("\"sliding_window\": null", "\"sliding_window\": 4096", "sliding_window is 4096"),
        ("\"attention_bias\": false", "\"attention_bias\": true", "attention_bias is true"),
        ("\"silu\"", "\"gelu\"", "hidden_act is \"gelu\""),
        ("\"default\"", "\"yarn\"", "rope_parameters.rope_type is \"yarn\""),
        ("\"use_cache\": true", "\"rope_scaling\": {\"type\": \"linear\"}", "rope_scaling.type is"),
        ("\"use_cache\": true", "\"clip_qkv\": 8.0", "clip_qkv is 8.0"),
        ("\"use_cache\": true", "\"quantization_config\": {}", "quantization_config is {}"),
        ("\"use_cache\": true", "\"partial_rotary_factor\": 0.5", "partial_rotary_factor is 0.5"),
        ("\"use_cache\": true", "\"layer_types\": [\"sliding_attention\"]", "layer_types is"),
        ("\"num_experts_per_tok\": 3", "\"num_experts_per_tok\": 12", "experts.active is 12"),
        ("\"num_experts_per_tok\": 3", "\"num_experts_per_tok\": 0", "experts.active is 0"),
        ("\"num_local_experts\": 11", "\"num_local_experts\": -1", "num_local_experts is -1"),
        ("\"hidden_size\": 48", "\"hidden_size\": \"48\"", "hidden_size is \"48\""),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "heads is 0"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "kv_heads is 3"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        refused(&text.replace(from, to), words);
    }
    let (_, olmoe) = &public()[3];
    let text = config_json(olmoe, Dtype::F32);
    refused(&text.replace("\"hidden_size\": 48", "\"hidden_size\": 49"), "model_type is olmoe");
}

#[test]
fn a_bad_key_is_named() {
    refused(&changed("\"width\": 64", "\"width\": -1"), "width is -1");
    refused(&changed("\"width\": 64", "\"width\": 64.0"), "width is 64.0");
    refused(&changed("\"width\": 64", "\"widht\": 64"), "widht is 64");
    refused(&changed("\"width\": 64", "\"width\": 64, \"rope\": 1"), "rope is 1");
    refused(&changed("\"width\": 64", "\"width\": 64, \"width\": 64"), "\"width\" stands twice");
    refused(&changed("\"width\": 64", "\"width\": 64, \"\\u0077idth\": 64"), "\"width\" stands twice");
    refused(&changed("\"head_bias\": true,", ""), "head_bias is missing");
    refused(&changed("\"tied\": false", "\"tied\": null"), "tied is null");
    refused(&changed("\"gelu-erf\"", "\"selu\""), "activation is \"selu\"");
    refused(&changed("\"float16\"", "\"int4\""), "dtype is \"int4\"");
}

#[test]
fn absurd_sizes_are_refused_with_their_bound() {
    for value in [0, 1 << 31, 1 << 32, 1 << 60, 1 << 63, u64::MAX] {
        for field in ["vocabulary\": 65", "context\": 8", "width\": 64", "layers\": 4", "feed_forward\": 256"]
        {
            let (key, _) = field.split_once(':').expect("a pair");
            refused(&changed(field, &format!("{key}: {value}")), "expected 1 to");
        }
    }
}

#[test]
fn what_is_no_object_is_a_damaged_file() {
    let text = config_json(&lecture(), Dtype::F16);
    for end in 0..text.trim_end().len() {
        assert_eq!(read(&text[..end]).expect_err("cut short").exit_code(), 3, "cut at {end}");
    }
    let many: Vec<String> = (0..=MOST_KEYS).map(|index| format!("\"k{index}\":0")).collect();
    refused(&format!("{{{}}}", many.join(",")), "more than 256 keys");
    for text in ["[]", "null", "{} {}", "\u{feff}{}", &"{\"a\":".repeat(100_000)] {
        assert_eq!(read(text).expect_err("no object").exit_code(), 3);
    }
}

#[test]
fn every_bit_flip_is_an_error_or_a_valid_config() {
    let text = config_json(&lecture(), Dtype::F16);
    for place in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1 << bit;
            if let Ok(Ok(config)) = String::from_utf8(bytes).map(|text| read(&text)) {
                assert!(config.validate("test").is_ok());
            }
        }
    }
}
