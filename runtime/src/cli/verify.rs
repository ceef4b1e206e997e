//! `runtime verify`: everything that can be checked about a model without knowing what it learned.

use super::output::{Outcome, Output};
use clap::Args;
use formats::checkpoint::{self, Directory, Tensor};
use formats::{Error, Result, families};
use runtime::model::Model;
use std::path::PathBuf;

/// What a checkpoint's list of checksums is called.
const MANIFEST: &str = "MANIFEST";

/// What `runtime verify` takes.
#[derive(Args, Debug)]
pub struct Verify {
    /// A run, its model directory, or a directory in Hugging Face's convention
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
}

impl Verify {
    /// Runs the command: the files against each other, against their checksums, every value, and one forward pass.
    pub fn run(&self) -> Outcome {
        let directory = Directory::open(&self.model)?;
        let checkpoint = directory.path.parent().filter(|parent| parent.join(MANIFEST).exists());
        if let Some(checkpoint) = checkpoint {
            checkpoint::verify(checkpoint)?;
        }
        let tensors = every_value_is_finite(&directory)?;
        one_token_computes(&directory)?;

        let tokenizer = match &directory.tokenizer {
            Some(tokenizer) => {
                format!("{} tokens, the model has {}", tokenizer.vocabulary(), directory.config.vocabulary)
            }
            None => "none".into(),
        };
        let checksums = match checkpoint {
            Some(checkpoint) => format!("those of {}", checkpoint.display()),
            None => "none to check".into(),
        };
        Output::new().table(&[
            ("verified", directory.path.display().to_string()),
            ("tensors", format!("{tensors}, all {} values finite", directory.layout.parameters())),
            ("tokenizer", tokenizer),
            ("checksums", checksums),
        ])?;
        Ok(0)
    }
}

/// Finds the first value that is not finite and names its tensor as the file does. Gives the number of tensors.
fn every_value_is_finite(directory: &Directory) -> Result<usize> {
    let stored = families::stored(&directory.config, &directory.layout);
    for entry in &stored {
        let mut pieces = directory.weights.pieces(entry.id);
        let Some(piece) = pieces.find(|piece| piece.rows.start == entry.first_row) else { continue };
        let tensor = piece.values;
        let broken = match tensor {
            Tensor::F32(values) => values.iter().position(|value| !value.is_finite()),
            Tensor::F16(values) => values.iter().position(|value| !value.is_finite()),
            Tensor::Bf16(values) => values.iter().position(|value| !value.is_finite()),
        };
        if let Some(index) = broken {
            let value = tensor.get(index);
            return Err(Error::file(
                &directory.path,
                format!("tensor {} holds {value} at element {index}", entry.name),
                "use another checkpoint of the run, or save the model again",
            ));
        }
    }
    Ok(stored.len())
}

/// Finite values can still overflow on their way.
fn one_token_computes(directory: &Directory) -> Result<()> {
    let mut session = Model::open(&directory.path)?.session()?;
    let start = directory.generation.bos_token_id.unwrap_or(0);
    runtime::score::score(&mut session, &[start, start]).map(|_| ()).map_err(|error| match error {
        Error::Diverged(_) => Error::file(
            &directory.path,
            "computes logits that are not finite, though every value is",
            "use another checkpoint of the run, or save the model in a wider dtype",
        ),
        error => error,
    })
}
