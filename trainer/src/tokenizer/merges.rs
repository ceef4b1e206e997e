//! The merges of counted words (Gage 1994; Sennrich et al. 2016): the pair that occurs most often becomes a token,
//! wherever it occurs, until there are tokens enough or no pairs left.
//!
//! Of pairs that occur equally often the one with the smaller ids goes first. A queue holds every pair with the count
//! it had when it came; a pair that has lost some since goes back with what is left of it. Where two pairs spell one
//! token it keeps its first id. All of it is as Hugging Face's trainer does it, so that equal texts give equal files.

use super::Stage;
use formats::tokenizer::Tokenizer;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

/// How often progress is told.
const BETWEEN: Duration = Duration::from_millis(100);

/// A pair that waits to be merged. Ordered by count, then the smaller pair first; the words take no part.
struct Candidate {
    count: u64,
    pair: (u32, u32),
    /// Words that hold it, each once.
    words: Vec<u32>,
}

impl Candidate {
    fn key(&self) -> (u64, Reverse<(u32, u32)>) {
        (self.count, Reverse(self.pair))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Pairs hash by one multiplication: there are many, they are ours, and no answer depends on their order.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, half: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(half)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// How often each pair of neighbours occurs, and where it has come up since it was last looked at.
#[derive(Default)]
struct Pairs {
    places: HashMap<(u32, u32), u32, BuildHasherDefault<PairHasher>>,
    /// By place: the pair, its count, and the words in which it is new.
    pairs: Vec<((u32, u32), i64, Vec<u32>)>,
    /// Places of pairs that are new somewhere.
    touched: Vec<u32>,
}

impl Pairs {
    /// Adds `change` times to a pair's count; a pair that has come up is noted with its word.
    #[inline]
    fn change(&mut self, pair: (u32, u32), change: i64, word: u32) {
        let place = *self.places.entry(pair).or_insert_with(|| {
            self.pairs.push((pair, 0, Vec::new()));
            self.pairs.len() as u32 - 1
        });
        let (_, count, words) = &mut self.pairs[place as usize];
        *count += change;
        if change > 0 && words.last() != Some(&word) {
            if words.is_empty() {
                self.touched.push(place);
            }
            words.push(word);
        }
    }

    fn count(&self, pair: (u32, u32)) -> u64 {
        self.places.get(&pair).map_or(0, |&place| self.pairs[place as usize].1.max(0) as u64)
    }

    /// Puts the pairs that have come up into the queue.
    fn queue(&mut self, queue: &mut BinaryHeap<Candidate>) {
        for place in self.touched.drain(..) {
            let (pair, count, words) = &mut self.pairs[place as usize];
            let words = std::mem::take(words);
            if *count > 0 {
                queue.push(Candidate { count: *count as u64, pair: *pair, words });
            }
        }
    }
}

/// The tokens by id and the merges in their order, from words and their counts.
pub(super) fn learn(
    words: &[(Box<[u8]>, u64)],
    vocabulary: usize,
    tell: &mut dyn FnMut(Stage),
) -> (Vec<Vec<u8>>, Vec<(u32, u32)>) {
    let order = Tokenizer::byte_order();
    let mut tokens: Vec<Vec<u8>> = order.iter().map(|&byte| vec![byte]).collect();
    let mut ids: HashMap<Vec<u8>, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut byte_ids = [0; 256];
    for (&byte, id) in order.iter().zip(0u32..) {
        byte_ids[usize::from(byte)] = id;
    }
    let mut symbols: Vec<Vec<u32>> = words
        .iter()
        .map(|(word, _)| word.iter().map(|&byte| byte_ids[usize::from(byte)]).collect())
        .collect();
    let counts: Vec<i64> = words.iter().map(|&(_, count)| count as i64).collect();

    let mut pairs = Pairs::default();
    for ((symbols, &count), word) in symbols.iter().zip(&counts).zip(0u32..) {
        for neighbours in symbols.windows(2) {
            pairs.change((neighbours[0], neighbours[1]), count, word);
        }
    }
    let mut queue = BinaryHeap::new();
    pairs.queue(&mut queue);

    let mut merges = Vec::new();
    let mut told = Instant::now();
    while tokens.len() < vocabulary {
        let Some(mut best) = queue.pop() else { break };
        let count = pairs.count(best.pair);
        if best.count != count {
            best.count = count;
            queue.push(best);
            continue;
        }
        if count == 0 {
            break;
        }
        let (left, right) = best.pair;
        let joined = [tokens[left as usize].as_slice(), &tokens[right as usize]].concat();
        let id = *ids.entry(joined).or_insert_with_key(|joined| {
            tokens.push(joined.clone());
            tokens.len() as u32 - 1
        });
        merges.push(best.pair);
        for word in best.words {
            merge(&mut symbols[word as usize], best.pair, id, counts[word as usize], word, &mut pairs);
        }
        pairs.queue(&mut queue);
        if told.elapsed() >= BETWEEN {
            told = Instant::now();
            tell(Stage::Merging { tokens: tokens.len(), of: vocabulary, count });
        }
    }
    tell(Stage::Merging { tokens: tokens.len(), of: vocabulary, count: 0 });
    (tokens, last_of_each(merges))
}

/// Joins a pair wherever it stands in one word, from the left, and counts what that changes for its neighbours.
fn merge(symbols: &mut Vec<u32>, pair: (u32, u32), id: u32, count: i64, word: u32, pairs: &mut Pairs) {
    let (mut read, mut write) = (0, 0);
    while read < symbols.len() {
        let found = read + 1 < symbols.len() && (symbols[read], symbols[read + 1]) == pair;
        if !found {
            symbols[write] = symbols[read];
            (read, write) = (read + 1, write + 1);
            continue;
        }
        if write > 0 {
            let before = symbols[write - 1];
            pairs.change((before, pair.0), -count, word);
            pairs.change((before, id), count, word);
        }
        if let Some(&after) = symbols.get(read + 2) {
            pairs.change((pair.1, after), -count, word);
            pairs.change((id, after), count, word);
        }
        symbols[write] = id;
        (read, write) = (read + 2, write + 1);
    }
    symbols.truncate(write);
}

/// A pair that came twice counts from the second time on, as it does in a map of pairs to their ranks.
fn last_of_each(merges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    let last: HashMap<(u32, u32), usize> = merges.iter().copied().zip(0..).collect();
    let keep = |&(rank, pair): &(usize, (u32, u32))| last.get(&pair) == Some(&rank);
    merges.into_iter().enumerate().filter(keep).map(|(_, pair)| pair).collect()
}
