//! The nonlinearity on a device.

use super::Hidden;
use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::dropout::Mask;
use crate::ops::dropout::cuda::factors;
use crate::ops::octets::{self, THREADS};
use formats::config::Activation;

/// See [`super::forward`]; `clock` is the device's.
pub fn forward(device: &Device, s: Hidden, x: View<'_>, (mask, clock): (Mask, View<'_>), out: ViewMut<'_>) {
    let kernel = match s.kind {
        Activation::Relu => "relu_forward",
        Activation::GeluErf => "gelu_erf_forward",
        Activation::GeluTanh => "gelu_tanh_forward",
        Activation::SwiGlu => "swiglu_forward",
    };
    let m = factors(mask);
    let (rows, width) = shape(s, out.len(), mask);
    launch!(
        device,
        kernel,
        Grid::line(octets::blocks(rows, width), THREADS),
        x,
        out,
        rows,
        width,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
}

/// See [`super::backward`].
pub fn backward(
    device: &Device,
    s: Hidden,
    x: View<'_>,
    (mask, clock): (Mask, View<'_>),
    d_out: Option<View<'_>>,
    d_x: ViewMut<'_>,
) {
    let kernel = match s.kind {
        Activation::Relu => "relu_backward",
        Activation::GeluErf => "gelu_erf_backward",
        Activation::GeluTanh => "gelu_tanh_backward",
        Activation::SwiGlu => "swiglu_backward",
    };
    let m = factors(mask);
    let (rows, width) = shape(s, d_x.len() / s.kind.inputs(1), mask);
    launch!(
        device,
        kernel,
        Grid::line(octets::blocks(rows, width), THREADS),
        x,
        d_out,
        d_x,
        rows,
        width,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
}

/// A nonlinearity that goes value by value, as the kernels that end in one are told.
pub fn number(kind: Activation) -> u32 {
    match kind {
        Activation::Relu => 0,
        Activation::GeluErf => 1,
        Activation::GeluTanh => 2,
        Activation::SwiGlu => unreachable!("a gate takes two values"),
    }
}

/// Rows of the result; a mask and a gate tell them apart.
fn shape(s: Hidden, values: usize, mask: Mask) -> (usize, usize) {
    octets::shape(values / s.width, values, mask.is_some() || s.kind == Activation::SwiGlu)
}
