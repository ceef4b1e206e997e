//! Where results go and how a command ends.

use formats::Error;
use serde_json::Value;
use std::fmt::Display;
use std::io::{self, BufWriter, StdoutLock, Write};

/// Why a command ended early.
#[derive(Debug)]
pub enum Halt {
    /// Whoever read our output has gone: nobody needs the rest, and nothing went wrong.
    ReaderLeft,
    /// Something went wrong.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Failed(error)
    }
}

/// The exit code of a command that came to its end.
pub type Outcome = Result<u8, Halt>;

/// Standard output, whose every failure is told apart.
#[derive(Debug)]
pub struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// Standard output, buffered until [`Output::flush`].
    pub fn new() -> Output {
        Output { stdout: BufWriter::new(io::stdout().lock()) }
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        self.stdout.write_all(bytes).map_err(refused)
    }

    /// Adds one object on a line of its own, and hands everything over.
    pub fn json(&mut self, value: &Value) -> Result<(), Halt> {
        self.write(format!("{value}\n").as_bytes())?;
        self.flush()
    }

    /// Adds names and values in two columns, and hands everything over.
    pub fn table(&mut self, rows: &[(&str, String)]) -> Result<(), Halt> {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in rows {
            self.write(format!("{name:width$}  {value}\n").as_bytes())?;
        }
        self.flush()
    }

    /// Hands everything over to whoever reads.
    pub fn flush(&mut self) -> Result<(), Halt> {
        // Twice, because a terminal's line buffer lies between ours and the system.
        self.stdout.flush().and_then(|()| self.stdout.get_mut().flush()).map_err(refused)
    }
}

fn refused(error: io::Error) -> Halt {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Halt::ReaderLeft,
        _ => Halt::Failed(Error::write("standard output", error)),
    }
}

/// An `f32` with as few digits as tell it from every other; its neighbours in `f64` would have twice as many.
pub fn number(value: f32) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or(Value::Null)
}

/// A line on stderr. Where stderr is closed nobody wants to know.
pub fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        for (value, text) in [(1e-5, "0.00001"), (-0.1, "-0.1"), (0.0, "0"), (f32::MAX, "3.4028235e38")] {
            let json = number(value);
            assert_eq!(json.as_f64().map(|back| back as f32), Some(value), "{text}");
            assert!(json.to_string().len() <= text.len() + 2, "{json}");
        }
        assert_eq!(number(f32::NAN), Value::Null);
        assert_eq!(number(f32::INFINITY), Value::Null);
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        assert!(matches!(refused(io::ErrorKind::BrokenPipe.into()), Halt::ReaderLeft));
        assert!(matches!(refused(io::ErrorKind::StorageFull.into()), Halt::Failed(Error::Write { .. })));
    }
}
