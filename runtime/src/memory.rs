//! How much memory the system can still give, and asking for it without dying.

use formats::{Error, Result};

/// Bytes the system says it can still give without swapping, where it says so.
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The error of a session that does not fit.
pub(crate) fn refusal(needed: u64) -> Error {
    Error::Memory {
        what: "a session's cache and buffers".into(),
        needed,
        available: available().unwrap_or(0),
        help: "ask for a shorter session (capacity), a smaller prefill chunk, or an f16 cache".into(),
    }
}

/// Refuses what the system says it cannot give: an allocation that succeeds on paper would end the process when
/// it is used.
pub(crate) fn expect(needed: u64) -> Result<()> {
    match available() {
        Some(available) if needed > available => Err(refusal(needed)),
        _ => Ok(()),
    }
}

/// A vector of `len` copies of `value`, or an error.
pub(crate) fn filled<T: Copy>(len: usize, value: T) -> Result<Vec<T>> {
    let mut values = reserved(len)?;
    values.resize(len, value);
    Ok(values)
}

/// An empty vector that will never need to grow to hold `len` values, or an error.
pub(crate) fn reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| refusal(len.saturating_mul(size_of::<T>()) as u64))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_can_be_is_refused() {
        assert!(matches!(filled(usize::MAX / 2, 0.0f32), Err(Error::Memory { .. })));
        assert!(matches!(reserved::<u8>(usize::MAX), Err(Error::Memory { .. })));
        if available().is_some() {
            assert!(matches!(expect(u64::MAX), Err(Error::Memory { .. })));
        }
        assert!(expect(0).is_ok());
    }
}
