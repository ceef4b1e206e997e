//! A text small enough to be held: all of it as token ids, cut in two, read in windows that begin anywhere.

use super::{Fingerprint, Side};
use formats::checkpoint::source;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// The part of a text that validates unless a run says otherwise; the rest is trained on.
pub const HELD_OUT: f64 = 0.1;
/// Bytes a text takes in memory for each of its bytes: itself, and an id a character.
const HELD_BYTES: u64 = 5;

/// A text as token ids, cut in two.
#[derive(Clone, Debug)]
pub struct Text {
    tokens: Vec<u32>,
    held_out: f64,
    cut: usize,
    fingerprint: Fingerprint,
    name: PathBuf,
}

/// The bytes of one or more files, one after another.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Vec<u8>,
    /// Each file with the place where its bytes end.
    files: Vec<(PathBuf, usize)>,
}

impl Source {
    /// Reads files byte for byte.
    pub fn read(paths: &[PathBuf]) -> Result<Source> {
        let mut text = Source { bytes: Vec::new(), files: Vec::new() };
        require_memory(paths)?;
        for path in paths {
            let bytes = source::read(path, u64::MAX)?;
            if text.bytes.is_empty() {
                text.bytes = bytes;
            } else {
                text.bytes.extend_from_slice(&bytes);
            }
            text.files.push((path.clone(), text.bytes.len()));
        }
        if text.bytes.is_empty() {
            return Err(Error::file(text.name(), "the text is empty", "name a text with something in it"));
        }
        Ok(text)
    }

    /// The ids of the text.
    fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match tokenizer.split() {
            // Of bytes, which need be no UTF-8.
            Some(_) => tokenizer.encode_bytes(&self.bytes),
            None => {
                let text = self.utf8()?;
                tokenizer.encode(text).map_err(|error| self.blame(tokenizer, text, error))
            }
        }
    }

    /// The same error, of the file that holds what cannot be encoded.
    fn blame(&self, tokenizer: &Tokenizer, text: &str, error: Error) -> Error {
        let mut start = 0;
        let named = self.files.iter().find_map(|(path, end)| {
            let part = text.get(std::mem::replace(&mut start, *end)..*end)?;
            match tokenizer.encode(part) {
                Err(Error::Usage(problem)) => Some(Error::Usage(format!("{}: {problem}", path.display()))),
                _ => None,
            }
        });
        named.unwrap_or(error)
    }

    /// The bytes and their ids.
    pub(super) fn into_ids(self, tokenizer: &Tokenizer) -> Result<(Vec<u8>, Vec<u32>)> {
        let ids = self.ids(tokenizer)?;
        Ok((self.bytes, ids))
    }

    /// The file that stands for all of them in a sentence.
    fn name(&self) -> &Path {
        self.files.first().map_or(Path::new("--data"), |(path, _)| path)
    }

    pub(super) fn utf8(&self) -> Result<&str> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let place = error.valid_up_to();
            let at = self.files.iter().position(|(_, end)| place < *end).unwrap_or(0);
            let start = at.checked_sub(1).map_or(0, |before| self.files[before].1);
            Error::file(
                self.files.get(at).map_or(self.name(), |(path, _)| path),
                format!("not UTF-8 at byte {}", place - start),
                "convert the text to UTF-8, or train on bytes with --tokenizer bytes",
            )
        })
    }
}

impl Text {
    /// Encodes a text, the last tenth of which is held out.
    pub fn encode(tokenizer: &Tokenizer, source: &Source) -> Result<Text> {
        let (bytes, tokens) = (&source.bytes, source.ids(tokenizer)?);
        let fingerprint =
            Fingerprint { bytes: bytes.len() as u64, xxh3: format!("{:032x}", xxh3_128(bytes)) };
        let cut = cut(tokens.len(), HELD_OUT);
        Ok(Text { tokens, held_out: HELD_OUT, cut, fingerprint, name: source.name().to_path_buf() })
    }

    /// The same with another part held out.
    pub fn hold_out(self, part: f64) -> Text {
        Text { cut: cut(self.tokens.len(), part), held_out: part, ..self }
    }

    /// The tokens that are trained on.
    pub fn training(&self) -> &[u32] {
        &self.tokens[..self.cut]
    }

    /// The tokens that are held back.
    pub fn validation(&self) -> &[u32] {
        &self.tokens[self.cut..]
    }

    /// The tokens of one side of the split.
    pub fn side(&self, side: Side) -> &[u32] {
        match side {
            Side::Training => self.training(),
            Side::Validation => self.validation(),
        }
    }

    /// What tells this text from every other.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Refuses a text of which a split has no window of `block` tokens and a target for each.
    pub fn require(&self, block: usize) -> Result<()> {
        let long_enough = |tokens: usize| {
            let cut = cut(tokens, self.held_out);
            cut > block && tokens.saturating_sub(cut) > block
        };
        if long_enough(self.tokens.len()) {
            return Ok(());
        }
        // The smaller part of the text must exceed the block; rounding moves the bound by a few tokens either way.
        let part = self.held_out.min(1.0 - self.held_out);
        let guess = (block.saturating_add(1) as f64 / part) as usize;
        let needed =
            (guess.saturating_sub(20)..=guess.saturating_add(20)).find(|&n| long_enough(n)).unwrap_or(guess);
        Err(Error::file(
            &self.name,
            format!(
                "the text has {} tokens, and a block of {block} needs at least {needed}",
                self.tokens.len()
            ),
            "give more text with --data, a smaller --block, or a larger --held-out",
        ))
    }
}

/// Where the part of a text that is trained on ends.
pub(super) fn cut(tokens: usize, held_out: f64) -> usize {
    ((1.0 - held_out) * tokens as f64) as usize
}

/// Refuses texts that would not fit in memory, before they are read.
fn require_memory(paths: &[PathBuf]) -> Result<()> {
    let mut bytes = 0u64;
    for path in paths {
        bytes = bytes.saturating_add(source::open(path)?.1);
    }
    let (needed, available) =
        (bytes.saturating_mul(HELD_BYTES), crate::memory::available().unwrap_or(u64::MAX));
    if needed <= available {
        return Ok(());
    }
    Err(Error::Memory {
        what: "a text that is held whole".to_owned(),
        needed,
        available,
        help: "encode it once with `trainer tokenizer encode --format shard --out FILE`, and train from that file"
            .to_owned(),
    })
}

/// Adds the windows of `block` tokens that begin at `offsets`, and the token after each of theirs.
pub fn gather(split: &[u32], offsets: &[usize], block: usize, inputs: &mut Vec<u32>, targets: &mut Vec<u32>) {
    for &offset in offsets {
        inputs.extend_from_slice(&split[offset..offset + block]);
        targets.extend_from_slice(&split[offset + 1..offset + block + 1]);
    }
}

/// Every whole window of a split, none overlapping, as inputs and targets side by side.
pub fn windows(split: &[u32], block: usize) -> (&[u32], &[u32]) {
    let whole = split.len().saturating_sub(1) / block * block;
    if whole == 0 { (&[], &[]) } else { (&split[..whole], &split[1..whole + 1]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(parts: &[&[u8]]) -> Source {
        let mut source = Source { bytes: Vec::new(), files: Vec::new() };
        for (index, part) in parts.iter().enumerate() {
            source.bytes.extend_from_slice(part);
            source.files.push((format!("part {index}").into(), source.bytes.len()));
        }
        source
    }

    fn learn(text: &[u8]) -> Result<(Tokenizer, Text)> {
        let source = source(&[text]);
        let tokenizer = Tokenizer::characters(source.utf8()?)?;
        Text::encode(&tokenizer, &source).map(|text| (tokenizer, text))
    }

    #[test]
    fn nine_tenths_train_and_the_rest_validates() {
        for (length, cut) in [(1, 0), (9, 8), (10, 9), (11, 9), (1_115_389 % 1000, 350)] {
            let (_, text) = learn("x".repeat(length).as_bytes()).expect("text");
            assert_eq!((text.training().len(), text.validation().len()), (cut, length - cut));
        }
    }

    #[test]
    fn characters_are_counted_not_bytes() {
        let (tokenizer, text) = learn("zß€z".as_bytes()).expect("text");
        assert_eq!(tokenizer.vocabulary(), 3);
        assert_eq!([text.training(), text.validation()].concat(), [0, 1, 2, 0]);
        assert_eq!(text.fingerprint().bytes, 7);
    }

    #[test]
    fn the_file_of_an_unknown_character_is_named() {
        let tokenizer = Tokenizer::characters("abß").expect("three characters");
        let text = source(&["abß".as_bytes(), "bßc".as_bytes(), b"d"]);
        let error = Text::encode(&tokenizer, &text).expect_err("no such character").to_string();
        assert!(error.starts_with("part 1: ") && error.contains("'c' (U+0063) at byte 3"), "{error}");
    }

    #[test]
    fn bytes_need_no_utf8_and_characters_say_where_it_ends() {
        let text = Text::encode(&Tokenizer::bytes(), &source(&[b"ab\xff"])).expect("bytes");
        assert_eq!([text.training(), text.validation()].concat(), [97, 98, 255]);
        let error = learn(b"ab\xff").expect_err("no UTF-8").to_string();
        assert!(error.contains("at byte 2"), "{error}");
        for (parts, place) in [
            ([&b"\xff"[..], b"b"], "part 0: not UTF-8 at byte 0"),
            ([b"ab", b"c\xff"], "part 1: not UTF-8 at byte 1"),
        ] {
            let error = source(&parts).utf8().expect_err("no UTF-8").to_string();
            assert!(error.starts_with(place), "{error}");
        }
    }

    #[test]
    fn a_text_too_short_names_the_least_length() {
        for block in [1, 2, 7, 8, 31, 64, 256] {
            let needed = (1..)
                .find(|&length| {
                    let (_, text) = learn("x".repeat(length).as_bytes()).expect("text");
                    text.require(block).is_ok()
                })
                .expect("some length is enough");
            let (_, text) = learn("x".repeat(needed - 1).as_bytes()).expect("text");
            let error = text.require(block).expect_err("too short").to_string();
            assert!(error.contains(&format!("at least {needed}\n")), "block {block}: {error}");
        }
    }

    #[test]
    fn another_part_can_be_held_out() {
        let (_, text) = learn("x".repeat(100).as_bytes()).expect("text");
        for (part, training) in [(0.1, 90), (0.5, 50), (0.25, 75), (0.0, 100)] {
            assert_eq!(text.clone().hold_out(part).training().len(), training);
        }
        let half = text.hold_out(0.5);
        assert!(half.require(49).is_ok());
        assert!(half.require(50).expect_err("too short").to_string().contains("at least 102"));
        assert!(half.hold_out(0.0).require(1).is_err());
    }

    #[test]
    fn one_changed_byte_changes_the_fingerprint() {
        let of = |text: &[u8]| learn(text).expect("text").1.fingerprint().clone();
        assert_eq!(of(b"some text"), of(b"some text"));
        assert_ne!(of(b"some text"), of(b"some test"));
    }

    #[test]
    fn targets_follow_inputs() {
        let split: Vec<u32> = (0..20).collect();
        let (mut inputs, mut targets) = (vec![], vec![]);
        gather(&split, &[5, 0], 3, &mut inputs, &mut targets);
        assert_eq!((inputs, targets), (vec![5, 6, 7, 0, 1, 2], vec![6, 7, 8, 1, 2, 3]));
        for (length, block, whole) in [(20, 3, 18), (19, 3, 18), (18, 3, 15), (3, 3, 0), (0, 3, 0), (4, 3, 3)]
        {
            let (inputs, targets) = windows(&split[..length], block);
            assert_eq!(inputs, &split[..whole]);
            assert_eq!(targets, if whole == 0 { &[][..] } else { &split[1..=whole] });
        }
    }

    #[test]
    fn folders_and_missing_files_are_refused() {
        for path in [std::env::temp_dir(), PathBuf::from("/no/such/text"), PathBuf::from("/dev/null")] {
            assert!(matches!(Source::read(&[path]), Err(Error::File { .. })));
        }
    }
}
