//! What `trainer` and `runtime` must agree on, and nothing else.
//!
//! - [`config`]: the description of a model, and every bound it must keep
//! - [`layout`]: the only list of parameters there is
//! - [`architecture`]: the forward pass, written once over the [`architecture::Machine`] trait
//! - [`families`]: under which names and in which order a model's parameters stand in a file
//! - [`checkpoint`]: files opened (mapped, checked) and saved (atomic, durable)
//! - [`tokenizer`]: text to ids and back
//! - [`error`]: what can be wrong with any of them, as sentences
//!
//! This crate computes nothing, starts no thread and holds no unsafe code outside the memory map.

pub mod architecture;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod families;
pub mod layout;
pub mod tokenizer;

pub use config::Config;
pub use error::{Error, Result};
pub use layout::Layout;
