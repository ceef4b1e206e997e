//! Who carries out an operation: the thread that asks for it, or the whole crew, piece by piece.
//!
//! Small models run as shards side by side, and each operation is one thread's. Large ones run as one shard whose
//! operations are split in here: products by rows of the result, everything else by rows or windows. Pieces are cut by
//! the sizes alone, and no piece shares a sum with another, so that neither the cut nor the number of threads changes
//! a bit. Computes nothing itself.

use runtime::simd::product::{Epilogue, Operand, Product, Write};
use runtime::simd::{Aligned, PANEL, Simd};
use runtime::team::Crew;
use std::sync::MutexGuard;

/// Multiplications a product must have to be worth waking the crew for.
const PRODUCT: usize = 1 << 22;
/// Values an operation must make likewise.
const VALUES: usize = 1 << 16;
/// Pieces of an operation that goes row by row.
const PIECES: usize = 16;
/// Rows of a piece of a product: a long result is cut into blocks of the product's own, a short one into smaller
/// ones, so that the last piece keeps nobody waiting.
const LONG_PIECE: usize = 120;
const SHORT_PIECE: usize = 64;
/// Values of the second factor that all pieces read at once: they stay in the last-level cache.
const FACTOR: usize = 1 << 20;
/// Rows of a result for which its second factor is packed once for all; fewer do not repay the copy.
const PACKED_ROWS: usize = 128;
/// Panels that are packed at a time.
const PACKED_PANELS: usize = 4;
/// Columns after which a product may be cut: the widest tile of any instruction set.
const GROUP: usize = 2 * PANEL;

/// The threads, and the room in which they lay out a factor that all of them read.
pub struct Crowd {
    /// The threads.
    pub crew: Crew,
    panels: Aligned,
}

impl Crowd {
    /// These threads; the room is made when it is first needed.
    pub fn new(crew: Crew) -> Crowd {
        Crowd { crew, panels: Aligned::default() }
    }

    /// Bytes of the room.
    pub const BYTES: u64 = (FACTOR * size_of::<f32>()) as u64;

    /// Room for a packed factor, unless there is no memory for it.
    fn make_room(&mut self) -> bool {
        if self.panels.is_empty() {
            self.panels = Aligned::try_zeroed(FACTOR).unwrap_or_default();
        }
        !self.panels.is_empty()
    }
}

/// One thread or all.
pub struct Hands<'a> {
    /// The routines in use.
    pub simd: &'static Simd,
    crowd: Option<MutexGuard<'a, Crowd>>,
}

impl<'a> Hands<'a> {
    /// The thread that asks.
    pub fn alone(simd: &'static Simd) -> Hands<'a> {
        Hands { simd, crowd: None }
    }

    /// All of them.
    pub fn all(simd: &'static Simd, crowd: MutexGuard<'a, Crowd>) -> Hands<'a> {
        Hands { simd, crowd: Some(crowd) }
    }

    /// Whether an operation that makes so many values is split.
    pub fn split(&self, values: usize) -> bool {
        self.crowd.is_some() && values >= VALUES
    }

    /// Rows of one piece of an operation that makes `values` values in `rows` rows: all of them where it is not split.
    pub fn piece(&self, rows: usize, values: usize) -> usize {
        if self.split(values) { rows.div_ceil(PIECES) } else { rows }.max(1)
    }

    /// Does `work` for each piece, by whoever is free.
    pub fn deal<T: Send>(&mut self, pieces: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
        match &mut self.crowd {
            Some(crowd) => crowd.crew.deal(pieces, work),
            None => pieces.for_each(work),
        }
    }

    /// See [`Simd::product`].
    pub fn product(&mut self, p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>, c: &mut [f32]) {
        let (simd, nothing) = (self.simd, |_: usize, _: &[f32], _: &mut [f32]| {});
        let Some(crowd) = self.crowd_for(p) else { return (simd.product)(p, a, b, epilogue, c) };
        match p.b {
            Operand::Panels => self.product_then(p, a, b, epilogue, c, &mut [], nothing),
            Operand::Rows { stride } if p.rows >= PACKED_ROWS && crowd.make_room() => {
                let Crowd { crew, panels } = crowd;
                let width = p.columns.next_multiple_of(PANEL);
                let most = (FACTOR / width).max(1);
                let block = p.inner.div_ceil(p.inner.div_ceil(most));
                if block * width > panels.len() {
                    return pieces(crew, simd, p, a, b, epilogue, (c, &mut []), &nothing);
                }
                for first in (0..p.inner).step_by(block) {
                    let inner = block.min(p.inner - first);
                    let (from, panels) = (&b[first * stride..], &mut panels[..inner * width]);
                    let strips = panels.chunks_mut(PACKED_PANELS * inner * PANEL).enumerate();
                    crew.deal(strips, |(index, panels)| {
                        let column = index * PACKED_PANELS * PANEL;
                        let columns = (p.columns - column).min(PACKED_PANELS * PANEL);
                        (simd.pack_rows_f32)(&from[column..], [columns, inner, stride], panels);
                    });
                    let write = if first == 0 { p.write } else { Write::Accumulate };
                    let epilogue = Epilogue {
                        bias: epilogue.bias.filter(|_| first == 0),
                        residual: epilogue.residual.filter(|_| first + inner == p.inner),
                    };
                    let part = Product { inner, b: Operand::Panels, write, ..*p };
                    let a = &a[first * p.a_inner_stride..];
                    pieces(crew, simd, &part, a, panels, epilogue, (c, &mut []), &nothing);
                }
            }
            _ => pieces(&mut crowd.crew, simd, p, a, b, epilogue, (c, &mut []), &nothing),
        }
    }

    /// The product with packed panels, and `then` of each piece of it, of so many columns, while it is near: it makes the
    /// same piece of `out`, which lies as `c` does or is empty.
    pub fn product_then(
        &mut self,
        p: &Product,
        a: &[f32],
        panels: &[f32],
        epilogue: Epilogue<'_>,
        c: &mut [f32],
        out: &mut [f32],
        then: impl Fn(usize, &[f32], &mut [f32]) + Sync,
    ) {
        let simd = self.simd;
        let Some(crowd) = self.crowd_for(p) else {
            (simd.product)(p, a, panels, epilogue, c);
            return then(p.columns, c, out);
        };
        let block = (FACTOR / p.inner / GROUP).max(1) * GROUP;
        for first in (0..p.columns).step_by(block) {
            let columns = block.min(p.columns - first);
            let part = Product { columns, ..*p };
            let epilogue = Epilogue {
                bias: epilogue.bias.map(|bias| &bias[first..first + columns]),
                residual: epilogue.residual.map(|residual| &residual[first..]),
            };
            let to = (&mut c[first..], out.get_mut(first..).unwrap_or_default());
            pieces(&mut crowd.crew, simd, &part, a, &panels[first * p.inner..], epilogue, to, &then);
        }
    }

    /// All threads, if a product is worth waking them for.
    fn crowd_for(&mut self, p: &Product) -> Option<&mut Crowd> {
        let work = p.rows.saturating_mul(p.inner).saturating_mul(p.columns);
        self.crowd.as_deref_mut().filter(|_| work >= PRODUCT)
    }
}

/// A product by rows of its result, and what follows of each.
fn pieces(
    crew: &mut Crew,
    simd: &Simd,
    p: &Product,
    a: &[f32],
    b: &[f32],
    epilogue: Epilogue<'_>,
    (c, out): (&mut [f32], &mut [f32]),
    then: &(impl Fn(usize, &[f32], &mut [f32]) + Sync),
) {
    let piece = match p.rows {
        rows if rows >= PIECES * LONG_PIECE => LONG_PIECE,
        rows => (rows.div_ceil(PIECES / 2).next_multiple_of(8)).min(SHORT_PIECE),
    };
    let len = piece * p.c_stride;
    let mut out = out.chunks_mut(len);
    let parts = (0..p.rows).step_by(piece).zip(c.chunks_mut(len));
    let parts = parts.map(|(first, c)| (first, c, out.next().unwrap_or_default()));
    crew.deal(parts, |(first, c, out)| {
        let part = Product { rows: piece.min(p.rows - first), ..*p };
        let residual = epilogue.residual.map(|residual| &residual[first * p.c_stride..]);
        let epilogue = Epilogue { residual, ..epilogue };
        (simd.product)(&part, &a[first * p.a_row_stride..], b, epilogue, c);
        then(part.columns, c, out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::values;
    use runtime::simd::packed_len;
    use std::sync::Mutex;

    /// What one thread alone makes of a product, and what crews make of it.
    #[track_caller]
    fn same(p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>) {
        for simd in Simd::available().into_iter().filter(|simd| simd.name != "scalar") {
            let old = values(p.rows * p.c_stride, 9);
            let mut expected = old.clone();
            Hands::alone(simd).product(p, a, b, epilogue, &mut expected);
            for threads in 1..=3 {
                let crowd = Mutex::new(Crowd::new(Crew::new(threads).expect("threads")));
                let mut found = old.clone();
                Hands::all(simd, crowd.lock().expect("a new lock")).product(p, a, b, epilogue, &mut found);
                assert!(found == expected, "{p:?} by {threads} threads");
            }
        }
    }

    #[test]
    fn no_cut_of_a_product_changes_a_bit() {
        for (rows, inner, columns) in [(131, 257, 190), (64, 513, 160), (2000, 70, 45), (300, 40, 6000)] {
            assert!(rows * inner * columns >= PRODUCT, "a product that is not split proves nothing");
            let (a, bias) = (values(rows * inner, 1), values(columns, 2));
            let (b, mut panels) = (values(columns * inner, 3), vec![0.0; packed_len(columns, inner)]);
            (Simd::best().pack_f32)(&b, columns, inner, &mut panels);
            let p = Product {
                rows,
                inner,
                columns,
                a_row_stride: inner,
                a_inner_stride: 1,
                b: Operand::Panels,
                c_stride: columns + 3,
                write: Write::Set,
            };
            let residual = values(rows * p.c_stride, 4);
            let epilogues = [None, Some(&residual[..])]
                .map(|residual| [None, Some(&bias[..])].map(|bias| Epilogue { bias, residual }));
            epilogues.iter().flatten().for_each(|epilogue| same(&p, &a, &panels, *epilogue));
            same(&Product { write: Write::Accumulate, ..p }, &a, &panels, Epilogue::default());
            let turned = Product { a_row_stride: 1, a_inner_stride: rows, ..p };
            for p in [p, turned] {
                let p = Product { b: Operand::Rows { stride: columns }, ..p };
                epilogues.iter().flatten().for_each(|epilogue| same(&p, &a, &b, *epilogue));
                same(&Product { write: Write::Accumulate, ..p }, &a, &b, Epilogue::default());
            }
            same(&Product { b: Operand::Transposed { stride: inner }, ..p }, &a, &b, Epilogue::default());
        }
    }

    #[test]
    fn a_factor_longer_than_its_room_is_packed_block_by_block() {
        let (rows, inner, columns) = (129, 2500, 1000);
        assert!(inner * columns > 2 * FACTOR, "more than two blocks");
        let (a, b) = (values(rows * inner, 1), values(inner * columns, 2));
        let p = Product {
            rows,
            inner,
            columns,
            a_row_stride: inner,
            a_inner_stride: 1,
            b: Operand::Rows { stride: columns },
            c_stride: columns,
            write: Write::Set,
        };
        same(&p, &a, &b, Epilogue::default());
    }
}
