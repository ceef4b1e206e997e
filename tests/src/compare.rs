//! Comparers for computed numbers. A difference passes only by being shown small: NaN, an infinity, a missing
//! value or nothing at all to compare is a failure. Called by every suite that compares numbers.

/// How far a computed number may lie from the expected one: `absolute + relative |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The floor, for numbers near zero.
    pub absolute: f64,
    /// The part that grows with the expected number.
    pub relative: f64,
}

impl Tolerance {
    /// `relative` to the numbers' own size: the floor is `relative` times their root mean square, because a
    /// single logit near zero is no easier to compute than its neighbours.
    pub fn relative_to<E: Copy + Into<f64>>(relative: f64, expected: &[E]) -> Tolerance {
        let squares: f64 = expected.iter().map(|&e| e.into() * e.into()).sum();
        Tolerance { absolute: relative * (squares / expected.len().max(1) as f64).sqrt(), relative }
    }

    /// What is allowed beside `expected`.
    fn around(self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

/// The largest difference found, as a share of what was allowed: at most 1 when everything is close.
///
/// Fails with the first offending place and both values.
pub fn close<A, E>(actual: &[A], expected: &[E], tolerance: Tolerance) -> Result<f64, String>
where
    A: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    if actual.len() != expected.len() {
        return Err(format!("{} values, expected {}", actual.len(), expected.len()));
    }
    if expected.is_empty() {
        return Err("nothing to compare".into());
    }
    let mut worst = 0.0f64;
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let (a, e) = (a.into(), e.into());
        let (difference, allowed) = ((a - e).abs(), tolerance.around(e));
        // Written so that a NaN anywhere, in the tolerance too, falls on the failing side.
        if !(a.is_finite() && e.is_finite() && allowed.is_finite() && difference <= allowed) {
            return Err(format!(
                "at {index}: {a:e}, expected {e:e}: {difference:e} apart, {allowed:e} allowed"
            ));
        }
        if allowed > 0.0 {
            worst = worst.max(difference / allowed);
        }
    }
    Ok(worst)
}

/// [`close`], as an assertion that names what was compared.
#[track_caller]
pub fn assert_close<A, E>(what: &str, actual: &[A], expected: &[E], tolerance: Tolerance)
where
    A: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    if let Err(difference) = close(actual, expected, tolerance) {
        panic!("{what}: {difference}");
    }
}

/// Asserts that two sequences of greedy tokens are the same, or part only where the judge's two best logits were
/// nearly equal: rounding may then pick either, and what follows is another text.
///
/// `gap` gives the judge's difference between its two best logits after `expected[..index]`. The answer says how
/// many tokens agreed.
#[track_caller]
pub fn assert_same_greedy(
    what: &str,
    actual: &[u32],
    expected: &[u32],
    nearly: f64,
    gap: impl Fn(usize) -> f64,
) -> usize {
    assert_eq!(actual.len(), expected.len(), "{what}: number of tokens");
    assert!(!expected.is_empty(), "{what}: nothing to compare");
    match actual.iter().zip(expected).position(|(a, e)| a != e) {
        None => expected.len(),
        Some(index) => {
            let gap = gap(index);
            assert!(
                gap <= nearly,
                "{what}: token {index} is {}, expected {}, and the two best logits are {gap:e} apart",
                actual[index],
                expected[index]
            );
            index
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };

    #[test]
    fn equal_and_nearly_equal_pass_and_report_their_share() {
        assert_eq!(close(&[1.0f32, -2.0], &[1.0f64, -2.0], NEAR), Ok(0.0));
        let share = close(&[1.0f64 + 5.5e-6], &[1.0f64], NEAR).expect("half of what is allowed");
        assert!((share - 0.5).abs() < 1e-3, "{share}");
    }

    #[test]
    fn too_far_fails_on_either_side_and_names_the_place() {
        for far in [1.0 + 1.2e-5, 1.0 - 1.2e-5, -1.0, 0.0] {
            let error = close(&[1.0, far], &[1.0, 1.0], NEAR).expect_err("too far");
            assert!(error.starts_with("at 1:"), "{error}");
        }
    }

    #[test]
    fn what_is_no_number_fails_on_either_side_and_in_the_tolerance() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for value in odd {
            assert!(close(&[value], &[1.0], NEAR).is_err(), "actual {value}");
            assert!(close(&[1.0], &[value], NEAR).is_err(), "expected {value}");
            assert!(close(&[value], &[value], NEAR).is_err(), "both {value}");
            let tolerance = Tolerance { absolute: value, relative: 0.0 };
            assert!(close(&[1.0], &[1.0], tolerance).is_err(), "tolerance {value}");
        }
        assert!(close(&[f32::NAN], &[f32::NAN], NEAR).is_err());
        let infinite = Tolerance::relative_to(1e-5, &[f64::INFINITY, 1.0]);
        assert!(close(&[1.0, 1.0], &[f64::INFINITY, 1.0], infinite).is_err());
    }

    #[test]
    fn a_missing_value_fails_and_so_does_nothing() {
        assert!(close(&[1.0], &[1.0, 1.0], NEAR).is_err());
        assert!(close(&[1.0, 1.0], &[1.0], NEAR).is_err());
        assert!(close::<f64, f64>(&[], &[], NEAR).is_err());
    }

    #[test]
    fn the_floor_follows_the_numbers_size() {
        let tolerance = Tolerance::relative_to(1e-5, &[300.0, 400.0, 0.0, 0.0]);
        assert!((tolerance.absolute - 250.0 * 1e-5).abs() < 1e-12, "{tolerance:?}");
        assert!(close(&[1e-3], &[0.0], tolerance).is_ok());
        assert!(close(&[1e-2], &[0.0], tolerance).is_err());
    }

    #[test]
    fn greedy_tokens_may_part_only_at_a_tie() {
        let gap = |index| if index == 1 { 1e-5 } else { 1.0 };
        assert_eq!(assert_same_greedy("same", &[1, 2, 3], &[1, 2, 3], 1e-4, gap), 3);
        assert_eq!(assert_same_greedy("tie", &[1, 9, 9], &[1, 2, 3], 1e-4, gap), 1);
        for wrong in [vec![9, 2, 3], vec![1, 2, 9], vec![1, 2], vec![1, 2, 3, 4]] {
            let caught = std::panic::catch_unwind(|| {
                assert_same_greedy("wrong", &wrong, &[1, 2, 3], 1e-4, gap);
            });
            assert!(caught.is_err(), "{wrong:?}");
        }
        let caught = std::panic::catch_unwind(|| assert_same_greedy("nan", &[1], &[2], 1e-4, |_| f64::NAN));
        assert!(caught.is_err());
    }
}
