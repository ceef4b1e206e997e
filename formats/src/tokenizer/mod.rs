//! Text to ids and back: characters, bytes, and byte-pair encoding of bytes or of characters, as Hugging Face
//! `tokenizer.json` files and as GPT-2's pair of files.
//!
//! - `characters`: one id a character
//! - `bpe`: byte strings made by merges; bytes alone are the vocabulary without a merge
//! - `fallback`: strings of characters made by merges, with bytes for what has no token (Llama 2, Mistral)
//! - `lexicon`: what vocabularies with merges have in common
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
mod fallback;
mod file;
mod lexicon;
mod merge;
mod pair;
mod special;
mod split;
mod stream;
mod table;
mod vocabulary;

pub use byte_table::character as byte_character;
pub use fallback::Blanks;
pub use lexicon::TokenKind;
pub use split::Split;
pub use stream::Utf8Stream;

use crate::checkpoint::source;
use crate::error::{Error, Result};
use bpe::{Bpe, Parts};
use characters::Characters;
use fallback::Fallback;
use lexicon::Lexicon;
use special::Added;
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
    Fallback(Arc<Fallback>),
}

impl Tokenizer {
    /// The lecture's vocabulary: the distinct characters of `text`, sorted.
    pub fn characters(text: &str) -> Result<Tokenizer> {
        if text.is_empty() {
            return Err(Error::Usage("the text is empty, so it has no characters to learn from".into()));
        }
        Ok(Tokenizer::of_characters(Characters::of(text)))
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

    fn of_fallback(fallback: Fallback) -> Tokenizer {
        Tokenizer { kind: Kind::Fallback(Arc::new(fallback)) }
    }

    /// What all vocabularies with merges have.
    fn lexicon(&self) -> Option<&Lexicon> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Bytes(bpe) => Some(bpe.lexicon()),
            Kind::Fallback(fallback) => Some(fallback.lexicon()),
        }
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
    /// `None` for characters and for characters with bytes to fall back on.
    pub fn to_pair(&self) -> Option<(String, String)> {
        match &self.kind {
            Kind::Characters(_) | Kind::Fallback(_) => None,
            Kind::Bytes(bpe) => Some(pair::write(bpe)),
        }
    }

    /// Number of ids; they are `0..vocabulary`.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Characters(characters) => characters.vocabulary(),
            Kind::Bytes(bpe) => bpe.lexicon().vocabulary(),
            Kind::Fallback(fallback) => fallback.lexicon().vocabulary(),
        }
    }

    /// The ids of plain text. A special token that stands in it is text like any other and yields no special id; a
    /// character outside a vocabulary of characters is an error that names it and its place.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false, true)
    }

    /// The ids of any bytes, text or not, as [`Tokenizer::encode`]. Bytes that are not UTF-8 are kept as they are: what
    /// [`Tokenizer::decode`] gives back is equal, unless the tokenizer composes characters, or puts a blank before a text
    /// only where none is. A vocabulary of characters takes UTF-8 only.
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
            Kind::Fallback(fallback) => fallback.encode(bytes, false, true),
        }
    }

    /// The ids of a text whose author may steer the model: special tokens written in it are recognised, and never
    /// split.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, true, true)
    }

    /// The ids of a text that goes on from another: as [`Tokenizer::encode`] or, with `special`,
    /// [`Tokenizer::encode_with_special`], but without the blank that some tokenizers put before a text.
    pub fn encode_continued(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.ids(text, special, false)
    }

    fn ids(&self, text: &str, special: bool, begins: bool) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Bytes(bpe) => bpe.encode(text.as_bytes(), special),
            Kind::Fallback(fallback) => fallback.encode(text.as_bytes(), special, begins),
        }
    }

    /// The ids that a model is to be given for a prompt, as Hugging Face's tokenizers give by default:
    /// [`Tokenizer::prefix`], then [`Tokenizer::encode_with_special`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.prefix().to_vec();
        ids.extend(self.encode_with_special(text)?);
        Ok(ids)
    }

    /// What a prompt begins with before its text, as Llama's does with `<s>` or `<|begin_of_text|>`.
    pub fn prefix(&self) -> &[u32] {
        self.lexicon().map_or(&[], Lexicon::prefix)
    }

    /// The bytes of one id, if there is such an id.
    #[inline]
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        match &self.kind {
            Kind::Characters(characters) => characters.token(id),
            Kind::Bytes(bpe) => bpe.lexicon().token(id),
            Kind::Fallback(fallback) => fallback.lexicon().token(id),
        }
    }

    /// What one id is, if there is such an id.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        match self.lexicon() {
            None => self.token(id).map(|_| TokenKind::Normal),
            Some(lexicon) => lexicon.kind(id),
        }
    }

    /// One id as files write it: GPT-2's characters for the bytes of a byte-level vocabulary, "▁" for the blanks of one
    /// that falls back on bytes and `<0xE6>` for those bytes, an added token as its text.
    pub fn written(&self, id: u32) -> Option<String> {
        let token = self.token(id)?;
        Some(match &self.kind {
            Kind::Characters(_) => byte_table::written(token),
            Kind::Bytes(bpe) => bpe.written(id),
            Kind::Fallback(fallback) => fallback.written(id),
        })
    }

    /// The id whose text is `token`: `id_of("<|endoftext|>")`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Characters(characters) => {
                characters.encode(token).ok().filter(|ids| ids.len() == 1).map(|ids| ids[0])
            }
            Kind::Bytes(bpe) => bpe.id_of(token.as_bytes()),
            Kind::Fallback(fallback) => fallback.id_of(token),
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
        self.lexicon().map_or(&[], Lexicon::merges)
    }

    /// How text is cut before it is merged; `None` for characters.
    pub fn split(&self) -> Option<Split> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Bytes(bpe) => Some(bpe.split()),
            Kind::Fallback(_) => Some(Split::None),
        }
    }

    /// How blanks are written, where "▁" stands for them and bytes for what has no token; `None` for other kinds.
    pub fn blanks(&self) -> Option<Blanks> {
        self.fallback().map(Fallback::blanks)
    }

    /// The token of a byte, where "▁" stands for blanks and bytes for what has no token; `None` for other kinds.
    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        self.fallback().map(|fallback| fallback.byte(byte))
    }

    /// The special token for what cannot be encoded, where the file names one; nothing yields it.
    pub fn unknown(&self) -> Option<u32> {
        self.fallback().and_then(Fallback::unknown)
    }

    fn fallback(&self) -> Option<&Fallback> {
        match &self.kind {
            Kind::Fallback(fallback) => Some(fallback),
            Kind::Characters(_) | Kind::Bytes(_) => None,
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

    /// The bytes of `ids` as a text of their own; with a byte vocabulary they need not be UTF-8. Where encoding puts a blank
    /// before a text, one is taken off here: off the first token that is not special, as Hugging Face's libraries do when
    /// they skip special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = self.decode_continued(ids)?;
        let special = ids.iter().position(|&id| !self.is_special(id)).unwrap_or(ids.len());
        if let Some(&first) = ids.get(special) {
            let start =
                ids[..special].iter().filter_map(|&id| self.token(id)).map(<[u8]>::len).sum::<usize>();
            bytes.drain(start..start + self.leading_blank(first));
        }
        Ok(bytes)
    }

    /// The bytes of `ids` that go on from others, one after the other.
    pub fn decode_continued(&self, ids: &[u32]) -> Result<Vec<u8>> {
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

    /// How many bytes of a token are not given out where it begins a text: the blank that encoding puts there.
    pub fn leading_blank(&self, id: u32) -> usize {
        let blank = self.fallback().is_some_and(Fallback::strips)
            && self.token(id).is_some_and(|token| token.starts_with(b" "));
        usize::from(blank)
    }

    /// Whether an id is a special token, which is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Special)
    }
}

#[cfg(test)]
mod tests;
