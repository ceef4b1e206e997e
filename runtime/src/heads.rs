//! What happens to queries and keys before they meet: they may be normalised, and rotated by their place.

use crate::simd::Simd;
use std::ops::Range;

/// Turns one head by one row of [`crate::rotary::angles`].
fn turn(head: &mut [f32], angles: &[f32]) {
    let (low, high) = head.split_at_mut(angles.len() / 2);
    let (cosines, sines) = angles.split_at(angles.len() / 2);
    for ((low, high), (cosine, sine)) in low.iter_mut().zip(high).zip(cosines.iter().zip(sines)) {
        (*low, *high) = (*low * cosine - *high * sine, *high * cosine + *low * sine);
    }
}

/// Queries or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Query = 0,
    Key = 1,
}

/// The norms of queries and of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryKeyGains<'a> {
    /// One gain a head's element, or one an element of all heads together.
    pub(crate) gains: [&'a [f32]; 2],
    /// Whether all heads are normalised together.
    pub(crate) whole: bool,
    /// Added to the mean square.
    pub(crate) eps: f32,
}

/// How the heads of one step's rows are made ready. A row is `[heads + 2 kv_heads, head_size]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preparation<'a> {
    pub(crate) simd: &'a Simd,
    pub(crate) head_size: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) norm: Option<QueryKeyGains<'a>>,
    /// See [`crate::rotary::angles`]; empty where positions are not rotary.
    pub(crate) angles: &'a [f32],
}

impl Preparation<'_> {
    /// Width of a row.
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// The columns of a row that some heads of keys are served by: queries, keys and values.
    pub(crate) fn columns(&self, kv_heads: Range<usize>) -> [Range<usize>; 3] {
        if self.whole().is_some() {
            // All heads are needed to normalise one.
            return [0..self.width(), 0..0, 0..0];
        }
        let (size, group) = (self.head_size, self.heads / self.kv_heads);
        let at = |first: usize, heads: usize| {
            (first + kv_heads.start * heads) * size..(first + kv_heads.end * heads) * size
        };
        [at(0, group), at(self.heads, 1), at(self.heads + self.kv_heads, 1)]
    }

    /// Where a side's heads are in a row, and how many.
    fn side(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Query => (0, self.heads),
            Side::Key => (self.heads * self.head_size, self.kv_heads),
        }
    }

    /// The norms, if they are of all heads of a side together.
    fn whole(&self) -> Option<QueryKeyGains<'_>> {
        self.norm.filter(|norm| norm.whole)
    }

    /// What each row's queries and keys are multiplied by where all heads are normalised together: two values a row.
    pub(crate) fn scales(&self, qkv: &[f32], scales: &mut [f32]) {
        let Some(norm) = self.whole() else { return };
        for (row, scales) in qkv.chunks_exact(self.width()).zip(scales.chunks_exact_mut(2)) {
            for (side, scale) in [Side::Query, Side::Key].into_iter().zip(scales) {
                let (start, heads) = self.side(side);
                let values = &row[start..][..heads * self.head_size];
                let square = (self.simd.dot_f32)(values, values) / values.len() as f32;
                *scale = 1.0 / (square + norm.eps).sqrt();
            }
        }
    }

    /// One head of one row, ready to meet the other side. `scales` is what [`Preparation::scales`] gave.
    pub(crate) fn head(
        &self,
        side: Side,
        qkv: &[f32],
        scales: &[f32],
        row: usize,
        head: usize,
        out: &mut [f32],
    ) {
        let (start, _) = self.side(side);
        let from = &qkv[row * self.width() + start + head * self.head_size..][..self.head_size];
        match (self.norm, self.whole()) {
            (_, Some(norm)) => {
                let gain = &norm.gains[side as usize][head * self.head_size..][..self.head_size];
                let scale = scales[2 * row + side as usize];
                for ((out, value), gain) in out.iter_mut().zip(from).zip(gain) {
                    *out = value * scale * gain;
                }
            }
            (Some(norm), None) => {
                (self.simd.rms_norm)(from, norm.gains[side as usize], norm.eps, out);
            }
            (None, _) => out.copy_from_slice(from),
        }
        if !self.angles.is_empty() {
            turn(out, &self.angles[row * self.head_size..][..self.head_size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotary::angles;

    #[test]
    fn a_turned_head_keeps_its_length_and_its_product_depends_on_the_distance() {
        let frequencies = [1.0, 0.1];
        let mut table = vec![0.0; 4 * 40];
        angles(&frequencies, 0, &mut table);
        let turned = |head: [f32; 4], position: usize| {
            let mut head = head;
            turn(&mut head, &table[4 * position..][..4]);
            head.map(f64::from)
        };
        let (query, key) = ([0.3, -1.0, 0.7, 0.2], [1.1, 0.4, -0.6, 0.9]);
        let product = |q: [f64; 4], k: [f64; 4]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
        assert_eq!(turned(query, 0), query.map(f64::from));
        for distance in [0, 1, 5] {
            let here = product(turned(query, 7 + distance), turned(key, 7));
            let there = product(turned(query, 30 + distance), turned(key, 30));
            assert!((here - there).abs() < 1e-5, "{here} {there}");
        }
        let far = turned(query, 33);
        assert!((product(far, far) - product(query.map(f64::from), query.map(f64::from))).abs() < 1e-5);
    }
}
