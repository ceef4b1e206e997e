//! Data of any size: shards that are mapped and texts that are held, read window by window.
//!
//! What a member of a corpus is trained on and what of it is held out are two streams of ids: its documents of either
//! side, one after another. Windows of `block` ids and their successors tile a stream, so that each id but the first is
//! one window's target once; the rest shorter than a window is left over. Nothing here grows with the data but
//! a mark for every [`STRIDE`] documents, and nothing has a state: which window sequence `k` is follows from seed and `k`.

use super::order::{Permutation, Proportions, mix};
use super::shard::Shard;
use super::{Batch, Fingerprint, text};
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use runtime::random::{Purpose, Stream};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// Documents from one mark to the next: at most as many are walked to find one.
const STRIDE: u64 = 256;
/// Sets the hash of documents apart from other uses of the same function.
const SPLIT_KEY: u64 = 0x6C65_6374_6572_6E21;

/// One side of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What is trained on.
    Training,
    /// What is held out.
    Validation,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Training, Side::Validation];
}

/// Where a member's ids are.
#[derive(Debug)]
enum Ids {
    Mapped(Shard),
    Held(Vec<u32>),
}

/// How a member is split.
#[derive(Debug)]
enum Split {
    /// By document.
    Documents {
        held_out: f64,
        /// For each side, its ids before every `STRIDE`-th document.
        marks: [Vec<u64>; 2],
    },
    /// One document, cut after so many ids.
    Cut(u64),
}

/// One file of a corpus.
#[derive(Debug)]
struct Member {
    path: PathBuf,
    ids: Ids,
    split: Split,
    /// Ids of each side.
    tokens: [u64; 2],
    documents: [u64; 2],
    fingerprint: [u8; 16],
    bytes: u64,
}

/// What is told of one file of a corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The file.
    pub path: PathBuf,
    /// Whether it is split by document; else its last ids are held out.
    pub by_document: bool,
    /// Documents of each side; a single one that is cut counts on both.
    pub documents: [u64; 2],
    /// Ids of each side.
    pub tokens: [u64; 2],
    /// Its share of the sequences, where data have weights.
    pub share: Option<f64>,
}

/// Any number of files, split, and the order in which they are read.
#[derive(Debug)]
pub struct Corpus {
    members: Vec<Member>,
    /// For each side, the windows before each member, and in all.
    windows: [Vec<u64>; 2],
    weights: Option<Proportions>,
    block: usize,
    fingerprint: Fingerprint,
}

/// A file of a corpus as it was opened.
pub(super) enum Opened {
    /// A token shard.
    Shard(Shard),
    /// A text's bytes and their ids.
    Text(PathBuf, Vec<u8>, Vec<u32>),
}

impl Corpus {
    /// Splits files that `tokenizer` encoded, each with a weight or none of them.
    pub(super) fn new(
        files: Vec<Opened>,
        tokenizer: &Tokenizer,
        weights: &[f64],
        held_out: f64,
        block: usize,
    ) -> Result<Corpus> {
        let members: Vec<Member> =
            files.into_iter().map(|file| Member::new(file, tokenizer, held_out)).collect::<Result<_>>()?;
        let windows = Side::ALL.map(|side| {
            let mut before = 0u64;
            let each = members.iter().map(|member| {
                before += member.tokens[side as usize].saturating_sub(1) / block as u64;
                before
            });
            std::iter::once(0).chain(each).collect::<Vec<u64>>()
        });
        let weights = if weights.is_empty() { None } else { Some(Proportions::new(weights)?) };
        let sums: Vec<u8> = members.iter().flat_map(|member| member.fingerprint).collect();
        let fingerprint = Fingerprint {
            bytes: members.iter().fold(0, |sum, member| sum.saturating_add(member.bytes)),
            xxh3: format!("{:032x}", xxh3_128(&sums)),
        };
        let corpus = Corpus { members, windows, weights, block, fingerprint };
        corpus.require()?;
        Ok(corpus)
    }

    /// Refuses a corpus of which a side that will be asked for has no window.
    fn require(&self) -> Result<()> {
        let (block, help) = (self.block, "give more text, a smaller --block, or another --held-out");
        let first = self.members.first().map_or(Path::new("--data"), |member| &member.path);
        for (side, name) in Side::ALL.into_iter().zip(["trained on", "held out"]) {
            if self.windows(side) == 0 {
                let problem =
                    format!("of the data too little is {name}: a block of {block} needs {}", block + 1);
                return Err(Error::file(first, problem, help));
            }
        }
        if self.weights.is_some() {
            for (index, member) in self.members.iter().enumerate() {
                if self.windows[0][index] == self.windows[0][index + 1] {
                    let problem = format!("has a weight, and too little to train on for a block of {block}");
                    return Err(Error::file(&member.path, problem, help));
                }
            }
        }
        Ok(())
    }

    /// What tells this corpus from every other: of shards their headers, which hold checksums of everything.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Ids of a side.
    pub fn tokens(&self, side: Side) -> u64 {
        self.members.iter().map(|member| member.tokens[side as usize]).sum()
    }

    /// Windows of a side, none overlapping.
    pub fn windows(&self, side: Side) -> u64 {
        self.windows[side as usize].last().copied().unwrap_or(0)
    }

    /// File by file, what there is.
    pub fn told(&self) -> impl Iterator<Item = Told> {
        let shares = self.weights.as_ref().map(|weights| weights.shares().collect::<Vec<f64>>());
        self.members.iter().enumerate().map(move |(index, member)| Told {
            path: member.path.clone(),
            by_document: matches!(member.split, Split::Documents { .. }),
            documents: member.documents,
            tokens: member.tokens,
            share: shares.as_ref().map(|shares| shares[index]),
        })
    }

    /// Every shard, for whoever wants to verify them.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.members.iter().filter_map(|member| match &member.ids {
            Ids::Mapped(shard) => Some(shard),
            Ids::Held(_) => None,
        })
    }

    /// The window that training sequence `sequence` of a run is. With `micro` micro-batches a step, row `row` of
    /// micro-batch `m` of step `s` is sequence `(s x micro + m) x batch + row`.
    ///
    /// Without weights all windows are visited once before any is visited again; with weights this holds for each
    /// file, and of any first sequences each file has its share within one.
    pub fn training(&self, seed: u64, sequence: u64) -> u64 {
        let stream = Stream::new(seed, Purpose::Order);
        self.weighted(Side::Training, sequence, |group, epoch| (stream, epoch, group))
    }

    /// The window that sequence `sequence` of the evaluation before step `step` is: another order each time. Training
    /// windows are weighted as training weights them, those held out are not.
    pub fn evaluation(&self, seed: u64, step: u64, side: Side, sequence: u64) -> u64 {
        let stream = Stream::new(seed, Purpose::Evaluation);
        let groups = self.members.len() as u64 + 1;
        let key = |group: u64, epoch: u64| (stream, step, epoch * groups + group);
        match side {
            Side::Training => self.weighted(side, sequence, key),
            Side::Validation => {
                self.in_order(0..self.windows(side), sequence, self.members.len() as u64, key)
            }
        }
    }

    fn weighted(&self, side: Side, sequence: u64, key: impl Fn(u64, u64) -> (Stream, u64, u64)) -> u64 {
        match &self.weights {
            None => self.in_order(0..self.windows(side), sequence, 0, key),
            Some(weights) => {
                let (member, own) = weights.of(sequence);
                let windows = &self.windows[side as usize];
                self.in_order(windows[member]..windows[member + 1], own, member as u64, key)
            }
        }
    }

    /// The window of `windows` that comes at `sequence` when epoch follows epoch.
    fn in_order(
        &self,
        windows: std::ops::Range<u64>,
        sequence: u64,
        group: u64,
        key: impl Fn(u64, u64) -> (Stream, u64, u64),
    ) -> u64 {
        let count = windows.end - windows.start;
        let (stream, step, index) = key(group, sequence / count);
        windows.start + Permutation::new(count, &stream, step, index).at(sequence % count)
    }

    /// Adds window `window` of a side to a batch.
    pub fn read(&self, side: Side, window: u64, batch: &mut Batch) -> Result<()> {
        let windows = &self.windows[side as usize];
        let member = windows.partition_point(|&before| before <= window).saturating_sub(1);
        let Some(found) = self.members.get(member) else {
            return Err(Error::Internal(format!("window {window} of {}", self.windows(side))));
        };
        let (from, block) = ((window - windows[member]) * self.block as u64, self.block);
        batch.ids.clear();
        found.read(side, from, block as u64 + 1, &mut batch.ids)?;
        batch.inputs.extend_from_slice(&batch.ids[..block]);
        batch.targets.extend_from_slice(&batch.ids[1..]);
        Ok(())
    }
}

impl Member {
    fn new(file: Opened, tokenizer: &Tokenizer, held_out: f64) -> Result<Member> {
        match file {
            Opened::Shard(shard) => {
                shard.require(tokenizer)?;
                Member::of_shard(shard, held_out)
            }
            Opened::Text(path, bytes, ids) => {
                let cut = text::cut(ids.len(), held_out);
                Ok(Member {
                    path,
                    split: Split::Cut(cut as u64),
                    tokens: [cut as u64, (ids.len() - cut) as u64],
                    documents: [1, 1],
                    ids: Ids::Held(ids),
                    fingerprint: xxh3_128(&bytes).to_be_bytes(),
                    bytes: bytes.len() as u64,
                })
            }
        }
    }

    fn of_shard(shard: Shard, held_out: f64) -> Result<Member> {
        let header = *shard.header();
        let (mut marks, mut tokens, mut documents) = ([vec![], vec![]], [0u64; 2], [0u64; 2]);
        for document in 0..header.documents {
            if document.is_multiple_of(STRIDE) {
                marks
                    .iter_mut()
                    .zip(tokens)
                    .for_each(|(marks, tokens): (&mut Vec<u64>, u64)| marks.push(tokens));
            }
            let (ids, side) = (shard.document(document)?, side(document, held_out));
            tokens[side as usize] += ids.end - ids.start;
            documents[side as usize] += 1;
        }
        let mut split = Split::Documents { held_out, marks };
        // Documents that all fall on one side are not worth calling a split.
        if documents.contains(&0) {
            let cut = ((1.0 - held_out) * header.tokens as f64) as u64;
            (split, tokens) = (Split::Cut(cut), [cut, header.tokens - cut]);
            documents = [header.documents; 2];
        }
        Ok(Member {
            path: shard.path().to_path_buf(),
            split,
            tokens,
            documents,
            fingerprint: xxh3_128(&header.to_bytes()).to_be_bytes(),
            bytes: header.text_bytes,
            ids: Ids::Mapped(shard),
        })
    }

    /// Adds `count` ids of a side from `at` on.
    fn read(&self, side_: Side, at: u64, count: u64, ids: &mut Vec<u32>) -> Result<()> {
        let (shard, held_out, marks) = match (&self.ids, &self.split) {
            (Ids::Mapped(shard), Split::Documents { held_out, marks }) => {
                (shard, *held_out, &marks[side_ as usize])
            }
            (Ids::Mapped(shard), Split::Cut(cut)) => {
                let from = at + if side_ == Side::Training { 0 } else { *cut };
                return shard.copy(from..from + count, ids);
            }
            (Ids::Held(held), split) => {
                let cut = if let Split::Cut(cut) = split { *cut } else { 0 };
                let from = (at + if side_ == Side::Training { 0 } else { cut }) as usize;
                let part = held.get(from..from + count as usize);
                ids.extend_from_slice(part.ok_or_else(|| Error::Internal("ids beyond a text".into()))?);
                return Ok(());
            }
        };
        let (mut at, mut left) = (at, count);
        let mark = marks.partition_point(|&before| before <= at).saturating_sub(1);
        let mut document = mark as u64 * STRIDE;
        // Ids of this side before the document.
        let mut before = marks.get(mark).copied().unwrap_or(0);
        while left > 0 {
            let own = shard.document(document)?;
            if side(document, held_out) == side_ {
                let long = own.end.saturating_sub(own.start);
                if at < before + long {
                    let skip = at - before;
                    let taken = left.min(long - skip);
                    shard.copy(own.start + skip..own.start + skip + taken, ids)?;
                    (at, left) = (at + taken, left - taken);
                }
                before += long;
            }
            document += 1;
        }
        Ok(())
    }
}

/// The side of a shard's document: a function of its number alone, whatever the seed, so that a model and its
/// evaluation agree.
fn side(document: u64, held_out: f64) -> Side {
    // 53 bits are what a float holds.
    let place = (mix(document ^ SPLIT_KEY) >> 11) as f64 / (1u64 << 53) as f64;
    if place < held_out { Side::Validation } else { Side::Training }
}

#[cfg(test)]
#[path = "corpus/tests.rs"]
mod tests;
