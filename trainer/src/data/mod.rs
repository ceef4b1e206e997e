//! What a run learns from: text as token ids, split in two and read in windows.
//!
//! - [`text`]: a text that is held whole, windows anywhere in it, as the lecture reads it
//! - [`corpus`]: shards and texts of any size, every window once an epoch; [`order`]: in which order
//! - [`shard`]: the file format of token ids; [`encode`]: texts of any size to ids
//!
//! Never holds a model.

pub mod corpus;
pub mod encode;
pub mod order;
pub mod shard;
pub mod text;

pub use corpus::{Corpus, Side};
pub use shard::Shard;
pub use text::{HELD_OUT, Source, Text, gather, windows};

use crate::random::Generator;
use corpus::Opened;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// From here on a text in memory is worth a word.
const LARGE_TEXT: u64 = 64 << 20;

/// Where a run's tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerSource {
    /// One id for each character that occurs in the text, in the order of their code points.
    Characters,
    /// One id for each byte value.
    Bytes,
    /// A `tokenizer.json`, or a model's directory that holds one.
    File(PathBuf),
}

impl TokenizerSource {
    /// The words that are not paths; a file of such a name is named `./characters`.
    pub const WORDS: &[&str] = &["characters", "bytes"];

    /// The tokenizer, if no text is needed to make it.
    pub fn given(&self) -> Result<Option<Tokenizer>> {
        match self {
            TokenizerSource::Characters => Ok(None),
            TokenizerSource::Bytes => Ok(Some(Tokenizer::bytes())),
            TokenizerSource::File(path) => open_tokenizer(path).map(Some),
        }
    }
}

impl From<String> for TokenizerSource {
    fn from(text: String) -> TokenizerSource {
        match text.as_str() {
            "characters" => TokenizerSource::Characters,
            "bytes" => TokenizerSource::Bytes,
            _ => TokenizerSource::File(text.into()),
        }
    }
}

impl From<TokenizerSource> for String {
    fn from(source: TokenizerSource) -> String {
        source.to_string()
    }
}

impl fmt::Display for TokenizerSource {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            TokenizerSource::Characters => out.write_str("characters"),
            TokenizerSource::Bytes => out.write_str("bytes"),
            TokenizerSource::File(path) => path.display().fmt(out),
        }
    }
}

/// Reads a `tokenizer.json`, a model's directory or a run.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    if !path.is_dir() {
        let missing = path.symlink_metadata().is_err();
        let word = path.to_str().filter(|_| missing);
        if let Some(near) =
            word.and_then(|word| crate::options::nearest(word, TokenizerSource::WORDS.iter().copied()))
        {
            let problem = format!("is no tokenizer (did you mean {near}?)");
            return Err(Error::file(path, problem, "name characters, bytes, or a tokenizer.json"));
        }
        return Tokenizer::open(path);
    }
    // A run's model is below it.
    let below = || Tokenizer::find(&path.join("model")).transpose();
    match Tokenizer::find(path).transpose().or_else(below) {
        Some(found) => found.map(|(tokenizer, _)| tokenizer),
        None => Tokenizer::open(path),
    }
}

/// Which text a run learns from, whatever its files are called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Length of the text.
    pub bytes: u64,
    /// XXH3 of its bytes, or of what its shards say of theirs, 128 bits in hexadecimal.
    pub xxh3: String,
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes with checksum {}", self.bytes, self.xxh3)
    }
}

/// Windows side by side.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Ids, window after window.
    pub inputs: Vec<u32>,
    /// The id after each of them.
    pub targets: Vec<u32>,
    /// One window with its last target.
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Batch {
    /// Takes all windows out.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.targets.clear();
    }
}

/// What is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Text files and shards.
    pub paths: &'a [PathBuf],
    /// A weight for each, or none.
    pub weights: &'a [f64],
    /// The part that is held out.
    pub held_out: f64,
    /// Ids of a window.
    pub block: usize,
}

/// What a run learns from.
#[derive(Debug)]
pub enum Data {
    /// One text in memory.
    Text(Text),
    /// Shards, or texts with weights.
    Corpus(Corpus),
}

impl Data {
    /// Opens data with a tokenizer that is given, or with the characters of a text.
    ///
    /// Text files without weights are one text. As soon as a shard is among them, or each has a weight, they are a
    /// corpus, and each text file is a document of its own.
    pub fn open(request: &Request, tokenizer: Option<Tokenizer>) -> Result<(Tokenizer, Data)> {
        let Request { paths, weights, held_out, block } = *request;
        if !weights.is_empty() && weights.len() != paths.len() {
            return Err(Error::Usage(format!(
                "there are {} weights for {} files of data\n  help: give --data-weight a number for each file of \
                 --data, in their order, or none",
                weights.len(),
                paths.len()
            )));
        }
        let shards = paths.iter().map(|path| shard::is_shard(path)).collect::<Result<Vec<bool>>>()?;
        let first = shards.iter().position(|shard| *shard);
        if first.is_none() && weights.is_empty() {
            let source = Source::read(paths)?;
            let tokenizer = match tokenizer {
                Some(tokenizer) => tokenizer,
                None => Tokenizer::characters(source.utf8()?)?,
            };
            let text = Text::encode(&tokenizer, &source)?.hold_out(held_out);
            text.require(block)?;
            return Ok((tokenizer, Data::Text(text)));
        }
        let tokenizer = match (tokenizer, first) {
            (Some(tokenizer), _) => tokenizer,
            (None, None) => Tokenizer::characters(Source::read(paths)?.utf8()?)?,
            (None, Some(first)) => {
                return Err(Error::file(
                    &paths[first],
                    "is a token shard, and characters are learned from a text",
                    "name the tokenizer it was encoded with: --tokenizer bytes, a tokenizer.json, or a model",
                ));
            }
        };
        let files = paths.iter().zip(shards).map(|(path, shard)| {
            if shard {
                return Shard::open(path).map(Opened::Shard);
            }
            let source = Source::read(std::slice::from_ref(path))?;
            let (bytes, ids) = source.into_ids(&tokenizer)?;
            Ok(Opened::Text(path.clone(), bytes, ids))
        });
        let files = files.collect::<Result<Vec<Opened>>>()?;
        let corpus = Corpus::new(files, &tokenizer, weights, held_out, block)?;
        Ok((tokenizer, Data::Corpus(corpus)))
    }

    /// What tells these data from all others.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Data::Text(text) => text.fingerprint(),
            Data::Corpus(corpus) => corpus.fingerprint(),
        }
    }

    /// Ids of a side.
    pub fn tokens(&self, side: Side) -> u64 {
        match self {
            Data::Text(text) => text.side(side).len() as u64,
            Data::Corpus(corpus) => corpus.tokens(side),
        }
    }

    /// What its reader should know: files that are not split by document, and texts that would be better as shards.
    pub fn notes(&self) -> Vec<String> {
        match self {
            Data::Text(text) if text.fingerprint().bytes > LARGE_TEXT => vec![format!(
                "note    a text of {} MiB is held in memory; `trainer tokenizer encode --format shard` makes a file that \
                 is not",
                text.fingerprint().bytes >> 20
            )],
            Data::Text(_) => vec![],
            Data::Corpus(corpus) => corpus
                .told()
                .filter(|told| !told.by_document)
                .map(|told| {
                    format!(
                        "note    {} is not split by document (it has too few): its last {} tokens are held out",
                        told.path.display(),
                        told.tokens[1]
                    )
                })
                .collect(),
        }
    }

    /// Fills a batch with the `sequences` windows that training step `step` reads: a function of the seed and the step,
    /// but with PyTorch's generator.
    pub fn training(
        &self,
        generator: &mut Generator,
        seed: u64,
        step: u64,
        (sequences, block): (usize, usize),
        batch: &mut Batch,
    ) -> Result<()> {
        batch.clear();
        match self {
            Data::Text(text) => {
                batch.offsets.resize(sequences, 0);
                let training = text.training();
                generator.training_offsets(step, training.len() - block, &mut batch.offsets);
                gather(training, &batch.offsets, block, &mut batch.inputs, &mut batch.targets);
                Ok(())
            }
            Data::Corpus(corpus) => {
                let first = step.saturating_mul(sequences as u64);
                (first..first.saturating_add(sequences as u64)).try_for_each(|sequence| {
                    corpus.read(Side::Training, corpus.training(seed, sequence), batch)
                })
            }
        }
    }

    /// Adds the windows of evaluation batch `number` of a side before step `step` to a batch. Of a text, batches are
    /// numbered through both sides and asked for in order.
    pub fn evaluation(
        &self,
        generator: &mut Generator,
        seed: u64,
        (step, side, batches, number): (u64, Side, u64, u64),
        (sequences, block): (usize, usize),
        batch: &mut Batch,
    ) -> Result<()> {
        match self {
            Data::Text(text) => {
                batch.offsets.resize(sequences, 0);
                let (split, number) = (text.side(side), side as u64 * batches + number);
                generator.evaluation_offsets(step, number, split.len() - block, &mut batch.offsets);
                gather(split, &batch.offsets, block, &mut batch.inputs, &mut batch.targets);
                Ok(())
            }
            Data::Corpus(corpus) => {
                let first = number * sequences as u64;
                (first..first + sequences as u64).try_for_each(|sequence| {
                    corpus.read(side, corpus.evaluation(seed, step, side, sequence), batch)
                })
            }
        }
    }
}
