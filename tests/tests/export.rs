//! What `trainer export` writes for other tools: every number where the tool looks for it, every part that the tool
//! lacks refused by name. Where `LECTERN_LONG` is set and python3 has llama-cpp-python, llama.cpp computes our losses.

use formats::checkpoint::{Directory, Dtype};
use formats::config::{
    Activation, AttentionScale, Config, Experts, NormKind, Position, QueryKeyNorm, RouterScore, RouterWeight,
};
use formats::families::Family;
use formats::layout::{FeedForward, Layout, ParameterId};
use std::path::Path;
use std::process::Command;
use tests::folder::Folder;
use tests::gguf::{Gguf, Value};
use tests::models;
use tests::peers;
use tests::programs::Program;
use trainer::weights::arena;

/// GPT-2's parts, as few biases as nanoGPT has.
fn gpt2() -> Config {
    Config {
        vocabulary: 40,
        head_bias: false,
        activation: Activation::GeluTanh,
        qkv_bias: false,
        ..models::small()
    }
}

fn llama() -> Config {
    Config {
        width: 12,
        heads: 4,
        kv_heads: 2,
        head_size: 6,
        position: Position::Rotary,
        rotary_base: 500.0,
        norm: NormKind::RmsNorm,
        norm_bias: false,
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        tied: true,
        ..gpt2()
    }
}

fn mixtral() -> Config {
    let experts = Experts {
        count: 3,
        active: 2,
        width: 8,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: false,
        noise: false,
    };
    Config { experts: Some(experts), ..llama() }
}

/// A model of random weights, exported; the layout and the weights it was written with.
fn exported(config: &Config, dtype: Dtype) -> (Gguf, Layout, Vec<f32>) {
    let weights = models::random_weights(config, 5);
    let written = models::write(config, &weights, Dtype::F32);
    let out = written.folder.join("model.gguf");
    let ran = Program::Trainer.run(&[
        "export".as_ref(),
        "--model".as_ref(),
        written.path.as_os_str(),
        "--to".as_ref(),
        "gguf".as_ref(),
        "--dtype".as_ref(),
        dtype.name().as_ref(),
        "--out".as_ref(),
        out.as_os_str(),
    ]);
    ran.expect(0).naming("wrote ");
    (Gguf::open(&out), Layout::new(config), weights)
}

fn assert_tensor(gguf: &Gguf, name: &str, shape: &[usize], values: &[f32]) {
    let tensor = gguf.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!(tensor.shape, shape, "{name}");
    assert_eq!(tensor.values, values, "{name}");
    if shape.len() == 1 {
        assert_eq!(tensor.kind, 0, "{name} is a vector");
    }
}

#[test]
fn a_gpt2_stands_as_it_is_with_the_biases_it_lacks_as_zeros() {
    for dtype in [Dtype::F32, Dtype::F16] {
        let config = gpt2();
        let (gguf, layout, weights) = exported(&config, dtype);
        let of = |id: ParameterId| &weights[layout.parameter(id).range()];
        assert_eq!(gguf.text("general.architecture"), "gpt2");
        assert_eq!(gguf.count("general.file_type"), if dtype == Dtype::F32 { 0 } else { 1 });
        for (key, value) in [
            ("context_length", config.context),
            ("embedding_length", config.width),
            ("block_count", config.layers),
            ("feed_forward_length", config.feed_forward),
            ("attention.head_count", config.heads),
            ("vocab_size", config.vocabulary),
        ] {
            assert_eq!(gguf.count(&format!("gpt2.{key}")), value, "{key}");
        }
        assert_eq!(gguf.metadata["gpt2.attention.layer_norm_epsilon"], Value::Number(config.norm_eps));
        let (width, hidden) = (config.width, config.feed_forward);
        assert_tensor(&gguf, "token_embd.weight", &[width, 40], of(layout.token_embedding));
        let positions = of(layout.position_embedding.expect("learned positions"));
        assert_tensor(&gguf, "position_embd.weight", &[width, config.context], positions);
        assert_eq!(gguf.tensors["position_embd.weight"].kind, 0);
        assert_eq!(gguf.tensors["token_embd.weight"].kind, if dtype == Dtype::F32 { 0 } else { 1 });
        assert_tensor(&gguf, "output.weight", &[width, 40], of(layout.head.weight));
        for (index, layer) in layout.layers.iter().enumerate() {
            let name = |part: &str| format!("blk.{index}.{part}");
            let FeedForward::Dense { up, down } = layer.feed_forward else { panic!("dense") };
            assert_tensor(&gguf, &name("attn_qkv.weight"), &[width, 3 * width], of(layer.qkv.weight));
            assert_tensor(&gguf, &name("attn_qkv.bias"), &[3 * width], &vec![0.0; 3 * width]);
            assert_tensor(
                &gguf,
                &name("attn_output.weight"),
                &[width, width],
                of(layer.attention_out.weight),
            );
            assert_tensor(&gguf, &name("ffn_up.weight"), &[width, hidden], of(up.weight));
            assert_tensor(&gguf, &name("ffn_up.bias"), &[hidden], of(up.bias.expect("a bias")));
            assert_tensor(&gguf, &name("ffn_down.weight"), &[hidden, width], of(down.weight));
            assert_tensor(&gguf, &name("attn_norm.weight"), &[width], of(layer.attention_norm.gain));
            let bias = layer.feed_forward_norm.bias.expect("a bias");
            assert_tensor(&gguf, &name("ffn_norm.bias"), &[width], of(bias));
        }
        let norm = layout.final_norm.expect("a final norm");
        assert_tensor(&gguf, "output_norm.weight", &[width], of(norm.gain));
    }
}

/// Rows of heads as llama.cpp's converter turns them: `reshape(heads, 2, size / 2, width).swapaxes(1, 2)`.
fn interleaved(rows: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let half = rows.len() / width / heads / 2;
    let mut turned = Vec::new();
    for head in 0..heads {
        for pair in 0..half {
            for part in 0..2 {
                let row = (head * 2 + part) * half + pair;
                turned.extend_from_slice(&rows[row * width..(row + 1) * width]);
            }
        }
    }
    turned
}

#[test]
fn a_llama_has_its_rotated_pairs_side_by_side_and_no_second_embedding() {
    let config = llama();
    let (gguf, layout, weights) = exported(&config, Dtype::F16);
    assert_eq!(gguf.text("general.architecture"), "llama");
    assert_eq!(gguf.count("llama.attention.head_count_kv"), 2);
    assert_eq!(gguf.count("llama.rope.dimension_count"), 6);
    assert_eq!(gguf.count("llama.attention.key_length"), 6);
    assert_eq!(gguf.metadata["llama.rope.freq_base"], Value::Number(500.0));
    assert!(!gguf.tensors.contains_key("output.weight"));
    let (width, hidden) = (config.width, config.feed_forward);
    for (index, layer) in layout.layers.iter().enumerate() {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let qkv = &weights[layout.parameter(layer.qkv.weight).range()];
        let (queries, rest) = qkv.split_at(24 * width);
        let (keys, values) = rest.split_at(12 * width);
        assert_tensor(&gguf, &name("attn_q"), &[width, 24], &interleaved(queries, 4, width));
        assert_tensor(&gguf, &name("attn_k"), &[width, 12], &interleaved(keys, 2, width));
        assert_tensor(&gguf, &name("attn_v"), &[width, 12], values);
        let FeedForward::Dense { up, .. } = layer.feed_forward else { panic!("dense") };
        let (gate, up) = weights[layout.parameter(up.weight).range()].split_at(hidden * width);
        assert_tensor(&gguf, &name("ffn_gate"), &[width, hidden], gate);
        assert_tensor(&gguf, &name("ffn_up"), &[width, hidden], up);
        assert!(!gguf.tensors.contains_key(&format!("blk.{index}.attn_q.bias")));
    }
}

#[test]
fn experts_are_stacked() {
    let mixtral = mixtral();
    let scored = Experts { weight: RouterWeight::Score, ..mixtral.experts.expect("experts") };
    let even = Config { head_size: 4, width: 16, ..mixtral.clone() };
    for (name, config) in [
        ("llama", mixtral.clone()),
        ("qwen3moe", Config { query_key_norm: QueryKeyNorm::Head, ..mixtral }),
        ("olmoe", Config { query_key_norm: QueryKeyNorm::Whole, experts: Some(scored), ..even }),
    ] {
        let (gguf, layout, weights) = exported(&config, Dtype::F32);
        let of = |id: ParameterId| &weights[layout.parameter(id).range()];
        assert_eq!(gguf.text("general.architecture"), name);
        assert_eq!(gguf.count(&format!("{name}.expert_count")), 3);
        assert_eq!(gguf.count(&format!("{name}.expert_used_count")), 2);
        let (width, hidden) = (config.width, 8);
        for (index, layer) in layout.layers.iter().enumerate() {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            let FeedForward::Experts(bank) = layer.feed_forward else { panic!("experts") };
            let ups = (0..3).map(|expert| of(bank.up(expert).weight).split_at(hidden * width));
            let (gates, ups): (Vec<_>, Vec<_>) = ups.unzip();
            let downs: Vec<_> = (0..3).map(|expert| of(bank.down(expert).weight)).collect();
            assert_tensor(&gguf, &name("ffn_gate_exps"), &[width, hidden, 3], &gates.concat());
            assert_tensor(&gguf, &name("ffn_up_exps"), &[width, hidden, 3], &ups.concat());
            assert_tensor(&gguf, &name("ffn_down_exps"), &[hidden, width, 3], &downs.concat());
            assert_tensor(&gguf, &name("ffn_gate_inp"), &[width, 3], of(bank.router.weight));
            if let Some([query, key]) = layer.query_key_norm {
                let (queries, keys) = (of(query.gain), of(key.gain));
                assert_tensor(&gguf, &name("attn_q_norm"), &[queries.len()], queries);
                assert_tensor(&gguf, &name("attn_k_norm"), &[keys.len()], keys);
                // These architectures rotate halves, as ours do.
                let all = of(layer.qkv.weight);
                let queries = &all[..config.attention_width() * width];
                assert_tensor(&gguf, &name("attn_q"), &[width, config.attention_width()], queries);
            }
        }
        // OLMoE has a head of its own always.
        assert_eq!(gguf.tensors.contains_key("output.weight"), name == "olmoe");
    }
}

#[test]
fn a_tokenizer_goes_along() {
    let (gguf, ..) = exported(&llama(), Dtype::F32);
    assert_eq!(gguf.text("tokenizer.ggml.model"), "rwkv");
    let tokens = gguf.texts("tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[0], tokens[1]), (40, " ", "!"));
    assert!(!gguf.metadata.contains_key("tokenizer.ggml.eos_token_id"));
    // Characters of more than one byte are put together by merges.
    let (gguf, ..) = exported(&Config { vocabulary: 97, ..llama() }, Dtype::F32);
    assert_eq!(gguf.text("tokenizer.ggml.model"), "gpt2");
    assert_eq!(gguf.text("tokenizer.ggml.pre"), "gpt-2");
    let tokens = gguf.texts("tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[0]), (97, "Ġ"));
    let merges = gguf.texts("tokenizer.ggml.merges");
    assert_eq!(
        merges.len(),
        3,
        "two characters of three bytes, the first two of which are common: {merges:?}"
    );
    assert!(merges.iter().any(|merge| merge.replace(' ', "") == tokens[96]));
    assert_eq!(gguf.count("tokenizer.ggml.eos_token_id"), 96);
}

/// `trainer export` of a config's random model.
fn refused(config: &Config, to: &str, code: i32, words: &str) {
    let written = models::write(config, &models::random_weights(config, 5), Dtype::F16);
    let out = written.folder.join("out");
    let mut command = Program::Trainer.command(&["export", "--to", to, "--model"]);
    command.arg(&written.path).arg("--out").arg(&out);
    tests::programs::run(command).expect(code).naming(words);
    assert!(out.symlink_metadata().is_err());
    let left = std::fs::read_dir(written.folder.path()).expect("a folder").count();
    assert_eq!(left, 1, "nothing is left behind");
}

#[test]
fn a_part_that_the_target_lacks_is_refused_by_name() {
    let (gpt2, llama, mixtral) = (gpt2(), llama(), mixtral());
    let experts = mixtral.experts.expect("experts");
    let with = |experts| Config { experts: Some(experts), ..mixtral.clone() };
    for (config, words) in [
        (Config { head_bias: true, ..gpt2.clone() }, "head_bias is true, expected false"),
        (Config { activation: Activation::Relu, ..gpt2.clone() }, "activation is relu, expected gelu-tanh"),
        (
            Config { attention_scale: AttentionScale::Width, ..gpt2.clone() },
            "attention_scale is width, expected head-size",
        ),
        (Config { experts: Some(experts), ..gpt2.clone() }, "experts is a mixture"),
        (Config { head_size: 6, ..gpt2 }, "head_size is 6"),
        (Config { query_key_norm: QueryKeyNorm::Head, ..llama }, "query_key_norm is head"),
        (with(Experts { shared: 1, ..experts }), "experts.shared is 1"),
        (with(Experts { score: RouterScore::Sigmoid, ..experts }), "experts.score is sigmoid"),
        (with(Experts { weight: RouterWeight::Score, ..experts }), "experts.weight is score"),
        (with(Experts { selection_bias: true, ..experts }), "experts.selection_bias is true"),
        (with(Experts { every: 2, ..experts }), "experts.every is 2"),
    ] {
        refused(&config, "gguf", 4, words);
    }
}

#[test]
fn what_no_family_has_is_refused_by_name() {
    let mixtral = mixtral();
    let experts = mixtral.experts.expect("experts");
    for (config, words) in [
        (Config { head_bias: true, ..gpt2() }, "head_bias is true, expected false"),
        (Config { norm_bias: false, norm: NormKind::RmsNorm, ..gpt2() }, "norm is rms-norm"),
        (Config { qkv_bias: true, ..llama() }, "biases is true"),
        (
            Config { experts: Some(Experts { shared: 1, ..experts }), ..mixtral.clone() },
            "what llama, mixtral",
        ),
    ] {
        refused(&config, "hf", 4, words);
    }
}

#[test]
fn a_directory_in_a_familys_names_holds_the_same_model() {
    for (family, config) in [(Family::Gpt2, gpt2()), (Family::Llama, llama()), (Family::Mixtral, mixtral())] {
        let weights = models::random_weights(&config, 5);
        let written = models::write(&config, &weights, Dtype::F32);
        let out = written.folder.join("exported");
        let mut command = Program::Trainer.command(&["export", "--to", "hf", "--dtype", "bf16", "--model"]);
        command.arg(&written.path).arg("--out").arg(&out);
        tests::programs::run(command).expect(0).naming(family.architecture());
        let directory = Directory::open(&out).expect("a model");
        assert_eq!(Family::of(&directory.config), family);
        assert_eq!(directory.weights.dtype(), Dtype::Bf16);
        assert!(directory.tokenizer.is_some());
        if peers::transformers() {
            peers::assert_opens_in_transformers(&out, &[1, 5, 2, 7, 3]);
        }
        let (values, layout) = (arena(&directory.weights, &directory.layout), Layout::new(&config));
        for (_, parameter) in directory.layout.iter() {
            let found = &values[parameter.range()];
            let same = layout.iter().find(|(_, other)| {
                (other.role, other.layer, other.expert) == (parameter.role, parameter.layer, parameter.expert)
            });
            let rounded = |value: &f32| half::bf16::from_f32(*value).to_f32();
            let expected: Vec<f32> = match same {
                Some((_, other)) => weights[other.range()].iter().map(rounded).collect(),
                None => vec![0.0; parameter.len()],
            };
            assert_eq!(found, expected, "{parameter:?}");
        }
    }
}

#[test]
fn what_exists_is_never_overwritten() {
    let config = llama();
    let written = models::write(&config, &models::random_weights(&config, 5), Dtype::F16);
    let out = written.folder.write("taken", "mine");
    for to in ["gguf", "hf"] {
        let mut command = Program::Trainer.command(&["export", "--to", to, "--model"]);
        command.arg(&written.path).arg("--out").arg(&out);
        tests::programs::run(command).expect(2).naming("exists already");
    }
    assert_eq!(std::fs::read(&out).expect("the file"), b"mine");
    let mut command = Program::Trainer.command(&["export", "--to", "gguf", "--model"]);
    command.arg(&written.path).arg("--out").arg(written.folder.join("absent/model.gguf"));
    tests::programs::run(command).expect(5).naming("absent");
}

#[test]
fn a_number_that_the_type_cannot_hold_is_refused() {
    let config = llama();
    let mut weights = models::random_weights(&config, 5);
    weights[3] = 1e6;
    let written = models::write(&config, &weights, Dtype::F32);
    for to in ["gguf", "hf"] {
        let mut command = Program::Trainer.command(&["export", "--dtype", "f16", "--to", to, "--model"]);
        command.arg(&written.path).arg("--out").arg(written.folder.join("out"));
        tests::programs::run(command).expect(2).naming("beyond the range of f16");
        assert_eq!(std::fs::read_dir(written.folder.path()).expect("a folder").count(), 1);
    }
}

#[test]
fn llama_cpp_computes_our_losses() {
    let there = || {
        let found = Command::new("python3").args(["-c", "import llama_cpp, numpy"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if std::env::var_os("LECTERN_LONG").is_none() || !there() {
        eprintln!("skipped: needs LECTERN_LONG and python3 with llama-cpp-python");
        return;
    }
    let folder = Folder::new("llama-cpp");
    let text = folder.write("text.txt", tests::fixtures::text());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/compare_llama_cpp.sh");
    let output = Command::new(script).arg(text).output().expect("bash");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
}
