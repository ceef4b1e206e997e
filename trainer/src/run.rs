//! A run's directory on disk: its lock, its config, its metrics, and where its checkpoints are.
//!
//! Whoever holds a locked [`Run`] is the only trainer in the directory; its other processes, if any, only read there. What checkpoints contain is [`crate::state`]'s and
//! [`formats::checkpoint`]'s business.

use crate::mixing::Health;
use crate::options::Recipe;
use formats::{Error, Result};
use serde::Serialize;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "LOCK";
const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";

/// A run directory; where it is locked, until this is dropped or the process ends in whatever way.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    _lock: Option<File>,
}

impl Run {
    /// Whether `path` holds a run that began.
    pub fn exists(path: &Path) -> bool {
        [CONFIG, CHECKPOINTS].iter().any(|name| path.join(name).symlink_metadata().is_ok())
    }

    /// Makes the directory if need be and locks it; a directory that another process has locked stays as it is.
    pub fn lock(path: &Path) -> Result<Run> {
        let failed = |error| Error::write(path, error);
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| Error::write(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Whatever the file says is only for the sentence; the lock itself is the system's.
                let _ = (&mut lock).take(20).read_to_string(&mut owner);
                let owner = owner.trim();
                let owner = if owner.is_empty() { "of unknown number" } else { owner };
                return Err(Error::Locked { path: path.to_path_buf(), owner: owner.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(Error::write(&lock_path, error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(|error| Error::write(&lock_path, error))?;
        Ok(Run { path: path.to_path_buf(), _lock: Some(lock) })
    }

    /// The directory as a process sees it that leaves the lock, and all writing, to the first of its run.
    pub fn visit(path: &Path) -> Run {
        Run { path: path.to_path_buf(), _lock: None }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The recipe the run began with, if it began.
    pub fn recorded(&self) -> Result<Option<Recipe>> {
        let path = self.path.join(CONFIG);
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Recipe::open(&path).map(Some),
        }
    }

    /// Writes the recipe the run is now carried out with.
    pub fn record(&self, recipe: &Recipe) -> Result<()> {
        self.replace(CONFIG, recipe.to_toml()?.as_bytes())
    }

    /// Writes a file of the run by one rename, so that no reader ever sees half of it.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.tmp"));
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|error| {
            // Best effort: the next write of the same name takes its place anyway.
            let _ = std::fs::remove_file(&temporary);
            Error::write(&path, error)
        })
    }

    /// Opens `metrics.jsonl`, cut back to what was logged before `step`.
    pub fn metrics(&self, step: u64) -> Result<Metrics> {
        let path = self.path.join(METRICS);
        Metrics::open(&path, step).map_err(|error| Error::write(&path, error))
    }

    /// The rows of `metrics.jsonl`, as they stand.
    pub fn metrics_text(&self) -> String {
        std::fs::read_to_string(self.path.join(METRICS)).unwrap_or_default()
    }
}

/// `metrics.jsonl`: one object a line, in the order of the steps.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
    seconds: f64,
}

/// One training step's row.
#[derive(Clone, Debug, Serialize)]
pub struct StepRow {
    /// The step, counted from zero.
    pub step: u64,
    /// Mean loss of its batch, nats per token.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Norm of its gradients before clipping.
    pub gradient_norm: f64,
    /// Training throughput since the row before.
    pub tokens_per_s: f64,
    /// What the steps since the row before asked of each layer's experts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<Health>,
    /// Seconds the run has taken, all its processes together.
    pub seconds: f64,
}

/// One evaluation's row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EvaluationRow {
    /// The step before which it took place.
    pub step: u64,
    /// Mean loss of batches of the training split.
    pub train_loss: f64,
    /// Mean loss of batches of the validation split.
    pub val_loss: f64,
    /// Seconds the run has taken.
    pub seconds: f64,
}

/// What every row has.
#[derive(serde::Deserialize)]
struct Place {
    step: u64,
    seconds: f64,
}

impl Metrics {
    fn open(path: &Path, step: u64) -> io::Result<Metrics> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut reader = BufReader::new(&file);
        let (mut kept, mut seconds, mut line) = (0, 0.0, Vec::new());
        while reader.read_until(b'\n', &mut line)? > 0 {
            let place: Option<Place> =
                line.ends_with(b"\n").then(|| serde_json::from_slice(&line).ok()).flatten();
            let Some(place) = place.filter(|place| place.step < step) else { break };
            kept += line.len() as u64;
            seconds = place.seconds;
            line.clear();
        }
        file.set_len(kept)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Metrics { file, path: path.to_path_buf(), seconds })
    }

    /// Seconds the run had taken at the last row that was kept.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Adds a row.
    pub fn add(&self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row).map_err(|error| Error::Internal(format!("a row: {error}")))?;
        line.push(b'\n');
        (&self.file).write_all(&line).map_err(|error| Error::write(&self.path, error))
    }

    /// Makes the rows durable, before a checkpoint that continues from them.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::write(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("lectern-run-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn one_trainer_at_a_time() {
        let path = folder("lock");
        let run = Run::lock(&path).expect("a new directory");
        let error = Run::lock(&path).expect_err("it is taken");
        assert_eq!(error.exit_code(), 8);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(run);
        Run::lock(&path).expect("it is free again");
        std::fs::remove_dir_all(&path).expect("a folder of ours");
    }

    #[test]
    fn a_run_has_begun_when_its_config_stands() {
        let path = folder("config");
        let run = Run::lock(&path).expect("a new directory");
        assert!(!Run::exists(&path));
        assert_eq!(run.recorded().expect("nothing to read"), None);
        let options = presets::find("nano").expect("a preset").settled();
        let data = vec!["some text.txt".into()];
        let recipe = Recipe { options, data, data_weight: vec![], upcycle: None, from: None };
        run.record(&recipe).expect("a file");
        assert!(Run::exists(&path));
        assert_eq!(run.recorded().expect("its own file"), Some(recipe));
        std::fs::remove_dir_all(&path).expect("a folder of ours");
    }

    #[test]
    fn metrics_are_cut_back_to_the_step_and_past_torn_lines() {
        let path = folder("metrics");
        let run = Run::lock(&path).expect("a new directory");
        let metrics = run.metrics(0).expect("a file");
        for step in 0..4 {
            let seconds = step as f64;
            metrics.add(&EvaluationRow { step, train_loss: 2.0, val_loss: 3.0, seconds }).expect("a row");
            metrics
                .add(&StepRow {
                    step,
                    loss: 1.5,
                    lr: 1e-3,
                    gradient_norm: 0.5,
                    tokens_per_s: 9.0,
                    experts: vec![],
                    seconds,
                })
                .expect("a row");
        }
        metrics.sync().expect("a file");
        let whole = run.metrics_text();
        assert_eq!(whole.lines().count(), 8);
        let mut metrics = run.metrics(2).expect("a file");
        assert_eq!(metrics.seconds(), 1.0);
        assert!(whole.starts_with(&run.metrics_text()));
        assert_eq!(run.metrics_text().lines().count(), 4);
        metrics.file.write_all(b"{\"step\":2,\"lo").expect("a torn row");
        drop(metrics);
        run.metrics(9).expect("a file");
        assert_eq!(run.metrics_text().lines().count(), 4);
        std::fs::remove_dir_all(&path).expect("a folder of ours");
    }
}
