//! Merging: the bytes of a piece joined pair by pair, the pair of the smallest rank first and of equal ones the
//! leftmost (Sennrich et al. 2016), until no neighbours have a merge.
//!
//! A short piece is a small array that is searched for its best pair at each step. A long one is a linked list with a
//! queue of its pairs, `O(n log n)` however it repeats. Both give the same ids; neither allocates once it is warm.

use super::table::{Merged, PairTable};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Longest piece, in bytes, that is searched at each step.
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
    /// Appends the tokens of `piece`, of less than 2^32 bytes, to `ids`; `bytes` are the ids of the 256 bytes.
    #[inline]
    pub(super) fn merge(&mut self, piece: &[u8], bytes: &[u32; 256], pairs: &PairTable, ids: &mut Vec<u32>) {
        if piece.len() <= SHORT {
            self.merge_short(piece, bytes, pairs, ids);
        } else {
            self.merge_long(piece, bytes, pairs, ids);
        }
    }

    fn merge_short(&mut self, piece: &[u8], bytes: &[u32; 256], pairs: &PairTable, ids: &mut Vec<u32>) {
        let parts = &mut self.parts;
        parts.clear();
        let mut best = NONE;
        let mut place = 0;
        for (index, &byte) in piece.iter().enumerate() {
            let id = bytes[usize::from(byte)];
            let next = piece.get(index + 1).map(|&next| bytes[usize::from(next)]);
            let Merged { rank, id: merged } =
                next.map_or(NOTHING, |next| pairs.get(id, next).unwrap_or(NOTHING));
            if rank < best {
                (best, place) = (rank, index);
            }
            parts.push(Part { id, rank, merged });
        }
        while best != NONE {
            parts[place].id = parts[place].merged;
            parts.remove(place + 1);
            look_up(parts, place, pairs);
            if place > 0 {
                look_up(parts, place - 1, pairs);
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

    fn merge_long(&mut self, piece: &[u8], bytes: &[u32; 256], pairs: &PairTable, ids: &mut Vec<u32>) {
        let links = &mut self.links;
        links.clear();
        links.extend(piece.iter().zip(0u32..).map(|(&byte, place)| Link {
            id: bytes[usize::from(byte)],
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

const NOTHING: Merged = Merged { rank: NONE, id: NONE };

/// Renews the merge that the part at `place` has with the next.
#[inline]
fn look_up(parts: &mut [Part], place: usize, pairs: &PairTable) {
    let left = parts[place].id;
    let right = parts.get(place + 1).map(|part| part.id);
    let merged = right.and_then(|right| pairs.get(left, right)).unwrap_or(NOTHING);
    (parts[place].rank, parts[place].merged) = (merged.rank, merged.id);
}

#[cfg(test)]
mod tests {
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

    fn bytes() -> [u32; 256] {
        std::array::from_fn(|value| (value as u32).saturating_sub(u32::from(b'a')).min(2))
    }

    #[test]
    fn the_smallest_rank_goes_first_and_then_the_leftmost() {
        let merged = |text: &str| {
            let mut ids = Vec::new();
            Merging::default().merge(text.as_bytes(), &bytes(), &pairs(), &mut ids);
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
        let (pairs, bytes) = (pairs(), bytes());
        let (mut merging, mut state) = (Merging::default(), 7u32);
        for length in (0..400).chain([2000]) {
            let piece: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"aaabc"[(state >> 24) as usize % 5]
                })
                .collect();
            let (mut short, mut long) = (vec![1], vec![1]);
            merging.merge_short(&piece, &bytes, &pairs, &mut short);
            merging.merge_long(&piece, &bytes, &pairs, &mut long);
            assert_eq!(short, long, "{length}");
        }
    }

    #[test]
    fn a_piece_that_repeats_without_end_is_not_quadratic() {
        let mut ids = Vec::new();
        let start = std::time::Instant::now();
        Merging::default().merge(&vec![b'a'; 1 << 21], &bytes(), &pairs(), &mut ids);
        assert_eq!(ids.len(), 1 << 17);
        // A quadratic search would take hours.
        assert!(start.elapsed().as_secs() < 20);
    }
}
