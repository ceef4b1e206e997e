//! Text on its way out, held back while it could be the beginning of a stop string.
//!
//! The stop string that is complete first ends the text; of those complete with the same character, the longest;
//! of equal ones, the first named. So the result does not depend on how the text is cut into tokens.

use formats::{Error, Result};

/// Longest piece of text that a token is expected to have; a longer one makes the buffers grow once.
const PIECE_BYTES: usize = 256;

/// Text given out and text held back.
#[derive(Debug)]
pub(super) struct Release {
    stops: Vec<String>,
    /// Not given out yet: always a proper beginning of one of `stops`, between two calls.
    held: String,
    /// Given out by the last call.
    text: String,
}

impl Release {
    pub(super) fn new(stops: &[String]) -> Result<Release> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::Usage(format!("stop string {} is empty", index + 1)));
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let room = longest + PIECE_BYTES;
        Ok(Release {
            stops: stops.to_vec(),
            held: String::with_capacity(room),
            text: String::with_capacity(room),
        })
    }

    /// What the last call gave out.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Takes back what was given out.
    pub(super) fn clear(&mut self) {
        self.text.clear();
    }

    /// Adds text and gives out what is certain. Gives the stop string that ended the text, if one did.
    pub(super) fn push(&mut self, piece: &str) -> Option<usize> {
        self.held.push_str(piece);
        let complete = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        if let Some((_, start, index)) = complete.min() {
            self.text.push_str(&self.held[..start]);
            self.held.clear();
            return Some(index);
        }
        let certain = self.held.len() - self.longest_beginning();
        self.text.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        None
    }

    /// Ends the text with `piece` and gives out everything held back, through `tail`.
    pub(super) fn flush(&mut self, piece: &str, tail: &mut String) {
        tail.push_str(&self.held);
        tail.push_str(piece);
        self.held.clear();
    }

    /// Bytes at the end of `held` that could be the beginning of a stop string.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let beginning = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&length| held.ends_with(&stop.as_bytes()[..length]))
        };
        self.stops.iter().filter_map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    /// Everything given out, and the stop string that ended it.
    fn run(texts: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut release = Release::new(&stops(texts)).expect("no empty stop");
        let mut out = String::new();
        for piece in pieces {
            release.clear();
            let stopped = release.push(piece);
            out.push_str(release.text());
            if stopped.is_some() {
                return (out, stopped);
            }
        }
        release.flush("", &mut out);
        (out, None)
    }

    /// The definition, one character at a time and the whole past at hand.
    fn plain(texts: &[&str], whole: &str) -> (String, Option<usize>) {
        for (end, character) in whole.char_indices() {
            let past = &whole[..end + character.len_utf8()];
            let ending = texts.iter().enumerate().filter(|(_, stop)| past.ends_with(**stop));
            if let Some((index, stop)) = ending.max_by(|a, b| a.1.len().cmp(&b.1.len()).then(b.0.cmp(&a.0))) {
                return (past[..past.len() - stop.len()].to_string(), Some(index));
            }
        }
        (whole.to_string(), None)
    }

    #[test]
    fn any_cut_into_pieces_gives_the_definitions_text() {
        let wholes = ["abcabcd", "aabaabaaab", "xxxxx", "naïve naïf", "ends with a", "一二三一二", ""];
        let sets: [&[&str]; 7] = [
            &[],
            &["abcd"],
            &["aaab", "ab"],
            &["abcd", "bc"],
            &["c", "bc", "bc"],
            &["naïf", "a\n"],
            &["一二三四", "二一", "xxxxxx"],
        ];
        for whole in wholes {
            let places: Vec<usize> =
                whole.char_indices().map(|(place, _)| place).filter(|place| *place > 0).collect();
            for texts in sets {
                let expected = plain(texts, whole);
                for cuts in 0..1u32 << places.len() {
                    let mut pieces = Vec::new();
                    let mut rest = whole;
                    for (bit, &place) in places.iter().enumerate().rev() {
                        if cuts >> bit & 1 == 1 {
                            let (left, right) = rest.split_at(place);
                            pieces.push(right);
                            rest = left;
                        }
                    }
                    pieces.push(rest);
                    pieces.reverse();
                    assert_eq!(run(texts, &pieces), expected, "{texts:?} in {pieces:?}");
                }
            }
        }
    }

    #[test]
    fn a_beginning_is_held_back_and_given_out_when_it_was_none() {
        let mut release = Release::new(&stops(&["END."])).expect("no empty stop");
        assert_eq!(release.push("the EN"), None);
        assert_eq!(release.text(), "the ");
        release.clear();
        assert_eq!(release.push("D"), None);
        assert_eq!(release.text(), "");
        assert_eq!(release.push("EN"), None);
        assert_eq!(release.text(), "END");
        release.clear();
        assert_eq!(release.push("D. never"), Some(0));
        assert_eq!(release.text(), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(matches!(Release::new(&stops(&["a", ""])), Err(Error::Usage(_))));
    }

    #[test]
    fn buffers_never_grow() {
        let mut release = Release::new(&stops(&["aaaaaaab"])).expect("no empty stop");
        let before = (release.held.capacity(), release.text.capacity());
        for _ in 0..10_000 {
            release.clear();
            assert_eq!(release.push("aaa"), None);
        }
        assert_eq!((release.held.capacity(), release.text.capacity()), before);
    }
}
