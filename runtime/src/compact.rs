//! Matrices held in memory of the process's own for being decoded from, in fewer bits where they can be: see
//! [`crate::simd::compact`].
//!
//! What reads many rows at once, a prompt, is bound by arithmetic and goes on reading the weights as stored.

use crate::memory;
use crate::model::{Shared, is_looked_up};
use crate::simd::caches::last_level_caches;
use crate::simd::compact::{CompactProducts, GROUP, Half, LineCode, padding};
use crate::simd::{Origin, Simd};
use crate::team::Slots;
use formats::checkpoint::{Piece, Tensor, large_pages};
use formats::layout::ParameterId;
use formats::{Error, Result};
use memmap2::Mmap;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Lines have to leave one part of so many of what they took; a matrix that does not is not worth it.
const WORTH: usize = 20;
/// Least bytes that a race is run over, where a tensor has more; and caches' sizes that it should not fit into.
const RACE_BYTES: usize = 64 << 20;
const RACE_CACHES: usize = 2;
/// Times that either side runs.
const ROUNDS: usize = 11;
/// What fewer bits may take of the time of the others' and still be chosen: memory that is fast now may be slow later, and then
/// they are ahead by more.
const TIE: f64 = 1.05;

/// The numbers of one tensor, line by line in fewer bits.
pub(crate) struct Compact {
    bytes: Mmap,
    /// Numbers of a line.
    columns: usize,
    /// Where its lines begin.
    starts: Vec<usize>,
    /// Where the last one ends.
    end: usize,
    products: CompactProducts,
}

impl Compact {
    /// Of one piece of a parameter; `None` if it would not be much shorter, or could not be read fast.
    fn new(simd: &Simd, piece: &Piece<'_>, columns: usize) -> Result<Option<Compact>> {
        let columns = line_length(piece, columns);
        match piece.values {
            Tensor::F32(_) => Ok(None),
            Tensor::F16(values) => Compact::of(simd, values, columns),
            Tensor::Bf16(values) => Compact::of(simd, values, columns),
        }
    }

    fn of<T: Half>(simd: &Simd, values: &[T], columns: usize) -> Result<Option<Compact>> {
        let Some(products) = simd.compact_products::<T>().filter(|_| columns.is_multiple_of(GROUP)) else {
            return Ok(None);
        };
        let lines = values.chunks_exact(columns);
        let (mut codes, mut starts) = (Vec::with_capacity(lines.len()), Vec::with_capacity(lines.len()));
        let mut end = 0;
        for line in lines.clone() {
            let code = LineCode::of(line);
            starts.push(end);
            end += code.bytes;
            codes.push(code);
        }
        if end > size_of_val(values) / WORTH * (WORTH - 1) {
            return Ok(None);
        }
        let whole = end + padding(columns);
        let mut bytes = large_pages(whole).map_err(|_| refusal(whole as u64))?;
        let mut rest = &mut bytes[..];
        for (code, line) in codes.into_iter().zip(lines) {
            let (to, after) = rest.split_at_mut(code.bytes);
            code.write(simd, line, to);
            rest = after;
        }
        let bytes = bytes.make_read_only().map_err(|_| refusal(whole as u64))?;
        Ok(Some(Compact { bytes, columns, starts, end, products }))
    }

    /// Bytes that reading all of it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.end
    }

    /// `y = W x` for the lines from `first` on, a line an output.
    pub(crate) fn gemv(&self, first: usize, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), self.columns, "a line an output");
        (self.products.gemv)(&self.bytes, &self.starts[first..first + y.len()], x, y);
    }

    /// `y = x W` for the lines from `first` on, a line an input.
    pub(crate) fn gemv_rows(&self, first: usize, x: &[f32], y: &mut [f32]) {
        assert_eq!(y.len(), self.columns, "a line an input");
        (self.products.gemv_rows)(&self.bytes, &self.starts[first..first + x.len()], x, y);
    }
}

/// Numbers of a line of a piece, of a parameter with so many columns.
fn line_length(piece: &Piece<'_>, columns: usize) -> usize {
    if piece.inputs_first { piece.rows.len() } else { columns }
}

/// The pieces of one parameter, those of which that are held.
type Pieces = Vec<Option<Compact>>;

/// A model's matrices, those of which that are held.
#[derive(Default)]
pub(crate) struct Matrices {
    /// In the layout's order; nothing for a parameter of which no piece is held.
    parameters: Vec<Pieces>,
}

impl Matrices {
    /// Those that decoding reads whole and that get shorter, if this machine reads them faster so: where memory gives more than
    /// the threads unpack, it does not. Made by the model's threads, a parameter each at a time.
    pub(crate) fn new(model: &Shared) -> Result<Matrices> {
        model.start()?;
        if is_faster(model)? { Matrices::made(model) } else { Ok(Matrices::default()) }
    }

    /// The same, whether or not.
    fn made(model: &Shared) -> Result<Matrices> {
        let made: Vec<OnceLock<Pieces>> = model.layout.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        model.run(&mut Slots::default(), &AtomicBool::new(false), &|_| {
            while let Some((id, parameter)) = model.layout.iter().nth(next.fetch_add(1, Ordering::Relaxed)) {
                if !parameter.is_matrix() || is_looked_up(&model.layout, id) {
                    continue;
                }
                let pieces =
                    model.weights.pieces(id).map(|piece| Compact::new(model.simd, &piece, parameter.columns));
                let pieces: Pieces = pieces.collect::<Result<_>>()?;
                if pieces.iter().any(Option::is_some) {
                    made[id.index()].get_or_init(|| pieces);
                }
            }
            Ok(())
        })?;
        Ok(Matrices {
            parameters: made.into_iter().map(|made| made.into_inner().unwrap_or_default()).collect(),
        })
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.parameters.iter().all(Vec::is_empty)
    }

    /// A piece of a parameter, if it is held.
    pub(crate) fn piece(&self, id: ParameterId, index: usize) -> Option<&Compact> {
        self.parameters.get(id.index())?.get(index)?.as_ref()
    }
}

/// Whether this machine reads the largest tensor faster in fewer bits than as stored, both being in memory alike.
fn is_faster(model: &Shared) -> Result<bool> {
    let whole = model.layout.iter().filter(|(id, _)| !is_looked_up(&model.layout, *id));
    let pieces = whole.flat_map(|(id, parameter)| {
        model.weights.pieces(id).map(|piece| (line_length(&piece, parameter.columns), piece.values))
    });
    match pieces.max_by_key(|(_, values)| values.len()) {
        Some((columns, Tensor::F16(values))) => race(model, values, columns),
        Some((columns, Tensor::Bf16(values))) => race(model, values, columns),
        _ => Ok(false),
    }
}

/// The same of one tensor: by the median of how much longer one product takes than the other, all threads taking turns at both.
fn race<T: Half>(model: &Shared, values: &[T], columns: usize) -> Result<bool> {
    let (simd, go) = (model.simd, AtomicBool::new(false));
    let lines = RACE_BYTES.max(RACE_CACHES * last_level_caches()) / (columns * size_of::<T>());
    let lines = lines.clamp(1, values.len() / columns);
    let values = &values[..lines * columns];
    let Some(compact) = Compact::of(simd, values, columns)? else {
        return Ok(false);
    };
    let mut pages = large_pages(size_of_val(values)).map_err(|_| refusal(size_of_val(values) as u64))?;
    bytemuck::cast_slice_mut(&mut pages).copy_from_slice(T::bits(values));
    let stored = T::from_bits(bytemuck::cast_slice(&pages));
    let mut ratios = [0.0; ROUNDS];
    for ratio in &mut ratios {
        let mut times = [0.0; 2];
        for (way, time) in times.iter_mut().enumerate() {
            let begin = Instant::now();
            model.run(&mut Slots::default(), &go, &|member| {
                let edge = |index: usize| index * lines / model.threads();
                let mine = edge(member.index())..edge(member.index() + 1);
                let (x, mut y) = (memory::filled(columns, 0.0)?, memory::filled(mine.len(), 0.0)?);
                match way {
                    0 => compact.gemv(mine.start, &x, &mut y),
                    _ => T::gemv(simd)(
                        &stored[mine.start * columns..mine.end * columns],
                        Origin::Memory,
                        &x,
                        &mut y,
                    ),
                }
                black_box(y);
                Ok(())
            })?;
            *time = begin.elapsed().as_secs_f64();
        }
        *ratio = times[0] / times[1];
    }
    ratios.sort_unstable_by(f64::total_cmp);
    Ok(ratios[ROUNDS / 2] < TIE)
}

/// The error of a model that there is no memory to hold.
pub(crate) fn refusal(needed: u64) -> Error {
    Error::Memory {
        what: "a copy of the weights".into(),
        needed,
        available: memory::available().unwrap_or(0),
        help: "free memory, or leave the weights mapped".into(),
    }
}

#[cfg(test)]
mod tests;
