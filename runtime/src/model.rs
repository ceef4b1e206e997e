//! A model on disk, mapped: what every session of it shares.

use crate::session::{Session, SessionOptions};
use crate::simd::Simd;
use formats::checkpoint::{GenerationConfig, Weights};
use formats::tokenizer::Tokenizer;
use formats::{Config, Layout, Result};
use std::path::Path;
use std::sync::Arc;

/// An opened model: immutable, mapped, cheap to clone, shared between threads freely.
#[derive(Clone, Debug)]
pub struct Model {
    shared: Arc<Shared>,
}

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Threads that compute; `None` chooses by the size of the weights.
    pub threads: Option<usize>,
}

#[derive(Debug)]
struct Shared {}

impl Model {
    /// Opens a model directory: a run, its `model` link, or the model directory itself.
    pub fn open(path: &Path) -> Result<Model> {
        Model::open_with(path, &ModelOptions::default())
    }

    /// Opens a model directory with options.
    pub fn open_with(_path: &Path, _options: &ModelOptions) -> Result<Model> {
        todo!()
    }

    /// Opens a model held in memory: the texts of `config.json` and, if there is one, `tokenizer.json`, and the
    /// bytes of `model.safetensors`.
    pub fn from_bytes(_config_json: &str, _weights: &[u8], _tokenizer_json: Option<&str>) -> Result<Model> {
        todo!()
    }

    /// The same with options.
    pub fn from_bytes_with(
        _config_json: &str,
        _weights: &[u8],
        _tokenizer_json: Option<&str>,
        _options: &ModelOptions,
    ) -> Result<Model> {
        todo!()
    }

    /// The model's description.
    pub fn config(&self) -> &Config {
        todo!()
    }

    /// Its list of parameters.
    pub fn layout(&self) -> &Layout {
        todo!()
    }

    /// Its tokenizer, if the directory holds one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        todo!()
    }

    /// What its directory says about sampling.
    pub fn generation(&self) -> &GenerationConfig {
        todo!()
    }

    /// Its weights as stored.
    pub fn weights(&self) -> &Weights {
        todo!()
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        todo!()
    }

    /// The table of routines in use.
    pub fn simd(&self) -> &'static Simd {
        todo!()
    }

    /// Bytes of weights read to decode one token.
    pub fn bytes_per_token(&self) -> u64 {
        todo!()
    }

    /// A session with an f16 cache as long as the model's context.
    pub fn session(&self) -> Result<Session> {
        self.session_with(&SessionOptions::default())
    }

    /// A session with options; memory that cannot be had is an error.
    pub fn session_with(&self, _options: &SessionOptions) -> Result<Session> {
        todo!()
    }
}
