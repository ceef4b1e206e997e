//! Sums of columns on a device: rows in stretches by their number alone, the stretches' sums in order.

use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;

/// Fewest rows of a stretch, unless there are no more.
const ROWS: usize = 256;
/// Most stretches.
const STRETCHES: usize = 128;
/// Columns of one block.
const COLUMNS: usize = 256;
/// Threads of one block.
const THREADS: u32 = 256;
/// Columns of one block that adds stretches' sums.
const GATHERED: usize = 32;

/// Rows of a stretch.
fn each(rows: usize) -> usize {
    rows.div_ceil(STRETCHES).max(ROWS)
}

/// Floats [`add_sums`] works in: none for few rows.
pub fn scratch(rows: usize, width: usize) -> usize {
    match rows.div_ceil(each(rows)) {
        0 | 1 => 0,
        stretches => stretches * width,
    }
}

/// `to += sum over rows of x`; rows of `width` values stand `stride` apart, `to` has `width` values.
pub fn add_sums(
    device: &Device,
    rows: usize,
    width: usize,
    stride: usize,
    x: View<'_>,
    to: ViewMut<'_>,
    scratch: ViewMut<'_>,
) {
    let each = each(rows);
    let stretches = rows.div_ceil(each);
    let grid =
        Grid { blocks: [width.div_ceil(COLUMNS) as u32, stretches as u32, 1], threads: THREADS, shared: 0 };
    if stretches <= 1 {
        return launch!(device, "columns_sum", grid, x, to, rows, each, width, stride, true);
    }
    let mut partials = scratch.part(0..stretches * width);
    launch!(device, "columns_sum", grid, x, partials.reborrow(), rows, each, width, stride, false);
    gather(device, partials.view(), stretches, width, to, None);
}

/// Adds the rows of `partials`: the first `width` columns to `first`, as many behind them, if there are, to `second`.
pub fn gather(
    device: &Device,
    partials: View<'_>,
    stretches: usize,
    width: usize,
    first: ViewMut<'_>,
    second: Option<ViewMut<'_>>,
) {
    let layers = 1 + usize::from(second.is_some());
    let grid =
        Grid { blocks: [width.div_ceil(GATHERED) as u32, layers as u32, 1], threads: THREADS, shared: 0 };
    launch!(device, "columns_gather", grid, partials, first, second, stretches, width, layers * width);
}
