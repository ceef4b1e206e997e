//! Eight lanes: NEON, in pairs of four.
//!
//! A pair makes the register tile of a product six rows of one panel: twenty-four sums, four vectors of `B` and one or
//! two of `A`, of the thirty-two registers there are. Every order of operations is that of eight lanes elsewhere, so
//! what is computed here has the same bits as there.

use super::lanes::Lanes;
use super::octets::{OCTET, Octet};
use super::product::{Epilogue, Product};
use super::{
    InstructionSet, Origin, PANEL, Simd, gemv, peak, product, recall, routines, shims, vector_table,
};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::arch::asm;

/// Lanes of one register.
const FOUR: usize = 4;

/// Two 128-bit vectors: lanes zero to three, and four to seven.
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t, float32x4_t);

impl Neon {
    /// Carries out `one` on both registers.
    #[inline(always)]
    fn both(self, other: Neon, one: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Neon {
        Neon(one(self.0, other.0), one(self.1, other.1))
    }
}

/// Reads the first `count <= 4` values; other lanes are zero.
#[inline(always)]
unsafe fn load_some(from: *const f32, count: usize) -> float32x4_t {
    // SAFETY: the caller vouches for `count` values at `from`; no branch reads more.
    unsafe {
        let zero = vdupq_n_f32(0.0);
        match count {
            0 => zero,
            1 => vld1q_lane_f32::<0>(from, zero),
            2 => vcombine_f32(vld1_f32(from), vdup_n_f32(0.0)),
            3 => vld1q_lane_f32::<2>(from.add(2), vcombine_f32(vld1_f32(from), vdup_n_f32(0.0))),
            _ => vld1q_f32(from),
        }
    }
}

/// Writes the first `count <= 4` values.
#[inline(always)]
unsafe fn store_some(value: float32x4_t, to: *mut f32, count: usize) {
    // SAFETY: the caller vouches for `count` values at `to`; no branch writes more.
    unsafe {
        match count {
            0 => {}
            1 => vst1q_lane_f32::<0>(to, value),
            2 => vst1_f32(to, vget_low_f32(value)),
            3 => {
                vst1_f32(to, vget_low_f32(value));
                vst1q_lane_f32::<2>(to.add(2), value);
            }
            _ => vst1q_f32(to, value),
        }
    }
}

/// Transposes a square of four.
#[inline(always)]
unsafe fn transpose_four([a, b, c, d]: [float32x4_t; FOUR]) -> [float32x4_t; FOUR] {
    // SAFETY: registers only, of an instruction set that the caller vouches for.
    unsafe {
        let pair = |a: float32x4_t, b: float32x4_t| {
            (vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(a, b)))
        };
        let ((even_ab, odd_ab), (even_cd, odd_cd)) = (pair(a, b), pair(c, d));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(even_ab, even_cd)),
            vreinterpretq_f32_f64(vtrn1q_f64(odd_ab, odd_cd)),
            vreinterpretq_f32_f64(vtrn2q_f64(even_ab, even_cd)),
            vreinterpretq_f32_f64(vtrn2q_f64(odd_ab, odd_cd)),
        ]
    }
}

/// Eight halves as f32. In assembly, because the oldest compiler this is built with has no intrinsic of a stable type.
#[inline(always)]
unsafe fn widen(half: uint16x8_t) -> Neon {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: two instructions of every NEON that touch the registers named and nothing else; `low` is written while
    // `half` is still wanted and so is not `lateout`.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {half:v}.4h",
            "fcvtl2 {high:v}.4s, {half:v}.8h",
            half = in(vreg) half,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    Neon(low, high)
}

/// Eight halves, rounded to nearest even: the mode of every thread that has not changed it.
#[inline(always)]
unsafe fn narrow(wide: Neon) -> uint16x8_t {
    let half: uint16x8_t;
    // SAFETY: as in `widen`; `half` is written while the second register is still wanted.
    unsafe {
        asm!(
            "fcvtn {half:v}.4h, {low:v}.4s",
            "fcvtn2 {half:v}.8h, {high:v}.4s",
            low = in(vreg) wide.0,
            high = in(vreg) wide.1,
            half = out(vreg) half,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    half
}

// SAFETY notes: every method's contract is the trait's (NEON present, pointers valid for the lanes named);
// each body is a single use of intrinsics within that contract.
impl Lanes for Neon {
    const WIDTH: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Neon {
        // SAFETY: the trait's contract.
        let four = unsafe { vdupq_n_f32(x) };
        Neon(four, four)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { Neon(vld1q_f32(from), vld1q_f32(from.add(FOUR))) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Neon {
        // SAFETY: the trait's contract; lanes from `count` on are not read.
        unsafe {
            if count < FOUR {
                Neon(load_some(from, count), vdupq_n_f32(0.0))
            } else {
                Neon(vld1q_f32(from), load_some(from.add(FOUR), count - FOUR))
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { widen(vld1q_u16(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Neon {
        // SAFETY: the trait's contract.
        unsafe {
            let half = vld1q_u16(from.cast());
            Neon(
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(half))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(half)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Neon {
        // SAFETY: the trait's contract.
        unsafe {
            let wide = vmovl_s8(vld1_s8(from));
            Neon(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(FOUR), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the trait's contract; lanes from `count` on are not written.
        unsafe {
            store_some(self.0, to, count);
            store_some(self.1, to.wrapping_add(FOUR), count.saturating_sub(FOUR));
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the trait's contract.
        unsafe {
            vst1q_u16(to.cast(), narrow(self));
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Neon, plus: Neon) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { Neon(vfmaq_f32(plus.0, self.0, by.0), vfmaq_f32(plus.1, self.1, by.1)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let four = vaddq_f32(self.0, self.1);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vaddv_f32(two)
        }
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Neon; PANEL]) {
        if let Some(square) = square.first_chunk_mut() {
            // SAFETY: the trait's contract.
            unsafe { <Neon as Octet>::transpose(square) }
        }
    }
}

// SAFETY notes: as above.
impl Octet for Neon {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { <Neon as Lanes>::splat(x) }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; OCTET]) -> Neon {
        // SAFETY: the trait's contract; the array has as many values.
        unsafe { <Neon as Lanes>::load(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; OCTET]) {
        // SAFETY: the trait's contract; the array has as many values.
        unsafe { Lanes::store(self, to.as_mut_ptr()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, by: Neon, plus: Neon) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { Lanes::multiply_add(self, by, plus) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        unsafe { Lanes::add(self, other) }
    }

    #[inline(always)]
    unsafe fn subtract(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn multiply(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn divide(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vdivq_f32(a, b) })
    }

    // By a comparison: the instructions for maxima return NaN, or never, whichever side it came from.
    #[inline(always)]
    unsafe fn maximum(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }

    #[inline(always)]
    unsafe fn minimum(self, other: Neon) -> Neon {
        // SAFETY: the trait's contract.
        self.both(other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Neon {
        // SAFETY: the trait's contract.
        unsafe {
            let one = vreinterpretq_s32_f32(vdupq_n_f32(1.0));
            let power = |shifted: float32x4_t| {
                vreinterpretq_f32_s32(vaddq_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(shifted)), one))
            };
            Neon(power(self.0), power(self.1))
        }
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [Neon; OCTET]) {
        // SAFETY: the trait's contract. The four squares of four are transposed, and the two off the diagonal
        // change places.
        unsafe {
            let [a, b, c, d, e, f, g, h] = *square;
            let above = transpose_four([a.0, b.0, c.0, d.0]);
            let right = transpose_four([a.1, b.1, c.1, d.1]);
            let left = transpose_four([e.0, f.0, g.0, h.0]);
            let below = transpose_four([e.1, f.1, g.1, h.1]);
            for row in 0..FOUR {
                square[row] = Neon(above[row], left[row]);
                square[FOUR + row] = Neon(right[row], below[row]);
            }
        }
    }
}

vector_table!("neon", Neon, Neon, Neon, "neon");
