//! AdamW.
