//! Learning a byte-level vocabulary from text: words are counted (`count`), then the most frequent pair of neighbours
//! is joined again and again (`merges`). Encoding with what was learned is `formats::tokenizer`'s.

mod count;
mod merges;

use formats::tokenizer::{Split, Tokenizer};
use formats::{Error, Result};
use std::path::PathBuf;

/// What is learned, and how.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// Number of tokens: 256 bytes and what merges make. Special tokens come on top.
    pub vocabulary: usize,
    /// How text is cut into words, which no merge crosses.
    pub split: Split,
    /// Special tokens, in the order of their ids.
    pub special: Vec<String>,
    /// Threads that count; they change no result.
    pub threads: usize,
}

/// How far learning is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes of text read, of all there are.
    Counting {
        /// Read so far.
        bytes: u64,
        /// All of them.
        of: u64,
    },
    /// Different words found in all of the text.
    Counted {
        /// How many.
        words: usize,
    },
    /// Tokens made, of those that were asked for.
    Merging {
        /// Made so far, the bytes included.
        tokens: usize,
        /// Asked for.
        of: usize,
        /// How often the last pair occurred.
        count: u64,
    },
}

/// Learns from files, read byte for byte, and tells how far it is. A text that has no more pairs gives fewer tokens
/// than were asked for.
pub fn learn(lesson: &Lesson, files: &[PathBuf], tell: &mut dyn FnMut(Stage)) -> Result<Tokenizer> {
    if lesson.vocabulary < 256 || lesson.vocabulary > MOST_TOKENS {
        return Err(Error::Usage(format!(
            "a vocabulary of {} is asked for, expected 256 (the bytes alone) to {MOST_TOKENS}",
            lesson.vocabulary
        )));
    }
    let words = count::count(files, lesson.split, lesson.threads, tell)?;
    tell(Stage::Counted { words: words.len() });
    let (tokens, merges) = merges::learn(&words, lesson.vocabulary, tell);
    Tokenizer::byte_level(lesson.split, tokens, merges, &lesson.special)
}

/// Largest vocabulary that is learned; the largest of the field are a quarter of it.
const MOST_TOKENS: usize = 1 << 20;

#[cfg(test)]
mod tests;
