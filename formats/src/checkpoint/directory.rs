//! A model directory as a whole: config.json, generation_config.json, tokenizer.json, model.safetensors.

use super::Dtype;
use super::commit::Commit;
use super::generation::GenerationConfig;
use super::source;
use super::weights::Weights;
use super::writer::{Outgoing, Values};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::families;
use crate::layout::Layout;
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
/// Longest of the two config files that is read.
const MOST_CONFIG: u64 = 1 << 20;

/// A model directory, opened: every file read and checked against the others, the weights mapped.
#[derive(Debug)]
pub struct Directory {
    /// Where the files are, links resolved once: a link that moves meanwhile mixes no two checkpoints.
    pub path: PathBuf,
    /// What the model is.
    pub config: Config,
    /// Its parameters.
    pub layout: Layout,
    /// Their values.
    pub weights: Weights,
    /// Its tokenizer, if the directory has one.
    pub tokenizer: Option<Tokenizer>,
    /// How it wants to be sampled; empty if the directory does not say.
    pub generation: GenerationConfig,
}

impl Directory {
    /// Opens RUN, RUN/model, a checkpoint, or any directory that holds a model's files.
    pub fn open(path: &Path) -> Result<Directory> {
        let path = resolve(path)?;
        let config_path = path.join(CONFIG);
        let config = families::read_config(&source::read_text(&config_path, MOST_CONFIG)?, &config_path)?;
        let generation_path = path.join(GENERATION);
        let generation = match source::read_text_if_there(&generation_path, MOST_CONFIG)? {
            Some(text) => GenerationConfig::read_json(&text, &generation_path)?,
            None => GenerationConfig::default(),
        };
        generation.check_ids(config.vocabulary, &generation_path)?;
        let tokenizer_path = path.join(TOKENIZER);
        let tokenizer = match tokenizer_path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            _ => Some(Tokenizer::open(&tokenizer_path)?),
        };
        if let Some(tokenizer) = tokenizer.as_ref().filter(|known| known.vocabulary() != config.vocabulary) {
            return Err(Error::config(
                tokenizer_path.display().to_string(),
                "vocabulary",
                tokenizer.vocabulary(),
                format!("the {} of {CONFIG}", config.vocabulary),
            ));
        }
        let layout = Layout::new(&config);
        let weights = Weights::open(&weights_path(&path)?, &config, &layout)?;
        Ok(Directory { path, config, layout, weights, tokenizer, generation })
    }
}

/// The directory that holds the files, with every link on the way resolved.
fn resolve(path: &Path) -> Result<PathBuf> {
    const HELP: &str =
        "name a run, its model directory, or a directory with config.json and model.safetensors";
    let metadata = path.metadata().map_err(|error| source::unreadable(path, &error))?;
    if !metadata.is_dir() {
        return Err(Error::file(path, "is not a directory", HELP));
    }
    let candidates = [path.to_path_buf(), path.join("model")];
    let mut resolved = candidates.iter().filter_map(|candidate| candidate.canonicalize().ok());
    resolved.find(|candidate| candidate.join(CONFIG).symlink_metadata().is_ok()).ok_or_else(|| {
        Error::file(path, "holds no model: neither config.json nor model/config.json is there", HELP)
    })
}

/// The weights' file, or what is wrong with the directory that lacks it.
fn weights_path(directory: &Path) -> Result<PathBuf> {
    let path = directory.join(WEIGHTS);
    if path.symlink_metadata().is_ok() {
        return Ok(path);
    }
    let (problem, help) = if directory.join("model.safetensors.index.json").exists() {
        ("has its weights in shards, which are not read yet", "save the model as one model.safetensors")
    } else if directory.join("pytorch_model.bin").exists() {
        ("has its weights as a Python pickle only", "save the model as safetensors")
    } else {
        ("has no model.safetensors", "copy the model again, whole")
    };
    Err(Error::file(directory, problem, help))
}

/// What [`write_model`] writes.
#[derive(Clone, Copy, Debug)]
pub struct ModelFiles<'a> {
    /// What the model is.
    pub config: &'a Config,
    /// Its parameters.
    pub layout: &'a Layout,
    /// How the weights are to be encoded.
    pub dtype: Dtype,
    /// All values, in the layout's order.
    pub values: &'a [f32],
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// How it wants to be sampled.
    pub generation: &'a GenerationConfig,
}

/// Writes a model directory into a checkpoint; `prefix` is its name there, with a `/` at the end.
///
/// A value that `dtype` cannot hold is an error: what is written can be read and is what was learned.
pub fn write_model(commit: &mut Commit, prefix: &str, model: &ModelFiles) -> Result<()> {
    let expected = model.layout.parameters();
    if model.values.len() != expected {
        let found = model.values.len();
        return Err(Error::Internal(format!("{found} values are to be saved, the layout has {expected}")));
    }
    let mut tensors: Vec<Outgoing> = families::stored(model.config, model.layout)
        .into_iter()
        .map(|stored| Outgoing {
            name: stored.name,
            dtype: model.dtype,
            shape: stored.shape,
            values: Values::Floats(&model.values[model.layout.parameter(stored.id).range()]),
        })
        .collect();
    commit.write_outgoing(&format!("{prefix}{WEIGHTS}"), &mut tensors)?;
    let config = families::config_json(model.config, model.dtype);
    commit.write(&format!("{prefix}{CONFIG}"), config.as_bytes())?;
    commit.write(&format!("{prefix}{GENERATION}"), model.generation.to_json().as_bytes())?;
    if let Some(tokenizer) = model.tokenizer {
        commit.write(&format!("{prefix}{TOKENIZER}"), tokenizer.to_json().as_bytes())?;
    }
    Ok(())
}
