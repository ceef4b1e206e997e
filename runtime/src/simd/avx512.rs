//! Sixteen lanes: AVX-512 F, VL, BW and DQ.

use super::lanes::Lanes;
use super::product::Product;
use super::{InstructionSet, Simd, gemv, peak, product, routines, shims, vector_table};
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
}

vector_table!("avx512", Avx512, Avx512, "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq");
