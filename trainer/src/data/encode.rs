//! Texts of any size to token ids, in memory that does not grow with them.
//!
//! A text is read in parts and each part encoded alone, some side by side. Parts are cut only where the ids of the
//! whole are those of its parts, whatever follows:
//!
//! - of a vocabulary of characters between any two characters, of one of single bytes anywhere;
//! - of another where its pre-tokenizer ends a piece whatever follows ([`Split::boundary`]): between a letter and white
//!   space, both of ASCII. Merges stay within pieces, and no composition of characters crosses that place. Where an
//!   added token crosses one, or text is not cut into pieces at all, a document is one part.
//!
//! Where parts end depends on the text alone, so ids depend on no number of threads. A text without any such place is
//! one part.

use formats::checkpoint::source;
use formats::tokenizer::{Split, TokenKind, Tokenizer};
use formats::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a part, unless its text has no place to cut.
const PART_BYTES: usize = 1 << 20;
/// How far from the end of a part a place to cut is looked for first.
const NEAR: usize = 1 << 12;

/// How texts are read and cut.
#[derive(Clone, Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    separator: Vec<u8>,
    threads: usize,
    part_bytes: usize,
    cutting: Cutting,
}

/// Where a text may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cutting {
    Bytes,
    Characters,
    Pieces(Split),
    Nowhere,
}

/// Ids of one part of a document.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// The ids.
    pub ids: &'a [u32],
    /// Bytes of text they were made from.
    pub bytes: u64,
    /// Whether the document ends here.
    pub last: bool,
}

impl<'a> Encoder<'a> {
    /// Encodes with `tokenizer`. Each file is a document; a `separator`, where one is given, stands between documents
    /// of one file and in none of them.
    pub fn new(tokenizer: &'a Tokenizer, separator: Option<&str>, threads: usize) -> Encoder<'a> {
        let crossed = |split: Split| {
            let ids = 0..u32::try_from(tokenizer.vocabulary()).unwrap_or(u32::MAX);
            let mut added = ids.filter(|&id| tokenizer.kind(id) == Some(TokenKind::Added));
            added.any(|id| tokenizer.token(id).is_some_and(|token| split.boundary(token, 0).is_some()))
        };
        let cutting = match tokenizer.split() {
            None => Cutting::Characters,
            Some(_) if *tokenizer == Tokenizer::bytes() => Cutting::Bytes,
            Some(Split::None) => Cutting::Nowhere,
            Some(split) if crossed(split) => Cutting::Nowhere,
            Some(split) => Cutting::Pieces(split),
        };
        Encoder {
            tokenizer,
            separator: separator.unwrap_or_default().as_bytes().to_vec(),
            threads: threads.max(1),
            part_bytes: PART_BYTES,
            cutting,
        }
    }

    /// Gives the ids of every file to `take`, part by part and in order.
    pub fn encode(&self, texts: &[PathBuf], take: &mut dyn FnMut(Encoded<'_>) -> Result<()>) -> Result<()> {
        for path in texts {
            let mut parts = Parts::open(self, path)?;
            loop {
                let mut group = Vec::with_capacity(self.threads);
                while group.len() < self.threads {
                    let Some(part) = parts.next()? else { break };
                    group.push(part);
                }
                if group.is_empty() {
                    break;
                }
                for (part, ids) in group.iter().zip(self.side_by_side(path, &group)) {
                    take(Encoded { ids: &ids?, bytes: part.text.len() as u64, last: part.last })?;
                }
            }
        }
        Ok(())
    }

    fn side_by_side(&self, path: &Path, parts: &[Part]) -> Vec<Result<Vec<u32>>> {
        let [one] = parts else {
            return std::thread::scope(|scope| {
                let threads: Vec<_> =
                    parts.iter().map(|part| scope.spawn(|| self.encode_part(path, part))).collect();
                let joined = threads.into_iter().map(|thread| thread.join());
                let lost = |_| Err(Error::Internal("a thread that encodes a text ended early".into()));
                joined.map(|ids| ids.unwrap_or_else(lost)).collect()
            });
        };
        vec![self.encode_part(path, one)]
    }

    fn encode_part(&self, path: &Path, part: &Part) -> Result<Vec<u32>> {
        if self.cutting != Cutting::Characters {
            return self.tokenizer.encode_bytes(&part.text);
        }
        let text = std::str::from_utf8(&part.text).map_err(|error| {
            let place = part.at + error.valid_up_to() as u64;
            Error::file(path, format!("not UTF-8 at byte {place}"), "convert the text to UTF-8")
        })?;
        self.tokenizer.encode(text).map_err(|error| match error {
            Error::Usage(problem) if part.at > 0 => {
                Error::Usage(format!("{}: counted from byte {}, {problem}", path.display(), part.at))
            }
            Error::Usage(problem) => Error::Usage(format!("{}: {problem}", path.display())),
            other => other,
        })
    }

    /// The last place in `text` where it may be cut, if it has one behind its beginning. It goes on after its end.
    fn cut(&self, text: &[u8]) -> Option<usize> {
        let starts = |&place: &usize| !is_continuation(text[place]);
        let place = match self.cutting {
            Cutting::Bytes => text.len(),
            // What has four bytes without the beginning of a character is no text, and said to be none later.
            Cutting::Characters => {
                (text.len().saturating_sub(4)..text.len()).rev().find(starts).unwrap_or(text.len())
            }
            Cutting::Pieces(split) => {
                let last_from = |from: usize| {
                    std::iter::successors(split.boundary(text, from), |&place| {
                        split.boundary(text, place + 1)
                    })
                    .last()
                };
                last_from(text.len().saturating_sub(NEAR)).or_else(|| last_from(0))?
            }
            Cutting::Nowhere => return None,
        };
        (place > 0).then_some(place)
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// A part of a document that is encoded alone.
struct Part {
    text: Vec<u8>,
    /// Where it begins in the file.
    at: u64,
    last: bool,
}

/// The parts of a file.
struct Parts<'e> {
    encoder: &'e Encoder<'e>,
    path: PathBuf,
    file: File,
    /// What was read and not yet given.
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    at: u64,
    /// Bytes of the buffer that hold no separator, nor the beginning of one.
    searched: usize,
    ended: bool,
    /// Whether a part of the document was given already.
    inside: bool,
}

impl<'e> Parts<'e> {
    fn open(encoder: &'e Encoder<'e>, path: &Path) -> Result<Parts<'e>> {
        let (file, _) = source::open(path)?;
        let (path, buffer) = (path.to_path_buf(), vec![]);
        Ok(Parts { encoder, path, file, buffer, at: 0, searched: 0, ended: false, inside: false })
    }

    fn next(&mut self) -> Result<Option<Part>> {
        let separator = self.encoder.separator.as_slice();
        let mut wanted = self.encoder.part_bytes.max(1);
        loop {
            self.fill(wanted)?;
            if let Some(place) = self.find(separator) {
                let part = self.take(place, separator.len(), true);
                if !std::mem::replace(&mut self.inside, false) && part.text.is_empty() {
                    continue;
                }
                return Ok(Some(part));
            }
            if self.ended {
                let part = self.take(self.buffer.len(), 0, true);
                let inside = std::mem::replace(&mut self.inside, false);
                return Ok((inside || !part.text.is_empty()).then_some(part));
            }
            // A separator may have begun at the end of what was read.
            if let Some(place) = self.encoder.cut(&self.buffer[..self.searched]) {
                self.inside = true;
                return Ok(Some(self.take(place, 0, false)));
            }
            wanted = self.buffer.len().saturating_mul(2).max(wanted);
        }
    }

    /// Reads until the buffer holds `wanted` bytes or the file ends.
    fn fill(&mut self, wanted: usize) -> Result<()> {
        let missing = wanted.saturating_sub(self.buffer.len()) as u64;
        if missing == 0 || self.ended {
            return Ok(());
        }
        let read = (&mut self.file).take(missing).read_to_end(&mut self.buffer);
        let count = read.map_err(|error| {
            Error::file(&self.path, format!("cannot be read: {error}"), "check the file and its disk")
        })?;
        self.ended = (count as u64) < missing;
        Ok(())
    }

    /// Where the first separator of the buffer begins; what was searched is not searched again.
    fn find(&mut self, separator: &[u8]) -> Option<usize> {
        let Some(&first) = separator.first() else {
            self.searched = self.buffer.len();
            return None;
        };
        while self.searched + separator.len() <= self.buffer.len() {
            let rest = &self.buffer[self.searched..=self.buffer.len() - separator.len()];
            match rest.iter().position(|&byte| byte == first) {
                None => self.searched += rest.len(),
                Some(skipped) => {
                    self.searched += skipped;
                    if self.buffer[self.searched..].starts_with(separator) {
                        return Some(self.searched);
                    }
                    self.searched += 1;
                }
            }
        }
        None
    }

    /// Takes `count` bytes out of the buffer, and `more` after them away.
    fn take(&mut self, count: usize, more: usize, last: bool) -> Part {
        let rest = self.buffer.split_off(count + more);
        let mut text = std::mem::replace(&mut self.buffer, rest);
        text.truncate(count);
        let at = self.at;
        self.at += (count + more) as u64;
        self.searched = if last { 0 } else { self.searched - count };
        Part { text, at, last }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shard::tests::Scratch;
    use super::*;

    /// The ids of each document of a text, read in parts of about `part_bytes`.
    fn documents(
        tokenizer: &Tokenizer,
        text: &[u8],
        separator: Option<&str>,
        part_bytes: usize,
        threads: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let scratch =
            Scratch::new(&format!("encode-{:?}", std::thread::current().id()).replace(['(', ')'], ""));
        std::fs::write(&scratch.0, text).expect("can be written");
        let encoder = Encoder { part_bytes, ..Encoder::new(tokenizer, separator, threads) };
        let (mut documents, mut bytes) = (vec![vec![]], 0);
        encoder.encode(std::slice::from_ref(&scratch.0), &mut |part| {
            documents.last_mut().expect("one at least").extend_from_slice(part.ids);
            bytes += part.bytes;
            if part.last {
                documents.push(vec![]);
            }
            Ok(())
        })?;
        assert_eq!(documents.pop(), Some(vec![]), "every document is ended");
        assert!(bytes <= text.len() as u64);
        Ok(documents)
    }

    #[test]
    fn parts_of_any_size_give_the_ids_of_the_whole() {
        let text = "naïve café, 日本語 text\n\n  with   runs of\tspace. The end 👩‍👩‍👧 x".repeat(3);
        for tokenizer in [Tokenizer::characters(&text).expect("not empty"), Tokenizer::bytes()] {
            let whole = tokenizer.encode(&text).expect("its own");
            for part_bytes in (1..40).chain([64, 100, 1000]) {
                for threads in [1, 3] {
                    let found = documents(&tokenizer, text.as_bytes(), None, part_bytes, threads);
                    assert_eq!(found.expect("its own"), [&whole[..]], "{part_bytes} bytes");
                }
            }
        }
    }

    #[test]
    fn separators_are_found_wherever_parts_end_and_stand_in_no_document() {
        let text = "<|><|>one<|two<|><|>three <|> four<|>";
        let tokenizer = Tokenizer::bytes();
        let expected: Vec<Vec<u32>> = ["one<|two", "three ", " four"]
            .map(|document| document.bytes().map(u32::from).collect())
            .to_vec();
        for part_bytes in 1..50 {
            let found = documents(&tokenizer, text.as_bytes(), Some("<|>"), part_bytes, 2);
            assert_eq!(found.expect("bytes"), expected, "{part_bytes} bytes");
        }
        let none = documents(&tokenizer, b"<|><|>", Some("<|>"), 4, 2).expect("bytes");
        assert!(none.is_empty() && documents(&tokenizer, b"", None, 4, 1).expect("bytes").is_empty());
    }

    /// A byte-level vocabulary whose merges reach over words, lines and runs of spaces where its split lets them.
    fn merging(split: Split) -> Tokenizer {
        let mut tokens: Vec<Vec<u8>> = Tokenizer::byte_order().map(|byte| vec![byte]).to_vec();
        let mut merges = vec![];
        let pairs = [
            ("t", "h"),
            ("th", "e"),
            (" ", "the"),
            ("a", "n"),
            ("an", "d"),
            (" ", "t"),
            ("e", " "),
            ("\n", "\n"),
            (".", "\n"),
            ("e", "\n"),
            ("x", " "),
            (" ", " "),
            (" ", "\n"),
        ];
        for (left, right) in pairs {
            let id = |part: &str| tokens.iter().position(|token| token == part.as_bytes());
            merges.push((id(left).expect("was made") as u32, id(right).expect("was made") as u32));
            tokens.push([left, right].concat().into_bytes());
        }
        Tokenizer::byte_level(split, tokens, merges, &["<|endoftext|>".into()]).expect("a vocabulary")
    }

    #[test]
    fn parts_of_merged_text_give_the_ids_of_the_whole() {
        let text = "the end and the  x  \n\n  then the.\n\n(the) they'll the \r\n th\u{3000}the \u{301}e the1 2 and <|endoftext|> \
                    the e\n"
            .repeat(4);
        for split in [Split::Gpt2, Split::Llama3, Split::Cl100k, Split::Qwen2] {
            let tokenizer = merging(split);
            let whole = tokenizer.encode(&text).expect("bytes");
            assert!(whole.len() < text.len() * 9 / 10, "{split:?} merges nothing");
            for part_bytes in (1..60).chain([100, 1000]) {
                let found = documents(&tokenizer, text.as_bytes(), None, part_bytes, 2).expect("bytes");
                assert_eq!(found, [&whole[..]], "{split:?}, {part_bytes} bytes");
            }
        }
        // Text that is not cut into pieces is encoded whole, whatever merges reach over.
        let tokenizer = merging(Split::None);
        let whole = tokenizer.encode(&text).expect("bytes");
        assert_eq!(documents(&tokenizer, text.as_bytes(), None, 7, 2).expect("bytes"), [whole]);
    }

    #[test]
    fn what_cannot_be_encoded_is_named_with_its_place() {
        let tokenizer = Tokenizer::characters("abc").expect("not empty");
        let error = documents(&tokenizer, b"abcabcaXb", None, 4, 2).expect_err("X").to_string();
        assert!(error.contains("counted from byte") && error.contains("'X'"), "{error}");
        let error = documents(&tokenizer, b"abca\xffb", None, 2, 1).expect_err("no text").to_string();
        assert!(error.contains("not UTF-8 at byte 4"), "{error}");
        assert_eq!(documents(&Tokenizer::bytes(), b"\xff\x80", None, 1, 1).expect("bytes"), [[255, 128]]);
    }
}
