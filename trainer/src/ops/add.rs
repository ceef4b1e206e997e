//! The residual connection.
//!
//! Forward: `out = stream + branch m`, `m` the dropout mask of the branch.
//! Backward: `d_stream = d_out`, `d_branch = d_out m`.

pub mod cuda;

use super::dropout::Mask;
use runtime::simd::product::Write;

/// All of `rows` rows of one width.
pub fn forward(rows: usize, stream: &[f32], branch: &[f32], mask: Mask, out: &mut [f32]) {
    match mask {
        None => {
            for ((out, stream), branch) in out.iter_mut().zip(stream).zip(branch) {
                *out = stream + branch;
            }
        }
        Some(mask) => mask.rows(rows, |index, factor| out[index] = stream[index] + branch[index] * factor),
    }
}

/// One gradient: the stream's with no mask, the branch's with its mask.
pub fn backward(rows: usize, d_out: &[f32], mask: Mask, (d, write): (&mut [f32], Write)) {
    match (mask, write) {
        (None, Write::Set) => d.copy_from_slice(d_out),
        (None, Write::Accumulate) => d.iter_mut().zip(d_out).for_each(|(d, d_out)| *d += d_out),
        (Some(mask), Write::Set) => mask.rows(rows, |index, factor| d[index] = d_out[index] * factor),
        (Some(mask), Write::Accumulate) => mask.rows(rows, |index, factor| d[index] += d_out[index] * factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};
    use crate::ops::dropout::Noise;

    #[test]
    fn gradients_match_finite_differences() {
        for width in [1, 4, 7, 33] {
            let len = 2 * width;
            for mask in [None, Noise::new(5, 6, 0.4).at(1, 0, width)] {
                let (stream, branch, d_out) = (values(len, 1), values(len, 2), values(len, 3));
                let run = |stream: &[f32], branch: &[f32]| {
                    let mut out = vec![0.0; len];
                    forward(2, stream, branch, mask, &mut out);
                    out
                };
                let (mut d_stream, mut d_branch) = (vec![f32::NAN; len], vec![0.5; len]);
                backward(2, &d_out, None, (&mut d_stream, Write::Set));
                backward(2, &d_out, mask, (&mut d_branch, Write::Accumulate));
                d_branch.iter_mut().for_each(|d| *d -= 0.5);
                gradient("stream", &stream, &d_stream, &d_out, |stream| run(stream, &branch));
                gradient("branch", &branch, &d_branch, &d_out, |branch| run(&stream, branch));
            }
        }
    }
}
