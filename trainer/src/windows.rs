//! How the rows of a pass fall into windows, and windows that begin alike.
//!
//! What a causal model makes of a row depends on the ids up to it and on nothing else. Sorted by their ids, windows have
//! their beginnings in common with those before them, and each distinct beginning is computed as one row. Short
//! windows of characters have a third or more of their rows in common; the losses are the same to the bit.
//!
//! Up to the first attention a row depends on its own id and place alone: what stands before it is computed once for
//! each id at each place, where that is less.

use std::ops::Range;

/// How the rows of a pass fall into windows.
#[derive(Clone, Copy, Debug, Default)]
pub enum Windows<'a> {
    /// Row `r` is place `r mod block` of window `r / block` and has one target.
    #[default]
    Whole,
    /// Each distinct beginning of a window is one row.
    Shared(&'a Shared),
    /// The same, but what attention reads has a row for each id at each place: `id block + place`.
    Placed(&'a Shared),
}

impl<'a> Windows<'a> {
    /// The windows, if they share rows.
    pub fn shared(self) -> Option<&'a Shared> {
        match self {
            Windows::Whole => None,
            Windows::Shared(shared) | Windows::Placed(shared) => Some(shared),
        }
    }
}

/// What is asked of a row: its loss under one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The row.
    pub row: u32,
    /// The id that should follow.
    pub target: u32,
}

/// Some windows of which each distinct beginning is one row.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The last id of each row's beginning.
    pub ids: Vec<u32>,
    /// The place of that id in its window.
    pub places: Vec<u32>,
    /// The rows of each window, `[windows, block]`.
    pub rows: Vec<u32>,
    /// How many rows of each window belong to windows before it.
    pub known: Vec<u32>,
    /// What is asked, in the order of rows.
    pub questions: Vec<Question>,
    /// The question of each place of each window, `[windows, block]`.
    pub answers: Vec<u32>,
    /// The questions in the order in which windows ask them, and where each stands among those in the order of rows.
    asked: Vec<(Question, u32)>,
    /// Where the next question of each row stands.
    next: Vec<u32>,
}

impl Shared {
    /// Lays out some windows in their order, in the room of those before.
    pub fn lay(&mut self, windows: &[Window<'_>]) {
        let Shared { ids, places, rows, known, answers, asked, .. } = self;
        for room in [&mut *ids, &mut *places, &mut *rows, &mut *known, &mut *answers] {
            room.clear();
        }
        asked.clear();
        let mut last = None;
        for window in windows {
            let (block, shares) = (window.ids.len(), window.shares(last));
            let before = rows.len().wrapping_sub(block);
            known.push(shares.rows as u32);
            for place in 0..block {
                if place < shares.rows {
                    rows.push(rows[before + place]);
                } else {
                    rows.push(ids.len() as u32);
                    ids.push(window.ids[place]);
                    places.push(place as u32);
                }
                if place < shares.answers {
                    answers.push(answers[before + place]);
                } else {
                    answers.push(asked.len() as u32);
                    let row = rows[rows.len() - 1];
                    asked.push((Question { row, target: window.targets[place] }, 0));
                }
            }
            last = Some(window);
        }
        self.order_questions();
    }

    /// Brings the questions into the order of their rows.
    fn order_questions(&mut self) {
        let Shared { ids, questions, answers, asked, next, .. } = self;
        next.clear();
        next.resize(ids.len() + 1, 0);
        asked.iter().for_each(|(question, _)| next[question.row as usize + 1] += 1);
        for row in 1..next.len() {
            next[row] += next[row - 1];
        }
        questions.clear();
        questions.resize(asked.len(), Question::default());
        for (question, place) in asked.iter_mut() {
            let next = &mut next[question.row as usize];
            (*place, questions[*next as usize]) = (*next, *question);
            *next += 1;
        }
        answers.iter_mut().for_each(|answer| *answer = asked[*answer as usize].1);
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.known.len()
    }

    /// The questions that are asked of some rows.
    pub fn asked(&self, rows: Range<usize>) -> Range<usize> {
        let before = |row: usize| self.questions.partition_point(|question| (question.row as usize) < row);
        before(rows.start)..before(rows.end)
    }
}

/// One window's ids and their successors; windows are ordered by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window<'a> {
    /// What mostly decides the order, in one comparison.
    key: u64,
    ids: &'a [u32],
    targets: &'a [u32],
    /// Its number among those that were sorted.
    pub number: u32,
}

/// What a window shares with the one before it.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    rows: usize,
    /// Of these rows, the first ones that are also asked for the same targets.
    answers: usize,
}

impl<'a> Window<'a> {
    /// Windows of `block` ids, each with its successor in `targets`, in their order.
    pub fn sorted(inputs: &'a [u32], targets: &'a [u32], block: usize) -> Vec<Window<'a>> {
        let windows = inputs.chunks_exact(block).zip(targets.chunks_exact(block));
        let mut windows: Vec<Window<'a>> = windows
            .zip(0..)
            .map(|((ids, targets), number)| Window { key: key(ids), ids, targets, number })
            .collect();
        windows.sort_unstable();
        windows
    }

    /// Cuts sorted windows into passes of at most `most` rows, which no window exceeds, and twice as many questions.
    pub fn passes(sorted: &[Window<'_>], most: usize) -> Vec<Range<usize>> {
        let mut passes = vec![];
        let (mut begin, mut rows, mut questions) = (0, 0, 0);
        for (index, window) in sorted.iter().enumerate() {
            let block = window.ids.len();
            let mut shares = window.shares(sorted[begin..index].last());
            if rows + block - shares.rows > most || questions + block - shares.answers > 2 * most {
                passes.push(begin..index);
                (begin, rows, questions) = (index, 0, 0);
                shares = Shares::default();
            }
            rows += block - shares.rows;
            questions += block - shares.answers;
        }
        if begin < sorted.len() {
            passes.push(begin..sorted.len());
        }
        passes
    }

    fn shares(&self, last: Option<&Window<'_>>) -> Shares {
        let Some(last) = last else { return Shares::default() };
        let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let rows = common(self.ids, last.ids);
        Shares { rows, answers: rows.min(common(self.targets, last.targets)) }
    }
}

/// A number in the order of the first ids, as far as it reaches: eight bits each, and no further than an id that needs
/// more.
fn key(ids: &[u32]) -> u64 {
    let mut key = 0;
    for place in 0..8 {
        // An id counts from one, so that a window's end stands before whatever goes on.
        let id = ids.get(place).map_or(0, |id| id.saturating_add(1)).min(255);
        key = key << 8 | u64::from(id);
        if id == 255 {
            return key << (8 * (7 - place));
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::random::{Purpose, Stream};

    /// What a causal model knows of a row, and what is asked of it: enough to stand for its loss.
    type Beginning = (Vec<u32>, u32);

    fn beginnings(inputs: &[u32], targets: &[u32], block: usize) -> Vec<Beginning> {
        let windows = inputs.chunks(block).zip(targets.chunks(block));
        let mut all: Vec<Beginning> = windows
            .flat_map(|(ids, targets)| (0..block).map(move |place| (ids[..=place].to_vec(), targets[place])))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn every_place_of_every_window_is_answered_by_its_own_beginning() {
        let stream = Stream::new(1, Purpose::Batch);
        for (windows, block, vocabulary) in
            [(1, 1, 1), (40, 1, 3), (50, 5, 2), (300, 8, 3), (300, 8, 40), (64, 8, 1)]
        {
            let draws = |row: u64| -> Vec<u32> {
                (0..(windows * block) as u64).map(|index| stream.draw(row, index) % vocabulary).collect()
            };
            let (inputs, targets) = (draws(0), draws(1));
            let sorted = Window::sorted(&inputs, &targets, block);
            let (mut answered, mut pass) = (vec![], Shared::default());
            for windows in Window::passes(&sorted, 16.max(block)) {
                pass.lay(&sorted[windows]);
                assert!(pass.ids.len() <= 16.max(block) && pass.questions.len() <= 2 * 16.max(block));
                assert!(pass.questions.is_sorted_by_key(|question| question.row));
                for (rows, answers) in pass.rows.chunks(block).zip(pass.answers.chunks(block)) {
                    let mut beginning = vec![];
                    for (place, (&row, &answer)) in rows.iter().zip(answers).enumerate() {
                        assert_eq!(pass.places[row as usize] as usize, place);
                        assert_eq!(pass.questions[answer as usize].row, row);
                        beginning.push(pass.ids[row as usize]);
                        answered.push((beginning.clone(), pass.questions[answer as usize].target));
                    }
                }
                for (rows, &known) in pass.rows.chunks(block).zip(&pass.known) {
                    assert!(rows[known as usize..].is_sorted(), "new rows follow each other");
                }
            }
            answered.sort();
            assert_eq!(answered, beginnings(&inputs, &targets, block));
        }
    }

    #[test]
    fn equal_windows_are_one() {
        let sorted = Window::sorted(&[3, 1, 3, 1, 3, 2], &[1, 5, 1, 5, 2, 5], 2);
        assert_eq!(Window::passes(&sorted, 16), vec![0..3]);
        let mut pass = Shared::default();
        pass.lay(&sorted);
        assert_eq!(
            (pass.ids.as_slice(), pass.places.as_slice()),
            ([3, 1, 2].as_slice(), [0, 1, 1].as_slice())
        );
        assert_eq!(pass.known, [0, 2, 1]);
        assert_eq!(pass.rows, [0, 1, 0, 1, 0, 2]);
        // The first row is asked for the two ids that follow it.
        assert_eq!(pass.questions.len(), 4);
        assert_eq!(pass.asked(0..1), 0..2);
        assert_eq!(pass.asked(1..3), 2..4);
    }
}
