//! Sixteen lanes: AVX-512 F, VL, BW and DQ.

use super::avx2::Avx2;
use super::lanes::Lanes;
use super::product::{Epilogue, Product};
use super::{
    InstructionSet, Origin, PANEL, Simd, gemv, peak, product, recall, routines, shims, vector_table,
};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// One 512-bit vector.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// Ones in the first `count` lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    (1u16 << count) - 1
}

// SAFETY notes: every method's contract is the trait's (features present, pointers valid for the lanes named);
// each body is a single use of intrinsics within that contract.
impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Avx512 {
        // SAFETY: the trait's contract; masked lanes are not read.
        Avx512(unsafe { _mm512_maskz_loadu_ps(mask(count), from) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the trait's contract; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, mask(count), self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the trait's contract.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
            _mm256_storeu_si256(to.cast(), half);
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Avx512, plus: Avx512) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Avx512) -> Avx512 {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Avx512; PANEL]) {
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        // SAFETY: the trait's contract. Pairs of rows, then of pairs, are interleaved within quarters of a vector,
        // and the quarters are put in order last.
        unsafe {
            let mut fours = [_mm512_setzero_pd(); PANEL];
            for four in 0..4 {
                let (a, b) = (square[4 * four].0, square[4 * four + 1].0);
                let (c, d) = (square[4 * four + 2].0, square[4 * four + 3].0);
                let low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                fours[four] = _mm512_unpacklo_pd(low_ab, low_cd);
                fours[4 + four] = _mm512_unpackhi_pd(low_ab, low_cd);
                fours[8 + four] = _mm512_unpacklo_pd(high_ab, high_cd);
                fours[12 + four] = _mm512_unpackhi_pd(high_ab, high_cd);
            }
            for column in 0..4 {
                let (a, b) = (fours[4 * column], fours[4 * column + 1]);
                let (c, d) = (fours[4 * column + 2], fours[4 * column + 3]);
                let (even_ab, even_cd) =
                    (_mm512_shuffle_f64x2::<EVEN>(a, b), _mm512_shuffle_f64x2::<EVEN>(c, d));
                let (odd_ab, odd_cd) = (_mm512_shuffle_f64x2::<ODD>(a, b), _mm512_shuffle_f64x2::<ODD>(c, d));
                let rows = [
                    _mm512_shuffle_f64x2::<EVEN>(even_ab, even_cd),
                    _mm512_shuffle_f64x2::<EVEN>(odd_ab, odd_cd),
                    _mm512_shuffle_f64x2::<ODD>(even_ab, even_cd),
                    _mm512_shuffle_f64x2::<ODD>(odd_ab, odd_cd),
                ];
                for (quarter, row) in rows.into_iter().enumerate() {
                    square[4 * quarter + column] = Avx512(_mm512_castpd_ps(row));
                }
            }
        }
    }
}

vector_table!("avx512", Avx512, Avx512, Avx2, "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq");
