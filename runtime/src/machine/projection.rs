//! Products of some rows with a parameter, wherever its rows are stored.
//!
//! Few rows multiply the weights as they stand, one by one; many widen a block of weights once and use it for all.
//! The weights of a small model are widened when it is opened, and then serve one row as they serve many, so that its
//! logits do not depend on how its prompt was cut: the product sums in one order whatever the rows beside it.
//!
//! Some families store a line an input, not a line an output. Few rows multiply such weights line by line where they
//! stand, see [`super::lines`].

use super::board::Scratch;
use super::lines::SEGMENTS;
use super::{BLOCK, FEW_ROWS};
use crate::compact::Compact;
use crate::model::Shared;
use crate::simd::product::{Epilogue, Operand, Product, Write};
use crate::simd::{PANEL, Simd, packed_len};
use crate::team::{Cancelled, Part};
use formats::Result;
use formats::checkpoint::{Piece, Tensor};
use formats::config::Activation;
use formats::layout::{Linear, ParameterId, Role};
use std::ops::Range;

/// A projection, with the nonlinearity that follows it if it leads into a hidden layer: that is applied while its
/// results are at hand, and a gate's half of them meets the other half before either is shared.
#[derive(Clone, Copy)]
pub(super) struct Projection<'a> {
    /// What is multiplied with the nonlinearity's result, if that is a gate.
    passing: Option<Matrix<'a>>,
    matrix: Matrix<'a>,
    activation: Option<Activation>,
    inputs: usize,
}

impl<'a> Projection<'a> {
    pub(super) fn new(model: &'a Shared, linear: &Linear) -> Projection<'a> {
        let hidden = matches!(model.layout.parameter(linear.weight).role, Role::Up(_));
        let activation = hidden.then_some(model.config.activation);
        let gated = activation.is_some_and(Activation::gated);
        let outputs = if gated { linear.outputs / 2 } else { linear.outputs };
        let packed = packed_len(outputs, linear.inputs);
        let matrix = |half: usize| Matrix {
            model,
            weight: linear.weight,
            skipped: half * outputs,
            inputs: linear.inputs,
            outputs,
            packed: model.packed(linear.weight).map(|panels| &panels[half * packed..][..packed]),
            bias: linear.bias.map(|id| &model.vector(id)[half * outputs..][..outputs]),
        };
        Projection { passing: gated.then(|| matrix(1)), matrix: matrix(0), activation, inputs: linear.inputs }
    }

    /// Outputs `first..first + count` of each of the rows `x` `[rows, inputs]`, into rows that lie `stride` apart.
    pub(super) fn block(
        &self,
        x: &[f32],
        outputs: Range<usize>,
        panels: &mut [f32],
        passing: &mut [f32],
        out: &mut [f32],
        stride: usize,
    ) {
        let (rows, count) = (x.len() / self.inputs, outputs.len());
        self.matrix.multiply(x, outputs.clone(), panels, out, stride);
        let Some(activation) = self.activation else { return };
        if let Some(matrix) = &self.passing {
            matrix.multiply(x, outputs, panels, &mut passing[..rows * count], count);
        }
        for row in 0..rows {
            let passing = if self.passing.is_some() { &passing[row * count..] } else { &[] };
            self.activate(activation, &mut out[row * stride..][..count], passing);
        }
    }

    fn activate(&self, activation: Activation, out: &mut [f32], passing: &[f32]) {
        let simd = self.matrix.model.simd;
        match activation {
            Activation::Relu => (simd.relu)(out),
            Activation::GeluErf => (simd.gelu_erf)(out),
            Activation::GeluTanh => (simd.gelu_tanh)(out),
            Activation::SwiGlu => (simd.swiglu)(out, &passing[..out.len()]),
        }
    }

    /// Whether so many rows are multiplied line by line, a line an input: by [`Projection::stretch`] for each stretch
    /// of inputs, then [`Projection::gather`].
    pub(super) fn walks_inputs(&self, rows: usize) -> bool {
        rows <= FEW_ROWS && self.passing.is_none() && self.matrix.model.walks_inputs(self.matrix.weight)
    }

    /// The table of routines in use.
    pub(super) fn simd(&self) -> &'static Simd {
        self.matrix.model.simd
    }

    /// Number of outputs.
    pub(super) fn outputs(&self) -> usize {
        self.matrix.outputs
    }

    /// The inputs of one stretch.
    pub(super) fn inputs(&self, segment: usize) -> Range<usize> {
        let edge = |segment: usize| segment * self.inputs / SEGMENTS;
        edge(segment)..edge(segment + 1)
    }

    /// What one stretch of the inputs, whose values are `x`, adds to every output.
    pub(super) fn stretch(&self, x: &[f32], segment: usize, out: &mut [f32]) {
        let inputs = self.inputs(segment);
        let Matrix { model, weight, outputs, .. } = self.matrix;
        for part in parts(model, weight, 0..outputs, self.inputs) {
            walk(model, &part, inputs.start, x, &mut out[part.rows.clone()]);
        }
    }

    /// The outputs `columns` of a row from the results of its stretches, rows that lie `stride` apart, where every
    /// `folded` of them have been added into their first.
    pub(super) fn gather(
        &self,
        results: &[f32],
        stride: usize,
        folded: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let simd = self.matrix.model.simd;
        let out = &mut out[..columns.len()];
        match self.matrix.bias {
            Some(bias) => out.copy_from_slice(&bias[columns.clone()]),
            None => out.fill(0.0),
        }
        (simd.add_tree)(&results[columns.start..], folded * stride, SEGMENTS / folded, out);
        if let Some(activation) = self.activation {
            self.activate(activation, out, &[]);
        }
    }

    /// Outputs that are computed at once: one row's weights, and packed ones, go by as one stream as far as there is room for
    /// what passes a gate; many rows' are widened a block at a time.
    pub(super) fn span(&self, rows: usize, scratch: &Scratch) -> usize {
        match (rows == 1 || self.matrix.packed.is_some(), self.passing) {
            (true, Some(_)) => (scratch.passing.len() / rows / PANEL * PANEL).max(BLOCK),
            (true, None) => self.matrix.outputs,
            (false, _) => BLOCK,
        }
    }

    /// All of the member's columns of each of the rows `x` `[rows, inputs]`, into the rows of `out` from `to` on.
    pub(super) fn write(
        &self,
        x: &[f32],
        out: &mut Part<f32>,
        to: usize,
        scratch: &mut Scratch,
        cancelled: Cancelled<'_>,
    ) -> Result<()> {
        let rows = x.len() / self.inputs;
        let in_place = rows == 1 || out.rest(to).is_some();
        let (span, columns) = (if in_place { self.span(rows, scratch) } else { BLOCK }, out.columns());
        let Scratch { panels, block, passing } = scratch;
        for first in columns.clone().step_by(span) {
            cancelled.check()?;
            let count = span.min(columns.end - first);
            let (outputs, start) = (first..first + count, first - columns.start);
            if rows == 1 {
                let out = &mut out.row(to)[start..][..count];
                self.block(x, outputs, panels, passing, out, count);
            } else if let Some(out) = out.rest(to) {
                self.block(x, outputs, panels, passing, &mut out[first..], columns.len());
            } else {
                // One of several threads' columns of a shared buffer are not one slice.
                let block = &mut block[..rows * count];
                self.block(x, outputs, panels, passing, block, count);
                for (row, block) in block.chunks_exact(count).enumerate() {
                    out.row(to + row)[start..][..count].copy_from_slice(block);
                }
            }
        }
        Ok(())
    }
}

/// `x W^T + b` for some rows of a parameter.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    model: &'a Shared,
    weight: ParameterId,
    /// The parameter's rows before the first output.
    skipped: usize,
    inputs: usize,
    outputs: usize,
    /// All outputs packed, where the model keeps them so.
    packed: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl Matrix<'_> {
    fn multiply(&self, x: &[f32], outputs: Range<usize>, panels: &mut [f32], out: &mut [f32], stride: usize) {
        let rows = x.len() / self.inputs;
        if rows <= FEW_ROWS && !self.model.small {
            for (row, x) in x.chunks_exact(self.inputs).enumerate() {
                each_output(
                    self.model,
                    self.weight,
                    self.skipped + outputs.start,
                    x,
                    &mut out[row * stride..][..outputs.len()],
                );
                if let Some(bias) = self.bias {
                    (self.model.simd.add)(&mut out[row * stride..][..outputs.len()], &bias[outputs.clone()]);
                }
            }
            return;
        }
        if let Some(packed) = self.packed {
            // Blocks begin on whole panels.
            let panels = &packed[outputs.start * self.inputs..][..packed_len(outputs.len(), self.inputs)];
            return self.product(x, panels, outputs, out, stride);
        }
        let simd = self.model.simd;
        let wanted = self.skipped + outputs.start..self.skipped + outputs.end;
        for part in parts(self.model, self.weight, wanted.clone(), self.inputs) {
            let count = part.rows.len();
            let panels = &mut panels[..packed_len(count, self.inputs)];
            let sizes = [count, self.inputs, part.stride];
            match (part.values, part.inputs_first) {
                (Tensor::F32(values), false) => (simd.pack_f32)(values, count, self.inputs, panels),
                (Tensor::F16(values), false) => (simd.pack_f16)(values, count, self.inputs, panels),
                (Tensor::Bf16(values), false) => (simd.pack_bf16)(values, count, self.inputs, panels),
                (Tensor::F32(values), true) => (simd.pack_rows_f32)(values, sizes, panels),
                (Tensor::F16(values), true) => (simd.pack_rows_f16)(values, sizes, panels),
                (Tensor::Bf16(values), true) => (simd.pack_rows_bf16)(values, sizes, panels),
            }
            let at = part.rows.start - wanted.start;
            let outputs = outputs.start + at..outputs.start + at + count;
            self.product(x, panels, outputs, &mut out[at..], stride);
        }
    }

    fn product(&self, x: &[f32], panels: &[f32], outputs: Range<usize>, out: &mut [f32], stride: usize) {
        let sizes = Product {
            rows: x.len() / self.inputs,
            inner: self.inputs,
            columns: outputs.len(),
            a_row_stride: self.inputs,
            a_inner_stride: 1,
            b: Operand::Panels,
            c_stride: stride,
            write: Write::Set,
        };
        let epilogue = Epilogue::of(self.bias.map(|bias| &bias[outputs]));
        (self.model.simd.product)(&sizes, x, panels, epilogue, out);
    }
}

/// The products of one row with a parameter's rows from `first` on, one by one.
pub(super) fn each_output(model: &Shared, weight: ParameterId, first: usize, x: &[f32], out: &mut [f32]) {
    let (simd, origin) = (model.simd, model.origin);
    for part in parts(model, weight, first..first + out.len(), x.len()) {
        let out = &mut out[part.rows.start - first..part.rows.end - first];
        match (part.compact, part.values, part.inputs_first) {
            (_, _, true) => walk(model, &part, 0, x, out),
            (Some((compact, line)), _, false) => compact.gemv(line, x, out),
            (None, Tensor::F32(values), false) => (simd.gemv_f32)(values, origin, x, out),
            (None, Tensor::F16(values), false) => (simd.gemv_f16)(values, origin, x, out),
            (None, Tensor::Bf16(values), false) => (simd.gemv_bf16)(values, origin, x, out),
        }
    }
}

/// `x W` for the first `out.len()` columns of a part's lines from `first` on.
fn walk(model: &Shared, part: &Stretch<'_>, first: usize, x: &[f32], out: &mut [f32]) {
    let (simd, origin, stride) = (model.simd, model.origin, part.stride);
    if let Some((compact, line)) = part.compact {
        return compact.gemv_rows(line + first, x, out);
    }
    match part.values.part(first * stride..part.values.len()) {
        Tensor::F32(values) => (simd.gemv_rows_f32)(values, stride, origin, x, out),
        Tensor::F16(values) => (simd.gemv_rows_f16)(values, stride, origin, x, out),
        Tensor::Bf16(values) => (simd.gemv_rows_bf16)(values, stride, origin, x, out),
    }
}

/// Some of a parameter's rows that one tensor holds.
struct Stretch<'a> {
    rows: Range<usize>,
    /// Their numbers; with inputs first, from the first row's on.
    values: Tensor<'a>,
    inputs_first: bool,
    /// How far lines lie apart.
    stride: usize,
    /// The same in fewer bits, where they are held so and whole lines are wanted: the tensor's, and the first line.
    compact: Option<(&'a Compact, usize)>,
}

/// Where some of a parameter's rows are stored: those that each tensor holds.
fn parts(
    model: &Shared,
    weight: ParameterId,
    wanted: Range<usize>,
    inputs: usize,
) -> impl Iterator<Item = Stretch<'_>> {
    model.weights.pieces(weight).enumerate().filter_map(move |(index, piece)| {
        let Piece { rows: held, values, inputs_first } = piece;
        let rows = wanted.start.max(held.start)..wanted.end.min(held.end);
        if rows.is_empty() {
            return None;
        }
        let first = rows.start - held.start;
        let (range, stride) = match inputs_first {
            false => (first * inputs..(first + rows.len()) * inputs, inputs),
            true => (first..values.len(), held.len()),
        };
        let whole = !inputs_first || rows == held;
        let compact = model.compact.piece(weight, index).filter(|_| whole);
        let compact = compact.map(|compact| (compact, if inputs_first { 0 } else { first }));
        Some(Stretch { rows, values: values.part(range), inputs_first, stride, compact })
    })
}
