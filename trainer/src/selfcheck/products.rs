//! Cases of the affine map.

use super::compare::{Allowance, Kept};
use super::rows::{linear_allowances, of_sizes};
use super::subject::{Subject, config, drawn, floats, read, read_floats, sizes, unwritten, values};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Write};
use formats::Result;
use formats::config::Config;

#[derive(Clone)]
struct Mapped {
    rows: usize,
    subject: Subject,
    x: Vec<f32>,
    d_out: Vec<f32>,
    d_x: Vec<f32>,
    write: Write,
}

impl Case for Mapped {
    const NAME: &'static str = "linear";

    fn shape(&self) -> String {
        let map = self.subject.up();
        let (bias, write) = (map.bias.is_some(), self.write);
        format!("{} rows, {} to {}, bias {bias}, {write:?}", self.rows, map.inputs, map.outputs)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (params, map) = (self.subject.params(backend)?, self.subject.up());
        let x = values(backend, &self.x)?;
        let mut out = unwritten(backend, self.d_out.len())?;
        backend.linear(self.rows, &x, &map, &params, &mut out);
        let mut grads = floats(backend, &self.subject.grads)?;
        let (d_out, mut d_x) = (values(backend, &self.d_out)?, values(backend, &self.d_x)?);
        let to = (&mut d_x, self.write);
        let mut scratch = self.subject.scratch(backend, self.rows, 1)?;
        backend.linear_backward(self.rows, &x, &map, &params, &d_out, to, &mut grads, &mut scratch);
        Ok(vec![
            Found::new("forward", read(backend, &out, self.d_out.len())?),
            Found::new("d_x", read(backend, &d_x, self.x.len())?),
            Found::new("d_weight, d_bias", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let map = self.subject.up();
        let sized = Mapped {
            subject: self.subject.sizes(),
            x: sizes(&self.x),
            d_out: sizes(&self.d_out),
            d_x: sizes(&self.d_x),
            ..self.clone()
        };
        let kinds = [(map.inputs, Kept::Value), (map.outputs, Kept::Value), (self.rows, Kept::Float)];
        Ok(linear_allowances(of_sizes(&sized, reference)?, &kinds))
    }
}

/// Rows, inputs and outputs: smaller than a tile, around one, several with a rest, and a model's own.
const SHAPES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 2, 3],
    [3, 5, 7],
    [5, 7, 11],
    [7, 8, 9],
    [6, 16, 17],
    [13, 31, 33],
    [17, 33, 29],
    [33, 12, 31],
    [16, 64, 64],
    [31, 65, 127],
    [64, 64, 192],
    [65, 128, 64],
    [128, 97, 129],
    [127, 256, 65],
    [192, 384, 131],
    [257, 96, 257],
    [128, 768, 256],
    // Enough tiles of every product for the largest cards, once each.
    [1500, 40, 1600],
    [1600, 1500, 33],
    [17, 1530, 1601],
];
const FEW_SHAPES: &[[usize; 3]] =
    &[[1, 1, 1], [3, 5, 7], [17, 33, 29], [16, 64, 64], [257, 130, 9], [33, 40, 65]];

pub(super) fn linears<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(SHAPES, FEW_SHAPES).to_vec();
    for (index, [rows, width, feed_forward]) in shapes.into_iter().enumerate() {
        let config = Config { feed_forward, feed_forward_bias: index % 3 != 2, ..config(width) };
        let write = if index % 2 == 0 { Write::Set } else { Write::Accumulate };
        suite.check(&Mapped {
            rows,
            subject: Subject::new(config, suite.rounding, 100 + index as u64),
            x: drawn(suite.rounding, rows * width, 120 + index as u64),
            d_out: drawn(suite.rounding, rows * feed_forward, 140 + index as u64),
            d_x: match write {
                Write::Set => vec![f32::NAN; rows * width],
                Write::Accumulate => drawn(suite.rounding, rows * width, 160 + index as u64),
            },
            write,
        })?;
    }
    Ok(())
}
