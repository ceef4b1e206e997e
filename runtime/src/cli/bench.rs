//! `runtime bench`: how fast a model runs on this machine, beside how fast this machine reads.

use super::output::{Outcome, Output, note};
use super::roof::{PASSES, median, read_gb_per_s};
use super::{Format, Opening};
use clap::Args;
use formats::{Error, Result};
use runtime::random::{Purpose, Stream};
use runtime::sampler::{Sampler, Sampling};
use runtime::session::Session;
use runtime::simd::caches::last_level_caches;
use serde_json::json;
use std::time::Instant;

/// What `runtime bench` takes.
#[derive(Args, Debug)]
pub struct Bench {
    #[command(flatten)]
    opening: Opening,
    /// Ids of the prompt; 0 measures none
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Steps of one id each; 0 measures none
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode: usize,
    /// Ids that the cache holds before either
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Measure steps that choose the most probable token too, which need not read the whole head
    #[arg(long)]
    greedy: bool,
    /// How the result is told
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        let begin = Instant::now();
        let model = self.opening.open()?;
        let (context, vocabulary) = (model.config().context, model.config().vocabulary);
        if self.depth >= context {
            return Err(Error::Usage(format!(
                "--depth is {}, expected less than the model's context of {context}",
                self.depth
            ))
            .into());
        }
        let room = context - self.depth;
        for (flag, ids) in [("--prompt", self.prompt), ("--decode", self.decode)] {
            if ids > room {
                note(format_args!(
                    "{flag} {ids}: the context of {context} has room for {room} ids at a time; whenever it is full \
                     it is cut back to {} and filled again",
                    self.depth
                ));
            }
        }

        let stream = Stream::new(0, Purpose::Evaluation);
        let ids: Vec<u32> = (0..self.prompt.max(self.depth).max(1) as u64)
            .map(|index| stream.draw(0, index) % vocabulary as u32)
            .collect();
        let mut session = model.session()?;
        if self.depth > 0 {
            session.feed(&ids[..self.depth])?;
        }
        let prefill = rate(&mut session, self.depth, self.prompt, |session, depth| {
            for piece in ids[..self.prompt].chunks(room) {
                session.rewind(depth)?;
                session.feed(piece)?;
            }
            Ok(())
        })?;
        let steps =
            |session: &mut Session, depth: usize, one: &mut dyn FnMut(&mut Session, &[u32]) -> Result<()>| {
                for step in 0..self.decode {
                    if session.position() == context {
                        session.rewind(depth)?;
                    }
                    one(session, &[ids[step % ids.len()]])?;
                }
                Ok(())
            };
        let decode = rate(&mut session, self.depth, self.decode, |session, depth| {
            steps(session, depth, &mut |session, id| session.feed(id).map(drop))
        })?;
        let mut greedy = None;
        if self.greedy {
            let made = Instant::now();
            if model.make_shortlist() {
                note(format_args!("the shortlist took {:.1} ms", made.elapsed().as_secs_f64() * 1e3));
            }
            let mut sampler = Sampler::new(Sampling::GREEDY, 0, vocabulary)?;
            greedy = rate(&mut session, self.depth, self.decode, |session, depth| {
                steps(session, depth, &mut |session, id| {
                    let logits = session.feed_best(id, Sampling::GREEDY.decided_by())?;
                    sampler.choose(logits, &[]).map(drop)
                })
            })?;
        }
        // The machine's roof, not that of the threads in use.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).max(model.threads());
        let read = read_gb_per_s(model.simd(), threads)?;
        let bytes = model.bytes_per_token();
        let decode_gb_per_s = decode.map(|rate| rate * bytes as f64 / 1e9);
        if decode.is_some() && bytes < last_level_caches() as u64 {
            note(format_args!(
                "the weights ({} KiB) fit into the processor's cache, so decoding may read faster than memory does",
                bytes >> 10
            ));
        }
        let seconds = begin.elapsed().as_secs_f64();

        let mut output = Output::new();
        match self.format {
            Format::Json => output.json(&json!({
                "prefill_tokens_per_s": prefill,
                "decode_tokens_per_s": decode,
                "greedy_tokens_per_s": greedy,
                "bytes_per_token": bytes,
                "decode_gb_per_s": decode_gb_per_s,
                "read_gb_per_s": read,
                "threads": model.threads(),
                "simd": model.simd().name,
                "seconds": seconds,
            }))?,
            Format::Text => {
                let optional = |value: Option<f64>, unit: &str| match value {
                    Some(value) => format!("{value:.1} {unit}"),
                    None => "not measured".into(),
                };
                output.table(&[
                    ("prefill", optional(prefill, "tokens/s")),
                    ("decode", optional(decode, "tokens/s")),
                    ("greedy", optional(greedy, "tokens/s")),
                    ("weights read", format!("{bytes} bytes/token")),
                    ("decode reads", optional(decode_gb_per_s, "GB/s")),
                    ("machine reads", format!("{read:.1} GB/s")),
                    ("threads", model.threads().to_string()),
                    ("simd", model.simd().name.to_string()),
                    ("seconds", format!("{seconds:.1}")),
                ])?;
            }
        }
        Ok(0)
    }
}

/// Ids a second of `work` on `count` ids from a cache of `depth`: the median after a warm-up; `None` for no ids.
fn rate(
    session: &mut Session,
    depth: usize,
    count: usize,
    mut work: impl FnMut(&mut Session, usize) -> Result<()>,
) -> Result<Option<f64>> {
    if count == 0 {
        return Ok(None);
    }
    let mut times = Vec::with_capacity(PASSES);
    for pass in 0..=PASSES {
        session.rewind(depth)?;
        let begin = Instant::now();
        work(session, depth)?;
        if pass > 0 {
            times.push(begin.elapsed());
        }
    }
    session.rewind(depth)?;
    Ok(Some(count as f64 / median(&mut times).as_secs_f64()))
}
