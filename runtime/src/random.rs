//! Counter-based random numbers: a value is a function of seed, stream and index.
