//! Everything of a run that has memory.
