//! The safetensors format, read: 8 bytes of header length, a JSON header, then the tensors side by side.
//!
//! Read in two steps. First a check of our own, stricter than the format's published reader: bounds on every
//! count, no name and no field twice, no field unknown, sizes in arithmetic that cannot overflow, alignment.
//! Then the safetensors crate must agree. The header is copied before it is read, so a file that changes
//! meanwhile cannot pass one check and fail another. `writer` is the other direction.

use super::map::{Map, Pages};
use super::{Advice, Dtype, Tensor};
use crate::error::{Error, Result};
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

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

/// One safetensors file, mapped or in memory, its header checked whole.
pub struct TensorFile {
    storage: Storage,
    /// Sorted by name.
    entries: Vec<Entry>,
}

/// Where the bytes live. All of them stay put while the value lives.
enum Storage {
    Mapped(Map),
    /// A copy of what was mapped.
    Held(Pages),
    Shared(Arc<[u8]>),
    /// Bytes that came unaligned, copied; the length in bytes.
    Copied(Vec<u64>, usize),
}

/// One tensor of a file.
#[derive(Debug)]
pub(super) struct Entry {
    name: String,
    pub(super) shape: Vec<usize>,
    pub(super) place: Place,
}

/// Where one tensor's numbers are in its file, which has proven them to be there and aligned.
#[derive(Clone, Debug)]
pub(super) struct Place {
    dtype: Dtype,
    /// In the whole file.
    range: Range<usize>,
}

/// One tensor of an open file.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions, none of them zero.
    pub shape: &'a [usize],
    /// Its numbers.
    pub values: Tensor<'a>,
}

impl TensorFile {
    /// Maps a file. Nothing of it is read but the header.
    pub fn open(path: &Path) -> Result<TensorFile> {
        TensorFile::open_passing(path, &|_| false)
    }

    /// The same, passing over the tensors that `passed` names: these may be of any type, and are not there.
    pub(super) fn open_passing(path: &Path, passed: &dyn Fn(&str) -> bool) -> Result<TensorFile> {
        TensorFile::check(Storage::Mapped(Map::open(path)?), path, passed)
    }

    /// Takes a file's bytes from memory, copying them only if they are not aligned.
    pub fn from_bytes(bytes: Arc<[u8]>, origin: &Path) -> Result<TensorFile> {
        TensorFile::from_bytes_passing(bytes, origin, &|_| false)
    }

    /// The same, passing over tensors as [`TensorFile::open_passing`] does.
    pub(super) fn from_bytes_passing(
        bytes: Arc<[u8]>,
        origin: &Path,
        passed: &dyn Fn(&str) -> bool,
    ) -> Result<TensorFile> {
        let storage = if bytes.as_ptr().cast::<u64>().is_aligned() {
            Storage::Shared(bytes)
        } else {
            let mut words = Vec::new();
            let count = bytes.len().div_ceil(size_of::<u64>());
            words.try_reserve_exact(count).map_err(|_| Error::Memory {
                what: origin.display().to_string(),
                needed: bytes.len() as u64,
                available: 0,
                help: "align the bytes to 8, and they need no copy".into(),
            })?;
            words.resize(count, 0u64);
            bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
            Storage::Copied(words, bytes.len())
        };
        TensorFile::check(storage, origin, passed)
    }

    fn check(storage: Storage, origin: &Path, passed: &dyn Fn(&str) -> bool) -> Result<TensorFile> {
        let entries = read_header(storage.bytes(), origin, passed)?;
        Ok(TensorFile { storage, entries })
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.find(name).map(|entry| self.view(entry))
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.entries.iter().map(|entry| self.view(entry))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the file has no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Length of the whole file.
    pub fn bytes(&self) -> u64 {
        self.storage.bytes().len() as u64
    }

    /// One tensor's entry, for a caller that keeps its place instead of asking by name.
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        Some(&self.entries[index])
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> StoredTensor<'a> {
        StoredTensor { name: &entry.name, shape: &entry.shape, values: self.values(&entry.place) }
    }

    /// The numbers at a place of this file.
    pub(super) fn values(&self, place: &Place) -> Tensor<'_> {
        const ALIGNED: &str = "the header check refused tensors that are not aligned";
        let bytes = &self.storage.bytes()[place.range.clone()];
        match place.dtype {
            Dtype::F32 => Tensor::F32(bytemuck::try_cast_slice(bytes).expect(ALIGNED)),
            Dtype::F16 => {
                let bits: &[u16] = bytemuck::try_cast_slice(bytes).expect(ALIGNED);
                Tensor::F16(bits.reinterpret_cast::<f16>())
            }
            Dtype::Bf16 => {
                let bits: &[u16] = bytemuck::try_cast_slice(bytes).expect(ALIGNED);
                Tensor::Bf16(bits.reinterpret_cast::<bf16>())
            }
        }
    }
}

impl TensorFile {
    /// Holds a copy of what is mapped instead of the map, see [`Pages`].
    pub(super) fn hold(&mut self) -> Result<()> {
        let Storage::Mapped(map) = &self.storage else { return Ok(()) };
        let pages = Pages::copy(map.bytes()).map_err(|_| Error::Memory {
            what: "a copy of the weights".into(),
            needed: map.bytes().len() as u64,
            available: 0,
            help: "free memory, or leave the weights mapped".into(),
        })?;
        self.storage = Storage::Held(pages);
        Ok(())
    }

    /// Tells the system how the numbers at a place are going to be used; nothing where the file is not mapped.
    pub(super) fn advise(&self, place: &Place, advice: Advice) {
        if let Storage::Mapped(map) = &self.storage {
            map.advise(place.range.clone(), advice);
        }
    }
}

impl fmt::Debug for TensorFile {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("TensorFile").field("bytes", &self.bytes()).field("tensors", &self.len()).finish()
    }
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map.bytes(),
            Storage::Held(pages) => pages.bytes(),
            Storage::Shared(bytes) => bytes,
            Storage::Copied(words, len) => &bytemuck::cast_slice(words)[..*len],
        }
    }
}

fn too_short(origin: &Path, len: u64) -> Error {
    damaged(origin, format!("has {len} bytes; the length of its header alone needs {LENGTH_BYTES}"))
}

fn damaged(origin: &Path, problem: String) -> Error {
    Error::file(origin, problem, "the file is damaged or was cut short; copy or save it again")
}

/// Checks the header whole and lists the tensors, sorted by name.
fn read_header(file: &[u8], origin: &Path, passed: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>> {
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
pub(super) mod tests {
    use super::*;

    /// A file of `header` and `data` bytes of zeros.
    pub(in crate::checkpoint) fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    /// `header` padded so that the data begin at a multiple of 8.
    fn padded(header: &str) -> String {
        let mut header = header.to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        header
    }

    fn open(bytes: &[u8]) -> Result<TensorFile> {
        TensorFile::from_bytes(Arc::from(bytes), Path::new("model.safetensors"))
    }

    fn refused(header: &str, data: usize, words: &str) {
        let error = open(&file(&padded(header), data)).expect_err(header);
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        assert_eq!(error.exit_code(), 3);
    }

    fn accepted(header: &str, data: usize) -> TensorFile {
        open(&file(&padded(header), data)).expect(header)
    }

    #[test]
    fn a_plain_file_is_read_in_any_order() {
        let header = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"__metadata__":{"format":"pt","x":""},
            "a":{"data_offsets":[0,8],"shape":[1,2],"dtype":"F32"},"c.d_e-9":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}"#;
        let file = accepted(header, 14);
        let names: Vec<_> = file.iter().map(|tensor| (tensor.name, tensor.values.dtype())).collect();
        assert_eq!(names, [("a", Dtype::F32), ("b", Dtype::F16), ("c.d_e-9", Dtype::Bf16)]);
        assert_eq!(file.get("a").expect("is there").shape, [1, 2]);
        assert_eq!(file.get("c.d_e-9").expect("a scalar").values.len(), 1);
        assert!(file.get("d").is_none());
        assert!(accepted("{}", 0).is_empty());
    }

    #[test]
    fn the_length_of_the_header_is_believed_only_within_the_file() {
        for len in 0..8 {
            let message = open(&vec![0; len]).expect_err("too short").to_string();
            assert!(message.contains(&format!("has {len} bytes")), "{message}");
        }
        let whole = file(&padded("{}"), 0);
        for length in [0, 1, 2, 7, 9, 1 << 24, (1 << 24) + 1, 1 << 63, u64::MAX, u64::MAX - 7] {
            let mut bytes = whole.clone();
            bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
            assert!(open(&bytes).is_err(), "{length}");
        }
        for place in 0..8 {
            for value in 0..=255 {
                let mut bytes = whole.clone();
                bytes[place] = value;
                assert_eq!(open(&bytes).is_ok(), bytes == whole, "byte {place} is {value}");
            }
        }
    }

    #[test]
    fn the_longest_header_is_bounded_on_both_sides() {
        let most = MOST_HEADER as usize;
        let header = |len: usize| format!("{{{}}}", " ".repeat(len - 2));
        assert!(open(&file(&header(most), 0)).is_ok());
        assert!(open(&file(&header(most + 8), 0)).is_err());
    }

    #[test]
    fn json_tricks_are_refused() {
        let good = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        accepted(&format!("{{{good}}}"), 4);
        let same = good.replace("\"a\"", "\"\\u0061\"");
        refused(&format!("{{{good},{good}}}"), 4, "\"a\" stands twice");
        refused(&format!("{{{good},{same}}}"), 4, "\"a\" stands twice");
        refused(&format!("{{{}}}", good.replace("[1]", "[1],\"shape\":[1]")), 4, "duplicate field");
        refused(&format!("{{{}}}", good.replace("[1]", "[1],\"extra\":1")), 4, "unknown field `extra`");
        refused(&format!("{{{}}}", good.replace("\"shape\":[1],", "")), 4, "missing field `shape`");
        for number in ["1e0", "1.0", "-1", "-0", "01", "+1", "18446744073709551616", "\"1\"", "null", "0x1"] {
            refused(&format!("{{{}}}", good.replace("[1]", &format!("[{number}]"))), 4, "header is invalid");
        }
        refused(r#"{"a":["F32",[1],[0,4]]}"#, 4, "header is invalid");
        for offsets in ["[0]", "[0,4,4]", "[]", "{}", "4"] {
            refused(&format!("{{{}}}", good.replace("[0,4]", offsets)), 4, "header is invalid");
        }
        refused(&format!("{{{good},}}"), 4, "header is invalid");
        refused(&format!("{{{good}}} {{}}"), 4, "header is invalid");
        refused(&format!(" {{{good}}}"), 4, "not a JSON object");
        refused(&format!("\u{feff}{{{good}}}"), 4, "not a JSON object");
        refused(&format!("[{good}]"), 4, "not a JSON object");
        refused(&format!("{{\"a\":{}}}", "[".repeat(100_000)), 4, "header is invalid");
        refused(&format!("{{\"__metadata__\":1,{good}}}"), 4, "header is invalid");
        refused(&format!("{{\"__metadata__\":{{\"a\":1}},{good}}}"), 4, "header is invalid");
        for name in ["", "a b", "../a", "a/b", "a\\u0000", "a\\n", "\u{e9}", &"a".repeat(MOST_NAME + 1)] {
            refused(&format!("{{{}}}", good.replace("\"a\"", &format!("\"{name}\""))), 4, "no tensor name");
        }
        accepted(&format!("{{{}}}", good.replace("\"a\"", &format!("\"{}\"", "a".repeat(MOST_NAME)))), 4);
        let mut not_text = file(&padded(&format!("{{{good}}}")), 4);
        not_text[10] = 0xFF;
        assert!(open(&not_text).is_err());
    }

    #[test]
    fn offsets_must_tile_the_data() {
        let two = |first: &str, second: &str| {
            let tensor = |offsets| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
            format!(r#"{{"a":{},"b":{}}}"#, tensor(first), tensor(second))
        };
        accepted(&two("[0,8]", "[8,16]"), 16);
        accepted(&two("[8,16]", "[0,8]"), 16);
        refused(&two("[0,8]", "[0,8]"), 16, "expected 8");
        refused(&two("[0,8]", "[4,12]"), 16, "expected 8");
        refused(&two("[0,8]", "[8,16]"), 24, "take 16 bytes, and 24 follow");
        refused(&two("[4,12]", "[12,20]"), 20, "take 16 bytes, and 20 follow");
        refused(&two("[0,8]", "[0,8]"), 8, "take 16 bytes, and 8 follow");
        refused(&two("[0,8]", "[16,8]"), 16, "lies at bytes 16 to 8");
        refused(&two("[0,8]", "[8,17]"), 17, "needs 8 bytes, and has 9");
        refused(&two("[0,8]", "[12,20]"), 16, "lies at bytes 12 to 20 of 16");
        refused(&two("[0,8]", "[18446744073709551608,0]"), 16, "lies at bytes");
        refused("{}", 8, "take 0 bytes, and 8 follow");
    }

    #[test]
    fn shapes_cannot_wrap_to_the_right_size() {
        let tensor = |shape: &str, end: u64| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        // The product is 4 modulo 2^64.
        refused(&tensor("[4194305,4194305,211106198978564]", 16), 16, "does not fit the file");
        refused(&tensor("[4294967296,4294967296]", 0), 0, "does not fit the file");
        let huge = u64::MAX;
        refused(&tensor(&format!("[{huge},{huge},{huge},{huge}]"), 4), 4, "does not fit the file");
        refused(&tensor("[0,9223372036854775808,9223372036854775808]", 0), 0, "no dimension may be 0");
        refused(&tensor("[9223372036854775808,4,0]", 0), 0, "no dimension may be 0");
        refused(&tensor("[1,1,1,1,1]", 4), 4, "has 5 dimensions");
        accepted(&tensor("[1,1,1,1]", 4), 4);
    }

    #[test]
    fn sizes_cannot_wrap_in_the_sum() {
        let each = 8 * ((1u64 << 61) - 1) + 7;
        let tensors: Vec<String> = (0..9)
            .map(|i: u64| {
                let begin = each.wrapping_mul(i);
                let end = begin.wrapping_add(each);
                format!(r#""t{i}":{{"dtype":"F16","shape":[{each}],"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        refused(&format!("{{{}}}", tensors.join(",")), 0, "does not fit the file");
    }

    #[test]
    fn only_three_types_are_read() {
        for dtype in ["F64", "I64", "U8", "BOOL", "F4", "F8_E4M3", "f32", "F128", ""] {
            let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,32]}}}}"#);
            refused(&header, 32, &format!("is of type {dtype:?}"));
        }
    }

    #[test]
    fn what_is_passed_over_may_be_of_any_type_and_must_lie_right() {
        let header = |dtype: &str, size: usize| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"m":{{"dtype":"{dtype}","shape":[2],"data_offsets":[8,{}]}}}}"#,
                8 + size
            )
        };
        let passing = |text: &str, data: usize| {
            let bytes = Arc::from(file(&padded(text), data));
            TensorFile::from_bytes_passing(bytes, Path::new("memory"), &|name| name == "m")
        };
        for (dtype, size) in [("BOOL", 2), ("U8", 2), ("I64", 16), ("F32", 8)] {
            let opened = passing(&header(dtype, size), 8 + size).expect("passed over");
            assert_eq!((opened.len(), opened.get("m").is_none()), (1, true));
            assert!(passing(&header(dtype, size + 1), 9 + size).is_err(), "{dtype}");
        }
        assert!(passing(&header("F4", 2), 10).is_err());
        refused(&header("BOOL", 2), 10, "tensor m is of type \"BOOL\"");
    }

    #[test]
    fn numbers_must_be_aligned_in_the_file() {
        let header = |dtype: &str, size: usize| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{size}]}}}}"#)
        };
        for (dtype, size) in [("F32", 4), ("F16", 2), ("BF16", 2)] {
            for spaces in 0..64 {
                let header = header(dtype, size) + &" ".repeat(spaces);
                let opened = open(&file(&header, size));
                assert_eq!(opened.is_ok(), (8 + header.len()).is_multiple_of(size), "{header:?}");
            }
        }
    }

    #[test]
    fn bytes_in_memory_may_lie_anywhere() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut bytes = file(&padded(header), 8);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&1.5f32.to_le_bytes());
        let copied = {
            let mut words = vec![0; end.div_ceil(8)];
            bytemuck::cast_slice_mut(&mut words)[..end].copy_from_slice(&bytes);
            TensorFile::check(Storage::Copied(words, end), Path::new("copied"), &|_| false)
                .expect("a good file")
        };
        for file in [open(&bytes).expect("a good file"), copied] {
            assert_eq!(file.get("a").expect("is there").values.get(1), 1.5);
            assert_eq!(file.bytes(), end as u64);
        }
    }

    #[test]
    fn other_formats_are_named() {
        let cases: [(&[u8], &str); 7] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"\n <html lang='en'>", "an HTML page"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "a gzip archive"),
            (b"PK\x03\x04\0\0\x08\x08\0\0", "a zip archive"),
            (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", "a Python pickle"),
            (b"GGUF\x03\0\0\0\x24\0\0\0", "a GGUF file"),
        ];
        for (bytes, words) in cases {
            let message = open(bytes).expect_err(words).to_string();
            assert!(message.contains(&format!("is {words}")), "{message}");
        }
    }

    #[test]
    fn a_hostile_header_of_full_size_is_refused_quickly() {
        let start = std::time::Instant::now();
        let entry = |i: usize| format!(r#""t{i}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        let many: Vec<String> = (0..=MOST_TENSORS).map(entry).collect();
        refused(&format!("{{{}}}", many.join(",")), 4, "more than 131072 tensors");
        let shape = vec!["1"; 4 << 20].join(",");
        refused(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#),
            4,
            "dimensions",
        );
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }
}
