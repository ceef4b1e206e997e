//! Weights in several files: `model.safetensors.index.json`, which says what stands where, and the shards it names.
//!
//! A shard lies beside its index and is named by a plain file name. What an index says and what its shards hold must
//! be the same: every tensor in the one file it is said to be in.

use super::container::TensorFile;
use super::manifest::is_name;
use super::source;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The index's own name.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Longest index that is read.
const MOST_BYTES: u64 = 64 << 20;
/// Most shards of a model: each is a file that stays mapped.
const MOST_SHARDS: usize = 1024;

/// Maps every shard of an index. No number is read.
pub(super) fn open(index: &Path) -> Result<Vec<TensorFile>> {
    let text = source::read_text(index, MOST_BYTES)?;
    let Index { weight_map: Map(map) } = serde_json::from_str(&text)
        .map_err(|error| damaged(index, format!("is no index of shards: {error}")))?;
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, shard) in &map {
        if !is_name(shard) || shard.contains('/') || !shard.ends_with(".safetensors") {
            let problem =
                format!("says that {tensor:?} is in {shard:?}, which is no name of a file beside it");
            return Err(damaged(index, problem));
        }
        *shards.entry(shard).or_default() += 1;
    }
    if shards.is_empty() || shards.len() > MOST_SHARDS {
        return Err(damaged(index, format!("names {} shards; 1 to {MOST_SHARDS} are read", shards.len())));
    }
    let directory = index.parent().unwrap_or(Path::new(""));
    let mut files = Vec::with_capacity(shards.len());
    for (shard, tensors) in shards {
        let path = directory.join(shard);
        if path.symlink_metadata().is_err() {
            return Err(damaged(index, format!("names the shard {shard}, which is missing")));
        }
        let file = TensorFile::open(&path)?;
        for tensor in file.iter() {
            match map.get(tensor.name) {
                Some(place) if place == shard => {}
                Some(place) => {
                    let problem = format!("holds {}, which its index says is in {place}", tensor.name);
                    return Err(damaged(&path, problem));
                }
                None => {
                    return Err(damaged(
                        &path,
                        format!("holds {}, which its index does not name", tensor.name),
                    ));
                }
            }
        }
        if file.len() != tensors {
            let missing = map.iter().find(|(name, place)| *place == shard && file.get(name).is_none());
            let missing = missing.map_or("a tensor", |(name, _)| name);
            return Err(damaged(&path, format!("lacks {missing}, which its index says is in it")));
        }
        files.push(file);
    }
    Ok(files)
}

fn damaged(path: &Path, problem: String) -> Error {
    Error::file(path, problem, "copy the model again, whole: its index and every shard of one save")
}

/// What is read of an index; its metadata only sums up.
#[derive(Deserialize)]
struct Index {
    weight_map: Map,
}

/// Which shard holds each tensor.
struct Map(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Map {
    /// An object whose names differ: a derived reader would take the last of two equal ones.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        struct Places;
        impl<'de> Visitor<'de> for Places {
            type Value = Map;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Map, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(name) = access.next_key::<String>()? {
                    if map.contains_key(&name) {
                        access.next_value::<IgnoredAny>()?;
                        return Err(serde::de::Error::custom(format!("the tensor {name:?} stands twice")));
                    }
                    map.insert(name, access.next_value()?);
                }
                Ok(Map(map))
            }
        }
        deserializer.deserialize_map(Places)
    }
}
