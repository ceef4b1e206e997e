//! A run that trains a model further: its weights begin as those of a model directory of any family, ours or another,
//! and its text is read with that model's tokenizer.
//!
//! What the model is stays: what is written is of the same family and opens where the first one did. Moments begin at
//! zero, and what only training has (the weights of a router's noise) begins as always.

use crate::data::{Source, Text};
use crate::options::Recipe;
use crate::run::Run;
use crate::upcycle::refuse_another_shape;
use crate::weights::read;
use formats::checkpoint::{Directory, GenerationConfig};
use formats::config::{Config, Experts};
use formats::layout::Layout;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::path::Path;

/// The text of a run as ids, what made them, and how the model wants to be sampled.
///
/// A run that has begun has its model's tokenizer itself, and needs the directory it began from no more.
pub fn learn(recipe: &Recipe, run: Option<&Run>) -> Result<(Tokenizer, Text, GenerationConfig)> {
    let source = Source::read(&recipe.data)?;
    let plain = |source| {
        let (tokenizer, text) = Text::learn(recipe.options.tokenizer, source)?;
        Ok((tokenizer, text, GenerationConfig::plain()))
    };
    let Some(from) = &recipe.from else { return plain(&source) };
    let own = run.map(|run| run.path().join("model")).filter(|model| model.is_dir());
    let directory = match own.and_then(|model| Directory::open(&model).ok()) {
        Some(directory) => directory,
        None => Directory::open(from)?,
    };
    let generation = directory.generation;
    if let Some(tokenizer) = directory.tokenizer {
        let text = Text::encode(&tokenizer, &source)?;
        return Ok((tokenizer, text, generation));
    }
    let (tokenizer, text, _) = plain(&source)?;
    if tokenizer.vocabulary() != directory.config.vocabulary {
        return Err(Error::config(
            from.display().to_string(),
            "vocabulary",
            directory.config.vocabulary,
            format!(
                "the {} of the text's tokenizer, as the directory holds none; put the model's tokenizer.json into it, \
                 or choose another --tokenizer",
                tokenizer.vocabulary()
            ),
        ));
    }
    Ok((tokenizer, text, generation))
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
