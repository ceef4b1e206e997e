//! `trainer inspect data`: what a run would learn from.

use super::answer;
use formats::{Error, Result};
use std::path::PathBuf;
use trainer::data::{Alphabet, Source, Text};
use trainer::train::grouped;

/// What `trainer inspect` takes.
#[derive(clap::Args)]
pub struct Inspect {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The split, the vocabulary, and what the first block asks of a model
    Data {
        /// Text files, read byte for byte, one after another
        #[arg(long, value_name = "TEXT", num_args = 1.., required = true)]
        data: Vec<PathBuf>,
        /// Tokens of a block
        #[arg(long, default_value_t = 8)]
        block: usize,
        /// How text becomes ids
        #[arg(long, value_parser = ["characters", "bytes"], default_value = "characters")]
        tokenizer: String,
    },
}

impl Inspect {
    /// Prints it.
    pub fn run(&self) -> Result<()> {
        let What::Data { data, block, tokenizer } = &self.what;
        if *block == 0 {
            return Err(Error::Usage("--block is 0, expected at least 1".to_owned()));
        }
        let alphabet = if tokenizer == "bytes" { Alphabet::Bytes } else { Alphabet::Characters };
        let (tokenizer, text) = Text::learn(alphabet, &Source::read(data)?)?;
        text.require(*block)?;
        let mut page = format!(
            "training   {} tokens\nvalidation {} tokens\nvocabulary {}\n",
            grouped(text.training().len() as u64),
            grouped(text.validation().len() as u64),
            tokenizer.vocabulary()
        );
        if alphabet == Alphabet::Characters {
            let ids: Vec<u32> = (0..tokenizer.vocabulary() as u32).collect();
            let characters = tokenizer.decode(&ids)?;
            page += &format!("characters {:?}\n", String::from_utf8_lossy(&characters));
        }
        let window = &text.training()[..block + 1];
        for seen in 1..=*block {
            page += &format!("For input {:?}, target is {}\n", &window[..seen], window[seen]);
        }
        answer(&page)
    }
}
