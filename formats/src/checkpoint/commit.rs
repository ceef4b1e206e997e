//! One checkpoint: a directory that appears whole or not at all.
//!
//! Written under a temporary name beside the others; every file synced, the manifest last, the directories
//! synced, then one rename and a sync of the parent. Whatever stops the process in between leaves the earlier
//! checkpoints as they were and a leftover that [`super::clean`] removes.

use super::Dtype;
use super::atomic;
use super::history::{self, step_path};
use super::manifest::{self, Manifest, Sum};
use super::writer::{self, Outgoing, Values};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Bytes gathered before a write to a file.
const BUFFER: usize = 1 << 20;

/// A checkpoint being written. Dropped without [`Commit::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Commit {
    destination: PathBuf,
    /// Where what is damaged at the destination goes first.
    trash: PathBuf,
    temporary: PathBuf,
    /// Every directory under the temporary one, each after its parent.
    directories: BTreeSet<PathBuf>,
    manifest: Manifest,
}

impl Commit {
    /// Starts the checkpoint of `step` in the directory of all checkpoints, which is made if need be.
    pub fn begin(checkpoints: &Path, step: u64) -> Result<Commit> {
        let failed = |path: &Path, error| Error::write(path, error);
        if !checkpoints.is_dir() {
            fs::create_dir_all(checkpoints).map_err(|error| failed(checkpoints, error))?;
            if let Some(parent) = checkpoints.parent() {
                history::sync_directory(parent)?;
            }
        }
        let temporary = history::temporary_path(checkpoints, history::TEMPORARY, step);
        history::remove(&temporary)?;
        let trash = history::temporary_path(checkpoints, history::TRASH, step);
        Commit::new(step_path(checkpoints, step), trash, temporary)
    }

    /// Starts a directory at `path` that is no checkpoint: [`Commit::publish`] ends it.
    pub fn directory(path: &Path) -> Result<Commit> {
        let Some(name) = path.file_name() else {
            return Err(Error::Usage(format!("{} names no directory to write", path.display())));
        };
        Commit::new(path.into(), PathBuf::new(), atomic::beside(path, name)?)
    }

    fn new(destination: PathBuf, trash: PathBuf, temporary: PathBuf) -> Result<Commit> {
        fs::create_dir(&temporary).map_err(|error| Error::write(&temporary, error))?;
        Ok(Commit {
            destination,
            trash,
            temporary,
            directories: BTreeSet::new(),
            manifest: Manifest::default(),
        })
    }

    /// Writes one file. `name` is relative, with `/` between directories.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_with(name, |out, failed| out.write_all(bytes).map_err(failed))
    }

    /// Writes one safetensors file of tensors that are encoded already.
    pub fn write_tensors(
        &mut self,
        name: &str,
        tensors: &[(String, Dtype, Vec<usize>, &[u8])],
    ) -> Result<()> {
        let mut outgoing: Vec<Outgoing> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| Outgoing {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                values: Values::Encoded(bytes),
            })
            .collect();
        self.write_outgoing(name, &mut outgoing)
    }

    /// Writes one safetensors file, its numbers rounded on the way.
    pub(super) fn write_outgoing(&mut self, name: &str, tensors: &mut [Outgoing]) -> Result<()> {
        self.write_with(name, |out, failed| writer::write(tensors, out, failed))
    }

    fn write_with(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut Sink, &dyn Fn(io::Error) -> Error) -> Result<()>,
    ) -> Result<()> {
        if !manifest::is_name(name) || name == manifest::NAME || self.manifest.contains(name) {
            return Err(Error::Internal(format!("{name:?} cannot be written to a checkpoint once more")));
        }
        self.make_parents(name)?;
        let sum = write_file(&self.temporary.join(name), write)?;
        self.manifest.insert(name, sum);
        Ok(())
    }

    fn make_parents(&mut self, name: &str) -> Result<()> {
        let mut directory = self.temporary.clone();
        let Some((parents, _)) = name.rsplit_once('/') else { return Ok(()) };
        for part in parents.split('/') {
            directory.push(part);
            if self.directories.insert(directory.clone()) {
                fs::create_dir(&directory).map_err(|error| Error::write(&directory, error))?;
            }
        }
        Ok(())
    }

    /// Makes the checkpoint durable and visible; only then is it saved. Returns its directory.
    ///
    /// A step that already has a checkpoint in good order keeps it: saving the same once more changes nothing,
    /// and anything else is refused, because no rename replaces a directory without a moment that has neither.
    pub fn finish(self) -> Result<PathBuf> {
        let (destination, trash) = (self.destination.clone(), self.trash.clone());
        if destination.symlink_metadata().is_ok() {
            if manifest::verify(&destination).is_ok() {
                if Manifest::open(&destination)? == self.manifest {
                    return Ok(destination);
                }
                return Err(Error::Usage(format!(
                    "{} exists already and differs from what would be saved; it was left as it is",
                    destination.display()
                )));
            }
            history::remove(&trash)?;
            fs::rename(&destination, &trash).map_err(|error| Error::write(&destination, error))?;
        }
        let text = self.manifest.to_text();
        write_file(&self.temporary.join(manifest::NAME), |out, failed| {
            out.write_all(text.as_bytes()).map_err(failed)
        })?;
        self.publish()?;
        // The damaged one whose place it took, if there was one.
        history::remove(&trash)?;
        Ok(destination)
    }

    /// Makes the directory durable and visible as it is, without a manifest.
    pub fn publish(self) -> Result<()> {
        for directory in self.directories.iter().rev() {
            history::sync_directory(directory)?;
        }
        history::sync_directory(&self.temporary)?;
        let failed = |error| Error::write(&self.destination, error);
        fs::rename(&self.temporary, &self.destination).map_err(failed)?;
        history::sync_directory(self.destination.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        // After the rename there is nothing under this name; what cannot be removed now is a leftover for `clean`.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// A file being written, and what its manifest line will say.
struct Sink {
    file: BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes one new file, makes it read-only and durable.
fn write_file(
    path: &Path,
    write: impl FnOnce(&mut Sink, &dyn Fn(io::Error) -> Error) -> Result<()>,
) -> Result<Sum> {
    let failed = |error: io::Error| Error::write(path, error);
    let file = File::create_new(path).map_err(failed)?;
    let mut sink = Sink { file: BufWriter::with_capacity(BUFFER, file), hash: Xxh3::new(), bytes: 0 };
    write(&mut sink, &failed)?;
    let Sink { file, hash, bytes } = sink;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    seal(&file).map_err(failed)?;
    Ok(Sum { checksum: hash.digest(), bytes })
}

/// Makes what was written read-only and durable.
fn seal(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::source::tests::Scratch;
    use super::super::{clean, newest, verify};
    use super::*;

    fn saved(checkpoints: &Path, step: u64, text: &str) -> PathBuf {
        let mut commit = Commit::begin(checkpoints, step).expect("can begin");
        commit.write("model/config.json", text.as_bytes()).expect("can write");
        commit.write("trainer/state.json", b"{}").expect("can write");
        commit
            .write_tensors(
                "trainer/state.safetensors",
                &[("a".into(), Dtype::F32, vec![1], &[0, 0, 128, 63])],
            )
            .expect("can write");
        commit.finish().expect("can finish")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("is a directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("has a name").file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    /// Replaces a read-only file's bytes.
    fn overwrite(path: &Path, bytes: &[u8]) {
        fs::remove_file(path).expect("is there");
        fs::write(path, bytes).expect("can be written");
    }

    #[test]
    fn a_checkpoint_appears_whole_and_read_only() {
        let scratch = Scratch::new();
        let checkpoints = scratch.join("run/checkpoints");
        let path = saved(&checkpoints, 12, "text");
        assert_eq!(path, checkpoints.join("0000000012"));
        assert_eq!(names(&checkpoints), ["0000000012"]);
        assert_eq!(names(&path), ["MANIFEST", "model", "trainer"]);
        verify(&path).expect("just saved");
        for name in ["MANIFEST", "model/config.json", "trainer/state.safetensors"] {
            let permissions = path.join(name).metadata().expect("is there").permissions();
            assert!(permissions.readonly(), "{name}");
        }
        let again = saved(&scratch.join("other"), 12, "text");
        for name in ["MANIFEST", "trainer/state.safetensors"] {
            assert_eq!(
                fs::read(path.join(name)).expect("is there"),
                fs::read(again.join(name)).expect("is there")
            );
        }
    }

    #[test]
    fn nothing_is_seen_before_it_is_finished_and_nothing_is_left_if_it_is_not() {
        let scratch = Scratch::new();
        let mut commit = Commit::begin(scratch.path(), 7).expect("can begin");
        commit.write("a", b"1").expect("can write");
        assert_eq!(newest(scratch.path(), &mut Vec::new()).expect("can be read"), None);
        assert_eq!(names(scratch.path()).len(), 1);
        drop(commit);
        assert!(names(scratch.path()).is_empty());
    }

    #[test]
    fn a_killed_process_leaves_only_what_is_cleaned() {
        let scratch = Scratch::new();
        let path = saved(scratch.path(), 5, "kept");
        // As after kill -9: the value is never dropped.
        let mut killed = Commit::begin(scratch.path(), 6).expect("can begin");
        killed.write("model/config.json", b"half").expect("can write");
        std::mem::forget(killed);
        fs::create_dir(scratch.join(".trash-4-1")).expect("can be made");
        fs::write(scratch.join(".tmp-link"), b"").expect("can be made");
        assert_eq!(newest(scratch.path(), &mut Vec::new()).expect("readable"), Some((5, path.clone())));
        // The same process and step may begin again.
        drop(Commit::begin(scratch.path(), 6).expect("a leftover is no obstacle"));
        clean(scratch.path()).expect("can be cleaned");
        assert_eq!(names(scratch.path()), ["0000000005"]);
        verify(&path).expect("untouched");
    }

    #[test]
    fn every_bit_flip_and_truncation_of_every_file_is_found() {
        let scratch = Scratch::new();
        let path = saved(scratch.path(), 1, "a few bytes");
        let files = ["MANIFEST", "model/config.json", "trainer/state.json", "trainer/state.safetensors"];
        for name in files {
            let file = path.join(name);
            let good = fs::read(&file).expect("is there");
            for place in 0..good.len() {
                let mut bad = good.clone();
                bad[place] ^= 1 << (place % 8);
                overwrite(&file, &bad);
                assert_eq!(verify(&path).expect_err(name).exit_code(), 3, "byte {place} of {name}");
                // Letters of a checksum in capitals mean the same number and are still another text.
                bad[place] = good[place] ^ 0x20;
                overwrite(&file, &bad);
                assert!(verify(&path).is_err(), "case of byte {place} of {name}");
                overwrite(&file, &good[..place]);
                assert!(verify(&path).is_err(), "{name} cut at {place}");
            }
            fs::remove_file(&file).expect("is there");
            assert!(verify(&path).is_err(), "{name} missing");
            fs::create_dir(&file).expect("can be made");
            assert!(verify(&path).is_err(), "{name} is a directory");
            fs::remove_dir(&file).expect("is there");
            fs::write(&file, &good).expect("can be written");
            verify(&path).expect("good again");
        }
    }

    #[test]
    fn a_step_saved_twice_keeps_what_was_saved_and_replaces_what_is_damaged() {
        let scratch = Scratch::new();
        let path = saved(scratch.path(), 3, "one");
        assert_eq!(saved(scratch.path(), 3, "one"), path);
        let mut other = Commit::begin(scratch.path(), 3).expect("can begin");
        other.write("model/config.json", b"two").expect("can write");
        assert_eq!(other.finish().expect_err("differs").exit_code(), 2);
        assert_eq!(fs::read(path.join("model/config.json")).expect("is there"), b"one");
        overwrite(&path.join("model/config.json"), b"bad");
        saved(scratch.path(), 3, "two");
        verify(&path).expect("replaced");
        assert_eq!(fs::read(path.join("model/config.json")).expect("is there"), b"two");
        clean(scratch.path()).expect("can be cleaned");
        assert_eq!(names(scratch.path()), ["0000000003"]);
    }

    #[test]
    fn names_are_checked_before_anything_is_written() {
        let scratch = Scratch::new();
        let mut commit = Commit::begin(&scratch.join("checkpoints"), 1).expect("can begin");
        for name in ["../escaped", "/tmp/escaped", "", "MANIFEST", "a/../../b"] {
            assert_eq!(commit.write(name, b"x").expect_err(name).exit_code(), 1);
        }
        commit.write("twice", b"x").expect("can write");
        assert!(commit.write("twice", b"y").is_err());
        assert_eq!(names(scratch.path()), ["checkpoints"]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let scratch = Scratch::new();
        fs::write(scratch.join("file"), b"").expect("can be written");
        let error = Commit::begin(&scratch.join("file/checkpoints"), 1).expect_err("a file is in the way");
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("file/checkpoints"), "{error}");
        let mut commit = Commit::begin(scratch.path(), 1).expect("can begin");
        fs::remove_dir_all(&commit.temporary).expect("is there");
        assert_eq!(commit.write("a", b"x").expect_err("the directory is gone").exit_code(), 5);
    }
}
