//! Causal attention of new rows against the cache.
