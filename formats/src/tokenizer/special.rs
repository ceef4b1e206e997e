//! Tokens that are found in a text before it is cut, and never split: special ones, which steer a model, and other
//! added ones, which only save room.

/// An added token as a file lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Added {
    /// Its id.
    pub(super) id: u32,
    /// Whether it steers the model; plain text never yields it.
    pub(super) special: bool,
}

/// Longest text of an added token, in bytes; looking for one takes at most that many steps at each place of a text.
pub(super) const LONGEST: usize = 512;

/// Added tokens, ready to be looked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Finder {
    /// Sorted by text.
    tokens: Vec<(Vec<u8>, Added)>,
    /// Where the tokens that begin with each byte begin in the list, and after the last byte its length.
    starts: Vec<usize>,
    /// Whether some of them are not special.
    plain: bool,
}

impl Finder {
    /// A finder of distinct tokens that are not empty.
    pub(super) fn new(mut tokens: Vec<(Vec<u8>, Added)>) -> Finder {
        tokens.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let starts = (0..=256).map(|first| {
            tokens.partition_point(|(text, _)| text.first().is_some_and(|&byte| usize::from(byte) < first))
        });
        Finder { starts: starts.collect(), plain: tokens.iter().any(|(_, added)| !added.special), tokens }
    }

    /// The leftmost token that begins at or after `from`, and of several the longest: where it stands, and what it
    /// is. Without `special`, special ones are passed over.
    pub(super) fn find(
        &self,
        text: &[u8],
        from: usize,
        special: bool,
    ) -> Option<(std::ops::Range<usize>, u32)> {
        if self.tokens.is_empty() || !(special || self.plain) {
            return None;
        }
        (from..text.len()).find_map(|place| {
            let (length, id) = self.longest_at(&text[place..], special)?;
            Some((place..place + length, id))
        })
    }

    /// The longest token that `text` begins with.
    #[inline]
    fn longest_at(&self, text: &[u8], special: bool) -> Option<(usize, u32)> {
        let first = usize::from(*text.first()?);
        let mut candidates = self.tokens.get(*self.starts.get(first)?..*self.starts.get(first + 1)?)?;
        let mut longest = None;
        // The candidates share their first `length` bytes with the text.
        for length in 1.. {
            let (token, added) = candidates.first()?;
            if token.len() == length {
                if special || !added.special {
                    longest = Some((length, added.id));
                }
                candidates = &candidates[1..];
            }
            let Some(&next) = text.get(length) else { break };
            let low = candidates.partition_point(|(token, _)| token[length] < next);
            candidates = &candidates[low..];
            candidates = &candidates[..candidates.partition_point(|(token, _)| token[length] == next)];
            if candidates.is_empty() {
                break;
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(tokens: &[(&str, bool)]) -> Finder {
        let added = |(id, &(text, special)): (usize, &(&str, bool))| {
            (text.as_bytes().to_vec(), Added { id: id as u32, special })
        };
        Finder::new(tokens.iter().enumerate().map(added).collect())
    }

    #[test]
    fn the_leftmost_is_found_and_of_several_the_longest() {
        let finder = finder(&[("<a>", true), ("<a><b>", true), ("  ", false), ("    ", false), ("<", false)]);
        assert_eq!(finder.find(b"x<a><b>", 0, true), Some((1..7, 1)));
        assert_eq!(finder.find(b"x<a><b", 0, true), Some((1..4, 0)));
        assert_eq!(finder.find(b"x<a><b", 2, true), Some((4..5, 4)));
        assert_eq!(finder.find(b"x<a><b>", 0, false), Some((1..2, 4)));
        assert_eq!(finder.find(b"     ", 0, false), Some((0..4, 3)));
        assert_eq!(finder.find(b"     ", 4, true), None);
        assert_eq!(finder.find(b"", 0, true), None);
        assert_eq!(Finder::default().find(b"abc", 0, true), None);
    }

    #[test]
    fn the_last_byte_has_its_tokens_too() {
        let text: Vec<u8> = vec![0xFF, 0xFF];
        let finder = Finder::new(vec![(text.clone(), Added { id: 3, special: true })]);
        assert_eq!(finder.find(&[1, 0xFF, 0xFF, 0xFF], 0, true), Some((1..3, 3)));
        assert_eq!(finder.find(&text, 0, false), None);
    }
}
