//! Eight lanes: AVX2, FMA and F16C.

use super::lanes::Lanes;
use super::octets::{OCTET, Octet};
use super::product::{Epilogue, Product};
use super::{
    InstructionSet, Origin, PANEL, Simd, gemv, peak, product, recall, routines, shims, vector_table,
};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// One 256-bit vector.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

/// All ones in the first `count` lanes.
#[inline(always)]
unsafe fn mask(count: usize) -> __m256i {
    const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `count` is below 8, so eight values follow.
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - count).cast()) }
}

// SAFETY notes: every method's contract is the trait's (features present, pointers valid for the lanes named);
// each body is a single use of intrinsics within that contract.
impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Avx2 {
        // SAFETY: the trait's contract; masked lanes are not read.
        Avx2(unsafe { _mm256_maskload_ps(from, mask(count)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the trait's contract; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, mask(count), self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the trait's contract.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm_storeu_si128(to.cast(), half);
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Avx2, plus: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Avx2; PANEL]) {
        if let Some(square) = square.first_chunk_mut() {
            // SAFETY: the trait's contract.
            unsafe { <Avx2 as Octet>::transpose(square) }
        }
    }
}

// SAFETY notes: as above.
impl Octet for Avx2 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; OCTET]) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; OCTET]) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Avx2, plus: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn subtract(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn multiply(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn divide(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn maximum(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn minimum(self, other: Avx2) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Avx2 {
        // SAFETY: the trait's contract.
        Avx2(unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, one))
        })
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Avx2; OCTET]) {
        // SAFETY: the trait's contract. Pairs of rows, then of pairs, are interleaved within halves of a vector,
        // and the halves are put in order last.
        unsafe {
            let mut fours = [_mm256_setzero_pd(); OCTET];
            for four in 0..2 {
                let (a, b) = (square[4 * four].0, square[4 * four + 1].0);
                let (c, d) = (square[4 * four + 2].0, square[4 * four + 3].0);
                let low_ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
                let low_cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
                let high_ab = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
                let high_cd = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
                fours[four] = _mm256_unpacklo_pd(low_ab, low_cd);
                fours[2 + four] = _mm256_unpackhi_pd(low_ab, low_cd);
                fours[4 + four] = _mm256_unpacklo_pd(high_ab, high_cd);
                fours[6 + four] = _mm256_unpackhi_pd(high_ab, high_cd);
            }
            for column in 0..4 {
                let (a, b) = (_mm256_castpd_ps(fours[2 * column]), _mm256_castpd_ps(fours[2 * column + 1]));
                square[column] = Avx2(_mm256_permute2f128_ps::<0x20>(a, b));
                square[4 + column] = Avx2(_mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}

vector_table!("avx2", Avx2, Avx2, Avx2, "avx2,fma,f16c");
