//! `trainer selfcheck`: whether a device computes what the CPU computes.

use super::{Format, answer};
use clap::ValueEnum;
use formats::{Error, Result};
use runtime::simd::Simd;
use serde_json::json;
use std::fmt::Write;
use std::io::ErrorKind;
use std::process::Command;
use std::time::Instant;
use trainer::backend::Backend;
use trainer::backend::cpu::Cpu;
use trainer::backend::cuda::Cuda;
use trainer::device::probe::{self, Chosen};
use trainer::device::{self, Precision};
use trainer::options::Device;
use trainer::selfcheck::models::{Ways, train};
use trainer::selfcheck::{Extent, Rounding, Row, operations, products};

/// What `trainer selfcheck` takes.
#[derive(clap::Args)]
#[command(
    about = "Check every operation of a device, forward and backward, and the training of small models, against the CPU",
    long_about = "Checks every operation of a device, forward and backward, on ragged shapes against the CPU on the same \
                  numbers, each result beside a bound that follows from its type and the sums behind it; where cuBLASLt \
                  multiplies, products are checked by our own kernels too. Then small models of \
                  every family train beside the CPU's, twice, on from a saved state, and with and without a recorded graph.\n\n\
                  On the CPU itself every set of instructions is checked against plain code."
)]
pub struct Selfcheck {
    /// Whose operations to check
    #[arg(long, value_enum, default_value_t)]
    device: Whose,
    /// What activations are kept in; the CPU knows f32 alone
    #[arg(long, value_enum, default_value_t)]
    precision: Kept,
    /// A few small shapes and steps: about a minute where the device is emulated
    #[arg(long)]
    quick: bool,
    /// Do without compute-sanitizer, which otherwise runs over the few small shapes where it is in PATH
    #[arg(long)]
    no_sanitizer: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Whose operations are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Whose {
    /// Those of a CUDA device if there is one, else the CPU's
    #[default]
    Auto,
    /// Every set of instructions this processor has, against plain code
    Cpu,
    /// The first CUDA device's
    Cuda,
}

/// What activations are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kept {
    /// bfloat16
    Bf16,
    /// Single precision
    F32,
    /// One after the other
    #[default]
    Both,
}

/// What was found, as it comes.
struct Report<'a> {
    command: &'a Selfcheck,
    begin: Instant,
    /// One object a device and precision.
    parts: Vec<serde_json::Value>,
    results: usize,
    numbers: usize,
    failures: Vec<String>,
}

impl Selfcheck {
    /// Checks, prints what was found as it comes, and fails if anything was beyond its bound.
    pub fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let mut report =
            Report { command: self, begin, parts: vec![], results: 0, numbers: 0, failures: vec![] };
        let device = match self.device {
            Whose::Auto => Device::Auto,
            Whose::Cpu => Device::Cpu,
            Whose::Cuda => Device::Cuda,
        };
        let (precision, precisions) = match self.precision {
            Kept::Bf16 => (Some(Precision::Bf16), &[Precision::Bf16][..]),
            Kept::F32 => (Some(Precision::F32), &[Precision::F32][..]),
            Kept::Both => (None, &[Precision::F32, Precision::Bf16][..]),
        };
        match probe::choose(device, precision)? {
            Chosen::Cuda(found) => {
                for &precision in precisions {
                    let again = found.precision() != precision;
                    let other = again.then(|| device::Device::open(precision)).transpose()?;
                    self.cuda(other.as_ref().unwrap_or(&found), &mut report)?;
                }
                self.sanitize(&mut report)?;
            }
            Chosen::Cpu(why) => {
                if let Some(why) = why {
                    report.say(&format!("{why}\n"))?;
                }
                self.cpu(&mut report)?;
            }
        }
        report.finish()
    }

    /// NVIDIA's sanitizer over the few small shapes: memory out of bounds, and shared memory that threads race for.
    fn sanitize(&self, report: &mut Report<'_>) -> Result<()> {
        if self.no_sanitizer {
            return Ok(());
        }
        let program = std::env::current_exe()
            .map_err(|error| Error::Internal(format!("cannot tell which program this is: {error}")))?;
        let precision = match self.precision {
            Kept::Bf16 => "bf16",
            Kept::F32 => "f32",
            Kept::Both => "both",
        };
        for tool in ["memcheck", "racecheck"] {
            let mut command = Command::new("compute-sanitizer");
            command.args(["--tool", tool, "--error-exitcode", "99"]).arg(&program);
            command.args([
                "selfcheck",
                "--device",
                "cuda",
                "--quick",
                "--no-sanitizer",
                "--precision",
                precision,
            ]);
            let verdict = match command.output() {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    "skipped: compute-sanitizer is not in PATH".to_owned()
                }
                Err(error) => format!("skipped: compute-sanitizer cannot be started: {error}"),
                Ok(output) if output.status.success() => format!("ok     compute-sanitizer {tool}"),
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    let first =
                        said.lines().find(|line| line.starts_with("========= ") && line.contains("rror"));
                    let first = first.unwrap_or("it names none").to_owned();
                    report.failures.push(format!("compute-sanitizer {tool}, {}: {first}", output.status));
                    format!("FAILED compute-sanitizer {tool}\n{said}")
                }
            };
            report.say(&format!("{verdict}\n"))?;
            let skipped = verdict.starts_with("skipped");
            report.parts.push(json!({ "sanitizer": tool, "verdict": verdict }));
            if skipped {
                break;
            }
        }
        Ok(())
    }

    /// A CUDA device against plain code on the CPU.
    fn cuda(&self, found: &device::Device, report: &mut Report<'_>) -> Result<()> {
        let rounding = match found.precision() {
            Precision::Bf16 => Rounding::Bf16,
            Precision::F32 => Rounding::F32,
        };
        let open = || Cuda::new(found.clone());
        let eager = || Ok(open()?.without_graphs());
        let ways = Ways { open: &open, eager: Some(&eager) };
        self.check(&found.describe(), &eager()?, &ways, &|| Cpu::new(1), rounding, report)?;
        if found.has_blas() {
            // Our own kernels multiply where the library does not know a shape, and on machines that lack it.
            let own = found.without_library();
            let named = own.describe();
            report.say(&format!("{named}\n"))?;
            let device = Cuda::new(own)?.without_graphs();
            let rows = products(&device, &Cpu::new(1)?, rounding, self.extent(), |rows| report.rows(rows))?;
            report.parts.push(json!({ "device": named, "results": rows }));
        }
        Ok(())
    }

    fn extent(&self) -> Extent {
        if self.quick { Extent::Quick } else { Extent::Whole }
    }

    /// Every table of routines against the plain one.
    fn cpu(&self, report: &mut Report<'_>) -> Result<()> {
        if self.precision == Kept::Bf16 {
            return Err(Error::Usage("the CPU trains in f32: pass --precision f32".to_owned()));
        }
        let tables = Simd::available();
        let (plain, others) =
            tables.split_first().map_or((Simd::best(), &[][..]), |(plain, others)| (*plain, others));
        if others.is_empty() {
            report.say("skipped: this processor has no set of instructions beside plain code\n")?;
        }
        let reference = || Cpu::with(plain, 1);
        for &simd in others {
            let open = || Cpu::with(simd, 2);
            let named = format!("cpu, {} against {}, f32", simd.name, plain.name);
            self.check(
                &named,
                &open()?,
                &Ways { open: &open, eager: None },
                &reference,
                Rounding::F32,
                report,
            )?;
        }
        Ok(())
    }

    /// One device in one precision.
    fn check<B: Backend>(
        &self,
        named: &str,
        device: &B,
        ways: &Ways<'_, B>,
        reference: &dyn Fn() -> Result<Cpu>,
        rounding: Rounding,
        report: &mut Report<'_>,
    ) -> Result<()> {
        report.say(&format!("{named}\n"))?;
        let extent = self.extent();
        let mut rows = operations(device, &reference()?, rounding, extent, |rows| report.rows(rows))?;
        rows.extend(train(ways, reference, rounding, extent, |rows| report.rows(rows))?);
        report.parts.push(json!({ "device": named, "results": rows }));
        Ok(())
    }
}

impl Report<'_> {
    /// Writes to standard output what is for people.
    fn say(&self, text: &str) -> Result<()> {
        if self.command.format == Format::Text { answer(text) } else { Ok(()) }
    }

    /// Some rows more.
    fn rows(&mut self, rows: &[Row]) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            self.results += 1;
            self.numbers += row.numbers;
            let Row { operation, result, cases, error, bound, share, .. } = row;
            let verdict = if row.failure.is_some() { "FAILED" } else { "ok" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{verdict:6} {operation:17} {result:32} {cases:4} cases");
            let _ = match bound {
                0.0 => writeln!(text, "  equal"),
                _ => writeln!(text, "  {error:.1e} of {bound:.1e} allowed ({:.0} %)", 100.0 * share),
            };
            if let Some(failure) = &row.failure {
                let _ = writeln!(text, "       {failure}");
                self.failures.push(failure.clone());
            }
        }
        self.say(&text)
    }

    /// The last line, and whether all is well.
    fn finish(self) -> Result<()> {
        let Report { command, begin, parts, results, numbers, failures } = self;
        let seconds = begin.elapsed().as_secs_f64();
        if command.format == Format::Json {
            let passed = failures.is_empty();
            answer(&format!("{}\n", json!({ "passed": passed, "seconds": seconds, "parts": parts })))?;
        }
        match failures.first() {
            None if command.format == Format::Text => answer(&format!(
                "selfcheck: {results} results, {numbers} numbers, all within their bounds, {seconds:.1} s\n"
            )),
            None => Ok(()),
            Some(first) => Err(Error::Internal(format!(
                "{} of {results} results are beyond their bounds, first {first}",
                failures.len()
            ))),
        }
    }
}
