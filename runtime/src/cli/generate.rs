//! `runtime generate`: continues a text.

use super::input::Prompt;
use super::interrupt::Interrupt;
use super::output::{Halt, Outcome, Output, note, number};
use super::sampling::SamplingFlags;
use super::{Opening, SessionFlags};
use clap::{Args, ValueEnum};
use formats::Result;
use runtime::generate::{AtContext, FinishReason, GenerateOptions, Generator, Pace};
use runtime::model::Model;
use runtime::sampler::Token;
use serde_json::json;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// What `runtime generate` takes.
#[derive(Args, Debug)]
pub struct Generate {
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// What to do when the context is full
    #[arg(long, alias = "at_context", value_enum, default_value = "slide")]
    at_context: Full,
    #[command(flatten)]
    session: SessionFlags,
    /// Put the prompt before what is generated
    #[arg(long)]
    echo: bool,
    /// What is written to stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Tell on stderr how long it took, and how experts were used
    #[arg(long)]
    stats: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Full {
    /// Recompute the window of the last ids for each token
    Slide,
    /// End
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The text as it comes
    Text,
    /// Token ids with commas between them
    Ids,
    /// One object at the end
    Json,
}

impl Generate {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        let model = self.opening.open()?;
        if self.format == Format::Text {
            model.require_tokenizer()?;
        }
        let options = GenerateOptions {
            at_context: match self.at_context {
                Full::Slide => AtContext::Slide,
                Full::Stop => AtContext::Stop,
            },
            logprobs: self.format == Format::Json,
            ..self.sampling.options(&model)
        };
        options.sampling.validate()?;
        let prompt = self.prompt.read(&model)?;
        let mut session = model.session_with(&self.session.options())?;
        let interrupt = Interrupt::watch(session.canceller());
        let mut generator = Generator::new(&mut session, &prompt, &options)?;
        note(format_args!("seed: {}", options.seed));
        let context = model.config().context;
        // Said before the text, which it would otherwise cut in two. The last token is not fed.
        if options.at_context == AtContext::Slide
            && (prompt.len().max(1) - 1).saturating_add(options.max_tokens) > context
        {
            note(format_args!(
                "past the context of {context} ids each token recomputes the window of its last {context} ids \
                 (--at-context stop ends there instead)"
            ));
        }

        let mut writer = Writer::new(self.format, &model, &prompt, self.echo)?;
        let mut clock = Clock::new(prompt.len().max(1));
        while let Some(token) = generator.next() {
            let token = token.map_err(|error| self.opening.blame(error))?;
            clock.token();
            writer.token(token, generator.text())?;
        }
        let reason = generator.finish_reason().unwrap_or(FinishReason::Length);
        writer.end(generator.tail(), reason, &options)?;
        drop(generator);
        if self.stats {
            clock.tell(reason);
            super::experts::tell(&model, &session);
        }
        Ok(if reason == FinishReason::Cancelled { interrupt.exit_code() } else { 0 })
    }
}

/// Tokens on their way to stdout.
struct Writer {
    output: Output,
    pace: Pace,
    format: Format,
    /// Whether the model has text at all.
    speaks: bool,
    prompt: Vec<u32>,
    /// What the object will hold; empty in the other formats.
    text: String,
    tokens: Vec<Token>,
    /// Whether an id was written, so that the next needs a comma.
    started: bool,
}

impl Writer {
    fn new(format: Format, model: &Model, prompt: &[u32], echo: bool) -> Result<Writer, Halt> {
        let mut writer = Writer {
            output: Output::new(),
            pace: Pace::default(),
            format,
            speaks: model.tokenizer().is_some(),
            prompt: prompt.to_vec(),
            text: String::new(),
            tokens: Vec::new(),
            started: false,
        };
        if !echo {
            return Ok(writer);
        }
        let bytes = model.tokenizer().map(|tokenizer| tokenizer.decode(prompt)).transpose()?;
        match (format, bytes) {
            (Format::Text, Some(bytes)) => writer.output.write(&bytes)?,
            (Format::Json, Some(bytes)) => writer.text = String::from_utf8_lossy(&bytes).into_owned(),
            (Format::Ids, _) => prompt.iter().try_for_each(|&id| writer.id(id))?,
            (_, None) => {}
        }
        writer.output.flush()?;
        Ok(writer)
    }

    fn id(&mut self, id: u32) -> Result<(), Halt> {
        let comma = if self.started { "," } else { "" };
        self.started = true;
        self.output.write(format!("{comma}{id}").as_bytes())
    }

    fn token(&mut self, token: Token, text: &str) -> Result<(), Halt> {
        match self.format {
            Format::Text => self.output.write(text.as_bytes())?,
            Format::Ids => self.id(token.id)?,
            Format::Json => {
                self.text.push_str(text);
                self.tokens.push(token);
                return Ok(());
            }
        }
        if self.pace.due() { self.output.flush() } else { Ok(()) }
    }

    fn end(&mut self, tail: &str, reason: FinishReason, options: &GenerateOptions) -> Result<(), Halt> {
        match self.format {
            Format::Text => {
                self.output.write(tail.as_bytes())?;
                if io::stdout().is_terminal() {
                    self.output.write(b"\n")?;
                }
            }
            Format::Ids => self.output.write(b"\n")?,
            Format::Json => {
                self.text.push_str(tail);
                let stop = match reason {
                    FinishReason::Stop(index) => options.stop.get(index),
                    _ => None,
                };
                return self.output.json(&json!({
                    "text": self.speaks.then_some(&self.text),
                    "prompt_ids": self.prompt,
                    "ids": self.tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
                    "logprobs": self.tokens.iter().map(|token| token.logprob.map(number)).collect::<Vec<_>>(),
                    "finish_reason": reason.name(),
                    "stop": stop,
                    "seed": options.seed,
                }));
            }
        }
        self.output.flush()
    }
}

/// When the first token came, and the last.
struct Clock {
    prompt: usize,
    start: Instant,
    first: Duration,
    last: Duration,
    tokens: usize,
}

impl Clock {
    fn new(prompt: usize) -> Clock {
        Clock { prompt, start: Instant::now(), first: Duration::ZERO, last: Duration::ZERO, tokens: 0 }
    }

    fn token(&mut self) {
        self.last = self.start.elapsed();
        if self.tokens == 0 {
            self.first = self.last;
        }
        self.tokens += 1;
    }

    fn tell(&self, reason: FinishReason) {
        let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
        if self.tokens > 0 {
            note(format_args!(
                "prompt: {} ids in {:.1} ms ({:.0} ids/s)",
                self.prompt,
                self.first.as_secs_f64() * 1e3,
                rate(self.prompt, self.first)
            ));
        }
        if self.tokens > 1 {
            let (steps, time) = (self.tokens - 1, self.last - self.first);
            note(format_args!(
                "decode: {steps} steps in {:.1} ms ({:.0} tokens/s)",
                time.as_secs_f64() * 1e3,
                rate(steps, time)
            ));
        }
        note(format_args!("tokens: {}, ended by: {}", self.tokens, reason.name()));
    }
}
