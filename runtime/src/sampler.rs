//! From logits to the next id.
