//! A training step allocates nothing after the first, neither of a model that is cut into shards nor of one whose
//! operations are split among the threads.
//!
//! A program of its own, because it counts every allocation of the process.

use formats::Layout;
use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::atomic::{AtomicU64, Ordering};
use trainer::backend::cpu::Cpu;
use trainer::learner::{BatchShape, Learner, Rates};
use trainer::options::Options;
use trainer::presets;

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
fn a_step_allocates_nothing_after_the_first() {
    let gpt = presets::find("gpt-zero").expect("a preset");
    let large =
        Options { block: 64, width: 1024, layers: 1, batch: 2, tied: true, head_bias: false, ..gpt.clone() };
    for (options, vocabulary, micro_batches) in [(gpt, 65, 1), (large, 16_400, 2)] {
        let config = options.model(vocabulary).expect("a model");
        let shape = BatchShape { sequences: options.batch, block: options.block };
        let parameters = Layout::new(&config).parameters();
        let backend = Cpu::new(2).expect("threads");
        let mut learner = Learner::with(
            backend,
            &config,
            shape,
            &options.optimizer(),
            &options.mixing(),
            options.recompute,
        )
        .expect("a learner");
        let zeros = vec![0.0; parameters];
        let weights: Vec<f32> = (0..parameters).map(|index| (index as f32).sin() / 32.0).collect();
        learner.load(&weights, &zeros, &zeros).expect("weights of the right length");
        let ids: Vec<u32> = (0..shape.rows() * micro_batches).map(|id| (id % vocabulary) as u32).collect();
        let mut step = |step| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            learner.step(&ids, &ids, Rates { learning_rate: 1e-3, step, seed: 1 }).expect("a step");
            learner.outcome().expect("finite");
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        step(1);
        assert_eq!((step(2), step(3)), (0, 0), "{parameters} parameters");
    }
}
