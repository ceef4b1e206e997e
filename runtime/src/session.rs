//! One conversation with a model: ids fed, cache kept, logits read.

use crate::model::Model;
use formats::Result;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Half precision: half the memory and half the reading.
    #[default]
    F16,
    /// Single precision: exactly what was computed.
    F32,
}

/// How a session is made.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// How keys and values are kept.
    pub cache: CacheType,
    /// Most rows computed side by side: a longer feed goes in pieces of this many.
    pub chunk: usize,
    /// Most ids the session can hold; `None` is the model's context, which is also the most there is.
    pub capacity: Option<usize>,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { cache: CacheType::F16, chunk: 256, capacity: None }
    }
}

/// Stops a session's work from any thread.
///
/// A feed under way returns [`formats::Error::Cancelled`] at its next step, the session unchanged. So does every
/// later feed, until [`Canceller::clear`].
#[derive(Clone, Debug)]
pub struct Canceller {}

impl Canceller {
    /// Asks the session to stop.
    pub fn cancel(&self) {
        todo!()
    }

    /// Whether the session was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        todo!()
    }

    /// Lets the session work again.
    pub fn clear(&self) {
        todo!()
    }
}

/// The ids fed so far, their keys and values, and room for the work on the next ones.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// Feeds ids, none of which may lie past the vocabulary or the capacity, and gives the logits that follow the
    /// last: one for each token of the vocabulary. After an error the session is as it was before.
    pub fn feed(&mut self, _ids: &[u32]) -> Result<&[f32]> {
        todo!()
    }

    /// Feeds ids and gives the logits after each: `visit` gets the id's position and the logits that follow it.
    /// After an error the session is as it was before, whatever `visit` has seen.
    pub fn feed_each(&mut self, _ids: &[u32], _visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        todo!()
    }

    /// Number of ids fed.
    pub fn position(&self) -> usize {
        todo!()
    }

    /// The ids fed.
    pub fn ids(&self) -> &[u32] {
        todo!()
    }

    /// Most ids this session can hold.
    pub fn context(&self) -> usize {
        todo!()
    }

    /// Forgets every id from `position` on; a position past the end is an error.
    pub fn rewind(&mut self, _position: usize) -> Result<()> {
        todo!()
    }

    /// A second session with the same past and its own future; its canceller is its own.
    pub fn fork(&self) -> Result<Session> {
        todo!()
    }

    /// A handle that stops this session's work from another thread.
    pub fn canceller(&self) -> Canceller {
        todo!()
    }

    /// The model this session runs.
    pub fn model(&self) -> &Model {
        todo!()
    }
}
