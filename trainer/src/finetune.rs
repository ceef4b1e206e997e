//! A run that trains a model further: its weights begin as those of a model directory of any family, ours or another,
//! and its text is read with that model's tokenizer.
//!
//! What the model is stays: what is written is of the same family and opens where the first one did. Moments begin at
//! zero, and what only training has (the weights of a router's noise) begins as always.

use crate::options::Recipe;
use crate::upcycle::refuse_another_shape;
use crate::weights::read;
use formats::checkpoint::{Directory, GenerationConfig};
use formats::config::{Config, Experts};
use formats::layout::Layout;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::path::{Path, PathBuf};

/// What a run takes from the model it begins from; a run that begins from none takes nothing.
///
/// A run that has begun has its model's tokenizer itself, and needs the directory it began from no more.
pub struct Begun {
    /// The directory.
    path: Option<PathBuf>,
    /// The tokenizer it holds.
    pub tokenizer: Option<Tokenizer>,
    generation: Option<GenerationConfig>,
    vocabulary: Option<usize>,
}

impl Begun {
    /// Looks into the directory that `recipe` names, or into the run's newest `checkpoint`.
    pub fn open(recipe: &Recipe, checkpoint: Option<&Path>) -> Result<Begun> {
        let Some(from) = &recipe.from else {
            return Ok(Begun { path: None, tokenizer: None, generation: None, vocabulary: None });
        };
        let path = checkpoint.map_or(from.clone(), |checkpoint| checkpoint.join("model"));
        let Directory { tokenizer, generation, config, .. } = Directory::open(&path)?;
        Ok(Begun {
            path: Some(path),
            tokenizer,
            generation: Some(generation),
            vocabulary: Some(config.vocabulary),
        })
    }

    /// How the model wants to be sampled: as the one it begins from, else plainly, from one end of a text to the next
    /// where `tokenizer` has such a token.
    pub fn generation(&self, tokenizer: &Tokenizer) -> GenerationConfig {
        let end = tokenizer.end_of_text();
        self.generation.clone().unwrap_or_else(|| GenerationConfig {
            eos_token_id: end.into_iter().collect(),
            bos_token_id: end,
            ..GenerationConfig::plain()
        })
    }

    /// The ids of the model whose text `tokenizer` makes. A model may know more than its own tokenizer gives; another
    /// one must fit exactly.
    pub fn vocabulary(&self, tokenizer: &Tokenizer) -> Result<usize> {
        let found = tokenizer.vocabulary();
        match (self.vocabulary, &self.path) {
            (Some(vocabulary), Some(path)) if self.tokenizer.is_none() && vocabulary != found => {
                let expected = format!(
                    "the {found} of the text's tokenizer, as the directory holds none; put the model's \
                     tokenizer.json into it, or choose another --tokenizer"
                );
                Err(Error::config(path.display().to_string(), "vocabulary", vocabulary, expected))
            }
            (vocabulary, _) => Ok(vocabulary.unwrap_or(found)),
        }
    }
}

/// Overwrites the weights of `arena` with those of the model in `directory`, which must be what `config` says.
pub fn copy(directory: &Path, config: &Config, layout: &Layout, arena: &mut [f32]) -> Result<()> {
    let model = Directory::open(directory)?;
    let stored = |experts: Experts| Experts { noise: false, ..experts };
    let wanted =
        Config { experts: config.experts.map(stored), dropout: model.config.dropout, ..config.clone() };
    refuse_another_shape(directory, &model.config, &wanted, "that of the run")?;
    for (id, parameter) in layout.iter().filter(|(_, parameter)| parameter.is_stored()) {
        read(&model.weights, &model.layout, id, &mut arena[parameter.range()]);
    }
    Ok(())
}
