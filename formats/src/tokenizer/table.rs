//! The two tables that encoding asks all the time: which merge a pair has, and which token a piece is as a whole.
//!
//! Both are open addressing in one flat array, at most half full. Their hashes are seeded anew in each process, so
//! that no file can be written whose entries all collide; no answer depends on the seed.

use std::hash::{BuildHasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a pair of neighbours merges into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    /// Its place among the merges; smaller ones come first.
    pub(super) rank: u32,
    /// The id that takes their place.
    pub(super) id: u32,
}

/// No pair: ids stay far below.
const FREE: u64 = u64::MAX;

/// Pairs of ids and their merges.
#[derive(Clone, Debug)]
pub(super) struct PairTable {
    /// Key, rank and id; as many as a power of two.
    slots: Vec<(u64, Merged)>,
    seed: u64,
    shift: u32,
}

impl PairTable {
    /// Room for `merges` pairs.
    pub(super) fn new(merges: usize) -> PairTable {
        let length = slots(merges);
        PairTable {
            slots: vec![(FREE, Merged { rank: 0, id: 0 }); length],
            seed: seed(),
            shift: 64 - length.trailing_zeros(),
        }
    }

    /// Adds a pair; false if it is there already.
    pub(super) fn insert(&mut self, left: u32, right: u32, merged: Merged) -> bool {
        let (key, mut slot) = self.start(left, right);
        while self.slots[slot].0 != FREE {
            if self.slots[slot].0 == key {
                return false;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (key, merged);
        true
    }

    /// The merge of two neighbours, if they have one.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merged> {
        let (key, mut slot) = self.start(left, right);
        loop {
            let (found, merged) = self.slots[slot];
            if found == key {
                return Some(merged);
            }
            if found == FREE {
                return None;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn start(&self, left: u32, right: u32) -> (u64, usize) {
        let key = u64::from(left) << 32 | u64::from(right);
        // A product of 128 bits folded: every bit of the key reaches every bit of the slot.
        let product = u128::from(key ^ self.seed)
            * u128::from(0x9E37_79B9_7F4A_7C15_u64 ^ self.seed.rotate_left(32) | 1);
        let hash = (product as u64) ^ (product >> 64) as u64;
        (key, (hash >> self.shift) as usize)
    }
}

/// Pieces of text that are one token.
#[derive(Clone, Debug)]
pub(super) struct PieceTable {
    /// The upper half of the hash, and the id; [`NOBODY`] where free.
    slots: Vec<(u32, u32)>,
    seed: u64,
    /// Length of the longest piece, in bytes.
    longest: usize,
}

/// No id is that large.
const NOBODY: u32 = u32::MAX;

impl PieceTable {
    /// Room for `pieces` pieces.
    pub(super) fn new(pieces: usize) -> PieceTable {
        PieceTable { slots: vec![(0, NOBODY); slots(pieces)], seed: seed(), longest: 0 }
    }

    /// Adds a piece that is not there yet.
    pub(super) fn insert(&mut self, piece: &[u8], id: u32) {
        let (mark, mut slot) = self.start(piece);
        while self.slots[slot].1 != NOBODY {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (mark, id);
        self.longest = self.longest.max(piece.len());
    }

    /// The id of `piece`; `token` gives the bytes of an id.
    #[inline]
    pub(super) fn get<'bytes>(&self, piece: &[u8], token: impl Fn(u32) -> &'bytes [u8]) -> Option<u32> {
        if piece.len() > self.longest {
            return None;
        }
        let (mark, mut slot) = self.start(piece);
        loop {
            let (found, id) = self.slots[slot];
            if id == NOBODY {
                return None;
            }
            if found == mark && token(id) == piece {
                return Some(id);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn start(&self, piece: &[u8]) -> (u32, usize) {
        let hash = xxh3_64_with_seed(piece, self.seed);
        ((hash >> 32) as u32, hash as usize & (self.slots.len() - 1))
    }
}

/// A power of two of slots of which `entries` fill at most half.
fn slots(entries: usize) -> usize {
    (2 * entries).next_power_of_two().max(2)
}

fn seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_and_others_are_not() {
        for count in [0u32, 1, 2, 1000] {
            let mut table = PairTable::new(count as usize);
            for rank in 0..count {
                assert!(table.insert(rank % 7, rank, Merged { rank, id: rank + 1 }));
                assert!(!table.insert(rank % 7, rank, Merged { rank: 0, id: 0 }));
            }
            for rank in 0..count {
                assert_eq!(table.get(rank % 7, rank), Some(Merged { rank, id: rank + 1 }));
                assert_eq!(table.get(rank % 7 + 1, rank), None);
            }
            assert_eq!(table.get(u32::MAX - 1, u32::MAX), None);
        }
    }

    #[test]
    fn pieces_are_compared_byte_for_byte() {
        let tokens: Vec<Vec<u8>> =
            (0..500u32).map(|id| id.to_string().repeat(id as usize % 9 + 1).into_bytes()).collect();
        let mut table = PieceTable::new(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if id % 2 == 0 {
                table.insert(token, id as u32);
            }
        }
        for (id, token) in tokens.iter().enumerate() {
            let found = table.get(token, |id| &tokens[id as usize]);
            assert_eq!(found, (id % 2 == 0).then_some(id as u32));
        }
        assert_eq!(table.get(b"", |id| &tokens[id as usize]), None);
        assert_eq!(PieceTable::new(0).get(b"", |_| b""), None);
    }
}
