//! What stands before the tensors of a safetensors file: 8 bytes of length, and a JSON header.
//!
//! Read in two steps. First a check of our own, stricter than the format's published reader: bounds on every
//! count, no name and no field twice, no field unknown, sizes in arithmetic that cannot overflow, alignment.
//! Then the safetensors crate must agree. The header is copied before it is read, so a file that changes
//! meanwhile cannot pass one check and fail another. `writer` is the other direction.

use super::Dtype;
use crate::error::{Error, Result};
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Bytes of the header length that opens the file.
pub(super) const LENGTH_BYTES: usize = 8;
/// Longest header that is read.
pub(super) const MOST_HEADER: u64 = 16 << 20;
/// Most tensors in one file.
const MOST_TENSORS: usize = 131_072;
/// Longest tensor name, in bytes.
const MOST_NAME: usize = 256;
/// Most dimensions of one tensor.
const MOST_DIMENSIONS: usize = 4;
/// Where free text may stand; it changes nothing.
const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) place: Place,
}

/// Where one tensor's numbers are in its file, which has proven them to be there and aligned.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dtype: Dtype,
    /// In the whole file.
    pub(super) range: Range<usize>,
}

fn too_short(origin: &Path, len: u64) -> Error {
    damaged(origin, format!("has {len} bytes; the length of its header alone needs {LENGTH_BYTES}"))
}

fn damaged(origin: &Path, problem: String) -> Error {
    Error::file(origin, problem, "the file is damaged or was cut short; copy or save it again")
}

/// Checks the header whole and lists the tensors, sorted by name.
pub(super) fn read_header(file: &[u8], origin: &Path, passed: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(too_short(origin, file.len() as u64));
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER || length > rest.len() as u64 {
        if let Some(found) = sniff(file) {
            return Err(Error::file(origin, format!("is {}, not safetensors", found.0), found.1));
        }
        let most = MOST_HEADER.min(rest.len() as u64);
        return Err(damaged(origin, format!("says its header has {length} bytes; at most {most} can be")));
    }
    let (header, data) = rest.split_at(length as usize);
    let header = header.to_vec();
    let refuse = |problem: String| damaged(origin, problem);
    if header.first() != Some(&b'{') || header.trim_ascii_end().last() != Some(&b'}') {
        return Err(refuse("its header is not a JSON object padded with spaces".into()));
    }
    let Header(raw) =
        serde_json::from_slice(&header).map_err(|error| refuse(format!("its header is invalid: {error}")))?;
    let start = LENGTH_BYTES + header.len();
    let mut spots = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let passed = passed(&name);
        spots.push(raw.check(name, passed, start, data.len()).map_err(refuse)?);
    }
    check_tiling(&mut spots, start, data.len()).map_err(refuse)?;
    // The published reader must agree; by now no sum in it can overflow.
    serde_json::from_slice::<Metadata>(&header)
        .map_err(|error| refuse(format!("its header is invalid: {error}")))?;
    let entries = spots.into_iter().filter_map(|Spot { name, shape, range, dtype }| {
        Some(Entry { name, shape, place: Place { dtype: dtype?, range } })
    });
    let mut entries: Vec<Entry> = entries.collect();
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// One tensor where it lies, of one of our types if it is not passed over.
struct Spot {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
    dtype: Option<Dtype>,
}

/// Bytes of one value of a type that is not read.
fn foreign_size(dtype: &str) -> Option<usize> {
    match dtype {
        "BOOL" | "U8" | "I8" => Some(1),
        "U16" | "I16" => Some(2),
        "U32" | "I32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}

/// Proves that the tensors lie end to end over all of the data.
fn check_tiling(spots: &mut [Spot], start: usize, data: usize) -> Result<(), String> {
    let total: u128 = spots.iter().map(|spot| spot.range.len() as u128).sum();
    if total != data as u128 {
        return Err(format!("its tensors take {total} bytes, and {data} follow the header"));
    }
    spots.sort_unstable_by_key(|spot| spot.range.start);
    let mut end = start;
    for spot in spots {
        if spot.range.start != end {
            let (name, begin) = (&spot.name, spot.range.start - start);
            return Err(format!(
                "tensor {name} begins at byte {begin} of the data, expected {}",
                end - start
            ));
        }
        end = spot.range.end;
    }
    Ok(())
}

/// A header's tensors in file order, after the checks that need no sizes.
struct Header(Vec<(String, RawEntry)>);

/// One tensor as the header describes it.
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawEntry {
    fn check(self, name: String, passed: bool, start: usize, data: usize) -> Result<Spot, String> {
        let dtype = match self.dtype.as_str() {
            "F32" => Some(Dtype::F32),
            "F16" => Some(Dtype::F16),
            "BF16" => Some(Dtype::Bf16),
            _ => None,
        };
        let foreign = || foreign_size(&self.dtype).filter(|_| passed);
        let bytes = match (dtype.map(Dtype::size).or_else(foreign), self.dtype.as_str()) {
            (Some(bytes), _) => bytes,
            (None, other) => {
                return Err(format!("tensor {name} is of type {other:?}; F32, F16 and BF16 are read"));
            }
        };
        if self.shape.len() > MOST_DIMENSIONS {
            let count = self.shape.len();
            return Err(format!("tensor {name} has {count} dimensions; at most {MOST_DIMENSIONS} are read"));
        }
        if self.shape.contains(&0) {
            return Err(format!("tensor {name} has the shape {:?}; no dimension may be 0", self.shape));
        }
        // Four factors below 2^64 could exceed u128 as well.
        let size = self
            .shape
            .iter()
            .try_fold(bytes as u128, |size, &dimension| size.checked_mul(u128::from(dimension)))
            .filter(|&size| size <= data as u128)
            .ok_or_else(|| format!("tensor {name} of shape {:?} does not fit the file", self.shape))?;
        let [begin, end] = self.data_offsets;
        if begin > end || end > data as u64 {
            return Err(format!("tensor {name} lies at bytes {begin} to {end} of {data} bytes of data"));
        }
        if u128::from(end - begin) != size {
            return Err(format!(
                "tensor {name} of shape {:?} needs {size} bytes, and has {}",
                self.shape,
                end - begin
            ));
        }
        // Both lie within the data, whose length is a usize.
        let range = start + begin as usize..start + end as usize;
        if !range.start.is_multiple_of(bytes) {
            return Err(format!(
                "tensor {name} begins at byte {} of the file, not a multiple of its {} bytes a number",
                range.start, bytes
            ));
        }
        let shape = self.shape.into_iter().map(|dimension| dimension as usize).collect();
        Ok(Spot { name, shape, range, dtype: dtype.filter(|_| !passed) })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                use serde::de::Error;
                let mut tensors = Vec::new();
                let mut names = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the name {name:?} stands twice")));
                    }
                    if name == METADATA {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    check_name(&name).map_err(A::Error::custom)?;
                    if tensors.len() == MOST_TENSORS {
                        return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
                    }
                    tensors.push((name, map.next_value()?));
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// A name that can be printed and compared without surprise.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(known) {
        let shown: String = name.chars().take(60).collect();
        return Err(format!("{shown:?} is no tensor name: 1 to {MOST_NAME} letters, digits, dots, _ and -"));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for RawEntry {
    /// From an object only: a derived reader would take a list of the values as well.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawEntry, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            dtype: String,
            shape: Vec<u64>,
            data_offsets: [u64; 2],
        }

        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = RawEntry;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEntry, A::Error> {
                let Fields { dtype, shape, data_offsets } =
                    Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RawEntry { dtype, shape, data_offsets })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// What a file that is not safetensors seems to be, and what to do about it.
fn sniff(file: &[u8]) -> Option<(&'static str, &'static str)> {
    const SAVE: &str = "save the model as safetensors first";
    let text = file.trim_ascii_start();
    let lower: Vec<u8> = text.iter().take(14).map(u8::to_ascii_lowercase).collect();
    match file {
        _ if file.starts_with(b"version https://git-lfs") => {
            Some(("a Git LFS pointer", "fetch the file it stands for with `git lfs pull`"))
        }
        _ if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") => {
            Some(("an HTML page", "download the file itself, not the page that shows it"))
        }
        [0x1F, 0x8B, ..] => Some(("a gzip archive", "unpack it first")),
        [b'P', b'K', 3, 4, ..] => Some(("a zip archive (perhaps a PyTorch checkpoint)", SAVE)),
        [0x80, 2..=5, ..] => Some(("a Python pickle (perhaps a PyTorch checkpoint)", SAVE)),
        [b'G', b'G', b'U', b'F', ..] => Some(("a GGUF file", "use the safetensors file it was made from")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
