//! A model whose matrices are held in fewer bits computes what it computed before, to the bit.

use super::*;
use crate::model::{Model, ModelOptions};
use crate::session::tests::{ids, lines, plain, random};
use crate::session::{Session, SessionOptions};
use formats::checkpoint::Dtype;
use formats::config::{Activation, Config, Experts, NormKind, Position, RouterScore, RouterWeight};
use formats::families;
use std::sync::Arc;

/// Gated experts as Mixtral stores them: several tensors a parameter.
fn experts() -> Config {
    let experts = Experts {
        count: 4,
        active: 2,
        width: 256,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: false,
        noise: false,
    };
    Config {
        vocabulary: 101,
        width: 256,
        heads: 4,
        kv_heads: 2,
        head_size: 64,
        feed_forward: 256,
        experts: Some(experts),
        position: Position::Rotary,
        norm: NormKind::RmsNorm,
        activation: Activation::SwiGlu,
        norm_bias: false,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        head_bias: false,
        ..plain()
    }
}

fn open(config: &Config, dtype: Dtype, file: &[u8], threads: usize) -> Model {
    let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    Model::from_bytes_with(&families::config_json(config, dtype), file, None, &options)
        .expect("a valid model")
}

/// Logits of a prompt, of single tokens after it, and of a few at a time.
fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let options = SessionOptions { chunk: 7, ..SessionOptions::default() };
    let mut session: Session = model.session_with(&options).expect("a session");
    let mut rows = Vec::new();
    let mut each = |_: usize, row: &[f32]| rows.extend_from_slice(row);
    session.feed_each(&ids[..10], &mut each).expect("a prompt");
    for id in &ids[10..16] {
        session.feed_each(&[*id], &mut each).expect("a token");
    }
    session.feed_each(&ids[16..18], &mut each).expect("two tokens");
    rows
}

#[test]
fn a_model_in_fewer_bits_gives_the_same_logits() {
    for (config, dtype) in [
        (lines(4, 3), Dtype::F16),
        (lines(4, 3), Dtype::Bf16),
        (experts(), Dtype::F16),
        (experts(), Dtype::Bf16),
        // Lines that are no whole groups stay as they are.
        (lines(5, 2), Dtype::Bf16),
    ] {
        let (file, _) = random(&config, dtype);
        let ids = ids(&config, 18);
        for threads in [1, 2, 3] {
            let mut model = open(&config, dtype, &file, threads);
            let (want, stored) = (logits(&model, &ids), model.bytes_per_token());
            let shared = Arc::get_mut(model.shared_mut()).expect("no session is left");
            assert!(!shared.small);
            shared.compact = Matrices::made(shared).expect("memory");
            assert!(logits(&model, &ids) == want, "{dtype:?} on {threads} threads");
            let expected =
                model.simd().compact_products::<half::f16>().is_some() && config.width % GROUP == 0;
            let read = model.bytes_per_token() as f64 / stored as f64;
            let most = if dtype == Dtype::F16 { 0.95 } else { 0.8 };
            assert_eq!(read < most, expected, "{read} of what is stored");
        }
    }
}

#[test]
fn a_matrix_that_does_not_get_shorter_stays_as_it_is() {
    let simd = Simd::best();
    let spread: Vec<half::bf16> =
        (0..4 * GROUP as u16).map(|bits| half::bf16::from_bits(bits << 7)).collect();
    assert!(Compact::of(simd, &spread, GROUP).expect("memory").is_none());
    let alike = vec![half::bf16::ONE; 4 * GROUP];
    let compact = Compact::of(simd, &alike, GROUP).expect("memory");
    assert_eq!(compact.is_some(), simd.compact_products::<half::bf16>().is_some());
    assert!(Compact::of(simd, &alike[..4], 2).expect("memory").is_none());
}

#[test]
fn the_race_is_run_and_holding_changes_no_logit() {
    let config = lines(4, 3);
    let (file, _) = random(&config, Dtype::Bf16);
    let model = open(&config, Dtype::Bf16, &file, 2);
    model.shared().start().expect("threads");
    is_faster(model.shared()).expect("memory");
    let options = ModelOptions { threads: Some(2), hold: true, ..ModelOptions::default() };
    let held = Model::from_bytes_with(&families::config_json(&config, Dtype::Bf16), &file, None, &options)
        .expect("a valid model");
    let ids = ids(&config, 18);
    assert!(logits(&held, &ids) == logits(&model, &ids));
}
