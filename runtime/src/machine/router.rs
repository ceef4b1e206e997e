//! Which experts a row goes to, from its logits.

use crate::simd::Simd;
use formats::config::{RouterScore, RouterWeight};

/// How one bank's router chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Router<'a> {
    pub(super) simd: &'a Simd,
    pub(super) score: RouterScore,
    pub(super) weight: RouterWeight,
    /// Added to the scores for the choice alone, one value an expert.
    pub(super) selection_bias: Option<&'a [f32]>,
}

impl Router<'_> {
    /// Chooses as many experts as `experts` has room for, best first, equal ones by number, and gives each its weight.
    /// `logits` becomes the scores; `keys`, as long, is working space.
    ///
    /// A score that is no number is worse than every other: whatever the logits, `experts` holds different numbers
    /// below `logits.len()`, which must be at least its own.
    pub(super) fn choose(
        &self,
        logits: &mut [f32],
        keys: &mut [f32],
        experts: &mut [u32],
        weights: &mut [f32],
    ) {
        assert!(experts.len() <= logits.len() && keys.len() == logits.len(), "more choices than experts");
        match self.score {
            RouterScore::Softmax => (self.simd.softmax)(logits, &mut [0.0; 2]),
            RouterScore::Sigmoid => {
                logits.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()))
            }
        }
        let scores = logits;
        keys.copy_from_slice(scores);
        if let Some(bias) = self.selection_bias {
            (self.simd.add)(keys, bias);
        }
        keys.iter_mut().filter(|key| key.is_nan()).for_each(|key| *key = f32::NEG_INFINITY);
        for (expert, weight) in experts.iter_mut().zip(weights.iter_mut()) {
            // What was taken is marked by NaN, which is larger than nothing.
            let mut best: Option<usize> = None;
            for (index, key) in keys.iter().enumerate().filter(|(_, key)| !key.is_nan()) {
                if best.is_none_or(|best| *key > keys[best]) {
                    best = Some(index);
                }
            }
            let best = best.expect("fewer were taken than there are");
            keys[best] = f32::NAN;
            *expert = best as u32;
            *weight = scores[best];
        }
        if self.weight == RouterWeight::Renormalised {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(router: &Router, logits: &[f32], active: usize) -> (Vec<u32>, Vec<f32>) {
        let mut scores = logits.to_vec();
        let (mut experts, mut weights) = (vec![u32::MAX; active], vec![f32::NAN; active]);
        router.choose(&mut scores, &mut vec![0.0; logits.len()], &mut experts, &mut weights);
        (experts, weights)
    }

    fn router(score: RouterScore, weight: RouterWeight) -> Router<'static> {
        Router { simd: Simd::best(), score, weight, selection_bias: None }
    }

    fn near(found: &[f32], expected: &[f64]) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(&a, &b)| (f64::from(a) - b).abs() <= 1e-6)
    }

    #[test]
    fn the_best_are_chosen_and_equal_ones_by_number() {
        let router = router(RouterScore::Softmax, RouterWeight::Renormalised);
        assert_eq!(choose(&router, &[1.0, 3.0, 3.0, 2.0, 3.0], 4).0, [1, 2, 4, 3]);
        assert_eq!(choose(&router, &[0.0; 6], 3).0, [0, 1, 2]);
        assert!(near(&choose(&router, &[0.0; 6], 3).1, &[1.0 / 3.0; 3]));
    }

    #[test]
    fn weights_are_the_equations() {
        let logits = [0.5f32, -1.0, 2.0, 0.0];
        let exp: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = exp.iter().sum();
        let (experts, weights) = choose(&router(RouterScore::Softmax, RouterWeight::Score), &logits, 2);
        assert_eq!(experts, [2, 0]);
        assert!(near(&weights, &[exp[2] / sum, exp[0] / sum]));
        let (_, weights) = choose(&router(RouterScore::Softmax, RouterWeight::Renormalised), &logits, 2);
        assert!(near(&weights, &[exp[2] / (exp[2] + exp[0]), exp[0] / (exp[2] + exp[0])]));
        let gate = |index: usize| exp[index] / (1.0 + exp[index]);
        let (_, weights) = choose(&router(RouterScore::Sigmoid, RouterWeight::Score), &logits, 2);
        assert!(near(&weights, &[gate(2), gate(0)]));
        let (_, weights) = choose(&router(RouterScore::Sigmoid, RouterWeight::Renormalised), &logits, 2);
        assert!(near(&weights, &[gate(2) / (gate(2) + gate(0)), gate(0) / (gate(2) + gate(0))]));
    }

    #[test]
    fn the_selection_bias_moves_the_choice_and_no_weight() {
        let biased = Router {
            selection_bias: Some(&[0.0, 5.0, 0.0]),
            ..router(RouterScore::Sigmoid, RouterWeight::Score)
        };
        let (experts, weights) = choose(&biased, &[1.0, -1.0, 0.0], 2);
        assert_eq!(experts, [1, 0]);
        assert!(near(&weights, &[1.0 / (1.0 + 1f64.exp()), 1.0 / (1.0 + (-1f64).exp())]));
    }

    #[test]
    fn what_is_no_number_is_chosen_last_and_nothing_twice() {
        for score in [RouterScore::Softmax, RouterScore::Sigmoid] {
            let router = router(score, RouterWeight::Renormalised);
            for logits in [
                [f32::NAN; 4],
                [f32::INFINITY; 4],
                [f32::NEG_INFINITY; 4],
                [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY],
            ] {
                let (mut experts, _) = choose(&router, &logits, 4);
                assert_eq!(choose(&router, &logits, 4).0, experts, "{logits:?}");
                experts.sort_unstable();
                assert_eq!(experts, [0, 1, 2, 3], "{logits:?}");
            }
        }
        let sigmoid = router(RouterScore::Sigmoid, RouterWeight::Score);
        assert_eq!(choose(&sigmoid, &[f32::NAN, 1.0, f32::NAN, 2.0], 3).0, [3, 1, 0]);
    }
}
