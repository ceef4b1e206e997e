//! Eight lanes as one value, for small kernels whose loops the compiler would vectorise across the wrong index.
//!
//! [`Octets`] is handed out by [`super::Simd::run_octets`] alone, inside a function that carries the instruction
//! set: holding it proves that the processor has the instructions, which makes its methods safe. What is written
//! over it keeps to one order of operations on every instruction set; only rounding differs where a multiply-add
//! is not one instruction.

use std::marker::PhantomData;

/// Number of lanes.
pub const OCTET: usize = 8;

/// A vector of eight f32.
pub trait Octet: Copy {
    /// All lanes `x`.
    ///
    /// # Safety
    /// The instruction set must be present, here and in every method below.
    unsafe fn splat(x: f32) -> Self;
    /// Reads eight values.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn load(from: &[f32; OCTET]) -> Self;
    /// Writes eight values.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn store(self, to: &mut [f32; OCTET]);
    /// `self * by + plus`.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self;
    /// `self + other`.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn subtract(self, other: Self) -> Self;
    /// `self * other`.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn multiply(self, other: Self) -> Self;
    /// `self / other`.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn divide(self, other: Self) -> Self;
    /// The larger of two; `other` where either is NaN.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn maximum(self, other: Self) -> Self;
    /// The smaller of two; `other` where either is NaN.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn minimum(self, other: Self) -> Self;
    /// `2^n` for lanes that hold `1.5 2^23 + n`: the integer stands in the low bits.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn power_of_two(self) -> Self;
    /// Transposes a square, its rows.
    ///
    /// # Safety
    /// See [`Octet::splat`].
    unsafe fn transpose(square: &mut [Self; OCTET]);
}

/// The proof that the vectors `O` may be used.
#[derive(Clone, Copy, Debug)]
pub struct Octets<O>(PhantomData<O>);

/// A kernel over eight lanes, see [`super::Simd::run_octets`].
pub trait OctetWork {
    /// What comes of it.
    type Output;

    /// Does it; implement with `#[inline(always)]`, and call only what is inlined too.
    fn run<O: Octet>(self, octets: Octets<O>) -> Self::Output;
}

impl<O: Octet> Octets<O> {
    /// # Safety
    /// The instructions of `O` must be present.
    #[inline(always)]
    pub(super) unsafe fn new() -> Octets<O> {
        Octets(PhantomData)
    }

    /// All lanes `x`.
    #[inline(always)]
    pub fn splat(self, x: f32) -> O {
        // SAFETY: `self` proves that the instructions are there, here and below.
        unsafe { O::splat(x) }
    }

    /// The first eight values.
    #[inline(always)]
    pub fn load(self, from: &[f32]) -> O {
        let (chunk, _) = from.split_first_chunk().expect("eight values");
        // SAFETY: see `splat`.
        unsafe { O::load(chunk) }
    }

    /// Writes the first eight values.
    #[inline(always)]
    pub fn store(self, value: O, to: &mut [f32]) {
        let (chunk, _) = to.split_first_chunk_mut().expect("room for eight values");
        // SAFETY: see `splat`.
        unsafe { value.store(chunk) }
    }

    /// `a b + c`.
    #[inline(always)]
    pub fn multiply_add(self, a: O, b: O, c: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.multiply_add(b, c) }
    }

    /// `a + b`.
    #[inline(always)]
    pub fn add(self, a: O, b: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.add(b) }
    }

    /// `a - b`.
    #[inline(always)]
    pub fn subtract(self, a: O, b: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.subtract(b) }
    }

    /// `a b`.
    #[inline(always)]
    pub fn multiply(self, a: O, b: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.multiply(b) }
    }

    /// `a / b`.
    #[inline(always)]
    pub fn divide(self, a: O, b: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.divide(b) }
    }

    /// The larger of two; `b` where either is NaN.
    #[inline(always)]
    pub fn maximum(self, a: O, b: O) -> O {
        // SAFETY: see `splat`.
        unsafe { a.maximum(b) }
    }

    /// Transposes a square, its rows.
    #[inline(always)]
    pub fn transpose(self, square: &mut [O; OCTET]) {
        // SAFETY: see `splat`.
        unsafe { O::transpose(square) }
    }

    /// `e^x`, with the bounds of [`super::routines::Unit::exp`].
    #[inline(always)]
    pub fn exp(self, x: O) -> O {
        use super::routines::exponential::*;
        // SAFETY: see `splat`. The bound comes second so that a NaN stays one.
        unsafe {
            let x = O::splat(LEAST).maximum(O::splat(MOST).minimum(x));
            let shifted = x.multiply_add(O::splat(std::f32::consts::LOG2_E), O::splat(ROUND));
            let power = shifted.subtract(O::splat(ROUND));
            let rest = power.multiply_add(O::splat(-LN_2_HIGH), x);
            let rest = power.multiply_add(O::splat(-LN_2_LOW), rest);
            let mut value = O::splat(COEFFICIENTS[COEFFICIENTS.len() - 1]);
            for coefficient in COEFFICIENTS.iter().rev().skip(1) {
                value = value.multiply_add(rest, O::splat(*coefficient));
            }
            value.multiply(shifted.power_of_two())
        }
    }
}

/// Eight lanes on any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; OCTET]);

impl Portable {
    #[inline(always)]
    fn of(self, other: Portable, one: impl Fn(f32, f32) -> f32) -> Portable {
        Portable(std::array::from_fn(|lane| one(self.0[lane], other.0[lane])))
    }
}

// SAFETY notes: no method needs anything of the processor.
impl Octet for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Portable {
        Portable([x; OCTET])
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; OCTET]) -> Portable {
        Portable(*from)
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; OCTET]) {
        *to = self.0;
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Portable, plus: Portable) -> Portable {
        self.of(by, |a, b| a * b).of(plus, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn add(self, other: Portable) -> Portable {
        self.of(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn subtract(self, other: Portable) -> Portable {
        self.of(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn multiply(self, other: Portable) -> Portable {
        self.of(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn divide(self, other: Portable) -> Portable {
        self.of(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn maximum(self, other: Portable) -> Portable {
        self.of(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn minimum(self, other: Portable) -> Portable {
        self.of(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Portable {
        Portable(self.0.map(super::routines::exponential::power_of_two))
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Portable; OCTET]) {
        let rows = *square;
        for (column, to) in square.iter_mut().enumerate() {
            *to = Portable(std::array::from_fn(|row| rows[row].0[column]));
        }
    }
}
