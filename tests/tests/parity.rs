//! The same weights give the same numbers: PyTorch's, the float64 reference's, the runtime's and the trainer's.

use formats::Config;
use formats::checkpoint::Dtype;
use formats::config::{NormOrder, Position};
use formats::families::Family;
use runtime::model::{Model, ModelOptions};
use runtime::session::{CacheType, SessionOptions};
use std::path::Path;
use tests::Chance;
use tests::compare::{Tolerance, assert_close};
use tests::fixtures;
use tests::models::{self, Written};
use tests::reference::Reference;
use tests::training::learner;

/// What trainer and runtime promise each other and the reference: f32 arithmetic, relative to the logits' size.
const PROMISED: f64 = 1e-5;

/// The logits after each id, in feeds of `chunk`.
#[track_caller]
fn logits(path: &Path, ids: &[u32], cache: CacheType, threads: usize, chunk: usize) -> Vec<f32> {
    let model = Model::open_with(path, &ModelOptions { threads: Some(threads), ..ModelOptions::default() })
        .expect("the model opens");
    let options = SessionOptions { cache, chunk, ..SessionOptions::default() };
    let mut session = model.session_with(&options).expect("a session");
    let mut rows = Vec::new();
    session
        .feed_each(ids, &mut |position, row| {
            assert_eq!(position, rows.len() / row.len(), "positions come in order");
            rows.extend_from_slice(row);
        })
        .expect("the ids fit");
    rows
}

#[test]
fn the_runtime_gives_pytorchs_logits_from_every_type_of_weight() {
    for fixture in fixtures::models() {
        let tolerance = Tolerance::relative_to(PROMISED, &fixture.logits);
        for dtype in [Dtype::F32, Dtype::F16] {
            let Written { path, folder: _kept } = models::write(&fixture.config, &fixture.weights, dtype);
            for (threads, chunk) in [(1, 256), (1, 1), (2, 3)] {
                let what = format!("{} {dtype:?} {threads} threads, chunks of {chunk}", fixture.name);
                let actual = logits(&path, &fixture.ids, CacheType::F32, threads, chunk);
                assert_close(&what, &actual, &fixture.logits, tolerance);
            }
        }
    }
}

#[test]
fn the_runtime_gives_the_references_logits_for_configs_of_any_shape() {
    for seed in 0..40 {
        let config = models::random_config(seed);
        let weights = models::random_weights(&config, seed);
        let ids = Chance::new(seed).ids(config.context, config.vocabulary);
        let expected = Reference::new(&config, &weights).logits(&ids);
        let Written { path, folder: _kept } = models::write(&config, &weights, Dtype::F32);
        let actual = logits(&path, &ids, CacheType::F32, 1 + seed as usize % 3, 1 + seed as usize % 5);
        let tolerance = Tolerance::relative_to(PROMISED, &expected);
        assert_close(&format!("seed {seed}, {config:?}"), &actual, &expected, tolerance);
    }
}

#[test]
fn the_runtime_gives_the_references_logits_for_mixtures_of_any_shape() {
    for seed in 0..60 {
        let config = models::random_mixture(seed);
        let weights = models::random_weights(&config, seed);
        let ids = Chance::new(seed).ids(config.context, config.vocabulary);
        let expected = Reference::new(&config, &weights).logits(&ids);
        let Written { path, folder: _kept } = models::write(&config, &weights, Dtype::F32);
        let tolerance = Tolerance::relative_to(PROMISED, &expected);
        let one = logits(&path, &ids, CacheType::F32, 1, 256);
        for (threads, chunk) in [(1, 256), (2, 256), (3, 7), (2, 1), (1, 4)] {
            let actual = logits(&path, &ids, CacheType::F32, threads, chunk);
            let what = format!("seed {seed}, {threads} threads, chunks of {chunk}, {config:?}");
            assert_close(&what, &actual, &expected, tolerance);
            assert!(chunk != 256 || actual == one, "another number of threads, other bytes: {what}");
        }
    }
}

/// A GPT of either kind, of any shape.
fn gpt(seed: u64) -> Config {
    let drawn = models::random_config(seed);
    let order = [NormOrder::Pre, NormOrder::Post][seed as usize % 2];
    let config = Config {
        // Every other one is too large to be packed when it is opened.
        context: if seed % 4 < 2 { drawn.context } else { (1 << 20) / drawn.width + 1 },
        position: Position::Learned,
        norm_order: order,
        feed_forward: if order == NormOrder::Post { 4 * drawn.width } else { drawn.feed_forward },
        activation: formats::config::Activation::GeluTanh,
        attention_scale: formats::config::AttentionScale::HeadSize,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        head_bias: false,
        ..drawn
    };
    let family = if order == NormOrder::Pre { Family::Gpt2 } else { Family::OpenaiGpt };
    assert_eq!(Family::of(&config), family);
    config
}

#[test]
fn weights_that_stand_transposed_give_the_references_logits_and_the_trainers() {
    for seed in 0..24 {
        let config = gpt(seed);
        let weights = models::random_weights(&config, seed);
        let ids = Chance::new(seed).ids(config.context.min(20), config.vocabulary);
        let expected = Reference::new(&config, &weights).logits(&ids);
        let tolerance = Tolerance::relative_to(PROMISED, &expected);
        let dtype = [Dtype::F32, Dtype::F16][seed as usize / 2 % 2];
        let Written { path, folder: _kept } = models::write(&config, &weights, dtype);
        let one = logits(&path, &ids, CacheType::F32, 1, 256);
        for (threads, chunk) in [(1, 256), (2, 256), (3, 7), (2, 1), (1, 4)] {
            let actual = logits(&path, &ids, CacheType::F32, threads, chunk);
            let what = format!("seed {seed}, {threads} threads, chunks of {chunk}, {config:?}");
            assert_close(&what, &actual, &expected, tolerance);
            assert!(chunk != 256 || actual == one, "another number of threads, other bytes: {what}");
        }
        let steps = [1, 2].map(|threads| logits(&path, &ids, CacheType::F32, threads, 1));
        assert!(steps[0] == steps[1], "another number of threads, other bytes");
        let directory = formats::checkpoint::Directory::open(&path).expect("a model");
        assert!(trainer::weights::arena(&directory.weights, &directory.layout) == weights, "as written");
        let trained = learner(&config, &weights, 1, 1, 2).model().logits(&ids, ids.len()).expect("logits");
        assert_close(&format!("{config:?}"), &trained, &expected, tolerance);
    }
}

#[test]
fn bf16_weights_are_read_as_the_numbers_they_are() {
    let config = models::small();
    let rounded: Vec<f32> = models::random_weights(&config, 1)
        .iter()
        .map(|&weight| half::bf16::from_f32(weight).to_f32())
        .collect();
    let ids = Chance::new(1).ids(config.context, config.vocabulary);
    let expected = Reference::new(&config, &rounded).logits(&ids);
    let Written { path, folder: _kept } = models::write(&config, &rounded, Dtype::Bf16);
    let actual = logits(&path, &ids, CacheType::F32, 1, 256);
    assert_close("bf16", &actual, &expected, Tolerance::relative_to(PROMISED, &expected));
}

#[test]
fn an_f16_cache_errs_by_no_more_than_its_rounding() {
    // Keys and values are rounded to 11 bits; the errors of a score's terms are independent, and the softmax and
    // the projections that follow keep their size. Four of them, relative to the logits, is ample and still small.
    let rounding = 0.5f64.powi(11);
    for fixture in fixtures::models() {
        let Written { path, folder: _kept } = models::write(&fixture.config, &fixture.weights, Dtype::F32);
        let actual = logits(&path, &fixture.ids, CacheType::F16, 1, 256);
        let tolerance = Tolerance::relative_to(4.0 * rounding, &fixture.logits);
        assert_close(&fixture.name, &actual, &fixture.logits, tolerance);
    }
}

#[test]
fn a_model_in_memory_is_the_model_on_disk() {
    let config = models::small();
    let Written { path, folder: _kept } =
        models::write(&config, &models::random_weights(&config, 2), Dtype::F16);
    let read = |name: &str| std::fs::read(path.join(name)).expect("a file of the model");
    let text = |name: &str| String::from_utf8(read(name)).expect("text");
    let (config_json, tokenizer) = (text("config.json"), text("tokenizer.json"));
    let weights = read("model.safetensors");
    let model = Model::from_bytes(&config_json, &weights, Some(&tokenizer)).expect("a model");
    // The same bytes at an odd address must do as well.
    let mut shifted = vec![0u8];
    shifted.extend_from_slice(&weights);
    let odd = Model::from_bytes(&config_json, &shifted[1..], Some(&tokenizer)).expect("a model");
    let disk = Model::open(&path).expect("the model opens");
    let ids = Chance::new(2).ids(config.context, config.vocabulary);
    let feed = |model: &Model| model.session().expect("a session").feed(&ids).expect("logits").to_vec();
    assert_eq!(feed(&disk), feed(&model));
    assert_eq!(feed(&disk), feed(&odd));
    assert_eq!(disk.tokenizer(), model.tokenizer());
}

#[test]
fn the_trainers_loss_is_the_references() {
    for seed in 0..30 {
        let config = models::random_config(seed);
        trainers_loss(&config, &models::random_weights(&config, seed), seed);
        let config = models::random_mixture(seed);
        trainers_loss(&config, &models::random_weights(&config, seed), seed);
    }
    for fixture in fixtures::models() {
        trainers_loss(&fixture.config, &fixture.weights, 1);
    }
}

/// Blocks shorter than the context, batches of any size, evaluations of more and of fewer sequences than a batch.
#[track_caller]
fn trainers_loss(config: &Config, weights: &[f32], seed: u64) {
    let mut chance = Chance::new(seed);
    let reference = Reference::new(config, weights);
    let block = 1 + chance.below(config.context);
    let sequences = 1 + chance.below(7);
    let mut learner = learner(config, weights, sequences, block, 1 + seed as usize % 3);
    for count in [1, sequences, 2 * sequences + 1] {
        let inputs = chance.ids(count * block, config.vocabulary);
        let targets = chance.ids(count * block, config.vocabulary);
        let expected = reference.loss(&inputs, &targets, block);
        let actual = learner.model_mut().evaluate(&inputs, &targets).expect("a loss");
        let what = format!("{count} sequences of {block} in batches of {sequences}: {config:?}");
        assert_close(&what, &[actual], &[expected], Tolerance { absolute: PROMISED, relative: PROMISED });
    }
}

#[test]
fn the_trainers_logits_are_the_references() {
    for seed in 0..20 {
        let config = models::random_config(50 + seed);
        let weights = models::random_weights(&config, seed);
        let ids = Chance::new(seed).ids(config.context, config.vocabulary);
        let expected = Reference::new(&config, &weights).logits(&ids);
        let actual = learner(&config, &weights, 1, 1, 1).model().logits(&ids, ids.len()).expect("logits");
        assert_close(&format!("{config:?}"), &actual, &expected, Tolerance::relative_to(PROMISED, &expected));
    }
}

#[test]
fn trainer_and_runtime_agree_through_one_checkpoint() {
    let mixtures = (0..20).map(|seed| (seed, models::random_mixture(100 + seed)));
    for (seed, config) in (0..20).map(|seed| (seed, models::random_config(100 + seed))).chain(mixtures) {
        let weights = models::random_weights(&config, seed);
        let Written { path, folder: _kept } = models::write(&config, &weights, Dtype::F32);
        let ids = Chance::new(seed).ids(config.context, config.vocabulary);
        let runtime = logits(&path, &ids, CacheType::F32, 1 + seed as usize % 3, 256);
        let trainer = learner(&config, &weights, 1, 1, 2).model().logits(&ids, ids.len()).expect("logits");
        assert_close(&format!("{config:?}"), &runtime, &trainer, Tolerance::relative_to(PROMISED, &trainer));
    }
}
