//! Checkpoints that Hugging Face wrote, against what it computed from them: small ones in the repository
//! (`scripts/make_family_fixtures.sh`), larger ones made on the spot where `LECTERN_LONG` is set and python3 has
//! PyTorch and transformers. And the other way: what we write, opened there.

use formats::checkpoint::{Directory, Dtype};
use formats::families::Family;
use runtime::model::Model;
use runtime::score::score;
use runtime::session::{CacheType, SessionOptions};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::compare::{Tolerance, assert_close};
use tests::folder::Folder;
use tests::models;
use tests::peers::{self, script, transformers};
use tests::reference::{Reference, best, log_probability};
use trainer::weights::arena;

/// Largest difference of a log-probability of the same stored weights.
const LOGPROB: Tolerance = Tolerance { absolute: 5e-4, relative: 0.0 };
/// Largest difference of the loss a token where keys and values are rounded to half precision.
const HALF_CACHE: f64 = 5e-3;

/// What Hugging Face computed: `reference.json`.
#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    logprobs: Vec<f64>,
    greedy: Vec<u32>,
}

fn expected(path: &Path) -> Expected {
    let text = std::fs::read_to_string(path.join("reference.json")).expect("a reference");
    serde_json::from_str(&text).expect("its three lists")
}

fn fixtures() -> impl Iterator<Item = (Family, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families");
    let named = Family::ALL.map(|family| (family, family.model_type()));
    // Without prefixes, with masks and in shards.
    let names = named.into_iter().chain([(Family::Gpt2, "gpt2-bare")]);
    let public = names.filter(|(family, _)| *family != Family::Lectern);
    public.map(move |(family, name)| (family, root.join(name)))
}

/// The runtime's own answer to what Hugging Face was asked.
fn check_runtime(path: &Path, tolerance: Tolerance) {
    let (model, expected) = (Model::open(path).expect("a model"), expected(path));
    let of = |cache: CacheType| {
        let options = SessionOptions { cache, ..SessionOptions::default() };
        let mut session = model.session_with(&options).expect("a session");
        score(&mut session, &expected.ids).expect("scores")
    };
    let exact: Vec<f64> = of(CacheType::F32).into_iter().map(f64::from).collect();
    assert_close(&path.display().to_string(), &exact, &expected.logprobs, tolerance);
    let loss = |logprobs: &[f64]| -logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    let rounded: Vec<f64> = of(CacheType::F16).into_iter().map(f64::from).collect();
    assert!((loss(&rounded) - loss(&expected.logprobs)).abs() <= HALF_CACHE, "{}", path.display());

    let options = SessionOptions { cache: CacheType::F32, ..SessionOptions::default() };
    let mut session = model.session_with(&options).expect("a session");
    let mut logits = session.feed(&expected.ids[..8]).expect("a prompt").to_vec();
    for (place, &id) in expected.greedy.iter().enumerate() {
        let wide: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        assert_eq!(best(&wide).0, id, "greedy id {place} of {}", path.display());
        logits = session.feed(&[id]).expect("a token").to_vec();
    }
}

#[test]
fn the_runtime_computes_what_hugging_face_does() {
    fixtures().for_each(|(_, path)| check_runtime(&path, LOGPROB));
}

#[test]
fn the_reference_computes_what_hugging_face_does() {
    for (family, path) in fixtures() {
        let (directory, expected) = (Directory::open(&path).expect("a directory"), expected(&path));
        assert_eq!(Family::of(&directory.config), family);
        let weights = arena(&directory.weights, &directory.layout);
        let logits = Reference::new(&directory.config, &weights).logits(&expected.ids);
        let rows = logits.chunks(directory.config.vocabulary).zip(&expected.ids[1..]);
        let found: Vec<f64> = rows.map(|(row, id)| log_probability(row, *id)).collect();
        assert_close(family.model_type(), &found, &expected.logprobs, LOGPROB);
    }
}

#[test]
fn the_trainer_computes_what_hugging_face_does() {
    for (family, path) in fixtures() {
        let (directory, expected) = (Directory::open(&path).expect("a directory"), expected(&path));
        let weights = arena(&directory.weights, &directory.layout);
        let block = expected.ids.len();
        let learner = tests::training::learner(&directory.config, &weights, 1, block, 1);
        let logits = learner.model().logits(&expected.ids, block).expect("logits");
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let rows = logits.chunks(directory.config.vocabulary).zip(&expected.ids[1..]);
        let found: Vec<f64> = rows.map(|(row, id)| log_probability(row, *id)).collect();
        assert_close(family.model_type(), &found, &expected.logprobs, LOGPROB);
    }
}

#[test]
fn random_checkpoints_of_odd_sizes_in_three_types() {
    if !transformers() {
        return;
    }
    let folder = Folder::new("families");
    let shapes: [(&str, &[&str]); 15] = [
        ("llama", &[]),
        (
            "llama",
            &["hidden_size=36", "num_attention_heads=3", "num_key_value_heads=3", "intermediate_size=37"],
        ),
        ("mixtral", &[]),
        (
            "mixtral",
            &["num_local_experts=7", "num_experts_per_tok=3", "intermediate_size=36", "vocab_size=97"],
        ),
        ("olmoe", &[]),
        ("qwen3_moe", &["decoder_sparse_step=2", "head_dim=10"]),
        ("gpt2", &[]),
        ("gpt2", &["n_embd=39", "n_head=3", "n_inner=35", "activation_function=relu"]),
        ("gpt2", &["n_layer=1", "vocab_size=53", "activation_function=gelu", "tie_word_embeddings=false"]),
        // Too large to be packed when it is opened, and of widths that fill no vector.
        ("gpt2", &["n_embd=155", "n_head=5", "n_layer=5"]),
        ("openai-gpt", &[]),
        ("openai-gpt", &["n_embd=33", "n_head=3", "afn=relu", "vocab_size=97"]),
        ("openai-gpt", &["n_embd=155", "n_head=5", "n_layer=5", "tie_word_embeddings=false"]),
        ("llama", &["tie_word_embeddings=true", "head_dim=14", "rope_theta=500000.0"]),
        ("llama", &["hidden_size=160", "intermediate_size=333", "num_hidden_layers=5"]),
    ];
    for (seed, (family, keys)) in shapes.iter().enumerate() {
        for dtype in ["float32", "float16", "bfloat16"] {
            let path = folder.join(format!("{family}-{seed}-{dtype}"));
            let mut command = Command::new("python3");
            command.arg(script("hf_checkpoint.py")).arg(family).arg(&path).args(["--dtype", dtype]);
            command.args(["--seed", &seed.to_string()]);
            if seed % 2 == 1 {
                command.args(["--shard", "40KB"]);
            }
            if *family == "gpt2" && seed % 4 == 1 {
                command.arg("--bare");
            }
            if !keys.is_empty() {
                command.arg("--set").args(*keys);
            }
            let output = command.output().expect("python3");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            check_runtime(&path, LOGPROB);
        }
    }
}

#[test]
fn a_random_model_of_gpt_1s_own_shape() {
    if !transformers() {
        return;
    }
    let folder = Folder::new("gpt-1");
    let path = folder.join("model");
    let mut command = Command::new("python3");
    command.arg(script("hf_checkpoint.py")).arg("openai-gpt").arg(&path).args(["--scale", "2.0", "--set"]);
    command.args(["vocab_size=40478", "n_positions=512", "n_embd=768", "n_layer=12", "n_head=12"]);
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Model::open(&path).expect("a model").layout().parameters(), 116_534_784);
    check_runtime(&path, Tolerance { absolute: 1e-3, relative: 0.0 });
}

#[test]
fn what_we_write_opens_in_transformers() {
    if !transformers() {
        return;
    }
    for (seed, (family, path)) in (0..).zip(fixtures()) {
        // The config of a family, with weights of our own, which fit either type.
        let config = Directory::open(&path).expect("a directory").config;
        let weights = models::random_weights(&config, seed);
        for dtype in [Dtype::F32, Dtype::F16] {
            let written = models::write(&config, &weights, dtype);
            assert_eq!(Family::of(&Directory::open(&written.path).expect("ours").config), family);
            let ids: Vec<u32> = (0..12).map(|index| index * 7 % config.vocabulary as u32).collect();
            peers::assert_opens_in_transformers(&written.path, &ids);
        }
    }
}
