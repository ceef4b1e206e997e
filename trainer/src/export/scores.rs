//! Merges as the scores of tokens.
//!
//! llama.cpp's model `llama` (SentencePiece's, Kudo and Richardson 2018) has no merges: of all neighbours whose text together
//! is a token it joins those whose token has the highest score, and of equal ones the leftmost. That gives the ids of
//! merges by rank where
//!
//! - every way to put a token together from two that can stand side by side is a merge, and
//! - merges that make the same token follow each other, so that one number orders them: minus the rank of the first.
//!
//! Files converted from SentencePiece's are so, but for the runs of blanks of Llama 2 and Mistral, which all have one score:
//! there both ways are tried on runs of every length. A vocabulary whose merges were learned one token a merge is not.

use formats::tokenizer::{TokenKind, Tokenizer};
use std::collections::{HashMap, HashSet};

/// How many times the longest run of blanks is tried.
const RUNS: usize = 8;

/// The score of each id, or why no scores give the same ids.
pub(super) fn scores(tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Vec<f32>, String> {
    let written: Vec<String> =
        (0..tokenizer.vocabulary() as u32).filter_map(|id| tokenizer.written(id)).collect();
    let ids: HashMap<&str, u32> = written.iter().map(String::as_str).zip(0..).collect();
    let mut scores = vec![-(tokenizer.merges().len() as f32); written.len()];
    let mut made: HashMap<u32, Vec<usize>> = HashMap::new();
    for (rank, &(left, right)) in tokenizer.merges().iter().enumerate() {
        let joined = format!("{}{}", written[left as usize], written[right as usize]);
        let id = *ids.get(joined.as_str()).ok_or("merged into what the vocabulary lacks")?;
        made.entry(id).or_default().push(rank);
    }
    let scattered = made.iter().filter(|(_, ranks)| ranks[ranks.len() - 1] - ranks[0] >= ranks.len());
    let scattered: Option<u32> = scattered.map(|(&id, _)| id).min();
    let runs = scattered.map(|id| one_score(tokenizer, &written, &made, id)).transpose()?.unwrap_or_default();
    let mut overlaps = 0;
    for (&id, ranks) in &made {
        scores[id as usize] = -(ranks[0] as f32);
        // Two ways to the same token that share their middle: a, b and c where both ab and bc may go first.
        let merge = |rank: &usize| tokenizer.merges()[*rank];
        if !runs.contains_key(&id) {
            let earlier = |place: usize| ranks[..place].iter().map(merge);
            let shared =
                |place: usize| earlier(place).filter(|pair| pair.0 == merge(&ranks[place]).1).count();
            overlaps += (0..ranks.len()).map(shared).sum::<usize>();
        }
    }
    for (&id, &score) in &runs {
        scores[id as usize] = score;
    }
    if overlaps > 0 {
        notes.push(format!(
            "{overlaps} pairs of merges make the same token of text that both could take: llama.cpp then joins the \
             leftmost, not the one listed first"
        ));
    }
    let listed: HashSet<(u32, u32)> = tokenizer.merges().iter().copied().collect();
    for (token, id) in written.iter().zip(0u32..) {
        let kind = tokenizer.kind(id);
        // Those are found before anything is joined.
        if kind == Some(TokenKind::Added) {
            continue;
        }
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            // A character is a symbol of its own, token or not.
            let stands = |part: &str| ids.contains_key(part) || part.chars().nth(1).is_none();
            if !stands(left) || !stands(right) {
                continue;
            }
            let pair = ids.get(left).zip(ids.get(right)).map(|(&left, &right)| (left, right));
            if pair.is_some_and(|pair| listed.contains(&pair)) {
                continue;
            }
            if kind == Some(TokenKind::Special) {
                notes.push(format!(
                    "llama.cpp may take {token:?} for the special token where it is plain text"
                ));
                break;
            }
            return Err(format!(
                "one whose merges do not join {left:?} and {right:?}, which llama.cpp would, into {token:?}"
            ));
        }
    }
    Ok(scores)
}

/// The one score of all tokens that repeat one character, as token `scattered` does, whose merges stand between each
/// other's; or why one score does not give the same ids. Joined leftmost first, every run must come out as merges make it.
fn one_score(
    tokenizer: &Tokenizer,
    written: &[String],
    made: &HashMap<u32, Vec<usize>>,
    scattered: u32,
) -> Result<HashMap<u32, f32>, String> {
    let refuse = || {
        let token = &written[scattered as usize];
        format!("one that makes {token:?} by merges that do not follow each other")
    };
    let character = written[scattered as usize].chars().next().ok_or_else(refuse)?;
    let repeats = |id: u32| written[id as usize].chars().all(|other| other == character);
    let class: HashMap<u32, &Vec<usize>> =
        made.iter().filter(|(id, _)| repeats(**id)).map(|(&id, ranks)| (id, ranks)).collect();
    let ranks: Vec<usize> = class.values().flat_map(|ranks| ranks.iter().copied()).collect();
    let (first, last) = (ranks.iter().min().ok_or_else(refuse)?, ranks.iter().max().ok_or_else(refuse)?);
    let others = made.iter().filter(|(id, _)| !class.contains_key(id));
    let mut torn =
        others.map(|(_, ranks)| ranks).filter(|ranks| ranks[ranks.len() - 1] - ranks[0] >= ranks.len());
    if last - first + 1 != ranks.len() || torn.next().is_some() {
        return Err(refuse());
    }
    let lengths: HashSet<usize> = class.keys().map(|&id| written[id as usize].chars().count()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(1);
    for count in 1..=RUNS * longest {
        let mut run = vec![1; count];
        while let Some(place) = (1..run.len()).find(|&place| lengths.contains(&(run[place - 1] + run[place])))
        {
            run[place - 1] += run.remove(place);
        }
        let text: String = std::iter::repeat_n(character, count).collect();
        let merged = tokenizer.encode_continued(&text, false).map_err(|error| error.to_string())?;
        let merged: Vec<usize> = merged.iter().map(|&id| written[id as usize].chars().count()).collect();
        if merged != run {
            return Err(format!(
                "one that merges {count} of {character:?} as {merged:?}, and llama.cpp as {run:?}"
            ));
        }
    }
    Ok(class.into_keys().map(|id| (id, -(*first as f32))).collect())
}
