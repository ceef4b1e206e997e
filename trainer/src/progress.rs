//! What a person sees while it trains: one live line on a terminal, plain lines in a log, objects for a program.
//!
//! Everything goes to stderr, and no control code is written where stderr is not a terminal. How often a line is due
//! is the training loop's decision; numbers are told here, never computed, except for the time that is left. A reader
//! that has gone (a closed pipe) never stops a run: what cannot be written is dropped.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::mixing::Worst;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

/// How a run tells its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressMode {
    /// One live line on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Plain lines, even on a terminal.
    Plain,
    /// One JSON object a line.
    Json,
    /// No lines and no evaluations; messages stay.
    Off,
}

/// The numbers of one training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of the step's batch, nats per token.
    pub loss: f64,
    /// The newest validation loss; where absent, the last evaluation's is shown.
    pub validation: Option<f64>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Training throughput since the last report.
    pub tokens_per_s: f64,
    /// What the process holds.
    pub memory_bytes: u64,
    /// How the experts fare, if there are any.
    pub experts: Option<Worst>,
}

/// One line of [`ProgressMode::Json`]. Keys shared with metrics.jsonl have its names.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Step {
        step: u64,
        steps: u64,
        loss: f64,
        val_loss: Option<f64>,
        lr: f64,
        gradient_norm: f64,
        tokens_per_s: f64,
        eta_seconds: Option<f64>,
        memory_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        experts: Option<Worst>,
    },
    Evaluation {
        step: u64,
        train_loss: f64,
        val_loss: f64,
    },
    Message {
        text: &'a str,
    },
}

enum Output {
    Live { bar: ProgressBar, drawn: Option<Instant> },
    Plain(Box<dyn Write + Send>),
    Json(Box<dyn Write + Send>),
    Off(Box<dyn Write + Send>),
}

/// The teller of one run's progress.
pub struct Progress {
    output: Output,
    total_steps: u64,
    already: u64,
    started: Instant,
    validation: Option<f64>,
}

/// A live line is not redrawn sooner: nobody reads faster, and a small model makes thousands of steps a second.
const REDRAW: Duration = Duration::from_millis(60);

impl Progress {
    /// Begins to tell a run of `total_steps`, of which `already` were done before this process.
    pub fn new(mode: ProgressMode, total_steps: u64, already: u64) -> Progress {
        let stderr = std::io::stderr();
        // A dumb terminal (an editor's, a CI log's) would show the live line's control codes as text.
        let capable = stderr.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        if mode != ProgressMode::Auto || !capable {
            return Progress::writing_to(Box::new(stderr), mode, total_steps, already);
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Progress::with(Output::Live { bar, drawn: None }, total_steps, already)
    }

    /// Tells nothing: in a process that leaves it to another.
    pub fn silent() -> Progress {
        Progress::writing_to(Box::new(std::io::sink()), ProgressMode::Off, 0, 0)
    }

    fn writing_to(
        writer: Box<dyn Write + Send>,
        mode: ProgressMode,
        total_steps: u64,
        already: u64,
    ) -> Progress {
        let output = match mode {
            ProgressMode::Auto | ProgressMode::Plain => Output::Plain(writer),
            ProgressMode::Json => Output::Json(writer),
            ProgressMode::Off => Output::Off(writer),
        };
        Progress::with(output, total_steps, already)
    }

    fn with(output: Output, total_steps: u64, already: u64) -> Progress {
        Progress { output, total_steps, already, started: Instant::now(), validation: None }
    }

    /// Whether there is a live line, which may be given every step; elsewhere each report is a line of its own.
    pub fn is_live(&self) -> bool {
        matches!(self.output, Output::Live { .. })
    }

    /// Tells one step.
    pub fn line(&mut self, report: &StepReport) {
        self.validation = report.validation.or(self.validation);
        let remaining = remaining(
            self.started.elapsed(),
            report.step.saturating_sub(self.already),
            self.total_steps.saturating_sub(report.step),
        );
        match &mut self.output {
            Output::Live { bar, drawn } => {
                let early = drawn.is_some_and(|at| at.elapsed() < REDRAW);
                if early && report.step < self.total_steps {
                    return;
                }
                *drawn = Some(Instant::now());
                bar.set_message(glance(report, self.total_steps, self.validation, remaining));
            }
            Output::Plain(writer) => {
                write_line(writer, &sentence(report, self.total_steps, self.validation, remaining))
            }
            Output::Json(writer) => write_event(
                writer,
                &Event::Step {
                    step: report.step,
                    steps: self.total_steps,
                    loss: report.loss,
                    val_loss: self.validation,
                    lr: report.learning_rate,
                    gradient_norm: report.gradient_norm,
                    tokens_per_s: report.tokens_per_s,
                    eta_seconds: remaining.map(|time| time.as_secs_f64()),
                    memory_bytes: report.memory_bytes,
                    experts: report.experts,
                },
            ),
            Output::Off(_) => {}
        }
    }

    /// Tells one evaluation, in the lecture's words.
    pub fn evaluation(&mut self, step: u64, train: f64, val: f64) {
        self.validation = Some(val);
        let row = format!("step {step}: train loss {train:.4}, val loss {val:.4}");
        match &mut self.output {
            Output::Json(writer) => {
                write_event(writer, &Event::Evaluation { step, train_loss: train, val_loss: val })
            }
            Output::Off(_) => {}
            Output::Live { .. } | Output::Plain(_) => self.message(&row),
        }
    }

    /// Says something whole, above the live line where there is one.
    pub fn message(&mut self, text: &str) {
        match &mut self.output {
            Output::Live { bar, .. } => bar.suspend(|| write_line(&mut std::io::stderr(), text)),
            Output::Plain(writer) | Output::Off(writer) => write_line(writer, text),
            Output::Json(writer) => write_event(writer, &Event::Message { text }),
        }
    }

    /// Takes the live line away; whatever is told later is a plain line.
    pub fn finish(&mut self) {
        if let Output::Live { bar, .. } = &self.output {
            bar.finish_and_clear();
            self.output = Output::Plain(Box::new(std::io::stderr()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Time left if the rest goes as this process's steps went; `None` before the first of them.
fn remaining(elapsed: Duration, done: u64, left: u64) -> Option<Duration> {
    if done == 0 {
        return None;
    }
    Duration::try_from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64).ok()
}

/// The live line. It fits 80 columns for runs of up to 9999 steps, and its least important number stands last,
/// where a narrow terminal cuts it.
fn glance(report: &StepReport, total: u64, validation: Option<f64>, remaining: Option<Duration>) -> String {
    let validation = validation.map(|loss| format!(" val {loss:.4}")).unwrap_or_default();
    let experts = report.experts.map(|worst| format!(" {}", health(&worst))).unwrap_or_default();
    format!(
        "{} {}/{total} loss {:.4}{validation} lr {:.1e} {} tok/s eta {} {}{experts}",
        bar(report.step, total),
        report.step,
        report.loss,
        report.learning_rate,
        thousands(report.tokens_per_s),
        eta(remaining),
        memory(report.memory_bytes),
    )
}

/// The experts of the layer that fares worst, number by number.
fn health(worst: &Worst) -> String {
    let mut text = format!(
        "load {:.2} maxvio {:.2} router {:.2}",
        worst.load_entropy, worst.max_violation, worst.router_entropy
    );
    if worst.dead > 0 {
        text += &format!(" dead {}", worst.dead);
    }
    if worst.dropped > 0.0 {
        text += &format!(" dropped {:.1}%", 100.0 * worst.dropped);
    }
    text
}

/// A bar of six cells, to the half cell.
fn bar(step: u64, total: u64) -> String {
    const CELLS: usize = 6;
    let halves = (step.min(total) as f64 / total.max(1) as f64 * (2 * CELLS) as f64) as usize;
    let half = halves % 2;
    ["━".repeat(halves / 2), "╸".repeat(half), "─".repeat(CELLS - halves / 2 - half)].concat()
}

/// The plain line.
fn sentence(report: &StepReport, total: u64, validation: Option<f64>, remaining: Option<Duration>) -> String {
    let width = total.to_string().len();
    let validation = validation.map(|loss| format!("  val {loss:.4}")).unwrap_or_default();
    let experts = report.experts.map(|worst| format!("  {}", health(&worst))).unwrap_or_default();
    format!(
        "step {:>width$}/{total}  loss {:.4}{validation}  lr {:.2e}  grad {:.2}  {} tokens/s  eta {}  {}{experts}",
        report.step,
        report.loss,
        report.learning_rate,
        report.gradient_norm,
        thousands(report.tokens_per_s),
        eta(remaining),
        memory(report.memory_bytes),
    )
}

fn eta(remaining: Option<Duration>) -> String {
    remaining.map_or_else(|| "?".to_string(), |time| clock(time.as_secs()))
}

/// `41s`, `2m 05s`, `3h 07m`, `2d 04h`: two units at most, so that the line keeps its width.
fn clock(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// `950`, `9.5k`, `193k`, `1.20M`.
fn thousands(rate: f64) -> String {
    match rate {
        r if !r.is_finite() => "?".to_string(),
        r if r < 999.5 => format!("{r:.0}"),
        r if r < 99_950.0 => format!("{:.1}k", r / 1e3),
        r if r < 999_500.0 => format!("{:.0}k", r / 1e3),
        r => format!("{:.2}M", r / 1e6),
    }
}

fn memory(bytes: u64) -> String {
    const MEBIBYTE: f64 = (1u64 << 20) as f64;
    let mebibytes = bytes as f64 / MEBIBYTE;
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

fn write_line(writer: &mut dyn Write, text: &str) {
    // One write for one line: other writers to the same stderr cannot cut it in two.
    let _ = writer.write_all(format!("{text}\n").as_bytes()).and_then(|()| writer.flush());
}

fn write_event(writer: &mut dyn Write, event: &Event) {
    if let Ok(text) = serde_json::to_string(event) {
        write_line(writer, &text);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was told, for the test and its progress both.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        /// A progress whose messages are read here.
        pub(crate) fn messages(&self) -> Progress {
            Progress::writing_to(Box::new(self.clone()), ProgressMode::Off, 0, 0)
        }

        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic while writing").clone()).expect("UTF-8")
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 2.305_44,
            validation: None,
            learning_rate: 1e-3,
            gradient_norm: 0.823,
            tokens_per_s: 193_400.0,
            memory_bytes: 212 << 20,
            experts: None,
        }
    }

    fn told(mode: ProgressMode) -> String {
        let output = Shared::default();
        let mut progress = Progress::writing_to(Box::new(output.clone()), mode, 5000, 0);
        progress.message("208,961 parameters");
        progress.line(&report(400));
        progress.evaluation(400, 2.362_649, 2.367_9);
        progress.line(&report(500));
        progress.finish();
        output.text()
    }

    #[test]
    fn plain_lines_are_whole_and_hold_every_number() {
        let text = told(ProgressMode::Plain);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "208,961 parameters");
        assert!(
            lines[1].starts_with("step  400/5000  loss 2.3054  lr 1.00e-3  grad 0.82  193k tokens/s  eta ")
        );
        assert!(lines[1].ends_with("212 MiB"));
        assert_eq!(lines[2], "step 400: train loss 2.3626, val loss 2.3679");
        assert!(lines[3].contains("loss 2.3054  val 2.3679  lr"), "the last evaluation stays in view");
    }

    #[test]
    fn nothing_but_a_terminal_gets_control_codes() {
        for mode in [ProgressMode::Auto, ProgressMode::Plain, ProgressMode::Json, ProgressMode::Off] {
            let text = told(mode);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{mode:?}: {text:?}");
            assert!(text.ends_with('\n'));
        }
    }

    #[test]
    fn json_is_one_object_a_line_with_the_keys_of_the_metrics() {
        let text = told(ProgressMode::Json);
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(events.len(), 4);
        assert_eq!(events[0]["event"], "message");
        assert_eq!(events[0]["text"], "208,961 parameters");
        assert_eq!(events[1]["event"], "step");
        assert_eq!(events[1]["step"], 400);
        assert_eq!(events[1]["lr"], 1e-3);
        assert!(events[1]["val_loss"].is_null());
        assert!(events[1]["eta_seconds"].is_number());
        assert_eq!(events[2]["event"], "evaluation");
        assert_eq!(events[2]["train_loss"], 2.362_649);
        assert_eq!(events[3]["val_loss"], 2.367_9);
    }

    #[test]
    fn off_tells_messages_only() {
        assert_eq!(told(ProgressMode::Off), "208,961 parameters\n");
    }

    #[test]
    fn a_reader_that_left_stops_nothing() {
        for mode in [ProgressMode::Plain, ProgressMode::Json, ProgressMode::Off] {
            let mut progress = Progress::writing_to(Box::new(Gone), mode, 10, 0);
            progress.message("hello");
            progress.line(&report(1));
            progress.evaluation(1, 1.0, 1.0);
        }
    }

    #[test]
    fn the_time_left_follows_this_process_alone() {
        let ten = Duration::from_secs(10);
        assert_eq!(remaining(ten, 0, 100), None);
        assert_eq!(remaining(ten, 100, 400), Some(Duration::from_secs(40)));
        assert_eq!(remaining(ten, 100, 0), Some(Duration::ZERO));
        assert_eq!(remaining(Duration::from_secs(u64::MAX), 1, u64::MAX), None);

        let output = Shared::default();
        let mut progress = Progress::writing_to(Box::new(output.clone()), ProgressMode::Plain, 5000, 400);
        progress.line(&report(400));
        progress.line(&report(399));
        progress.line(&report(6000));
        assert_eq!(output.text().matches("eta ?").count(), 2);
    }

    #[test]
    fn the_live_line_fits_a_terminal() {
        let line = glance(&report(1200), 5000, Some(2.212_1), Some(Duration::from_secs(83)));
        assert_eq!(line, "━───── 1200/5000 loss 2.3054 val 2.2121 lr 1.0e-3 193k tok/s eta 1m 23s 212 MiB");
        assert!(line.chars().count() < 80, "{} columns", line.chars().count());
    }

    #[test]
    fn the_bar_is_full_only_at_the_end() {
        assert_eq!(
            [(0, 10), (1, 10), (9, 10), (10, 10), (11, 10), (0, 0)].map(|(step, total)| bar(step, total)),
            ["──────", "╸─────", "━━━━━─", "━━━━━━", "━━━━━━", "──────"]
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [59, 60, 125, 3600, 11_220, 187_200].map(clock),
            ["59s", "1m 00s", "2m 05s", "1h 00m", "3h 07m", "2d 04h"]
        );
        assert_eq!(
            [0.0, 950.4, 999.7, 9_500.0, 99_960.0, 999_600.0, f64::INFINITY].map(thousands),
            ["0", "950", "1.0k", "9.5k", "100k", "1.00M", "?"]
        );
        assert_eq!([0, 212 << 20, 3 << 29].map(memory), ["0 MiB", "212 MiB", "1.5 GiB"]);
    }

    #[test]
    fn modes_have_the_flags_names() {
        use clap::ValueEnum;
        let names: Vec<String> = ProgressMode::value_variants()
            .iter()
            .filter_map(|mode| Some(mode.to_possible_value()?.get_name().to_string()))
            .collect();
        assert_eq!(names, ["auto", "plain", "json", "off"]);
    }
}
