//! What `trainer` is asked on its command line, and how it answers.

mod bench;
mod eval;
mod export;
mod inspect;
mod presets;
mod selfcheck;
mod tokenizer;

use clap::{Parser, Subcommand, ValueEnum};
use formats::{Error, Result};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use trainer::options::{Flags, Request};
use trainer::train::{End, train};

/// Trains GPTs from text and writes what `runtime` runs.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  trainer train --preset gpt-zero --data input.txt --out runs/zero
  trainer train --resume --out runs/zero
  trainer train --from gpt2 --data input.txt --out runs/tuned --block 256 --learning-rate 1e-4
  trainer eval --model runs/zero --data input.txt
  trainer export --model runs/zero --to gguf --out zero.gguf
  trainer presets

Exit codes: 0 done, 1 our bug, 2 usage, 3 bad file, 4 bad config, 5 cannot write, 6 device, 7 memory,
8 locked by another run, 9 diverged, 130/143 interrupted with the state saved"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model from text
    Train(Train),
    /// The exact loss of a model over every window of a text
    Eval(eval::Eval),
    /// The presets with their sizes
    Presets(presets::Presets),
    /// Learn a vocabulary, or turn text into ids with one
    Tokenizer(tokenizer::Tokenizer),
    /// Look at what a run would learn from
    Inspect(inspect::Inspect),
    /// Write a model for other tools
    Export(export::Export),
    /// Time training steps
    Bench(bench::Bench),
    /// Check every operation of a device, forward and backward, and the training of small models, against the CPU
    Selfcheck(selfcheck::Selfcheck),
}

/// What `trainer train` takes.
#[derive(clap::Args)]
struct Train {
    /// The named run to start from; see `trainer presets`
    #[arg(long)]
    preset: Option<String>,
    /// A TOML file of options; it overrides the preset, and flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Text files to learn from, read byte for byte, one after another, and token shards
    #[arg(long, value_name = "TEXT|SHARD", num_args = 1..)]
    data: Vec<PathBuf>,
    /// For each file of --data, in their order, its part of what is read; without, all is read evenly
    #[arg(long, value_name = "N", num_args = 1..)]
    data_weight: Vec<f64>,
    /// A dense model that each expert begins as a copy of (two or more active experts)
    #[arg(long, value_name = "DIR")]
    upcycle: Option<PathBuf>,
    /// A model directory of a known family to train further: it says what the model is and gives the tokenizer
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The run directory
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Continue the run in --out from its newest whole checkpoint, or start it
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    flags: Flags,
}

/// How an answer is written.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// One object on one line.
    Json,
}

/// Reads the command line, does what it says, and turns what comes of it into an exit code.
pub fn run() -> ExitCode {
    ExitCode::from(obey().unwrap_or_else(|error| {
        // Nothing is left to tell anybody if standard error is gone.
        let _ = writeln!(std::io::stderr(), "error: {error}");
        error.exit_code()
    }))
}

fn obey() -> Result<u8> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            // As above; the exit code still tells.
            let _ = error.print();
            return Ok(2);
        }
        Err(help) => return answer(&help.render().to_string()).map(|()| 0),
    };
    match arguments.command {
        Command::Train(command) => {
            let Train { preset, config, data, data_weight, upcycle, from, out, resume, flags } = command;
            let request = Request { preset, config, data, data_weight, upcycle, from, flags };
            train(&request, &out, resume).map(|end| match end {
                End::Done => 0,
                End::Interrupted { exit_code } => exit_code,
            })
        }
        Command::Eval(command) => command.run().map(|()| 0),
        Command::Presets(command) => command.run().map(|()| 0),
        Command::Export(command) => command.run().map(|()| 0),
        Command::Tokenizer(command) => command.run().map(|()| 0),
        Command::Inspect(command) => command.run().map(|()| 0),
        Command::Bench(command) => command.run().map(|()| 0),
        Command::Selfcheck(command) => command.run().map(|()| 0),
    }
}

/// A part of a whole, as a flag.
fn part(text: &str) -> std::result::Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..1.0).contains(part));
    part.ok_or_else(|| "expected a number from 0 up to, but not, 1".to_owned())
}

/// Writes an answer to standard output; a reader that left is no error.
fn answer(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::write("standard output", error)),
        _ => Ok(()),
    }
}
