//! How fast this machine reads memory: the roof that decoding is measured against.

use formats::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Read at the least, where the size of the last-level cache is unknown or small.
const LEAST_BYTES: usize = 256 << 20;
/// Read at the most: a machine with more cache than half of this has memory enough for it.
const MOST_BYTES: usize = 2 << 30;
/// Passes that count, after one that warms up.
pub const PASSES: usize = 5;
/// Sums that run side by side, so that adding never waits for itself.
const LANES: usize = 32;

/// 10^9 bytes a second that `threads` threads read together from a buffer larger than the last-level cache.
pub fn read_gb_per_s(threads: usize) -> Result<f64> {
    let bytes = last_level_caches().saturating_mul(2).clamp(LEAST_BYTES, MOST_BYTES);
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

/// Bytes of all caches of the last level together, or 0 where the system does not tell: a machine may have one for
/// every few of its processors, and each thread's part must not fit into its own.
pub fn last_level_caches() -> usize {
    let mut level = 0;
    // By the processors that share it, so that each is counted once.
    let mut caches = BTreeMap::new();
    let inside = |path: &str| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    for index in
        inside("/sys/devices/system/cpu").flat_map(|cpu| inside(&cpu.join("cache").to_string_lossy()))
    {
        let read = |name: &str| fs::read_to_string(index.join(name)).ok();
        let described = || {
            let found: u32 = read("level")?.trim().parse().ok()?;
            Some((found, read("shared_cpu_list")?, bytes(read("size")?.trim())?))
        };
        let Some((found, sharing, size)) = described() else { continue };
        if found > level {
            level = found;
            caches.clear();
        }
        if found == level {
            caches.insert(sharing, size);
        }
    }
    caches.values().fold(0, |total, size| total.saturating_add(*size))
}

/// A size as the system writes it: `32768K`.
fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_system_writes_them() {
        for (text, size) in [("32K", Some(32 << 10)), ("8M", Some(8 << 20)), ("0K", Some(0))] {
            assert_eq!(bytes(text), size, "{text}");
        }
        for text in ["", "K", "32", "32G", "-1K", "99999999999999999999K", "18446744073709551615K", "é"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn the_middle_is_taken_and_is_never_nothing() {
        let mut times = [5, 1, 3].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(3));
        assert_eq!(median(&mut [Duration::ZERO]), Duration::from_nanos(1));
        assert_eq!(median(&mut []), Duration::from_nanos(1));
    }

    #[test]
    fn a_sum_misses_no_lane() {
        let values: Vec<u64> = (0..3 * LANES as u64).collect();
        assert_eq!(sum(&values), values.iter().sum::<u64>());
    }
}
