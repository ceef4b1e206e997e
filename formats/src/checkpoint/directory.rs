//! A model directory as a whole: config.json, generation_config.json, tokenizer.json, model.safetensors or its shards.

use super::Dtype;
use super::commit::Commit;
use super::generation::GenerationConfig;
use super::weights::Weights;
use super::writer::{Outgoing, Values};
use super::{shards, source};
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
        let config = read_config(&path)?;
        let generation_path = path.join(GENERATION);
        let generation = match source::read_text_if_there(&generation_path, MOST_CONFIG)? {
            Some(text) => GenerationConfig::read_json(&text, &generation_path)?,
            None => GenerationConfig::default(),
        };
        generation.check_ids(config.vocabulary, &generation_path)?;
        let tokenizer = match Tokenizer::find(&path)? {
            // A vocabulary that ends before the model's rows do is how families round those up.
            Some((tokenizer, origin)) if tokenizer.vocabulary() > config.vocabulary => {
                return Err(Error::config(
                    origin.display().to_string(),
                    "vocabulary",
                    tokenizer.vocabulary(),
                    format!("at most the {} of {CONFIG}", config.vocabulary),
                ));
            }
            found => found.map(|(tokenizer, _)| tokenizer),
        };
        let layout = Layout::new(&config);
        let weights = open_weights(&path, &config, &layout)?;
        Ok(Directory { path, config, layout, weights, tokenizer, generation })
    }
}

/// What the model in a directory is; nothing else of it is looked at.
pub fn model_config(path: &Path) -> Result<Config> {
    read_config(&resolve(path)?)
}

fn read_config(directory: &Path) -> Result<Config> {
    let path = directory.join(CONFIG);
    families::read_config(&source::read_text(&path, MOST_CONFIG)?, &path)
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

/// The weights, in one file or in shards, or what is wrong with the directory that lacks them.
fn open_weights(directory: &Path, config: &Config, layout: &Layout) -> Result<Weights> {
    let (path, index) = (directory.join(WEIGHTS), directory.join(shards::INDEX));
    if path.symlink_metadata().is_ok() {
        return Weights::open(&path, config, layout);
    }
    if index.symlink_metadata().is_ok() {
        return Weights::open_shards(&index, config, layout);
    }
    let (problem, help) = if directory.join("pytorch_model.bin").exists() {
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
        .map(|stored| {
            let parameter = model.layout.parameter(stored.id);
            let values = &model.values[parameter.range()][stored.range(parameter)];
            Outgoing {
                name: stored.name,
                dtype: model.dtype,
                values: match stored.inputs_first {
                    true => Values::Transposed(values, stored.shape[0]),
                    false => Values::Floats(values),
                },
                shape: stored.shape,
            }
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

#[cfg(test)]
mod tests {
    use super::super::point;
    use super::super::source::tests::Scratch;
    use super::super::weights::tests::{small, values};
    use super::*;
    use std::fs;
    use std::time::{Duration, Instant};

    /// A run with one checkpoint of the small model at step 4; returns its model directory.
    fn run(scratch: &Scratch, tokenizer: Option<&Tokenizer>) -> PathBuf {
        let (config, layout) = (small(), Layout::new(&small()));
        let model = ModelFiles {
            config: &config,
            layout: &layout,
            dtype: Dtype::F16,
            values: &values(&layout),
            tokenizer,
            generation: &GenerationConfig::plain(),
        };
        let mut commit = Commit::begin(&scratch.join("checkpoints"), 4).expect("can begin");
        write_model(&mut commit, "model/", &model).expect("can write");
        commit.finish().expect("can finish").join("model")
    }

    fn characters() -> Tokenizer {
        Tokenizer::characters("abc").expect("not empty")
    }

    fn replace(path: &Path, bytes: &[u8]) {
        fs::remove_file(path).expect("is there");
        fs::write(path, bytes).expect("can be written");
    }

    fn refused(path: &Path, code: u8, words: &str) {
        let start = Instant::now();
        let error = Directory::open(path).expect_err(words);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        assert_eq!(error.exit_code(), code, "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_run_its_link_its_checkpoint_and_its_model_are_the_same_model() {
        let scratch = Scratch::new();
        let model = run(&scratch, Some(&characters()));
        point(scratch.path(), 4).expect("can be linked");
        let checkpoint = model.parent().expect("has one");
        for path in [scratch.path(), &scratch.join("model"), checkpoint, &model] {
            let opened = Directory::open(path).expect("a model");
            assert_eq!(opened.path, model.canonicalize().expect("exists"));
            assert_eq!((opened.config.clone(), opened.layout.clone()), (small(), Layout::new(&small())));
            assert_eq!(opened.tokenizer, Some(characters()));
            assert_eq!(opened.generation, GenerationConfig::plain());
            assert_eq!(
                opened.weights.tensor(opened.layout.position_embedding.expect("learned positions")).get(1),
                7.0
            );
        }
    }

    #[test]
    fn a_mapped_model_outlives_its_directory() {
        let scratch = Scratch::new();
        let opened = Directory::open(&run(&scratch, None)).expect("a model");
        fs::remove_dir_all(scratch.path()).expect("can be removed");
        assert_eq!(opened.weights.tensor(opened.layout.token_embedding).get(5), 5.0);
    }

    #[test]
    fn only_what_is_optional_may_be_absent() {
        let scratch = Scratch::new();
        let model = run(&scratch, None);
        assert_eq!(Directory::open(&model).expect("a model").tokenizer, None);
        fs::remove_file(model.join(GENERATION)).expect("is there");
        assert_eq!(Directory::open(&model).expect("a model").generation, GenerationConfig::default());
        fs::remove_file(model.join(WEIGHTS)).expect("is there");
        refused(&model, 3, "has no model.safetensors");
        fs::write(model.join("pytorch_model.bin"), b"").expect("can be written");
        refused(&model, 3, "Python pickle");
        fs::write(model.join("model.safetensors.index.json"), b"").expect("can be written");
        refused(&model, 3, "is no index of shards");
        fs::remove_file(model.join(CONFIG)).expect("is there");
        refused(&model, 3, "holds no model");
        refused(&scratch.join("absent"), 3, "cannot be read");
        refused(&scratch.join("checkpoints/0000000004/MANIFEST"), 3, "is not a directory");
    }

    #[test]
    fn files_that_contradict_each_other_are_refused() {
        let scratch = Scratch::new();
        let model = run(&scratch, Some(&characters()));
        replace(&model.join(TOKENIZER), Tokenizer::bytes().to_json().as_bytes());
        refused(&model, 4, "vocabulary is 256, expected at most the 3 of config.json");
        replace(&model.join(TOKENIZER), characters().to_json().replace("\"c\": 2", "\"c\": 3").as_bytes());
        refused(&model, 3, "without gaps");
        replace(&model.join(TOKENIZER), characters().to_json().as_bytes());
        replace(&model.join(GENERATION), b"{\"eos_token_id\": 3}");
        refused(&model, 4, "eos_token_id is 3");
        replace(&model.join(GENERATION), b"{}");
        let wider = families::config_json(&Config { width: 4, ..small() }, Dtype::F16);
        replace(&model.join(CONFIG), wider.as_bytes());
        refused(&model, 3, "expected [3, 4]");
        let absurd = wider.replace("\"layers\": 1", "\"layers\": 1152921504606846976");
        replace(&model.join(CONFIG), absurd.as_bytes());
        refused(&model, 4, "layers is 1152921504606846976, expected 1 to");
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_a_directory_or_a_device_in_a_files_place_is_refused_at_once() {
        let scratch = Scratch::new();
        let model = run(&scratch, Some(&characters()));
        for name in [WEIGHTS, CONFIG, GENERATION, TOKENIZER] {
            let path = model.join(name);
            let good = fs::read(&path).expect("is there");
            fs::remove_file(&path).expect("is there");
            fs::create_dir(&path).expect("can be made");
            refused(&model, 3, "is a directory");
            fs::remove_dir(&path).expect("is there");
            let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo exists");
            assert!(made.success());
            refused(&model, 3, "is a FIFO");
            fs::remove_file(&path).expect("is there");
            std::os::unix::fs::symlink("/dev/zero", &path).expect("can be linked");
            refused(&model, 3, "is a device");
            fs::remove_file(&path).expect("is there");
            std::os::unix::fs::symlink("nowhere", &path).expect("can be linked");
            refused(&model, 3, "cannot be read");
            fs::remove_file(&path).expect("is there");
            fs::write(&path, good).expect("can be written");
        }
        let fifo = scratch.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo exists").success());
        refused(&fifo, 3, "is not a directory");
        Directory::open(&model).expect("good again");
    }

    #[test]
    fn the_wrong_number_of_values_is_our_bug() {
        let scratch = Scratch::new();
        let (config, layout) = (small(), Layout::new(&small()));
        let generation = GenerationConfig::plain();
        let mut values = values(&layout);
        values.pop();
        let mut commit = Commit::begin(scratch.path(), 1).expect("can begin");
        let model = ModelFiles {
            config: &config,
            layout: &layout,
            dtype: Dtype::F32,
            values: &values,
            tokenizer: None,
            generation: &generation,
        };
        assert_eq!(write_model(&mut commit, "model/", &model).expect_err("one short").exit_code(), 1);
    }
}
