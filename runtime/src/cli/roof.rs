//! How fast this machine reads memory: the roof that decoding is measured against.

use formats::{Error, Result};
use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Read at the least, where the size of the last-level cache is unknown or small.
const LEAST_BYTES: usize = 256 << 20;
/// Read at the most: more would tell nothing new and could be too much for a small machine.
const MOST_BYTES: usize = 1 << 30;
/// Passes that count, after one that warms up.
pub const PASSES: usize = 5;
/// Sums that run side by side, so that adding never waits for itself.
const LANES: usize = 32;

/// 10^9 bytes a second that `threads` threads read together from a buffer larger than the last-level cache.
pub fn read_gb_per_s(threads: usize) -> Result<f64> {
    let bytes = (2 * last_level_cache()).clamp(LEAST_BYTES, MOST_BYTES);
    let words = (bytes / size_of::<u64>()).div_ceil(threads).next_multiple_of(LANES);
    let mut parts = Vec::new();
    for _ in 0..threads {
        let mut part: Vec<u64> = Vec::new();
        part.try_reserve_exact(words).map_err(|_| Error::Memory {
            what: "the buffer that memory speed is measured on".into(),
            needed: bytes as u64,
            available: 0,
            help: "free memory, or set fewer --threads".into(),
        })?;
        parts.push(part);
    }

    let (start, end) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    let mut times = Vec::with_capacity(PASSES);
    thread::scope(|scope| {
        for mut part in parts {
            let (start, end) = (&start, &end);
            scope.spawn(move || {
                // Written by the thread that reads it, so that it lies in the memory nearest to it.
                part.resize(words, 1);
                for _ in 0..=PASSES {
                    start.wait();
                    black_box(sum(black_box(&part)));
                    end.wait();
                }
            });
        }
        for pass in 0..=PASSES {
            start.wait();
            let begin = Instant::now();
            end.wait();
            if pass > 0 {
                times.push(begin.elapsed());
            }
        }
    });
    let read = (words * size_of::<u64>() * threads) as f64;
    Ok(read / median(&mut times).as_secs_f64() / 1e9)
}

/// The middle one.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default().max(Duration::from_nanos(1))
}

fn sum(values: &[u64]) -> u64 {
    let mut sums = [0u64; LANES];
    for chunk in values.chunks_exact(LANES) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

/// Bytes of the largest cache the system tells of, or 0.
fn last_level_cache() -> usize {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/cpu0/cache") else { return 0 };
    let sizes = entries.flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("size")).ok()?;
        let (number, unit) = text.trim().split_at(text.trim().len().checked_sub(1)?);
        let shift = match unit {
            "K" => 10,
            "M" => 20,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(1 << shift)
    });
    sizes.max().unwrap_or(0).min(MOST_BYTES)
}
