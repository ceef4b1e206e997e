//! Text cut into splits and batches. Holds the whole text as token ids; never holds a model.

use formats::checkpoint::source;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// The part of a text that is trained on; the rest validates.
const TRAINING_PART: f64 = 0.9;

/// How text becomes token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alphabet {
    /// One id for each character that occurs, in the order of their code points.
    Characters,
    /// One id for each byte value.
    Bytes,
}

/// Which text a run learns from, whatever its files are called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Length of the text.
    pub bytes: u64,
    /// XXH3 of its bytes, 128 bits in hexadecimal.
    pub xxh3: String,
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes with checksum {}", self.bytes, self.xxh3)
    }
}

/// A text as token ids, cut in two.
#[derive(Clone, Debug)]
pub struct Text {
    tokens: Vec<u32>,
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

    /// The file that stands for all of them in a sentence.
    fn name(&self) -> &Path {
        self.files.first().map_or(Path::new("--data"), |(path, _)| path)
    }

    fn utf8(&self) -> Result<&str> {
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
    /// Learns the alphabet of a text and cuts the text with it.
    pub fn learn(alphabet: Alphabet, source: &Source) -> Result<(Tokenizer, Text)> {
        let tokenizer = match alphabet {
            Alphabet::Characters => Tokenizer::characters(source.utf8()?)?,
            Alphabet::Bytes => Tokenizer::bytes(),
        };
        let text = Text::encode(&tokenizer, source)?;
        Ok((tokenizer, text))
    }

    /// Cuts a text with an alphabet that is given.
    pub fn encode(tokenizer: &Tokenizer, source: &Source) -> Result<Text> {
        let bytes = &source.bytes;
        let tokens = if *tokenizer == Tokenizer::bytes() {
            bytes.iter().map(|&byte| u32::from(byte)).collect()
        } else {
            tokenizer.encode(source.utf8()?)?
        };
        let cut = (TRAINING_PART * tokens.len() as f64) as usize;
        let fingerprint =
            Fingerprint { bytes: bytes.len() as u64, xxh3: format!("{:032x}", xxh3_128(bytes)) };
        Ok(Text { tokens, cut, fingerprint, name: source.name().to_path_buf() })
    }

    /// The tokens that are trained on.
    pub fn training(&self) -> &[u32] {
        &self.tokens[..self.cut]
    }

    /// The tokens that are held back.
    pub fn validation(&self) -> &[u32] {
        &self.tokens[self.cut..]
    }

    /// What tells this text from every other.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Refuses a text of which a split has no window of `block` tokens and a target for each.
    pub fn require(&self, block: usize) -> Result<()> {
        let long_enough = |tokens: usize| {
            let cut = (TRAINING_PART * tokens as f64) as usize;
            cut > block && tokens - cut > block
        };
        if long_enough(self.tokens.len()) {
            return Ok(());
        }
        // A tenth of the text must exceed the block; rounding moves the bound by a few tokens either way.
        let guess = 10usize.saturating_mul(block.saturating_add(1));
        let needed =
            (guess.saturating_sub(20)..=guess.saturating_add(20)).find(|&n| long_enough(n)).unwrap_or(guess);
        Err(Error::file(
            &self.name,
            format!(
                "the text has {} tokens, and a block of {block} needs at least {needed}",
                self.tokens.len()
            ),
            "give more text with --data, or a smaller --block",
        ))
    }
}

/// Copies the windows of `block` tokens that begin at `offsets`, and the token after each of theirs.
pub fn gather(split: &[u32], offsets: &[usize], block: usize, inputs: &mut Vec<u32>, targets: &mut Vec<u32>) {
    inputs.clear();
    targets.clear();
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
        Text::learn(Alphabet::Characters, &source(&[text]))
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
    fn bytes_need_no_utf8_and_characters_say_where_it_ends() {
        let (_, text) = Text::learn(Alphabet::Bytes, &source(&[b"ab\xff"])).expect("bytes");
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
    fn one_changed_byte_changes_the_fingerprint() {
        let of = |text: &[u8]| learn(text).expect("text").1.fingerprint().clone();
        assert_eq!(of(b"some text"), of(b"some text"));
        assert_ne!(of(b"some text"), of(b"some test"));
    }

    #[test]
    fn targets_follow_inputs() {
        let split: Vec<u32> = (0..20).collect();
        let (mut inputs, mut targets) = (vec![9], vec![9]);
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
