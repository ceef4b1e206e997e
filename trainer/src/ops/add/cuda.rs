//! The residual connection on a device.

use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::dropout::Mask;
use crate::ops::dropout::cuda::factors;
use crate::ops::octets::{self, THREADS};
use runtime::simd::product::Write;

/// See [`super::forward`]; `clock` is the device's.
pub fn forward(
    device: &Device,
    rows: usize,
    stream: View<'_>,
    branch: View<'_>,
    (mask, clock): (Mask, View<'_>),
    out: ViewMut<'_>,
) {
    let m = factors(mask);
    let (rows, width) = octets::shape(rows, out.len(), mask.is_some());
    launch!(
        device,
        "add_forward",
        Grid::line(octets::blocks(rows, width), THREADS),
        stream,
        branch,
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
    rows: usize,
    d_out: View<'_>,
    (mask, clock): (Mask, View<'_>),
    (d, write): (ViewMut<'_>, Write),
) {
    let m = factors(mask);
    let (rows, width) = octets::shape(rows, d_out.len(), mask.is_some());
    launch!(
        device,
        "add_backward",
        Grid::line(octets::blocks(rows, width), THREADS),
        d_out,
        d,
        rows,
        width,
        write,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
}
