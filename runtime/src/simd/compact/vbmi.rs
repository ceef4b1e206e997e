//! Compact lines through AVX-512 VBMI: a shuffle of bytes and one of bits bring 32 fields to their places.

use super::{BASE_BYTES, BLOCK, CompactProducts, GROUP, Half, READ_PAST, fields_end};
use crate::simd::gemv::prefetch_lines;
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Fields of which 64 bits are made; the shuffle of bits reaches no further.
const LANE: usize = 4;
/// Bytes asked for ahead of their use.
const AHEAD: usize = 9216;

/// Functions compiled with these instructions behind safe function pointers.
macro_rules! shims {
    ($features:literal, $($name:ident = $body:path;)*) => {
        $(
        fn $name(bytes: &[u8], starts: &[usize], x: &[f32], y: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn inner(bytes: &[u8], starts: &[usize], x: &[f32], y: &mut [f32]) {
                // SAFETY: this function carries every feature that its body uses.
                unsafe { $body(bytes, starts, x, y) }
            }
            // SAFETY: only reached through what `products` gives after its features were detected.
            unsafe { inner(bytes, starts, x, y) }
        }
        )*
    };
}

shims! { "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vbmi,avx512vbmi2,popcnt",
    gemv_f16 = gemv::<f16>;
    gemv_bf16 = gemv::<bf16>;
    gemv_rows_f16 = gemv_rows::<f16>;
    gemv_rows_bf16 = gemv_rows::<bf16>;
}

/// The products with numbers of so many bits' fraction, where the processor has the instructions beyond those of the table.
pub(super) fn products(fraction: usize) -> Option<CompactProducts> {
    let there = is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("popcnt");
    there.then_some(match fraction {
        f16::FRACTION => CompactProducts { gemv: gemv_f16, gemv_rows: gemv_rows_f16 },
        _ => CompactProducts { gemv: gemv_bf16, gemv_rows: gemv_rows_bf16 },
    })
}

/// What a processor with these instructions makes of a number.
trait Number: Half {
    /// From the tops of words to their bottoms, with copies of the sign before them.
    unsafe fn lower(words: __m512i) -> __m512i;
    /// A block's numbers as f32, exactly and in their order, from that of their fields.
    unsafe fn wide(block: __m512i) -> [__m512; 2];
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn lower(words: __m512i) -> __m512i {
        const BELOW: u32 = 16 - f16::FIELD as u32;
        // SAFETY: the caller has the instructions.
        unsafe { _mm512_srai_epi16::<BELOW>(words) }
    }

    #[inline(always)]
    unsafe fn wide(block: __m512i) -> [__m512; 2] {
        // SAFETY: the caller has the instructions.
        unsafe {
            let (low, high) = (_mm512_castsi512_si256(block), _mm512_extracti64x4_epi64::<1>(block));
            [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
        }
    }
}

impl Number for bf16 {
    #[inline(always)]
    unsafe fn lower(words: __m512i) -> __m512i {
        const BELOW: u32 = 16 - bf16::FIELD as u32;
        // SAFETY: the caller has the instructions.
        unsafe { _mm512_srai_epi16::<BELOW>(words) }
    }

    #[inline(always)]
    unsafe fn wide(block: __m512i) -> [__m512; 2] {
        const UPPER: i32 = 0xffff << 16;
        // SAFETY: the caller has the instructions.
        unsafe {
            let upper = _mm512_and_si512(block, _mm512_set1_epi32(UPPER));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(block)), _mm512_castsi512_ps(upper)]
        }
    }
}

/// What moves the bits of a block's fields to the tops of words.
struct Moves {
    bytes: __m512i,
    bits: __m512i,
}

impl Moves {
    #[inline(always)]
    unsafe fn new<T: Half>() -> Moves {
        let (mut bytes, mut bits) = ([0u8; 64], [0u8; 64]);
        for (index, (byte, bit)) in bytes.iter_mut().zip(&mut bits).enumerate() {
            let (lane, word, high) = (index / 8, index / 2 % LANE, index % 2);
            let first = lane * LANE * T::FIELD;
            *byte = (first / 8 + index % 8) as u8;
            // A word is its field and what stands before that; the lowest word's takes its lane's last bits.
            let field = first % 8 + word * T::FIELD;
            *bit = ((64 + field + T::FIELD + 8 * high - 16) % 64) as u8;
        }
        // SAFETY: the caller has the instructions; both arrays are one vector.
        unsafe {
            Moves {
                bytes: _mm512_loadu_si512(bytes.as_ptr().cast()),
                bits: _mm512_loadu_si512(bits.as_ptr().cast()),
            }
        }
    }
}

/// One line, being read from its first field to its last.
struct Line<T> {
    base: __m512i,
    fields: *const u8,
    exceptions: *const u8,
    ahead: *const u8,
    /// Bytes of the line a group.
    stride: usize,
    number: std::marker::PhantomData<T>,
}

impl<T: Number> Line<T> {
    /// The line of so many numbers that begins at `start`.
    #[inline(always)]
    unsafe fn new(bytes: &[u8], start: usize, columns: usize) -> Line<T> {
        let end = fields_end::<T>(columns);
        // No line has more exceptions than numbers, whatever its bytes are.
        let reach = bytes.len().checked_sub(end + columns * size_of::<u16>() + READ_PAST);
        assert!(reach.is_some_and(|last| start <= last), "a line lies within its bytes");
        // SAFETY: that was checked; the caller has the instructions.
        unsafe {
            let line = bytes.as_ptr().add(start);
            Line {
                base: _mm512_set1_epi16(line.cast::<i16>().read_unaligned()),
                fields: line.add(BASE_BYTES),
                exceptions: line.add(end),
                ahead: line.wrapping_add(AHEAD),
                stride: GROUP * T::FIELD / 8 + GROUP / BLOCK,
                number: std::marker::PhantomData,
            }
        }
    }

    /// The next [`BLOCK`] numbers.
    #[inline(always)]
    unsafe fn block(&mut self, moves: &Moves) -> [__m512; 2] {
        const CODE: i16 = 0x7000;
        // SAFETY: the caller asks for no more blocks than there are; what is read after the last field lies within the
        // padding, and so do exceptions, see `Line::new`.
        unsafe {
            let spread = _mm512_permutexvar_epi8(moves.bytes, _mm512_loadu_si512(self.fields.cast()));
            let words = _mm512_multishift_epi64_epi8(moves.bits, spread);
            let missing = _mm512_testn_epi16_mask(words, _mm512_set1_epi16(CODE));
            let kept = _mm512_set1_epi16((0x8000 | ((1 << (T::FRACTION + 3)) - 1)) as i16);
            let numbers = _mm512_add_epi16(_mm512_and_si512(T::lower(words), kept), self.base);
            let count = missing.count_ones() as usize;
            // A vector of exceptions mostly lies across two lines of the cache, which costs far more than this choice.
            let exceptions = if count <= BLOCK / 2 {
                _mm512_castsi256_si512(_mm256_loadu_si256(self.exceptions.cast()))
            } else {
                _mm512_loadu_si512(self.exceptions.cast())
            };
            let numbers = _mm512_mask_expand_epi16(numbers, missing, exceptions);
            self.fields = self.fields.add(BLOCK * T::FIELD / 8);
            self.exceptions = self.exceptions.add(count * size_of::<u16>());
            T::wide(numbers)
        }
    }

    /// Asks for what a group takes, [`AHEAD`] bytes later.
    #[inline(always)]
    fn ask(&mut self) {
        prefetch_lines::<u8, false>(self.ahead, self.stride);
        self.ahead = self.ahead.wrapping_add(self.stride);
    }
}

/// `y = W x`, see [`crate::simd::gemv::gemv`].
#[inline(always)]
unsafe fn gemv<T: Number>(bytes: &[u8], starts: &[usize], x: &[f32], y: &mut [f32]) {
    const VECTORS: usize = GROUP / 16;
    assert_eq!(starts.len(), y.len(), "a line an output");
    let (groups, rest) = x.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "whole groups");
    // SAFETY: the caller has the instructions; a line has as many groups as `x`.
    unsafe {
        let moves = Moves::new::<T>();
        for (out, start) in y.iter_mut().zip(starts) {
            let mut line = Line::<T>::new(bytes, *start, x.len());
            let mut sums = [_mm512_setzero_ps(); VECTORS];
            for group in groups {
                line.ask();
                let [a, b] = line.block(&moves);
                let [c, d] = line.block(&moves);
                for (index, weights) in [a, b, c, d].into_iter().enumerate() {
                    let x = _mm512_loadu_ps(group.as_ptr().add(16 * index));
                    sums[index] = _mm512_fmadd_ps(weights, x, sums[index]);
                }
            }
            let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
            *out = _mm512_reduce_add_ps(sum);
        }
    }
}

/// `y = x W`, see [`crate::simd::gemv::gemv_rows`].
#[inline(always)]
unsafe fn gemv_rows<T: Number>(bytes: &[u8], starts: &[usize], x: &[f32], y: &mut [f32]) {
    assert_eq!(starts.len(), x.len(), "a line an input");
    y.fill(0.0);
    let columns = y.len();
    let (groups, rest) = y.as_chunks_mut::<GROUP>();
    assert!(rest.is_empty(), "whole groups");
    // SAFETY: the caller has the instructions; a line has as many groups as `y`.
    unsafe {
        let moves = Moves::new::<T>();
        for (by, start) in x.iter().zip(starts) {
            let by = _mm512_set1_ps(*by);
            let mut line = Line::<T>::new(bytes, *start, columns);
            for group in &mut *groups {
                line.ask();
                let [a, b] = line.block(&moves);
                let [c, d] = line.block(&moves);
                for (index, weights) in [a, b, c, d].into_iter().enumerate() {
                    let to = group.as_mut_ptr().add(16 * index);
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(weights, by, _mm512_loadu_ps(to)));
                }
            }
        }
    }
}
