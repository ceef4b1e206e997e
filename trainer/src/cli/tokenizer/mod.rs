//! `trainer tokenizer`: what makes and uses tokenizers.

mod encode;

use formats::Result;

/// What `trainer tokenizer` takes.
#[derive(clap::Args)]
pub struct Tokenizer {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Turn text into token ids: numbers on standard output, or a shard to train from
    Encode(encode::Encode),
}

impl Tokenizer {
    /// Does it.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Encode(command) => command.run(),
        }
    }
}
