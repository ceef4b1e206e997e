//! `trainer eval`: the exact loss of a model over every window of a text.

use super::{Format, answer};
use formats::checkpoint::{Directory, no_tokenizer};
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use serde_json::json;
use std::f64::consts::LN_2;
use std::path::PathBuf;
use trainer::backend::Backend;
use trainer::backend::choice::{Job, carry_out};
use trainer::data::{Batch, Corpus, Data, HELD_OUT, Request, Side, windows};
use trainer::device::Precision;
use trainer::evaluator::Evaluator;
use trainer::mixing::{Health, Load};
use trainer::options;
use trainer::weights;

/// Tokens of a corpus that are evaluated at once; fixed, because it orders a sum.
const TOKENS_AT_ONCE: u64 = 1 << 16;

/// What `trainer eval` takes.
#[derive(clap::Args)]
pub struct Eval {
    /// A run, its model, or any model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text files and token shards, split as training splits them
    #[arg(long, value_name = "TEXT|SHARD", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The part that validates, as the run was told it
    #[arg(long, value_parser = super::part, default_value_t = HELD_OUT)]
    held_out: f64,
    /// Where to compute; auto is cuda where it can be used
    #[arg(long, value_enum, default_value_t)]
    device: options::Device,
    /// Of activations and products; bf16 on cuda and f32 on the CPU unless set
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Threads; all there are by default
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Eval {
    /// Mean loss over every window of both splits that does not overlap another.
    pub fn run(&self) -> Result<()> {
        let directory = Directory::open(&self.model)?;
        let Some(tokenizer) = &directory.tokenizer else {
            return Err(match directory.foreign_tokenizer {
                Some(_) => no_tokenizer(&directory.path, directory.foreign_tokenizer.as_ref()),
                None => Error::file(
                    &directory.path,
                    "has no tokenizer.json",
                    "copy the model's tokenizer beside it: its text cannot be cut without",
                ),
            });
        };
        let block = directory.config.context;
        let request = Request { paths: &self.data, weights: &[], held_out: self.held_out, block };
        let (tokenizer, data) = Data::open(&request, Some(tokenizer.clone()))?;
        data.notes().iter().for_each(|note| eprintln!("{note}"));

        let sides = Sides { directory: &directory, tokenizer: &tokenizer, data: &data, block };
        let [training, validation] = carry_out(sides, self.device, self.precision, self.threads)?;
        let (train_loss, Exact { loss: val_loss, tokens, bytes, loads }) = (training.loss, validation);
        let experts: Vec<Health> = loads.iter().map(Load::health).collect();
        let bits = val_loss * tokens as f64 / bytes as f64 / LN_2;
        match self.format {
            Format::Text => {
                let mut lines = format!(
                    "train loss {train_loss:.4}, val loss {val_loss:.4} nats per token; val {bits:.4} bits per byte\n"
                );
                experts.iter().for_each(|layer| lines += &told(layer));
                answer(&lines)
            }
            Format::Json => {
                let mut object = json!({
                    "train_loss": train_loss, "val_loss": val_loss, "val_bits_per_byte": bits
                });
                if !experts.is_empty() {
                    object["experts"] = json!(experts);
                }
                answer(&format!("{object}\n"))
            }
        }
    }
}

/// Both sides of a text, for a device.
struct Sides<'a> {
    directory: &'a Directory,
    tokenizer: &'a Tokenizer,
    data: &'a Data,
    block: usize,
}

impl Job for Sides<'_> {
    type Output = [Exact; 2];

    fn on<B: Backend>(self, backend: B, _: &str) -> Result<[Exact; 2]> {
        let Sides { directory, tokenizer, data, block } = self;
        let mut evaluator = Evaluator::new(backend, &directory.config, block)?;
        evaluator.load(&weights::arena(&directory.weights, &directory.layout))?;
        let mut of = |side| match data {
            Data::Text(text) => of_text(&mut evaluator, tokenizer, text.side(side), block),
            Data::Corpus(corpus) => of_corpus(&mut evaluator, tokenizer, corpus, side, block),
        };
        let [training, validation] = Side::ALL;
        Ok([of(training)?, of(validation)?])
    }
}

/// The exact loss of one side.
struct Exact {
    /// Nats a token.
    loss: f64,
    tokens: u64,
    /// Bytes of text that the predicted tokens stand for.
    bytes: u64,
    loads: Vec<Load>,
}

fn of_text<B: Backend>(
    evaluator: &mut Evaluator<B>,
    tokenizer: &Tokenizer,
    split: &[u32],
    block: usize,
) -> Result<Exact> {
    let (inputs, targets) = windows(split, block);
    let loss = evaluator.evaluate(inputs, targets)?;
    let bytes = tokenizer.decode_continued(targets)?.len() as u64;
    Ok(Exact { loss, tokens: targets.len() as u64, bytes, loads: evaluator.loads().to_vec() })
}

/// The same of a corpus, a part at a time. The token that ends a document is predicted and stands for no text.
fn of_corpus<B: Backend>(
    evaluator: &mut Evaluator<B>,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    side: Side,
    block: usize,
) -> Result<Exact> {
    let end = tokenizer.end_of_text();
    let (windows, at_once) = (corpus.windows(side), (TOKENS_AT_ONCE / block as u64).max(1));
    let mut exact = Exact { loss: 0.0, tokens: 0, bytes: 0, loads: vec![] };
    let (mut batch, mut window) = (Batch::default(), 0);
    while window < windows {
        let next = windows.min(window + at_once);
        batch.clear();
        (window..next).try_for_each(|window| corpus.read(side, window, &mut batch))?;
        let tokens = batch.targets.len() as u64;
        exact.loss += evaluator.evaluate(&batch.inputs, &batch.targets)? * tokens as f64;
        exact.tokens += tokens;
        let text = batch.targets.iter().filter(|id| Some(**id) != end);
        exact.bytes +=
            text.filter_map(|&id| tokenizer.token(id)).map(|token| token.len() as u64).sum::<u64>();
        match exact.loads.is_empty() {
            true => exact.loads = evaluator.loads().to_vec(),
            false => exact.loads.iter_mut().zip(evaluator.loads()).for_each(|(sum, load)| sum.merge(load)),
        }
        window = next;
    }
    exact.loss /= exact.tokens as f64;
    Ok(exact)
}

/// One layer's experts over the validation split, as a line: the numbers, then each expert's share.
fn told(layer: &Health) -> String {
    let shares: Vec<String> = layer.load.iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
    format!(
        "layer {:<3} load entropy {:.3}  maxvio {:.3}  dead {}  router entropy {:.3}  % of choices {}\n",
        layer.layer,
        layer.load_entropy,
        layer.max_violation,
        layer.dead,
        layer.router_entropy,
        shares.join(" ")
    )
}
