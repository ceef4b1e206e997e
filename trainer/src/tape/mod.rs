//! The recorded computation as plain data.

pub mod plan;
pub mod record;
pub mod replay;
