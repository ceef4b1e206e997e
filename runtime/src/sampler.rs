//! From logits to the next id.
//!
//! Filters apply in Hugging Face's order: repetition penalty, temperature, top-k, top-p, min-p. Tokens have one
//! ranking, by score and then by lower id, and each of the last three filters is a cut in it: what ranks below the
//! cut goes. Candidates stay in the order of their ids, so that a draw depends on the logits and the seed and
//! never on how a cut was found. Holds no model and no text; the generator calls it once a token.

use crate::random::{Purpose, Stream, uniform_f64};
use crate::simd::Simd;
use formats::checkpoint::GenerationConfig;
use formats::config::MAX_VOCABULARY;
use formats::{Error, Result};
use std::cmp::Ordering;

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// The natural logarithm of the probability the model itself gave it: before any penalty, temperature or filter. `None`
    /// where it was not asked for.
    pub logprob: Option<f32>,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Scores are divided by this; 0 takes the most probable token always.
    pub temperature: f32,
    /// Only this many of the best tokens stay; 0 keeps all. Of equal scores the lower ids stay.
    pub top_k: usize,
    /// Only the best tokens that together reach this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this probable, relative to the best one, stay; 0 keeps all.
    pub min_p: f32,
    /// Scores of tokens already seen are divided by this where positive and multiplied where negative; 1 does nothing.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// The most probable token, always.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, ..Sampling::PLAIN };

    /// The model's own distribution, unfiltered.
    pub const PLAIN: Sampling =
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

    /// What a model's directory asks for; where it is silent, the default.
    pub fn of(generation: &GenerationConfig) -> Sampling {
        let silent = Sampling::default();
        let temperature = match generation.do_sample {
            Some(false) => 0.0,
            _ => generation.temperature.unwrap_or(silent.temperature),
        };
        Sampling {
            temperature,
            top_k: generation.top_k.unwrap_or(silent.top_k),
            top_p: generation.top_p.unwrap_or(silent.top_p),
            min_p: generation.min_p.unwrap_or(silent.min_p),
            repetition_penalty: generation.repetition_penalty.unwrap_or(silent.repetition_penalty),
        }
    }

    /// How many of the highest logits decide which token comes next; `usize::MAX` where all of them do.
    pub fn decided_by(&self) -> usize {
        match (self.temperature, self.top_k) {
            _ if self.repetition_penalty != 1.0 => usize::MAX,
            (0.0, _) => 1,
            (_, 0) => usize::MAX,
            (_, top_k) => top_k,
        }
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f32, good: bool, expected: &str| {
            if good {
                return Ok(());
            }
            Err(Error::Usage(format!("{name} is {value}, expected {expected}")))
        };
        let unit = 0.0..=1.0;
        within(
            "temperature",
            self.temperature,
            self.temperature.is_finite() && self.temperature >= 0.0,
            "0 (greedy) or more",
        )?;
        within("top-p", self.top_p, unit.contains(&self.top_p), "0 to 1 (off)")?;
        within("min-p", self.min_p, unit.contains(&self.min_p), "0 (off) to 1")?;
        within(
            "repetition penalty",
            self.repetition_penalty,
            self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
            "above 0 (1 is off)",
        )
    }
}

impl Default for Sampling {
    /// What a model is sampled with when neither its directory nor its user says anything.
    fn default() -> Sampling {
        Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.0 }
    }
}

/// A token that may come next.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    /// Its probability, relative to the best token's.
    weight: f32,
    id: u32,
}

impl Candidate {
    /// Better first: by score, then by lower id. Scores are finite.
    fn rank(&self, other: &Candidate) -> Ordering {
        other.score.partial_cmp(&self.score).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

/// Chooses tokens, one a call.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    vocabulary: usize,
    stream: Stream,
    drawn: u64,
    /// Scores after the repetition penalty.
    scores: Vec<f32>,
    /// What may still be drawn, in the order of ids.
    kept: Vec<Candidate>,
    /// Where a cut is looked for; in no order that matters.
    ranked: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a vocabulary, with buffers that never grow again.
    pub fn new(sampling: Sampling, seed: u64, vocabulary: usize) -> Result<Sampler> {
        sampling.validate()?;
        if vocabulary == 0 || vocabulary > MAX_VOCABULARY {
            return Err(Error::Usage(format!(
                "a vocabulary of {vocabulary} cannot be sampled, expected 1 to {MAX_VOCABULARY}"
            )));
        }
        let top_k = if sampling.top_k == 0 { vocabulary } else { sampling.top_k.min(vocabulary) };
        let draws = sampling.temperature > 0.0;
        let penalises = sampling.repetition_penalty != 1.0;
        let ranks = draws && (top_k < vocabulary || sampling.top_p < 1.0);
        Ok(Sampler {
            sampling: Sampling { top_k, ..sampling },
            vocabulary,
            stream: Stream::new(seed, Purpose::Sample),
            drawn: 0,
            scores: room(if penalises { vocabulary } else { 0 })?,
            kept: room(if draws { top_k } else { 0 })?,
            ranked: room(if ranks { (2 * top_k).min(vocabulary) } else { 0 })?,
        })
    }

    /// Chooses the token that follows `history`, from the logits after its last id. Logits that are not finite
    /// are an error, never a token.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Token> {
        let id = self.choose(logits, history)?;
        let logprob = logits[id as usize] - (Simd::best().log_sum_exp)(logits);
        Ok(Token { id, logprob: Some(logprob) })
    }

    /// The same without the token's probability, which needs all logits: here as many of the highest as
    /// [`Sampling::decided_by`] says are enough, if all others are given as lower numbers.
    pub fn choose(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        if logits.len() != self.vocabulary {
            return Err(Error::Usage(format!(
                "{} logits were given to a sampler for a vocabulary of {}",
                logits.len(),
                self.vocabulary
            )));
        }
        check_finite(logits)?;
        let scores = if self.sampling.repetition_penalty == 1.0 {
            logits
        } else {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            penalise(&mut self.scores, logits, history, self.sampling.repetition_penalty)?;
            &self.scores
        };
        if self.sampling.temperature == 0.0 {
            return Ok(best(scores));
        }
        let [high, low, _, _] = self.stream.draws(self.drawn, 0);
        self.drawn += 1;
        filter(&self.sampling, scores, &mut self.kept, &mut self.ranked);
        Ok(pick(&self.kept, uniform_f64([high, low])))
    }
}

/// An empty buffer with room for `count`, or the error that says there is none.
fn room<T>(count: usize) -> Result<Vec<T>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(count).map_err(|_| Error::Memory {
        what: format!("sampling with a buffer of {count} tokens"),
        needed: (count * size_of::<T>()) as u64,
        available: 0,
        help: "set a smaller top-k".into(),
    })?;
    Ok(buffer)
}

/// `ln(sum(exp(logits)))`, or the first logit that is not finite as an error.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Result<f32> {
    check_finite(logits)?;
    Ok((Simd::best().log_sum_exp)(logits))
}

/// The first logit that is not finite as an error.
fn check_finite(logits: &[f32]) -> Result<()> {
    // Infinities and NaN have every bit of the exponent set; without an early end the scan runs at the speed of
    // memory.
    const EXPONENT: u32 = f32::INFINITY.to_bits();
    let broken = |logit: f32| logit.to_bits() & EXPONENT == EXPONENT;
    if logits.iter().fold(false, |any, &logit| any | broken(logit)) {
        let id = logits.iter().position(|&logit| broken(logit)).unwrap_or(0);
        return Err(Error::Diverged(format!(
            "the model computes no number: the logit of id {id} is {}\n  help: `runtime verify` names the tensor \
             that is damaged",
            logits[id]
        )));
    }
    Ok(())
}

fn highest(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The id of the highest score; of equal ones the lowest.
fn best(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = id;
        }
    }
    best as u32
}

/// Lowers the score of each id in `history`, once however often it occurs: the new score comes from the logit
/// (Keskar et al. 2019, "CTRL", section 4.1, in Hugging Face's form that minds the sign).
fn penalise(scores: &mut [f32], logits: &[f32], history: &[u32], penalty: f32) -> Result<()> {
    for &id in history {
        let Some(&logit) = logits.get(id as usize) else {
            return Err(Error::Usage(format!("id {id} lies past the vocabulary of {}", logits.len())));
        };
        let lowered = if logit < 0.0 { logit * penalty } else { logit / penalty };
        // An extreme penalty overflows; a score stays a number all the same.
        scores[id as usize] = lowered.clamp(f32::MIN, f32::MAX);
    }
    Ok(())
}

/// Leaves in `kept` what may be drawn, with its weights, in the order of ids. `ranked` is room to work in.
fn filter(sampling: &Sampling, scores: &[f32], kept: &mut Vec<Candidate>, ranked: &mut Vec<Candidate>) {
    let most = highest(scores);
    let candidate = |(id, &score): (usize, &f32)| Candidate {
        score,
        weight: ((score - most) / sampling.temperature).exp(),
        id: id as u32,
    };
    kept.clear();
    if sampling.top_k < scores.len() {
        let last = top_k_cut(scores, sampling.top_k, ranked);
        let stays = |&(id, &score): &(usize, &f32)| {
            score > last.score || (score == last.score && id as u32 <= last.id)
        };
        kept.extend(scores.iter().enumerate().filter(stays).map(candidate));
    } else {
        kept.extend(scores.iter().enumerate().map(candidate));
    }
    if sampling.top_p < 1.0 {
        let last = top_p_cut(kept, sampling.top_p, ranked);
        kept.retain(|candidate| candidate.rank(&last) != Ordering::Greater);
    }
    // Relative to the best, so it does not matter that the weights no longer sum to what they did.
    if sampling.min_p > 0.0 {
        kept.retain(|candidate| candidate.weight >= sampling.min_p);
    }
}

/// The last candidate that top-k leaves, for `1 <= top_k < scores.len()`.
///
/// Reads the scores once and remembers at most twice `top_k` of them: whenever the memory is full, its better half
/// stays, and only what beats that half's last is remembered from then on. An equal score has a higher id there,
/// and so ranks below.
fn top_k_cut(scores: &[f32], top_k: usize, ranked: &mut Vec<Candidate>) -> Candidate {
    ranked.clear();
    let mut floor = f32::NEG_INFINITY;
    for (id, &score) in scores.iter().enumerate() {
        if score > floor {
            ranked.push(Candidate { score, weight: 0.0, id: id as u32 });
            if ranked.len() == 2 * top_k {
                floor = ranked.select_nth_unstable_by(top_k - 1, Candidate::rank).1.score;
                ranked.truncate(top_k);
            }
        }
    }
    *ranked.select_nth_unstable_by(top_k - 1, Candidate::rank).1
}

/// The last candidate that top-p leaves: the first in the ranking with which the candidates up to it reach
/// `top_p` of the weight (Holtzman et al. 2020, section 3.1).
///
/// Halves the stretch of the ranking where that candidate must lie, so it costs a few passes and no sort.
fn top_p_cut(kept: &[Candidate], top_p: f32, ranked: &mut Vec<Candidate>) -> Candidate {
    let mass = |candidates: &[Candidate]| -> f64 {
        candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
    };
    ranked.clear();
    ranked.extend_from_slice(kept);
    let wanted = f64::from(top_p) * mass(kept);
    let (mut start, mut end, mut above) = (0, ranked.len(), 0.0);
    while end - start > 1 {
        let middle = (end - start) / 2;
        let stretch = &mut ranked[start..end];
        stretch.select_nth_unstable_by(middle, Candidate::rank);
        let upper = mass(&stretch[..middle]);
        if above + upper < wanted {
            above += upper;
            start += middle;
        } else {
            end = start + middle;
        }
    }
    ranked[start]
}

/// The candidate at `unit` of the way through the weights.
fn pick(kept: &[Candidate], unit: f64) -> u32 {
    let total: f64 = kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let target = unit * total;
    let mut sum = 0.0;
    for candidate in kept {
        sum += f64::from(candidate.weight);
        if sum > target {
            return candidate.id;
        }
    }
    // The best candidate weighs 1, so the sum passes the target unless rounding took the very last step.
    kept.iter().rev().find(|candidate| candidate.weight > 0.0).map_or(0, |candidate| candidate.id)
}

#[cfg(test)]
mod tests;
