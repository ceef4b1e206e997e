//! `trainer inspect data`: what a run would learn from.

use super::answer;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::path::PathBuf;
use trainer::data::{Batch, Corpus, Data, HELD_OUT, Request, Side, TokenizerSource};
use trainer::train::grouped;

/// What `trainer inspect` takes.
#[derive(clap::Args)]
pub struct Inspect {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The split, the vocabulary, and what the first block asks of a model; shards are read whole and verified
    Data(Shown),
}

#[derive(clap::Args)]
struct Shown {
    /// Text files, read byte for byte, one after another, and token shards
    #[arg(long, value_name = "TEXT|SHARD", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// For each file of --data, in their order, its part of what is read
    #[arg(long, value_name = "N", num_args = 1..)]
    data_weight: Vec<f64>,
    /// Tokens of a block
    #[arg(long, default_value_t = 8)]
    block: usize,
    /// The part that validates
    #[arg(long, value_parser = super::part, default_value_t = HELD_OUT)]
    held_out: f64,
    /// How text becomes ids: characters, bytes, a tokenizer.json, or a model that has one
    #[arg(long, value_name = "WORD|PATH", default_value = "characters")]
    tokenizer: String,
}

impl Inspect {
    /// Prints it.
    pub fn run(&self) -> Result<()> {
        let What::Data(shown) = &self.what;
        let block = shown.block;
        if block == 0 {
            return Err(Error::Usage("--block is 0, expected at least 1".to_owned()));
        }
        let how = TokenizerSource::from(shown.tokenizer.clone());
        let request =
            Request { paths: &shown.data, weights: &shown.data_weight, held_out: shown.held_out, block };
        let (tokenizer, data) = Data::open(&request, how.given()?)?;
        data.notes().iter().for_each(|note| eprintln!("{note}"));
        let mut page = format!(
            "training   {} tokens\nvalidation {} tokens\nvocabulary {}\n",
            grouped(data.tokens(Side::Training)),
            grouped(data.tokens(Side::Validation)),
            tokenizer.vocabulary()
        );
        let window = match &data {
            Data::Text(text) => {
                if how == TokenizerSource::Characters {
                    page += &characters(&tokenizer)?;
                }
                text.training()[..block + 1].to_vec()
            }
            Data::Corpus(corpus) => {
                page += &files(corpus, block)?;
                let mut batch = Batch::default();
                corpus.read(Side::Training, 0, &mut batch)?;
                batch.inputs.into_iter().chain(batch.targets.last().copied()).collect()
            }
        };
        for seen in 1..=block {
            page += &format!("For input {:?}, target is {}\n", &window[..seen], window[seen]);
        }
        answer(&page)
    }
}

fn characters(tokenizer: &Tokenizer) -> Result<String> {
    let ids: Vec<u32> = (0..tokenizer.vocabulary() as u32).collect();
    let characters = tokenizer.decode(&ids)?;
    Ok(format!("characters {:?}\n", String::from_utf8_lossy(&characters)))
}

/// A corpus file by file, its shards verified.
fn files(corpus: &Corpus, block: usize) -> Result<String> {
    for shard in corpus.shards() {
        shard.verify()?;
    }
    let [training, validation] = Side::ALL.map(|side| grouped(corpus.windows(side)));
    let mut page = format!("windows    {training} training and {validation} validation of {block} tokens\n");
    for told in corpus.told() {
        let [training, validation] = told.documents.map(grouped);
        let split = match told.by_document {
            true => format!("{training} documents train, {validation} are held out"),
            false => "its end is held out".to_owned(),
        };
        let share =
            told.share.map_or(String::new(), |share| format!(", {:.2} % of what is read", 100.0 * share));
        let [training, validation] = told.tokens.map(grouped);
        page += &format!(
            "file       {}: {split}; {training} and {validation} tokens{share}\n",
            told.path.display()
        );
    }
    Ok(page)
}
