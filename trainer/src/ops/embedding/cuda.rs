//! Embeddings on a device. The backward pass sorts the rows by token on the device, so that nothing waits for the host.

use crate::backend::Embed;
use crate::device::{Device, Element, Grid, View, ViewMut};
use crate::launch;
use crate::ops::dropout::Mask;
use crate::ops::dropout::cuda::factors;
use crate::ops::octets::{self, THREADS};

/// Sorted places whose rows one warp adds.
const CHUNK: usize = 32;
/// Warps of a block.
const WARPS: usize = 8;
/// Columns of a warp.
const COLUMNS: usize = 256;
/// Threads that sort.
const SORTERS: u32 = 512;
/// Bits of a token that one pass of the sort sees.
const DIGIT_BITS: u32 = 4;

/// See [`super::forward`]; `clock` is the device's.
pub fn forward(
    device: &Device,
    s: &Embed,
    ids: View<'_>,
    tokens: View<'_>,
    positions: Option<View<'_>>,
    (mask, clock): (Mask, View<'_>),
    out: ViewMut<'_>,
) {
    let m = factors(mask);
    launch!(
        device,
        "embed_forward",
        Grid::line(octets::blocks(s.rows, s.width), THREADS),
        ids,
        tokens,
        positions,
        out,
        s.rows,
        s.block,
        s.width,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
}

/// Floats [`backward`] works in: the sorted rows twice, and two parts of a row for each chunk.
pub fn backward_scratch(s: &Embed) -> usize {
    2 * s.rows + 2 * s.rows.div_ceil(CHUNK) * s.width
}

/// See [`super::backward`].
pub fn backward(
    device: &Device,
    s: &Embed,
    ids: View<'_>,
    (mask, clock): (Mask, View<'_>),
    d_out: View<'_>,
    mut d_tokens: ViewMut<'_>,
    d_positions: Option<ViewMut<'_>>,
    scratch: ViewMut<'_>,
) {
    let m = factors(mask);
    let (order, rest) = scratch.split(s.rows);
    let (spare, rest) = rest.split(s.rows);
    let (mut order, spare) = (order.cast(Element::U32), spare.cast(Element::U32));
    let vocabulary = (d_tokens.len() / s.width) as u32;
    let passes = (u32::BITS - vocabulary.saturating_sub(1).leading_zeros()).div_ceil(DIGIT_BITS).max(1);
    launch!(device, "embed_sort", Grid::line(1, SORTERS), ids, order.reborrow(), spare, s.rows, passes);

    let tiles = s.width.div_ceil(COLUMNS) as u32;
    let grid =
        |warps: usize| Grid { blocks: [warps.div_ceil(WARPS) as u32, tiles, 1], threads: THREADS, shared: 0 };
    let chunks = s.rows.div_ceil(CHUNK);
    let mut parts = rest.part(0..2 * chunks * s.width);
    launch!(
        device,
        "embed_backward",
        grid(chunks),
        ids,
        order.view(),
        d_out,
        d_tokens.reborrow(),
        parts.reborrow(),
        s.rows,
        s.width,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale
    );
    if chunks > 1 {
        let across = grid(chunks);
        launch!(
            device,
            "embed_backward_across",
            across,
            ids,
            order.view(),
            parts.view(),
            d_tokens,
            s.rows,
            s.width
        );
    }
    if let Some(d_positions) = d_positions {
        launch!(
            device,
            "embed_backward_positions",
            grid(s.block.min(s.rows)),
            d_out,
            d_positions,
            s.rows,
            s.block,
            s.width,
            clock,
            m.words.seed,
            m.words.site,
            m.words.first_row,
            m.threshold,
            m.scale
        );
    }
}
