//! `runtime score`: how probable a model finds a text.

use super::input::Text;
use super::output::{Outcome, Output, number};
use super::{Format, Opening, SessionFlags};
use clap::Args;
use serde_json::{Value, json};
use std::f64::consts::LN_2;

/// What `runtime score` takes.
#[derive(Args, Debug)]
pub struct Score {
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    session: SessionFlags,
    /// How the result is told
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Score {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        let model = self.opening.open()?;
        let ids = self.text.read(&model)?;
        let mut session = model.session_with(&self.session.options())?;
        let logprobs =
            runtime::score::score(&mut session, &ids).map_err(|error| self.opening.blame(error))?;

        let nll = logprobs.iter().fold(0.0, |sum, &logprob| sum - f64::from(logprob));
        let scored = logprobs.len();
        let nll_per_token = (scored > 0).then(|| nll / scored as f64);
        // The first id is given, not predicted, so its bytes do not count.
        let bytes = model.tokenizer().map(|tokenizer| -> usize {
            ids[1..].iter().map(|&id| tokenizer.token(id).map_or(0, <[u8]>::len)).sum()
        });
        let bits_per_byte = bytes.filter(|&bytes| bytes > 0).map(|bytes| nll / LN_2 / bytes as f64);

        let mut output = Output::new();
        match self.format {
            Format::Json => {
                let first = std::iter::once(Value::Null);
                let logprobs: Vec<Value> = first.chain(logprobs.iter().map(|&value| number(value))).collect();
                output.json(&json!({
                    "ids": ids,
                    "logprobs": logprobs,
                    "nll": nll,
                    "nll_per_token": nll_per_token,
                    "bits_per_byte": bits_per_byte,
                }))?;
            }
            Format::Text => {
                let optional = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
                output.table(&[
                    ("ids", ids.len().to_string()),
                    ("nll", format!("{nll:.4} nats")),
                    ("nll per token", optional(nll_per_token)),
                    ("bits per byte", optional(bits_per_byte)),
                ])?;
            }
        }
        Ok(0)
    }
}
