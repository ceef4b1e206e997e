//! One conversation with a model: ids fed, cache kept, logits read.

use crate::cache::Cache;
use crate::machine::Pass;
use crate::memory;
use crate::model::Model;
use crate::plan::Plan;
use crate::team::{MAX_ROWS, Slots};
use formats::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
pub struct Canceller {
    cancelled: Arc<AtomicBool>,
}

impl Canceller {
    /// Asks the session to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the session was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Lets the session work again.
    pub fn clear(&self) {
        self.cancelled.store(false, Ordering::Relaxed);
    }
}

/// The ids fed so far, their keys and values, and room for the work on the next ones.
#[derive(Debug)]
pub struct Session {
    model: Model,
    cache_type: CacheType,
    chunk: usize,
    capacity: usize,
    slots: Slots,
    cache: Cache,
    plan: Plan,
    /// Never grows beyond what was reserved for `capacity` ids.
    ids: Vec<u32>,
    cancelled: Arc<AtomicBool>,
}

/// Which logits a pass gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    None,
    Last,
    Each,
}

impl Session {
    /// See [`Model::session_with`].
    pub(crate) fn new(model: &Model, options: &SessionOptions) -> Result<Session> {
        let (config, layout) = (model.config(), model.layout());
        let capacity = options.capacity.unwrap_or(config.context);
        if capacity == 0 || capacity > config.context {
            let most = config.context;
            return Err(Error::Usage(format!("capacity is {capacity}, expected 1 to the context, {most}")));
        }
        if options.chunk == 0 {
            return Err(Error::Usage("the prefill chunk is 0, expected at least 1".into()));
        }
        let chunk = options.chunk.min(capacity).min(MAX_ROWS);
        let mut slots = Slots::default();
        let cache = Cache::new(&mut slots, config, capacity, options.cache)?;
        let plan = Plan::new(config, layout, &mut slots, model.threads(), chunk, capacity)?;
        memory::expect(slots.bytes())?;
        Ok(Session {
            model: model.clone(),
            cache_type: options.cache,
            chunk,
            capacity,
            slots,
            cache,
            plan,
            ids: memory::reserved(capacity)?,
            cancelled: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Feeds ids, none of which may lie past the vocabulary or the capacity, and gives the logits that follow the
    /// last: one for each token of the vocabulary. After an error the session is as it was before.
    pub fn feed(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if ids.is_empty() {
            return Err(Error::Usage("no ids to feed".into()));
        }
        self.check(ids)?;
        let pieces = ids.len().div_ceil(self.chunk);
        for (index, piece) in ids.chunks(self.chunk).enumerate() {
            let wanted = if index + 1 == pieces { Wanted::Last } else { Wanted::None };
            self.pass(self.ids.len() + index * self.chunk, piece, wanted)?;
        }
        self.ids.extend_from_slice(ids);
        Ok(&self.slots.get(self.plan.logits)[..self.model.config().vocabulary])
    }

    /// Feeds ids and gives the logits after each: `visit` gets the id's position and the logits that follow it.
    /// After an error the session is as it was before, whatever `visit` has seen.
    pub fn feed_each(&mut self, ids: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(ids)?;
        let vocabulary = self.model.config().vocabulary;
        let mut position = self.ids.len();
        for piece in ids.chunks(self.chunk.min(self.plan.logit_rows)) {
            self.pass(position, piece, Wanted::Each)?;
            let logits = self.slots.get(self.plan.logits).chunks_exact(vocabulary);
            for logits in logits.take(piece.len()) {
                visit(position, logits);
                position += 1;
            }
        }
        self.ids.extend_from_slice(ids);
        Ok(())
    }

    /// Number of ids fed.
    pub fn position(&self) -> usize {
        self.ids.len()
    }

    /// The ids fed.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Most ids this session can hold.
    pub fn context(&self) -> usize {
        self.capacity
    }

    /// Forgets every id from `position` on; a position past the end is an error.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        if position > self.ids.len() {
            let fed = self.ids.len();
            return Err(Error::Usage(format!("cannot rewind to position {position}: {fed} ids were fed")));
        }
        self.ids.truncate(position);
        Ok(())
    }

    /// A second session with the same past and its own future; its canceller is its own.
    pub fn fork(&self) -> Result<Session> {
        let options =
            SessionOptions { cache: self.cache_type, chunk: self.chunk, capacity: Some(self.capacity) };
        let mut fork = Session::new(&self.model, &options)?;
        let (config, positions) = (self.model.config(), self.ids.len());
        fork.cache.copy_from(&mut fork.slots, &self.cache, &self.slots, config, positions);
        fork.ids.extend_from_slice(&self.ids);
        Ok(fork)
    }

    /// A handle that stops this session's work from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller { cancelled: Arc::clone(&self.cancelled) }
    }

    /// The model this session runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Refuses ids that cannot be fed.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let room = self.capacity - self.ids.len();
        if ids.len() > room {
            return Err(Error::Usage(format!(
                "{} more ids do not fit: {} of {} positions are taken",
                ids.len(),
                self.ids.len(),
                self.capacity
            )));
        }
        let vocabulary = self.model.config().vocabulary;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::Usage(format!(
                "there is no id {id}: the vocabulary ends at {}",
                vocabulary - 1
            )));
        }
        Ok(())
    }

    /// Computes at most a chunk of ids at `first`; `self.ids` does not change, so it never happened until it does.
    fn pass(&mut self, first: usize, ids: &[u32], wanted: Wanted) -> Result<()> {
        let wanted = match wanted {
            Wanted::None => ids.len(),
            Wanted::Last => ids.len() - 1,
            Wanted::Each => 0,
        };
        let model = self.model.shared();
        let pass =
            Pass { model, plan: &self.plan, cache: &self.cache, capacity: self.capacity, ids, first, wanted };
        let (slots, cancelled) = (&mut self.slots, &*self.cancelled);
        model.with_team(|team| team.run(slots, cancelled, &|member| pass.work(member)))
    }
}

#[cfg(test)]
mod tests;
