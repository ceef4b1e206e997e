//! The run drawn as one HTML page: its curves, what it writes, and how it was set.
//!
//! A pure function of what it is given: no file, no clock, no script, nothing fetched. It reads the same in light, in
//! dark and on paper. The training loop writes it into the run directory.

mod chart;
mod experts;

use std::fmt::Write;

use crate::mixing::Health;
use chart::{Chart, Mark, Point, Scale, Series, thinned};
use serde::{Deserialize, Serialize};

/// One line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// A logged training step.
    Step {
        /// Steps done, this one included.
        step: u64,
        /// Mean loss of the step's batch, nats per token.
        loss: f64,
        /// Learning rate of the step.
        lr: f64,
        /// Norm of all gradients before clipping.
        gradient_norm: f64,
        /// Training throughput.
        tokens_per_s: f64,
        /// What the steps since the row before asked of each layer's experts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        experts: Vec<Health>,
        /// Seconds since the run began.
        seconds: f64,
    },
    /// An evaluation of both splits.
    Evaluation {
        /// Steps done before it.
        step: u64,
        /// Mean loss over batches of the training split.
        train_loss: f64,
        /// Mean loss over batches of the validation split.
        val_loss: f64,
        /// Seconds since the run began.
        seconds: f64,
    },
}

/// The rows of a metrics.jsonl. A line that is none, such as one cut by a kill, is left out: a picture of the rest
/// is worth more than an error.
pub fn rows(metrics: &str) -> Vec<Row> {
    metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What the page shows.
#[derive(Clone, Copy, Debug)]
pub struct ReportInput<'a> {
    /// The heading.
    pub title: &'a str,
    /// The run's metrics, in order.
    pub rows: &'a [Row],
    /// config.toml as run.
    pub config: &'a str,
    /// Text that the model wrote.
    pub sample: &'a str,
    /// Facts for the head of the page: name, value.
    pub summary: &'a [(String, String)],
}

/// The page.
pub fn html(input: &ReportInput) -> String {
    let curves = Curves::of(input.rows);
    let title = escape(input.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    page.push_str(&summary(input.summary));
    page.push_str(&curves.figures());
    page.push_str(&experts::figures(&curves.experts, curves.steps));
    page.push_str("<div class=\"texts\">\n");
    page.push_str(&text_section("What it writes", "sample", input.sample));
    page.push_str(&text_section("How it was set", "config", input.config));
    page.push_str("</div>\n");
    page.push_str(&curves.table());
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

#[derive(Default)]
struct Curves<'a> {
    batch: Vec<Point>,
    train: Vec<Point>,
    validation: Vec<Point>,
    learning_rate: Vec<Point>,
    gradient_norm: Vec<Point>,
    tokens_per_s: Vec<Point>,
    /// Each row's experts, layer by layer.
    experts: Vec<(f64, &'a Health)>,
    steps: f64,
}

impl<'a> Curves<'a> {
    fn of(rows: &'a [Row]) -> Curves<'a> {
        let mut curves = Curves::default();
        for row in rows {
            let (Row::Step { step, .. } | Row::Evaluation { step, .. }) = row;
            let x = *step as f64;
            curves.steps = curves.steps.max(x);
            match row {
                Row::Step { loss, lr, gradient_norm, tokens_per_s, experts, .. } => {
                    curves.batch.push((x, *loss));
                    curves.learning_rate.push((x, *lr));
                    curves.gradient_norm.push((x, *gradient_norm));
                    curves.tokens_per_s.push((x, *tokens_per_s));
                    experts.iter().for_each(|layer| curves.experts.push((x, layer)));
                }
                Row::Evaluation { train_loss, val_loss, .. } => {
                    curves.train.push((x, *train_loss));
                    curves.validation.push((x, *val_loss));
                }
            }
        }
        curves
    }

    /// The evaluation with the lowest validation loss.
    fn best(&self) -> Option<Point> {
        self.validation.iter().copied().filter(|point| point.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn figures(&self) -> String {
        let named = |name: &str, points: &[Point]| {
            points.last().map(|(_, y)| format!("{name} {y:.4}")).unwrap_or_default()
        };
        let best = self.best().filter(|best| self.validation.last().is_some_and(|last| last.0 != best.0));
        let losses = Chart {
            title: "Loss of each logged batch, and of both splits where evaluated, over the steps of the run",
            unit: "loss, nats per token",
            width: 960.0,
            height: 440.0,
            right: 108.0,
            steps: self.steps,
            scale: Scale::Settled,
            series: vec![
                Series {
                    class: "batch",
                    label: if self.batch.is_empty() { String::new() } else { "each batch".into() },
                    mark: Mark::Thin,
                    points: self.batch.clone(),
                    ringed: None,
                },
                Series {
                    class: "train",
                    label: named("train", &self.train),
                    mark: Mark::Circles,
                    points: self.train.clone(),
                    ringed: None,
                },
                Series {
                    class: "val",
                    label: named("val", &self.validation),
                    mark: Mark::Diamonds,
                    points: self.validation.clone(),
                    ringed: best,
                },
            ],
        };
        let mut text = format!(
            "<figure>\n<div class=\"wide\">{}</div>\n<figcaption>{}</figcaption>\n</figure>\n<div class=\"row\">\n",
            losses.svg(),
            self.caption(&losses)
        );
        for (title, unit, points, scale) in [
            ("Learning rate over the steps", "learning rate", &self.learning_rate, Scale::FromZero),
            ("Gradient norm over the steps", "gradient norm", &self.gradient_norm, Scale::SettledFromZero),
            ("Training throughput over the steps", "tokens per second", &self.tokens_per_s, Scale::FromZero),
        ] {
            let series = Series {
                class: "train",
                label: String::new(),
                mark: Mark::Thin,
                points: points.clone(),
                ringed: None,
            };
            let chart = Chart {
                title,
                unit,
                width: 308.0,
                height: 200.0,
                right: 24.0,
                steps: self.steps,
                scale,
                series: vec![series],
            };
            let _ = writeln!(text, "<figure>{}</figure>", chart.svg());
        }
        text.push_str("</div>\n");
        text
    }

    fn caption(&self, losses: &Chart) -> String {
        let mut sentences = Vec::new();
        if !self.batch.is_empty() {
            sentences.push("Thin line: the batch of each logged step.".to_string());
        }
        if !self.validation.is_empty() {
            sentences.push(
                "Markers: the mean over batches of the training split (circles) and of the validation split \
                 (diamonds), without dropout."
                    .to_string(),
            );
        }
        if let Some((step, loss)) = self.best() {
            sentences.push(format!("Lowest validation loss: {loss:.4}, at step {}.", grouped(step)));
        }
        if let Some(highest) = losses.beyond() {
            sentences.push(format!("The first losses, up to {highest:.2}, lie above the frame."));
        }
        sentences.join(" ")
    }

    /// The evaluations as numbers, for those who cannot see the curves or want to copy them.
    fn table(&self) -> String {
        const ROWS: usize = 400;
        if self.validation.is_empty() {
            return String::new();
        }
        let pairs: Vec<(Point, Point)> =
            self.train.iter().copied().zip(self.validation.iter().copied()).collect();
        let pairs = thinned(&pairs, ROWS);
        let mut text = format!(
            "<details>\n<summary>The evaluations as numbers ({})</summary>\n<table>\n\
             <thead><tr><th>step</th><th>train loss</th><th>val loss</th></tr></thead>\n<tbody>\n",
            if pairs.len() == self.validation.len() {
                pairs.len().to_string()
            } else {
                format!("{} of {}", pairs.len(), self.validation.len())
            }
        );
        for ((step, train), (_, val)) in pairs {
            let _ = writeln!(text, "<tr><td>{}</td><td>{train:.4}</td><td>{val:.4}</td></tr>", grouped(step));
        }
        text.push_str("</tbody>\n</table>\n</details>\n");
        text
    }
}

fn summary(pairs: &[(String, String)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let mut text = String::from("<dl>\n");
    for (name, value) in pairs {
        let _ = writeln!(text, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    text.push_str("</dl>\n");
    text
}

fn text_section(heading: &str, class: &str, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    // HTML drops the line break right after <pre>, so one of ours keeps the text's own.
    format!("<section>\n<h2>{heading}</h2>\n<pre class=\"{class}\">\n{}</pre>\n</section>\n", escape(text))
}

/// Text as HTML shows it, in elements and in attributes alike. Control characters, which HTML forbids, become their
/// pictures.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            '\u{7f}' => safe.push('\u{2421}'),
            '\0'..'\u{20}' => safe.extend(char::from_u32(0x2400 + character as u32)),
            '\u{80}'..='\u{9f}' => safe.push('\u{fffd}'),
            // Marks that turn the direction of what follows would turn our own words too.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            _ => safe.push(character),
        }
    }
    safe
}

/// A whole number with its thousands apart: `12,500`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const STYLE: &str = "\
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1d1d1b; --quiet: #63635e; --rule: #e7e7e2; --axis: #8d8d86;
  --train: #1c5fa6; --val: #b9480b; --batch: #a9c2dd; --panel: #f5f5f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #141618; --ink: #e8e8e4; --quiet: #a0a09a; --rule: #2a2e32;
  --axis: #6d7278; --train: #78b4f4; --val: #f5a161; --batch: #41607f; --panel: #1b1e21; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, 'Segoe UI', Roboto, 'Helvetica Neue',
  'Liberation Sans', Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
@media (min-width: 63rem) { main { padding-left: 0; padding-right: 0; } }
h1 { font-size: 1.6rem; font-weight: 600; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11.5rem, 40%), 1fr)); gap: 1rem 1.5rem; margin: 0 0 2rem;
  padding: 1rem 0; border: solid var(--rule); border-width: 1px 0; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-size: 1.05rem; font-weight: 500; overflow-wrap: anywhere; }
figure { margin: 0; }
figcaption { color: var(--quiet); font-size: .85rem; margin: .35rem 0 0 46px; max-width: 50rem; }
.wide { overflow-x: auto; }
.wide > svg { min-width: 36rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem 1.1rem; margin: 2.25rem 0; }
figure > svg, .wide > svg { display: block; width: 100%; height: auto; overflow: visible; }
text { fill: var(--quiet); font-size: 12px; }
.unit { font-size: 12px; }
.power { font-size: 9px; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.quiet { font-style: italic; }
path, circle { fill: none; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--axis); }
.thin { stroke-width: 1.2; stroke-linejoin: round; }
.line { stroke-width: 1.8; stroke-linejoin: round; }
.ring { stroke-width: 1.5; }
.train { stroke: var(--train); }
.val { stroke: var(--val); }
.batch { stroke: var(--batch); }
.band { stroke: none; opacity: .35; }
.band.batch, .dot.batch { fill: var(--batch); }
.band.train, .dot.train { fill: var(--train); }
.dot { stroke: none; }
.dot.val { fill: var(--val); }
.name { stroke: none; font-size: 13px; font-weight: 600; }
.name.train { fill: var(--train); }
.name.val { fill: var(--val); }
.name.batch { font-weight: 400; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 2rem 1.5rem; align-items: start; }
section { min-width: 0; }
pre { margin: 0; padding: 1rem 1.1rem; background: var(--panel); border-radius: 6px; font: 13px/1.55 ui-monospace, 'SF Mono', Menlo,
  Consolas, 'Liberation Mono', monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 40rem; overflow-y: auto; }
details { margin-top: 2rem; }
summary { cursor: pointer; color: var(--quiet); }
table { border-collapse: collapse; margin-top: .75rem; font-size: .85rem; }
th, td { text-align: right; padding: .15rem 1.25rem .15rem 0; border-bottom: 1px solid var(--rule); font-weight: 400; }
th { color: var(--quiet); }
@media print { main { max-width: none; padding: 0; } pre { max-height: none; } figure { break-inside: avoid; } }
";

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(steps: u64, every: u64) -> Vec<Row> {
        let loss = |step: u64| 2.0 + 2.3 / (1.0 + step as f64 / 25.0);
        let mut rows = Vec::new();
        for step in 0..=steps {
            if step % every == 0 {
                rows.push(Row::Evaluation {
                    step,
                    train_loss: loss(step),
                    val_loss: loss(step) + 0.05,
                    seconds: 1.0,
                });
            }
            let noise = (step as f64 * 12.9898).sin() * 0.1;
            rows.push(Row::Step {
                step: step + 1,
                loss: loss(step) + noise,
                lr: 1e-3,
                gradient_norm: 0.8,
                tokens_per_s: 1.2e5,
                experts: vec![],
                seconds: 1.0,
            });
        }
        rows
    }

    fn page(rows: &[Row]) -> String {
        html(&ReportInput {
            title: "gpt-zero",
            rows,
            config: "steps = 5000\n",
            sample: "O Romeo",
            summary: &[("parameters".to_string(), "208,961".to_string())],
        })
    }

    #[test]
    fn rows_are_those_of_the_file() {
        let text = "{\"step\":1,\"loss\":4.1,\"lr\":0.001,\"gradient_norm\":1.5,\"tokens_per_s\":9.0,\"seconds\":0.5}\n\
                    {\"step\":1,\"train_loss\":4.0,\"val_loss\":4.2,\"seconds\":0.6}\n\nnonsense\n{\"step\":2,\"lo";
        let read = rows(text);
        assert_eq!(
            read,
            [
                Row::Step {
                    step: 1,
                    loss: 4.1,
                    lr: 0.001,
                    gradient_norm: 1.5,
                    tokens_per_s: 9.0,
                    experts: vec![],
                    seconds: 0.5
                },
                Row::Evaluation { step: 1, train_loss: 4.0, val_loss: 4.2, seconds: 0.6 },
            ]
        );
        for row in read {
            let line = serde_json::to_string(&row).expect("numbers serialise");
            assert_eq!(rows(&line), [row]);
        }
    }

    #[test]
    fn the_page_stands_alone() {
        let page = page(&metrics(500, 100));
        for forbidden in ["<script", "http://", "https://", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("role=\"img\"").count(), 4);
        assert!(page.contains("208,961") && page.contains("O Romeo") && page.contains("steps = 5000"));
        assert!(page.contains(">train 2.1095</text>") && page.contains(">val 2.1595</text>"));
        assert!(page.contains("Lowest validation loss: 2.1595, at step 500."));
    }

    #[test]
    fn any_number_of_rows_can_be_drawn() {
        for steps in [1, 2, 100_000] {
            let all = metrics(steps, (steps / 50).max(1));
            for count in [0, 1, 2, 3, all.len()] {
                let page = page(&all[..count]);
                assert!(!page.contains("NaN") && !page.contains("inf"));
                assert!(page.len() < 150_000, "{count} rows: {} bytes", page.len());
                assert!(page.ends_with("</html>\n"));
            }
        }
        assert!(page(&[]).contains("nothing measured yet"));
    }

    #[test]
    fn many_evaluations_are_thinned_in_the_table_too() {
        let page = page(&metrics(5000, 1));
        assert!(page.contains("(385 of 5001)"), "the count says what is left out");
        assert!(page.contains("<td>5,000</td>"), "the last stays");
    }

    #[test]
    fn no_text_is_read_as_markup() {
        let hostile = "</pre><script>alert('x')</script>\"&\0\u{1b}[31m\u{7f}\u{202e}\u{85}\r\n\té";
        let page = html(&ReportInput {
            title: hostile,
            rows: &[],
            config: hostile,
            sample: hostile,
            summary: &[(hostile.to_string(), hostile.to_string())],
        });
        assert!(!page.contains("<script"));
        assert_eq!(page.matches("</pre>").count(), 2);
        assert!(page.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        assert!(page.contains(
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{2400}\u{241b}[31m\u{2421}"
        ));
    }

    #[test]
    fn the_lowest_loss_is_ringed_unless_it_is_the_last() {
        let mut rows = metrics(1000, 100);
        assert!(!page(&rows).contains("class=\"ring val\""));
        for row in &mut rows {
            if let Row::Evaluation { step: 300, val_loss, .. } = row {
                *val_loss = 1.5;
            }
        }
        let page = page(&rows);
        assert!(
            page.contains("class=\"ring val\"")
                && page.contains("Lowest validation loss: 1.5000, at step 300.")
        );
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 12_500.0, 1_234_567.0].map(grouped),
            ["0", "999", "1,000", "12,500", "1,234,567"]
        );
    }
}
