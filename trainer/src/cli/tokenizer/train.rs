//! `trainer tokenizer train`: merges learned from text, written as a `tokenizer.json`.

use formats::checkpoint::AtomicFile;
use formats::tokenizer::Split;
use formats::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trainer::tokenizer::{Lesson, Stage, learn};
use trainer::train::grouped;

/// How often a line is written where there is no terminal.
const BETWEEN: Duration = Duration::from_secs(2);

/// What `trainer tokenizer train` takes.
#[derive(clap::Args)]
pub struct Train {
    /// Number of tokens: 256 bytes and the merges; special tokens come on top
    #[arg(long, value_name = "N")]
    vocab: usize,
    /// Text files to learn from, read byte for byte
    #[arg(long, value_name = "TEXT", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The tokenizer.json to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How text is cut into words, which no merge crosses
    #[arg(long, value_parser = ["gpt2", "llama3"], default_value = "gpt2")]
    split: String,
    /// A special token; repeat it for several [default: <|endoftext|>]
    #[arg(long, value_name = "TEXT", conflicts_with = "no_special")]
    special: Vec<String>,
    /// No special token at all
    #[arg(long)]
    no_special: bool,
    /// Threads that count words; they change no result [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Train {
    /// Learns and writes it.
    pub fn run(&self) -> Result<()> {
        let special = match (self.no_special, self.special.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec!["<|endoftext|>".to_owned()],
            (false, false) => self.special.clone(),
        };
        if special.iter().any(String::is_empty) {
            return Err(Error::Usage("--special is empty; a special token has a text".to_owned()));
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let lesson = Lesson {
            vocabulary: self.vocab,
            split: if self.split == "llama3" { Split::Llama3 } else { Split::Gpt2 },
            special,
            threads: self.threads.map_or_else(cores, usize::from),
        };
        let start = Instant::now();
        let mut line = Line::new();
        let tokenizer = learn(&lesson, &self.data, &mut |stage| line.tell(stage))?;
        line.finish();
        let learned = tokenizer.vocabulary() - lesson.special.len();
        if learned < self.vocab {
            say(&format!(
                "the text has no pairs left after {} tokens of the {} asked for",
                grouped(learned as u64),
                grouped(self.vocab as u64)
            ));
        }
        let mut file = AtomicFile::create(&self.out)?;
        file.write_all(tokenizer.to_json().as_bytes()).map_err(|error| Error::write(&self.out, error))?;
        file.finish()?;
        say(&format!(
            "{} tokens and {} special ones in {:.1} s, written to {}",
            grouped(learned as u64),
            lesson.special.len(),
            start.elapsed().as_secs_f64(),
            self.out.display()
        ));
        Ok(())
    }
}

/// What is seen while it learns: one live line on a terminal, a line now and then elsewhere.
struct Line {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Line {
    fn new() -> Line {
        let live = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Line { bar: live, told: Instant::now() }
    }

    fn tell(&mut self, stage: Stage) {
        let text = match stage {
            Stage::Counting { bytes, of } => {
                format!("counted words of {} of {} MB", bytes / 1_000_000, of / 1_000_000)
            }
            Stage::Counted { words } => format!("{} different words", grouped(words as u64)),
            Stage::Merging { tokens, of, count } => format!(
                "{} of {} tokens; the last pair occurs {} times",
                grouped(tokens as u64),
                grouped(of as u64),
                grouped(count)
            ),
        };
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if matches!(stage, Stage::Counted { .. }) || self.told.elapsed() >= BETWEEN => {
                self.told = Instant::now();
                say(&text);
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error; a reader that left stops nothing.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
