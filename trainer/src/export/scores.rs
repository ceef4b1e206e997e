//! Merges as the scores of tokens.
//!
//! llama.cpp's model `llama` (SentencePiece's, Kudo and Richardson 2018) has no merges: of all neighbours whose text together
//! is a token it joins those whose token has the highest score, and of equal ones the leftmost. That gives the ids of
//! merges by rank where
//!
//! - every way to put a token together from two that can stand side by side is a merge, and
//! - merges that make the same token follow each other, so that one number orders them: minus the rank of the first.
//!
//! Files converted from SentencePiece's are so. A vocabulary whose merges were learned one token a merge is not.

use formats::tokenizer::{TokenKind, Tokenizer};
use std::collections::{HashMap, HashSet};

/// The score of each id, or why no scores give the same ids.
pub(super) fn scores(tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Vec<f32>, String> {
    let written: Vec<String> =
        (0..tokenizer.vocabulary() as u32).filter_map(|id| tokenizer.written(id)).collect();
    let ids: HashMap<&str, u32> = written.iter().map(String::as_str).zip(0..).collect();
    let merges = tokenizer.merges();
    let mut scores = vec![-(merges.len() as f32); written.len()];
    // Of each token that is made: the first of its merges.
    let mut made: HashMap<u32, usize> = HashMap::new();
    let (mut last, mut overlaps) = (None, 0usize);
    for (rank, &(left, right)) in merges.iter().enumerate() {
        let joined = format!("{}{}", written[left as usize], written[right as usize]);
        let id = *ids.get(joined.as_str()).ok_or("merged into what the vocabulary lacks")?;
        match made.get(&id) {
            None => {
                made.insert(id, rank);
                scores[id as usize] = -(rank as f32);
            }
            Some(_) if last != Some(id) => {
                return Err(format!(
                    "one that makes {joined:?} by merges that do not follow each other (the second is merge {rank})"
                ));
            }
            // Two ways to the same token that share their middle: a, b and c where both ab and bc may go first.
            Some(&first) => {
                overlaps += merges[first..rank].iter().filter(|earlier| earlier.0 == right).count();
            }
        }
        last = Some(id);
    }
    if overlaps > 0 {
        notes.push(format!(
            "{overlaps} pairs of merges make the same token of text that both could take: llama.cpp then joins the \
             leftmost, not the one listed first"
        ));
    }
    let listed: HashSet<(u32, u32)> = merges.iter().copied().collect();
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
