//! The machine that records the forward pass.
