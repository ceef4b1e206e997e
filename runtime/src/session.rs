//! One conversation with a model: ids fed, cache kept, logits read.
