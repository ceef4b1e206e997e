//! The portable twin of every routine.
