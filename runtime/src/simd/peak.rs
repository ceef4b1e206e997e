//! The machine's own roof: how many multiply-adds a second its registers can do.

use super::lanes::Lanes;
use std::hint::black_box;
use std::time::Instant;

/// Independent chains: enough to hide the latency of a multiply-add on any processor at hand.
const CHAINS: usize = 12;
/// Lanes a round's count of operations is normalised to.
const LANES: u64 = 16;

/// `rounds` rounds of [`CHAINS`] multiply-adds over [`LANES`] lanes, each into its own sum as in a product: where the
/// sum is also the place of the result, any other form costs a copy.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn multiply_add<L: Lanes>(rounds: u64) -> f32 {
    // SAFETY: registers only.
    unsafe {
        let (by, plus) = (L::splat(black_box(0.999_9)), L::splat(black_box(1e-4)));
        let mut chains = [L::splat(black_box(1.0)); CHAINS];
        for _ in 0..rounds * (LANES / L::WIDTH as u64) {
            for chain in &mut chains {
                *chain = by.multiply_add(plus, *chain);
            }
        }
        let mut total = L::splat(0.0);
        for chain in chains {
            total = total.add(chain);
        }
        total.sum()
    }
}

/// 10^9 operations a second of `threads` threads at once, the best of five tries within about `seconds`.
pub(super) fn measure(kernel: fn(u64) -> f32, threads: usize, seconds: f64) -> f64 {
    /// One slice of work: some milliseconds on any machine.
    const ROUNDS: u64 = 100_000;
    let slice = (seconds / 5.0).max(1e-3);
    let mut best = 0.0f64;
    for _ in 0..5 {
        let rate: f64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1))
                .map(|_| {
                    scope.spawn(|| {
                        let (begin, mut rounds) = (Instant::now(), 0);
                        while begin.elapsed().as_secs_f64() < slice {
                            black_box(kernel(black_box(ROUNDS)));
                            rounds += ROUNDS;
                        }
                        let operations = rounds * CHAINS as u64 * LANES * 2;
                        operations as f64 / begin.elapsed().as_secs_f64() / 1e9
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0.0)).sum()
        });
        best = best.max(rate);
    }
    best
}
