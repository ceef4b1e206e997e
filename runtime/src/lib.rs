//! Runs what `trainer` wrote: opens a model directory by mapping it, and generates.
//!
//! Small, synchronous, without gradients, without CUDA, without global state.

mod attention;
mod cache;
pub mod generate;
mod linear;
mod machine;
mod memory;
pub mod model;
mod plan;
mod prepared;
pub mod random;
pub mod sampler;
pub mod session;
pub mod simd;
mod team;

pub use formats::{Error, Result};
