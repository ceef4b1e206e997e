//! Cases of the operations that take rows one by one: embedding, nonlinearities, residual connections, rotations.

use super::compare::{Allowance, Kept, differences};
use super::subject::{
    ADAM, STEP, Subject, at_step, config, drawn, floats, ids, indices, read, read_floats, sizes, unwritten,
    values, widened,
};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Embed, Write};
use crate::ops::activation::Hidden;
use crate::ops::attention::Heads;
use crate::ops::dropout::{Mask, Noise};
use crate::ops::rotary;
use crate::windows::Windows;
use formats::Result;
use formats::config::{Activation, Config, Position};

/// Widths around the ends of vectors, warps and blocks.
pub(super) const WIDTHS: &[usize] = &[
    1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 24, 29, 31, 32, 33, 64, 97, 128, 257, 384, 768,
    1021,
];
/// A few of them.
pub(super) const FEW_WIDTHS: &[usize] = &[1, 7, 16, 33, 64];
/// More than the threads of a block hold of a row at once.
pub(super) const WIDER_THAN_A_BLOCK: usize = 8209;
/// Numbers of rows, one taken after the other.
pub(super) const COUNTS: &[usize] = &[1, 2, 3, 5, 8, 13, 17, 33];

/// Roundings of a few sums and products, both sides' together.
pub(super) const FEW: u32 = 8;
/// Those of an exponential, a root or a distribution function on top.
pub(super) const ELEMENTARY: u32 = 48;

/// The mask of a site for rows that are not the batch's first.
pub(super) fn mask(probability: f32, width: usize) -> Mask {
    Noise::new(11, STEP, probability).at(5, 2, width)
}

/// The largest factor a mask has.
pub(super) fn most(probability: f32) -> f64 {
    1.0 / (1.0 - f64::from(probability))
}

/// Sizes of results of an operation that is linear in each of its inputs: the same operation on sizes.
pub(super) fn of_sizes<C: Case>(case: &C, reference: &Cpu) -> Result<Vec<Vec<f64>>> {
    Ok(case.carry_out(reference)?.iter().map(|found| widened(&found.numbers)).collect())
}

/// One allowance a result of a linear operation.
pub(super) fn linear_allowances(magnitudes: Vec<Vec<f64>>, kinds: &[(usize, Kept)]) -> Vec<Allowance> {
    let pairs = magnitudes.into_iter().zip(kinds);
    pairs
        .map(|(magnitude, &(sum, kept))| Allowance { magnitude, sum, steps: FEW, narrowed: 0, kept })
        .collect()
}

#[derive(Clone)]
struct Embedding {
    s: Embed,
    subject: Subject,
    ids: Vec<u32>,
    dropout: f32,
    d_out: Vec<f32>,
}

impl Case for Embedding {
    const NAME: &'static str = "embedding";

    fn shape(&self) -> String {
        let Config { vocabulary, position, .. } = self.subject.config;
        let Embed { rows, block, width } = self.s;
        format!(
            "{rows} rows of {width}, block {block}, vocabulary {vocabulary}, {position:?}, dropout {}",
            self.dropout
        )
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let params = self.subject.params(backend)?;
        let ids = indices(backend, &self.ids)?;
        let mask = mask(self.dropout, self.s.width);
        let mut out = unwritten(backend, self.d_out.len())?;
        let mut grads = floats(backend, &self.subject.grads)?;
        let d_out = values(backend, &self.d_out)?;
        let mut scratch = self.subject.scratch(backend, self.s.rows / self.s.block, self.s.block)?;
        at_step(backend, &ADAM, || {
            backend.embed(&self.s, Windows::Whole, &ids, &params, mask, &mut out);
            let layout = &params.layout;
            backend.embed_backward(&self.s, &ids, layout, mask, &d_out, &mut grads, &mut scratch);
        })?;
        Ok(vec![
            Found::new("forward", read(backend, &out, self.d_out.len())?),
            Found::new("d_tables", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let sizes = Embedding { subject: self.subject.sizes(), d_out: sizes(&self.d_out), ..self.clone() };
        let kinds = [(1, Kept::Value), (self.s.rows, Kept::Float)];
        Ok(linear_allowances(of_sizes(&sizes, reference)?, &kinds))
    }
}

pub(super) fn embeddings<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let widths = suite.choose(WIDTHS, FEW_WIDTHS).to_vec();
    for (index, width) in widths.into_iter().enumerate() {
        let block = COUNTS[index % COUNTS.len()];
        let rows = block * (1 + index % 3);
        let vocabulary = [2, 7, 65, 257][index % 4];
        let position = if index % 5 == 4 { Position::Rotary } else { Position::Learned };
        let config = Config { vocabulary, context: block + index % 2, position, ..config(width) };
        suite.check(&Embedding {
            s: Embed { rows, block, width },
            subject: Subject::new(config, suite.rounding, 10 + index as u64),
            ids: ids(rows, vocabulary, index as u64),
            // Only learned positions have a table; the mask is drawn with either.
            dropout: [0.0, 0.3][index % 2],
            d_out: drawn(suite.rounding, rows * width, 40 + index as u64),
        })?;
    }
    Ok(())
}

struct Activated {
    s: Hidden,
    rows: usize,
    dropout: f32,
    x: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case for Activated {
    const NAME: &'static str = "activation";

    fn shape(&self) -> String {
        format!("{} rows of {}, {:?}, dropout {}", self.rows, self.s.width, self.s.kind, self.dropout)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let mask = mask(self.dropout, self.s.width);
        let (x, d_out) = (values(backend, &self.x)?, values(backend, &self.d_out)?);
        let mut out = unwritten(backend, self.d_out.len())?;
        let mut d_x = unwritten(backend, self.x.len())?;
        let mut in_place = values(backend, &self.d_out)?;
        at_step(backend, &ADAM, || {
            backend.activation(self.s, &x, mask, &mut out);
            backend.activation_backward(self.s, &x, mask, Some(&d_out), &mut d_x);
            if !self.s.kind.gated() {
                backend.activation_backward(self.s, &x, mask, None, &mut in_place);
            }
        })?;
        let d_x = read(backend, &d_x, self.x.len())?;
        let in_place =
            if self.s.kind.gated() { d_x.clone() } else { read(backend, &in_place, self.x.len())? };
        Ok(vec![
            Found::new("forward", read(backend, &out, self.d_out.len())?),
            Found::marks("beside its own place", differences(in_place, d_x.clone())),
            Found::new("d_x", d_x),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let (width, factor) = (self.s.width, most(self.dropout));
        let (x, d_out) = (widened(&sizes(&self.x)), widened(&sizes(&self.d_out)));
        let (out, d_x): (Vec<f64>, Vec<f64>) = if self.s.kind.gated() {
            let rows = x.chunks(2 * width).zip(d_out.chunks(width));
            let mut d_x = vec![];
            let mut out = vec![];
            for (x, d) in rows {
                let (gate, up) = x.split_at(width);
                out.extend((0..width).map(|at| factor * gate[at] * up[at]));
                d_x.extend((0..width).map(|at| factor * d[at] * up[at] * (1.0 + gate[at])));
                d_x.extend((0..width).map(|at| factor * d[at] * gate[at]));
            }
            (out, d_x)
        } else {
            // The derivative is a distribution function and x times its density.
            let slopes = x.iter().zip(&d_out).map(|(x, d)| factor * d * (1.0 + x));
            (x.iter().map(|x| factor * x).collect(), slopes.collect())
        };
        let allowance =
            |magnitude| Allowance { magnitude, sum: 1, steps: ELEMENTARY, narrowed: 0, kept: Kept::Value };
        Ok(vec![allowance(out), Allowance::none(self.x.len()), allowance(d_x)])
    }
}

pub(super) fn activations<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let widths = suite.choose(WIDTHS, FEW_WIDTHS).to_vec();
    let kinds = [Activation::Relu, Activation::GeluErf, Activation::GeluTanh, Activation::SwiGlu];
    for (index, width) in widths.into_iter().enumerate() {
        for (number, kind) in kinds.into_iter().enumerate() {
            if suite.quick() && (index + number) % 2 == 1 {
                continue;
            }
            let rows = COUNTS[(index + number) % COUNTS.len()];
            let x = drawn(suite.rounding, rows * kind.inputs(width), 20 + index as u64);
            suite.check(&Activated {
                s: Hidden { kind, width },
                rows,
                dropout: [0.0, 0.4][(index + number / 2) % 2],
                x: x.iter().map(|x| suite.rounding.of(4.0 * x)).collect(),
                d_out: drawn(suite.rounding, rows * width, 30 + index as u64),
            })?;
        }
    }
    Ok(())
}

#[derive(Clone)]
struct Residual {
    rows: usize,
    width: usize,
    dropout: f32,
    /// Stream, branch, cotangent, and the gradients before theirs are added.
    inputs: [Vec<f32>; 5],
    writes: [Write; 2],
}

impl Case for Residual {
    const NAME: &'static str = "add";

    fn shape(&self) -> String {
        format!("{} rows of {}, dropout {}, {:?}", self.rows, self.width, self.dropout, self.writes)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let len = self.rows * self.width;
        let mask = mask(self.dropout, self.width);
        let [stream, branch, d_out, d_stream, d_branch] = &self.inputs;
        let (stream, branch) = (values(backend, stream)?, values(backend, branch)?);
        let mut out = unwritten(backend, len)?;
        let d_out = values(backend, d_out)?;
        let (mut d_stream, mut d_branch) = (values(backend, d_stream)?, values(backend, d_branch)?);
        at_step(backend, &ADAM, || {
            backend.add(self.rows, &stream, &branch, mask, &mut out);
            backend.add_backward(self.rows, &d_out, None, (&mut d_stream, self.writes[0]));
            backend.add_backward(self.rows, &d_out, mask, (&mut d_branch, self.writes[1]));
        })?;
        Ok(vec![
            Found::new("forward", read(backend, &out, len)?),
            Found::new("d_stream", read(backend, &d_stream, len)?),
            Found::new("d_branch", read(backend, &d_branch, len)?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let sized = Residual { inputs: self.inputs.clone().map(|input| sizes(&input)), ..self.clone() };
        Ok(linear_allowances(of_sizes(&sized, reference)?, &[(1, Kept::Value); 3]))
    }
}

pub(super) fn residuals<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let widths = suite.choose(WIDTHS, FEW_WIDTHS).to_vec();
    for (index, width) in widths.into_iter().enumerate() {
        let rows = COUNTS[index % COUNTS.len()];
        let write = |add: bool| if add { Write::Accumulate } else { Write::Set };
        suite.check(&Residual {
            rows,
            width,
            dropout: [0.0, 0.25, 0.5][index % 3],
            inputs: [1, 2, 3, 4, 5].map(|seed| drawn(suite.rounding, rows * width, seed + index as u64)),
            writes: [write(index % 2 == 0), write(index % 4 < 2)],
        })?;
    }
    Ok(())
}

/// Heads, of which so many with keys, and their size; blocks and windows follow from the place in the list.
pub(super) const HEADS: &[[usize; 3]] = &[
    [1, 1, 8],
    [2, 1, 6],
    [3, 3, 17],
    [4, 2, 9],
    [6, 2, 16],
    [5, 1, 32],
    [4, 4, 64],
    [2, 1, 128],
    [1, 1, 1],
];
pub(super) const FEW_HEADS: &[[usize; 3]] = &[[2, 1, 6], [3, 3, 17], [2, 2, 32]];

struct Rotated {
    s: Heads,
    table: Vec<f32>,
    x: Vec<f32>,
}

impl Case for Rotated {
    const NAME: &'static str = "rotary";

    fn shape(&self) -> String {
        let Heads { heads, kv_heads, size, block, .. } = self.s;
        format!("{} rows of {heads} heads, {kv_heads} with keys, of {size}, block {block}", self.s.rows())
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (x, table) = (values(backend, &self.x)?, floats(backend, &self.table)?);
        let turned = |backwards| {
            let mut to = unwritten(backend, self.x.len())?;
            backend.rotate(&self.s, &table, backwards, &x, &mut to);
            read(backend, &to, self.x.len())
        };
        Ok(vec![Found::new("forward", turned(false)?), Found::new("backward", turned(true)?)])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        // A pair is one element of each half of a head; values pass.
        let (half, x) = (self.s.size / 2, widened(&sizes(&self.x)));
        let magnitude: Vec<f64> = (0..x.len())
            .map(|at| {
                let place = at % self.s.size;
                if place >= 2 * half {
                    return x[at];
                }
                x[at] + if place < half { x[at + half] } else { x[at - half] }
            })
            .collect();
        let allowance = Allowance { magnitude, sum: 2, steps: FEW, narrowed: 0, kept: Kept::Value };
        Ok(vec![allowance.clone(), allowance])
    }
}

pub(super) fn rotations<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(HEADS, FEW_HEADS).iter().filter(|[.., size]| size % 2 == 0).copied();
    for (index, [heads, kv_heads, size]) in shapes.collect::<Vec<_>>().into_iter().enumerate() {
        let block = COUNTS[(index + 3) % COUNTS.len()];
        let s = Heads { sequences: 1 + index % 3, block, heads, kv_heads, size, scale: 1.0 };
        let config = Config { position: Position::Rotary, head_size: size, ..config(4) };
        suite.check(&Rotated {
            s,
            table: rotary::table(&config, block),
            x: drawn(suite.rounding, s.rows() * s.row(), 80 + index as u64),
        })?;
    }
    Ok(())
}
