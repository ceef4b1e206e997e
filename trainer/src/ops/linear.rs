//! The affine map of each row.
//!
//! Forward: `y = x W^T + b`, `x` `[rows, inputs]`, `W` `[outputs, inputs]`; where what follows is done with it, `r + y` is
//! left of a residual stream `r`, or `f(y)` beside `y`.
//! Backward: `d_x = d_y W`, `d_W += d_y^T x`, `d_b += sum over rows of d_y`.

pub mod cuda;

use super::activation::{self, Hidden};
use super::hands::Hands;
use formats::layout::Linear;
use runtime::simd::product::{Epilogue, Operand, Product, Write};

/// `panels` is `W` packed by `pack_f32`; the epilogue has the bias, and what else is added.
pub fn forward(
    hands: &mut Hands<'_>,
    linear: &Linear,
    rows: usize,
    x: &[f32],
    panels: &[f32],
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    hands.product(&product(linear, rows), x, panels, epilogue, out);
}

/// The same, and its nonlinearity, which goes value by value: `y` to `hidden`, `f(y)` to `out`.
pub fn forward_activation(
    hands: &mut Hands<'_>,
    linear: &Linear,
    rows: usize,
    x: &[f32],
    panels: &[f32],
    bias: Option<&[f32]>,
    s: Hidden,
    (hidden, out): (&mut [f32], &mut [f32]),
) {
    let (simd, stride, epilogue) = (hands.simd, linear.outputs, Epilogue::of(bias));
    hands.product_then(&product(linear, rows), x, panels, epilogue, hidden, out, |columns, hidden, out| {
        // Whole rows are one stretch.
        let (len, part) = if columns == stride { (hidden.len(), hidden.len()) } else { (stride, columns) };
        for (hidden, out) in hidden.chunks(len).zip(out.chunks_mut(len)) {
            let s = Hidden { width: part, ..s };
            activation::forward(simd, s, &hidden[..part], None, &mut out[..part]);
        }
    });
}

fn product(linear: &Linear, rows: usize) -> Product {
    Product {
        rows,
        inner: linear.inputs,
        columns: linear.outputs,
        a_row_stride: linear.inputs,
        a_inner_stride: 1,
        b: Operand::Panels,
        c_stride: linear.outputs,
        write: Write::Set,
    }
}

/// `d_x = d_y W`.
pub fn backward_input(
    hands: &mut Hands<'_>,
    linear: &Linear,
    rows: usize,
    weight: &[f32],
    d_out: &[f32],
    (d_x, write): (&mut [f32], Write),
) {
    let product = Product {
        rows,
        inner: linear.outputs,
        columns: linear.inputs,
        a_row_stride: linear.outputs,
        a_inner_stride: 1,
        b: Operand::Rows { stride: linear.inputs },
        c_stride: linear.inputs,
        write,
    };
    hands.product(&product, d_out, weight, Epilogue::default(), d_x);
}

/// `d_W += d_y^T x` and `d_b += sum d_y`.
pub fn backward_weight(
    hands: &mut Hands<'_>,
    linear: &Linear,
    rows: usize,
    x: &[f32],
    d_out: &[f32],
    d_weight: &mut [f32],
) {
    let product = Product {
        rows: linear.outputs,
        inner: rows,
        columns: linear.inputs,
        a_row_stride: 1,
        a_inner_stride: linear.outputs,
        b: Operand::Rows { stride: linear.inputs },
        c_stride: linear.inputs,
        write: Write::Accumulate,
    };
    hands.product(&product, d_out, x, Epilogue::default(), d_weight);
}

/// `d_b += sum over rows of d_y`.
pub fn backward_bias(hands: &mut Hands<'_>, d_out: &[f32], d_bias: &mut [f32]) {
    let (simd, width) = (hands.simd, d_bias.len());
    // By columns, so that each sum stays one thread's, rows in order.
    let piece = hands.piece(width, d_out.len());
    hands.deal(d_bias.chunks_mut(piece).enumerate(), |(index, d_bias)| {
        for row in d_out.chunks_exact(width) {
            (simd.add)(d_bias, &row[index * piece..][..d_bias.len()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, linear_of, values};
    use runtime::simd::{Simd, packed_len};

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (6, 16, 17), (9, 33, 12), (17, 8, 65)] {
                let linear = linear_of(inputs, outputs);
                let (x, weight, bias) =
                    (values(rows * inputs, 1), values(outputs * inputs, 2), values(outputs, 3));
                let d_out = values(rows * outputs, 4);
                let run = |x: &[f32], weight: &[f32], bias: &[f32]| {
                    let mut panels = vec![0.0; packed_len(outputs, inputs)];
                    (simd.pack_f32)(weight, outputs, inputs, &mut panels);
                    let mut out = vec![f32::NAN; rows * outputs];
                    forward(
                        &mut Hands::alone(simd),
                        &linear,
                        rows,
                        x,
                        &panels,
                        Epilogue::of(Some(bias)),
                        &mut out,
                    );
                    out
                };
                let mut d_x = vec![f32::NAN; x.len()];
                let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; outputs]);
                let hands = &mut Hands::alone(simd);
                backward_input(hands, &linear, rows, &weight, &d_out, (&mut d_x, Write::Set));
                backward_weight(hands, &linear, rows, &x, &d_out, &mut d_weight);
                backward_bias(hands, &d_out, &mut d_bias);
                gradient("x", &x, &d_x, &d_out, |x| run(x, &weight, &bias));
                gradient("weight", &weight, &d_weight, &d_out, |weight| run(&x, weight, &bias));
                gradient("bias", &bias, &d_bias, &d_out, |bias| run(&x, &weight, bias));
            }
        }
    }
}
