//! Lines of 16-bit numbers in fewer bits without loss, and products with them.
//!
//! Decoding is as fast as weights come from memory, and a number's exponent says less than it has room for (of a bf16's eight
//! bits some 2.6, Zhang et al. 2025, arXiv:2504.11651, who code them by Huffman for GPUs): nearly all of a line's lie among
//! seven neighbours. So a number `(sign, exponent, fraction)` is kept as a field of four bits and its fraction's,
//!
//! ```text
//! fraction | code << F | sign << F + 3        code = exponent - base, if that is 1 to 7; otherwise 0
//! ```
//!
//! with `F` = 10 and 14 bits in all for an f16, 7 and 11 for a bf16. A number whose code is 0, an exception, follows the
//! line's fields as it was. `base` is the line's own: that which leaves the fewest exceptions (2 of 100 normal
//! deviates). A line is
//!
//! ```text
//! base << F (u16) | field 0, field 1, ..., lowest bit first, without gaps | exceptions (u16 each), in order
//! ```
//!
//! and its length a multiple of [`GROUP`]. [`LineCode`] writes lines; [`CompactProducts`] reads them, where a processor
//! does so faster than its memory gives the numbers as they were. The sums run as those of [`super::gemv`] do: their bits
//! are the same.

use super::lanes::Element;
use super::{Origin, Simd, Work};
use crate::simd::routines::Unit;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
mod vbmi;

/// Numbers a line's length is a multiple of.
pub const GROUP: usize = 64;
/// Numbers that are read together, their fields in an order of their own: [`Half::arrange`].
pub const BLOCK: usize = 32;
/// Exponents that have a code.
const CODES: usize = 7;
/// Bytes before a line's fields.
const BASE_BYTES: usize = size_of::<u16>();
/// Fields that fill whole bytes together: as many as a field has bits.
const OCTET: usize = 8;
/// Bytes after the last line that may be read, besides those that so many exceptions as a line has numbers would take.
const READ_PAST: usize = 64;
/// Exponents counted side by side: a count is not read while the same one is still being written.
const COUNTS: usize = 4;

/// A number of 16 bits.
pub trait Half: Element + Sync {
    /// Bits of its fraction, `F`.
    const FRACTION: usize;
    /// Bits of its field.
    const FIELD: usize = Self::FRACTION + 4;
    /// Values its exponent can have.
    const EXPONENTS: usize = 1 << (15 - Self::FRACTION);

    /// A block's numbers in the order of their fields.
    fn arrange(block: &[u16; BLOCK]) -> [u16; BLOCK];
    /// The bits of numbers.
    fn bits(numbers: &[Self]) -> &[u16];
    /// Numbers of these bits.
    fn from_bits(bits: &[u16]) -> &[Self];
    /// A table's product with numbers as they are.
    fn gemv(simd: &Simd) -> fn(&[Self], Origin, &[f32], &mut [f32]);
}

impl Half for f16 {
    const FRACTION: usize = 10;

    #[inline(always)]
    fn arrange(block: &[u16; BLOCK]) -> [u16; BLOCK] {
        *block
    }

    #[inline(always)]
    fn bits(numbers: &[f16]) -> &[u16] {
        numbers.reinterpret_cast()
    }

    fn from_bits(bits: &[u16]) -> &[f16] {
        bits.reinterpret_cast()
    }

    fn gemv(simd: &Simd) -> fn(&[f16], Origin, &[f32], &mut [f32]) {
        simd.gemv_f16
    }
}

impl Half for bf16 {
    const FRACTION: usize = 7;

    /// One of the first half, one of the second: two that stand side by side become the upper bits of an f32 each.
    #[inline(always)]
    fn arrange(block: &[u16; BLOCK]) -> [u16; BLOCK] {
        let mut arranged = [0; BLOCK];
        for pair in 0..BLOCK / 2 {
            arranged[2 * pair] = block[pair];
            arranged[2 * pair + 1] = block[BLOCK / 2 + pair];
        }
        arranged
    }

    #[inline(always)]
    fn bits(numbers: &[bf16]) -> &[u16] {
        numbers.reinterpret_cast()
    }

    fn from_bits(bits: &[u16]) -> &[bf16] {
        bits.reinterpret_cast()
    }

    fn gemv(simd: &Simd) -> fn(&[bf16], Origin, &[f32], &mut [f32]) {
        simd.gemv_bf16
    }
}

/// Bytes that lie behind the last of lines of so many numbers.
pub const fn padding(columns: usize) -> usize {
    columns * size_of::<u16>() + READ_PAST
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCode {
    /// May be one below zero, so that zeros have a code.
    base: u16,
    /// Bytes of the line.
    pub bytes: usize,
}

impl LineCode {
    /// The best for a line.
    pub fn of<T: Half>(line: &[T]) -> LineCode {
        let mut counts = [[0u32; 256]; COUNTS];
        for four in T::bits(line).chunks(COUNTS) {
            for (counts, bits) in counts.iter_mut().zip(four) {
                counts[exponent::<T>(*bits)] += 1;
            }
        }
        let of = |exponent: usize| counts.iter().map(|counts| counts[exponent]).sum::<u32>();
        let within = |first: usize| (first..first + CODES).map(of).sum::<u32>();
        let mut first = 0;
        let (mut now, mut most) = (within(0), within(0));
        for next in 1..=T::EXPONENTS - CODES {
            now = now + of(next + CODES - 1) - of(next - 1);
            if now > most {
                (first, most) = (next, now);
            }
        }
        let exceptions = line.len() - most as usize;
        LineCode {
            base: (first as u16).wrapping_sub(1),
            bytes: fields_end::<T>(line.len()) + exceptions * size_of::<u16>(),
        }
    }

    /// Writes the line that this was made for; of another of that length, whatever finds room.
    ///
    /// # Panics
    /// If `to` is not as long as told.
    pub fn write<T: Half>(self, simd: &Simd, line: &[T], to: &mut [u8]) {
        assert_eq!(to.len(), self.bytes, "a line's bytes");
        simd.run(Write { code: self, line, to });
    }
}

/// The exponent of a number, as it is stored.
fn exponent<T: Half>(bits: u16) -> usize {
    usize::from(bits) >> T::FRACTION & (T::EXPONENTS - 1)
}

/// Where the exceptions of a line of so many numbers begin.
const fn fields_end<T: Half>(columns: usize) -> usize {
    BASE_BYTES + columns / OCTET * T::FIELD
}

/// Writes one line.
struct Write<'a, T> {
    code: LineCode,
    line: &'a [T],
    to: &'a mut [u8],
}

impl<T: Half> Work for Write<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Unit) {
        let base = self.code.base;
        let (fields, mut exceptions) = self.to.split_at_mut(fields_end::<T>(self.line.len()));
        let (begin, fields) = fields.split_at_mut(BASE_BYTES);
        begin.copy_from_slice(&(base << T::FRACTION).to_le_bytes());
        let blocks = T::bits(self.line).as_chunks::<BLOCK>().0;
        let bytes = fields.chunks_exact_mut(BLOCK / OCTET * T::FIELD);
        let codes = (CODES as u16) << T::FRACTION;
        for (block, to) in blocks.iter().zip(bytes) {
            let block = T::arrange(block);
            let mut fields = [0u16; BLOCK];
            let mut missing = 0u32;
            for (index, (field, bits)) in fields.iter_mut().zip(&block).enumerate() {
                let exponent = *bits >> T::FRACTION & (T::EXPONENTS - 1) as u16;
                let code = exponent.wrapping_sub(base);
                let code = if code.wrapping_sub(1) < CODES as u16 { code } else { 0 };
                let fraction = *bits & ((1 << T::FRACTION) - 1);
                *field = fraction | code << T::FRACTION | *bits >> 15 << (T::FRACTION + 3);
                missing |= u32::from(*field & codes == 0) << index;
            }
            for (eight, to) in fields.as_chunks::<OCTET>().0.iter().zip(to.chunks_exact_mut(T::FIELD)) {
                let mut together = 0u128;
                for (index, field) in eight.iter().enumerate() {
                    together |= u128::from(*field) << (index * T::FIELD);
                }
                to.copy_from_slice(&together.to_le_bytes()[..T::FIELD]);
            }
            while missing != 0 {
                let number = block[missing.trailing_zeros() as usize];
                // A line that lies in a file may not be any more what it was when its code was made.
                let Some((to, rest)) = std::mem::take(&mut exceptions).split_at_mut_checked(size_of::<u16>())
                else {
                    break;
                };
                to.copy_from_slice(&number.to_le_bytes());
                exceptions = rest;
                missing &= missing - 1;
            }
        }
    }
}

/// `y = W x` with lines that begin at the second's places in the first.
pub type CompactGemv = fn(&[u8], &[usize], &[f32], &mut [f32]);

/// Products of one row with lines in fewer bits. Slices of wrong length are a broken invariant of the caller and panic.
#[derive(Clone, Copy, Debug)]
pub struct CompactProducts {
    /// `y = W x`, a line an output.
    pub gemv: CompactGemv,
    /// `y = x W`, a line an input.
    pub gemv_rows: CompactGemv,
}

impl Simd {
    /// The products of this table with compact lines of such numbers, if the processor can be fast at them: that takes
    /// instructions that move bits from any place of a vector to any other.
    pub fn compact_products<T: Half>(&self) -> Option<CompactProducts> {
        #[cfg(target_arch = "x86_64")]
        if self.set == super::InstructionSet::Avx512 {
            return vbmi::products(T::FRACTION);
        }
        None
    }
}

#[cfg(test)]
mod tests;
