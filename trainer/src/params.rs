//! The parameters as one arena.
