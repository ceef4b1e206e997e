//! The ids of a conversation, turn by turn, as many as fit into the context.

use formats::{Error, Result};

/// What was said: an opening that stays, and turns of which the oldest go first.
#[derive(Debug)]
pub struct Conversation {
    opening: Vec<u32>,
    /// Each a question and its answer.
    turns: Vec<Vec<u32>>,
    context: usize,
}

impl Conversation {
    /// Nothing but the opening.
    pub fn new(opening: Vec<u32>, context: usize) -> Result<Conversation> {
        if opening.len() >= context {
            return Err(Error::Usage(format!(
                "the system text has {} ids and leaves no room in the context of {context}; shorten --system",
                opening.len()
            )));
        }
        Ok(Conversation { opening, turns: Vec::new(), context })
    }

    /// All ids in order.
    pub fn ids(&self) -> Vec<u32> {
        self.opening.iter().chain(self.turns.iter().flatten()).copied().collect()
    }

    /// Whether nothing was asked yet.
    pub fn is_new(&self) -> bool {
        self.turns.is_empty()
    }

    /// Begins a turn. The oldest turns are forgotten until it and an answer of `answer` ids fit, or it alone is left with
    /// room for one id. Gives how many were forgotten; a turn that never fits is refused and nothing is.
    pub fn ask(&mut self, turn: Vec<u32>, answer: usize) -> Result<usize> {
        let alone = self.opening.len() + turn.len();
        if alone >= self.context {
            return Err(Error::Usage(format!(
                "this turn and the system text have {alone} ids, and the context of {} must hold an answer too; say less",
                self.context
            )));
        }
        let wanted = alone.saturating_add(answer).min(self.context);
        let mut held: usize = self.turns.iter().map(Vec::len).sum();
        let mut forgotten = 0;
        while held > 0 && wanted + held > self.context {
            held -= self.turns[forgotten].len();
            forgotten += 1;
        }
        self.turns.drain(..forgotten);
        self.turns.push(turn);
        Ok(forgotten)
    }

    /// Adds the answer to the turn that was begun last.
    pub fn answered(&mut self, ids: &[u32]) {
        if let Some(turn) = self.turns.last_mut() {
            turn.extend_from_slice(ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_turns_go_whole_and_the_opening_stays() {
        let mut conversation = Conversation::new(vec![1], 10).expect("room");
        assert!(conversation.is_new());
        assert_eq!(conversation.ask(vec![2, 3], 2).expect("fits"), 0);
        conversation.answered(&[4, 5]);
        assert_eq!(conversation.ask(vec![6], 2).expect("fits"), 0);
        conversation.answered(&[7]);
        assert_eq!(conversation.ids(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(conversation.ask(vec![8, 9], 2).expect("fits"), 1);
        assert_eq!(conversation.ids(), [1, 6, 7, 8, 9]);
        // An answer as long as the context takes the place of everything else.
        assert_eq!(conversation.ask(vec![2], 100).expect("fits"), 2);
        assert_eq!(conversation.ids(), [1, 2]);
    }

    #[test]
    fn what_never_fits_is_refused_and_forgets_nothing() {
        let mut conversation = Conversation::new(vec![1], 4).expect("room");
        conversation.ask(vec![2, 3], 1).expect("fits");
        assert_eq!(conversation.ask(vec![4, 5, 6], 1).expect_err("too long").exit_code(), 2);
        assert_eq!(conversation.ids(), [1, 2, 3]);
        assert!(Conversation::new(vec![0; 4], 4).is_err());
    }
}
