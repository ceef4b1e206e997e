//! `trainer tokenizer encode`: text to ids, in memory that does not grow with it.

use clap::ValueEnum;
use formats::checkpoint::source;
use formats::{Error, Result};
use std::fmt::Write as _;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trainer::data::encode::Encoder;
use trainer::data::shard::ShardWriter;
use trainer::data::{TokenizerSource, shard};
use trainer::train::grouped;

/// Work that takes longer than this says how far it is, as often as this.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What `trainer tokenizer encode` takes.
#[derive(clap::Args)]
pub struct Encode {
    /// bytes, a tokenizer.json, or a model or run that has one
    #[arg(long, value_name = "WORD|PATH")]
    tokenizer: String,
    /// Numbers on standard output, a document a line; or a shard
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The shard to write
    #[arg(long, value_name = "SHARD")]
    out: Option<PathBuf>,
    /// What stands between the documents of one file, for instance <|endoftext|>; without, each file is a document
    #[arg(long, value_name = "TEXT")]
    document_separator: Option<String>,
    /// Threads; all there are by default
    #[arg(long)]
    threads: Option<usize>,
    /// Text files, read byte for byte
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Ids between spaces, a document a line, nothing added.
    #[default]
    Ids,
    /// A token shard: an end-of-text token after each document, where the tokenizer has one.
    Shard,
}

impl Encode {
    /// Encodes every text in turn.
    pub fn run(&self) -> Result<()> {
        let usage = |sentence: &str| Err(Error::Usage(sentence.to_owned()));
        if self.document_separator.as_deref() == Some("") {
            return usage("--document-separator is empty, and would stand everywhere");
        }
        let Some(tokenizer) = TokenizerSource::from(self.tokenizer.clone()).given()? else {
            return usage(
                "characters are learned from a text, and encode learns nothing\n  help: name the tokenizer.json of a \
                 model that was trained on them",
            );
        };
        let threads =
            self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let mut total = 0u64;
        for text in &self.texts {
            total = total.saturating_add(source::open(text)?.1);
            if shard::is_shard(text)? {
                return Err(Error::file(text, "is a token shard already", "name the text it was made from"));
            }
        }
        let encoder = Encoder::new(&tokenizer, self.document_separator.as_deref(), threads);
        let mut told = Told::new(total);
        match (self.format, &self.out) {
            (Format::Ids, None) => {
                let mut ids =
                    Ids { out: BufWriter::new(std::io::stdout().lock()), begun: false, left: false };
                let done = encoder.encode(&self.texts, &mut |part| {
                    told.add(part.bytes);
                    ids.add(part.ids, part.last)
                });
                match (done, ids.left) {
                    // The reader has what it wanted.
                    (Err(_), true) => Ok(()),
                    (done, _) => done.and_then(|()| ids.finish()),
                }
            }
            (Format::Ids, Some(_)) => usage("--out is for --format shard; ids go to standard output"),
            (Format::Shard, None) => usage("--format shard needs --out SHARD, the file to write"),
            (Format::Shard, Some(out)) => {
                let mut writer = ShardWriter::create(out, &tokenizer, tokenizer.end_of_text())?;
                encoder.encode(&self.texts, &mut |part| {
                    told.add(part.bytes);
                    writer.push(part.ids, part.bytes)?;
                    if part.last { writer.end_document() } else { Ok(()) }
                })?;
                let header = writer.finish()?;
                eprintln!(
                    "wrote {}: {} tokens in {} documents from {} bytes of text",
                    out.display(),
                    grouped(header.tokens),
                    grouped(header.documents),
                    grouped(header.text_bytes)
                );
                Ok(())
            }
        }
    }
}

/// Numbers on standard output.
struct Ids<W: Write> {
    out: BufWriter<W>,
    /// Whether a number stands on the line already.
    begun: bool,
    /// Whether the reader has gone, which is no error.
    left: bool,
}

impl<W: Write> Ids<W> {
    fn add(&mut self, ids: &[u32], last: bool) -> Result<()> {
        let mut text = String::with_capacity(6 * ids.len());
        for id in ids {
            let space = if self.begun { " " } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{space}{id}");
            self.begun = true;
        }
        if last {
            text.push('\n');
            self.begun = false;
        }
        let written = self.out.write_all(text.as_bytes());
        self.check(written)
    }

    fn finish(&mut self) -> Result<()> {
        let flushed = self.out.flush();
        match self.check(flushed) {
            Err(_) if self.left => Ok(()),
            result => result,
        }
    }

    fn check(&mut self, result: std::io::Result<()>) -> Result<()> {
        result.map_err(|error| {
            self.left = error.kind() == ErrorKind::BrokenPipe;
            Error::write("standard output", error)
        })
    }
}

/// How far the work is, on standard error.
struct Told {
    total: u64,
    done: u64,
    begin: Instant,
    last: Instant,
    live: bool,
}

impl Told {
    fn new(total: u64) -> Told {
        let (now, live) = (Instant::now(), std::io::stderr().is_terminal());
        Told { total, done: 0, begin: now, last: now, live }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.last.elapsed() < TELL_EVERY {
            return;
        }
        self.last = Instant::now();
        let seconds = self.begin.elapsed().as_secs_f64();
        let line = format!(
            "encoded {} of {} MiB, {:.1} MB/s",
            self.done >> 20,
            self.total.div_ceil(1 << 20),
            self.done as f64 / 1e6 / seconds
        );
        // A reader of progress that has gone stops nothing.
        let mut stderr = std::io::stderr();
        let _ = if self.live { write!(stderr, "\r{line}\x1b[K") } else { writeln!(stderr, "{line}") };
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.live && self.last > self.begin {
            let _ = writeln!(std::io::stderr());
        }
    }
}
