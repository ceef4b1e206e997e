//! The sampler against Hugging Face's definitions, written out plainly in float64.

use super::*;

const DRAWS: usize = 100_000;
const OFF: Sampling = Sampling::PLAIN;

/// Logits like a model's: a few good tokens and a long tail. Distinct, so that no tie hides a wrong cut.
fn logits(vocabulary: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Init);
    (0..vocabulary as u64).map(|index| 4.0 - 9.0 * stream.uniform(0, index).sqrt()).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// `RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`,
/// `MinPLogitsWarper`, in that order, then softmax.
fn oracle(logits: &[f32], history: &[u32], sampling: &Sampling) -> Vec<f64> {
    let penalty = f64::from(sampling.repetition_penalty);
    let mut scores: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    for (id, score) in scores.iter_mut().enumerate() {
        if history.contains(&(id as u32)) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
    for score in &mut scores {
        *score /= f64::from(sampling.temperature);
    }
    if sampling.top_k > 0 {
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let last = sorted[sampling.top_k.min(sorted.len()) - 1];
        for score in scores.iter_mut().filter(|score| **score < last) {
            *score = f64::NEG_INFINITY;
        }
    }
    if sampling.top_p < 1.0 {
        let probabilities = softmax(&scores);
        let mut ascending: Vec<usize> = (0..scores.len()).collect();
        ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut sum = 0.0;
        for &id in &ascending[..ascending.len() - 1] {
            sum += probabilities[id];
            if sum <= 1.0 - f64::from(sampling.top_p) {
                scores[id] = f64::NEG_INFINITY;
            }
        }
    }
    let probabilities = softmax(&scores);
    let most = probabilities.iter().copied().fold(0.0, f64::max);
    for (score, probability) in scores.iter_mut().zip(probabilities) {
        if probability < f64::from(sampling.min_p) * most {
            *score = f64::NEG_INFINITY;
        }
    }
    softmax(&scores)
}

fn counts(logits: &[f32], history: &[u32], sampling: Sampling, seed: u64) -> Vec<u64> {
    let mut sampler = Sampler::new(sampling, seed, logits.len()).expect("a valid sampling");
    let mut counts = vec![0; logits.len()];
    for _ in 0..DRAWS {
        counts[sampler.sample(logits, history).expect("finite logits").id as usize] += 1;
    }
    counts
}

/// The probability of a deviation at least this large if the counts do come from `expected`.
fn chi_square(counts: &[u64], expected: &[f64]) -> f64 {
    assert_eq!(counts.len(), expected.len());
    assert!(expected.iter().all(|probability| probability.is_finite()));
    let total: u64 = counts.iter().sum();
    let (mut statistic, mut bins) = (0.0, 0);
    // Bins too rare for the approximation are counted together.
    let (mut rare_count, mut rare_expected) = (0, 0.0);
    let mut add = |count: u64, expected: f64| {
        statistic += (count as f64 - expected).powi(2) / expected;
        bins += 1;
    };
    for (&count, probability) in counts.iter().zip(expected) {
        let expected = probability * total as f64;
        if *probability == 0.0 {
            if count > 0 {
                return 0.0;
            }
        } else if expected < 5.0 {
            rare_count += count;
            rare_expected += expected;
        } else {
            add(count, expected);
        }
    }
    if rare_expected > 0.0 {
        add(rare_count, rare_expected);
    }
    if bins < 2 { 1.0 } else { upper_gamma(f64::from(bins - 1) / 2.0, statistic / 2.0) }
}

/// The regularised upper incomplete gamma function `Q(a, x)`: one less the series of `P`, which converges for every `x`.
fn upper_gamma(a: f64, x: f64) -> f64 {
    let (mut term, mut sum) = (1.0 / a, 1.0 / a);
    let mut n = a;
    while term > sum * 1e-15 {
        n += 1.0;
        term *= x / n;
        sum += term;
    }
    1.0 - (a * x.ln() - x - log_gamma(a)).exp() * sum
}

/// Stirling's series, after the recurrence has carried the argument to where it converges.
fn log_gamma(a: f64) -> f64 {
    if a < 10.0 {
        return log_gamma(a + 1.0) - a.ln();
    }
    (a - 0.5) * a.ln() - a + 0.5 * std::f64::consts::TAU.ln() + 1.0 / (12.0 * a) - 1.0 / (360.0 * a.powi(3))
}

#[test]
fn the_chi_square_test_knows_published_quantiles_and_rejects_a_wrong_distribution() {
    for (bins, statistic, probability) in [(1, 10.828, 0.001), (10, 18.307, 0.05), (100, 149.449, 0.001)] {
        let found = upper_gamma(f64::from(bins) / 2.0, statistic / 2.0);
        assert!((found - probability).abs() <= 1e-5, "{bins} degrees of freedom: {found}");
    }
    let logits = logits(65, 1);
    let drawn = counts(&logits, &[], OFF, 1);
    assert!(chi_square(&drawn, &oracle(&logits, &[], &OFF)) > 0.001);
    for wrong in [Sampling { temperature: 1.03, ..OFF }, Sampling { top_k: 64, ..OFF }] {
        assert!(chi_square(&drawn, &oracle(&logits, &[], &wrong)) < 0.001, "{wrong:?}");
    }
}

#[test]
fn each_filter_and_their_chain_draw_from_hugging_faces_distribution() {
    let history = [0, 3, 3, 7, 11, 12, 40];
    let chain = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.3 };
    let cases = [
        OFF,
        Sampling { temperature: 0.5, ..OFF },
        Sampling { temperature: 1.7, ..OFF },
        Sampling { top_k: 2, ..OFF },
        Sampling { top_k: 40, ..OFF },
        Sampling { top_k: 10_000, ..OFF },
        Sampling { top_p: 0.3, ..OFF },
        Sampling { top_p: 0.9, ..OFF },
        Sampling { min_p: 0.05, ..OFF },
        Sampling { min_p: 0.4, ..OFF },
        Sampling { repetition_penalty: 1.3, ..OFF },
        Sampling { repetition_penalty: 0.7, ..OFF },
        chain,
        Sampling { temperature: 1.5, ..chain },
    ];
    for vocabulary in [65, 257] {
        let logits = logits(vocabulary, vocabulary as u64);
        for (index, sampling) in cases.into_iter().enumerate() {
            let drawn = counts(&logits, &history, sampling, index as u64);
            let probability = chi_square(&drawn, &oracle(&logits, &history, &sampling));
            assert!(probability > 0.001, "vocabulary {vocabulary}, {sampling:?}: p = {probability}");
        }
    }
}

/// What may be drawn, exactly: a draw could miss a token at the edge of a cut.
#[test]
fn cuts_keep_exactly_what_the_definitions_keep() {
    for vocabulary in (1..=33).chain([101, 1009]) {
        let logits = logits(vocabulary, 5 + vocabulary as u64);
        for top_k in [0, 1, 2, 3, 17, 40, vocabulary.saturating_sub(1), vocabulary] {
            for top_p in [0.0, 0.1, 0.5, 0.9, 1.0] {
                for min_p in [0.0, 0.1, 1.0] {
                    let sampling = Sampling { top_k, top_p, min_p, ..OFF };
                    let mut sampler = Sampler::new(sampling, 0, vocabulary).expect("a valid sampling");
                    sampler.sample(&logits, &[]).expect("finite logits");
                    let kept: Vec<u32> = sampler.kept.iter().map(|candidate| candidate.id).collect();
                    let expected = oracle(&logits, &[], &sampling);
                    let expected: Vec<u32> =
                        (0..vocabulary as u32).filter(|&id| expected[id as usize] > 0.0).collect();
                    assert_eq!(kept, expected, "vocabulary {vocabulary}, {sampling:?}");
                }
            }
        }
    }
}

#[test]
fn of_equal_scores_the_lower_ids_stay() {
    for top_k in 1..=7 {
        let mut sampler = Sampler::new(Sampling { top_k, ..OFF }, 0, 9).expect("a valid sampling");
        sampler.sample(&[0.0, 1.0, -0.0, 0.0, 1.0, 0.0, -0.0, 0.0, 0.0], &[]).expect("finite logits");
        let kept: Vec<u32> = sampler.kept.iter().map(|candidate| candidate.id).collect();
        let mut expected = [1, 4, 0, 2, 3, 5, 6][..top_k].to_vec();
        expected.sort_unstable();
        assert_eq!(kept, expected);
    }
}

#[test]
fn top_k_one_is_greedy_even_among_equals() {
    let mut equal = logits(65, 9);
    equal[20] = 5.0;
    equal[30] = 5.0;
    for logits in [logits(65, 8), equal] {
        let mut greedy = Sampler::new(Sampling::GREEDY, 1, 65).expect("a valid sampling");
        let expected = greedy.sample(&logits, &[]).expect("finite logits");
        let mut one = Sampler::new(Sampling { top_k: 1, ..OFF }, 1, 65).expect("a valid sampling");
        for _ in 0..100 {
            assert_eq!(one.sample(&logits, &[]).expect("finite logits"), expected);
        }
    }
}

#[test]
fn two_draws_differ_and_a_seed_repeats_them() {
    let flat = vec![0.0; 1 << 16];
    let draw = |seed| {
        let mut sampler = Sampler::new(OFF, seed, flat.len()).expect("a valid sampling");
        [0; 4].map(|_| sampler.sample(&flat, &[]).expect("finite logits").id)
    };
    let first = draw(1);
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
    assert_eq!(first, draw(1));
    assert_ne!(first, draw(2));
}

#[test]
fn the_log_probability_is_the_models_own() {
    let logits = logits(65, 4);
    let sampling = Sampling { temperature: 0.3, top_k: 3, repetition_penalty: 1.9, ..OFF };
    let mut sampler = Sampler::new(sampling, 0, 65).expect("a valid sampling");
    let expected = oracle(&logits, &[], &OFF);
    for _ in 0..20 {
        let token = sampler.sample(&logits, &[1, 2, 3]).expect("finite logits");
        let exact = expected[token.id as usize].ln();
        let logprob = token.logprob.expect("it was asked for");
        assert!((f64::from(logprob) - exact).abs() <= 1e-5, "{logprob} against {exact}");
    }
}

#[test]
fn the_logits_that_decide_are_enough_to_choose() {
    let logits = logits(500, 6);
    for (sampling, decided_by) in [
        (Sampling::GREEDY, 1),
        (Sampling { top_k: 9, ..Sampling::GREEDY }, 1),
        (Sampling::default(), 40),
        (Sampling { top_k: 3, ..OFF }, 3),
        (OFF, usize::MAX),
        (Sampling { repetition_penalty: 1.1, ..Sampling::GREEDY }, usize::MAX),
    ] {
        assert_eq!(sampling.decided_by(), decided_by, "{sampling:?}");
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let last = sorted[decided_by.min(logits.len()) - 1];
        let few: Vec<f32> =
            logits.iter().map(|logit| if *logit < last { f32::MIN } else { *logit }).collect();
        let [mut of_all, mut of_few] =
            [(); 2].map(|()| Sampler::new(sampling, 5, logits.len()).expect("a valid sampling"));
        for _ in 0..200 {
            let token = of_all.sample(&logits, &[1, 2]).expect("finite logits");
            assert_eq!(of_few.choose(&few, &[1, 2]).expect("finite logits"), token.id, "{sampling:?}");
        }
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for sampling in [OFF, Sampling::GREEDY, Sampling::default()] {
            let mut broken = logits(65, 2);
            broken[64] = value;
            let mut sampler = Sampler::new(sampling, 0, 65).expect("a valid sampling");
            assert!(matches!(sampler.sample(&broken, &[]), Err(Error::Diverged(_))), "{value}");
        }
    }
}

#[test]
fn extremes_are_still_tokens() {
    let logits = [f32::MAX, f32::MIN, 0.0, -f32::MIN_POSITIVE];
    for temperature in [f32::MIN_POSITIVE, 1.0, f32::MAX] {
        for repetition_penalty in [f32::MIN_POSITIVE, 1.0, f32::MAX] {
            let sampling = Sampling { temperature, repetition_penalty, top_p: 0.9, ..OFF };
            let mut sampler = Sampler::new(sampling, 0, 4).expect("a valid sampling");
            for _ in 0..10 {
                let token = sampler.sample(&logits, &[0, 1, 2, 3]).expect("finite logits");
                assert!(token.id < 4 && token.logprob.is_some_and(|logprob| !logprob.is_nan()));
            }
        }
    }
}

#[test]
fn impossible_settings_and_arguments_are_refused() {
    let wrong = [
        Sampling { temperature: -0.1, ..OFF },
        Sampling { temperature: f32::NAN, ..OFF },
        Sampling { temperature: f32::INFINITY, ..OFF },
        Sampling { top_p: 1.1, ..OFF },
        Sampling { top_p: f32::NAN, ..OFF },
        Sampling { min_p: -0.1, ..OFF },
        Sampling { min_p: f32::NAN, ..OFF },
        Sampling { repetition_penalty: 0.0, ..OFF },
        Sampling { repetition_penalty: f32::NAN, ..OFF },
    ];
    for sampling in wrong {
        assert!(matches!(Sampler::new(sampling, 0, 65), Err(Error::Usage(_))), "{sampling:?}");
    }
    for vocabulary in [0, MAX_VOCABULARY + 1, usize::MAX] {
        assert!(matches!(Sampler::new(OFF, 0, vocabulary), Err(Error::Usage(_))));
    }
    let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..OFF }, 0, 2).expect("valid");
    assert!(matches!(sampler.sample(&[0.0; 3], &[]), Err(Error::Usage(_))));
    assert!(matches!(sampler.sample(&[0.0; 2], &[2]), Err(Error::Usage(_))));
}

#[test]
fn buffers_never_grow() {
    let chain = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
    for sampling in [OFF, chain, Sampling { top_k: 200, ..chain }, Sampling { top_k: 0, ..chain }] {
        let mut sampler = Sampler::new(sampling, 0, 257).expect("a valid sampling");
        let capacities = |s: &Sampler| [s.scores.capacity(), s.kept.capacity(), s.ranked.capacity()];
        let before = capacities(&sampler);
        for seed in 0..50 {
            sampler.sample(&logits(257, seed), &[1]).expect("finite logits");
        }
        assert_eq!(capacities(&sampler), before, "{sampling:?}");
    }
}

#[test]
fn a_model_directory_says_how_it_is_sampled() {
    assert_eq!(Sampling::of(&GenerationConfig::default()), Sampling::default());
    assert_eq!(Sampling::of(&GenerationConfig::plain()), Sampling::PLAIN);
    let greedy = GenerationConfig { do_sample: Some(false), ..GenerationConfig::plain() };
    assert_eq!(Sampling::of(&greedy), Sampling::GREEDY);
    let some = GenerationConfig { top_p: Some(0.5), ..GenerationConfig::default() };
    assert_eq!(Sampling::of(&some), Sampling { top_p: 0.5, ..Sampling::default() });
}
