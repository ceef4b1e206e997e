//! `y = x W^T + b`: the member's columns of it.
//!
//! One row, or a few, are dot products with the weights as they are mapped, converted in registers. More rows are a
//! matrix product with panels: packed a group of columns at a time into the member's scratch, or, in a model so
//! small that its panels fit the processor's cache, once for good.

use crate::machine::FEW;
use crate::simd::product::{Operand, Product, Write};
use crate::simd::{PANEL, Simd, packed_len};
use crate::team::Part;
use formats::checkpoint::Tensor;
use std::ops::Range;

/// Columns that are packed and multiplied at once: the widest tile of any instruction set.
pub(crate) const GROUP: usize = 2 * PANEL;
/// Weight rows that a few vectors are multiplied with in turn: read from memory once, then from cache.
const BLOCK: usize = 16;

/// One projection of `rows` rows.
pub(crate) struct Projection<'a> {
    /// The routines in use.
    pub(crate) simd: &'a Simd,
    /// `[outputs, inputs]` as stored.
    pub(crate) weight: Tensor<'a>,
    /// The same in panels, if the model keeps it so.
    pub(crate) panels: Option<&'a [f32]>,
    /// One value an output.
    pub(crate) bias: Option<&'a [f32]>,
    /// Width of a row that goes in.
    pub(crate) inputs: usize,
    /// Rows that go in.
    pub(crate) rows: usize,
}

impl Projection<'_> {
    /// Computes the columns of `out` from `x` `[rows, inputs]`; the first row goes to row `to`. `panels` has room
    /// for [`GROUP`] packed columns, `block` for [`GROUP`] columns of the result.
    pub(crate) fn apply(
        &self,
        x: &[f32],
        out: &mut Part<'_, f32>,
        to: usize,
        panels: &mut [f32],
        block: &mut [f32],
    ) {
        if self.rows == 0 || out.columns().is_empty() {
            return;
        }
        if self.rows == 1 || (self.rows <= FEW && self.panels.is_none()) {
            self.vectors(x, out, to);
        } else {
            self.product(x, out, to, panels, block);
        }
    }

    fn vectors(&self, x: &[f32], out: &mut Part<'_, f32>, to: usize) {
        let columns = out.columns();
        let step = if self.rows == 1 { columns.len() } else { BLOCK };
        for start in columns.clone().step_by(step) {
            let these = start..columns.end.min(start + step);
            for (row, x) in x.chunks_exact(self.inputs).take(self.rows).enumerate() {
                let y = &mut out.row(to + row)[start - columns.start..][..these.len()];
                let weights = these.start * self.inputs..these.end * self.inputs;
                match self.weight {
                    Tensor::F32(weight) => (self.simd.gemv_f32)(&weight[weights], x, y),
                    Tensor::F16(weight) => (self.simd.gemv_f16)(&weight[weights], x, y),
                    Tensor::Bf16(weight) => (self.simd.gemv_bf16)(&weight[weights], x, y),
                }
                if let Some(bias) = self.bias {
                    (self.simd.add)(y, &bias[these.clone()]);
                }
            }
        }
    }

    fn product(&self, x: &[f32], out: &mut Part<'_, f32>, to: usize, scratch: &mut [f32], block: &mut [f32]) {
        let columns = out.columns();
        let alone = out.rest(to).is_some();
        let step = if alone && self.panels.is_some() { columns.len() } else { GROUP };
        for start in columns.clone().step_by(step) {
            let these = start..columns.end.min(start + step);
            // Cuts fall between panels, so a group begins with one.
            let panels = match self.panels {
                Some(panels) => &panels[start * self.inputs..][..packed_len(these.len(), self.inputs)],
                None => self.pack(these.clone(), scratch),
            };
            let product = |c_stride: usize, c: &mut [f32]| {
                let sizes = Product {
                    rows: self.rows,
                    inner: self.inputs,
                    columns: these.len(),
                    a_row_stride: self.inputs,
                    a_inner_stride: 1,
                    b: Operand::Panels,
                    c_stride,
                    write: Write::Set,
                };
                (self.simd.product)(&sizes, x, panels, self.bias.map(|bias| &bias[these.clone()]), c);
            };
            match out.rest(to) {
                Some(out) => product(columns.len(), &mut out[start..]),
                // Between this member's columns lie others': the product goes through a block of its own.
                None => {
                    product(these.len(), block);
                    for (row, y) in block.chunks_exact(these.len()).take(self.rows).enumerate() {
                        out.row(to + row)[start - columns.start..][..these.len()].copy_from_slice(y);
                    }
                }
            }
        }
    }

    /// These columns in panels.
    fn pack<'a>(&self, columns: Range<usize>, scratch: &'a mut [f32]) -> &'a [f32] {
        let panels = &mut scratch[..packed_len(columns.len(), self.inputs)];
        pack(self.simd, self.weight, columns, self.inputs, panels);
        panels
    }
}

/// Some of a weight's outputs in panels.
pub(crate) fn pack(
    simd: &Simd,
    weight: Tensor<'_>,
    outputs: Range<usize>,
    inputs: usize,
    panels: &mut [f32],
) {
    let range = outputs.start * inputs..outputs.end * inputs;
    let outputs = outputs.len();
    match weight {
        Tensor::F32(weight) => (simd.pack_f32)(&weight[range], outputs, inputs, panels),
        Tensor::F16(weight) => (simd.pack_f16)(&weight[range], outputs, inputs, panels),
        Tensor::Bf16(weight) => (simd.pack_bf16)(&weight[range], outputs, inputs, panels),
    }
}
