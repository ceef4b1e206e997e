//! What a kernel needs to draw a mask again: `device/kernel.cuh` has the generator. The step is the device clock's, since a
//! replayed step sees another number; everything else stays as it is.

use super::{Draws, Mask};

/// The words of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The generator's key.
    pub seed: u64,
    /// The site's first block.
    pub site: u64,
    /// Number of the first row in the whole batch.
    pub first_row: u64,
    /// Width of a row.
    pub width: usize,
}

/// The factors of one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// What decides them.
    pub words: Words,
    /// A word below this is dropped; 0 drops nothing, and nothing is drawn.
    pub threshold: u32,
    /// What the others are multiplied by.
    pub scale: f32,
}

impl Draws {
    /// As a kernel takes them.
    pub fn words(&self) -> Words {
        let Draws { stream, site, first_row, width, .. } = *self;
        Words { seed: stream.seed(), site, first_row, width }
    }
}

/// A mask as a kernel takes it.
pub fn factors(mask: Mask) -> Factors {
    match mask {
        None => Factors { words: Words::default(), threshold: 0, scale: 1.0 },
        Some(mask) => Factors { words: mask.draws.words(), threshold: mask.threshold, scale: mask.scale },
    }
}
