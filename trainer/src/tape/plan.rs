//! Lifetimes, slots and first writers.
