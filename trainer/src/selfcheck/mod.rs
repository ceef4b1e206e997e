//! One suite that any backend can be put through: every verb, forward and backward, on ragged shapes, against the CPU
//! on the same numbers, each result beside a bound that follows from its type and the sums behind it; then whole models.
//!
//! [`operations`] checks verbs, [`products()`] those of them that multiply matrices, [`models::train`] checks training. A
//! [`Row`] says what one of them found; the rows are the report. Nothing here knows a particular device, a flag or a
//! format: `trainer selfcheck` does.

mod attention;
mod classes;
mod compare;
mod experts;
mod mixtures;
pub mod models;
mod norms;
mod products;
mod rows;
mod subject;
mod update;

#[cfg(test)]
mod tests;

pub use compare::Rounding;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use compare::{Allowance, Worst, compare};
use formats::Result;
use serde::Serialize;

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every shape.
    Whole,
    /// A few small ones, for a device that is emulated.
    Quick,
}

/// What one result of one operation, or one check of one model, came to over all its shapes or steps.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The operation, or the model.
    pub operation: &'static str,
    /// Which of its results, or what was checked.
    pub result: &'static str,
    /// Shapes or steps tried.
    pub cases: usize,
    /// Numbers compared.
    pub numbers: usize,
    /// The error that came closest to its bound.
    pub error: f64,
    /// That bound.
    pub bound: f64,
    /// The one as a share of the other.
    pub share: f64,
    /// Root mean square of the numbers there.
    pub size: f64,
    /// The shape or the step where it was.
    pub at: String,
    /// What went beyond its bound, or could not be compared: the first such sentence.
    pub failure: Option<String>,
}

/// One result of one operation.
struct Found {
    what: &'static str,
    numbers: Vec<f32>,
    /// Whether they mark what two ways to one result leave differently, where a reference that differs is wrong too.
    marks: bool,
}

impl Found {
    fn new(what: &'static str, numbers: Vec<f32>) -> Found {
        Found { what, numbers, marks: false }
    }

    /// What [`compare::differences`] marked.
    fn marks(what: &'static str, numbers: Vec<f32>) -> Found {
        Found { what, numbers, marks: true }
    }
}

/// One operation on given numbers, which any backend can carry out.
trait Case {
    /// The operation as reports name it.
    const NAME: &'static str;

    /// The shape, for the report.
    fn shape(&self) -> String;

    /// All that it leaves, forward and backward.
    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>>;

    /// What may separate each of them from the reference's.
    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>>;
}

/// A device beside its reference.
struct Suite<'a, B> {
    device: &'a B,
    reference: &'a Cpu,
    rounding: Rounding,
    extent: Extent,
    rows: Vec<Row>,
}

impl Row {
    fn new(operation: &'static str, result: &'static str) -> Row {
        Row {
            operation,
            result,
            cases: 0,
            numbers: 0,
            error: 0.0,
            bound: 0.0,
            share: -1.0,
            size: 0.0,
            at: String::new(),
            failure: None,
        }
    }

    /// Adds one comparison with what was expected.
    fn note(&mut self, expected: &[f32], at: String, outcome: Result<Worst, String>) {
        self.cases += 1;
        self.numbers += expected.len();
        match outcome {
            Ok(worst) if worst.share() > self.share => {
                (self.error, self.bound, self.share) = (worst.error, worst.bound, worst.share());
                let squares: f64 = expected.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                (self.size, self.at) = ((squares / expected.len() as f64).sqrt(), at);
            }
            Ok(_) => {}
            Err(sentence) => {
                let Row { operation, result, .. } = self;
                self.failure.get_or_insert_with(|| format!("{operation}, {result}, {at}: {sentence}"));
            }
        }
    }
}

/// The cases of some verbs.
type Check<B> = fn(&mut Suite<'_, B>) -> Result<()>;

impl<B: Backend> Suite<'_, B> {
    /// All of `checks`; `done` is given the rows of each.
    fn through(
        mut self,
        checks: &[Check<B>],
        mut done: impl FnMut(&[Row]) -> Result<()>,
    ) -> Result<Vec<Row>> {
        for check in checks {
            let before = self.rows.len();
            check(&mut self)?;
            done(&self.rows[before..])?;
        }
        Ok(self.rows)
    }

    /// Whether only a few shapes are wanted.
    fn quick(&self) -> bool {
        self.extent == Extent::Quick
    }

    /// The wanted ones of `whole` and `quick` shapes.
    fn choose<'s, T>(&self, whole: &'s [T], quick: &'s [T]) -> &'s [T] {
        if self.quick() { quick } else { whole }
    }

    /// Carries out one case on both sides and compares.
    fn check<C: Case>(&mut self, case: &C) -> Result<()> {
        let expected = case.carry_out(self.reference)?;
        let found = case.carry_out(self.device)?;
        let allowances = case.allowances(self.reference)?;
        assert_eq!(expected.len(), allowances.len(), "{}: a bound for each result", C::NAME);
        for ((found, mut expected), allowance) in found.iter().zip(expected).zip(&allowances) {
            if expected.marks {
                expected.numbers.fill(0.0);
            }
            let outcome = compare(&found.numbers, &expected.numbers, allowance, self.rounding);
            let named = (C::NAME, expected.what);
            let place = self.rows.iter().position(|row| (row.operation, row.result) == named);
            let place = place.unwrap_or_else(|| {
                self.rows.push(Row::new(C::NAME, expected.what));
                self.rows.len() - 1
            });
            self.rows[place].note(&expected.numbers, case.shape(), outcome);
        }
        Ok(())
    }
}

/// Every verb of `device` against `reference` on the same numbers; `done` is given the rows of each operation as they come.
pub fn operations<B: Backend>(
    device: &B,
    reference: &Cpu,
    rounding: Rounding,
    extent: Extent,
    done: impl FnMut(&[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let suite = Suite { device, reference, rounding, extent, rows: vec![] };
    let checks: &[Check<B>] = &[
        update::transfers,
        rows::embeddings,
        norms::norms,
        norms::sums,
        norms::query_key_norms,
        rows::activations,
        rows::residuals,
        rows::rotations,
        products::linears,
        products::layers,
        attention::attentions,
        classes::losses,
        mixtures::routers,
        experts::experts,
        update::gathers,
        update::updates,
    ];
    suite.through(checks, done)
}

/// The same of the verbs whose matrix products a device may leave to another's library, for when it does not.
pub fn products<B: Backend>(
    device: &B,
    reference: &Cpu,
    rounding: Rounding,
    extent: Extent,
    done: impl FnMut(&[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let suite = Suite { device, reference, rounding, extent, rows: vec![] };
    suite.through(&[products::linears, products::layers, classes::losses], done)
}
