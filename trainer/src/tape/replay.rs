//! A program carried out, forward and backward.
