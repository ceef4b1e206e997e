//! Commands on an emulated CUDA device: `scripts/emulated.sh` with the driver and compiler of `tests/emulator`, under
//! AddressSanitizer. The suites that use it run when LECTERN_EMULATOR is set, as `scripts/test.sh cuda` does.

use crate::programs::{Ran, run};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The exit code of a command in which the emulator or the sanitiser found something.
pub const FOUND: i32 = 99;

/// Whether there is an emulator; says why not.
pub fn available() -> bool {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let why_not = ANSWER.get_or_init(|| {
        if std::env::var_os("LECTERN_EMULATOR").is_none() {
            return Some("LECTERN_EMULATOR is not set: scripts/test.sh cuda sets it".to_owned());
        }
        let ran = run(emulated(&Command::new("true")));
        match ran.code {
            Some(0) => None,
            Some(69) => Some(ran.stderr),
            _ => panic!("the emulator does not build: {ran}"),
        }
    });
    if let Some(why_not) = why_not {
        println!("skipped: {}", why_not.trim());
    }
    why_not.is_none()
}

/// The command that runs another one on the emulated device. What the other one's environment names is kept.
pub fn emulated(inner: &Command) -> Command {
    let target = target();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/emulated.sh"));
    command.arg(inner.get_program()).args(inner.get_args());
    // Images of kernels are made once for all tests.
    command.env("CARGO_TARGET_DIR", &target).env("LECTERN_CACHE", target.join("emulator/images"));
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The directory that cargo builds into.
fn target() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // TARGET/PROFILE/deps/SUITE-HASH
    test.ancestors().nth(3).expect("cargo's layout of a target directory").to_path_buf()
}

/// What was asked of the emulated libraries and how often, from the file that LECTERN_EMULATOR_TRACE named.
#[track_caller]
pub fn calls(trace: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(trace).expect("a trace");
    let mut calls = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["call", name, count] = words[..] {
            *calls.entry(name.to_owned()).or_insert(0) += count.parse::<u64>().expect("a count");
        }
    }
    assert!(!calls.is_empty(), "nothing was asked of the emulated device");
    calls
}

/// Which kernels ran in which geometry, each once: `NAME X Y Z THREADS SHARED`, from the same file.
#[track_caller]
pub fn kernels(trace: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(trace).expect("a trace");
    text.lines()
        .filter_map(|line| Some(line.strip_prefix("kernel ")?.rsplit_once(' ')?.0.to_owned()))
        .collect()
}

impl Ran {
    /// Asserts that the emulator found nothing wrong, whatever the exit code.
    #[track_caller]
    pub fn sound(self) -> Ran {
        assert!(
            self.code != Some(FOUND) && !self.stderr.contains("AddressSanitizer"),
            "the emulator found: {self}"
        );
        self
    }
}
