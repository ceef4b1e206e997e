//! `trainer tokenizer`: vocabularies learned and used.

mod encode;
mod train;

use clap::Subcommand;
use formats::Result;

/// What `trainer tokenizer` takes.
#[derive(clap::Args)]
pub struct Tokenizer {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Learn a byte-level vocabulary from text
    Train(train::Train),
    /// Turn text into token ids: numbers on standard output, or a shard to train from
    Encode(encode::Encode),
}

impl Tokenizer {
    /// Does it.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Train(command) => command.run(),
            What::Encode(command) => command.run(),
        }
    }
}
