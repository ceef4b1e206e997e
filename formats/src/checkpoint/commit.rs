//! One checkpoint: a directory that appears whole or not at all.
//!
//! Written under a temporary name beside the others; every file synced, the manifest last, the directories
//! synced, then one rename and a sync of the parent. Whatever stops the process in between leaves the earlier
//! checkpoints as they were and a leftover that [`super::clean`] removes.

use super::Dtype;
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
    checkpoints: PathBuf,
    step: u64,
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
        fs::create_dir(&temporary).map_err(|error| failed(&temporary, error))?;
        Ok(Commit {
            checkpoints: checkpoints.into(),
            step,
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
        let destination = step_path(&self.checkpoints, self.step);
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
            let trash = history::temporary_path(&self.checkpoints, history::TRASH, self.step);
            history::remove(&trash)?;
            fs::rename(&destination, &trash).map_err(|error| Error::write(&destination, error))?;
        }
        let text = self.manifest.to_text();
        write_file(&self.temporary.join(manifest::NAME), |out, failed| {
            out.write_all(text.as_bytes()).map_err(failed)
        })?;
        for directory in self.directories.iter().rev() {
            history::sync_directory(directory)?;
        }
        history::sync_directory(&self.temporary)?;
        fs::rename(&self.temporary, &destination).map_err(|error| Error::write(&destination, error))?;
        history::sync_directory(&self.checkpoints)?;
        Ok(destination)
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
    let mut permissions = file.metadata().map_err(failed)?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(Sum { checksum: hash.digest(), bytes })
}
