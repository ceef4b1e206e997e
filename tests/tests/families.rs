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
    Family::ALL
        .into_iter()
        .filter(|family| *family != Family::Lectern)
        .map(move |family| (family, root.join(family.model_type())))
}

/// The runtime's own answer to what Hugging Face was asked.
fn check_runtime(path: &Path) {
    let (model, expected) = (Model::open(path).expect("a model"), expected(path));
    let of = |cache: CacheType| {
        let options = SessionOptions { cache, ..SessionOptions::default() };
        let mut session = model.session_with(&options).expect("a session");
        score(&mut session, &expected.ids).expect("scores")
    };
    let exact: Vec<f64> = of(CacheType::F32).into_iter().map(f64::from).collect();
    assert_close(&path.display().to_string(), &exact, &expected.logprobs, LOGPROB);
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
    fixtures().for_each(|(_, path)| check_runtime(&path));
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
    for (family, path) in fixtures().filter(|(family, _)| matches!(family, Family::Llama | Family::Mixtral)) {
        let (directory, expected) = (Directory::open(&path).expect("a directory"), expected(&path));
        let weights = arena(&directory.weights, &directory.layout);
        let block = expected.ids.len();
        let learner = tests::training::learner(&directory.config, &weights, 1, block, 1);
        let logits = learner.logits(&expected.ids, block).expect("logits");
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let rows = logits.chunks(directory.config.vocabulary).zip(&expected.ids[1..]);
        let found: Vec<f64> = rows.map(|(row, id)| log_probability(row, *id)).collect();
        assert_close(family.model_type(), &found, &expected.logprobs, LOGPROB);
    }
}

/// Whether python3 can compute with transformers here, and is asked to.
fn transformers() -> bool {
    let wanted = std::env::var_os("LECTERN_LONG").is_some();
    let there = || {
        let found = Command::new("python3").args(["-c", "import torch, transformers"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let able = wanted && there();
    if !able {
        eprintln!("skipped: needs LECTERN_LONG and python3 with torch and transformers");
    }
    able
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers").join(name)
}

#[test]
fn random_checkpoints_of_odd_sizes_in_three_types() {
    if !transformers() {
        return;
    }
    let folder = Folder::new("families");
    let shapes: [(&str, &[&str]); 6] = [
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
    ];
    for (seed, (family, keys)) in shapes.iter().enumerate() {
        for dtype in ["float32", "float16", "bfloat16"] {
            let path = folder.join(format!("{family}-{seed}-{dtype}"));
            let mut command = Command::new("python3");
            command.arg(script("hf_checkpoint.py")).arg(family).arg(&path).args(["--dtype", dtype]);
            command.args(["--seed", &seed.to_string()]);
            if !keys.is_empty() {
                command.arg("--set").args(*keys);
            }
            let output = command.output().expect("python3");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            check_runtime(&path);
        }
    }
}

#[test]
fn what_we_write_opens_in_transformers() {
    if !transformers() {
        return;
    }
    for (seed, (family, path)) in (0..).zip(fixtures()) {
        // The config of a family, with weights of our own.
        let config = Directory::open(&path).expect("a directory").config;
        let weights = models::random_weights(&config, seed);
        let written = models::write(&config, &weights, Dtype::F32);
        let ids: Vec<u32> = (0..12).map(|index| index * 7 % config.vocabulary as u32).collect();
        let listed = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new("python3");
        command.arg(script("open_in_transformers.py")).arg(&written.path).arg(listed);
        let output = command.output().expect("python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<f64> = serde_json::from_slice(&output.stdout).expect("a list of logits");
        let ours = Reference::new(&config, &weights).logits(&ids);
        let tolerance = Tolerance { absolute: 1e-3, relative: 0.0 };
        assert_close(family.model_type(), &theirs, &ours, tolerance);
    }
}
