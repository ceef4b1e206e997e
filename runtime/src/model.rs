//! A model on disk, mapped: what every session of it shares.
