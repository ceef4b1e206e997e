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
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The index's own name.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Longest index that is read.
const MOST_BYTES: u64 = 64 << 20;
/// Most shards of a model: each is a file that stays mapped.
const MOST_SHARDS: usize = 1024;

/// Maps every shard of an index, passing over tensors as [`TensorFile::open_passing`] does. No number is read.
pub(super) fn open(index: &Path, passed: &dyn Fn(&str) -> bool) -> Result<Vec<TensorFile>> {
    let text = source::read_text(index, MOST_BYTES)?;
    let Index { weight_map: Map(map) } = serde_json::from_str(&text)
        .map_err(|error| damaged(index, format!("is no index of shards: {error}")))?;
    let mut shards: BTreeSet<&str> = BTreeSet::new();
    for (tensor, shard) in &map {
        if !is_name(shard) || shard.contains('/') || !shard.ends_with(".safetensors") {
            let problem =
                format!("says that {tensor:?} is in {shard:?}, which is no name of a file beside it");
            return Err(damaged(index, problem));
        }
        shards.insert(shard);
    }
    if shards.is_empty() || shards.len() > MOST_SHARDS {
        return Err(damaged(index, format!("names {} shards; 1 to {MOST_SHARDS} are read", shards.len())));
    }
    let directory = index.parent().unwrap_or(Path::new(""));
    let mut files = Vec::with_capacity(shards.len());
    for shard in shards {
        let path = directory.join(shard);
        if path.symlink_metadata().is_err() {
            return Err(damaged(index, format!("names the shard {shard}, which is missing")));
        }
        let file = TensorFile::open_passing(&path, passed)?;
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
        let of_it = map.iter().filter(|(name, place)| *place == shard && !passed(name));
        if let Some((missing, _)) = of_it.into_iter().find(|(name, _)| file.get(name).is_none()) {
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

#[cfg(test)]
mod tests {
    use super::super::Dtype;
    use super::super::source::tests::Scratch;
    use super::super::writer::{self, Outgoing, Values};
    use super::*;
    use std::time::{Duration, Instant};

    /// A shard of tensors of one value each.
    fn shard(scratch: &Scratch, name: &str, tensors: &[&str]) {
        let outgoing =
            |name: &&str| Outgoing { name: (*name).into(), dtype: Dtype::F32, shape: vec![1], values: VALUE };
        const VALUE: Values = Values::Floats(&[1.5]);
        let mut tensors: Vec<Outgoing> = tensors.iter().map(outgoing).collect();
        let mut bytes = Vec::new();
        writer::write(&mut tensors, &mut bytes, |error| Error::write("memory", error))
            .expect("can be written");
        let _ = std::fs::remove_file(scratch.join(name));
        std::fs::write(scratch.join(name), bytes).expect("can be written");
    }

    fn index(scratch: &Scratch, text: &str) -> std::path::PathBuf {
        let path = scratch.join(INDEX);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).expect("can be written");
        path
    }

    fn refused(scratch: &Scratch, map: &str, words: &str) {
        let start = Instant::now();
        let error =
            open(&index(scratch, &format!("{{\"weight_map\": {map}}}")), &|_| false).expect_err(words);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        assert_eq!(error.exit_code(), 3, "{error}");
    }

    #[test]
    fn shards_hold_what_their_index_says_and_nothing_else() {
        let scratch = Scratch::new();
        shard(&scratch, "1.safetensors", &["a", "b"]);
        shard(&scratch, "2.safetensors", &["c"]);
        let good = r#"{"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}"#;
        let text = format!("{{\"metadata\": {{\"total_size\": 12}}, \"weight_map\": {good}}}");
        let files = open(&index(&scratch, &text), &|_| false).expect("two shards");
        let names: Vec<&str> = files.iter().flat_map(TensorFile::iter).map(|tensor| tensor.name).collect();
        assert_eq!(names, ["a", "b", "c"]);

        let with = |from: &str, to: &str| good.replacen(from, to, 1);
        refused(
            &scratch,
            &with("2.safetensors", "3.safetensors"),
            "names the shard 3.safetensors, which is missing",
        );
        for name in
            ["../2.safetensors", "/2.safetensors", "x/2.safetensors", "..", "", ".2.safetensors", "2.bin"]
        {
            refused(&scratch, &with("2.safetensors", name), &format!("is in {name:?}, which is no name"));
        }
        refused(&scratch, &with("\"c\"", "\"a\""), "the tensor \"a\" stands twice");
        refused(&scratch, &with("\"c\"", "\"d\""), "2.safetensors: holds c, which its index does not name");
        let more = with("}", ", \"d\": \"2.safetensors\"}");
        refused(&scratch, &more, "2.safetensors: lacks d, which its index says is in it");
        refused(&scratch, "{}", "names 0 shards");
        refused(&scratch, "{\"a\": 1}", "is no index of shards");
        refused(&scratch, "[]", "is no index of shards");
        let many: Vec<String> =
            (0..1025).map(|shard| format!("\"{shard}\": \"{shard}.safetensors\"")).collect();
        refused(&scratch, &format!("{{{}}}", many.join(",")), "names 1025 shards");

        shard(&scratch, "2.safetensors", &["b", "c"]);
        refused(&scratch, good, "2.safetensors: holds b, which its index says is in 1.safetensors");
        std::fs::write(scratch.join("2.safetensors"), b"version https://git-lfs").expect("can be written");
        refused(&scratch, good, "is a Git LFS pointer");
        std::fs::remove_file(scratch.join("2.safetensors")).expect("is there");
        std::fs::create_dir(scratch.join("2.safetensors")).expect("can be made");
        refused(&scratch, good, "is a directory");
    }
}
