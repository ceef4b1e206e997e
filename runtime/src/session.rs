//! One conversation with a model: ids fed, cache kept, logits read.
//!
//! Everything a session needs is allocated when it is made; feeding allocates nothing.

use crate::cache::Cache;
use crate::machine::{self, Board, Local, Step, Wanted};
use crate::memory;
use crate::model::Model;
use crate::shortlist::{MOST_BEST, ROWS_A_CANDIDATE};
use crate::team::{MAX_ROWS, Slots};
use formats::{Error, Result};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
        SessionOptions { cache: CacheType::F16, chunk: 512, capacity: None }
    }
}

/// Stops a session's work from any thread.
///
/// A feed under way returns [`Error::Cancelled`] at its next step, the session unchanged. So does every later feed,
/// until [`Canceller::clear`].
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

/// What a session's rows asked of the experts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertStats {
    /// For each layer how often each expert was chosen; empty for a dense layer.
    pub counts: Vec<Vec<u64>>,
    /// Rows that were multiplied with an expert's weights, the shared ones' too.
    pub expert_rows: u64,
}

/// The ids fed so far, their keys and values, and room for the work on the next ones.
pub struct Session {
    model: Model,
    slots: Slots,
    board: Board,
    cache: Cache,
    /// One for each thread; a lock each because the team runs one closure on all.
    locals: Vec<Mutex<Local>>,
    ids: Vec<u32>,
    options: SessionOptions,
    capacity: usize,
    chunk: usize,
    canceller: Canceller,
    /// Feeds that shall read the whole head, because too much of it was wanted just now.
    whole: u32,
}

/// So many feeds read the whole head after one that gained nothing by a shortlist.
const REST: u32 = 64;

impl Session {
    /// An empty session.
    pub(crate) fn new(model: Model, options: &SessionOptions) -> Result<Session> {
        let config = model.config();
        let capacity = options.capacity.unwrap_or(config.context);
        let bounded = |name: &str, value: usize, most: usize| match value {
            value if value == 0 || value > most => {
                Err(Error::Usage(format!("the {name} of a session is {value}, expected 1 to {most}")))
            }
            _ => Ok(()),
        };
        bounded("capacity", capacity, config.context)?;
        bounded("prefill chunk", options.chunk, MAX_ROWS)?;
        let chunk = options.chunk.min(capacity);
        let ids = capacity as u64 * size_of::<u32>() as u64;
        let walked = model.shared().widest_walked();
        let buffers = Board::bytes(config, chunk, walked, capacity, model.threads());
        memory::expect(ids + buffers + Cache::bytes(config, capacity, options.cache))?;

        model.shared().start()?;
        let mut slots = Slots::default();
        let board = Board::new(&mut slots, config, chunk, walked)?;
        let cache = Cache::new(&mut slots, config, capacity, options.cache)?;
        let local = || Local::new(config, chunk, walked, capacity).map(Mutex::new);
        Ok(Session {
            locals: (0..model.threads()).map(|_| local()).collect::<Result<_>>()?,
            ids: memory::reserved(capacity)?,
            options: options.clone(),
            canceller: Canceller { cancelled: Arc::default() },
            model,
            slots,
            board,
            cache,
            capacity,
            chunk,
            whole: 0,
        })
    }

    /// Feeds ids, none of which may lie past the vocabulary or the capacity, and gives the logits that follow the
    /// last: one for each token of the vocabulary. After an error the session is as it was before.
    pub fn feed(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.feed_best(ids, usize::MAX)
    }

    /// The same for whoever looks at the `best` highest logits alone: these, and all that equal the last of them, are what
    /// [`Session::feed`] gives, to the bit. Any other may be `f32::MIN`, because where the model has a shortlist
    /// ([`Model::make_shortlist`]) most of the head is not read. A few hundred are the most that this is done for.
    pub fn feed_best(&mut self, ids: &[u32], best: usize) -> Result<&[f32]> {
        self.check(ids)?;
        let best = Some(best).filter(|best| self.whole == 0 && (1..=MOST_BEST).contains(best));
        let (start, pieces) = (self.ids.len(), ids.len().div_ceil(self.chunk));
        for (index, piece) in ids.chunks(self.chunk).enumerate() {
            let wanted = if index + 1 == pieces { Wanted::Last } else { Wanted::Nothing };
            self.compute(piece, start + index * self.chunk, wanted, best)?;
        }
        self.whole = match self.candidates() > self.model.config().vocabulary / ROWS_A_CANDIDATE {
            true => REST,
            false => self.whole.saturating_sub(1),
        };
        self.ids.extend_from_slice(ids);
        Ok(&self.slots.get(self.board.logits)[..self.model.config().vocabulary])
    }

    /// Feeds ids and gives the logits after each: `visit` gets the id's position and the logits that follow it.
    /// After an error the session is as it was before, whatever `visit` has seen.
    pub fn feed_each(&mut self, ids: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(ids)?;
        let (start, vocabulary) = (self.ids.len(), self.model.config().vocabulary);
        let rows = self.chunk.min(self.board.logit_rows);
        for (index, piece) in ids.chunks(rows).enumerate() {
            let first = start + index * rows;
            self.compute(piece, first, Wanted::Each, None)?;
            let logits = self.slots.get(self.board.logits).chunks_exact(vocabulary);
            for (position, logits) in (first..first + piece.len()).zip(logits) {
                visit(position, logits);
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
            return Err(Error::Usage(format!(
                "the session holds {} ids and cannot go back to position {position}",
                self.ids.len()
            )));
        }
        // Keys and values past the position stay where they are: nothing reads them before they are overwritten.
        self.ids.truncate(position);
        Ok(())
    }

    /// A second session with the same past and its own future; its canceller is its own.
    pub fn fork(&self) -> Result<Session> {
        let mut fork = Session::new(self.model.clone(), &self.options)?;
        let (config, positions) = (self.model.config(), self.ids.len());
        fork.cache.copy_from(&mut fork.slots, &self.cache, &self.slots, config, positions);
        fork.ids.extend_from_slice(&self.ids);
        Ok(fork)
    }

    /// What this session's rows asked of each layer's experts.
    pub fn expert_stats(&self) -> ExpertStats {
        let config = self.model.config();
        let count = config.experts.map_or(0, |experts| experts.count);
        let Some(first) = self.locals.first() else { return ExpertStats::default() };
        let local = first.lock().unwrap_or_else(PoisonError::into_inner);
        let of_layer = |layer: usize| match config.experts_of(layer) {
            Some(_) => local.routed.counts[layer * count..][..count].to_vec(),
            None => vec![],
        };
        ExpertStats {
            counts: (0..config.layers).map(of_layer).collect(),
            expert_rows: local.routed.expert_rows,
        }
    }

    /// The experts that the rows of the last piece chose in one layer, `[rows, active]`; empty for a dense layer.
    pub(crate) fn chosen(&self, layer: usize, rows: usize) -> Vec<u32> {
        let Some(experts) = self.model.config().experts_of(layer) else { return vec![] };
        let Some(first) = self.locals.first() else { return vec![] };
        let local = first.lock().unwrap_or_else(PoisonError::into_inner);
        let most = self.chunk * experts.active;
        local.routed.chosen[layer * most..][..rows * experts.active].to_vec()
    }

    /// Logits that the last feed computed of those that a shortlist left; 0 where there was none.
    pub(crate) fn candidates(&self) -> usize {
        let of = |local: &Mutex<Local>| local.lock().unwrap_or_else(PoisonError::into_inner).candidates;
        self.locals.iter().map(of).sum()
    }

    /// Most rows that one piece of [`Session::feed_each`] has.
    pub(crate) fn piece(&self) -> usize {
        self.chunk.min(self.board.logit_rows)
    }

    /// See [`Model::make_shortlist`]; stopped as any work of this session.
    pub(crate) fn make_shortlist(&self) -> bool {
        self.model.make_shortlist_unless(&self.canceller.cancelled)
    }

    /// A handle that stops this session's work from another thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// The model this session runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Refuses ids that cannot be fed.
    fn check(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Usage("there is nothing to feed: a feed takes at least one id".into()));
        }
        let vocabulary = self.model.config().vocabulary;
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocabulary) {
            return Err(Error::Usage(format!(
                "id {id} at place {index} lies outside the vocabulary of {vocabulary} tokens"
            )));
        }
        let free = self.capacity - self.ids.len();
        if ids.len() > free {
            return Err(Error::Usage(format!(
                "{} ids do not fit: the session holds {} of at most {}",
                ids.len(),
                self.ids.len(),
                self.capacity
            )));
        }
        Ok(())
    }

    /// Computes one piece. The ids count as fed only when the whole feed has succeeded.
    fn compute(&mut self, ids: &[u32], first: usize, wanted: Wanted, best: Option<usize>) -> Result<()> {
        let (model, board, cache, locals) = (self.model.shared(), &self.board, &self.cache, &self.locals);
        let best = best.and_then(|best| Some((best, model.shortlist()?)));
        let step = Step { ids, first, wanted, capacity: self.capacity, best };
        model.run(&mut self.slots, &self.canceller.cancelled, &|member| {
            // After a panic the buffers hold nothing that is read before it is written again.
            let mut local = locals[member.index()].lock().unwrap_or_else(PoisonError::into_inner);
            machine::compute(member, &mut local, model, board, cache, &step)
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Session")
            .field("position", &self.ids.len())
            .field("context", &self.capacity)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
