//! One room per operation: its equations, its forward and backward pass, and the tests that hold one against
//! the other. Slices in, slices out: an operation knows no tape, no arena but the gradient's, no thread.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod columns;
pub mod dropout;
pub mod embedding;
pub mod experts;
pub mod hands;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod octets;
pub mod query_key_norm;
pub mod rotary;
pub mod route;

#[cfg(test)]
pub(crate) mod check;

use crate::device::kernels::Source;

/// The tile of a matrix product, which several operations multiply by.
const TILE: Source = Source::new("ops/linear/tile.cuh", include_str!("linear/tile.cuh"));

/// The nonlinearity of one value.
const FUNCTIONS: Source =
    Source::new("ops/activation/functions.cuh", include_str!("activation/functions.cuh"));

/// The same behind the tile.
const FUNCTIONS_OF_TILES: Source = FUNCTIONS.behind(&TILE);

/// What products end in that have a nonlinearity.
const NONLINEARITY: Source =
    Source::new("ops/linear/nonlinearity.cuh", include_str!("linear/nonlinearity.cuh"))
        .behind(&FUNCTIONS_OF_TILES);

/// What the kernels of attention share, behind the tile.
const HEADS: Source =
    Source::new("ops/attention/heads.cuh", include_str!("attention/heads.cuh")).behind(&TILE);

/// What its tensor-core kernels are made of, behind that.
const FRAGMENTS: Source =
    Source::new("ops/attention/fragments.cuh", include_str!("attention/fragments.cuh")).behind(&HEADS);

/// The kernels of every operation that has some, one line each.
pub const KERNELS: &[Source] = &[
    Source::new("ops/activation/kernels.cu", include_str!("activation/kernels.cu")).behind(&FUNCTIONS),
    Source::new("ops/adamw/kernels.cu", include_str!("adamw/kernels.cu")),
    Source::new("ops/add/kernels.cu", include_str!("add/kernels.cu")),
    Source::new("ops/attention/kernels.cu", include_str!("attention/kernels.cu")).behind(&HEADS),
    Source::new("ops/attention/tensor.cu", include_str!("attention/tensor.cu")).behind(&FRAGMENTS),
    Source::new("ops/columns/kernels.cu", include_str!("columns/kernels.cu")),
    Source::new("ops/embedding/kernels.cu", include_str!("embedding/kernels.cu")),
    Source::new("ops/experts/kernels.cu", include_str!("experts/kernels.cu")).behind(&NONLINEARITY),
    Source::new("ops/linear/kernels.cu", include_str!("linear/kernels.cu")).behind(&NONLINEARITY),
    Source::new("ops/loss/kernels.cu", include_str!("loss/kernels.cu")),
    Source::new("ops/norm/kernels.cu", include_str!("norm/kernels.cu")),
    Source::new("ops/query_key_norm/kernels.cu", include_str!("query_key_norm/kernels.cu")),
    Source::new("ops/rotary/kernels.cu", include_str!("rotary/kernels.cu")),
    Source::new("ops/route/kernels.cu", include_str!("route/kernels.cu")),
];
