//! An iterator of tokens with their text.
