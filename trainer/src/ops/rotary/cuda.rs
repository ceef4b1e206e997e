//! Rotary positions on a device.

use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::attention::Heads;

/// Threads of a block.
const THREADS: u32 = 256;

/// See [`super::rotate`].
pub fn rotate(device: &Device, s: &Heads, table: View<'_>, backwards: bool, from: View<'_>, to: ViewMut<'_>) {
    let (turning, passing) = (s.heads + s.kv_heads, s.kv_heads * s.size);
    let octets = turning * (s.size / 2).div_ceil(8) + passing.div_ceil(8);
    let grid = Grid::line((s.rows() * octets).div_ceil(THREADS as usize), THREADS);
    let sign = if backwards { -1.0f32 } else { 1.0 };
    launch!(device, "rotate", grid, table, from, to, s.rows(), s.block, turning, s.size, passing, sign);
}
