//! The CPU as a backend: one line a verb.
