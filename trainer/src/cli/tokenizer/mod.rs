//! `trainer tokenizer`: vocabularies learned and used.

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
}

impl Tokenizer {
    /// Does it.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Train(command) => command.run(),
        }
    }
}
