//! Memory that vectors like: values that begin on a cache line, so that no load of a whole vector touches two.

use std::collections::TryReserveError;
use std::ops::{Deref, DerefMut};

/// A cache line, which is also the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Values of one line.
const LINE: usize = 16;

/// A slice of `f32` of its own that begins on a cache line.
#[derive(Clone, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// `len` zeros; an error where there is no memory for them.
    pub fn try_zeroed(len: usize) -> Result<Aligned, TryReserveError> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(LINE))?;
        lines.resize(len.div_ceil(LINE), Line([0.0; LINE]));
        Ok(Aligned { lines, len })
    }

    /// `len` zeros.
    pub fn zeroed(len: usize) -> Aligned {
        Aligned { lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)], len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` values one after the other, since a line has no padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_asked_for_and_begins_on_a_line() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut values = Aligned::try_zeroed(len).expect("a little memory");
            assert_eq!((values.len(), values.as_ptr() as usize % 64), (len, 0));
            values.fill(1.0);
            assert_eq!(values.clone().iter().sum::<f32>(), len as f32);
        }
        assert!(Aligned::try_zeroed(usize::MAX / 8).is_err());
    }
}
