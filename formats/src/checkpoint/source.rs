//! The only way a file is opened for reading: it must be a regular file of bounded size.
//!
//! A FIFO, a directory, a socket or a device in a file's place is refused at once; nothing here waits for a
//! writer that never comes or reads without end.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Opens a regular file and gives its length.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let file = open_at_once(path).map_err(|error| unreadable(path, &error))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        let found = kind(&metadata.file_type());
        return Err(Error::file(
            path,
            format!("is {found}, not a regular file"),
            "name a file that holds the data itself",
        ));
    }
    Ok((file, metadata.len()))
}

/// Reads a whole file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, len) = open(path)?;
    let too_large = |len: u64| {
        Error::file(
            path,
            format!("has {len} bytes; at most {most} are read"),
            "check that it is the right file",
        )
    };
    if len > most {
        return Err(too_large(len));
    }
    let mut bytes = Vec::new();
    let capacity = usize::try_from(len).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(capacity).map_err(|_| Error::Memory {
        what: path.display().to_string(),
        needed: len,
        available: 0,
        help: "free memory, or use a smaller file".into(),
    })?;
    // The length may have grown since it was asked for, and files of the kernel's own report none.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    match bytes.len() as u64 {
        len if len > most => Err(too_large(len)),
        _ => Ok(bytes),
    }
}

/// Reads a whole file of at most `most` bytes that must be UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 text (byte {place})"), "convert it to UTF-8")
    })
}

/// Like [`read_text`], with `None` where there is no such file.
pub fn read_text_if_there(path: &Path, most: u64) -> Result<Option<String>> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => read_text(path, most).map(Some),
    }
}

/// The error of a file that the system does not let us read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::file(path, format!("cannot be read: {error}"), "check the path and its permissions")
}

/// Opens without waiting: opening a FIFO for reading would otherwise block until someone writes.
fn open_at_once(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    options.open(path)
}

fn kind(kind: &std::fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a FIFO";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    match kind.is_dir() {
        true => "a directory",
        false => "something else",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    /// An empty directory of one test, removed at its end.
    pub(in crate::checkpoint) struct Scratch(PathBuf);

    impl Scratch {
        pub(in crate::checkpoint) fn new() -> Scratch {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("lectern formats {} {number}", std::process::id()));
            std::fs::create_dir_all(&path).expect("the temporary directory can be written");
            Scratch(path)
        }

        pub(in crate::checkpoint) fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub(in crate::checkpoint) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn refused(path: &Path, words: &str) {
        let start = Instant::now();
        let error = read(path, 1 << 20).expect_err("must be refused");
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn only_regular_files_are_read() {
        let scratch = Scratch::new();
        refused(scratch.path(), "is a directory");
        refused(&scratch.join("absent"), "cannot be read");
        #[cfg(target_os = "linux")]
        {
            refused(Path::new("/dev/zero"), "is a device");
            let fifo = scratch.join("fifo");
            let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo exists");
            assert!(made.success());
            refused(&fifo, "is a FIFO");
            let link = scratch.join("link");
            std::os::unix::fs::symlink(&fifo, &link).expect("a link can be made");
            refused(&link, "is a FIFO");
            let _socket = std::os::unix::net::UnixListener::bind(scratch.join("socket")).expect("can bind");
            refused(&scratch.join("socket"), "cannot be read");
            let bytes =
                read(Path::new("/proc/self/stat"), 1 << 20).expect("a regular file that reports no length");
            assert!(!bytes.is_empty());
        }
    }

    #[test]
    fn the_bound_on_length_holds_on_both_sides() {
        let scratch = Scratch::new();
        let path = scratch.join("file");
        std::fs::write(&path, b"12345").expect("can be written");
        assert_eq!(read(&path, 5).expect("just fits"), b"12345");
        assert!(read(&path, 4).expect_err("one too many").to_string().contains("has 5 bytes; at most 4"));
    }

    #[test]
    fn text_must_be_utf8_and_may_be_absent() {
        let scratch = Scratch::new();
        let path = scratch.join("text");
        assert_eq!(read_text_if_there(&path, 9).expect("absent"), None);
        std::fs::write(&path, b"ab\xff").expect("can be written");
        let error = read_text_if_there(&path, 9).expect_err("not text");
        assert!(error.to_string().contains("not UTF-8 text (byte 2)"), "{error}");
    }
}
