//! One run from its request to its last checkpoint: the order in which everything else is called.
//!
//! Evaluation before a step draws before the step draws, saving follows the step; nothing here depends on time but
//! what is shown and the seconds in `metrics.jsonl`.

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::data::{self, Source, Text};
use crate::learner::{BatchShape, Learner, Rates};
use crate::memory;
use crate::options::{Device, Options, Recipe, Request, refuse_differences};
use crate::presets;
use crate::progress::{Progress, StepReport};
use crate::random::{Generator, RngKind};
use crate::report::{self, ReportInput};
use crate::run::{EvaluationRow, Metrics, Run, StepRow};
use crate::sample;
use crate::signals::Interrupt;
use crate::state::TrainState;
use formats::checkpoint::{self, Commit, GenerationConfig, ModelFiles};
use formats::tokenizer::Tokenizer;
use formats::{Config, Error, Layout, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// On a terminal the live line follows as fast as one can read; elsewhere a line is kept, so it comes rarely.
const LIVE_EVERY: Duration = Duration::from_millis(100);
const PLAIN_EVERY: Duration = Duration::from_secs(2);
/// Tokens of an evaluation between two looks at whether a signal came; fixed, because it orders a sum.
const EVALUATED_AT_ONCE: u64 = 1 << 16;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// A signal asked for it; what was learned is saved.
    Interrupted {
        /// What the process should exit with.
        exit_code: u8,
    },
}

/// Trains as `request` says into `out`; text goes to standard output, everything else to standard error.
pub fn train(request: &Request, out: &Path, resume: bool) -> Result<End> {
    // A directory that is there is taken before it is looked at; one that is not is made only once everything
    // asked for is known to be possible, so that a mistyped flag leaves nothing behind.
    let run = if out.is_dir() { Some(Run::lock(out)?) } else { None };
    let recipe = settle(request, run.as_ref(), out, resume)?;
    let options = &recipe.options;
    let (tokenizer, text) = Text::learn(options.tokenizer, &Source::read(&recipe.data)?)?;
    text.require(options.block)?;
    let config = options.model(tokenizer.vocabulary())?;
    match options.device {
        Device::Auto | Device::Cpu => {
            let backend = Cpu::new(threads(options))?;
            let plan = Learner::<Cpu>::memory(&config, shape(options), backend.lanes());
            plan.require(memory::available().unwrap_or(u64::MAX))?;
            let run = match run {
                Some(run) => run,
                None => Run::lock(out)?,
            };
            let device = format!("cpu ({}, {} threads)", backend.simd().name, backend.threads());
            Trainer::begin(backend, device, run, recipe, config, tokenizer, text)?.carry_out()
        }
        Device::Cuda => {
            Err(Error::Device("this build has no CUDA backend\n  help: train with --device cpu".to_owned()))
        }
    }
}

/// Threads asked for, or all there are.
pub fn threads(options: &Options) -> usize {
    options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// What is to be done: a new run's recipe, or a recorded one's with the changes it allows.
fn settle(request: &Request, run: Option<&Run>, out: &Path, resume: bool) -> Result<Recipe> {
    if !resume && Run::exists(out) {
        return Err(Error::Usage(format!(
            "{} holds a run\n  help: pass --resume to continue it, or choose another --out",
            out.display()
        )));
    }
    let recorded = run.map(Run::recorded).transpose()?.flatten();
    let recipe = match &recorded {
        Some(recorded) => request.resume(recorded, out)?,
        None if request.names_a_model() => request.resolve()?,
        None => {
            let place =
                if resume { format!("{} holds no run yet, and ", out.display()) } else { String::new() };
            return Err(Error::Usage(format!(
                "{place}there is no model to train\n  help: name one with --preset ({}) or --config FILE",
                presets::names()
            )));
        }
    };
    if recipe.data.is_empty() {
        return Err(Error::Usage(
            "there is no text to learn from\n  help: name one with --data TEXT".to_owned(),
        ));
    }
    // Recorded so that the run can be resumed from any directory; a path that leads nowhere is refused by its reader.
    let data = recipe.data.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    Ok(Recipe { options: recipe.options.settled(), data })
}

fn shape(options: &Options) -> BatchShape {
    BatchShape { sequences: options.batch, block: options.block }
}

/// A run under way.
struct Trainer<B: Backend> {
    run: Run,
    recipe: Recipe,
    config: Config,
    tokenizer: Tokenizer,
    text: Text,
    generator: Generator,
    learner: Learner<B>,
    step: u64,
    saved: Option<u64>,
    best_validation: Option<f64>,
    metrics: Metrics,
    progress: Progress,
    interrupt: Interrupt,
    begin: Instant,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    offsets: Vec<usize>,
}

impl<B: Backend> Trainer<B> {
    /// Plans the memory, then starts from the newest checkpoint that verifies, or from fresh weights.
    fn begin(
        backend: B,
        device: String,
        run: Run,
        recipe: Recipe,
        config: Config,
        tokenizer: Tokenizer,
        text: Text,
    ) -> Result<Trainer<B>> {
        let options = &recipe.options;
        let plan = Learner::<B>::memory(&config, shape(options), backend.lanes());
        let layout = Layout::new(&config);
        let checkpoints = run.checkpoints();
        let mut problems = vec![];
        let found = if checkpoints.is_dir() {
            checkpoint::clean(&checkpoints)?;
            checkpoint::newest(&checkpoints, &mut problems)?
        } else {
            None
        };
        let mut generator = Generator::new(options.rng, options.seed);
        let state = match &found {
            Some((_, path)) => restore(path, &run, options, &text, &layout)?,
            None => fresh(&mut generator, options, &text, &layout, &config)?,
        };
        if let Some(kept) = &state.generator {
            generator = Generator::restore(kept).ok_or_else(|| {
                Error::file(run.path(), "holds a damaged generator state", "resume from another checkpoint")
            })?;
        }
        let mut learner = Learner::new(backend, &config, shape(options), &options.optimizer())?;
        learner.load(&state.weights, &state.first_moment, &state.second_moment)?;

        let mut progress = Progress::new(options.progress, options.steps, state.step);
        for problem in problems {
            progress.message(&format!("passed over a damaged checkpoint: {problem}"));
        }
        progress.message(&format!(
            "model   {}: {} M parameters ({} parameters), {} layers, width {}, context {}",
            options.preset,
            layout.parameters() as f64 / 1e6,
            grouped(layout.parameters() as u64),
            config.layers,
            config.width,
            config.context
        ));
        progress.message(&format!(
            "data    {} training and {} validation tokens, vocabulary {}",
            grouped(text.training().len() as u64),
            grouped(text.validation().len() as u64),
            config.vocabulary
        ));
        progress.message(&format!(
            "device  {device}; needs {} MiB{}",
            plan.total().div_ceil(1 << 20),
            memory::available().map_or(String::new(), |free| format!(", {} MiB are free", free >> 20))
        ));
        progress.message(&format!("seed    {}", options.seed));
        if state.step > 0 {
            progress.message(&format!("resumed from step {}", state.step));
        }
        run.record(&recipe)?;
        Ok(Trainer {
            metrics: run.metrics(state.step)?,
            interrupt: Interrupt::listen()?,
            begin: Instant::now(),
            inputs: vec![],
            targets: vec![],
            offsets: vec![0; options.batch],
            step: state.step,
            saved: found.map(|(step, _)| step),
            best_validation: state.best_validation,
            run,
            config,
            tokenizer,
            text,
            generator,
            learner,
            progress,
            recipe,
        })
    }

    /// Every step that is left, and what follows the last.
    fn carry_out(mut self) -> Result<End> {
        let options = self.recipe.options.clone();
        let curve = options.curve();
        let show_every = if self.progress.is_live() { LIVE_EVERY } else { PLAIN_EVERY };
        let tokens = (options.batch * options.block) as f64;
        // Throughput since the last row and since the last line shown.
        let (mut row, mut shown) = ((Instant::now(), self.step), (Instant::now(), self.step));
        while self.step < options.steps {
            let step = self.step;
            let last = step + 1 == options.steps;
            if options.eval_every > 0 && (step.is_multiple_of(options.eval_every) || last) {
                let paused = Instant::now();
                if let Some(exit_code) = self.evaluate(step)? {
                    return self.leave(exit_code);
                }
                // What evaluation took is not training's.
                (row.0, shown.0) = (row.0 + paused.elapsed(), shown.0 + paused.elapsed());
            }
            let training = self.text.training();
            self.generator.training_offsets(step, training.len() - options.block, &mut self.offsets);
            data::gather(training, &self.offsets, options.block, &mut self.inputs, &mut self.targets);
            let learning_rate = curve.learning_rate(step);
            let rates = Rates { learning_rate: learning_rate as f32, step: step + 1, seed: options.seed };
            let outcome = match self.learner.step(&self.inputs, &self.targets, rates) {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.progress.finish();
                    return Err(self.explain(error));
                }
            };
            self.step += 1;
            if self.step.is_multiple_of(options.log_every) || last {
                let now = Instant::now();
                self.metrics.add(&StepRow {
                    step,
                    loss: outcome.loss,
                    lr: learning_rate,
                    gradient_norm: outcome.gradient_norm,
                    tokens_per_s: rate(tokens, row, (now, self.step)),
                    seconds: self.seconds(),
                })?;
                row = (now, self.step);
            }
            if shown.0.elapsed() >= show_every || last {
                let now = Instant::now();
                self.progress.line(&StepReport {
                    step: self.step,
                    loss: outcome.loss,
                    validation: None,
                    learning_rate,
                    gradient_norm: outcome.gradient_norm,
                    tokens_per_s: rate(tokens, shown, (now, self.step)),
                    memory_bytes: memory::resident(),
                });
                shown = (now, self.step);
            }
            if let Some(exit_code) = self.interrupt.exit_code().filter(|_| !last) {
                return self.leave(exit_code);
            }
            if options.save_every > 0 && self.step.is_multiple_of(options.save_every) {
                let paused = Instant::now();
                self.save()?;
                (row.0, shown.0) = (row.0 + paused.elapsed(), shown.0 + paused.elapsed());
            }
        }
        self.save()?;
        self.finish(&options)?;
        Ok(End::Done)
    }

    /// Saves what was learned until a signal came, and says how to go on.
    fn leave(&mut self, exit_code: u8) -> Result<End> {
        self.save()?;
        self.progress.finish();
        self.progress.message(&format!(
            "interrupted after {} steps; resume with\n  {} train --resume --out {}",
            self.step,
            program(),
            self.out()
        ));
        Ok(End::Interrupted { exit_code })
    }

    /// Mean loss of `eval_batches` batches of each split, training first. A signal ends it as if it had not begun,
    /// with the exit code: an evaluation may take longer than whoever sent the signal will wait.
    fn evaluate(&mut self, step: u64) -> Result<Option<u8>> {
        let options = &self.recipe.options;
        let before = self.generator.clone();
        let tokens = (options.batch * options.block) as u64;
        let (at_once, mut losses) = ((EVALUATED_AT_ONCE / tokens).max(1), [0.0; 2]);
        let splits = [self.text.training(), self.text.validation()];
        for (index, (loss, split)) in (0..).zip(losses.iter_mut().zip(splits)) {
            let (range, first) = (split.len() - options.block, index * options.eval_batches);
            let mut done = 0;
            while done < options.eval_batches {
                if let Some(exit_code) = self.interrupt.exit_code() {
                    self.generator = before;
                    return Ok(Some(exit_code));
                }
                let count = at_once.min(options.eval_batches - done);
                let (mut inputs, mut targets) = (vec![], vec![]);
                for batch in first + done..first + done + count {
                    self.generator.evaluation_offsets(step, batch, range, &mut self.offsets);
                    data::gather(split, &self.offsets, options.block, &mut self.inputs, &mut self.targets);
                    inputs.extend_from_slice(&self.inputs);
                    targets.extend_from_slice(&self.targets);
                }
                *loss += self.learner.evaluate(&inputs, &targets)? * count as f64;
                done += count;
            }
            *loss /= options.eval_batches as f64;
        }
        let [train_loss, val_loss] = losses;
        if step.is_multiple_of(options.eval_every) {
            self.best_validation = Some(self.best_validation.map_or(val_loss, |best| best.min(val_loss)));
        }
        self.metrics.add(&EvaluationRow { step, train_loss, val_loss, seconds: self.seconds() })?;
        self.progress.evaluation(step, train_loss, val_loss);
        Ok(None)
    }

    /// Seconds the run has taken, all its processes together.
    fn seconds(&self) -> f64 {
        self.metrics.seconds() + self.begin.elapsed().as_secs_f64()
    }

    /// Model and state, committed together; said only once they are durable. What is saved already stays as it is,
    /// and only its link, which a kill may have forestalled, is made sure of.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.step) {
            return checkpoint::point(self.run.path(), self.step);
        }
        let options = &self.recipe.options;
        let weights = self.learner.weights();
        if let Some(bad) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(Error::Diverged(format!(
                "step {}: weight {bad} is {}; this is not saved\n  help: resume from the last checkpoint with a \
                 smaller --learning-rate",
                self.step, weights[bad]
            )));
        }
        self.metrics.sync()?;
        let checkpoints = self.run.checkpoints();
        let mut commit = Commit::begin(&checkpoints, self.step)?;
        let files = ModelFiles {
            config: &self.config,
            layout: self.learner.layout(),
            dtype: options.dtype,
            values: &weights,
            tokenizer: Some(&self.tokenizer),
            generation: &GenerationConfig::plain(),
        };
        checkpoint::write_model(&mut commit, "model/", &files)?;
        let state = TrainState {
            step: self.step,
            first_moment: self.learner.first_moment(),
            second_moment: self.learner.second_moment(),
            weights,
            generator: self.generator.state(),
            best_validation: self.best_validation,
            text: self.text.fingerprint().clone(),
            options: options.fixed()?,
        };
        state.write(&mut commit)?;
        commit.finish()?;
        checkpoint::point(self.run.path(), self.step)?;
        checkpoint::retain(&checkpoints, options.keep)?;
        self.saved = Some(self.step);
        self.progress.message(&format!("saved step {}", self.step));
        Ok(())
    }

    /// The sample, the report, and what to do next.
    fn finish(&mut self, options: &Options) -> Result<()> {
        self.progress.finish();
        let model = self.run.path().join("model");
        let sample = if options.sample > 0 {
            let seed = options.seed;
            self.progress.message(&format!("sample  {} tokens by the runtime, seed {seed}:", options.sample));
            sample::write(&model, options.sample, options.seed)?
        } else {
            String::new()
        };
        let seconds = self.seconds();
        let mut summary = vec![
            ("preset".to_owned(), options.preset.clone()),
            ("parameters".to_owned(), grouped(self.learner.layout().parameters() as u64)),
            ("steps".to_owned(), grouped(self.step)),
            ("seconds".to_owned(), format!("{seconds:.1}")),
        ];
        if let Some(best) = self.best_validation {
            summary.push(("best validation loss".to_owned(), format!("{best:.4}")));
        }
        let page = report::html(&ReportInput {
            title: &format!("{} on {}", options.preset, names(&self.recipe.data)),
            rows: &report::rows(&self.run.metrics_text()),
            config: &self.recipe.to_toml()?,
            sample: &sample,
            summary: &summary,
        });
        self.run.replace("report.html", page.as_bytes())?;
        self.progress.message(&format!("report  {}", self.run.path().join("report.html").display()));
        self.progress.message(&format!(
            "done in {seconds:.1} s; generate with\n  {} generate --model {}",
            sample::runtime(),
            self.out()
        ));
        Ok(())
    }

    fn out(&self) -> String {
        quoted(self.run.path())
    }

    /// A failure during training, with what is still safe.
    fn explain(&self, error: Error) -> Error {
        match (error, self.saved) {
            (Error::Diverged(text), Some(step)) => {
                Error::Diverged(format!("{text}\n  the checkpoint of step {step} is intact"))
            }
            (error, _) => error,
        }
    }
}

/// The state of a checkpoint, refused if it is of another run.
fn restore(path: &Path, run: &Run, options: &Options, text: &Text, layout: &Layout) -> Result<TrainState> {
    let state = TrainState::open(path, layout.parameters());
    // Another text may change the vocabulary and with it the parameter count: say the cause, not the effect.
    let differs = |found: &TrainState| found.text != *text.fingerprint();
    let state = match state {
        Ok(state) if !differs(&state) => state,
        Ok(state) => return Err(other_text(run, text, &state)),
        Err(error) => {
            let stored = TrainState::text_of(path)?;
            if stored == *text.fingerprint() {
                return Err(error);
            }
            return Err(other_fingerprint(run, text, &stored));
        }
    };
    refuse_differences(options, &state.options, run.path())?;
    Ok(state)
}

fn other_text(run: &Run, text: &Text, state: &TrainState) -> Error {
    other_fingerprint(run, text, &state.text)
}

fn other_fingerprint(run: &Run, text: &Text, stored: &data::Fingerprint) -> Error {
    Error::config(
        run.path().display().to_string(),
        "data",
        text.fingerprint(),
        format!("{stored}, the text the run was started with"),
    )
}

/// The state before the first step.
fn fresh(
    generator: &mut Generator,
    options: &Options,
    text: &Text,
    layout: &Layout,
    config: &Config,
) -> Result<TrainState> {
    let zero = vec![0.0; layout.parameters()];
    let mut weights = zero.clone();
    generator.initialise(&mut weights, layout, config, options.init);
    Ok(TrainState {
        step: 0,
        weights,
        first_moment: zero.clone(),
        second_moment: zero,
        generator: (options.rng == RngKind::Torch).then(|| generator.state()).flatten(),
        best_validation: None,
        text: text.fingerprint().clone(),
        options: options.fixed()?,
    })
}

fn rate(tokens: f64, from: (Instant, u64), to: (Instant, u64)) -> f64 {
    let seconds = to.0.saturating_duration_since(from.0).as_secs_f64();
    if seconds > 0.0 { tokens * (to.1 - from.1) as f64 / seconds } else { 0.0 }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn names(data: &[PathBuf]) -> String {
    let name =
        |path: &PathBuf| path.file_name().map_or(path.display().to_string(), |n| n.display().to_string());
    data.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// This program as it was called.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "trainer".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (208_961, "208,961"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn paths_come_back_from_a_shell_as_they_went() {
        assert_eq!(quoted(Path::new("runs/zero-1")), "runs/zero-1");
        assert_eq!(quoted(Path::new("my run's")), "'my run'\\''s'");
    }
}
