//! One run from its request to its last checkpoint: the order in which everything else is called.
//!
//! Evaluation before a step draws before the step draws, saving takes what is learned after the step and writes it beside
//! the next ones; nothing here depends on time but what is shown and the seconds in `metrics.jsonl`.

use crate::backend::Backend;
use crate::backend::choice::{self, Job};
use crate::data::{self, Batch, Data, Side, TokenizerSource};
use crate::device::ranks::Ranks;
use crate::finetune::Begun;
use crate::learner::{BatchShape, Learner, Outcome, Rates};
use crate::memory::{self, MemoryPlan};
use crate::mixing::{Load, Worst};
use crate::options::{Options, Recipe, Request};
use crate::progress::{Progress, StepReport};
use crate::random::{Generator, RngKind};
use crate::report::{self, ReportInput};
use crate::run::{EvaluationRow, Metrics, Run, StepRow};
use crate::sample;
use crate::saver::{Frame, Saver};
use crate::signals::Interrupt;
use crate::start::{fresh, restore, settle, tokenizer};
use crate::state::TrainState;
use formats::checkpoint::{self, GenerationConfig};
use formats::families::Family;
use formats::tokenizer::Tokenizer;
use formats::{Config, Error, Layout, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// On a terminal the live line follows as fast as one can read; elsewhere a line is kept, so it comes rarely.
const LIVE_EVERY: Duration = Duration::from_millis(100);
const PLAIN_EVERY: Duration = Duration::from_secs(2);
/// Tokens of an evaluation that are gathered before they are judged; a signal waits no longer.
const EVALUATED_AT_ONCE: usize = 1 << 16;
/// What a process exits with whose sisters were told to stop: as if it had been told, too.
const TERMINATED: u8 = 143;

/// Adds the losses of the batch's windows to those of the splits they are from, so many of each, and empties it. Both
/// splits are judged at once, since their windows may begin alike.
fn judge<B: Backend>(
    learner: &mut Learner<B>,
    batch: &mut Batch,
    windows: &mut [usize; 2],
    losses: &mut [f64; 2],
) -> Result<()> {
    let judged = learner.model_mut().evaluate_stretches(&batch.inputs, &batch.targets, windows)?;
    losses.iter_mut().zip(judged).for_each(|(total, loss)| *total += loss);
    *windows = [0; 2];
    batch.clear();
    Ok(())
}

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
    // Of several processes the first alone does that; none begins before all have looked.
    let first = Ranks::from_environment()?.is_none_or(|ranks| ranks.is_first());
    let run = match out.is_dir() {
        true if first => Some(Run::lock(out)?),
        true if resume => Some(Run::visit(out)),
        _ => None,
    };
    let (recipe, recorded) = settle(request, run.as_ref(), out, resume)?;
    let options = &recipe.options;
    let mut problems = vec![];
    let newest = match run.as_ref().map(Run::checkpoints).filter(|checkpoints| checkpoints.is_dir()) {
        Some(checkpoints) => {
            if first {
                checkpoint::clean(&checkpoints)?;
            }
            checkpoint::newest(&checkpoints, &mut problems)?
        }
        None => None,
    };
    let at = newest.as_ref().map(|(_, path)| path.as_path());
    let begun = Begun::open(&recipe, at)?;
    let given = match begun.tokenizer.clone() {
        None => tokenizer(&recipe, recorded.as_ref(), at, out)?,
        own => own,
    };
    let Recipe { data: paths, data_weight: weights, .. } = &recipe;
    let asked = data::Request { paths, weights, held_out: options.held_out, block: options.block };
    let (tokenizer, data) = Data::open(&asked, given)?;
    if let (Data::Corpus(_), RngKind::Torch) = (&data, options.rng) {
        let expected = "counter for shards and weighted data, whose order PyTorch's generator does not draw";
        return Err(Error::config("options", "rng", "torch", expected));
    }
    let config = options.model(begun.vocabulary(&tokenizer)?)?;
    let sampled = (begun.generation(&tokenizer), tokenizer);
    let Options { device, precision, threads, .. } = recipe.options;
    let plan = Plan { recipe, newest, problems, config, sampled, data, run, out };
    choice::carry_out(plan, device, precision, threads)
}

/// All that is known of a run before it takes its directory.
struct Plan<'a> {
    recipe: Recipe,
    /// The newest checkpoint that verifies, and what was wrong with newer ones.
    newest: Option<(u64, PathBuf)>,
    problems: Vec<Error>,
    config: Config,
    sampled: (GenerationConfig, Tokenizer),
    data: Data,
    /// Its directory, if it is there.
    run: Option<Run>,
    out: &'a Path,
}

impl Job for Plan<'_> {
    type Output = End;
    const TOGETHER: bool = true;

    fn on<B: Backend>(mut self, backend: B, device: &str) -> Result<End> {
        let options = &self.recipe.options;
        let memory = Learner::require_memory(&backend, &self.config, shape(options), options.recompute)?;
        let run = match self.run.take() {
            Some(run) => run,
            None if backend.ranks().0 == 0 => Run::lock(self.out)?,
            None => Run::visit(self.out),
        };
        Trainer::begin(backend, (device, memory), run, self)?.carry_out()
    }
}

/// Refuses processes that do not begin from the same step and weights.
fn agree<B: Backend>(learner: &Learner<B>, state: &TrainState) -> Result<()> {
    let world = learner.model().backend().ranks().1 as f64;
    // Of whole numbers up to here a float holds each.
    let digest = xxh3_64(bytemuck::cast_slice(&state.weights)) >> 40;
    for number in [state.step as f32, digest as f32] {
        if learner.united(number)? != world * f64::from(number) {
            return Err(Error::Usage(
                "the processes of this run begin from different weights\n  help: give all of them the same command and \
                 the same files"
                    .to_owned(),
            ));
        }
    }
    Ok(())
}

fn shape(options: &Options) -> BatchShape {
    BatchShape { sequences: options.batch, block: options.block }
}

/// Adds a step's loads to those of the steps before it.
fn gather_loads(sum: &mut Vec<Load>, step: &[Load]) {
    if sum.is_empty() {
        *sum = step.to_vec();
    } else {
        sum.iter_mut().zip(step).for_each(|(sum, step)| sum.merge(step));
    }
}

/// A run under way.
struct Trainer<B: Backend> {
    run: Arc<Run>,
    recipe: Recipe,
    data: Data,
    generator: Generator,
    learner: Learner<B>,
    step: u64,
    best_validation: Option<f64>,
    saver: Saver,
    progress: Progress,
    interrupt: Interrupt,
    begin: Instant,
    batch: Batch,
    /// Layer and number of each expert that was warned of.
    starved: Vec<(usize, usize)>,
    /// What the last step that was asked of saw.
    outcome: Outcome,
    /// Whether a step was made since.
    unread: bool,
    /// Whether it was said what a step is.
    told: bool,
    /// What the steps since the last row, and since the last line shown, asked of the experts.
    row_loads: Vec<Load>,
    shown_loads: Vec<Load>,
}

impl<B: Backend> Trainer<B> {
    /// Starts from the newest checkpoint that verifies, or from fresh weights.
    fn begin(backend: B, (device, memory): (&str, MemoryPlan), run: Run, plan: Plan) -> Result<Trainer<B>> {
        let Plan { recipe, newest, problems, config, sampled, data, .. } = plan;
        let (generation, tokenizer) = sampled;
        let options = &recipe.options;
        let layout = Layout::new(&config);
        let mut generator = Generator::new(options.rng, options.seed);
        let state = match &newest {
            Some((_, path)) => restore(path, &run, &recipe, &data, &layout)?,
            None => fresh(&mut generator, &recipe, &data, &layout, &config, &tokenizer)?,
        };
        if let Some(kept) = &state.generator {
            generator = Generator::restore(kept).ok_or_else(|| {
                Error::file(run.path(), "holds a damaged generator state", "resume from another checkpoint")
            })?;
        }
        let (free, first) = (backend.available(), backend.ranks().0 == 0);
        let mut learner = Learner::with(
            backend,
            &config,
            shape(options),
            &options.optimizer(),
            &options.mixing(),
            options.recompute,
        )?;
        learner.load(&state.weights, &state.first_moment, &state.second_moment)?;

        let mut progress = match first {
            true => Progress::new(options.progress, options.steps, state.step),
            false => Progress::silent(),
        };
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
        if let Some(from) = &recipe.from {
            let family = Family::of(&config).model_type();
            progress.message(&format!("from    {} ({family})", from.display()));
        }
        if let Some(experts) = &config.experts {
            progress.message(&format!(
                "experts {} a layer, {} active{}; {} parameters are active for a token",
                experts.count,
                experts.active,
                if experts.shared > 0 { format!(", {} shared", experts.shared) } else { String::new() },
                grouped(layout.active_parameters() as u64)
            ));
        }
        progress.message(&format!(
            "data    {} training and {} validation tokens, vocabulary {}",
            grouped(data.tokens(Side::Training)),
            grouped(data.tokens(Side::Validation)),
            config.vocabulary
        ));
        data.notes().iter().for_each(|note| progress.message(note));
        progress.message(&format!(
            "device  {device}; needs {} MiB{}",
            memory.total().div_ceil(1 << 20),
            free.map_or(String::new(), |free| format!(", {} MiB are free", free >> 20))
        ));
        progress.message(&format!("seed    {}", options.seed));
        if state.step > 0 {
            progress.message(&format!("resumed from step {}", state.step));
        }
        // Whole paths, so that the run can be resumed from any directory.
        let whole = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let tokenizer_source = match &options.tokenizer {
            TokenizerSource::File(path) => TokenizerSource::File(whole(path)),
            word => word.clone(),
        };
        agree(&learner, &state)?;
        if first {
            run.record(&Recipe {
                options: Options { tokenizer: tokenizer_source, ..options.clone() },
                data: recipe.data.iter().map(whole).collect(),
                data_weight: recipe.data_weight.clone(),
                upcycle: recipe.upcycle.as_ref().map(whole),
                from: recipe.from.as_ref().map(whole),
            })?;
        }
        let (run, saved) = (Arc::new(run), newest.map(|(step, _)| step));
        let saver = if first {
            let (run, metrics) = (Arc::clone(&run), run.metrics(state.step)?);
            let Options { dtype, keep, .. } = *options;
            Saver::new(Frame { run, metrics, config, layout, tokenizer, generation, dtype, keep }, saved)
        } else {
            Saver::of_another_process(saved)
        };
        Ok(Trainer {
            interrupt: Interrupt::listen()?,
            begin: Instant::now(),
            batch: Batch::default(),
            starved: vec![],
            outcome: Outcome::default(),
            unread: false,
            told: false,
            row_loads: vec![],
            shown_loads: vec![],
            step: state.step,
            best_validation: state.best_validation,
            saver,
            run,
            data,
            generator,
            learner,
            progress,
            recipe,
        })
    }

    /// Every step that is left, and what follows the last. Whatever ends them, a checkpoint under way is finished.
    fn carry_out(mut self) -> Result<End> {
        self.all_steps().or_else(|error| {
            self.progress.finish();
            // It was asked for before the steps beside it were: its failure is the first.
            self.saver.wait(&mut self.progress)?;
            Err(self.explain(error))
        })
    }

    fn all_steps(&mut self) -> Result<End> {
        let options = self.recipe.options.clone();
        let curve = options.curve();
        let show_every = if self.progress.is_live() { LIVE_EVERY } else { PLAIN_EVERY };
        let tokens = (options.sequences() * options.block) as f64;
        // Throughput since the last row and since the last line shown.
        let (mut row, mut shown) = ((Instant::now(), self.step), (Instant::now(), self.step));
        while self.step < options.steps {
            self.saver.look(&mut self.progress)?;
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
            let windows = (options.sequences(), options.block);
            self.data.training(&mut self.generator, options.seed, step, windows, &mut self.batch)?;
            let learning_rate = curve.learning_rate(step);
            let rates = Rates { learning_rate: learning_rate as f32, step: step + 1, seed: options.seed };
            self.learner.step(&self.batch.inputs, &self.batch.targets, rates)?;
            self.step += 1;
            self.unread = true;
            self.tell_records();
            let due = self.step.is_multiple_of(options.log_every) || last;
            let shows = shown.0.elapsed() >= show_every || last;
            if B::AT_HAND || due || shows {
                self.read()?;
            }
            let outcome = self.outcome;
            if due {
                let now = Instant::now();
                self.log(&StepRow {
                    step,
                    loss: outcome.loss,
                    lr: learning_rate,
                    gradient_norm: outcome.gradient_norm,
                    tokens_per_s: rate(tokens, row, (now, self.step)),
                    experts: self.row_loads.iter().map(Load::health).collect(),
                    seconds: self.seconds(),
                })?;
                self.row_loads.iter_mut().for_each(Load::clear);
                row = (now, self.step);
            }
            if shows {
                let now = Instant::now();
                self.progress.line(&StepReport {
                    step: self.step,
                    loss: outcome.loss,
                    validation: None,
                    learning_rate,
                    gradient_norm: outcome.gradient_norm,
                    tokens_per_s: rate(tokens, shown, (now, self.step)),
                    memory_bytes: memory::resident(),
                    experts: Worst::of(&self.shown_loads),
                });
                self.warn_of_starving();
                self.shown_loads.iter_mut().for_each(Load::clear);
                shown = (now, self.step);
            }
            if let Some(exit_code) = self.interrupted(due)?.filter(|_| !last) {
                return self.leave(exit_code);
            }
            if options.save_every > 0 && self.step.is_multiple_of(options.save_every) && !last {
                let paused = Instant::now();
                self.begin_save()?;
                (row.0, shown.0) = (row.0 + paused.elapsed(), shown.0 + paused.elapsed());
            }
        }
        self.save()?;
        self.finish(&options)?;
        self.learner.model().backend().part();
        Ok(End::Done)
    }

    /// Says once what a step is on a device that records it.
    fn tell_records(&mut self) {
        let recorded = if self.told { None } else { self.learner.nodes() };
        let Some((graphs, nodes)) = recorded else { return };
        self.told = true;
        let graphs = if graphs == 1 { "one graph".to_owned() } else { format!("{graphs} graphs") };
        self.progress.message(&format!("step    {graphs} of {nodes} nodes"));
    }

    /// Asks what the last step saw, if it is not known: a device may still be at work on it.
    fn read(&mut self) -> Result<()> {
        if std::mem::take(&mut self.unread) {
            self.outcome = self.learner.outcome()?;
            gather_loads(&mut self.row_loads, self.learner.model().loads());
            gather_loads(&mut self.shown_loads, self.learner.model().loads());
        }
        Ok(())
    }

    /// Says once of each expert that hardly any row chooses it, and what helps.
    fn warn_of_starving(&mut self) {
        for load in &self.shown_loads {
            for expert in load.starving() {
                if self.starved.contains(&(load.layer, expert)) {
                    continue;
                }
                self.starved.push((load.layer, expert));
                let share = load.shares().nth(expert).unwrap_or(0.0);
                self.progress.message(&format!(
                    "warning: expert {expert} of layer {} starves: {:.2} % of the choices, an even share is {:.2} %\n  \
                     help: raise --balance (now {}), or balance without a loss by --bias-rate 0.001",
                    load.layer,
                    100.0 * share,
                    100.0 / load.counts.len() as f64,
                    self.recipe.options.balance
                ));
            }
        }
    }

    /// Saves what was learned until a signal came, and says how to go on.
    fn leave(&mut self, exit_code: u8) -> Result<End> {
        self.save()?;
        self.learner.model().backend().part();
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
        self.read()?;
        let options = &self.recipe.options;
        let (before, alone) = (self.generator.clone(), self.learner.model().backend().ranks().1 == 1);
        let (mut losses, mut windows) = ([0.0; 2], [0; 2]);
        self.batch.clear();
        for side in Side::ALL {
            for number in 0..options.eval_batches {
                if self.batch.inputs.len() >= EVALUATED_AT_ONCE {
                    judge(&mut self.learner, &mut self.batch, &mut windows, &mut losses)?;
                }
                if let Some(exit_code) = self.interrupt.exit_code().filter(|_| alone) {
                    self.generator = before;
                    return Ok(Some(exit_code));
                }
                self.saver.look(&mut self.progress)?;
                let place = (step, side, options.eval_batches, number);
                let Trainer { data, generator, batch, .. } = self;
                data.evaluation(generator, options.seed, place, (options.batch, options.block), batch)?;
                windows[side as usize] += options.batch;
            }
        }
        judge(&mut self.learner, &mut self.batch, &mut windows, &mut losses)?;
        let tokens = (options.eval_batches * (options.batch * options.block) as u64) as f64;
        let [train_loss, val_loss] = losses.map(|loss| loss / tokens);
        if step.is_multiple_of(options.eval_every) {
            self.best_validation = Some(self.best_validation.map_or(val_loss, |best| best.min(val_loss)));
        }
        self.log(&EvaluationRow { step, train_loss, val_loss, seconds: self.seconds() })?;
        self.progress.evaluation(step, train_loss, val_loss);
        Ok(None)
    }

    /// Seconds the run has taken, all its processes together.
    fn seconds(&self) -> f64 {
        self.saver.metrics().map_or(0.0, Metrics::seconds) + self.begin.elapsed().as_secs_f64()
    }

    /// Adds a row to the run's metrics.
    fn log(&mut self, row: &impl Serialize) -> Result<()> {
        self.saver.metrics().map_or(Ok(()), |metrics| metrics.add(row))
    }

    /// What to exit with, if a signal came. Several processes must leave after the same step, so they ask one another,
    /// which waits for the device, where a row is `due` anyway.
    fn interrupted(&self, due: bool) -> Result<Option<u8>> {
        let own = self.interrupt.exit_code();
        if self.learner.model().backend().ranks().1 == 1 {
            return Ok(own);
        }
        let any = due && self.learner.united(f32::from(u8::from(own.is_some())))? > 0.0;
        Ok(any.then_some(own.unwrap_or(TERMINATED)))
    }

    /// Begins to save what was learned, beside the steps that follow. What is saved already stays as it is, and only its
    /// link and the retention are made sure of.
    fn begin_save(&mut self) -> Result<()> {
        // The copies of the checkpoint before are gone before there are others.
        self.saver.wait(&mut self.progress)?;
        if !self.saver.writes() {
            return Ok(());
        }
        if self.saver.saved() == Some(self.step) {
            return self.saver.settle();
        }
        let state = self.take()?;
        self.saver.begin(state, &mut self.progress)
    }

    /// Saves what was learned, and goes on only once that is durable.
    fn save(&mut self) -> Result<()> {
        self.begin_save()?;
        self.saver.wait(&mut self.progress)
    }

    /// All that was learned, as it stands.
    fn take(&mut self) -> Result<TrainState> {
        self.read()?;
        let weights = self.learner.model().weights()?;
        if let Some(bad) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(Error::Diverged(format!(
                "step {}: weight {bad} is {}; this is not saved\n  help: resume from the last checkpoint with a \
                 smaller --learning-rate",
                self.step, weights[bad]
            )));
        }
        Ok(TrainState {
            step: self.step,
            first_moment: self.learner.first_moment()?,
            second_moment: self.learner.second_moment()?,
            weights,
            generator: self.generator.state(),
            best_validation: self.best_validation,
            text: self.data.fingerprint().clone(),
            options: self.recipe.fixed()?,
        })
    }

    /// The sample, the report, and what to do next.
    fn finish(&mut self, options: &Options) -> Result<()> {
        self.progress.finish();
        if !self.saver.writes() {
            return Ok(());
        }
        let model = self.run.path().join("model");
        let (mut sample, mut sampled) = (String::new(), Ok(()));
        if options.sample > 0 {
            let seed = options.seed;
            self.progress.message(&format!("sample  {} tokens by the runtime, seed {seed}:", options.sample));
            // Whatever becomes of the sample, the run deserves its report.
            sampled = sample::write(&model, options.sample, options.seed, &mut sample);
        }
        let seconds = self.seconds();
        let mut summary = vec![
            ("preset".to_owned(), options.preset.clone()),
            ("parameters".to_owned(), grouped(self.learner.model().layout().parameters() as u64)),
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
        sampled
    }

    fn out(&self) -> String {
        quoted(self.run.path())
    }

    /// A failure during training, with what is still safe.
    fn explain(&self, error: Error) -> Error {
        match (error, self.saver.saved()) {
            (Error::Diverged(text), Some(step)) => {
                Error::Diverged(format!("{text}\n  the checkpoint of step {step} is intact"))
            }
            (error, _) => error,
        }
    }
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
mod tests;
