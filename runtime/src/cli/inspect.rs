//! `runtime inspect`: what a model is.

use super::output::{Outcome, Output, number};
use super::{Format, experts};
use clap::Args;
use formats::checkpoint::{Directory, Dtype};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What `runtime inspect` takes.
#[derive(Args, Debug)]
pub struct Inspect {
    /// A run, its model directory, or a directory in Hugging Face's convention
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A text: tells which of its tokens go to which experts
    #[arg(long, value_name = "TEXT")]
    data: Option<PathBuf>,
    /// How the result is told
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Inspect {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        let directory = Directory::open(&self.model)?;
        let (config, layout, weights) = (&directory.config, &directory.layout, &directory.weights);
        let parameters = layout.parameters();
        let active = layout.active_parameters();
        let stored = |dtype: Dtype| -> usize {
            let tensors = layout.iter().flat_map(|(id, _)| weights.pieces(id)).map(|piece| piece.values);
            tensors.filter(|tensor| tensor.dtype() == dtype).map(|tensor| tensor.len()).sum()
        };
        let dtypes = Dtype::ALL.map(|dtype| (dtype.name(), stored(dtype)));
        let dtypes = dtypes.into_iter().filter(|(_, count)| *count > 0);
        let path = directory.path.display().to_string();
        let censuses = match &self.data {
            Some(text) => experts::of_text(&self.model, text)?,
            None => vec![],
        };

        let mut output = Output::new();
        match self.format {
            Format::Json => {
                let dtypes: Map<String, Value> =
                    dtypes.map(|(name, count)| (name.to_string(), json!(count))).collect();
                let mut shape = json!(config);
                shape["norm_eps"] = number(config.norm_eps);
                shape["dropout"] = number(config.dropout);
                shape["rotary_base"] = number(config.rotary_base);
                let mut object = json!({
                    "path": path,
                    "parameters": parameters,
                    "active_parameters": active,
                    "bytes": weights.bytes(),
                    "dtype": weights.dtype().name(),
                    "dtypes": dtypes,
                    "experts": config.experts.map_or(0, |experts| experts.count),
                    "active_experts": config.experts.map_or(0, |experts| experts.active),
                    "context": config.context,
                    "vocabulary": config.vocabulary,
                    "tokenizer": directory.tokenizer.is_some(),
                    "config": shape,
                });
                if self.data.is_some() {
                    object["layers"] = experts::object(&censuses);
                }
                output.json(&object)?;
            }
            Format::Text => {
                let dtypes: Vec<String> = dtypes.map(|(name, count)| format!("{count} in {name}")).collect();
                let tokenizer = match &directory.tokenizer {
                    Some(tokenizer) => format!("{} tokens", tokenizer.vocabulary()),
                    None => "none".into(),
                };
                output.table(&[
                    ("path", path),
                    ("parameters", parameters.to_string()),
                    ("active", format!("{active} for one token")),
                    ("bytes", weights.bytes().to_string()),
                    ("dtypes", dtypes.join(", ")),
                    ("experts", experts::sentence(config)),
                    ("context", config.context.to_string()),
                    ("vocabulary", config.vocabulary.to_string()),
                    ("tokenizer", tokenizer),
                    ("width", config.width.to_string()),
                    ("layers", config.layers.to_string()),
                    ("heads", config.heads.to_string()),
                    ("feed-forward", config.feed_forward.to_string()),
                ])?;
                output.write(experts::lines(&censuses).as_bytes())?;
                output.flush()?;
            }
        }
        Ok(0)
    }
}
