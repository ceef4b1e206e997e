//! Pre-tokenisation: a text cut into pieces that no merge crosses, by scanners written by hand for the patterns the
//! field uses. Knows no vocabulary; every scanner looks at each byte a bounded number of times.

use super::class::{Class, at, run};

/// Which pieces a text is cut into before merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// The whole text is one piece.
    #[default]
    None,
    /// GPT-2's (Radford et al. 2019): words, numbers and signs, each with the space before it.
    Gpt2,
    /// Llama 3's: as cl100k, but the lines that end a text are pieces of their own.
    Llama3,
    /// cl100k's: any sign may lead a word, numbers of at most three digits, signs with the newlines after them.
    Cl100k,
    /// Qwen 2's: as Llama 3's, with every digit alone.
    Qwen2,
}

/// GPT-2's pattern, as it was published.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    /// Every split there is.
    pub const ALL: [Split; 5] = [Split::None, Split::Gpt2, Split::Llama3, Split::Cl100k, Split::Qwen2];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Split::None => "none",
            Split::Gpt2 => "gpt2",
            Split::Llama3 => "llama3",
            Split::Cl100k => "cl100k",
            Split::Qwen2 => "qwen2",
        }
    }

    /// The regular expression whose matches are its pieces; `None` for the whole text.
    pub fn pattern(self) -> Option<&'static str> {
        match self {
            Split::None => None,
            Split::Gpt2 => Some(GPT2),
            Split::Llama3 => Some(LLAMA3),
            Split::Cl100k => Some(CL100K),
            Split::Qwen2 => Some(QWEN2),
        }
    }

    /// The end of the piece that begins at `start`, which must lie inside `text`. Pieces are never empty, cover the
    /// text, and depend on nothing before `start`.
    #[inline]
    pub fn end(self, text: &[u8], start: usize) -> usize {
        match self {
            Split::None => text.len(),
            Split::Gpt2 => gpt2(text, start),
            Split::Llama3 => lines(text, start, 3, false),
            Split::Cl100k => lines(text, start, 3, true),
            Split::Qwen2 => lines(text, start, 1, false),
        }
    }

    /// A place at or after `near` where no piece of any text that begins and goes on like this one can cross: parts
    /// cut there are cut into the pieces of the whole. `None` if `text` shows no such place.
    pub fn boundary(self, text: &[u8], near: usize) -> Option<usize> {
        if self == Split::None {
            return None;
        }
        // Every pattern ends a word at white space, and what follows begins anew.
        (near.max(1)..text.len())
            .find(|&place| text[place - 1].is_ascii_alphabetic() && text[place].is_ascii_whitespace())
    }
}

/// GPT-2's pattern at `start`.
#[inline]
fn gpt2(text: &[u8], start: usize) -> usize {
    let Some((class, length)) = at(text, start) else { return text.len() };
    if !class.is_space() {
        if text[start] == b'\''
            && let Some(end) = contraction(text, start + 1, false)
        {
            return end;
        }
        return run(text, start + length, class);
    }
    if text[start] == b' '
        && let Some((next, length)) = at(text, start + 1)
        && !next.is_space()
    {
        return run(text, start + 1 + length, next);
    }
    let (end, last, _) = spaces(text, start, start + length);
    before_the_last(text, start, end, last)
}

/// The pattern of cl100k and its kin at `start`; numbers have at most `digits` digits, and white space that ends the
/// text is one piece if `trailing`.
#[inline]
fn lines(text: &[u8], start: usize, digits: usize, trailing: bool) -> usize {
    let Some((class, length)) = at(text, start) else { return text.len() };
    if text[start] == b'\''
        && let Some(end) = contraction(text, start + 1, true)
    {
        return end;
    }
    let next = start + length;
    match class {
        Class::Letter => return run(text, next, Class::Letter),
        Class::Number => {
            let mut end = next;
            for _ in 1..digits {
                match at(text, end) {
                    Some((Class::Number, length)) => end += length,
                    _ => break,
                }
            }
            return end;
        }
        _ => {}
    }
    let following = at(text, next);
    if class != Class::Newline
        && let Some((Class::Letter, length)) = following
    {
        return run(text, next + length, Class::Letter);
    }
    let signs = match (class, following) {
        (Class::Other, _) => Some(next),
        (_, Some((Class::Other, length))) if text[start] == b' ' => Some(next + length),
        _ => None,
    };
    if let Some(inside) = signs {
        return run(text, run(text, inside, Class::Other), Class::Newline);
    }
    let (end, last, newline) = spaces(text, start, next);
    if trailing && end == text.len() {
        return end;
    }
    // A line's end takes what is white before it.
    newline.unwrap_or_else(|| before_the_last(text, start, end, last))
}

/// White space from `start`, whose first character ends at `next`: its end, where its last character begins, and the
/// end of its last newline.
fn spaces(text: &[u8], start: usize, next: usize) -> (usize, usize, Option<usize>) {
    let is_newline = |place: usize| matches!(text[place], b'\r' | b'\n');
    let (mut end, mut last) = (next, start);
    let mut newline = is_newline(start).then_some(next);
    while let Some((class, length)) = at(text, end)
        && class.is_space()
    {
        (last, end) = (end, end + length);
        if class == Class::Newline {
            newline = Some(end);
        }
    }
    (end, last, newline)
}

/// White space leaves its last character to what follows it, unless nothing does or it has no other.
fn before_the_last(text: &[u8], start: usize, end: usize, last: usize) -> usize {
    if end == text.len() || last == start { end } else { last }
}

/// The end of a contraction whose apostrophe stands before `place`, in small letters or in any.
fn contraction(text: &[u8], place: usize, any_case: bool) -> Option<usize> {
    let letter = |place: usize| match text.get(place) {
        Some(letter) if any_case => Some(letter.to_ascii_lowercase()),
        letter => letter.copied(),
    };
    match (letter(place)?, letter(place + 1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(place + 1),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(place + 2),
        // The long s is an s of another case.
        (0xC5, Some(0xBF)) if any_case => Some(place + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(split: Split, text: &str) -> Vec<&str> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = split.end(text.as_bytes(), start);
            assert!(end > start, "an empty piece at {start} of {text:?}");
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    #[test]
    fn gpt2_gives_each_word_the_space_before_it() {
        assert_eq!(
            pieces(Split::Gpt2, "Hello world's  12 345!?\n\n x I'LL  "),
            ["Hello", " world", "'s", " ", " 12", " 345", "!?", "\n\n", " x", " I", "'", "LL", "  "]
        );
        assert_eq!(pieces(Split::Gpt2, "a \n\tb '' 's"), ["a", " \n", "\t", "b", " ''", " '", "s"]);
        assert_eq!(pieces(Split::Gpt2, "né\u{301}日本 ½x"), ["né", "\u{301}", "日本", " ½", "x"]);
    }

    #[test]
    fn llama3_ends_lines_and_takes_three_digits() {
        assert_eq!(
            pieces(Split::Llama3, "Hello (world)'S 12345 !?\r\n\n  x\n \n"),
            ["Hello", " (", "world", ")'", "S", " ", "123", "45", " !?\r\n\n", " ", " x", "\n \n"]
        );
        assert_eq!(pieces(Split::Llama3, "I'LL it'ſ"), ["I", "'LL", " it", "'ſ"]);
        assert_eq!(pieces(Split::Qwen2, "a 12"), ["a", " ", "1", "2"]);
    }

    #[test]
    fn cl100k_keeps_the_white_end_of_a_text_whole() {
        assert_eq!(pieces(Split::Cl100k, "a\n  "), ["a", "\n  "]);
        assert_eq!(pieces(Split::Llama3, "a\n  "), ["a", "\n", "  "]);
        assert_eq!(pieces(Split::Cl100k, "a\n  b"), ["a", "\n", " ", " b"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_too() {
        for split in Split::ALL {
            let mut state = 1u32;
            let mut text = Vec::new();
            for _ in 0..20_000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push((state >> 24) as u8);
            }
            let mut start = 0;
            while start < text.len() {
                let end = split.end(&text, start);
                assert!(start < end && end <= text.len());
                start = end;
            }
        }
    }

    #[test]
    fn parts_cut_at_a_boundary_have_the_pieces_of_the_whole() {
        let text = "One two,\n\n  three's 4567 \n fünf  six\tseven ";
        for split in [Split::Gpt2, Split::Llama3, Split::Cl100k, Split::Qwen2] {
            let whole = pieces(split, text);
            let mut seen = 0;
            for near in 0..text.len() {
                if let Some(cut) = split.boundary(text.as_bytes(), near) {
                    assert!(cut >= near);
                    let mut parts = pieces(split, &text[..cut]);
                    parts.extend(pieces(split, &text[cut..]));
                    assert_eq!(parts, whole, "{split:?} cut at {cut}");
                    seen += 1;
                }
            }
            assert!(seen > 20);
        }
        assert_eq!(Split::None.boundary(text.as_bytes(), 3), None);
    }
}
