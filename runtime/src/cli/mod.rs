//! The command line: what it takes, where its output goes, and what its exit code says. One room a command.

mod bench;
mod chat;
mod experts;
mod generate;
mod input;
mod inspect;
mod interrupt;
mod output;
mod roof;
mod sampling;
mod score;
mod verify;

use clap::{Args, Parser, Subcommand, ValueEnum};
use formats::{Error, Result};
use output::{Halt, Outcome, Output, note};
use runtime::model::{Model, ModelOptions};
use runtime::session::{CacheType, SessionOptions};
use std::path::PathBuf;

/// Most threads that can be asked for.
const MOST_THREADS: usize = 1024;

/// Runs what `trainer` wrote.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Examples:
  runtime generate --model runs/zero --prompt ROMEO: -n 200
  runtime score --model runs/zero --text 'To be, or not to be' --format json
  runtime bench --model runs/zero

Exit codes: 0 done or the reader left, 1 our bug, 2 usage, 3 bad model file, 4 bad config,
5 cannot write, 6 device, 7 memory, 130/143 interrupted"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate text.
    Generate(generate::Generate),
    /// Talk with a model, line by line.
    Chat(chat::Chat),
    /// Tell how probable a model finds a text.
    Score(score::Score),
    /// Tell what a model is.
    Inspect(inspect::Inspect),
    /// Measure a model's speed on this machine.
    Bench(bench::Bench),
    /// Check everything that can be checked about a model.
    Verify(verify::Verify),
}

/// Runs the command line of this process and gives its exit code.
pub fn main() -> u8 {
    match run() {
        Ok(code) => code,
        Err(Halt::ReaderLeft) => 0,
        Err(Halt::Failed(error)) => {
            if !matches!(error, Error::Cancelled) {
                note(format_args!("error: {error}"));
            }
            error.exit_code()
        }
    }
}

fn run() -> Outcome {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // Nothing can be said where stderr is closed; the exit code still tells.
            let _ = error.print();
            return Ok(2);
        }
        Err(help) => {
            let mut output = Output::new();
            output.write(help.render().to_string().as_bytes())?;
            output.flush()?;
            return Ok(0);
        }
    };
    match cli.command {
        Command::Generate(command) => command.run(),
        Command::Chat(command) => command.run(),
        Command::Score(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Verify(command) => command.run(),
    }
}

/// Which model, and how many threads run it.
#[derive(Args, Debug)]
struct Opening {
    /// A run, its model directory, or a directory in Hugging Face's convention
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Threads that compute; by default as many as the model is worth
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
    /// Bytes of experts that may stay in memory, such as 2GiB; the text is the same, whatever it is
    #[arg(long, alias = "expert_budget", value_name = "BYTES", value_parser = bytes)]
    expert_budget: Option<u64>,
    /// Hold a copy of the weights in memory for decoding, in fewer bits where that is faster, instead of reading them where the
    /// file is mapped: starts later, takes more memory, and decodes faster; the text is the same
    #[arg(long, conflicts_with = "expert_budget")]
    hold: bool,
}

impl Opening {
    fn open(&self) -> Result<Model> {
        let options = ModelOptions {
            threads: self.threads,
            expert_budget: self.expert_budget,
            hold: self.hold,
            ..ModelOptions::default()
        };
        Model::open_with(&self.model, &options)
    }

    /// The error of a model that computed something that is no number: what is wrong is its file.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::Diverged(_) => Error::file(
                &self.model,
                "computes logits that are not finite",
                "`runtime verify` names the damaged tensor; use another checkpoint",
            ),
            error => error,
        }
    }
}

/// How a session is made.
#[derive(Args, Debug)]
struct SessionFlags {
    /// How keys and values are kept
    #[arg(long, value_enum, default_value = "f16")]
    cache: Cache,
    /// Most ids of a prompt computed side by side
    #[arg(long, alias = "prefill_chunk", value_name = "N", value_parser = positive)]
    prefill_chunk: Option<usize>,
}

impl SessionFlags {
    fn options(&self) -> SessionOptions {
        let usual = SessionOptions::default();
        let cache = match self.cache {
            Cache::F16 => CacheType::F16,
            Cache::F32 => CacheType::F32,
        };
        SessionOptions { cache, chunk: self.prefill_chunk.unwrap_or(usual.chunk), ..usual }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    F16,
    F32,
}

/// How a result is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Ids as numbers, with commas or blanks between them.
fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let pieces = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| {
            piece.parse().map_err(|_| {
                Error::Usage(format!("{piece:?} is no token id; ids are numbers with commas between them"))
            })
        })
        .collect()
}

/// A number of bytes, with a unit or without.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
    ];
    let unit = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (digits, size) = unit.unwrap_or((text, 1));
    let count: Option<u64> = digits.trim().parse().ok();
    count
        .and_then(|count| count.checked_mul(size))
        .ok_or_else(|| "expected a number of bytes, such as 500000000, 512MiB or 2G".into())
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a number, 1 or more".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    positive(text)
        .ok()
        .filter(|&number| number <= MOST_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MOST_THREADS}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        assert_eq!(parse_ids("1,2,3").expect("ids"), [1, 2, 3]);
        assert_eq!(parse_ids(" 7, 8\n9 ").expect("ids"), [7, 8, 9]);
        for wrong in ["a", "1,-2", "4294967296", "1.5"] {
            assert!(matches!(parse_ids(wrong), Err(Error::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn sampling_flags_have_both_spellings() {
        let parse = |words: &[&str]| {
            let words = ["runtime", "generate", "--model", "m"].iter().chain(words);
            Cli::try_parse_from(words).map(|_| ()).map_err(|error| error.kind())
        };
        for flag in [
            "--temperature",
            "--temp",
            "--top-k",
            "--top_k",
            "--top-p",
            "--top_p",
            "--min-p",
            "--min_p",
            "--repetition-penalty",
            "--repetition_penalty",
            "--repeat-penalty",
            "--repeat_penalty",
            "-n",
            "--max-new-tokens",
            "--max_new_tokens",
            "--n-predict",
            "--seed",
            "--prefill_chunk",
        ] {
            assert_eq!(parse(&[flag, "1"]), Ok(()), "{flag}");
        }
        assert_eq!(parse(&["--ignore-eos"]), Ok(()));
        assert_eq!(parse(&["--ignore_eos", "--at_context", "stop"]), Ok(()));
        assert_eq!(parse(&["--stop", "-a", "--stop", "b", "-"]), Ok(()));
        assert!(parse(&["--prompt", "a", "--ids", "1"]).is_err());
        assert!(parse(&["--prompt", "a", "-"]).is_err());
        assert!(parse(&["text"]).is_err());
        assert!(parse(&["--threads", "0"]).is_err());
        assert!(parse(&["--threads", "1025"]).is_err());
        assert!(parse(&["--prefill-chunk", "0"]).is_err());
    }
}
