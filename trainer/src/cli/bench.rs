//! `trainer bench`: what a training step costs on this machine, beside its own arithmetic peak.

use super::{Format, answer};
use formats::{Error, Layout, Result};
use runtime::random::{Purpose, Stream};
use runtime::simd::Simd;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trainer::backend::choice::all_threads;
use trainer::backend::cpu::Cpu;
use trainer::learner::{BatchShape, Learner, Rates};
use trainer::options::{Flags, Request};
use trainer::presets;
use trainer::random::Generator;

/// What `trainer bench` takes.
#[derive(clap::Args)]
pub struct Bench {
    /// The shape to time
    #[arg(long, default_value = "gpt-zero")]
    preset: String,
    /// Tokens of the vocabulary; the preset's own unless set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: Option<u32>,
    /// Seconds to time for
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    flags: Flags,
}

/// Seconds spent measuring the peak before and after the steps.
const PEAK_SECONDS: f64 = 0.5;

impl Bench {
    /// Times steps of forward, backward, clip and update over random ids.
    pub fn run(&self) -> Result<()> {
        if !(self.secs.is_finite() && self.secs > 0.0) {
            return Err(Error::Usage(format!("--secs is {}, expected more than 0", self.secs)));
        }
        let request = Request {
            preset: Some(self.preset.clone()),
            config: None,
            data: Vec::<PathBuf>::new(),
            data_weight: vec![],
            upcycle: None,
            from: None,
            flags: self.flags.clone(),
        };
        let options = request.resolve()?.options;
        let own = presets::vocabulary(&self.preset)?;
        let config = options.model(self.vocab.map_or(own, |count| count as usize))?;
        let layout = Layout::new(&config);
        let shape = BatchShape { sequences: options.batch, block: options.block };
        let backend = Cpu::new(options.threads.unwrap_or_else(all_threads))?;
        let threads = backend.threads();
        Learner::require_memory(&backend, &config, shape, options.recompute)?;
        let mut learner = Learner::with(
            backend,
            &config,
            shape,
            &options.optimizer(),
            &options.mixing(),
            options.recompute,
        )?;
        let mut weights = vec![0.0; layout.parameters()];
        Generator::new(options.rng, options.seed).initialise(&mut weights, &layout, &config, options.init);
        let zero = vec![0.0; weights.len()];
        learner.load(&weights, &zero, &zero)?;

        let stream = Stream::new(options.seed, Purpose::Batch);
        let ids = |row: u64| -> Vec<u32> {
            (0..shape.rows() as u64).map(|index| stream.draw(row, index) % config.vocabulary as u32).collect()
        };
        let (inputs, targets) = (ids(0), ids(1));
        let peak = || Simd::best().peak_gflops(threads, PEAK_SECONDS);
        let mut peak_gflops = peak();
        let mut step = |number: u64| {
            let rates =
                Rates { learning_rate: options.learning_rate as f32, step: number, seed: options.seed };
            learner.step(&inputs, &targets, rates)?;
            learner.outcome()
        };
        step(1)?;
        let (begin, limit) = (Instant::now(), Duration::from_secs_f64(self.secs));
        let (mut times, mut loss) = (vec![], 0.0);
        while times.is_empty() || begin.elapsed() < limit {
            let one = Instant::now();
            loss = step(times.len() as u64 + 2)?.loss;
            times.push(one.elapsed().as_secs_f64());
        }
        let seconds = begin.elapsed().as_secs_f64();
        peak_gflops = peak_gflops.max(peak());
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];

        // Parameters used for a token: all but idle experts, the rows of the position table, and those of an untied
        // token table.
        let positions = layout.position_embedding.map_or(0, |id| layout.parameter(id).len());
        let tokens = if config.tied { 0 } else { config.vocabulary * config.width };
        let used = (layout.active_parameters() - positions - tokens) as f64;
        let attention = 12.0 * (config.layers * config.width * options.block) as f64;
        let gflops = (6.0 * used + attention) * shape.rows() as f64 / median / 1e9;
        let tokens_per_s = shape.rows() as f64 / median;
        match self.format {
            Format::Json => answer(&format!(
                "{}\n",
                json!({
                    "tokens_per_s": tokens_per_s, "step_ms": median * 1e3, "gflops": gflops,
                    "peak_gflops": peak_gflops, "steps": times.len(), "seconds": seconds, "loss": loss,
                    "threads": threads, "simd": Simd::best().name,
                })
            )),
            Format::Text => answer(&format!(
                "{:.3} ms a step (median of {}), {tokens_per_s:.0} tokens/s, {gflops:.1} GFLOP/s of {peak_gflops:.1} \
                 ({:.0} %), {threads} threads, {}\n",
                median * 1e3,
                times.len(),
                100.0 * gflops / peak_gflops,
                Simd::best().name
            )),
        }
    }
}
