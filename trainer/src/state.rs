//! Everything of a run that has memory. What is not here is a function of the step, the options and the text.
//!
//! The bytes are a function of what was learned alone: no time, place, process or thread count enters them.

use crate::data::Fingerprint;
use crate::random::torch::TorchState;
use formats::checkpoint::{Commit, Dtype, Tensor, TensorFile, source};
use formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const TENSORS: &str = "trainer/state.safetensors";
const RECORD: &str = "trainer/state.json";
/// Longest record that is read; the generator's state makes most of its 10 KiB.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Changes when an older trainer would misread what a newer one wrote.
const FORMAT: u32 = 1;

/// The state of a run after `step` updates.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Updates made.
    pub step: u64,
    /// Every parameter, in the layout's order.
    pub weights: Vec<f32>,
    /// AdamW's running mean of the gradients.
    pub first_moment: Vec<f32>,
    /// Its running mean of their squares.
    pub second_moment: Vec<f32>,
    /// PyTorch's generator, if the run draws from it.
    pub generator: Option<TorchState>,
    /// The lowest validation loss of the evaluations at multiples of `eval_every`. One that took place only because a
    /// run ended does not count: where a run was cut must leave no trace.
    pub best_validation: Option<f64>,
    /// The text it learns from.
    pub text: Fingerprint,
    /// The options that may not change, as [`crate::options::Options::fixed`] gives them.
    pub options: BTreeMap<String, String>,
}

const HELP: &str = "resume from another checkpoint, or start anew with another --out";

/// The part that is not tensors, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    step: u64,
    parameters: usize,
    /// As text, which reads back to the same bits; the JSON reader's numbers may not.
    best_validation: Option<String>,
    text: Fingerprint,
    options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generator: Option<TorchState>,
}

impl Record {
    fn open(path: &Path) -> Result<Record> {
        let wrong = |problem: String| Error::file(path, problem, HELP);
        let record: Record = serde_json::from_str(&source::read_text(path, MAX_RECORD_BYTES)?)
            .map_err(|error| wrong(format!("is not a training state: {error}")))?;
        if record.format != FORMAT {
            return Err(wrong(format!("has format {}, this trainer reads {FORMAT}", record.format)));
        }
        Ok(record)
    }
}

impl TrainState {
    /// Writes the state into a checkpoint.
    pub fn write(&self, commit: &mut Commit) -> Result<()> {
        let tensors = [
            ("weights", &self.weights),
            ("first_moment", &self.first_moment),
            ("second_moment", &self.second_moment),
        ];
        let tensors = tensors.map(|(name, values)| {
            (name.to_owned(), Dtype::F32, vec![values.len()], bytemuck::cast_slice(values.as_slice()))
        });
        commit.write_tensors(TENSORS, &tensors)?;
        let record = Record {
            format: FORMAT,
            step: self.step,
            parameters: self.weights.len(),
            best_validation: self.best_validation.map(|loss| loss.to_string()),
            text: self.text.clone(),
            options: self.options.clone(),
            generator: self.generator.clone(),
        };
        let mut json = serde_json::to_string_pretty(&record)
            .map_err(|error| Error::Internal(format!("the training state as JSON: {error}")))?;
        json.push('\n');
        commit.write(RECORD, json.as_bytes())
    }

    /// The text a checkpoint was learned from.
    pub fn text_of(checkpoint: &Path) -> Result<Fingerprint> {
        Record::open(&checkpoint.join(RECORD)).map(|record| record.text)
    }

    /// Reads the state of a checkpoint of a model with `parameters` values.
    pub fn open(checkpoint: &Path, parameters: usize) -> Result<TrainState> {
        let path = checkpoint.join(RECORD);
        let wrong = |problem: String| Error::file(&path, problem, HELP);
        let record = Record::open(&path)?;
        if record.parameters != parameters {
            let found = record.parameters;
            return Err(wrong(format!("is of a model of {found} parameters, expected {parameters}")));
        }
        let best_validation = match record.best_validation.map(|text| text.parse::<f64>()) {
            None => None,
            Some(Ok(loss)) if loss.is_finite() => Some(loss),
            Some(_) => return Err(wrong("has a best_validation that is no number".to_owned())),
        };
        let path = checkpoint.join(TENSORS);
        let file = TensorFile::open(&path)?;
        let tensor = |name: &str| match file.get(name).map(|stored| stored.values) {
            Some(Tensor::F32(values)) if values.len() == parameters => {
                let mut copy = Vec::new();
                copy.try_reserve_exact(parameters).map_err(|_| Error::Memory {
                    what: "the training state".to_owned(),
                    needed: size_of_val(values) as u64,
                    available: crate::memory::available().unwrap_or(0),
                    help: "free memory; the state's size does not depend on a flag".to_owned(),
                })?;
                copy.extend_from_slice(values);
                Ok(copy)
            }
            _ => Err(Error::file(&path, format!("has no {name} of {parameters} f32 values"), HELP)),
        };
        Ok(TrainState {
            step: record.step,
            weights: tensor("weights")?,
            first_moment: tensor("first_moment")?,
            second_moment: tensor("second_moment")?,
            generator: record.generator,
            best_validation,
            text: record.text,
            options: record.options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use crate::random::torch::Torch;
    use std::path::PathBuf;

    fn state() -> TrainState {
        TrainState {
            step: 42,
            weights: vec![0.1, -0.2, 1e-30],
            first_moment: vec![1.0, 2.0, 3.0],
            second_moment: vec![0.0, f32::MIN_POSITIVE, 7.0],
            generator: Some(Torch::new(3).state()),
            best_validation: Some(2.0 / 3.0 + 1e-16),
            text: Fingerprint { bytes: 7, xxh3: "0123".to_owned() },
            options: presets::find("gpt-zero").and_then(|options| options.fixed()).expect("a preset"),
        }
    }

    fn saved(name: &str, state: &TrainState) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("lectern-state-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let mut commit = Commit::begin(&folder, state.step).expect("a checkpoint");
        state.write(&mut commit).expect("a state");
        let checkpoint = commit.finish().expect("a checkpoint");
        (folder, checkpoint)
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        for state in [state(), TrainState { generator: None, best_validation: None, ..state() }] {
            let (folder, checkpoint) = saved("whole", &state);
            assert_eq!(TrainState::open(&checkpoint, 3).expect("its own state"), state);
            std::fs::remove_dir_all(folder).expect("a folder of ours");
        }
    }

    #[test]
    fn the_same_state_has_the_same_bytes() {
        let (first, one) = saved("one", &state());
        let (second, two) = saved("two", &state());
        for name in [TENSORS, RECORD, "MANIFEST"] {
            let read = |at: &Path| std::fs::read(at.join(name)).expect(name);
            assert_eq!(read(&one), read(&two), "{name}");
        }
        for folder in [first, second] {
            std::fs::remove_dir_all(folder).expect("a folder of ours");
        }
    }

    #[test]
    fn another_models_state_is_refused() {
        let (folder, checkpoint) = saved("other", &state());
        let error = TrainState::open(&checkpoint, 4).expect_err("another size");
        assert!(error.to_string().contains("3 parameters, expected 4"), "{error}");
        std::fs::remove_dir_all(folder).expect("a folder of ours");
    }
}
