//! Training short enough for a test: a learner of given weights, and whole runs of the `trainer` command whose
//! directories are compared byte for byte.

use crate::folder::Folder;
use crate::programs::{Program, Ran};
use formats::Config;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use trainer::backend::cpu::Cpu;
use trainer::learner::{BatchShape, Learner};
use trainer::mixing::Mixing;
use trainer::optimizer::{Decay, OptimizerKind, OptimizerOptions};
use trainer::tape::recompute::Recompute;

/// PyTorch's AdamW, as the lecture uses it.
pub fn adamw(learning_rate: f32) -> OptimizerOptions {
    OptimizerOptions {
        kind: OptimizerKind::Adamw,
        learning_rate,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decay: Decay::Everything,
        clip: 0.0,
    }
}

/// A learner that holds the given weights.
#[track_caller]
pub fn learner(
    config: &Config,
    weights: &[f32],
    sequences: usize,
    block: usize,
    threads: usize,
) -> Learner<Cpu> {
    mixing_learner(config, weights, BatchShape { sequences, block }, threads, &Mixing::default())
}

/// A learner that holds the given weights, and how it keeps its experts alive.
#[track_caller]
pub fn mixing_learner(
    config: &Config,
    weights: &[f32],
    shape: BatchShape,
    threads: usize,
    mixing: &Mixing,
) -> Learner<Cpu> {
    let backend = Cpu::new(threads).expect("threads");
    let mut learner =
        Learner::with(backend, config, shape, &adamw(1e-3), mixing, Recompute::Nothing).expect("a learner");
    let zeros = vec![0.0; weights.len()];
    learner.load(weights, &zeros, &zeros).expect("weights of the right length");
    learner
}

/// A run of the `trainer` command: a text, a config file, and a directory for what comes out.
#[derive(Debug)]
pub struct Job {
    /// Holds everything.
    pub folder: Folder,
    text: PathBuf,
    config: PathBuf,
}

impl Job {
    /// A run on `text` whose config file holds `keys`, each with its value as TOML writes it.
    #[track_caller]
    pub fn new(name: &str, text: &str, keys: &[(&str, String)]) -> Job {
        let folder = Folder::new(name);
        let config: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let text = folder.write("text.txt", text);
        let config = folder.write("options.toml", config);
        Job { folder, text, config }
    }

    /// The directory of that name to train into.
    pub fn out(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The command that trains into `out`.
    pub fn command(&self, out: &Path, more: &[&str]) -> Command {
        let mut command = Program::Trainer.command(&["train", "--progress", "plain"]);
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--data")
            .arg(&self.text)
            .arg("--out")
            .arg(out)
            .args(more);
        command
    }

    /// Trains into `out` to the end.
    #[track_caller]
    pub fn train(&self, out: &Path, more: &[&str]) -> Ran {
        crate::programs::run(self.command(out, more))
    }
}

/// Keys of a run that takes well under a second: two layers of width 12 for `steps` steps.
pub fn tiny(steps: u64) -> Vec<(&'static str, String)> {
    [
        ("block", "6"),
        ("width", "12"),
        ("layers", "2"),
        ("heads", "3"),
        ("feed_forward", "20"),
        ("batch", "5"),
        ("eval_every", "5"),
        ("eval_batches", "2"),
        ("log_every", "1"),
        ("save_every", "1"),
        ("sample", "0"),
        ("seed", "7"),
    ]
    .into_iter()
    .map(|(key, value)| (key, value.to_owned()))
    .chain([("steps", steps.to_string()), ("keep", (steps + 1).to_string())])
    .collect()
}

/// `keys` with others added or replaced.
pub fn with<'a>(mut keys: Vec<(&'a str, String)>, more: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
    for &(key, value) in more {
        keys.retain(|(name, _)| *name != key);
        keys.push((key, value.to_owned()));
    }
    keys
}

/// Everything below a directory: files with their bytes, links with their targets, empty directories too.
#[track_caller]
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(root.join(below)).expect("a directory of the run") {
            let entry = entry.expect("an entry");
            let (name, kind) = (below.join(entry.file_name()), entry.file_type().expect("a type"));
            if kind.is_dir() {
                found.insert(name.clone(), b"directory".to_vec());
                walk(root, &name, found);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).expect("a link");
                found.insert(name, target.into_os_string().into_encoded_bytes());
            } else {
                found.insert(name, std::fs::read(entry.path()).expect("a file of the run"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, Path::new(""), &mut found);
    found
}

/// Asserts that two directories hold the same names and bytes.
#[track_caller]
pub fn assert_same_tree(what: &str, actual: &Path, expected: &Path) {
    let (actual, expected) = (tree(actual), tree(expected));
    let names = |tree: &BTreeMap<PathBuf, Vec<u8>>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&actual), names(&expected), "{what}: names");
    assert!(!expected.is_empty(), "{what}: nothing to compare");
    for (name, bytes) in &expected {
        let other = &actual[name];
        if other != bytes {
            let place =
                other.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(other.len().min(bytes.len()));
            let around = |bytes: &[u8]| {
                let from = place.saturating_sub(60).min(bytes.len());
                String::from_utf8_lossy(&bytes[from..bytes.len().min(place + 60)]).into_owned()
            };
            panic!(
                "{what}: {} differs at byte {place}:\n{:?}\nexpected\n{:?}",
                name.display(),
                around(other),
                around(bytes)
            );
        }
    }
}

/// Asserts that two runs hold the same checkpoints, point at the same model and logged the same numbers.
#[track_caller]
pub fn assert_same_run(what: &str, actual: &Path, expected: &Path) {
    assert_same_tree(what, &actual.join("checkpoints"), &expected.join("checkpoints"));
    let link = |run: &Path| std::fs::read_link(run.join("model")).expect("RUN/model is a link");
    assert_eq!(link(actual), link(expected), "{what}: model");
    assert_eq!(metrics(actual), metrics(expected), "{what}: metrics");
}

/// The run's metrics without what only a clock knows.
#[track_caller]
pub fn metrics(run: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut row: serde_json::Map<_, _> = serde_json::from_str(line).expect("one object a line");
            row.retain(|key, _| !matches!(key.as_str(), "seconds" | "tokens_per_s" | "memory_bytes"));
            row
        })
        .collect()
}

/// The rows `step N: train loss x, val loss y` among lines of any kind.
pub fn rows(lines: &str) -> Vec<(u64, f64, f64)> {
    lines
        .lines()
        .filter_map(|line| {
            let (step, rest) = line.trim().strip_prefix("step ")?.split_once(": train loss ")?;
            let (train, validation) = rest.split_once(", val loss ")?;
            Some((step.parse().ok()?, train.parse().ok()?, validation.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_among_other_lines() {
        let lines = "saved step 3\nstep 0: train loss 4.3422, val loss 4.3382\nstep 1: loss 2\n";
        assert_eq!(rows(lines), [(0, 4.3422, 4.3382)]);
    }

    #[test]
    fn one_changed_byte_one_name_and_one_link_are_seen() {
        let folder = Folder::new("trees");
        let make = |name: &str, byte: &str, link: &str| {
            let root = folder.join(name);
            std::fs::create_dir_all(root.join("inner")).expect("a directory");
            std::fs::write(root.join("inner/file"), byte).expect("a file");
            std::os::unix::fs::symlink(link, root.join("link")).expect("a link");
            root
        };
        let first = make("first", "a", "x");
        assert_same_tree("the same", &make("same", "a", "x"), &first);
        for other in [make("byte", "b", "x"), make("longer", "ab", "x"), make("link", "a", "y")] {
            assert!(std::panic::catch_unwind(|| assert_same_tree("other", &other, &first)).is_err());
        }
        let extra = make("extra", "a", "x");
        std::fs::write(extra.join("more"), "").expect("a file");
        assert!(std::panic::catch_unwind(|| assert_same_tree("extra", &extra, &first)).is_err());
    }

    #[test]
    fn later_keys_replace_earlier_ones() {
        let keys = with(tiny(3), &[("seed", "8"), ("dropout", "0.1")]);
        assert_eq!(keys.iter().filter(|(key, _)| *key == "seed").count(), 1);
        assert!(keys.contains(&("seed", "8".to_owned())) && keys.contains(&("dropout", "0.1".to_owned())));
    }
}
