//! What a vector of one instruction set can do: the few operations the matrix products are written over.
//!
//! Each method is `unsafe` because it may only run where its instructions exist; the tables see to that.

use half::{bf16, f16};

/// A vector of f32 lanes.
pub trait Lanes: Copy {
    /// Number of lanes; divides [`super::PANEL`].
    const WIDTH: usize;
    /// Rows of a product's register tile: with the columns of [`Lanes::TILE_VECTORS`] they fill the registers.
    const TILE_ROWS: usize;
    /// Vectors side by side in a register tile.
    const TILE_VECTORS: usize;

    /// All lanes `x`.
    ///
    /// # Safety
    /// The instruction set must be present, here and in every method below; pointers must be valid for the
    /// lanes they name, without alignment.
    unsafe fn splat(x: f32) -> Self;
    /// Reads `WIDTH` values.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load(from: *const f32) -> Self;
    /// Reads the first `count < WIDTH` values; other lanes are zero.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    /// Reads and widens `WIDTH` halves.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load_f16(from: *const f16) -> Self;
    /// Reads and widens `WIDTH` bfloat16s.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// Reads and converts `WIDTH` whole numbers.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load_i8(from: *const i8) -> Self;
    /// Writes `WIDTH` values.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count < WIDTH` values.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn store_part(self, to: *mut f32, count: usize);
    /// Rounds to half precision and writes `WIDTH` values.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn store_f16(self, to: *mut f16);
    /// `self * by + plus`, rounded once.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self;
    /// Lane by lane.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn add(self, other: Self) -> Self;
    /// The sum of all lanes, in a fixed order.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn sum(self) -> f32;
    /// Transposes the square of the first [`Lanes::WIDTH`] vectors, its rows.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn transpose(square: &mut [Self; super::PANEL]);
}

/// A number weights are stored as.
pub trait Element: Copy {
    /// As f32, exactly.
    fn widen(self) -> f32;
    /// Reads and widens one vector.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    /// Reads and widens the first `count < WIDTH` values.
    ///
    /// # Safety
    /// See [`Lanes::splat`].
    #[inline(always)]
    unsafe fn load_part<L: Lanes>(from: *const Self, count: usize) -> L {
        let mut lanes = [0.0; super::PANEL];
        for (index, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` values at `from`.
            *lane = unsafe { (*from.add(index)).widen() };
        }
        // SAFETY: a vector has at most `PANEL` lanes.
        unsafe { L::load(lanes.as_ptr()) }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn load_part<L: Lanes>(from: *const f32, count: usize) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_part(from, count) }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f16) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_f16(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const bf16) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_bf16(from) }
    }
}

impl Element for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const i8) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_i8(from) }
    }
}
