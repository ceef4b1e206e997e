//! How much the processor's caches hold, as far as the system tells.

use std::collections::BTreeMap;
use std::fs;

/// Bytes of all caches of the last level together, or 0 where the system does not tell: a machine may have one for
/// every few of its processors, and each thread's part must not fit into its own.
pub fn last_level_caches() -> usize {
    last_level(usize::MAX)
}

/// Bytes of as many of them as there are, but not of more than `most`: what so many threads reach.
pub(crate) fn last_level(most: usize) -> usize {
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
    caches.values().take(most).fold(0, |total, size| total.saturating_add(*size))
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
}
