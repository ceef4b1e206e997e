//! Token and position embedding.
//!
//! Forward, with `id_r` the token of row `r` and `p_r = r mod block` its place:
//! `out_r = (token[id_r] + position[p_r]) m_r`, `m` the dropout mask; rotary models have no `position`. Rows that
//! windows share say their places themselves.
//!
//! Backward: `d_token[id_r] += d_out_r m_r`, `d_position[p_r] += d_out_r m_r`, rows in order.

pub mod cuda;

use super::dropout::Mask;
use crate::backend::Embed;
use crate::windows::Windows;

/// `tokens` `[vocabulary, width]`, `positions` `[context, width]`, `out` `[rows, width]`.
pub fn forward(
    s: &Embed,
    windows: Windows<'_>,
    ids: &[u32],
    tokens: &[f32],
    positions: Option<&[f32]>,
    mask: Mask,
    out: &mut [f32],
) {
    for (row, (out, &id)) in out.chunks_exact_mut(s.width).zip(ids).enumerate() {
        let token = &tokens[id as usize * s.width..][..s.width];
        let Some(positions) = positions else {
            out.copy_from_slice(token);
            continue;
        };
        let place = match windows.shared() {
            None => row % s.block,
            // Rows past the last one are not asked for.
            Some(shared) => shared.places.get(row).map_or(0, |&place| place as usize),
        };
        let position = &positions[place * s.width..][..s.width];
        for ((out, token), position) in out.iter_mut().zip(token).zip(position) {
            *out = token + position;
        }
    }
    if let Some(mask) = mask {
        mask.rows(s.rows, |index, factor| out[index] *= factor);
    }
}

/// Gradients of both tables, accumulated.
pub fn backward(
    s: &Embed,
    ids: &[u32],
    mask: Mask,
    d_out: &[f32],
    d_tokens: &mut [f32],
    mut d_positions: Option<&mut [f32]>,
) {
    for (row, (d_out, &id)) in d_out.chunks_exact(s.width).zip(ids).enumerate() {
        let d_token = &mut d_tokens[id as usize * s.width..][..s.width];
        add_row(row, d_out, mask, d_token);
        if let Some(d_positions) = &mut d_positions {
            add_row(row, d_out, mask, &mut d_positions[row % s.block * s.width..][..s.width]);
        }
    }
}

/// `to += d_out m`.
fn add_row(row: usize, d_out: &[f32], mask: Mask, to: &mut [f32]) {
    match mask {
        None => to.iter_mut().zip(d_out).for_each(|(to, d)| *to += d),
        Some(mask) => mask.row(row, d_out.len(), |column, factor| to[column] += d_out[column] * factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};
    use crate::ops::dropout::Noise;

    #[test]
    fn gradients_match_finite_differences() {
        for (block, width, dropout) in [(1, 1, 0.0), (3, 5, 0.3), (4, 8, 0.3), (2, 4, 0.0)] {
            let mask = Noise::new(1, 2, dropout).at(0, 0, width);
            let s = Embed { rows: 2 * block, block, width };
            let ids: Vec<u32> = (0..s.rows as u32).map(|row| row * 7 % 5).collect();
            let (tokens, positions) = (values(5 * width, 1), values(block * width, 2));
            let d_out = values(s.rows * width, 3);
            let (mut d_tokens, mut d_positions) = (vec![0.0; tokens.len()], vec![0.0; positions.len()]);
            backward(&s, &ids, mask, &d_out, &mut d_tokens, Some(&mut d_positions));
            let run = |tokens: &[f32], positions: &[f32]| {
                let mut out = vec![0.0; d_out.len()];
                forward(&s, Windows::Whole, &ids, tokens, Some(positions), mask, &mut out);
                out
            };
            gradient("tokens", &tokens, &d_tokens, &d_out, |tokens| run(tokens, &positions));
            gradient("positions", &positions, &d_positions, &d_out, |positions| run(&tokens, positions));
        }
    }
}
