//! The safetensors format, read: a file whose `header` was checked whole, and its tensors where they lie.

use super::header::{Entry, Place, read_header};
use super::map::{Map, Pages};
use super::{Advice, Dtype, Tensor};
use crate::error::{Error, Result};
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_memory_may_lie_anywhere() {
        let header = format!("{:<64}", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
        let numbers = [0.0f32, 1.5].map(f32::to_le_bytes);
        let bytes = [&64u64.to_le_bytes(), header.as_bytes(), numbers.as_flattened()].concat();
        let mut words = vec![0; bytes.len() / 8];
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(&bytes);
        let origin = Path::new("model.safetensors");
        let copied = TensorFile::check(Storage::Copied(words, bytes.len()), origin, &|_| false);
        let shared = TensorFile::from_bytes(Arc::from(&bytes[..]), origin);
        for file in [copied, shared].map(|file| file.expect("a good file")) {
            assert_eq!(file.get("a").expect("is there").values.get(1), 1.5);
            assert_eq!(file.bytes(), bytes.len() as u64);
        }
    }
}
