//! The two built commands, run as a user runs them: arguments in, an exit code and two streams out, within a
//! time. Cargo builds commands only for their own package's tests, so the first use here asks it to.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `trainer`.
    Trainer,
    /// `runtime`.
    Runtime,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub seconds: f64,
}

/// Longest time any command of the tests may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

impl Program {
    /// Where the built command is; builds it, in the profile of the running test, on first use.
    pub fn path(self) -> PathBuf {
        static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
        let directory = DIRECTORY.get_or_init(build);
        directory.join(match self {
            Program::Trainer => "trainer",
            Program::Runtime => "runtime",
        })
    }

    /// A command of it with nothing in its environment that would change what it does.
    pub fn command<A: AsRef<OsStr>>(self, arguments: &[A]) -> Command {
        let mut command = Command::new(self.path());
        command.args(arguments).stdin(Stdio::null());
        for name in ["LECTERN_SIMD", "LECTERN_DATA", "RUST_BACKTRACE", "RUST_LOG"] {
            command.env_remove(name);
        }
        // What is expected is the processor's; the emulated device does not ask.
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(self, arguments: &[A]) -> Ran {
        run(self.command(arguments))
    }
}

/// Builds both commands; the answer is the directory that holds them.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // TARGET/PROFILE/deps/SUITE-HASH
    let directory = test.ancestors().nth(2).expect("cargo's layout of a target directory").to_path_buf();
    let target = directory.parent().expect("cargo's layout of a target directory");
    let profile = match directory.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "test",
        Some(name) => name,
    };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "runtime", "--package", "trainer", "--bins"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the commands do not build");
    directory
}

/// Runs a command to its end and collects what it writes; one that hangs is stopped and fails the test.
#[track_caller]
pub fn run(command: Command) -> Ran {
    run_with_input(command, None)
}

/// [`run`], with bytes on standard input.
#[track_caller]
pub fn run_with_input(mut command: Command, input: Option<&[u8]>) -> Ran {
    let line = format!("{command:?}");
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let began = Instant::now();
    let out = collect(child.stdout.take().expect("a pipe"));
    let err = collect(child.stderr.take().expect("a pipe"));
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // A command may end without having read everything; that shows in its exit code, not here.
        let _ = pipe.write_all(input);
    }
    let status = wait(&mut child, PATIENCE).unwrap_or_else(|| panic!("{line} hangs"));
    let seconds = began.elapsed().as_secs_f64();
    Ran {
        line,
        code: status.code(),
        signal: status.signal(),
        stdout: out.join().expect("standard output was read"),
        stderr: String::from_utf8_lossy(&err.join().expect("standard error was read")).into_owned(),
        seconds,
    }
}

/// Waits for a child; one that outlives the time is killed, and the answer is `None`.
pub fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() > end {
            child.kill().expect("our own child can be killed");
            child.wait().expect("a killed child ends");
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

impl Ran {
    /// Asserts the exit code, and that whatever happened was no panic.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert!(self.code == Some(code), "expected exit code {code}: {self}");
        self.calm()
    }

    /// Asserts that nothing panicked and no signal ended it.
    #[track_caller]
    pub fn calm(self) -> Ran {
        assert!(!self.stderr.contains("panicked at"), "a panic: {self}");
        assert!(self.signal.is_none(), "ended by a signal: {self}");
        self
    }

    /// Asserts that standard error speaks of something.
    #[track_caller]
    pub fn naming(self, what: &str) -> Ran {
        assert!(self.stderr.contains(what), "expected {what:?} on standard error: {self}");
        self
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on standard output")
    }

    /// Standard output as numbers between spaces or commas.
    #[track_caller]
    pub fn ids(&self) -> Vec<u32> {
        let separator = |c: char| c.is_whitespace() || c == ',';
        let words = self.text().split(separator).filter(|word| !word.is_empty());
        words.map(|word| word.parse().unwrap_or_else(|_| panic!("no id: {word:?} in {self}"))).collect()
    }

    /// Standard output as one JSON object on one line.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.text().trim_end_matches('\n');
        assert!(!text.contains('\n'), "more than one line: {self}");
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {self}"));
        assert!(value.is_object(), "no object: {self}");
        value
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ran { line, code, signal, stdout, stderr, seconds } = self;
        let shown: String = String::from_utf8_lossy(stdout).chars().take(2000).collect();
        writeln!(f, "{line}\nended after {seconds:.3} s with code {code:?}, signal {signal:?}")?;
        writeln!(f, "--- stdout ({} bytes)\n{shown}\n--- stderr\n{stderr}", stdout.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_finished_command_leaves_code_and_streams() {
        let ran = run(shell("echo 1,2 3; echo trouble >&2; exit 3")).expect(3).naming("trouble");
        assert_eq!(ran.ids(), [1, 2, 3]);
        assert_eq!(run_with_input(shell("cat"), Some(b"{\"a\":1}\n")).json()["a"], 1);
    }

    #[test]
    fn a_wrong_code_a_panic_and_a_signal_are_seen() {
        for (script, code) in [("exit 1", 0), ("echo thread panicked at x >&2", 0), ("kill -9 $$", 137)] {
            let caught = std::panic::catch_unwind(|| run(shell(script)).expect(code));
            assert!(caught.is_err(), "{script}");
        }
    }

    #[test]
    fn a_hanging_command_is_stopped() {
        let mut child = shell("exec sleep 100").spawn().expect("a sleeper");
        assert!(wait(&mut child, Duration::from_millis(50)).is_none());
    }
}
