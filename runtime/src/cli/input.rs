//! Text and ids as a command takes them.

use super::parse_ids;
use clap::Args;
use formats::checkpoint::source;
use formats::{Error, Result};
use runtime::model::Model;
use std::io::Read;
use std::path::PathBuf;

/// Longest text that is read.
const MOST_BYTES: u64 = 1 << 30;

/// What generation continues.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct Prompt {
    /// The text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file that holds the text to continue
    #[arg(long, alias = "prompt_file", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// The token ids to continue
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    ids: Option<String>,
    /// Read the text to continue from standard input
    #[arg(value_name = "-", value_parser = ["-"])]
    stdin: Option<String>,
}

impl Prompt {
    /// The ids to continue; none if no prompt was given. Special tokens written in it are recognised.
    pub fn read(&self, model: &Model) -> Result<Vec<u32>> {
        let text = match (&self.prompt, &self.prompt_file, &self.ids, &self.stdin) {
            (Some(text), ..) => text.clone(),
            (_, Some(file), ..) => source::read_text(file, MOST_BYTES)?,
            (_, _, Some(ids), _) => return parse_ids(ids),
            (.., Some(_)) => standard_input()?,
            _ => return Ok(Vec::new()),
        };
        model.require_tokenizer()?.encode_prompt(&text)
    }
}

/// What is scored.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Text {
    /// The text to score
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// A file that holds the text to score
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The token ids to score
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    ids: Option<String>,
}

impl Text {
    /// The ids to score.
    pub fn read(&self, model: &Model) -> Result<Vec<u32>> {
        let text = match (&self.text, &self.file, &self.ids) {
            (Some(text), ..) => text.clone(),
            (_, Some(file), _) => source::read_text(file, MOST_BYTES)?,
            (.., ids) => return parse_ids(ids.as_deref().unwrap_or_default()),
        };
        model.require_tokenizer()?.encode(&text)
    }
}

fn standard_input() -> Result<String> {
    let mut bytes = Vec::new();
    let refuse = |problem: String, help: &str| Error::file("standard input", problem, help);
    std::io::stdin()
        .lock()
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(format!("cannot be read: {error}"), "pipe a text into this command"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(refuse(format!("has more than {MOST_BYTES} bytes"), "give a shorter text"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        refuse(format!("is not UTF-8 text (byte {place})"), "convert it to UTF-8")
    })
}
