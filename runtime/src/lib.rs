//! Runs what `trainer` wrote: opens a model directory by mapping it, and generates.
//!
//! Small, synchronous, without gradients, without CUDA, without global state.

pub mod attention;
pub mod cache;
pub mod generate;
pub mod model;
pub mod random;
pub mod sampler;
pub mod session;
pub mod simd;
pub mod team;

pub use formats::{Error, Result};
