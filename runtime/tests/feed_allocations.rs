//! A session allocates when it is made and never again, whatever is fed: prompts, single ids, rows to score.
//!
//! A program of its own, because it counts every allocation of the process.

use formats::checkpoint::Dtype;
use formats::config::{
    Activation, AttentionScale, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use formats::{Config, Layout, families};
use runtime::generate::{GenerateOptions, Generator};
use runtime::model::{Model, ModelOptions};
use runtime::session::SessionOptions;
use std::alloc::{GlobalAlloc, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A model whose every weight is one of some small numbers, of both signs.
fn model(config: &Config, threads: usize) -> Model {
    let layout = Layout::new(config);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for stored in families::stored(config, &layout) {
        let begin = end;
        end += 2 * layout.parameter(stored.id).len();
        let entry =
            serde_json::json!({ "dtype": "F16", "shape": stored.shape, "data_offsets": [begin, end] });
        header.insert(stored.name, entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    let weight = |index: u32| {
        let drawn = index.wrapping_mul(0x9E37_79B1) >> 16;
        (0x2000 | (drawn & 0x83ff) as u16).to_le_bytes()
    };
    file.extend((0..end as u32 / 2).flat_map(weight));
    let options = ModelOptions {
        threads: Some(threads),
        expert_budget: Some(1 << 14),
        shortlist: Some(true),
        ..ModelOptions::default()
    };
    Model::from_bytes_with(&families::config_json(config, Dtype::F16), &file, None, &options)
        .expect("a valid model")
}

#[test]
fn feeding_allocates_nothing() {
    let config = Config {
        vocabulary: 50,
        context: 64,
        width: 32,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_size: 8,
        feed_forward: 64,
        experts: None,
        position: Position::Learned,
        rotary_base: 10_000.0,
        norm: NormKind::LayerNorm,
        norm_order: NormOrder::Pre,
        query_key_norm: QueryKeyNorm::None,
        activation: Activation::GeluTanh,
        attention_scale: AttentionScale::HeadSize,
        norm_eps: 1e-5,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        tied: true,
        head_bias: false,
        dropout: 0.0,
    };
    let experts = Experts {
        count: 5,
        active: 2,
        width: 48,
        every: 1,
        shared: 1,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: true,
        noise: false,
    };
    let mixture = Config {
        experts: Some(experts),
        position: Position::Rotary,
        norm: NormKind::RmsNorm,
        norm_bias: false,
        query_key_norm: QueryKeyNorm::Whole,
        activation: Activation::SwiGlu,
        kv_heads: 2,
        ..config.clone()
    };
    // Too large to be packed, so that its best logits can be found by a shortlist.
    let large = Config { vocabulary: 5000, width: 256, head_size: 64, ..config.clone() };
    for (config, threads) in
        [(&config, 1), (&config, 3), (&mixture, 1), (&mixture, 3), (&large, 1), (&large, 3)]
    {
        let model = model(config, threads);
        assert_eq!(model.make_shortlist(), config.vocabulary == large.vocabulary);
        let options = SessionOptions { chunk: 8, ..SessionOptions::default() };
        let mut session = model.session_with(&options).expect("memory");
        let prompt = [7; 21];
        // Once to let the threads set up what the standard library keeps for each.
        session.feed(&prompt).expect("room");
        session.rewind(0).expect("the start");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let mut checksum = 0.0;
        session.feed(&prompt).expect("room");
        for id in 0..20 {
            checksum += session.feed(&[id]).expect("room")[3];
        }
        session.feed_each(&prompt, &mut |_, logits| checksum += logits[0]).expect("room");
        session.rewind(0).expect("the start");
        let mut left_out = 0;
        for id in 0..20 {
            let logits = session.feed_best(&[id], 40).expect("room");
            left_out += logits.iter().filter(|logit| **logit == f32::MIN).count();
        }
        let after = ALLOCATIONS.load(Ordering::Relaxed);
        assert!(checksum.is_finite());
        assert_eq!(after - before, 0, "allocations with {threads} threads");
        let expected = if model.make_shortlist() { 20 * config.vocabulary * 7 / 8 } else { 0 };
        assert!(left_out >= expected, "{left_out} logits were left out");

        let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
        session.rewind(0).expect("the start");
        let mut generator = Generator::new(&mut session, &[1], &options).expect("a generator");
        generator.next().expect("a first token").expect("a token");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..40 {
            generator.next().expect("not the end").expect("a token");
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "of a generator with {threads} threads");
    }
}
