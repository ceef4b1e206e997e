//! The feed-forward nonlinearity, element by element.
//!
//! Forward `y = f(x)`, backward `d_x = d_y f'(x)`:
//! - relu: `f = max(x, 0)`, `f' = [x > 0]`
//! - gelu-erf: `f = x Phi(x)`, `f' = Phi(x) + x phi(x)` (Hendrycks and Gimpel 2016, eq. 1)
//! - gelu-tanh: `f = x s(2u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`, `s` the logistic function,
//!   `f' = s + x s (1 - s) 2 u'`

use formats::config::Activation;
use runtime::simd::routines::Unit;
use runtime::simd::{Simd, Work};

/// `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_28;
/// `2 sqrt(2 / pi)`.
const TWICE: f32 = 1.595_769_1;

/// `out = f(x)`.
pub fn forward(simd: &Simd, kind: Activation, x: &[f32], out: &mut [f32]) {
    simd.run(Forward { kind, x, out });
}

/// `d_x = d_out f'(x)`.
pub fn backward(simd: &Simd, kind: Activation, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
    simd.run(Backward { kind, x, d_out, d_x });
}

struct Forward<'a> {
    kind: Activation,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let pairs = self.out.iter_mut().zip(self.x);
        match self.kind {
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
        }
    }
}

struct Backward<'a> {
    kind: Activation,
    x: &'a [f32],
    d_out: &'a [f32],
    d_x: &'a mut [f32],
}

impl Work for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let triples = self.d_x.iter_mut().zip(self.x).zip(self.d_out);
        match self.kind {
            Activation::Relu => {
                for ((d_x, &x), &d) in triples {
                    *d_x = d * if x > 0.0 { 1.0 } else { 0.0 * x };
                }
            }
            Activation::GeluErf => {
                for ((d_x, &x), &d) in triples {
                    let (distribution, density) = unit.normal(x);
                    *d_x = d * unit.multiply_add(x * DENSITY, density, distribution);
                }
            }
            Activation::GeluTanh => {
                for ((d_x, &x), &d) in triples {
                    *d_x = d * gelu_tanh_slope(unit, x);
                }
            }
        }
    }
}

#[inline(always)]
fn gelu_tanh_slope(unit: Unit, x: f32) -> f32 {
    let gate = unit.gelu_tanh_gate(x);
    let inner = unit.multiply_add(x * x, 3.0 * 0.044_715 * TWICE, TWICE);
    unit.multiply_add(x * gate * (1.0 - gate), inner, gate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for kind in [Activation::Relu, Activation::GeluErf, Activation::GeluTanh] {
                for len in (1..=33).chain([97]) {
                    let x: Vec<f32> = values(len, 1).iter().map(|x| 3.0 * x).collect();
                    let d_out = values(len, 2);
                    let mut d_x = vec![f32::NAN; len];
                    backward(simd, kind, &x, &d_out, &mut d_x);
                    gradient(&format!("{kind:?}"), &x, &d_x, &d_out, |x| {
                        let mut out = vec![0.0; len];
                        forward(simd, kind, x, &mut out);
                        out
                    });
                }
            }
        }
    }

    #[test]
    fn known_values() {
        let mut out = [0.0];
        for (kind, want) in [(Activation::GeluErf, 0.841_344_7), (Activation::GeluTanh, 0.841_192)] {
            forward(Simd::best(), kind, &[1.0], &mut out);
            assert!((out[0] - want).abs() < 1e-6, "{kind:?} {}", out[0]);
        }
        for kind in [Activation::Relu, Activation::GeluErf, Activation::GeluTanh] {
            forward(Simd::best(), kind, &[f32::NAN], &mut out);
            assert!(out[0].is_nan(), "{kind:?} hides NaN");
        }
    }
}
