//! An iterator of tokens with their text.
//!
//! A [`Generator`] borrows a session, feeds it the prompt and then each token it chose, and lends the text that has
//! become certain: a character that is not whole yet and a beginning of a stop string are held back. After the
//! first token it allocates nothing. Holds no numbers of the model; chooses through [`crate::sampler`].

mod release;

use crate::model::Model;
use crate::sampler::{Sampler, Sampling, Token};
use crate::session::Session;
use crate::shortlist::MOST_BEST;
use formats::tokenizer::{Tokenizer, Utf8Stream};
use formats::{Error, Result};
use release::Release;
use std::time::{Duration, Instant};

/// Tokens that are to come, at the least, for a shortlist to be made: it is repaid after a quarter of them.
const WORTH_A_SHORTLIST: usize = 64;

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtContext {
    /// Each further token is computed from the window of the last `context` ids, from its start: exact, and as
    /// costly as a prompt of that length for every token.
    #[default]
    Slide,
    /// Generation ends.
    Stop,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose an id that ends a text; it is not among the tokens.
    EndOfText,
    /// The stop string of this index was generated; it is not in the text.
    Stop(usize),
    /// As many tokens as were asked for.
    Length,
    /// The context is full, and it was to stop there.
    Context,
    /// Another thread asked for it.
    Cancelled,
}

impl FinishReason {
    /// The word for it in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::EndOfText => "eos",
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// How a [`Generator`] chooses and when it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens it gives.
    pub max_tokens: usize,
    /// Texts that end generation.
    pub stop: Vec<String>,
    /// What happens when the context is full.
    pub at_context: AtContext,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Same seed, same logits, same tokens.
    pub seed: u64,
    /// Ids that end a text.
    pub end: Vec<u32>,
    /// Whether each token's probability is told, which needs the whole head at every token.
    pub logprobs: bool,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions {
            max_tokens: 256,
            stop: Vec::new(),
            at_context: AtContext::default(),
            sampling: Sampling::default(),
            seed: 0,
            end: Vec::new(),
            logprobs: false,
        }
    }
}

impl GenerateOptions {
    /// What the model's own directory asks for, and the defaults where it is silent. A text ends with the tokenizer's
    /// end-of-text token if nothing else is said.
    pub fn of(model: &Model) -> GenerateOptions {
        let generation = model.generation();
        let mut end = generation.eos_token_id.clone();
        if end.is_empty() {
            end.extend(model.tokenizer().and_then(Tokenizer::end_of_text));
        }
        GenerateOptions { sampling: Sampling::of(generation), end, ..GenerateOptions::default() }
    }
}

/// What a text starts from: the model's bos id, else what its tokenizer begins a prompt with, else the id that ends the
/// text before, else id 0.
fn start(model: &Model) -> u32 {
    let tokenizer = model.tokenizer();
    let begins = tokenizer.and_then(|tokenizer| tokenizer.prefix().first().copied());
    let bos = model.generation().bos_token_id.or(begins);
    bos.or_else(|| tokenizer.and_then(Tokenizer::end_of_text)).unwrap_or(0)
}

/// Generates tokens, one a call of [`Iterator::next`]; their text is lent by [`Generator::text`].
#[derive(Debug)]
pub struct Generator<'session> {
    session: &'session mut Session,
    model: Model,
    sampler: Sampler,
    options: GenerateOptions,
    /// How many of the best logits are enough to choose a token.
    best: usize,
    /// The ids behind the next logits, fed or not, as far back as a window can reach.
    ids: Vec<u32>,
    /// How many of them, at the end, the session has not been fed.
    pending: usize,
    given: usize,
    utf8: Utf8Stream,
    /// Whether no text stands before the next token, only special ones.
    begins: bool,
    release: Release,
    tail: String,
    finish: Option<FinishReason>,
    failed: bool,
    slid: bool,
}

impl<'session> Generator<'session> {
    /// Continues what `session` holds, then `prompt`. When both are empty it starts from the model's bos id; without
    /// one from what its tokenizer begins or ends texts with, or from id 0.
    pub fn new(
        session: &'session mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generator<'session>> {
        let model = session.model().clone();
        let vocabulary = model.config().vocabulary;
        if let Some((index, id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
            return Err(Error::Usage(format!(
                "id {id} at place {index} of the prompt lies past the vocabulary of {vocabulary}"
            )));
        }
        if model.tokenizer().is_none() && !options.stop.is_empty() {
            return Err(Error::Usage(
                "stop strings need a tokenizer, and this model has none that is computed here".into(),
            ));
        }
        let start = [start(&model)];
        let prompt = if prompt.is_empty() && session.position() == 0 { &start } else { prompt };
        let context = session.context();
        let length = session.position() + prompt.len();
        if options.at_context == AtContext::Stop && length > context {
            return Err(Error::Usage(format!(
                "a prompt of {length} ids does not fit into the context of {context}; shorten it, or let the \
                 window slide"
            )));
        }

        // The window moves to the front when twice the context is full, so this room is enough for ever.
        let room = length.min(2 * context).saturating_add(options.max_tokens).min(2 * context);
        let mut ids: Vec<u32> = Vec::new();
        ids.try_reserve_exact(room).map_err(|_| Error::Memory {
            what: format!("a history of {room} ids"),
            needed: (room * size_of::<u32>()) as u64,
            available: 0,
            help: "generate fewer tokens".into(),
        })?;
        let known = session.ids().iter().chain(prompt);
        ids.extend(known.skip(length.saturating_sub(2 * context)));
        // Logits are not kept between generators: a session that is only to go on is fed its last id again.
        let pending = if prompt.is_empty() {
            session.rewind(session.position() - 1)?;
            1
        } else {
            prompt.len()
        };
        let begins = length <= ids.len()
            && model.tokenizer().is_some_and(|tokenizer| ids.iter().all(|&id| tokenizer.is_special(id)));
        let best = if options.logprobs { usize::MAX } else { options.sampling.decided_by() };
        if best <= MOST_BEST && options.max_tokens >= WORTH_A_SHORTLIST {
            session.make_shortlist();
        }
        Ok(Generator {
            sampler: Sampler::new(options.sampling, options.seed, vocabulary)?,
            release: Release::new(&options.stop)?,
            options: options.clone(),
            best,
            session,
            model,
            ids,
            pending,
            given: 0,
            utf8: Utf8Stream::default(),
            begins,
            tail: String::new(),
            finish: None,
            failed: false,
            slid: false,
        })
    }

    /// The text that the last token made certain; empty where the model has no tokenizer. It goes on from the prompt's: a
    /// blank that belongs to its first token is there, except where nothing but special tokens stands before it and the
    /// tokenizer itself puts a blank before a text.
    pub fn text(&self) -> &str {
        self.release.text()
    }

    /// The text still held back when generation ended, after the last token's.
    pub fn tail(&self) -> &str {
        &self.tail
    }

    /// Why generation ended; `None` while it has not, or when it ended in an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Whether the context is full and every token recomputes its window.
    pub fn slid(&self) -> bool {
        self.slid
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        if self.given >= self.options.max_tokens {
            self.end(FinishReason::Length);
            return Ok(None);
        }
        let context = self.session.context();
        let fresh = self.ids.len() - self.pending.min(self.ids.len());
        let slides = self.session.position() + self.pending > context;
        let window = self.ids.len().saturating_sub(context);
        let logits = if slides {
            self.slid = true;
            self.session.rewind(0)?;
            self.session.feed_best(&self.ids[window..], self.best)?
        } else {
            self.session.feed_best(&self.ids[fresh..], self.best)?
        };
        let history = &self.ids[window..];
        let token = match self.options.logprobs {
            true => self.sampler.sample(logits, history)?,
            false => Token { id: self.sampler.choose(logits, history)?, logprob: None },
        };
        if self.options.end.contains(&token.id) {
            self.end(FinishReason::EndOfText);
            return Ok(None);
        }

        if self.ids.len() >= 2 * context {
            self.ids.drain(..self.ids.len() - context);
        }
        self.ids.push(token.id);
        self.pending = 1;
        self.given += 1;

        let mut bytes: &[u8] = &[];
        if let Some(tokenizer) = self.model.tokenizer() {
            bytes = tokenizer.token(token.id).unwrap_or_default();
            if self.begins && !tokenizer.is_special(token.id) {
                self.begins = false;
                bytes = &bytes[tokenizer.leading_blank(token.id)..];
            }
        }
        let stopped = self.release.push(self.utf8.push(bytes));
        if let Some(index) = stopped {
            self.finish = Some(FinishReason::Stop(index));
        } else if self.given >= self.options.max_tokens {
            self.end(FinishReason::Length);
        } else if self.options.at_context == AtContext::Stop && self.session.position() >= context {
            self.end(FinishReason::Context);
        }
        Ok(Some(token))
    }

    /// Ends generation and gives out what was held back: no stop string can be completed any more, except by the
    /// replacement character of an unfinished one.
    fn end(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
        self.release.flush(self.utf8.finish(), &mut self.tail);
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        self.release.clear();
        if self.finish.is_some() || self.failed {
            return None;
        }
        match self.advance() {
            Err(Error::Cancelled) => {
                self.end(FinishReason::Cancelled);
                None
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
            Ok(token) => token.map(Ok),
        }
    }
}

/// When text that comes token by token is handed to whoever reads: at once, except where something was handed over a
/// moment ago, too short a time to be seen. A small model takes less time for a token than the system for a line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
}

impl Pace {
    const MOMENT: Duration = Duration::from_millis(1);

    /// Whether what there is is to be handed over now. What is not goes with the next token, or at the end.
    pub fn due(&mut self) -> bool {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now.duration_since(last) >= Pace::MOMENT);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
pub(crate) mod tests;
