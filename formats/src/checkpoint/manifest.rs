//! MANIFEST: the checksum of every file of a checkpoint, written last. A checkpoint without one was never finished.
//!
//! A line a file: its XXH3 checksum, its length, its name; a first line that says what this is, a last one with
//! the checksum of all lines before it.

use super::source;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The manifest's own name.
pub(super) const NAME: &str = "MANIFEST";
const TITLE: &str = "lectern checkpoint 1";
/// Longest manifest that is read.
const MOST_BYTES: u64 = 1 << 20;
/// Bytes read at a time for a checksum.
const CHUNK: usize = 1 << 20;

/// The files of one checkpoint, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Manifest {
    files: BTreeMap<String, Sum>,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sum {
    pub(super) checksum: u64,
    pub(super) bytes: u64,
}

impl Manifest {
    pub(super) fn insert(&mut self, name: &str, sum: Sum) {
        self.files.insert(name.into(), sum);
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        for (name, Sum { checksum, bytes }) in &self.files {
            text.push_str(&format!("{checksum:016x} {bytes} {name}\n"));
        }
        let own = xxh3_64(text.as_bytes());
        text.push_str(&format!("{own:016x} {NAME}\n"));
        text
    }

    /// Reads the manifest of a checkpoint. Only the exact bytes that [`Manifest::to_text`] gives are one.
    pub(super) fn open(checkpoint: &Path) -> Result<Manifest> {
        let path = checkpoint.join(NAME);
        let text = source::read_text_if_there(&path, MOST_BYTES)?.ok_or_else(|| {
            Error::file(
                checkpoint,
                "has no MANIFEST: it was never finished",
                "use another checkpoint of the run",
            )
        })?;
        Manifest::from_text(&text)
            .filter(|manifest| manifest.to_text() == text)
            .ok_or_else(|| damaged(&path, "is not a manifest, or was changed after it was written"))
    }

    fn from_text(text: &str) -> Option<Manifest> {
        let mut manifest = Manifest::default();
        for line in text.lines().skip(1) {
            let (checksum, rest) = line.split_once(' ')?;
            let Some((bytes, name)) = rest.split_once(' ') else { break };
            let sum = Sum { checksum: u64::from_str_radix(checksum, 16).ok()?, bytes: bytes.parse().ok()? };
            is_name(name).then(|| manifest.insert(name, sum))?;
        }
        Some(manifest)
    }

    /// Reads every file and compares.
    fn verify(&self, checkpoint: &Path) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        for (name, expected) in &self.files {
            let path = checkpoint.join(name);
            let (mut file, bytes) = source::open(&path)?;
            if bytes != expected.bytes {
                return Err(damaged(&path, &format!("has {bytes} bytes, {} were saved", expected.bytes)));
            }
            let mut hash = Xxh3::new();
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => hash.update(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(source::unreadable(&path, &error)),
                }
            }
            let checksum = hash.digest();
            if checksum != expected.checksum {
                return Err(damaged(
                    &path,
                    &format!("has the checksum {checksum:016x}, saved was {:016x}", expected.checksum),
                ));
            }
        }
        Ok(())
    }
}

/// Checks every file of a checkpoint against its manifest.
pub fn verify(checkpoint: &Path) -> Result<()> {
    Manifest::open(checkpoint)?.verify(checkpoint)
}

/// A relative name of plain components that cannot leave the checkpoint.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain))
}

fn damaged(path: &Path, problem: &str) -> Error {
    Error::file(path, problem, "use another checkpoint of the run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_checkpoint() {
        for name in ["model/config.json", "MANIFEST", "a", "trainer/state_1-2.json"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.b", "a b", "a\nb", "é"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_manifest_survives_its_text() {
        let mut manifest = Manifest::default();
        manifest.insert("b/c", Sum { checksum: u64::MAX, bytes: u64::MAX });
        manifest.insert("a", Sum { checksum: 0, bytes: 0 });
        assert_eq!(Manifest::from_text(&manifest.to_text()), Some(manifest));
    }
}
