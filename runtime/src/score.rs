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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::Recipe;

    /// The definition: each id from the softmax, in float64, of its own window's logits.
    #[test]
    fn windows_are_scored_as_an_evaluation_cuts_them() {
        let model = Recipe::characters().model();
        let mut session = model.session().expect("a session");
        let context = model.config().context;
        for length in [1, 2, context, context + 1, context + 2, 2 * context + 1, 5 * context + 3] {
            let ids: Vec<u32> = (0..length as u32).map(|index| index * index % 11).collect();
            let found = score(&mut session, &ids).expect("a score");
            assert_eq!(found.len(), length - 1);
            for (index, logprob) in found.into_iter().enumerate() {
                let start = index / context * context;
                let mut fresh = model.session().expect("a session");
                let logits = fresh.feed(&ids[start..=index]).expect("logits");
                let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                let exact = f64::from(logits[ids[index + 1] as usize]) - total.ln();
                assert!((f64::from(logprob) - exact).abs() <= 1e-4, "{logprob} against {exact} at {index}");
            }
        }
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let model = Recipe::characters().model();
        let mut session = model.session().expect("a session");
        for ids in [&[][..], &[11], &[0, 1, u32::MAX]] {
            assert!(matches!(score(&mut session, ids), Err(Error::Usage(_))), "{ids:?}");
        }
        let broken = Recipe { scale: 1e30, ..Recipe::characters() }.model();
        let mut session = broken.session().expect("a session");
        assert!(matches!(score(&mut session, &[0, 1]), Err(Error::Diverged(_))));
    }
}
