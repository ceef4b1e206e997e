//! The experts' kernels, launched. Where an expert's rows begin is known on the device alone: products are launched for
//! the most tiles there could be.
//!
//! Rows are not laid out for the experts. What goes into them stands as the router saw it, what comes out of them row by
//! row and slot by slot, and so do the gradients of their results and of each assignment's input; only what is inside an
//! expert stands sorted by expert. The products find and leave the rows where they are by the routing's lists.

use super::Way;
use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::activation::cuda::number;
use crate::ops::linear::cuda::{THREADS, Tile};
use crate::ops::route::Router;
use crate::ops::route::cuda::Routing;
use formats::Layout;
use formats::config::Activation;
use formats::layout::Bank;
use runtime::simd::product::Write;
use std::ops::Range;

/// Where the maps of a bank's experts stand in the arenas, one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps {
    /// Which.
    way: Way,
    /// From the first expert's matrix to the end of the last one's.
    weights: Range<usize>,
    /// Likewise of the biases.
    biases: Option<Range<usize>>,
    /// Elements from one expert's parameters to the next one's.
    step: usize,
    /// Width of a row that goes in.
    inputs: usize,
    /// Width of a row that comes out.
    outputs: usize,
}

impl Maps {
    /// A bank's, in its layout.
    pub fn new(layout: &Layout, bank: &Bank, way: Way) -> Maps {
        let (first, last) = (way.of(bank, 0), way.of(bank, bank.len() - 1));
        let range = |id| layout.parameter(id).range();
        let start = |expert| range(way.of(bank, expert).weight).start;
        Maps {
            way,
            weights: range(first.weight).start..range(last.weight).end,
            biases: first.bias.zip(last.bias).map(|(first, last)| range(first).start..range(last).end),
            step: if bank.len() > 1 { start(1) - start(0) } else { 0 },
            inputs: first.inputs,
            outputs: first.outputs,
        }
    }
}

/// One product of every expert's rows with its matrix: its kernel's grid, and the most tiles of rows.
fn over_rows(device: &Device, routing: &Routing, columns: usize) -> (Tile, Grid, usize) {
    let (rows, experts) = (routing.assignments(), routing.experts());
    let tile = Tile::of(device, rows, columns);
    let tiles = rows / tile.side() + experts.min(rows);
    let blocks = tiles * columns.div_ceil(tile.side());
    (tile, Grid::line(blocks, THREADS).with_shared(tile.shared(device.precision())), tiles)
}

/// One affine map of each expert's rows. On the way in `x` is `[rows, _]` and `out` `[rows slots, _]` sorted by expert, on
/// the way out `x` is what is sorted and `out` row by row. `working` and `master` are the arenas. On the way in a
/// nonlinearity of `out` may be wanted too, which stands as `out` does.
pub fn forward(
    device: &Device,
    routing: &Routing,
    x: View,
    maps: &Maps,
    working: View,
    master: View,
    out: ViewMut,
    activated: Option<(Activation, ViewMut)>,
) {
    let (tile, grid, tiles) = over_rows(device, routing, maps.outputs);
    let name = match tile {
        Tile::Large => "experts_outputs_large",
        Tile::Small => "experts_outputs_small",
    };
    let (kind, activated) = activated.map(|(kind, to)| (number(kind), to)).unzip();
    let (from, to) = match maps.way {
        Way::In => (Some(routing.rows.view()), None),
        Way::Out => (None, Some(routing.assigned.view())),
    };
    launch!(
        device,
        name,
        grid,
        x,
        from,
        working.part(maps.weights.clone()),
        maps.biases.clone().map(|range| master.part(range)),
        out,
        to,
        maps.step,
        &routing.offsets,
        routing.experts(),
        tiles,
        maps.outputs,
        maps.inputs,
        activated,
        kind.unwrap_or_default()
    );
}

/// Its gradients: `d_x` set, those of the parameters added to the arena `grads`. `d_out` stands as `out` does; `d_x` has a
/// row of its own for each assignment, on the way in row by row, on the way out sorted by expert. There it may be wanted
/// times the slope of a nonlinearity at values that stand as it does.
pub fn backward(
    device: &Device,
    routing: &Routing,
    x: View,
    maps: &Maps,
    working: View,
    d_out: View,
    d_x: ViewMut,
    mut grads: ViewMut,
    hidden: Option<(Activation, View)>,
) {
    let (kind, hidden) = hidden.map(|(kind, at)| (number(kind), at)).unzip();
    let (tile, grid, tiles) = over_rows(device, routing, maps.inputs);
    let name = match tile {
        Tile::Large => "experts_inputs_large",
        Tile::Small => "experts_inputs_small",
    };
    // Each list is that of what lies at the map's outer end.
    let (of_x, of_d_x, of_d_out) = match maps.way {
        Way::In => (Some(routing.rows.view()), Some(routing.assigned.view()), None),
        Way::Out => (None, None, Some(routing.assigned.view())),
    };
    launch!(
        device,
        name,
        grid,
        d_out,
        of_d_out,
        working.part(maps.weights.clone()),
        d_x,
        of_d_x,
        maps.step,
        &routing.offsets,
        routing.experts(),
        tiles,
        maps.inputs,
        maps.outputs,
        hidden,
        kind.unwrap_or_default()
    );
    let experts = routing.experts();
    let tile = Tile::of(device, maps.outputs * experts, maps.inputs);
    let name = match tile {
        Tile::Large => "experts_weights_large",
        Tile::Small => "experts_weights_small",
    };
    let grid = tile.grid(device, maps.outputs, maps.inputs);
    launch!(
        device,
        name,
        Grid { blocks: [grid.blocks[0], experts as u32, 1], ..grid },
        d_out,
        of_d_out,
        x,
        of_x,
        grads.reborrow().part(maps.weights.clone()),
        maps.step,
        &routing.offsets,
        maps.outputs,
        maps.inputs
    );
    if let Some(biases) = maps.biases.clone() {
        launch!(
            device,
            "experts_bias",
            Grid { blocks: [maps.outputs.div_ceil(32) as u32, experts as u32, 1], ..Grid::line(0, 256) },
            d_out,
            of_d_out,
            grads.part(biases),
            maps.step,
            &routing.offsets,
            maps.outputs
        );
    }
}

/// A warp a row.
fn warps(count: usize) -> Grid {
    Grid::line(count.div_ceil(8), 256)
}

/// See [`super::dispatch_backward`]; the assignments' gradients stand row by row, as experts' results do in all of these.
pub fn dispatch_backward(
    device: &Device,
    s: &Router,
    routing: &Routing,
    d_out: View,
    (d_x, write): (ViewMut, Write),
) {
    launch!(
        device,
        "experts_dispatch_backward",
        warps(s.rows),
        d_out,
        &routing.place,
        d_x,
        write,
        s.rows,
        s.slots(),
        s.width
    );
}

/// See [`super::combine`].
pub fn combine(device: &Device, s: &Router, routing: &Routing, y: View, weights: View, out: ViewMut) {
    launch!(
        device,
        "experts_combine",
        warps(s.rows),
        y,
        weights,
        &routing.place,
        out,
        s.rows,
        s.slots(),
        s.width
    );
}

/// See [`super::combine_backward`].
pub fn combine_backward(
    device: &Device,
    s: &Router,
    routing: &Routing,
    (y, weights): (View, View),
    d_out: View,
    d_y: ViewMut,
    d_weights: ViewMut,
) {
    launch!(
        device,
        "experts_combine_backward",
        warps(s.rows),
        y,
        weights,
        &routing.place,
        d_out,
        d_y,
        d_weights,
        s.rows,
        s.slots(),
        s.width
    );
}

#[cfg(test)]
mod tests;
