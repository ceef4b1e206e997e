//! A model written for other tools, from any directory that opens.
//!
//! - `gguf`: the file format of llama.cpp: header, metadata, tensors one after the other
//! - `architectures`: which of llama.cpp's models computes what ours does, and under which names it has the parameters
//! - `vocabulary`: a tokenizer in llama.cpp's terms
//! - `huggingface`: a directory in a public family's own names
//!
//! Works over the layout's roles, whatever family the source is of. A part that the target cannot compute is refused by
//! name. The source stays mapped and one parameter at a time is widened, so that a large model needs little memory.

mod architectures;
mod gguf;
mod huggingface;
mod vocabulary;

use formats::checkpoint::{Directory, Dtype};
use formats::{Error, Result};
use std::path::Path;

/// What the file or directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One file for llama.cpp.
    Gguf,
    /// A directory for `transformers`.
    HuggingFace,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The name that the target gives such a model.
    pub architecture: String,
    /// Number of tensors.
    pub tensors: usize,
    /// What the reader of the file should know about it.
    pub notes: Vec<String>,
}

/// Writes the model of `directory` to `out`, which must not exist: whole or not at all. `progress` is told the bytes of
/// weights written and how many there will be.
pub fn export(
    directory: &Directory,
    target: Target,
    dtype: Dtype,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::Usage(format!(
            "{} exists already\n  help: remove it, or choose another --out",
            out.display()
        )));
    }
    match target {
        Target::Gguf => gguf::export(directory, dtype, out, progress),
        Target::HuggingFace => huggingface::export(directory, dtype, out, progress),
    }
}

/// A part of a model that a target lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Misfit {
    field: &'static str,
    found: String,
    expected: String,
}

/// The parts of which each is checked by its condition; those that fail.
fn misfits<const N: usize>(parts: [(bool, &'static str, String, String); N]) -> Vec<Misfit> {
    let failed = parts.into_iter().filter(|(fits, ..)| !fits);
    failed.map(|(_, field, found, expected)| Misfit { field, found, expected }).collect()
}

/// The refusal that names every part in the way.
fn refuse(directory: &Directory, target: &str, misfits: &[Misfit]) -> Error {
    let Some((first, others)) = misfits.split_first() else {
        return Error::Internal(format!("nothing hinders {target}, and it was refused"));
    };
    let others = others
        .iter()
        .map(|part| format!("; {} is {}, expected {}", part.field, part.found, part.expected))
        .collect::<String>();
    let expected = format!("{}{others}: {target} has no such part", first.expected);
    Error::config(directory.path.display().to_string(), first.field, &first.found, expected)
}

/// A value as `config.json` spells it.
fn spelt(value: impl serde::Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_default().trim_matches('"').to_owned()
}
