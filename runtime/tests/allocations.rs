//! After its first token a generator allocates nothing: neither for tokens nor for their text, on any thread.
//!
//! A program of its own, because it counts every allocation of the process.

use formats::checkpoint::{Commit, Dtype, GenerationConfig, ModelFiles, write_model};
use formats::config::{Activation, AttentionScale, NormKind, NormOrder, Position, QueryKeyNorm};
use formats::tokenizer::Tokenizer;
use formats::{Config, Layout};
use runtime::generate::{GenerateOptions, Generator};
use runtime::model::{Model, ModelOptions};
use runtime::random::{Purpose, Stream};
use runtime::sampler::Sampling;
use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, place: *mut u8, block: Block) {
        // SAFETY: `place` came from `alloc` above, which is the system's.
        unsafe { System.dealloc(place, block) }
    }

    unsafe fn realloc(&self, place: *mut u8, block: Block, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(place, block, size) }
    }
}

#[test]
fn a_generator_allocates_nothing_after_its_first_token() {
    let tokenizer = Tokenizer::characters("abcdefghijklmnopqrstuvwxyz é一\n").expect("some characters");
    let config = Config {
        vocabulary: tokenizer.vocabulary(),
        context: 16,
        width: 32,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_size: 16,
        feed_forward: 64,
        experts: None,
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
    };
    let layout = Layout::new(&config);
    let stream = Stream::new(1, Purpose::Init);
    let values: Vec<f32> =
        (0..layout.parameters() as u64).map(|index| stream.uniform(0, index) - 0.5).collect();
    let folder = std::env::temp_dir().join(format!("lectern-allocations-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary directory can be written");
    let mut commit = Commit::begin(&folder, 0).expect("a commit begins");
    let files = ModelFiles {
        config: &config,
        layout: &layout,
        dtype: Dtype::F16,
        values: &values,
        tokenizer: Some(&tokenizer),
        generation: &GenerationConfig::plain(),
    };
    write_model(&mut commit, "model/", &files).expect("a model is written");
    let path = commit.finish().expect("a commit is finished").join("model");

    let chain = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
    for threads in [1, 2] {
        for sampling in [Sampling::GREEDY, Sampling::PLAIN, chain] {
            let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
            let model = Model::open_with(&path, &options).expect("a model that was written is read");
            let mut session = model.session().expect("a session");
            let options = GenerateOptions {
                max_tokens: 100,
                stop: vec!["no text has this".into(), "n".repeat(80)],
                sampling,
                ..GenerateOptions::default()
            };
            let mut generator = Generator::new(&mut session, &[1, 2, 3], &options).expect("a generator");
            generator.next().expect("a first token").expect("a token");
            // Past the context too, where each token feeds a whole window: the first such feed may grow buffers.
            let mut counted = 0;
            let mut bytes = generator.text().len();
            while !generator.slid() {
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                generator.next().expect("not the end").expect("a token");
                if !generator.slid() {
                    counted += ALLOCATIONS.load(Ordering::Relaxed) - before;
                }
            }
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            while let Some(token) = generator.next() {
                token.expect("a token");
                bytes += generator.text().len();
            }
            counted += ALLOCATIONS.load(Ordering::Relaxed) - before;
            // The text held back at the very end is the only new string.
            assert!(counted <= u64::from(!generator.tail().is_empty()), "{counted} with {threads} threads");
            assert!(bytes > 0);
        }
    }
    std::fs::remove_dir_all(&folder).expect("what was written can be removed");
}
