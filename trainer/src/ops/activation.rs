//! The feed-forward nonlinearity, element by element.
//!
//! Forward `y = f(x) m`, backward `d_x = d_y m f'(x)`, `m` the dropout mask, which only experts have:
//! - relu: `f = max(x, 0)`, `f' = [x > 0]`
//! - gelu-erf: `f = x Phi(x)`, `f' = Phi(x) + x phi(x)` (Hendrycks and Gimpel 2016, eq. 1)
//! - gelu-tanh: `f = x s(2u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`, `s` the logistic function,
//!   `f' = s + x s (1 - s) 2 u'`
//! - swiglu: a row is a gate `g` and then `x`, each as wide as the result; `y = g s(g) x`,
//!   `d_x = d_y g s(g)`, `d_g = d_y x s(g) (1 + g (1 - s(g)))` (Shazeer 2020, eq. 6)

pub mod cuda;

use super::dropout::Mask;
use formats::config::Activation;
use runtime::simd::routines::Unit;
use runtime::simd::{Simd, Work};

/// The nonlinearity over rows of one hidden width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hidden {
    /// Which.
    pub kind: Activation,
    /// Width of a row of the result.
    pub width: usize,
}

/// `out = f(x) m`.
pub fn forward(simd: &Simd, s: Hidden, x: &[f32], mask: Mask, out: &mut [f32]) {
    simd.run(Forward { s, x, out });
    if let Some(mask) = mask {
        mask.rows(out.len() / s.width, |index, factor| out[index] *= factor);
    }
}

/// `d_x = d_out m f'(x)`; without `d_out`, which is not for a gate, it is what `d_x` holds.
pub fn backward(simd: &Simd, s: Hidden, x: &[f32], mask: Mask, d_out: Option<&[f32]>, d_x: &mut [f32]) {
    match d_out {
        Some(d_out) if s.kind.gated() => simd.run(Gated { s, x, d_out, d_x }),
        Some(d_out) => {
            d_x.copy_from_slice(d_out);
            simd.run(Backward { s, x, d: d_x });
        }
        None => simd.run(Backward { s, x, d: d_x }),
    }
    let Some(mask) = mask else { return };
    // The gradient is linear in that of the result, so the mask may come after.
    let width = s.kind.inputs(s.width);
    mask.rows(d_x.len() / width, |index, factor| {
        let (row, column) = (index / s.width, index % s.width);
        for at in (column..width).step_by(s.width) {
            d_x[row * width + at] *= factor;
        }
    });
}

struct Forward<'a> {
    s: Hidden,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Forward { s, x, out } = self;
        let pairs = out.iter_mut().zip(x);
        match s.kind {
            Activation::Relu => {
                for (out, &x) in pairs {
                    *out = if x > 0.0 { x } else { 0.0 * x };
                }
            }
            Activation::GeluErf => {
                for (out, &x) in pairs {
                    *out = unit.gelu_erf(x);
                }
            }
            Activation::GeluTanh => {
                for (out, &x) in pairs {
                    *out = unit.gelu_tanh(x);
                }
            }
            Activation::SwiGlu => {
                for (row, out) in x.chunks_exact(2 * s.width).zip(out.chunks_exact_mut(s.width)) {
                    let (gate, x) = row.split_at(s.width);
                    for ((out, &gate), x) in out.iter_mut().zip(gate).zip(x) {
                        *out = gate * unit.sigmoid(gate) * x;
                    }
                }
            }
        }
    }
}

/// The gradient in the place of that of the result.
struct Backward<'a> {
    s: Hidden,
    x: &'a [f32],
    d: &'a mut [f32],
}

impl Work for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Backward { s, x, d } = self;
        let pairs = d.iter_mut().zip(x);
        match s.kind {
            Activation::Relu => {
                for (d, &x) in pairs {
                    *d *= if x > 0.0 { 1.0 } else { 0.0 * x };
                }
            }
            Activation::GeluErf => {
                for (d, &x) in pairs {
                    *d *= unit.gelu_erf_slope(x);
                }
            }
            Activation::GeluTanh => {
                for (d, &x) in pairs {
                    *d *= unit.gelu_tanh_slope(x);
                }
            }
            Activation::SwiGlu => unreachable!("a gate's gradient has no place in that of the result"),
        }
    }
}

struct Gated<'a> {
    s: Hidden,
    x: &'a [f32],
    d_out: &'a [f32],
    d_x: &'a mut [f32],
}

impl Work for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Gated { s, x, d_out, d_x } = self;
        let rows = x.chunks_exact(2 * s.width).zip(d_x.chunks_exact_mut(2 * s.width));
        for ((row, d_row), d_out) in rows.zip(d_out.chunks_exact(s.width)) {
            let ((gate, x), (d_gate, d_x)) = (row.split_at(s.width), d_row.split_at_mut(s.width));
            for lane in 0..s.width {
                let (g, d) = (gate[lane], d_out[lane]);
                let pass = unit.sigmoid(g);
                d_x[lane] = d * g * pass;
                d_gate[lane] = d * x[lane] * pass * unit.multiply_add(g, 1.0 - pass, 1.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};
    use crate::ops::dropout::Noise;

    const KINDS: [Activation; 4] =
        [Activation::Relu, Activation::GeluErf, Activation::GeluTanh, Activation::SwiGlu];

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for kind in KINDS {
                for width in (1..=33).chain([97]) {
                    let s = Hidden { kind, width };
                    let (rows, inputs) = (2, 2 * kind.inputs(width));
                    let x: Vec<f32> = values(inputs, 1).iter().map(|x| 3.0 * x).collect();
                    let d_out = values(rows * width, 2);
                    let mask = if width % 2 == 0 { Noise::new(5, 6, 0.4).at(1, 0, width) } else { None };
                    let mut d_x = vec![f32::NAN; inputs];
                    backward(simd, s, &x, mask, Some(&d_out), &mut d_x);
                    if !kind.gated() {
                        let mut in_place = d_out.clone();
                        backward(simd, s, &x, mask, None, &mut in_place);
                        assert_eq!(in_place, d_x, "{kind:?}");
                    }
                    gradient(&format!("{kind:?}"), &x, &d_x, &d_out, |x| {
                        let mut out = vec![0.0; rows * width];
                        forward(simd, s, x, mask, &mut out);
                        out
                    });
                }
            }
        }
    }

    #[test]
    fn known_values() {
        let mut out = [0.0];
        let of = |kind| Hidden { kind, width: 1 };
        for (kind, want) in [(Activation::GeluErf, 0.841_344_7), (Activation::GeluTanh, 0.841_192)] {
            forward(Simd::best(), of(kind), &[1.0], None, &mut out);
            assert!((out[0] - want).abs() < 1e-6, "{kind:?} {}", out[0]);
        }
        forward(Simd::best(), of(Activation::SwiGlu), &[1.0, 3.0], None, &mut out);
        assert!((out[0] - 3.0 * 0.731_058_6).abs() < 1e-6, "{}", out[0]);
        for kind in KINDS {
            forward(Simd::best(), of(kind), &[f32::NAN, 1.0][..kind.inputs(1)], None, &mut out);
            assert!(out[0].is_nan(), "{kind:?} hides NaN");
        }
    }
}
