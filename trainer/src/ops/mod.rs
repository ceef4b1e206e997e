//! One room per operation.
