//! One model's tensors: each of the layout's parameters has exactly one, of its shape, and there are no others.

use super::container::{Place, TensorFile};
use super::{Dtype, Tensor};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::families;
use crate::layout::{Layout, ParameterId};
use std::path::Path;
use std::sync::Arc;

/// Most differences that one error names.
const MOST_DIFFERENCES: usize = 3;

/// The weights of one model, mapped or in memory, unchangeable; a parameter's numbers are read where they stand.
#[derive(Debug)]
pub struct Weights {
    file: TensorFile,
    /// By parameter.
    places: Vec<Place>,
    dtype: Dtype,
}

impl Weights {
    /// Maps a `model.safetensors` and checks it against the layout. No number is read.
    pub fn open(path: &Path, config: &Config, layout: &Layout) -> Result<Weights> {
        Weights::check(TensorFile::open(path)?, config, layout, path)
    }

    /// The same from memory; copies only bytes that are not aligned. `origin` names them in errors.
    pub fn from_bytes(bytes: Arc<[u8]>, config: &Config, layout: &Layout, origin: &Path) -> Result<Weights> {
        Weights::check(TensorFile::from_bytes(bytes, origin)?, config, layout, origin)
    }

    fn check(file: TensorFile, config: &Config, layout: &Layout, origin: &Path) -> Result<Weights> {
        let expected = families::stored(config, layout);
        let mut differences = Vec::new();
        let mut places = Vec::with_capacity(expected.len());
        for stored in &expected {
            match file.find(&stored.name) {
                Some(entry) if entry.shape == stored.shape => places.push(entry.place.clone()),
                Some(entry) => differences.push(format!(
                    "{} has the shape {:?}, expected {:?}",
                    stored.name, entry.shape, stored.shape
                )),
                None => differences.push(format!("{} of shape {:?} is missing", stored.name, stored.shape)),
            }
        }
        let mut names: Vec<&str> = expected.iter().map(|stored| stored.name.as_str()).collect();
        names.sort_unstable();
        let unknown = file.iter().filter(|tensor| names.binary_search(&tensor.name).is_err());
        differences.extend(unknown.map(|tensor| format!("{} is not part of the model", tensor.name)));
        if !differences.is_empty() {
            let more = differences.len().saturating_sub(MOST_DIFFERENCES);
            differences.truncate(MOST_DIFFERENCES);
            let mut problem = differences.join("; ");
            if more > 0 {
                problem.push_str(&format!("; and {more} more"));
            }
            return Err(Error::file(
                origin,
                format!("does not hold the model that its config.json describes: {problem}"),
                "put a model's config.json and model.safetensors of one save together",
            ));
        }
        let dtype = file.values(&places[layout.token_embedding.index()]).dtype();
        Ok(Weights { file, places, dtype })
    }

    /// One parameter's numbers, row by row as the layout has them.
    pub fn tensor(&self, id: ParameterId) -> Tensor<'_> {
        self.file.values(&self.places[id.index()])
    }

    /// How the matrices are encoded; each tensor may differ.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }
}
