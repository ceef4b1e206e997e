//! `trainer bench`: what a training step costs on a device, beside the arithmetic that the device could do meanwhile.

use super::{Format, answer};
use formats::{Config, Error, Layout, Result};
use runtime::random::{Purpose, Stream};
use runtime::simd::Simd;
use runtime::team::Crew;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trainer::backend::Backend;
use trainer::backend::choice::all_threads;
use trainer::backend::cpu::Cpu;
use trainer::backend::cuda::Cuda;
use trainer::device::probe::{self, Chosen};
use trainer::device::{Device, Precision};
use trainer::learner::{BatchShape, Learner, Rates};
use trainer::options::{Flags, Options, Request};
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

/// Seconds spent measuring a processor's peak before and after the steps.
const PEAK_SECONDS: f64 = 0.5;
/// Seconds between two looks at a device that works by itself, so that looking costs nothing.
const LOOK_SECONDS: f64 = 0.25;
/// Steps before anything is timed: a device does the first as it is written, records the second and repeats it from then on.
const WARM_UP: u64 = 4;

/// Dense arithmetic of cards that say so in their data sheets, 10^9 operations a second: in bfloat16 with sums in single
/// precision, and in single precision. The first whose words all stand in the card's name.
const CARDS: &[(&[&str], [f64; 2])] = &[
    (&["H200"], [989_400.0, 66_900.0]),
    (&["H100", "PCIe"], [756_000.0, 51_200.0]),
    (&["H100", "NVL"], [835_500.0, 60_000.0]),
    (&["H100"], [989_400.0, 66_900.0]),
    (&["A100"], [312_000.0, 19_500.0]),
];

/// The arithmetic a card could do, if it is one that we know.
fn card_gflops(device: &Device) -> Option<f64> {
    let known = |words: &[&str]| words.iter().all(|word| device.name().contains(word));
    let (_, [bf16, f32]) = CARDS.iter().find(|(words, _)| known(words))?;
    Some(if device.precision() == Precision::Bf16 { *bf16 } else { *f32 })
}

/// What is timed.
struct Work {
    options: Options,
    config: Config,
    layout: Layout,
    shape: BatchShape,
}

/// What came of it.
struct Timed {
    /// Seconds of a step, the median.
    median: f64,
    steps: u64,
    seconds: f64,
    loss: f64,
}

/// Who did it, for the answer.
struct Who {
    told: String,
    /// What it could do, where that is known.
    peak_gflops: Option<f64>,
    threads: Option<usize>,
    simd: Option<&'static str>,
    precision: &'static str,
    /// Launches and copies of one recorded step.
    nodes: Option<usize>,
}

impl Work {
    /// Steps of forward, backward, clip and update over random ids, for `secs` seconds or a little longer.
    fn time<B: Backend>(&self, backend: B, secs: f64) -> Result<(Timed, Learner<B>)> {
        let Work { options, config, layout, shape } = self;
        Learner::require_memory(&backend, config, *shape, options.recompute)?;
        let (optimizer, mixing) = (options.optimizer(), options.mixing());
        let mut learner = Learner::with(backend, config, *shape, &optimizer, &mixing, options.recompute)?;
        let mut weights = vec![0.0; layout.parameters()];
        let mut crew = Crew::new(options.threads.unwrap_or_else(all_threads))?;
        let mut generator = Generator::new(options.rng, options.seed);
        generator.initialise(&mut crew, &mut weights, layout, config, options.init);
        drop(crew);
        let zero = vec![0.0; weights.len()];
        learner.load(&weights, &zero, &zero)?;

        let stream = Stream::new(options.seed, Purpose::Batch);
        let ids = |row: u64| -> Vec<u32> {
            (0..shape.rows() as u64).map(|index| stream.draw(row, index) % config.vocabulary as u32).collect()
        };
        let (inputs, targets) = (ids(0), ids(1));
        let mut number = 0;
        // So many steps one after the other; the last one's loss says that they are done.
        let mut steps = |learner: &mut Learner<B>, count: u64| -> Result<(f64, f64)> {
            let begin = Instant::now();
            for _ in 0..count {
                number += 1;
                let (learning_rate, seed) = (options.learning_rate as f32, options.seed);
                learner.step(&inputs, &targets, Rates { learning_rate, step: number, seed })?;
            }
            let loss = learner.outcome()?.loss;
            Ok((begin.elapsed().as_secs_f64(), loss))
        };
        let together = if B::AT_HAND {
            steps(&mut learner, 1)?;
            1
        } else {
            steps(&mut learner, WARM_UP)?;
            let (one, _) = steps(&mut learner, 1)?;
            (LOOK_SECONDS.min(secs) / one).clamp(1.0, 1000.0) as u64
        };
        let (begin, limit) = (Instant::now(), Duration::from_secs_f64(secs));
        let (mut times, mut loss) = (vec![], 0.0);
        while times.is_empty() || begin.elapsed() < limit {
            let (seconds, last) = steps(&mut learner, together)?;
            times.push(seconds / together as f64);
            loss = last;
        }
        let seconds = begin.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        Ok((Timed { median, steps: times.len() as u64 * together, seconds, loss }, learner))
    }

    /// Operations of a step: 6 a parameter that a token uses and 12 a layer, a value of its width and a place of the window
    /// (Chowdhery et al. 2022, appendix B).
    fn flops(&self) -> f64 {
        let Work { config, layout, shape, .. } = self;
        // Parameters used for a token: all but idle experts, the rows of the position table, and those of an untied
        // token table.
        let positions = layout.position_embedding.map_or(0, |id| layout.parameter(id).len());
        let tokens = if config.tied { 0 } else { config.vocabulary * config.width };
        let used = (layout.active_parameters() - positions - tokens) as f64;
        let attention = 12.0 * (config.layers * config.width * shape.block) as f64;
        (6.0 * used + attention) * shape.rows() as f64
    }
}

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
        let shape = BatchShape { sequences: options.batch, block: options.block };
        let work = Work { layout: Layout::new(&config), config, shape, options };
        match probe::choose(work.options.device, work.options.precision)? {
            Chosen::Cpu(why) => {
                let threads = work.options.threads.unwrap_or_else(all_threads);
                let simd = Simd::best();
                let peak = || simd.peak_gflops(threads, PEAK_SECONDS);
                let before = peak();
                let (timed, _) = work.time(Cpu::new(threads)?, self.secs)?;
                let why = why.map_or(String::new(), |why| format!("; {why}"));
                let who = Who {
                    told: format!("{threads} threads, {}{why}", simd.name),
                    peak_gflops: Some(before.max(peak())),
                    threads: Some(threads),
                    simd: Some(simd.name),
                    precision: "f32",
                    nodes: None,
                };
                self.say(&work, &timed, &who)
            }
            Chosen::Cuda(device) => {
                let (timed, learner) = work.time(Cuda::new(device.clone())?, self.secs)?;
                let nodes = learner.nodes().map_or(0, |(_, nodes)| nodes);
                let who = Who {
                    told: format!("{}, {nodes} nodes a step", device.describe()),
                    peak_gflops: card_gflops(&device),
                    threads: None,
                    simd: None,
                    precision: if device.precision() == Precision::Bf16 { "bf16" } else { "f32" },
                    nodes: Some(nodes),
                };
                self.say(&work, &timed, &who)
            }
        }
    }

    fn say(&self, work: &Work, timed: &Timed, who: &Who) -> Result<()> {
        let Timed { median, steps, seconds, loss } = *timed;
        let gflops = work.flops() / median / 1e9;
        let tokens_per_s = work.shape.rows() as f64 / median;
        match self.format {
            Format::Json => answer(&format!(
                "{}\n",
                json!({
                    "tokens_per_s": tokens_per_s, "step_ms": median * 1e3, "gflops": gflops,
                    "peak_gflops": who.peak_gflops, "mfu": who.peak_gflops.map(|peak| gflops / peak),
                    "steps": steps, "seconds": seconds, "loss": loss, "threads": who.threads, "simd": who.simd,
                    "device": who.told, "precision": who.precision, "nodes": who.nodes,
                })
            )),
            Format::Text => {
                let peak = who.peak_gflops.map_or("an unknown peak".to_owned(), |peak| {
                    format!("{peak:.1} ({:.0} %)", 100.0 * gflops / peak)
                });
                answer(&format!(
                    "{:.3} ms a step (median of {steps}), {tokens_per_s:.0} tokens/s, {gflops:.1} GFLOP/s of {peak}, {}\n",
                    median * 1e3,
                    who.told
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_its_whole_name() {
        let peak = |name: &str| {
            let known = CARDS.iter().find(|(words, _)| words.iter().all(|word| name.contains(word)));
            known.map(|(_, [bf16, _])| *bf16)
        };
        assert_eq!(peak("NVIDIA H100 80GB HBM3"), Some(989_400.0));
        assert_eq!(peak("NVIDIA H100 PCIe"), Some(756_000.0));
        assert_eq!(peak("NVIDIA H200"), Some(989_400.0));
        assert_eq!(peak("NVIDIA GeForce RTX 4090"), None);
    }
}
