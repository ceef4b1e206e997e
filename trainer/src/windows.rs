//! How the rows of a pass fall into windows, and windows that begin alike.
//!
//! What a causal model makes of a row depends on the ids up to it and on nothing else. Sorted by their ids, windows have
//! their beginnings in common with those before them, and each distinct beginning is computed as one row. Short
//! windows of characters have a third or more of their rows in common; the losses are the same to the bit.

use std::ops::Range;

/// How the rows of a pass fall into windows.
#[derive(Clone, Copy, Debug, Default)]
pub enum Windows<'a> {
    /// Row `r` is place `r mod block` of window `r / block` and has one target.
    #[default]
    Whole,
    /// Each distinct beginning of a window is one row.
    Shared(&'a Shared),
}

/// What is asked of a row: its loss under one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The row.
    pub row: u32,
    /// The id that should follow.
    pub target: u32,
}

/// Some windows of which each distinct beginning is one row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// The number of each window among those that were cut.
    pub numbers: Vec<u32>,
}

impl Shared {
    /// Cuts windows of `block` ids, each with its successor in `targets`, into passes of at most `most` rows and twice as
    /// many questions. `most` is at least `block`.
    pub fn cut(inputs: &[u32], targets: &[u32], block: usize, most: usize) -> Vec<Shared> {
        let mut windows: Vec<Window<'_>> = inputs
            .chunks_exact(block)
            .zip(targets.chunks_exact(block))
            .enumerate()
            .map(|(number, (ids, targets))| Window { key: key(ids), number: number as u32, ids, targets })
            .collect();
        windows.sort_unstable();
        let mut passes: Vec<Shared> = vec![];
        let mut last: Option<Window<'_>> = None;
        for window in windows {
            let known = last.map_or(0, |last| window.common(&last));
            let fits = passes.last().is_some_and(|pass| {
                pass.ids.len() + block - known <= most && pass.questions.len() + block <= 2 * most
            });
            if !fits {
                passes.push(Shared::default());
                last = None;
            }
            if let Some(pass) = passes.last_mut() {
                pass.add(window, last);
            }
            last = Some(window);
        }
        passes.iter_mut().for_each(Shared::order_questions);
        passes
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.known.len()
    }

    /// Adds a window after the last one that was added.
    fn add(&mut self, window: Window<'_>, last: Option<Window<'_>>) {
        let block = window.ids.len();
        let known = last.map_or(0, |last| window.common(&last));
        let before = self.rows.len().wrapping_sub(block);
        for place in 0..block {
            if place < known {
                self.rows.push(self.rows[before + place]);
            } else {
                self.rows.push(self.ids.len() as u32);
                self.ids.push(window.ids[place]);
                self.places.push(place as u32);
            }
            let asked =
                place < known && last.is_some_and(|last| last.targets[place] == window.targets[place]);
            if asked {
                self.answers.push(self.answers[before + place]);
            } else {
                self.answers.push(self.questions.len() as u32);
                let row = self.rows[self.rows.len() - 1];
                self.questions.push(Question { row, target: window.targets[place] });
            }
        }
        self.known.push(known as u32);
        self.numbers.push(window.number);
    }

    /// Brings the questions into the order of their rows.
    fn order_questions(&mut self) {
        let mut order: Vec<u32> = (0..self.questions.len() as u32).collect();
        order.sort_by_key(|&question| self.questions[question as usize].row);
        let mut place_of = vec![0; order.len()];
        for (place, &question) in order.iter().enumerate() {
            place_of[question as usize] = place as u32;
        }
        self.questions = order.iter().map(|&question| self.questions[question as usize]).collect();
        self.answers.iter_mut().for_each(|answer| *answer = place_of[*answer as usize]);
    }

    /// The questions that are asked of some rows.
    pub fn asked(&self, rows: Range<usize>) -> Range<usize> {
        let before = |row: usize| self.questions.partition_point(|question| (question.row as usize) < row);
        before(rows.start)..before(rows.end)
    }
}

/// One window's ids and their successors, in the order of its ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Window<'a> {
    /// What mostly decides the order, in one comparison.
    key: u64,
    ids: &'a [u32],
    targets: &'a [u32],
    number: u32,
}

impl Window<'_> {
    /// How many ids two windows begin with alike.
    fn common(&self, other: &Window<'_>) -> usize {
        self.ids.iter().zip(other.ids).take_while(|(a, b)| a == b).count()
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
            let passes = Shared::cut(&inputs, &targets, block, 16.max(block));
            let mut answered = vec![];
            for pass in &passes {
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
        let passes = Shared::cut(&[3, 1, 3, 1, 3, 2], &[1, 5, 1, 5, 2, 5], 2, 16);
        let [pass] = passes.as_slice() else { panic!("one pass") };
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
