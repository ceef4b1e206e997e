//! Merging: the symbols of a piece joined pair by pair, the pair of the smallest rank first and of equal ones the
//! leftmost (Sennrich et al. 2016), until no neighbours have a merge.
//!
//! A short piece is a small array that is searched for its best pair at each step. A long one is a linked list with a
//! queue of its pairs, `O(n log n)` however it repeats. Both give the same ids; neither allocates once it is warm.

use super::table::PairTable;
use crate::error::{Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Longest piece, in symbols, that is searched at each step.
const SHORT: usize = 96;
/// No pair, or no neighbour.
const NONE: u32 = u32::MAX;

/// Buffers that merging uses again and again.
#[derive(Debug, Default)]
pub(super) struct Merging {
    parts: Vec<Part>,
    links: Vec<Link>,
    /// Rank and place of pairs, the smallest first; some are of neighbours that are gone.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A token of a short piece, and the merge it has with the next.
#[derive(Clone, Copy, Debug)]
struct Part {
    id: u32,
    rank: u32,
    merged: u32,
}

/// A token of a long piece, between its neighbours; gone if its id is [`NONE`].
#[derive(Clone, Copy, Debug)]
struct Link {
    id: u32,
    previous: u32,
    next: u32,
}

impl Merging {
    /// Appends the tokens that `symbols`, less than 2^32 of them, merge into to `ids`.
    #[inline]
    pub(super) fn merge(
        &mut self,
        symbols: impl ExactSizeIterator<Item = u32>,
        pairs: &PairTable,
        ids: &mut Vec<u32>,
    ) {
        if symbols.len() <= SHORT {
            self.merge_short(symbols, pairs, ids);
        } else {
            self.merge_long(symbols, pairs, ids);
        }
    }

    fn merge_short(&mut self, symbols: impl Iterator<Item = u32>, pairs: &PairTable, ids: &mut Vec<u32>) {
        let parts = &mut self.parts;
        parts.clear();
        let mut best = NONE;
        let mut place = 0;
        for (index, id) in symbols.enumerate() {
            if let Some(last) = parts.last_mut() {
                (last.rank, last.merged) = merge_of(pairs, last.id, id);
                if last.rank < best {
                    (best, place) = (last.rank, index - 1);
                }
            }
            parts.push(Part { id, rank: NONE, merged: NONE });
        }
        while best != NONE {
            parts[place].id = parts[place].merged;
            parts.remove(place + 1);
            renew(parts, place, pairs);
            if place > 0 {
                renew(parts, place - 1, pairs);
            }
            best = NONE;
            for (index, part) in parts.iter().enumerate() {
                if part.rank < best {
                    (best, place) = (part.rank, index);
                }
            }
        }
        ids.extend(parts.iter().map(|part| part.id));
    }

    fn merge_long(&mut self, symbols: impl Iterator<Item = u32>, pairs: &PairTable, ids: &mut Vec<u32>) {
        let links = &mut self.links;
        links.clear();
        links.extend(symbols.zip(0u32..).map(|(id, place)| Link {
            id,
            previous: place.wrapping_sub(1),
            next: place + 1,
        }));
        let Some(last) = links.last_mut() else { return };
        last.next = NONE;

        let mut queue = std::mem::take(&mut self.queue).into_vec();
        queue.clear();
        for (place, neighbours) in links.windows(2).enumerate() {
            if let Some(merged) = pairs.get(neighbours[0].id, neighbours[1].id) {
                queue.push(Reverse((merged.rank, place as u32)));
            }
        }
        let mut queue = BinaryHeap::from(queue);
        while let Some(Reverse((rank, place))) = queue.pop() {
            let link = links[place as usize];
            if link.id == NONE || link.next == NONE {
                continue;
            }
            let next = links[link.next as usize];
            // A rank names its pair: one that the neighbours do not have any more is of neighbours that are gone.
            let Some(merged) = pairs.get(link.id, next.id).filter(|merged| merged.rank == rank) else {
                continue;
            };
            links[link.next as usize].id = NONE;
            links[place as usize] = Link { id: merged.id, previous: link.previous, next: next.next };
            if next.next != NONE {
                links[next.next as usize].previous = place;
                if let Some(merged) = pairs.get(merged.id, links[next.next as usize].id) {
                    queue.push(Reverse((merged.rank, place)));
                }
            }
            if link.previous != NONE
                && let Some(merged) = pairs.get(links[link.previous as usize].id, merged.id)
            {
                queue.push(Reverse((merged.rank, link.previous)));
            }
        }
        self.queue = queue;
        ids.extend(links.iter().map(|link| link.id).filter(|&id| id != NONE));
    }
}

/// The rank of a pair's merge and what it makes; [`NONE`] where it has none.
#[inline]
fn merge_of(pairs: &PairTable, left: u32, right: u32) -> (u32, u32) {
    pairs.get(left, right).map_or((NONE, NONE), |merged| (merged.rank, merged.id))
}

/// Renews the merge that the part at `place` has with the next.
#[inline]
fn renew(parts: &mut [Part], place: usize, pairs: &PairTable) {
    let left = parts[place].id;
    let right = parts.get(place + 1).map(|part| part.id);
    (parts[place].rank, parts[place].merged) =
        right.map_or((NONE, NONE), |right| merge_of(pairs, left, right));
}

/// Refuses a piece whose symbols could not be counted.
pub(super) fn check_length(piece: &[u8]) -> Result<()> {
    match piece.len() {
        length if length >= u32::MAX as usize => Err(Error::Usage(format!(
            "a piece of {length} bytes cannot be encoded; cut the text where words end"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Merged;
    use super::*;

    /// Three letters whose pairs merge in many ways; some results have more than one pair.
    fn pairs() -> PairTable {
        let merges = [
            (0, 0, 3),
            (0, 1, 4),
            (3, 3, 5),
            (1, 2, 6),
            (4, 2, 7),
            (0, 6, 7),
            (5, 5, 8),
            (8, 8, 9),
            (2, 2, 10),
            (7, 7, 11),
        ];
        let mut pairs = PairTable::new(merges.len());
        for (rank, &(left, right, id)) in (0..).zip(&merges) {
            assert!(pairs.insert(left, right, Merged { rank, id }));
        }
        pairs
    }

    fn symbols(piece: &[u8]) -> impl ExactSizeIterator<Item = u32> {
        piece.iter().map(|&byte| u32::from(byte - b'a'))
    }

    #[test]
    fn the_smallest_rank_goes_first_and_then_the_leftmost() {
        let merged = |text: &str| {
            let mut ids = Vec::new();
            Merging::default().merge(symbols(text.as_bytes()), &pairs(), &mut ids);
            ids
        };
        assert_eq!(merged("abc"), [7]);
        assert_eq!(merged("aaa"), [3, 0]);
        assert_eq!(merged("aaabc"), [3, 7]);
        assert_eq!(merged("ccc"), [10, 2]);
        assert_eq!(merged("b"), [1]);
        assert_eq!(merged(""), [0u32; 0]);
    }

    #[test]
    fn long_pieces_merge_as_short_ones_do() {
        let pairs = pairs();
        let (mut merging, mut state) = (Merging::default(), 7u32);
        for length in (0..400).chain([2000]) {
            let piece: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"aaabc"[(state >> 24) as usize % 5]
                })
                .collect();
            let (mut short, mut long) = (vec![1], vec![1]);
            merging.merge_short(symbols(&piece), &pairs, &mut short);
            merging.merge_long(symbols(&piece), &pairs, &mut long);
            assert_eq!(short, long, "{length}");
        }
    }

    #[test]
    fn a_piece_that_repeats_without_end_is_not_quadratic() {
        let mut ids = Vec::new();
        let start = std::time::Instant::now();
        Merging::default().merge(symbols(&vec![b'a'; 1 << 21]), &pairs(), &mut ids);
        assert_eq!(ids.len(), 1 << 17);
        // A quadratic search would take hours.
        assert!(start.elapsed().as_secs() < 20);
    }
}
