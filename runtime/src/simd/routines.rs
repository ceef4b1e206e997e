//! Functions over rows of activations, in plain Rust written so that the compiler can turn them into vectors:
//! the tables compile them again for each instruction set, and the trainer's operations use them inside
//! [`super::Simd::run`].
//!
//! Sums run in [`LANES`] interleaved accumulators and then a fixed tree, so their order depends on the length
//! alone.

/// Interleaved accumulators of a sum.
pub const LANES: usize = 16;

/// Those accumulators. They begin on a cache line: a vector that is stored across two is read back late.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Accumulators([f32; LANES]);

/// What [`Unit::exp`] and its twin over eight lanes are made of: `e^x = 2^n e^r` with `r` within half a `ln 2`.
pub(super) mod exponential {
    /// Least and largest argument; beyond them the result would be no normal number.
    pub const LEAST: f32 = -87.3;
    pub const MOST: f32 = 88.3;
    /// `1.5 2^23`: adding it leaves the nearest integer in the low bits.
    pub const ROUND: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with room for the product with any exponent.
    pub const LN_2_HIGH: f32 = 0.693_359_4;
    pub const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Of `e^r`, lowest power first.
    pub const COEFFICIENTS: [f32; 8] =
        [1.0, 1.0, 0.5, 0.166_666_67, 0.041_666_5, 8.333_452e-3, 1.393_152e-3, 1.987_569_15e-4];

    /// `2^n` from `1.5 2^23 + n`.
    #[inline(always)]
    pub fn power_of_two(shifted: f32) -> f32 {
        f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
    }
}

/// `2 sqrt(2 / pi)`.
const TWICE: f32 = 1.595_769_1;

/// The arithmetic unit at hand: whether `a b + c` is one instruction. Passed by value so that it is known where
/// the code is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    fused: bool,
}

impl Unit {
    /// Multiply-add is one instruction, rounded once.
    pub const FUSED: Unit = Unit { fused: true };
    /// Multiply, then add.
    pub const PLAIN: Unit = Unit { fused: false };

    /// `a b + c`.
    #[inline(always)]
    pub fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// The polynomial with these coefficients, lowest power first.
    #[inline(always)]
    pub fn polynomial<const N: usize>(self, x: f32, coefficients: [f32; N]) -> f32 {
        let mut value = coefficients[N - 1];
        for index in (0..N - 1).rev() {
            value = self.multiply_add(value, x, coefficients[index]);
        }
        value
    }

    /// `e^x`, within 2 ulp where the result is a normal number, zero-like (the smallest normal) below it,
    /// NaN for NaN.
    #[inline(always)]
    pub fn exp(self, x: f32) -> f32 {
        use exponential::*;
        let x = x.clamp(LEAST, MOST);
        let shifted = self.multiply_add(x, std::f32::consts::LOG2_E, ROUND);
        let power = shifted - ROUND;
        let rest = self.multiply_add(power, -LN_2_LOW, self.multiply_add(power, -LN_2_HIGH, x));
        self.polynomial(rest, COEFFICIENTS) * power_of_two(shifted)
    }

    /// `Phi(x)`, the normal distribution function, within 2e-7.
    ///
    /// `1/2 + x P(x^2) / Q(x^2)` between the points where f32 cannot tell it from zero and one; `P` and `Q` are
    /// fitted to 1e-8 there (Lawson's reweighted least squares). An exponential for the tail would cost as much as
    /// all of this and bring nothing that `0.5 (1 + erf)` in f32 has.
    #[inline(always)]
    pub fn distribution(self, x: f32) -> f32 {
        const END: f32 = 5.6;
        let within = x.clamp(-END, END);
        let square = within * within;
        let above = self.polynomial(
            square,
            [0.398_942_22, 3.437_593_8e-2, 4.707_244_3e-3, 1.738_482_5e-4, 6.356_447_8e-6, 2.214_506e-8],
        );
        let below = self.polynomial(
            square,
            [1.0, 0.252_833_41, 2.893_998e-2, 1.912_964_8e-3, 7.510_075_2e-5, 1.180_198_2e-6],
        );
        // Exactly zero at the far end: what is left of it would be multiplied by any `x`.
        if x <= -END { 0.0 } else { self.multiply_add(within, above / below, 0.5) }
    }

    /// `x Phi(x)`.
    #[inline(always)]
    pub fn gelu_erf(self, x: f32) -> f32 {
        x * self.distribution(x)
    }

    /// `Phi(x) + x phi(x)`, the derivative of that, within 4e-7: made as [`Unit::distribution`] is, since it is as smooth,
    /// and with no exponential either.
    #[inline(always)]
    pub fn gelu_erf_slope(self, x: f32) -> f32 {
        const END: f32 = 5.8;
        let within = x.clamp(-END, END);
        let square = within * within;
        let above = self.polynomial(
            square,
            [0.797_885_36, -3.099_585_3e-2, 1.423_030_4e-2, 1.922_063_7e-5, 3.595_592e-5, 1.929_289_8e-7],
        );
        let below = self.polynomial(
            square,
            [1.0, 0.294_494_03, 4.098_021e-2, 3.523_034_5e-3, 1.920_363_9e-4, 8.952_409e-6],
        );
        if x <= -END { 0.0 } else { self.multiply_add(within, above / below, 0.5) }
    }

    /// `1 / (1 + e^-2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`: half of one plus `tanh u`.
    #[inline(always)]
    pub fn gelu_tanh_gate(self, x: f32) -> f32 {
        let cubic = self.multiply_add(x * x, 0.044_715 * TWICE, TWICE);
        1.0 / (1.0 + self.exp(-x * cubic))
    }

    /// `0.5 x (1 + tanh u)`, see [`Unit::gelu_tanh_gate`].
    #[inline(always)]
    pub fn gelu_tanh(self, x: f32) -> f32 {
        x * self.gelu_tanh_gate(x)
    }

    /// `s + x s (1 - s) 2 u'`, the derivative of that, `s` being the gate of `x`.
    #[inline(always)]
    pub fn gelu_tanh_slope(self, x: f32) -> f32 {
        let gate = self.gelu_tanh_gate(x);
        let inner = self.multiply_add(x * x, 3.0 * 0.044_715 * TWICE, TWICE);
        self.multiply_add(x * gate * (1.0 - gate), inner, gate)
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    pub fn sigmoid(self, x: f32) -> f32 {
        1.0 / (1.0 + self.exp(-x))
    }

    /// `sum f(x)` in the fixed order of this file.
    #[inline(always)]
    pub fn sum(self, x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
        let mut sums = Accumulators([0.0; LANES]);
        let lanes = &mut sums.0;
        let (whole, rest) = x.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += term(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += term(value);
        }
        fold(sums, Fold::Sum)
    }

    /// The sum of a sum's accumulators.
    #[inline(always)]
    pub fn total(self, lanes: &[f32; LANES]) -> f32 {
        fold(Accumulators(*lanes), Fold::Sum)
    }

    /// `sum f(x, y)` in the fixed order of this file.
    #[inline(always)]
    pub fn sum_pairs(self, x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
        let mut sums = Accumulators([0.0; LANES]);
        let lanes = &mut sums.0;
        let ((whole_x, rest_x), (whole_y, rest_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        for (chunk_x, chunk_y) in whole_x.iter().zip(whole_y) {
            for lane in 0..LANES {
                lanes[lane] += term(chunk_x[lane], chunk_y[lane]);
            }
        }
        for (lane, (&left, &right)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y)) {
            *lane += term(left, right);
        }
        fold(sums, Fold::Sum)
    }

    /// The largest value; `-inf` for none. NaN is passed over, and comes back through whatever is computed from it.
    #[inline(always)]
    pub fn maximum(self, x: &[f32]) -> f32 {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut largest = Accumulators([f32::NEG_INFINITY; LANES]);
        let lanes = &mut largest.0;
        let (whole, rest) = x.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = larger(value, *lane);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane = larger(value, *lane);
        }
        fold(largest, Fold::Maximum)
    }
}

/// How accumulators become one value.
#[derive(Clone, Copy)]
enum Fold {
    Sum,
    Maximum,
}

/// The accumulators' upper half to their lower half, until one is left.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
fn fold(Accumulators(mut lanes): Accumulators, how: Fold) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let (low, high) = (lanes[lane], lanes[lane + half]);
            lanes[lane] = match how {
                Fold::Sum => low + high,
                Fold::Maximum => {
                    if low > high {
                        low
                    } else {
                        high
                    }
                }
            };
        }
        half /= 2;
    }
    lanes[0]
}

/// The accumulators' upper half to their lower half, until one is left. By name, because the compiler takes such a
/// tree apart into one addition a lane; these instructions are part of every x86-64.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fold(lanes: Accumulators, how: Fold) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: SSE belongs to the architecture; each load reads four of the sixteen lanes.
    unsafe {
        let one = |a: __m128, b: __m128| match how {
            Fold::Sum => _mm_add_ps(a, b),
            Fold::Maximum => _mm_max_ps(a, b),
        };
        let four = |at: usize| _mm_loadu_ps(lanes.0.as_ptr().add(at));
        let four = one(one(four(0), four(8)), one(four(4), four(12)));
        let two = one(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(one(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The same on the other architecture. Left to itself, the compiler works back from the last additions and makes
/// the whole sum one of half vectors.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn fold(lanes: Accumulators, how: Fold) -> f32 {
    use std::arch::aarch64::*;
    // SAFETY: NEON belongs to the architecture; each load reads four of the sixteen lanes.
    unsafe {
        let one = |a: float32x4_t, b: float32x4_t| match how {
            Fold::Sum => vaddq_f32(a, b),
            Fold::Maximum => vbslq_f32(vcgtq_f32(a, b), a, b),
        };
        let four = |at: usize| vld1q_f32(lanes.0.as_ptr().add(at));
        let four = one(one(four(0), four(8)), one(four(4), four(12)));
        let two = one(four, vextq_f32::<2>(four, four));
        vgetq_lane_f32::<0>(one(two, vdupq_laneq_f32::<1>(two)))
    }
}

/// Most rows whose steps are taken together.
pub const TOGETHER: usize = 8;

/// Rows of `width` values whose steps are taken together: what a row's next step waits for, its neighbours' do not.
/// Rows long enough to fill that time themselves go one by one, and stay in the cache.
#[inline(always)]
pub fn together(width: usize) -> usize {
    const VALUES: usize = 1024;
    (VALUES / width.max(1)).clamp(1, TOGETHER)
}

/// LayerNorm of rows as long as `gain`: `(x - mean) r gain + bias` with `r = 1 / sqrt(mean((x - mean)^2) + eps)`
/// (Ba et al. 2016, eq. 4). `moments` takes `mean` and `r` of each.
#[inline(always)]
pub fn layer_norm(
    unit: Unit,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
    moments: &mut [f32],
) {
    let (width, count) = (gain.len(), gain.len() as f32);
    assert_eq!((x.len(), out.len()), (moments.len() / 2 * width, x.len()), "rows of one width");
    let together = together(width);
    let several = x.chunks(together * width).zip(out.chunks_mut(together * width));
    for ((x, out), moments) in several.zip(moments.chunks_mut(2 * together)) {
        for (x, moments) in x.chunks_exact(width).zip(moments.chunks_exact_mut(2)) {
            moments[0] = unit.sum(x, |value| value) / count;
        }
        for (x, moments) in x.chunks_exact(width).zip(moments.chunks_exact_mut(2)) {
            let mean = moments[0];
            moments[1] = unit.sum(x, |value| (value - mean) * (value - mean)) / count;
        }
        for moments in moments.chunks_exact_mut(2) {
            moments[1] = 1.0 / (moments[1] + eps).sqrt();
        }
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), moments) in rows.zip(moments.chunks_exact(2)) {
            let (mean, scale) = (moments[0], moments[1]);
            match bias {
                Some(bias) => {
                    let bias = &bias[..width];
                    for index in 0..width {
                        out[index] = unit.multiply_add((x[index] - mean) * scale, gain[index], bias[index]);
                    }
                }
                None => {
                    for index in 0..width {
                        out[index] = (x[index] - mean) * scale * gain[index];
                    }
                }
            }
        }
    }
}

/// RMSNorm of one row: `x r gain` with `r = 1 / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019, eq. 4). Returns `r`.
#[inline(always)]
pub fn rms_norm(unit: Unit, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    let (gain, out) = (&gain[..x.len()], &mut out[..x.len()]);
    let scale = 1.0 / (unit.sum(x, |value| value * value) / x.len() as f32 + eps).sqrt();
    for index in 0..x.len() {
        out[index] = x[index] * scale * gain[index];
    }
    scale
}

/// `gate sigmoid(gate) up` in the place of `gate` (Shazeer 2020, eq. 6).
#[inline(always)]
pub fn swiglu(unit: Unit, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gated activation");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate * unit.sigmoid(*gate) * up;
    }
}

/// `max(x, 0)`; NaN stays.
#[inline(always)]
pub fn relu(x: &mut [f32]) {
    for value in x {
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}

/// `x Phi(x)`.
#[inline(always)]
pub fn gelu_erf(unit: Unit, x: &mut [f32]) {
    for value in x {
        *value = unit.gelu_erf(*value);
    }
}

/// The tanh approximation of GELU.
#[inline(always)]
pub fn gelu_tanh(unit: Unit, x: &mut [f32]) {
    for value in x {
        *value = unit.gelu_tanh(*value);
    }
}

/// `x += y`.
#[inline(always)]
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add");
    for (value, more) in x.iter_mut().zip(y) {
        *value += more;
    }
}

/// `x += sum of rows`, `count` of them (1, 2, 4 or 8) that lie `distance` apart in `rows`: neighbours are added first, then
/// their sums, so that it is the same sum if some neighbours were added before.
#[inline(always)]
pub fn add_tree(rows: &[f32], distance: usize, count: usize, x: &mut [f32]) {
    match count {
        1 => add_tree_of::<1>(rows, distance, x),
        2 => add_tree_of::<2>(rows, distance, x),
        4 => add_tree_of::<4>(rows, distance, x),
        8 => add_tree_of::<8>(rows, distance, x),
        _ => panic!("{count} rows are no tree"),
    }
}

#[inline(always)]
fn add_tree_of<const N: usize>(rows: &[f32], distance: usize, x: &mut [f32]) {
    let mut leaves = [&rows[..0]; N];
    for leaf in 0..N {
        leaves[leaf] = &rows[leaf * distance..][..x.len()];
    }
    for (at, value) in x.iter_mut().enumerate() {
        let mut sums = [0.0; N];
        for leaf in 0..N {
            sums[leaf] = leaves[leaf][at];
        }
        let mut left = N / 2;
        while left > 0 {
            for pair in 0..left {
                sums[pair] = sums[2 * pair] + sums[2 * pair + 1];
            }
            left /= 2;
        }
        *value += sums[0];
    }
}

/// Softmax of rows in place; `moments` takes the maximum and the sum of `e^(x - maximum)` of each.
#[inline(always)]
pub fn softmax(unit: Unit, x: &mut [f32], moments: &mut [f32]) {
    let rows = moments.len() / 2;
    if x.is_empty() || rows == 0 {
        return;
    }
    let width = x.len() / rows;
    assert_eq!(x.len(), rows * width, "rows of one width");
    let together = together(width);
    for (x, moments) in x.chunks_mut(together * width).zip(moments.chunks_mut(2 * together)) {
        for (x, moments) in x.chunks_exact(width).zip(moments.chunks_exact_mut(2)) {
            moments[0] = unit.maximum(x);
        }
        for (x, moments) in x.chunks_exact_mut(width).zip(moments.chunks_exact(2)) {
            let maximum = moments[0];
            let (whole, rest) = x.as_chunks_mut::<LANES>();
            for value in whole.as_flattened_mut() {
                *value = unit.exp(*value - maximum);
            }
            // What is left takes one vector too, not an exponential each.
            let mut last = [maximum; LANES];
            last[..rest.len()].copy_from_slice(rest);
            for value in &mut last {
                *value = unit.exp(*value - maximum);
            }
            rest.copy_from_slice(&last[..rest.len()]);
        }
        for (x, moments) in x.chunks_exact(width).zip(moments.chunks_exact_mut(2)) {
            moments[1] = unit.sum(x, |value| value);
        }
        for (x, moments) in x.chunks_exact_mut(width).zip(moments.chunks_exact(2)) {
            let scale = 1.0 / moments[1];
            for value in x {
                *value *= scale;
            }
        }
    }
}

/// Softmax of rows of lanes as [`softmax`] computes it, of the first `count` of the first row and one more of each that
/// follows; what is beyond becomes zero.
#[inline(always)]
pub fn softmax_lanes<const ROWS: usize>(unit: Unit, x: &mut [[f32; LANES]; ROWS], count: usize) {
    let mut moments = [0.0; ROWS];
    for row in 0..ROWS {
        let mut seen = [f32::NEG_INFINITY; LANES];
        for lane in 0..LANES {
            let value = x[row][lane];
            seen[lane] =
                if lane < count + row && value > f32::NEG_INFINITY { value } else { f32::NEG_INFINITY };
        }
        moments[row] = fold(Accumulators(seen), Fold::Maximum);
    }
    for row in 0..ROWS {
        for lane in 0..LANES {
            let value = unit.exp(x[row][lane] - moments[row]);
            x[row][lane] = if lane < count + row { value } else { 0.0 };
        }
    }
    for row in 0..ROWS {
        moments[row] = 1.0 / fold(Accumulators(x[row]), Fold::Sum);
    }
    for row in 0..ROWS {
        for lane in 0..LANES {
            x[row][lane] *= moments[row];
        }
    }
}

/// `maximum + ln sum e^(x - maximum)`.
#[inline(always)]
pub fn log_sum_exp(unit: Unit, x: &[f32]) -> f32 {
    let maximum = unit.maximum(x);
    maximum + unit.sum(x, |value| unit.exp(value - maximum)).ln()
}
