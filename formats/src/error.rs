//! Everything that can be wrong with a file, a config or a machine, as values.
//!
//! Each error names what happened, where, and what to do. Nothing here panics, and no input reaches a panic
//! elsewhere. Called by all three crates; `main` turns [`Error::exit_code`] into the process's.

use std::io;
use std::path::{Path, PathBuf};

/// The result of anything that reads or writes a file of ours.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Every variant prints one sentence with its place and its remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line or an API argument asks for something that is not there.
    #[error("{0}")]
    Usage(String),
    /// A file that should hold a model, a tokenizer or a text does not.
    #[error("{}: {problem}\n  help: {help}", path.display())]
    File {
        /// The file as it was named.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What the reader of this line can do.
        help: String,
    },
    /// A tokenizer file that is whole, and of a kind that is not computed here: a model works with it, text does not.
    #[error("{}: {problem}\n  help: {help}", path.display())]
    Foreign {
        /// The file as it was named.
        path: PathBuf,
        /// What it has that is not computed.
        problem: String,
        /// What the reader of this line can do.
        help: String,
    },
    /// A value is impossible, or two of them contradict each other.
    #[error("{origin}: {field} is {found}, expected {expected}")]
    Config {
        /// The file or flag set that holds the value.
        origin: String,
        /// The key, as it is written there.
        field: String,
        /// The value found.
        found: String,
        /// The bound it breaks.
        expected: String,
    },
    /// The operating system refused to write.
    #[error("cannot write {}: {source}\n  help: what was saved before is intact; free space or choose another --out", path.display())]
    Write {
        /// The path that could not be written.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// The chosen device cannot be used.
    #[error("{0}")]
    Device(String),
    /// The chosen device has no memory left, and does not say how much was wanted.
    #[error("{0}")]
    DeviceMemory(String),
    /// More memory would be needed than there is.
    #[error("{what} needs {} MiB, {} MiB are free\n  help: {help}", needed >> 20, available >> 20)]
    Memory {
        /// What would be allocated.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
        /// The flag to change.
        help: String,
    },
    /// Another process holds the run directory.
    #[error("{}: locked by another run (process {owner})\n  help: wait for it, stop it, or choose another --out", path.display())]
    Locked {
        /// The run directory.
        path: PathBuf,
        /// The process id in the lock file.
        owner: String,
    },
    /// Training met a number that is not finite.
    #[error("{0}")]
    Diverged(String),
    /// The work was cancelled from outside; what was computed before stays valid.
    #[error("cancelled")]
    Cancelled,
    /// A broken invariant of our own.
    #[error(
        "internal error: {0}\n  help: this is a bug in Lectern; please report it with the command that shows it"
    )]
    Internal(String),
}

impl Error {
    /// A damaged or foreign file.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>, help: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), problem: problem.into(), help: help.into() }
    }

    /// An impossible value.
    pub fn config(
        origin: impl Into<String>,
        field: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Error {
        Error::Config {
            origin: origin.into(),
            field: field.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// A failed write.
    pub fn write(path: impl AsRef<Path>, source: io::Error) -> Error {
        Error::Write { path: path.as_ref().to_path_buf(), source }
    }

    /// The process exit code that belongs to this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Usage(_) => 2,
            Error::File { .. } | Error::Foreign { .. } => 3,
            Error::Config { .. } => 4,
            Error::Write { .. } => 5,
            Error::Device(_) => 6,
            Error::DeviceMemory(_) | Error::Memory { .. } => 7,
            Error::Locked { .. } => 8,
            Error::Diverged(_) => 9,
            Error::Cancelled => 130,
        }
    }
}
