//! The comparer: how far two backends' results may lie apart, and how far they do.
//!
//! What is allowed follows from the numbers' type, from the length of the sums behind a result and from the size of
//! their terms; nothing here is tuned to what a device happens to give. A difference passes only by being shown small:
//! NaN, an infinity, a wrong length or nothing at all to compare is a failure.

use half::bf16;

/// What activations are stored as on the device that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Single precision; products take no shortened factors.
    F32,
    /// bfloat16, with sums in single precision.
    Bf16,
}

/// Half the distance between neighbours, relative: single precision.
const F32_UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// The same of bfloat16.
const BF16_UNIT: f64 = 1.0 / (1u64 << 8) as f64;
/// Roundings of a sum go either way: their total stays below this times the root of their number, but for a chance below
/// that of a bit flipped by itself (Higham and Mary 2019, theorem 2.4).
const EITHER_WAY: f64 = 6.0;
/// Below the smallest normal number a device may give zero, and so it may for a sum of some such numbers.
const SMALLEST: f64 = 1024.0 * f32::MIN_POSITIVE as f64;

impl Rounding {
    /// Half the distance between neighbouring stored activations, relative.
    pub fn unit(self) -> f64 {
        match self {
            Rounding::F32 => F32_UNIT,
            Rounding::Bf16 => BF16_UNIT,
        }
    }

    /// What storing `value` leaves of it.
    pub fn of(self, value: f32) -> f32 {
        match self {
            Rounding::F32 => value,
            Rounding::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// What a sum of `len` terms may be off, relative to the sum of their sizes.
    fn sum(self, len: usize) -> f64 {
        match self {
            Rounding::F32 => EITHER_WAY * (len as f64).sqrt() * F32_UNIT,
            // Tensor cores cut sums off instead of rounding them (Fasi et al. 2021, section 4): the errors add up.
            Rounding::Bf16 => 2.0 * len as f64 * F32_UNIT,
        }
    }
}

/// How a result is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// As an activation.
    Value,
    /// In single precision.
    Float,
}

/// What may separate one result from the reference's.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    /// Of each number: the sizes of the terms it is made of, added up.
    pub magnitude: Vec<f64>,
    /// Length of the longest sum behind it.
    pub sum: usize,
    /// Other roundings to single precision on the way, both sides', elementary functions counted for several.
    pub steps: u32,
    /// Roundings of intermediate results to the activations' type.
    pub narrowed: u32,
    /// How it is kept.
    pub kept: Kept,
}

impl Allowance {
    /// Nothing may separate `len` numbers.
    pub fn none(len: usize) -> Allowance {
        Allowance { magnitude: vec![0.0; len], sum: 0, steps: 0, narrowed: 0, kept: Kept::Float }
    }

    /// A stated share of what is expected.
    pub fn share(share: f64, expected: &[f32]) -> Allowance {
        let magnitude =
            expected.iter().map(|expected| share / F32_UNIT * f64::from(expected.abs())).collect();
        Allowance { magnitude, sum: 0, steps: 1, narrowed: 0, kept: Kept::Float }
    }

    /// What is allowed at one place beside `expected`.
    fn at(&self, index: usize, expected: f64, rounding: Rounding) -> f64 {
        if self.sum == 0 && self.steps == 0 {
            return 0.0;
        }
        let stored = match self.kept {
            Kept::Value => rounding.unit(),
            Kept::Float => F32_UNIT,
        };
        let roundings = rounding.sum(self.sum)
            + f64::from(self.steps) * F32_UNIT
            + f64::from(self.narrowed) * rounding.unit();
        stored * expected.abs() + roundings * self.magnitude[index] + SMALLEST
    }
}

/// The place where a result came closest to what is allowed, or went furthest beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Worst {
    /// Which number.
    pub index: usize,
    /// How far it is off.
    pub error: f64,
    /// How far it may be.
    pub bound: f64,
}

impl Worst {
    /// The error as a share of what is allowed: above 1 is too far.
    pub fn share(&self) -> f64 {
        match (self.error, self.bound) {
            (0.0, _) => 0.0,
            (error, bound) => error / bound,
        }
    }
}

/// The worst difference between `found` and `expected`; a sentence where it is beyond what is allowed or cannot be told.
pub(super) fn compare(
    found: &[f32],
    expected: &[f32],
    allowance: &Allowance,
    rounding: Rounding,
) -> Result<Worst, String> {
    if found.len() != expected.len() || expected.len() != allowance.magnitude.len() {
        let allowed = allowance.magnitude.len();
        return Err(format!("{} values, expected {} of {allowed}", found.len(), expected.len()));
    }
    if expected.is_empty() {
        return Err("nothing to compare".to_owned());
    }
    let mut worst = Worst::default();
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (f64::from(found), f64::from(expected));
        let bound = allowance.at(index, expected, rounding);
        let place = Worst { index, error: (found - expected).abs(), bound };
        // Written so that a NaN anywhere, in the bound too, falls on the failing side.
        if !(found.is_finite() && expected.is_finite() && bound.is_finite() && place.error <= bound) {
            return Err(format!(
                "at {index}: {found:e}, expected {expected:e}: {:e} apart, {bound:e} allowed",
                place.error
            ));
        }
        if index == 0 || place.share() > worst.share() {
            worst = place;
        }
    }
    Ok(worst)
}

/// 0 where two numbers are the same bits, and 1 elsewhere.
pub(super) fn differences(found: Vec<f32>, expected: Vec<f32>) -> Vec<f32> {
    let pairs = found.into_iter().zip(expected);
    pairs.map(|(found, expected)| f32::from(u8::from(found.to_bits() != expected.to_bits()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(len: usize) -> Allowance {
        Allowance { magnitude: vec![1.0; len], sum: 4, steps: 2, narrowed: 0, kept: Kept::Value }
    }

    #[test]
    fn what_is_equal_or_near_passes_and_says_how_near() {
        let worst = compare(&[1.0, 2.0], &[1.0, 2.0], &allowance(2), Rounding::F32).expect("the same");
        assert_eq!(worst.share(), 0.0);
        let near = 2.0 + f32::EPSILON * 2.0;
        let worst = compare(&[1.0, near], &[1.0, 2.0], &allowance(2), Rounding::F32).expect("near");
        assert!(worst.index == 1 && worst.share() > 0.1 && worst.share() < 1.0, "{worst:?}");
    }

    #[test]
    fn what_is_too_far_fails_on_either_side_and_names_the_place() {
        for far in [2.0 + 4e-6, 2.0 - 4e-6, -2.0, 0.0] {
            let error = compare(&[1.0, far], &[1.0, 2.0], &allowance(2), Rounding::F32).expect_err("far");
            assert!(error.starts_with("at 1:"), "{error}");
        }
        // Storing two as bfloat16 may give either neighbour, but not the next.
        assert!(compare(&[2.0 + 0.0078], &[2.0], &allowance(1), Rounding::Bf16).is_ok());
        assert!(compare(&[2.0 + 0.0156], &[2.0], &allowance(1), Rounding::Bf16).is_err());
    }

    #[test]
    fn what_is_no_number_fails_on_either_side_and_in_the_bound() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(compare(&[odd], &[1.0], &allowance(1), Rounding::F32).is_err(), "found {odd}");
            assert!(compare(&[1.0], &[odd], &allowance(1), Rounding::F32).is_err(), "expected {odd}");
            assert!(compare(&[odd], &[odd], &allowance(1), Rounding::F32).is_err(), "both {odd}");
            let bound = Allowance { magnitude: vec![f64::from(odd)], ..allowance(1) };
            assert!(compare(&[1.0], &[1.0], &bound, Rounding::F32).is_err(), "bound {odd}");
        }
    }

    #[test]
    fn a_wrong_length_fails_and_so_does_nothing() {
        for (found, expected, allowed) in [(1, 2, 2), (2, 1, 2), (2, 2, 1), (0, 0, 0)] {
            let outcome =
                compare(&vec![1.0; found], &vec![1.0; expected], &allowance(allowed), Rounding::F32);
            assert!(outcome.is_err(), "{found} {expected} {allowed}");
        }
    }

    #[test]
    fn a_share_is_a_share() {
        let allowance = Allowance::share(0.01, &[4.0]);
        assert!(compare(&[4.039], &[4.0], &allowance, Rounding::Bf16).is_ok());
        assert!(compare(&[4.041], &[4.0], &allowance, Rounding::Bf16).is_err());
    }

    #[test]
    fn nothing_allowed_is_nothing() {
        assert!(compare(&[1.0], &[1.0], &Allowance::none(1), Rounding::Bf16).is_ok());
        assert!(compare(&[1.0 + f32::EPSILON], &[1.0], &Allowance::none(1), Rounding::Bf16).is_err());
    }
}
