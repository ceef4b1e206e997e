//! Text to ids and back: characters, bytes, and byte-level byte-pair encoding, as Hugging Face `tokenizer.json` files
//! and as GPT-2's pair of files.
//!
//! - `characters`: one id a character
//! - `bpe`: byte strings made by merges; bytes alone are the vocabulary without a merge
//! - `split`, `class`: how text is cut before it is merged
//! - `merge`, `table`: the merging itself, and what it asks
//! - `special`: tokens that are looked for in the text and never split
//! - `byte_table`, `vocabulary`, `file`, `pair`: the files, in and out
//! - `stream`: bytes that arrive in pieces, given out as text
//!
//! What is read is checked whole at load; encoding and decoding then index nothing they have not proven. Merges are
//! learned elsewhere.

mod bpe;
mod byte_table;
mod characters;
mod class;
mod file;
mod merge;
mod pair;
mod special;
mod split;
mod stream;
mod table;
mod vocabulary;

pub use bpe::TokenKind;
pub use byte_table::character as byte_character;
pub use split::Split;
pub use stream::Utf8Stream;

use crate::checkpoint::source;
use crate::error::{Error, Result};
use bpe::{Bpe, Parts};
use characters::Characters;
use special::Added;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest tokenizer file that is read; the field's largest vocabularies need about half of it.
const MOST_BYTES: u64 = 64 << 20;

/// Turns text into ids and ids into bytes. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Characters(Arc<Characters>),
    Bytes(Arc<Bpe>),
}

impl Tokenizer {
    /// The lecture's vocabulary: the distinct characters of `text`, sorted.
    pub fn characters(text: &str) -> Result<Tokenizer> {
        if text.is_empty() {
            return Err(Error::Usage("the text is empty, so it has no characters to learn from".into()));
        }
        // A set, not a sorted copy: the text may be most of what fits in memory.
        let characters: BTreeSet<char> = text.chars().collect();
        Ok(Tokenizer::of_characters(characters.into_iter().collect()))
    }

    /// One id for each of the 256 bytes, the byte's value: any text encodes.
    pub fn bytes() -> Tokenizer {
        let tokens = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        let bpe = Bpe::new(Parts { tokens, ..Parts::default() });
        Tokenizer::of_bpe(bpe.expect("the 256 bytes are a vocabulary"))
    }

    /// A byte-level vocabulary that was learned: the bytes of each id, the merges as pairs of ids, and special tokens,
    /// whose ids come on top.
    pub fn byte_level(
        split: Split,
        mut tokens: Vec<Vec<u8>>,
        merges: Vec<(u32, u32)>,
        special: &[String],
    ) -> Result<Tokenizer> {
        // A file lists both kinds in one map, so no special token may be spelled as another.
        let spelled = |text: &&String| byte_table::read(text).is_ok_and(|bytes| tokens.contains(&bytes));
        if let Some(text) = special.iter().find(spelled) {
            return Err(Error::Usage(format!(
                "the special token {text:?} is spelled as one that merges make; choose another text for it"
            )));
        }
        let learned = tokens.len() as u32;
        let added = (learned..).zip(special).map(|(id, _)| Added { id, special: true }).collect();
        tokens.extend(special.iter().map(|text| text.as_bytes().to_vec()));
        let bpe = Bpe::new(Parts { tokens, merges, added, split, ..Parts::default() });
        bpe.map(Tokenizer::of_bpe).map_err(Error::Usage)
    }

    /// The 256 bytes in the order of their ids in GPT-2 and in every vocabulary that is learned here.
    pub fn byte_order() -> [u8; 256] {
        byte_table::in_character_order()
    }

    fn of_characters(characters: Vec<char>) -> Tokenizer {
        Tokenizer { kind: Kind::Characters(Arc::new(Characters::new(characters))) }
    }

    fn of_bpe(bpe: Bpe) -> Tokenizer {
        Tokenizer { kind: Kind::Bytes(Arc::new(bpe)) }
    }

    /// Reads a `tokenizer.json`, or the files of a directory: `tokenizer.json`, else GPT-2's `vocab.json` with
    /// `merges.txt` (or, as first published, `encoder.json` with `vocab.bpe`).
    pub fn open(path: &Path) -> Result<Tokenizer> {
        if !path.is_dir() {
            return Tokenizer::from_json(&source::read_text(path, MOST_BYTES)?, path);
        }
        Tokenizer::find(path)?.map(|(tokenizer, _)| tokenizer).ok_or_else(|| {
            Error::file(
                path,
                "holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there",
                "name a directory that holds one, or the file itself",
            )
        })
    }

    /// The tokenizer of a directory and the file that holds it, or `None` if it has none.
    pub fn find(directory: &Path) -> Result<Option<(Tokenizer, PathBuf)>> {
        let there = |name: &str| {
            let path = directory.join(name);
            // A link to nowhere is there too, and opening it says what is wrong.
            path.symlink_metadata().is_ok().then_some(path)
        };
        if let Some(path) = there("tokenizer.json") {
            return Ok(Some((Tokenizer::from_json(&source::read_text(&path, MOST_BYTES)?, &path)?, path)));
        }
        for (vocabulary, merges) in pair::NAMES {
            if let (Some(vocabulary), Some(merges)) = (there(vocabulary), there(merges)) {
                return Ok(Some((Tokenizer::open_pair(&vocabulary, &merges)?, vocabulary)));
            }
        }
        Ok(None)
    }

    /// Reads GPT-2's pair of files: a map of tokens to ids, and the merges, one a line. Tokens that no merge makes
    /// are special.
    pub fn open_pair(vocabulary: &Path, merges: &Path) -> Result<Tokenizer> {
        let text = source::read_text(vocabulary, MOST_BYTES)?;
        pair::read(&text, vocabulary, &source::read_text(merges, MOST_BYTES)?, merges)
    }

    /// Reads the text of a `tokenizer.json`; `origin` names it in errors.
    pub fn from_json(text: &str, origin: &Path) -> Result<Tokenizer> {
        file::from_json(text, origin)
    }

    /// The text of a `tokenizer.json` that [`Tokenizer::from_json`] and Hugging Face's libraries read.
    pub fn to_json(&self) -> String {
        file::to_json(self)
    }

    /// The texts of GPT-2's `vocab.json` and `merges.txt`, which hold neither the split nor which tokens are special;
    /// `None` for characters.
    pub fn to_pair(&self) -> Option<(String, String)> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Bytes(bpe) => Some(pair::write(bpe)),
        }
    }

    /// Number of ids; they are `0..vocabulary`.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Characters(characters) => characters.vocabulary(),
            Kind::Bytes(bpe) => bpe.vocabulary(),
        }
    }

    /// The ids of plain text. A special token that stands in it is text like any other and yields no special id; a
    /// character outside a vocabulary of characters is an error that names it and its place.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Bytes(bpe) => bpe.encode(text.as_bytes(), false),
        }
    }

    /// The ids of any bytes, text or not, as [`Tokenizer::encode`]. Bytes that are not UTF-8 are kept as they are: what
    /// [`Tokenizer::decode`] gives back is equal, unless the tokenizer composes characters. A vocabulary of
    /// characters takes UTF-8 only.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => {
                let text = std::str::from_utf8(bytes).map_err(|error| {
                    Error::Usage(format!(
                        "not UTF-8 at byte {}, and this tokenizer knows characters only",
                        error.valid_up_to()
                    ))
                })?;
                characters.encode(text)
            }
            Kind::Bytes(bpe) => bpe.encode(bytes, false),
        }
    }

    /// The ids of a text whose author may steer the model: special tokens written in it are recognised, and never
    /// split.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Bytes(bpe) => bpe.encode(text.as_bytes(), true),
        }
    }

    /// The ids that a model is to be given for a prompt, as Hugging Face's tokenizers give by default:
    /// [`Tokenizer::prefix`], then [`Tokenizer::encode_with_special`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.prefix().to_vec();
        ids.extend(self.encode_with_special(text)?);
        Ok(ids)
    }

    /// What a prompt begins with before its text, as Llama 3's does with `<|begin_of_text|>`.
    pub fn prefix(&self) -> &[u32] {
        match &self.kind {
            Kind::Characters(_) => &[],
            Kind::Bytes(bpe) => bpe.prefix(),
        }
    }

    /// The bytes of one id, if there is such an id.
    #[inline]
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        match &self.kind {
            Kind::Characters(characters) => characters.token(id),
            Kind::Bytes(bpe) => bpe.token(id),
        }
    }

    /// What one id is, if there is such an id.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        match &self.kind {
            Kind::Characters(characters) => characters.token(id).map(|_| TokenKind::Normal),
            Kind::Bytes(bpe) => bpe.kind(id),
        }
    }

    /// One id as byte-level files write it: GPT-2's characters for its bytes, an added token as its text.
    pub fn written(&self, id: u32) -> Option<String> {
        let token = self.token(id)?;
        Some(match &self.kind {
            Kind::Characters(_) => byte_table::written(token),
            Kind::Bytes(bpe) => bpe.written(id),
        })
    }

    /// The id whose text is `token`: `id_of("<|endoftext|>")`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Characters(characters) => {
                characters.encode(token).ok().filter(|ids| ids.len() == 1).map(|ids| ids[0])
            }
            Kind::Bytes(bpe) => bpe.id_of(token.as_bytes()),
        }
    }

    /// The id that ends a text: `<|endoftext|>`, or what Llama's and Qwen's families call it; `None` if no special
    /// token is called so.
    pub fn end_of_text(&self) -> Option<u32> {
        ["<|endoftext|>", "<|end_of_text|>", "</s>"]
            .iter()
            .filter_map(|name| self.id_of(name))
            .find(|&id| self.kind(id) == Some(TokenKind::Special))
    }

    /// Pairs of ids, the first to merge first; none for characters and bytes.
    pub fn merges(&self) -> &[(u32, u32)] {
        match &self.kind {
            Kind::Characters(_) => &[],
            Kind::Bytes(bpe) => bpe.merges(),
        }
    }

    /// How text is cut before it is merged; `None` for characters.
    pub fn split(&self) -> Option<Split> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Bytes(bpe) => Some(bpe.split()),
        }
    }

    /// Whether a piece of text that is a token whole is that token, whatever the merges make of it.
    pub fn ignores_merges(&self) -> bool {
        matches!(&self.kind, Kind::Bytes(bpe) if bpe.ignore_merges())
    }

    /// Whether characters are composed (Unicode's form NFC) before anything else.
    pub fn composes(&self) -> bool {
        matches!(&self.kind, Kind::Bytes(bpe) if bpe.composes())
    }

    /// The bytes of `ids`, one after the other; with a byte vocabulary they need not be UTF-8.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len());
        for (position, &id) in ids.iter().enumerate() {
            let token = self.token(id).ok_or_else(|| {
                Error::Usage(format!(
                    "id {id} at position {position} is outside the vocabulary, whose ids are 0 to {}",
                    self.vocabulary() - 1
                ))
            })?;
            bytes.extend_from_slice(token);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
