//! How fast this machine reads memory: the roof that decoding is measured against.

use formats::checkpoint::large_pages;
use formats::{Error, Result};
use memmap2::MmapMut;
use runtime::simd::caches::last_level_caches;
use runtime::simd::{Origin, Simd};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Read at the least, where the size of the last-level cache is unknown or small.
const LEAST_BYTES: usize = 256 << 20;
/// Read at the most: a machine with more cache than half of this has memory enough for it.
const MOST_BYTES: usize = 2 << 30;
/// Passes that count, after one that warms up.
pub const PASSES: usize = 5;
/// Sums that run side by side, so that adding never waits for itself.
const LANES: usize = 64;
/// Values of one row where the buffer is a matrix.
const ROW: usize = 4096;

/// 10^9 bytes a second that `threads` threads read together from a buffer larger than the last-level cache: the better of
/// plain sums and the product that decoding is made of. The buffer is in large pages where the system has them: in small
/// ones a machine reads less.
///
/// Each thread takes its own times. A thread beside them that took the times would need a processor, and where there are
/// no more of them than threads it gets one late: what it measures is shorter than what happened.
pub fn read_gb_per_s(simd: &Simd, threads: usize) -> Result<f64> {
    let bytes = last_level_caches().saturating_mul(2).clamp(LEAST_BYTES, MOST_BYTES);
    let values = (bytes / size_of::<f32>()).div_ceil(threads).next_multiple_of(ROW);
    let mut parts = Vec::new();
    for _ in 0..threads {
        parts.push(large_pages(values * size_of::<f32>()).map_err(|_| Error::Memory {
            what: "the buffer that memory speed is measured on".into(),
            needed: bytes as u64,
            available: 0,
            help: "free memory, or set fewer --threads".into(),
        })?);
    }

    let ready = AtomicUsize::new(0);
    let read = |mut part: MmapMut| {
        let part: &mut [f32] = bytemuck::cast_slice_mut(&mut part);
        // Written by the thread that reads it, so that it lies in the memory nearest to it.
        part.fill(1.0);
        let (row, mut results) = (vec![1.0; ROW], vec![0.0; values / ROW]);
        let mut times = Vec::with_capacity(2 * (PASSES + 1));
        for pass in 0..2 * (PASSES + 1) {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < (pass + 1) * threads {
                thread::yield_now();
            }
            let begin = Instant::now();
            if pass <= PASSES {
                black_box(sum(black_box(part)));
            } else {
                (simd.gemv_f32)(black_box(part), Origin::Memory, &row, black_box(&mut results));
            }
            times.push((begin, Instant::now()));
        }
        times
    };
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let readers: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| read(part))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect()
    });
    let mut passes: Vec<Duration> = (0..2 * (PASSES + 1))
        .map(|pass| {
            let of_pass = || times.iter().filter_map(|times| times.get(pass));
            let (begin, end) = (of_pass().map(|(begin, _)| begin).min(), of_pass().map(|(_, end)| end).max());
            begin.zip(end).map_or(Duration::MAX, |(begin, end)| *end - *begin)
        })
        .collect();
    // The first pass of either way warms up.
    let (sums, products) = passes.split_at_mut(PASSES + 1);
    let fastest = median(&mut sums[1..]).min(median(&mut products[1..]));
    let read = (values * size_of::<f32>() * threads) as f64;
    Ok(read / fastest.as_secs_f64() / 1e9)
}

/// The middle one.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default().max(Duration::from_nanos(1))
}

fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for chunk in values.as_chunks::<LANES>().0 {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += *value;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_taken_and_is_never_nothing() {
        let mut times = [5, 1, 3].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(3));
        assert_eq!(median(&mut [Duration::ZERO]), Duration::from_nanos(1));
        assert_eq!(median(&mut []), Duration::from_nanos(1));
    }

    #[test]
    fn a_sum_misses_no_lane() {
        let values: Vec<f32> = (0..3 * LANES).map(|value| value as f32).collect();
        assert_eq!(sum(&values), values.iter().sum::<f32>());
    }
}
