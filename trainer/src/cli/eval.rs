//! `trainer eval`: the exact loss of a model over every window of a text.

use super::{Format, answer};
use formats::checkpoint::Directory;
use formats::{Error, Result};
use serde_json::json;
use std::f64::consts::LN_2;
use std::path::PathBuf;
use trainer::backend::cpu::Cpu;
use trainer::data::{Source, Text, windows};
use trainer::learner::{BatchShape, Learner};
use trainer::mixing::{Health, Load};
use trainer::presets;
use trainer::weights;

/// What `trainer eval` takes.
#[derive(clap::Args)]
pub struct Eval {
    /// A run, its model, or any model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text files, cut as training cuts them
    #[arg(long, value_name = "TEXT", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
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
            return Err(Error::file(
                &directory.path,
                "has no tokenizer.json",
                "copy the model's tokenizer beside it: its text cannot be cut without",
            ));
        };
        let text = Text::encode(tokenizer, &Source::read(&self.data)?)?;
        let block = directory.config.context;
        text.require(block)?;

        let weights = weights::arena(&directory.weights, &directory.layout);
        let threads =
            self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let shape = BatchShape { sequences: 1, block };
        // The optimiser's settings are of no consequence: nothing is updated.
        let options = presets::find("gpt-zero")?.optimizer();
        let mut learner = Learner::new(Cpu::new(threads)?, &directory.config, shape, &options)?;
        learner.load(&weights, &vec![0.0; weights.len()], &vec![0.0; weights.len()])?;

        let mut loss = |split: &[u32]| {
            let (inputs, targets) = windows(split, block);
            learner.evaluate(inputs, targets)
        };
        let (train_loss, val_loss) = (loss(text.training())?, loss(text.validation())?);
        // Those of the validation split, which came last.
        let experts: Vec<Health> = learner.loads().iter().map(Load::health).collect();
        let (_, targets) = windows(text.validation(), block);
        let bytes = tokenizer.decode(targets)?.len();
        let bits = val_loss * targets.len() as f64 / bytes as f64 / LN_2;
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
