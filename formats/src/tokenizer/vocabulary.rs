//! The map of tokens to ids in `tokenizer.json` and `vocab.json`, and the merges beside it, as a file writes them.

use crate::config::MAX_VOCABULARY;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::HashMap;
use std::fmt;

/// The vocabulary in file order; a map would silently keep the last of two equal tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a map of tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocabulary(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// One merge, written as `"a b"` or as `["a", "b"]`.
#[derive(Clone, Debug)]
pub(super) struct Pair(pub(super) String, pub(super) String);

impl Pair {
    /// The two sides of `"a b"`.
    pub(super) fn of_line(line: &str) -> Option<Pair> {
        let (left, right) = line.split_once(' ')?;
        (!left.is_empty() && !right.is_empty() && !right.contains(' '))
            .then(|| Pair(left.to_owned(), right.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pair, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Pair;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a merge, written \"a b\" or [\"a\", \"b\"]")
            }

            fn visit_str<E: Error>(self, line: &str) -> Result<Pair, E> {
                Pair::of_line(line).ok_or_else(|| E::custom(format!("merge {line:?} has no two sides")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Pair, A::Error> {
                let (left, right, more) =
                    (sides.next_element()?, sides.next_element()?, sides.next_element::<String>()?);
                match (left, right, more) {
                    (Some(left), Some(right), None) => Ok(Pair(left, right)),
                    _ => Err(A::Error::custom("a merge has no two sides")),
                }
            }
        }
        deserializer.deserialize_any(Sides)
    }
}

impl Vocabulary {
    /// The tokens in id order, having proven that the ids are exactly `0..len` and the tokens distinct. `added` are
    /// tokens listed elsewhere; one that stands here too must have the same id.
    pub(super) fn by_id(self, added: &[(String, u32)]) -> Result<Vec<String>, String> {
        let Vocabulary(mut entries) = self;
        if entries.is_empty() {
            return Err("its vocabulary is empty".into());
        }
        let ids: HashMap<&str, u32> = entries.iter().map(|(token, id)| (token.as_str(), *id)).collect();
        if ids.len() < entries.len() {
            let mut tokens: Vec<&String> = entries.iter().map(|(token, _)| token).collect();
            tokens.sort_unstable();
            let twice = tokens.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].as_str());
            return Err(format!("token {:?} has two ids", twice.unwrap_or_default()));
        }
        let mut beside = Vec::new();
        for (token, id) in added {
            match ids.get(token.as_str()) {
                Some(known) if known == id => {}
                Some(known) => {
                    return Err(format!(
                        "added token {token:?} has id {id}, and id {known} in the vocabulary"
                    ));
                }
                None => beside.push((token.clone(), *id)),
            }
        }
        entries.extend(beside);

        let count = entries.len();
        if count > MAX_VOCABULARY {
            return Err(format!("its vocabulary has {count} tokens; at most {MAX_VOCABULARY} are read"));
        }
        let mut tokens: Vec<Option<String>> = vec![None; count];
        for (token, id) in entries {
            if token.is_empty() {
                return Err(format!("the token of id {id} is empty"));
            }
            let Some(slot) = tokens.get_mut(id as usize) else {
                return Err(format!(
                    "token {token:?} has id {id}; {count} tokens must have the ids 0 to {} without gaps",
                    count - 1
                ));
            };
            if let Some(other) = slot {
                return Err(format!("tokens {other:?} and {token:?} both have id {id}"));
            }
            *slot = Some(token);
        }
        // As many ids in range as slots, none twice: every slot is filled.
        Ok(tokens.into_iter().flatten().collect())
    }
}

/// Merges as pairs of ids, or the first that names what `tokens` lacks.
pub(super) fn merges_by_id(pairs: &[Pair], tokens: &[String]) -> Result<Vec<(u32, u32)>, String> {
    let ids: HashMap<&str, u32> = tokens.iter().map(String::as_str).zip(0..).collect();
    let find = |rank: usize, side: &str| {
        ids.get(side)
            .copied()
            .ok_or_else(|| format!("merge {rank} names {side:?}, which the vocabulary lacks"))
    };
    let both = |(rank, Pair(left, right)): (usize, &Pair)| Ok((find(rank, left)?, find(rank, right)?));
    pairs.iter().enumerate().map(both).collect()
}
