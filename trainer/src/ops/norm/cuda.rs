//! LayerNorm and RMSNorm on a device.

use crate::backend::Rows;
use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::columns;
use crate::ops::dropout::Mask;
use crate::ops::dropout::cuda::factors;
use formats::config::NormKind;
use runtime::simd::product::Write;

/// Threads of a forward block, a row a warp.
const THREADS: u32 = 256;
/// Rows of a forward block.
const ROWS: usize = 8;
/// Values of a row that a warp of the backward pass has.
const WARP: usize = 256;
/// Warps of a backward block, if a row's team is not larger.
const WARPS: usize = 8;
/// The largest team.
const MOST_WARPS: usize = 32;
/// The team of rows that the largest cannot hold at once.
const WIDE_WARPS: usize = 16;
/// Most blocks of the backward pass: each leaves sums to be added.
const BLOCKS: usize = 512;

/// Most blocks whose sums the last of them adds up: for more, [`columns`] is faster than a launch costs.
const FINISHED: usize = 32;

/// Where rows stand: `several` side by side from `offset` on in each row of `stride` values, their moments likewise.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Rows in one longer row.
    pub several: usize,
    /// Values of a longer row.
    pub stride: usize,
    /// Where in it the first begins.
    pub offset: usize,
    /// Moments of a longer row.
    pub moment_stride: usize,
    /// Where among them the first begins.
    pub moment_offset: usize,
}

impl Places {
    /// Rows by themselves.
    fn alone(s: &Rows) -> Places {
        Places { several: 1, stride: s.width, offset: 0, moment_stride: 2, moment_offset: 0 }
    }
}

/// See [`super::forward`].
pub fn forward(
    device: &Device,
    s: &Rows,
    x: View<'_>,
    gain: View<'_>,
    bias: Option<View<'_>>,
    out: ViewMut<'_>,
    moments: ViewMut<'_>,
) {
    forward_at(device, s, &Places::alone(s), x, gain, bias, out, moments);
}

/// The same of rows within longer ones.
pub fn forward_at(
    device: &Device,
    s: &Rows,
    at: &Places,
    x: View<'_>,
    gain: View<'_>,
    bias: Option<View<'_>>,
    out: ViewMut<'_>,
    moments: ViewMut<'_>,
) {
    launch!(
        device,
        "norm_forward",
        Grid::line(s.rows.div_ceil(ROWS), THREADS),
        x,
        gain,
        bias,
        out,
        moments,
        s.rows,
        s.width,
        at.several,
        at.stride,
        at.offset,
        at.moment_stride,
        at.moment_offset,
        s.eps,
        s.kind == NormKind::LayerNorm
    );
}

/// The norm of `sum = stream + branch m`, see [`crate::ops::add`], which is set as well; `clock` is the device's.
pub fn forward_of_sum(
    device: &Device,
    s: &Rows,
    stream: View<'_>,
    branch: View<'_>,
    (mask, clock): (Mask, View<'_>),
    gain: View<'_>,
    bias: Option<View<'_>>,
    sum: ViewMut<'_>,
    out: ViewMut<'_>,
    moments: ViewMut<'_>,
) {
    let m = factors(mask);
    launch!(
        device,
        "norm_forward_of_sum",
        Grid::line(s.rows.div_ceil(ROWS), THREADS),
        stream,
        branch,
        sum,
        gain,
        bias,
        out,
        moments,
        s.rows,
        s.width,
        s.eps,
        s.kind == NormKind::LayerNorm,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
}

/// How the backward pass is cut: a function of the shape alone.
struct Cut {
    /// Warps of one row.
    team: usize,
    /// Rows a block has at a time.
    teams: usize,
    /// Rows of a block.
    each: usize,
    /// Blocks.
    blocks: usize,
}

impl Cut {
    fn new(rows: usize, width: usize) -> Cut {
        let team = match width.div_ceil(WARP) {
            wide if wide > MOST_WARPS => WIDE_WARPS,
            team => team.max(1),
        };
        let teams = (WARPS / team).max(1);
        let each = rows.div_ceil(BLOCKS).next_multiple_of(teams).max(teams);
        Cut { team, teams, each, blocks: rows.div_ceil(each) }
    }
}

/// Floats [`backward`] works in.
pub fn backward_scratch(rows: usize, width: usize) -> usize {
    2 * Cut::new(rows, width).blocks * width
}

/// See [`super::backward`].
pub fn backward(
    device: &Device,
    s: &Rows,
    x: View<'_>,
    gain: View<'_>,
    moments: View<'_>,
    d_out: View<'_>,
    d_x: (ViewMut<'_>, Write),
    d_gain: ViewMut<'_>,
    d_bias: Option<ViewMut<'_>>,
    scratch: ViewMut<'_>,
) {
    backward_at(device, s, &Places::alone(s), x, gain, moments, d_out, d_x, d_gain, d_bias, scratch);
}

/// The same of rows within longer ones.
pub fn backward_at(
    device: &Device,
    s: &Rows,
    at: &Places,
    x: View<'_>,
    gain: View<'_>,
    moments: View<'_>,
    d_out: View<'_>,
    (d_x, write): (ViewMut<'_>, Write),
    mut d_gain: ViewMut<'_>,
    mut d_bias: Option<ViewMut<'_>>,
    scratch: ViewMut<'_>,
) {
    let Cut { team, teams, each, blocks } = Cut::new(s.rows, s.width);
    let wide = s.width > team * WARP;
    let kernel = if wide { "norm_backward_wide" } else { "norm_backward" };
    let layers = 1 + usize::from(d_bias.is_some());
    let mut partials = scratch.part(0..blocks * layers * s.width);
    let finish = blocks <= FINISHED;
    launch!(
        device,
        kernel,
        Grid::line(blocks, (32 * team * teams) as u32).with_shared(4 * teams * team * WARP),
        x,
        gain,
        moments,
        d_out,
        d_x,
        partials.reborrow(),
        d_gain.reborrow(),
        d_bias.as_mut().map(ViewMut::reborrow),
        s.rows,
        each,
        s.width,
        at.several,
        at.stride,
        at.offset,
        at.moment_stride,
        at.moment_offset,
        team,
        s.kind == NormKind::LayerNorm,
        write,
        finish
    );
    if !finish {
        columns::cuda::gather(device, partials.view(), blocks, s.width, d_gain, d_bias);
    }
}
