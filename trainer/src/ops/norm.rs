//! LayerNorm of each row (Ba, Kiros and Hinton 2016, eq. 4), or RMSNorm (Zhang and Sennrich 2019, eq. 4).
//!
//! Forward, with `m` the mean and `r = 1 / sqrt(var + eps)` of a row: `n = (x - m) r`, `y = n g + b`.
//! RMSNorm has `m = 0`, the mean square for `var`, and no `b`.
//!
//! Backward, with `e = d_y g` and `<.>` the mean over the row:
//! `d_x = r (e - <e> - n <e n>)`, `d_g += d_y n`, `d_b += d_y`, rows in order; RMSNorm has no `<e>`.

pub mod cuda;

use crate::backend::Rows;
use formats::config::NormKind;
use runtime::simd::product::Write;
use runtime::simd::routines::{LANES, TOGETHER, Unit, together};
use runtime::simd::{Simd, Work};

/// `moments` `[rows, 2]` keeps `m` and `r`, and says how many rows there are.
pub fn forward(
    simd: &Simd,
    s: &Rows,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
    moments: &mut [f32],
) {
    let values = moments.len() / 2 * s.width;
    let (x, out) = (&x[..values], &mut out[..values]);
    if s.kind == NormKind::LayerNorm {
        return (simd.layer_norm)(x, gain, bias, s.eps, out, moments);
    }
    let rows = x.chunks_exact(s.width).zip(out.chunks_exact_mut(s.width));
    for ((x, out), moments) in rows.zip(moments.chunks_exact_mut(2)) {
        moments.copy_from_slice(&[0.0, (simd.rms_norm)(x, gain, s.eps, out)]);
    }
}

/// The gradients; those of gain and bias are added to what is there.
pub fn backward(
    simd: &Simd,
    s: &Rows,
    x: &[f32],
    gain: &[f32],
    moments: &[f32],
    d_out: &[f32],
    d_x: (&mut [f32], Write),
    d_gain: &mut [f32],
    d_bias: Option<&mut [f32]>,
) {
    simd.run(Backward { s, x, gain, moments, d_out, d_x, d_gain, d_bias });
}

struct Backward<'a> {
    s: &'a Rows,
    x: &'a [f32],
    gain: &'a [f32],
    moments: &'a [f32],
    d_out: &'a [f32],
    d_x: (&'a mut [f32], Write),
    d_gain: &'a mut [f32],
    d_bias: Option<&'a mut [f32]>,
}

impl Work for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Backward { s, x, gain, moments, d_out, d_x: (d_x, write), d_gain, mut d_bias } = self;
        let (width, count) = (s.width, s.width as f32);
        let (gain, d_gain) = (&gain[..width], &mut d_gain[..width]);
        let centred = if s.kind == NormKind::LayerNorm { 1.0 } else { 0.0 };
        let (values, together) = (s.rows * width, together(width));
        let several = x[..values].chunks(together * width).zip(d_out[..values].chunks(together * width));
        let several =
            several.zip(d_x[..values].chunks_mut(together * width)).zip(moments.chunks(2 * together));
        for (((x, d_out), d_x), moments) in several {
            let mut sums = [[[0.0; LANES]; 2]; TOGETHER];
            let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width)).zip(moments.as_chunks::<2>().0);
            for (((x, d), &moments), sums) in rows.clone().zip(&mut sums) {
                *sums = accumulate(unit, x, d, gain, moments, d_gain);
                if let Some(d_bias) = &mut d_bias {
                    for (d_bias, d) in d_bias.iter_mut().zip(d) {
                        *d_bias += d;
                    }
                }
            }
            for ((((x, d), &[mean, scale]), [sum_e, sum_en]), d_x) in
                rows.zip(&sums).zip(d_x.chunks_exact_mut(width))
            {
                let mean_e = centred * unit.total(sum_e) / count;
                let mean_en = unit.total(sum_en) / count;
                let inputs = x.iter().zip(d).zip(gain);
                match write {
                    Write::Set => {
                        for (d_x, ((x, d), g)) in d_x.iter_mut().zip(inputs) {
                            *d_x = scale * (d * g - mean_e - (x - mean) * scale * mean_en);
                        }
                    }
                    Write::Accumulate => {
                        for (d_x, ((x, d), g)) in d_x.iter_mut().zip(inputs) {
                            *d_x += scale * (d * g - mean_e - (x - mean) * scale * mean_en);
                        }
                    }
                }
            }
        }
    }
}

/// One row's sums of `e` and `e n`, still in their accumulators; its part of `d_g` is added.
#[inline(always)]
fn accumulate(
    unit: Unit,
    x: &[f32],
    d_out: &[f32],
    gain: &[f32],
    [mean, scale]: [f32; 2],
    d_gain: &mut [f32],
) -> [[f32; LANES]; 2] {
    let (mut sum_e, mut sum_en) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |x: &[f32; LANES], d: &[f32; LANES], g: &[f32; LANES], dg: &mut [f32; LANES]| {
        for lane in 0..LANES {
            let (normed, e) = ((x[lane] - mean) * scale, d[lane] * g[lane]);
            sum_e[lane] += e;
            sum_en[lane] = unit.multiply_add(e, normed, sum_en[lane]);
            dg[lane] = unit.multiply_add(d[lane], normed, dg[lane]);
        }
    };
    let ((whole_x, rest_x), (whole_d, rest_d), (whole_g, rest_g), (whole_dg, rest_dg)) = (
        x.as_chunks::<LANES>(),
        d_out.as_chunks::<LANES>(),
        gain.as_chunks::<LANES>(),
        d_gain.as_chunks_mut::<LANES>(),
    );
    for (((x, d), g), dg) in whole_x.iter().zip(whole_d).zip(whole_g).zip(whole_dg) {
        add(x, d, g, dg);
    }
    if !rest_x.is_empty() {
        // Whole accumulators have constant places, which can be registers; what a row lacks adds nothing.
        let filled = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            lanes
        };
        let mut dg = filled(rest_dg);
        add(&filled(rest_x), &filled(rest_d), &filled(rest_g), &mut dg);
        rest_dg.copy_from_slice(&dg[..rest_dg.len()]);
    }
    [sum_e, sum_en]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for width in [2, 3, 8, 15, 16, 17, 31, 33, 64, 97] {
                let s = Rows { rows: 3, width, eps: 1e-5, kind: NormKind::LayerNorm };
                let (x, gain, bias) = (values(3 * width, 1), values(width, 2), values(width, 3));
                let d_out = values(3 * width, 4);
                let run = |x: &[f32], gain: &[f32], bias: &[f32]| {
                    let (mut out, mut moments) = (vec![0.0; x.len()], vec![0.0; 6]);
                    forward(simd, &s, x, gain, Some(bias), &mut out, &mut moments);
                    (out, moments)
                };
                let (_, moments) = run(&x, &gain, &bias);
                let (mut d_x, mut d_gain, mut d_bias) =
                    (vec![f32::NAN; x.len()], vec![0.0; width], vec![0.0; width]);
                backward(
                    simd,
                    &s,
                    &x,
                    &gain,
                    &moments,
                    &d_out,
                    (&mut d_x, Write::Set),
                    &mut d_gain,
                    Some(&mut d_bias),
                );
                gradient("x", &x, &d_x, &d_out, |x| run(x, &gain, &bias).0);
                gradient("gain", &gain, &d_gain, &d_out, |gain| run(&x, gain, &bias).0);
                gradient("bias", &bias, &d_bias, &d_out, |bias| run(&x, &gain, bias).0);
            }
        }
    }

    #[test]
    fn the_root_mean_square_has_its_gradients_too() {
        for simd in Simd::available() {
            for width in [1, 3, 16, 17, 33] {
                let s = Rows { rows: 3, width, eps: 1e-5, kind: NormKind::RmsNorm };
                let (x, gain, d_out) = (values(3 * width, 1), values(width, 2), values(3 * width, 4));
                let run = |x: &[f32], gain: &[f32]| {
                    let (mut out, mut moments) = (vec![f32::NAN; x.len()], vec![f32::NAN; 6]);
                    forward(simd, &s, x, gain, None, &mut out, &mut moments);
                    (out, moments)
                };
                let (out, moments) = run(&x, &gain);
                for (row, out) in out.chunks(width).enumerate() {
                    let x = &x[row * width..][..width];
                    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    for ((out, x), gain) in out.iter().zip(x).zip(&gain) {
                        let exact = f64::from(*x) / (square + 1e-5).sqrt() * f64::from(*gain);
                        assert!((f64::from(*out) - exact).abs() <= 1e-6, "{out} is not {exact}");
                    }
                }
                let (mut d_x, mut d_gain) = (vec![f32::NAN; x.len()], vec![0.0; width]);
                let d = (&mut d_x[..], Write::Set);
                backward(simd, &s, &x, &gain, &moments, &d_out, d, &mut d_gain, None);
                gradient("x", &x, &d_x, &d_out, |x| run(x, &gain).0);
                gradient("gain", &gain, &d_gain, &d_out, |gain| run(&x, gain).0);
            }
        }
    }
}
