//! Causal self-attention (Vaswani et al. 2017, eq. 1), one head of one window at a time.
//!
//! Forward, with `q`, `k`, `v` the head's rows of the fused projection, `c` the score scale:
//! `s_ij = c q_i . k_j` for `j <= i`, `p_ij = exp(s_ij - l_i)` with `l_i = log sum_j exp s_ij`,
//! `o_i = sum_j p_ij m_ij v_j`, `m` the dropout mask of the weights.
//!
//! Backward, the weights made again from `l` (Dao et al. 2022, section 3.1):
//! `d_v_j = sum_i p_ij m_ij d_o_i`, `d_p_ij = m_ij d_o_i . v_j`, `D_i = d_o_i . o_i`,
//! `d_s_ij = p_ij (d_p_ij - D_i)`, `d_q_i = c sum_j d_s_ij k_j`, `d_k_j = c sum_i d_s_ij q_i`.
//!
//! Query head `h` meets the keys and values of head `h / (heads / kv_heads)` (Ainslie et al. 2023).
//!
//! Scores live for one block of queries only, never for the whole square. Windows of at most eight rows have a
//! room of their own, [`short`].

pub mod cuda;
mod short;

use super::dropout::{Mask, after};
use super::hands::Hands;
use crate::windows::Windows;
use runtime::simd::product::{Epilogue, Operand, Product, Write};
use runtime::simd::routines::Unit;
use runtime::simd::{Simd, Work};

/// Queries whose scores are held at once.
const QUERIES: usize = 64;

/// The shape of attention over one shard: `sequences` windows of `block` rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Windows.
    pub sequences: usize,
    /// Rows of a window.
    pub block: usize,
    /// Heads.
    pub heads: usize,
    /// Heads with keys and values of their own.
    pub kv_heads: usize,
    /// Width of a head.
    pub size: usize,
    /// The factor on scores.
    pub scale: f32,
}

impl Heads {
    /// Width of a row of the output, and of a row's queries.
    pub fn width(&self) -> usize {
        self.heads * self.size
    }

    /// Width of a row of `qkv`.
    pub fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.size
    }

    /// Heads that share keys and values.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Whether the room of short windows serves, in which windows may share rows.
    pub fn short(&self) -> bool {
        short::serves(self)
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.sequences * self.block
    }

    /// Length of the scratch one pass needs: the scores of a block of queries and their gradients.
    pub fn scratch(&self) -> usize {
        if self.short() {
            return short::scratch(self);
        }
        2 * QUERIES.min(self.block) * self.block
    }

    /// Length of what the forward pass keeps for the backward one.
    pub fn kept(&self) -> usize {
        if self.short() { short::kept(self) } else { self.rows() * self.heads }
    }

    /// The shape of one piece: a window of those that are split, or all.
    fn piece(&self, hands: &Hands<'_>, scratch: &[f32]) -> Heads {
        let one = Heads { sequences: 1, ..*self };
        let room = scratch.len() >= self.sequences * one.scratch();
        if room && hands.split(self.rows() * self.row()) { one } else { *self }
    }

    /// Where one head of one window begins.
    fn place(&self, sequence: usize, head: usize) -> Place {
        let row = sequence * self.block;
        let key = row * self.row() + self.width() + head / self.group() * self.size;
        Place {
            query: row * self.row() + head * self.size,
            key,
            value: key + self.kv_heads * self.size,
            out: row * self.width() + head * self.size,
        }
    }
}

/// Offsets of a head's first query, key and value in `qkv`, and of its first output.
#[derive(Clone, Copy)]
struct Place {
    query: usize,
    key: usize,
    value: usize,
    out: usize,
}

/// A block of queries of one head, against the keys up to its last one.
#[derive(Clone, Copy)]
struct Block<'a> {
    s: &'a Heads,
    first: usize,
    queries: usize,
    /// Number of the block's first row among the rows of all heads, for dropout and sums.
    first_row: usize,
    /// Whether no block before this one had the same keys.
    opens: bool,
}

impl Block<'_> {
    fn keys(&self) -> usize {
        self.first + self.queries
    }

    /// `queries x keys` products over the head's width.
    fn against_keys(&self, a_row_stride: usize) -> Product {
        Product {
            rows: self.queries,
            inner: self.s.size,
            columns: self.keys(),
            a_row_stride,
            a_inner_stride: 1,
            b: Operand::Transposed { stride: self.s.row() },
            c_stride: self.s.block,
            write: Write::Set,
        }
    }

    /// `queries x size` sums over the keys of rows of `qkv`.
    fn over_keys(&self, c_stride: usize) -> Product {
        Product {
            rows: self.queries,
            inner: self.keys(),
            columns: self.s.size,
            a_row_stride: self.s.block,
            a_inner_stride: 1,
            b: Operand::Rows { stride: self.s.row() },
            c_stride,
            write: Write::Set,
        }
    }

    /// `keys x size` sums over the block's queries.
    fn over_queries(&self, b_stride: usize, write: Write) -> Product {
        Product {
            rows: self.keys(),
            inner: self.queries,
            columns: self.s.size,
            a_row_stride: 1,
            a_inner_stride: self.s.block,
            b: Operand::Rows { stride: b_stride },
            c_stride: self.s.row(),
            write,
        }
    }

    /// One query's scores: those of the keys it sees, and those of the block's later ones.
    #[inline(always)]
    fn row<'a>(&self, query: usize, scores: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32]) {
        scores[query * self.s.block..][..self.keys()].split_at_mut(self.first + query + 1)
    }

    /// Multiplies the block's weights by their dropout factors.
    fn drop(&self, mask: Mask, weights: &mut [f32]) {
        let Some(mask) = mask else { return };
        for (query, row) in weights.chunks_mut(self.s.block).take(self.queries).enumerate() {
            let visible = self.first + query + 1;
            mask.row(self.first_row + query, visible, |key, factor| row[key] *= factor);
        }
    }
}

/// Calls `work` for every block of queries of every head: with its offsets and, for each head, last block first,
/// so that gradients over keys are set once and then added to, also by the other heads that share them.
fn blocks(s: &Heads, mut work: impl FnMut(Block<'_>, Place)) {
    for sequence in 0..s.sequences {
        for head in 0..s.heads {
            let place = s.place(sequence, head);
            for first in (0..s.block).step_by(QUERIES).rev() {
                let queries = QUERIES.min(s.block - first);
                let first_row = (sequence * s.heads + head) * s.block + first;
                let opens = first + queries == s.block && head.is_multiple_of(s.group());
                work(Block { s, first, queries, first_row, opens }, place);
            }
        }
    }
}

/// `qkv` `[rows, (heads + 2 kv_heads) size]`, `out` `[rows, heads size]`; `kept` is what [`backward`] needs: `l` as `[sequences, heads,
/// block]`, or the weights of short windows.
///
/// Windows are split among the hands as far as `scratch` has room for each. Those that share rows are one thread's, and
/// [`Heads::short`]; of [`Windows::Placed`] ones `qkv` is `[ids block, ...]`.
pub fn forward(
    hands: &mut Hands<'_>,
    s: &Heads,
    windows: Windows<'_>,
    qkv: &[f32],
    mask: Mask,
    out: &mut [f32],
    kept: &mut [f32],
    scratch: &mut [f32],
) {
    if windows.shared().is_some() {
        assert!(s.short(), "only short windows share rows");
        return short::forward(hands.simd, s, windows, qkv, mask, out, kept, scratch);
    }
    let (simd, piece) = (hands.simd, s.piece(hands, scratch));
    let pieces = qkv.chunks(piece.rows() * s.row()).zip(out.chunks_mut(piece.rows() * s.width()));
    let pieces = pieces.zip(kept.chunks_mut(piece.kept())).zip(scratch.chunks_mut(piece.scratch()));
    hands.deal(pieces.enumerate(), |(index, (((qkv, out), kept), scratch))| {
        one_by_one(simd, &piece, qkv, after(mask, index * piece.rows() * s.heads), out, kept, scratch);
    });
}

/// The forward pass by one thread.
fn one_by_one(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    mask: Mask,
    out: &mut [f32],
    kept: &mut [f32],
    scratch: &mut [f32],
) {
    if s.short() {
        return short::forward(simd, s, Windows::Whole, qkv, mask, out, kept, scratch);
    }
    let (width, row) = (s.width(), s.row());
    blocks(s, |block, Place { query, key: at_key, value: at_value, out: at_out }| {
        let queries = &qkv[query + block.first * row..];
        (simd.product)(&block.against_keys(row), queries, &qkv[at_key..], Epilogue::default(), scratch);
        let log_sums = &mut kept[block.first_row..][..block.queries];
        simd.run(Weigh { block, log_sums, scores: scratch });
        block.drop(mask, scratch);
        let to = &mut out[at_out + block.first * width..];
        (simd.product)(&block.over_keys(width), scratch, &qkv[at_value..], Epilogue::default(), to);
    });
}

/// Scores to weights: a softmax over the keys each query sees, zero for the others.
struct Weigh<'a> {
    block: Block<'a>,
    log_sums: &'a mut [f32],
    scores: &'a mut [f32],
}

impl Work for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Weigh { block, log_sums, scores } = self;
        let scale = block.s.scale;
        for (query, log_sum) in log_sums.iter_mut().enumerate() {
            let (seen, unseen) = block.row(query, scores);
            unseen.fill(0.0);
            let maximum = scale * unit.maximum(seen);
            for score in seen.iter_mut() {
                *score = unit.exp(unit.multiply_add(*score, scale, -maximum));
            }
            let sum = unit.sum(seen, |value| value);
            let inverse = 1.0 / sum;
            for score in seen.iter_mut() {
                *score *= inverse;
            }
            *log_sum = maximum + sum.ln();
        }
    }
}

/// Scores to the same weights again, from the sums that were kept.
struct WeighAgain<'a> {
    block: Block<'a>,
    log_sums: &'a [f32],
    scores: &'a mut [f32],
}

impl Work for WeighAgain<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let WeighAgain { block, log_sums, scores } = self;
        for (query, log_sum) in log_sums.iter().enumerate() {
            let (seen, unseen) = block.row(query, scores);
            unseen.fill(0.0);
            for score in seen {
                *score = unit.exp(unit.multiply_add(*score, block.s.scale, -log_sum));
            }
        }
    }
}

/// Gradients of weights to gradients of scores.
struct Unweigh<'a> {
    block: Block<'a>,
    weights: &'a [f32],
    d_weights: &'a mut [f32],
    out: &'a [f32],
    d_out: &'a [f32],
}

impl Work for Unweigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Unweigh { block, weights, d_weights, out, d_out } = self;
        let (width, size) = (block.s.width(), block.s.size);
        for query in 0..block.queries {
            let at = query * width..query * width + size;
            let dot = unit.sum_pairs(&d_out[at.clone()], &out[at], |d, o| d * o);
            let weights = &weights[query * block.s.block..];
            let (seen, unseen) = block.row(query, d_weights);
            unseen.fill(0.0);
            for (d, weight) in seen.iter_mut().zip(weights) {
                *d = block.s.scale * weight * (*d - dot);
            }
        }
    }
}

/// The gradient of `qkv`, set; split as [`forward`] is.
pub fn backward(
    hands: &mut Hands<'_>,
    s: &Heads,
    qkv: &[f32],
    out: &[f32],
    kept: &[f32],
    mask: Mask,
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
) {
    let (simd, piece) = (hands.simd, s.piece(hands, scratch));
    let (wide, narrow) = (piece.rows() * s.row(), piece.rows() * s.width());
    let pieces =
        qkv.chunks(wide).zip(d_qkv.chunks_mut(wide)).zip(out.chunks(narrow)).zip(d_out.chunks(narrow));
    let pieces = pieces.zip(kept.chunks(piece.kept())).zip(scratch.chunks_mut(piece.scratch()));
    hands.deal(pieces.enumerate(), |(index, (((((qkv, d_qkv), out), d_out), kept), scratch))| {
        let mask = after(mask, index * piece.rows() * s.heads);
        windows_backward(simd, &piece, qkv, out, kept, mask, d_out, d_qkv, scratch);
    });
}

/// The backward pass by one thread.
fn windows_backward(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    out: &[f32],
    kept: &[f32],
    mask: Mask,
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
) {
    if s.short() {
        return short::backward(simd, s, qkv, kept, mask, d_out, d_qkv, scratch);
    }
    let (width, row) = (s.width(), s.row());
    let (weights, d_weights) = scratch.split_at_mut(s.scratch() / 2);
    blocks(s, |block, Place { query, key: at_key, value: at_value, out: at_out }| {
        let (queries, from_out) = (query + block.first * row, at_out + block.first * width);
        let write = if block.opens { Write::Set } else { Write::Accumulate };
        let d_rows = &d_out[from_out..];

        (simd.product)(
            &block.against_keys(row),
            &qkv[queries..],
            &qkv[at_key..],
            Epilogue::default(),
            weights,
        );
        (simd.product)(&block.against_keys(width), d_rows, &qkv[at_value..], Epilogue::default(), d_weights);
        let log_sums = &kept[block.first_row..][..block.queries];
        simd.run(WeighAgain { block, log_sums, scores: weights });
        // d_p takes the mask; then d_s, while the weights without it are still at hand.
        block.drop(mask, d_weights);
        simd.run(Unweigh { block, weights, d_weights, out: &out[from_out..], d_out: d_rows });
        block.drop(mask, weights);
        let d_values = &mut d_qkv[at_value..];
        (simd.product)(&block.over_queries(width, write), weights, d_rows, Epilogue::default(), d_values);
        let d_queries = &mut d_qkv[queries..];
        (simd.product)(&block.over_keys(row), d_weights, &qkv[at_key..], Epilogue::default(), d_queries);
        let d_keys = &mut d_qkv[at_key..];
        (simd.product)(
            &block.over_queries(row, write),
            d_weights,
            &qkv[queries..],
            Epilogue::default(),
            d_keys,
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};
    use crate::ops::dropout::Noise;
    use crate::windows::{Shared, Window};

    fn shapes() -> Vec<Heads> {
        [
            (1, 1, 1, 1),
            (2, 3, 2, 5),
            (1, 8, 4, 16),
            (3, 7, 2, 8),
            (2, 1, 3, 24),
            (1, 13, 1, 7),
            (2, 17, 1, 4),
            (1, 67, 1, 3),
            (1, 130, 1, 2),
        ]
        .map(|(sequences, block, heads, size)| Heads {
            sequences,
            block,
            heads,
            kv_heads: heads,
            size,
            scale: 0.7,
        })
        .into_iter()
        .chain([(4, 2), (2, 1), (6, 2)].map(|(heads, kv_heads)| Heads {
            sequences: 2,
            block: 5,
            heads,
            kv_heads,
            size: 4,
            scale: 0.6,
        }))
        .chain([Heads { sequences: 1, block: 67, heads: 2, kv_heads: 1, size: 3, scale: 0.5 }])
        .collect()
    }

    fn run(simd: &'static Simd, s: &Heads, qkv: &[f32], mask: Mask) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![f32::NAN; s.rows() * s.width()];
        let mut log_sums = vec![f32::NAN; s.kept()];
        let hands = &mut Hands::alone(simd);
        forward(
            hands,
            s,
            Windows::Whole,
            qkv,
            mask,
            &mut out,
            &mut log_sums,
            &mut vec![f32::NAN; s.scratch()],
        );
        (out, log_sums)
    }

    #[test]
    fn shared_rows_are_those_of_whole_windows_to_the_bit() {
        for simd in Simd::available() {
            for s in shapes().into_iter().filter(Heads::short) {
                let draws: Vec<u32> = (0..s.rows() as u32).map(|row| row * 5 % 7 % 2).collect();
                let mut pass = Shared::default();
                pass.lay(&Window::sorted(&draws, &draws, s.block));
                let shared = values(pass.ids.len() * s.row(), 1);
                let qkv: Vec<f32> = pass
                    .rows
                    .iter()
                    .flat_map(|&row| &shared[row as usize * s.row()..][..s.row()])
                    .copied()
                    .collect();
                let (whole, _) = run(simd, &s, &qkv, None);
                let mut out = vec![f32::NAN; pass.ids.len() * s.width()];
                let (kept, scratch) = (&mut vec![f32::NAN; s.kept()], &mut vec![f32::NAN; s.scratch()]);
                let hands = &mut Hands::alone(simd);
                forward(hands, &s, Windows::Shared(&pass), &shared, None, &mut out, kept, scratch);
                for (place, &row) in pass.rows.iter().enumerate() {
                    let got = &out[row as usize * s.width()..][..s.width()];
                    assert_eq!(got, &whole[place * s.width()..][..s.width()], "{s:?}");
                }

                // The draws are two ids.
                let placed = values(2 * s.block * s.row(), 2);
                let at = |row: u32| {
                    (pass.ids[row as usize] as usize * s.block + pass.places[row as usize] as usize) * s.row()
                };
                let qkv = pass.rows.iter().flat_map(|&row| &placed[at(row)..][..s.row()]);
                let (whole, _) = run(simd, &s, &qkv.copied().collect::<Vec<f32>>(), None);
                forward(hands, &s, Windows::Placed(&pass), &placed, None, &mut out, kept, scratch);
                for (place, &row) in pass.rows.iter().enumerate() {
                    let got = &out[row as usize * s.width()..][..s.width()];
                    assert_eq!(got, &whole[place * s.width()..][..s.width()], "placed {s:?}");
                }
            }
        }
    }

    #[test]
    fn forward_matches_float64() {
        for simd in Simd::available() {
            for s in shapes() {
                let (row, width) = (s.row(), s.width());
                let qkv = values(s.rows() * row, 1);
                let (out, _) = run(simd, &s, &qkv, None);
                let at = |r: usize, c: usize| f64::from(qkv[r * row + c]);
                for r in 0..s.rows() {
                    for h in 0..s.heads {
                        let first = r / s.block * s.block;
                        let key = width + h / s.group() * s.size;
                        let value = key + s.kv_heads * s.size;
                        let dot = |j: usize| -> f64 {
                            (0..s.size).map(|c| at(r, h * s.size + c) * at(j, key + c)).sum()
                        };
                        let scores: Vec<f64> =
                            (first..=r).map(|j| (dot(j) * f64::from(s.scale)).exp()).collect();
                        let sum: f64 = scores.iter().sum();
                        for c in 0..s.size {
                            let want: f64 =
                                (first..=r).zip(&scores).map(|(j, p)| p / sum * at(j, value + c)).sum();
                            let got = f64::from(out[r * width + h * s.size + c]);
                            assert!(
                                (got - want).abs() <= 2e-6,
                                "{s:?} row {r} head {h}: {got} is not {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Of the shapes whose windows are wanted.
    fn gradients_match(wanted: impl Fn(usize) -> bool) {
        for simd in Simd::available() {
            for s in shapes().into_iter().filter(|s| wanted(s.block)) {
                for mask in [None, Noise::new(3, 4, 0.3).at(2, 0, s.block)] {
                    let qkv = values(s.rows() * s.row(), 1);
                    let d_out = values(s.rows() * s.width(), 2);
                    let (out, log_sums) = run(simd, &s, &qkv, mask);
                    let mut d_qkv = vec![f32::NAN; qkv.len()];
                    let mut scratch = vec![f32::NAN; s.scratch()];
                    let hands = &mut Hands::alone(simd);
                    backward(hands, &s, &qkv, &out, &log_sums, mask, &d_out, &mut d_qkv, &mut scratch);
                    gradient(&format!("{s:?}"), &qkv, &d_qkv, &d_out, |qkv| run(simd, &s, qkv, mask).0);
                }
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        gradients_match(|block| block <= 17);
    }

    #[test]
    fn gradients_of_long_windows_match_finite_differences() {
        gradients_match(|block| block > 17);
    }

    #[test]
    fn a_row_sees_no_later_row() {
        let s = Heads { sequences: 1, block: 70, heads: 2, kv_heads: 2, size: 4, scale: 0.5 };
        let mut qkv = values(s.rows() * s.row(), 1);
        let (before, _) = run(Simd::best(), &s, &qkv, None);
        for row in [69, 40, 1] {
            qkv[row * s.row()..].iter_mut().for_each(|value| *value += 1.0);
            let (after, _) = run(Simd::best(), &s, &qkv, None);
            assert_eq!(before[..row * s.width()], after[..row * s.width()]);
            assert_ne!(before[row * s.width()..], after[row * s.width()..]);
        }
    }
}
