//! One file that appears whole or not at all.
//!
//! Written under a temporary name beside its place, synced, renamed, and the directory synced; whatever stops the
//! process in between leaves what stood there before.

use super::history::{TEMPORARY, remove, sync_directory};
use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes gathered before a write to the file.
const BUFFER: usize = 1 << 20;

/// A file being written. Dropped without [`AtomicFile::finish`], it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
}

impl AtomicFile {
    /// Begins the file that will stand at `path`.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        let (Some(name), false) = (path.file_name(), path.is_dir()) else {
            let error = io::Error::new(io::ErrorKind::IsADirectory, "it is a directory");
            return Err(Error::write(path, error));
        };
        let temporary = beside(path, name)?;
        let file = File::create_new(&temporary).map_err(|error| Error::write(path, error))?;
        Ok(AtomicFile { path: path.into(), temporary, file: BufWriter::with_capacity(BUFFER, file) })
    }

    /// Writes bytes over the first ones, for a header that is known only at the end. What follows goes on at the end.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(bytes)?;
        self.file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// Makes the file durable and visible, in the place of whatever stood there.
    pub fn finish(mut self) -> Result<()> {
        let path = self.path.clone();
        let failed = |error: io::Error| Error::write(&path, error);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        fs::rename(&self.temporary, &path).map_err(failed)?;
        path.parent().map_or(Ok(()), sync_directory)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After the rename there is nothing under this name, and before it nobody has seen it.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A name of this process's own in the same directory, free of leftovers.
pub(super) fn beside(path: &Path, name: &OsStr) -> Result<PathBuf> {
    let mut own = OsString::from(TEMPORARY);
    own.push(name);
    own.push(format!("-{}", std::process::id()));
    let temporary = path.with_file_name(own);
    remove(&temporary)?;
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::super::source::tests::Scratch;
    use super::*;

    fn names(scratch: &Scratch) -> usize {
        fs::read_dir(scratch.path()).expect("a directory").count()
    }

    #[test]
    fn a_file_takes_its_place_whole() {
        let scratch = Scratch::new();
        let path = scratch.join("file");
        for text in ["first", "second, longer"] {
            let mut file = AtomicFile::create(&path).expect("can begin");
            file.write_all(b"?????").expect("can write");
            file.write_all(&text.as_bytes()[5..]).expect("can write");
            file.rewrite_start(&text.as_bytes()[..5]).expect("can go back");
            assert_eq!(fs::read(&path).is_ok(), text != "first", "nothing new is seen before the end");
            file.finish().expect("can finish");
            assert_eq!(fs::read(&path).expect("is there"), text.as_bytes());
        }
        assert_eq!(names(&scratch), 1);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_a_place_that_cannot_be_written_is_named() {
        let scratch = Scratch::new();
        drop(AtomicFile::create(&scratch.join("file")).expect("can begin"));
        assert_eq!(names(&scratch), 0);
        for path in [scratch.join("no/such/file"), scratch.path().to_path_buf()] {
            let error = AtomicFile::create(&path).expect_err("no place");
            assert_eq!(error.exit_code(), 5);
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
