//! What other programs say of the same models: where `LECTERN_LONG` is set and python3 has PyTorch and transformers.

use crate::compare::{Tolerance, assert_close};
use crate::reference::Reference;
use formats::checkpoint::Directory;
use std::path::{Path, PathBuf};
use std::process::Command;
use trainer::weights::arena;

/// Whether python3 can compute with transformers here, and is asked to.
pub fn transformers() -> bool {
    let wanted = std::env::var_os("LECTERN_LONG").is_some();
    let there = || {
        let found = Command::new("python3").args(["-c", "import torch, transformers"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let able = wanted && there();
    if !able {
        eprintln!("skipped: needs LECTERN_LONG and python3 with torch and transformers");
    }
    able
}

/// A script of `scripts/peers`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers").join(name)
}

/// Asserts that transformers opens a directory of ours unchanged and computes the reference's logits.
#[track_caller]
pub fn assert_opens_in_transformers(path: &Path, ids: &[u32]) {
    let listed = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("python3");
    command.arg(script("open_in_transformers.py")).arg(path).arg(listed);
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Vec<f64> = serde_json::from_slice(&output.stdout).expect("a list of logits");
    let directory = Directory::open(path).expect("a model");
    let weights = arena(&directory.weights, &directory.layout);
    let ours = Reference::new(&directory.config, &weights).logits(ids);
    let tolerance = Tolerance { absolute: 1e-3, relative: 0.0 };
    assert_close(&path.display().to_string(), &theirs, &ours, tolerance);
}
