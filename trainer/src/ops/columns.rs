//! Sums over rows, one a column, in a fixed geometry: what gradients of biases and gains are on a device.
//!
//! `s_c += sum over r of x_rc`. On the CPU such sums are made where they are needed, rows in order.

pub mod cuda;
