//! The products of the affine map on a GPU: which kernel multiplies, and over how many tiles.

use crate::device::{Device, Element, Epilogue, Factor, Grid, Precision, Product, View, ViewMut};
use crate::launch;
use crate::ops::activation::cuda::number;
use crate::ops::columns;
use formats::config::Activation;
use formats::layout::Linear;
use runtime::simd::product::Write;

/// Threads that multiply one tile.
pub const THREADS: u32 = 128;

/// One affine map over rows of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Width of a row of `x`.
    pub inputs: usize,
    /// Width of a row of `y`.
    pub outputs: usize,
    /// From one row of `y` to the next.
    pub out_stride: usize,
}

impl Shape {
    /// That of `linear` over rows that stand close together.
    pub fn of(linear: &Linear, rows: usize) -> Shape {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        Shape { rows, inputs, outputs, out_stride: outputs }
    }
}

/// A product's tile: rows and columns of the result that one block makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 by 128.
    Large,
    /// 64 by 64.
    Small,
}

impl Tile {
    /// The large tile where there are enough of them for the whole device. A sum's order does not depend on the tile,
    /// so neither does a byte of the result.
    pub fn of(device: &Device, rows: usize, columns: usize) -> Tile {
        let enough = Tile::Large.count(rows, columns) >= device.multiprocessors() as usize;
        if enough { Tile::Large } else { Tile::Small }
    }

    /// Rows of a tile, and columns.
    pub fn side(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Small => 64,
        }
    }

    /// Tiles of a whole result.
    pub fn count(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.side()) * columns.div_ceil(self.side())
    }

    /// Shared memory of a block, in bytes: the stages of both factors in flight, or the one in work.
    pub fn shared(self, precision: Precision) -> usize {
        match precision {
            Precision::Bf16 => 4 * 2 * self.side() * 32 * 2,
            Precision::F32 => (2 * self.side() + 8) * 16 * 4,
        }
    }

    /// Blocks for a whole result.
    pub fn grid(self, device: &Device, rows: usize, columns: usize) -> Grid {
        Grid::line(self.count(rows, columns), THREADS).with_shared(self.shared(device.precision()))
    }
}

/// A bias as it is kept.
#[derive(Clone, Copy)]
pub struct Bias<'a> {
    /// Among the master weights.
    pub floats: View<'a>,
    /// Among the working weights, which cuBLASLt adds; without, it leaves the product to our own kernel.
    pub values: Option<View<'a>>,
}

impl<'a> From<View<'a>> for Bias<'a> {
    fn from(floats: View<'a>) -> Bias<'a> {
        Bias { floats, values: None }
    }
}

impl<'a> Bias<'a> {
    /// As cuBLASLt adds it.
    fn of_products(&self, precision: Precision) -> Option<View<'a>> {
        match precision {
            Precision::Bf16 => self.values,
            Precision::F32 => Some(self.floats.cast(Element::Value)),
        }
    }
}

/// Oldest compute capability on which cuBLASLt's GELU is expected to pay: where llm.c would use it (`train_gpt2.cu`).
const EPILOGUE: (u32, u32) = (9, 0);

/// Whether a nonlinearity is left to cuBLASLt where it has it for a shape: its own GELU, where no more than bf16 is kept.
pub fn has_epilogue(device: &Device, kind: Activation) -> bool {
    let exact = device.precision() == Precision::F32 || kind != Activation::GeluTanh;
    device.has_blas() && !exact && device.capability() >= EPILOGUE
}

/// `y = x W^T + b`.
pub fn forward<'a>(
    device: &Device,
    s: &Shape,
    x: View<'_>,
    weight: View<'_>,
    bias: Option<impl Into<Bias<'a>>>,
    out: ViewMut<'_>,
) {
    let bias = bias.map(Into::into);
    let values = bias.map(|bias: Bias| bias.of_products(device.precision()));
    let mut product = outputs(s, x, weight, values.flatten(), out, Epilogue::None);
    if !matches!(values, Some(None)) && device.multiply(&mut product) {
        return;
    }
    launch_outputs(device, s, x, weight, bias, product.out, None);
}

/// `y = x W^T + b` to `hidden` and `f(y)` to `out`, see [`crate::ops::activation`]. Says whether it is done; where
/// cuBLASLt multiplies and has no such epilogue, it is not.
pub fn forward_activated(
    device: &Device,
    s: &Shape,
    x: View<'_>,
    weight: View<'_>,
    bias: Option<Bias<'_>>,
    kind: Activation,
    hidden: ViewMut<'_>,
    out: ViewMut<'_>,
) -> bool {
    if !device.has_blas() {
        launch_outputs(device, s, x, weight, bias, hidden, Some((kind, out)));
        return true;
    }
    let values = bias.map(|bias| bias.of_products(device.precision()));
    has_epilogue(device, kind)
        && !matches!(values, Some(None))
        && device.multiply(&mut outputs(s, x, weight, values.flatten(), out, Epilogue::Gelu(hidden)))
}

/// `y = x W^T + b` as cuBLASLt is asked for it.
fn outputs<'a>(
    s: &Shape,
    x: View<'a>,
    weight: View<'a>,
    bias: Option<View<'a>>,
    out: ViewMut<'a>,
    epilogue: Epilogue<'a>,
) -> Product<'a> {
    Product {
        rows: s.rows,
        columns: s.outputs,
        inner: s.inputs,
        a: Factor { values: x, stride: s.inputs, transposed: false },
        b: Factor { values: weight, stride: s.inputs, transposed: true },
        bias,
        out,
        stride: s.out_stride,
        write: Write::Set,
        epilogue,
    }
}

/// The same by our own kernel, and a nonlinearity of it where one is wanted.
fn launch_outputs(
    device: &Device,
    s: &Shape,
    x: View<'_>,
    weight: View<'_>,
    bias: Option<Bias<'_>>,
    out: ViewMut<'_>,
    activated: Option<(Activation, ViewMut<'_>)>,
) {
    let tile = Tile::of(device, s.rows, s.outputs);
    let name = match tile {
        Tile::Large => "product_outputs_large",
        Tile::Small => "product_outputs_small",
    };
    let (kind, activated) = activated.map(|(kind, to)| (number(kind), to)).unzip();
    launch!(
        device,
        name,
        tile.grid(device, s.rows, s.outputs),
        x,
        s.inputs,
        weight,
        s.inputs,
        bias.map(|bias| bias.floats),
        out,
        None::<ViewMut<'_>>,
        s.out_stride,
        s.rows,
        s.outputs,
        s.inputs,
        Write::Set,
        activated,
        kind.unwrap_or_default(),
    );
}

/// `d_x = d_y W`.
pub fn backward_input(
    device: &Device,
    s: &Shape,
    d_out: View<'_>,
    weight: View<'_>,
    (d_x, write): (ViewMut<'_>, Write),
) {
    let mut product = inputs(s, d_out, weight, (d_x, write), Epilogue::None);
    if !device.multiply(&mut product) {
        launch_inputs(device, s, d_out, weight, (product.out, write), None);
    }
}

/// `d_h = f'(h) d_y W` for `x = f(h)`, `hidden` is `h`. Says whether it is done, likewise.
pub fn backward_hidden(
    device: &Device,
    s: &Shape,
    d_out: View<'_>,
    weight: View<'_>,
    kind: Activation,
    hidden: View<'_>,
    d_hidden: ViewMut<'_>,
) -> bool {
    let d_hidden = (d_hidden, Write::Set);
    if !device.has_blas() {
        launch_inputs(device, s, d_out, weight, d_hidden, Some((kind, hidden)));
        return true;
    }
    has_epilogue(device, kind)
        && device.multiply(&mut inputs(s, d_out, weight, d_hidden, Epilogue::GeluSlope(hidden)))
}

/// `d_x = d_y W` as cuBLASLt is asked for it.
fn inputs<'a>(
    s: &Shape,
    d_out: View<'a>,
    weight: View<'a>,
    (d_x, write): (ViewMut<'a>, Write),
    epilogue: Epilogue<'a>,
) -> Product<'a> {
    Product {
        rows: s.rows,
        columns: s.inputs,
        inner: s.outputs,
        a: Factor { values: d_out, stride: s.out_stride, transposed: false },
        b: Factor { values: weight, stride: s.inputs, transposed: false },
        bias: None,
        out: d_x,
        stride: s.inputs,
        write,
        epilogue,
    }
}

/// The same by our own kernel, through a nonlinearity where one is before it.
fn launch_inputs(
    device: &Device,
    s: &Shape,
    d_out: View<'_>,
    weight: View<'_>,
    (d_x, write): (ViewMut<'_>, Write),
    before: Option<(Activation, View<'_>)>,
) {
    let tile = Tile::of(device, s.rows, s.inputs);
    let name = match tile {
        Tile::Large => "product_inputs_large",
        Tile::Small => "product_inputs_small",
    };
    let (kind, hidden) = before.map(|(kind, hidden)| (number(kind), hidden)).unzip();
    launch!(
        device,
        name,
        tile.grid(device, s.rows, s.inputs),
        d_out,
        s.out_stride,
        weight,
        s.inputs,
        None::<View<'_>>,
        d_x,
        None::<ViewMut<'_>>,
        s.inputs,
        s.rows,
        s.inputs,
        s.outputs,
        write,
        hidden,
        kind.unwrap_or_default(),
    );
}

/// `d_W += d_y^T x`; `d_weight` is f32.
pub fn backward_weight(device: &Device, s: &Shape, x: View<'_>, d_out: View<'_>, d_weight: ViewMut<'_>) {
    let mut product = Product {
        rows: s.outputs,
        columns: s.inputs,
        inner: s.rows,
        a: Factor { values: d_out, stride: s.out_stride, transposed: true },
        b: Factor { values: x, stride: s.inputs, transposed: false },
        bias: None,
        out: d_weight,
        stride: s.inputs,
        write: Write::Accumulate,
        epilogue: Epilogue::None,
    };
    if device.multiply(&mut product) {
        return;
    }
    let d_weight = product.out;
    let tile = Tile::of(device, s.outputs, s.inputs);
    let name = match tile {
        Tile::Large => "product_weights_large",
        Tile::Small => "product_weights_small",
    };
    launch!(
        device,
        name,
        tile.grid(device, s.outputs, s.inputs),
        d_out,
        s.out_stride,
        x,
        s.inputs,
        None::<View<'_>>,
        None::<ViewMut<'_>>,
        d_weight,
        s.inputs,
        s.outputs,
        s.inputs,
        s.rows,
        Write::Accumulate,
    );
}

/// Floats that [`backward`] and [`backward_parameters`] work in.
pub fn scratch(s: &Shape) -> usize {
    columns::cuda::scratch(s.rows, s.outputs)
}

/// All gradients of `y = x W^T + b`: of the input, and, added to, of `W` and `b`.
pub fn backward(
    device: &Device,
    s: &Shape,
    x: View<'_>,
    weight: View<'_>,
    d_out: View<'_>,
    d_x: (ViewMut<'_>, Write),
    d_weight: ViewMut<'_>,
    d_bias: Option<ViewMut<'_>>,
    scratch: ViewMut<'_>,
) {
    backward_input(device, s, d_out, weight, d_x);
    backward_parameters(device, s, x, d_out, d_weight, d_bias, scratch);
}

/// Those of `W` and `b`.
pub fn backward_parameters(
    device: &Device,
    s: &Shape,
    x: View<'_>,
    d_out: View<'_>,
    d_weight: ViewMut<'_>,
    d_bias: Option<ViewMut<'_>>,
    scratch: ViewMut<'_>,
) {
    backward_weight(device, s, x, d_out, d_weight);
    if let Some(d_bias) = d_bias {
        columns::cuda::add_sums(device, s.rows, s.outputs, s.out_stride, d_out, d_bias, scratch);
    }
}
