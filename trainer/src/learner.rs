//! A model that learns: steps and losses over a backend.
