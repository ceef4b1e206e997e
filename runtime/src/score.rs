//! How probable a model finds a text.
//!
//! Past the context a text is scored in independent windows, exactly as `trainer eval` cuts it: window `i` reads ids
//! `i * context` and on, and predicts for each the id that follows it.

use crate::sampler::log_sum_exp;
use crate::session::Session;
use formats::{Error, Result};

/// The log-probability of every id but the first, given those before it in its window: as many numbers as `ids`
/// has, less one. Whatever the session held is forgotten.
pub fn score(session: &mut Session, ids: &[u32]) -> Result<Vec<f32>> {
    if ids.is_empty() {
        return Err(Error::Usage("there is nothing to score: the text is empty".into()));
    }
    let vocabulary = session.model().config().vocabulary;
    if let Some((index, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
        return Err(Error::Usage(format!(
            "id {id} at place {index} lies past the vocabulary of {vocabulary}"
        )));
    }
    let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
    let mut logprobs = Vec::with_capacity(targets.len());
    let mut broken = None;
    for (window, following) in inputs.chunks(session.context()).zip(targets.chunks(session.context())) {
        session.rewind(0)?;
        session.feed_each(window, &mut |position, logits| match log_sum_exp(logits) {
            Ok(total) => logprobs.push(logits[following[position] as usize] - total),
            Err(error) => broken = broken.take().or(Some(error)),
        })?;
        if let Some(error) = broken {
            return Err(error);
        }
    }
    Ok(logprobs)
}
