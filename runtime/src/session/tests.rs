use super::*;
use crate::model::tests::{config, model, stored_as};
use formats::Config;
use formats::architecture::{Machine, forward};
use formats::checkpoint::Dtype;
use formats::config::{Activation, AttentionScale};
use formats::layout::{Layout, Linear, Norm, ParameterId};

/// The model in float64, one row after the other, every sum in the plainest order.
struct Reference<'a> {
    model: &'a Model,
    ids: &'a [u32],
}

type Matrix = Vec<Vec<f64>>;

impl Reference<'_> {
    fn logits(model: &Model, ids: &[u32]) -> Matrix {
        forward(&mut Reference { model, ids }, model.layout())
    }

    fn values(&self, id: ParameterId) -> Vec<f64> {
        let tensor = self.model.weights().tensor(id);
        (0..tensor.len()).map(|index| f64::from(tensor.get(index))).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Machine for Reference<'_> {
    type Rows = Matrix;

    fn embed(&mut self, layout: &Layout) -> Matrix {
        let width = self.model.config().width;
        let (tokens, positions) =
            (self.values(layout.token_embedding), self.values(layout.position_embedding));
        let row = |(position, id): (usize, &u32)| {
            (0..width)
                .map(|column| tokens[*id as usize * width + column] + positions[position * width + column])
                .collect()
        };
        self.ids.iter().enumerate().map(row).collect()
    }

    fn norm(&mut self, x: &Matrix, norm: &Norm) -> Matrix {
        let (gain, bias) = (self.values(norm.gain), norm.bias.map(|bias| self.values(bias)));
        let eps = f64::from(self.model.config().norm_eps);
        let row = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let normed = |(column, x): (usize, &f64)| {
                (x - mean) / (variance + eps).sqrt() * gain[column]
                    + bias.as_ref().map_or(0.0, |bias| bias[column])
            };
            x.iter().enumerate().map(normed).collect()
        };
        x.iter().map(row).collect()
    }

    fn linear(&mut self, x: Matrix, linear: &Linear) -> Matrix {
        let (weight, bias) = (self.values(linear.weight), linear.bias.map(|bias| self.values(bias)));
        let row = |x: &Vec<f64>| {
            let output = |(output, weight): (usize, &[f64])| {
                dot(weight, x) + bias.as_ref().map_or(0.0, |bias| bias[output])
            };
            weight.chunks_exact(linear.inputs).enumerate().map(output).collect()
        };
        x.iter().map(row).collect()
    }

    fn attention(&mut self, qkv: Matrix, _: usize) -> Matrix {
        let config = self.model.config();
        let (width, size) = (config.width, config.head_size());
        let mut out = vec![vec![0.0; width]; qkv.len()];
        for (row, out) in out.iter_mut().enumerate() {
            for head in (0..width).step_by(size) {
                let key = |at: usize| &qkv[at][width + head..][..size];
                let scale = f64::from(config.score_scale());
                let scores: Vec<f64> =
                    (0..=row).map(|at| scale * dot(&qkv[row][head..][..size], key(at))).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for column in 0..size {
                    let value = |at: usize| qkv[at][2 * width + head + column];
                    out[head + column] = (0..=row).map(|at| weights[at] / sum * value(at)).sum();
                }
            }
        }
        out
    }

    fn activation(&mut self, mut x: Matrix) -> Matrix {
        let activate = match self.model.config().activation {
            Activation::Relu => |x: f64| x.max(0.0),
            Activation::GeluErf => |x: f64| x * normal_distribution(x),
            Activation::GeluTanh => |x: f64| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            },
        };
        x.iter_mut().flatten().for_each(|x| *x = activate(*x));
        x
    }

    fn add(&mut self, mut stream: Matrix, branch: Matrix) -> Matrix {
        stream.iter_mut().flatten().zip(branch.iter().flatten()).for_each(|(x, y)| *x += y);
        stream
    }

    fn logits(&mut self, x: Matrix, head: &Linear) -> Matrix {
        self.linear(x, head)
    }
}

/// The normal distribution function by the power series of its integral (Abramowitz and Stegun 26.2.11).
fn normal_distribution(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for index in 1..200 {
        term *= x * x / f64::from(2 * index + 1);
        sum += term;
    }
    (0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()).clamp(0.0, 1.0)
}

/// Largest difference relative to the largest value; infinite if anything is not a finite number or the lengths
/// differ.
fn difference(found: &[f32], expected: &[f64]) -> f64 {
    if found.len() != expected.len() || expected.is_empty() {
        return f64::INFINITY;
    }
    let most = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    let worst = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    worst.fold(0.0, |worst, x| if x.is_finite() { worst.max(x / most) } else { f64::INFINITY })
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|index| (index * index * 5 + 3 * index + 1) % 37).collect()
}

fn session(model: &Model, cache: CacheType, chunk: usize) -> Session {
    model.session_with(&SessionOptions { cache, chunk, capacity: None }).expect("memory for a small session")
}

/// The logits after every id, fed in pieces of these lengths.
fn each(session: &mut Session, ids: &[u32], pieces: &[usize]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    let mut rest = ids;
    for length in pieces.iter().copied().cycle() {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        let expected = all.len();
        let mut at = expected;
        let mut visit = |position: usize, logits: &[f32]| {
            assert_eq!(position, at);
            at += 1;
            all.push(logits.to_vec());
        };
        session.feed_each(piece, &mut visit).expect("valid ids");
        if after.is_empty() {
            return all;
        }
        rest = after;
    }
    all
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_comparer_rejects_what_is_no_number_and_what_is_missing() {
    assert_eq!(difference(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert!(difference(&[1.0, 2.001], &[1.0, 2.0]) > 1e-4);
    for wrong in [&[f32::NAN, 2.0][..], &[f32::INFINITY, 2.0], &[1.0], &[]] {
        assert_eq!(difference(wrong, &[1.0, 2.0]), f64::INFINITY);
    }
    assert_eq!(difference(&[], &[]), f64::INFINITY);
}

#[test]
fn every_kind_of_model_gives_the_reference_logits() {
    let variants = [
        config(3),
        Config { activation: Activation::Relu, tied: true, head_bias: false, ..config(1) },
        Config { activation: Activation::GeluTanh, attention_scale: AttentionScale::Width, ..config(2) },
        Config {
            qkv_bias: false,
            attention_bias: false,
            feed_forward_bias: false,
            norm_bias: false,
            ..config(2)
        },
        // Feed-forward results that share slots with the stream's, and with the queries'.
        Config { feed_forward: 30, ..config(2) },
        Config { feed_forward: 90, ..config(2) },
        Config { width: 32, heads: 2, ..config(2) },
        Config { vocabulary: 300, width: 160, heads: 5, feed_forward: 640, ..config(2) },
    ];
    for config in variants {
        let model = model(&config, 1);
        let ids = ids(config.context);
        let expected = Reference::logits(&model, &ids);
        for chunk in [1, 3, 256] {
            let found = each(&mut session(&model, CacheType::F32, chunk), &ids, &[ids.len()]);
            assert_eq!(found.len(), expected.len());
            for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let difference = difference(found, expected);
                assert!(difference < 1e-5, "{difference:e} at {position}, chunk {chunk}: {config:?}");
            }
        }
    }
}

/// A model too large to be kept packed.
fn large() -> Config {
    Config { vocabulary: 300, width: 480, heads: 5, feed_forward: 1920, ..config(1) }
}

#[test]
fn every_type_of_weights_packed_or_not_gives_the_reference_logits() {
    for config in [config(2), large()] {
        for dtype in Dtype::ALL {
            let model = stored_as(&config, 2, dtype);
            let ids = ids(config.context);
            let expected = Reference::logits(&model, &ids);
            for length in [1, 4, 23] {
                let found = each(&mut session(&model, CacheType::F32, 256), &ids, &[length]);
                for (found, expected) in found.iter().zip(&expected) {
                    let difference = difference(found, expected);
                    assert!(difference < 1e-5, "{difference:e}: {dtype} in pieces of {length}");
                }
            }
        }
    }
}

#[test]
fn a_half_precision_cache_stays_close() {
    let model = model(&config(2), 1);
    let ids = ids(23);
    let expected = Reference::logits(&model, &ids);
    let found = each(&mut session(&model, CacheType::F16, 256), &ids, &[23]);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(difference(found, expected) < 5e-3);
    }
}

#[test]
fn any_thread_count_gives_the_same_bytes() {
    for config in [config(3), large()] {
        for cache in [CacheType::F16, CacheType::F32] {
            for pieces in [&[1][..], &[23], &[5, 1, 9]] {
                let logits =
                    |threads| each(&mut session(&model(&config, threads), cache, 8), &ids(23), pieces);
                let alone = logits(1);
                assert_eq!(alone.len(), 23);
                for threads in [2, 3] {
                    for (found, alone) in logits(threads).iter().zip(&alone) {
                        assert_eq!(bits(found), bits(alone), "{threads} threads, {pieces:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn any_chunks_give_the_same_logits_and_the_last_are_what_feed_gives() {
    let model = model(&config(3), 2);
    let ids = ids(23);
    for cache in [CacheType::F16, CacheType::F32] {
        let expected: Vec<Vec<f64>> = each(&mut session(&model, cache, 256), &ids, &[23])
            .iter()
            .map(|row| row.iter().map(|value| f64::from(*value)).collect())
            .collect();
        for chunk in [1, 2, 4, 5, 7, 22, 23] {
            for length in [1, 2, 4, 5, 6, 11, 23] {
                let found = each(&mut session(&model, cache, chunk), &ids, &[length]);
                // Rounding a key to half precision can fall to the other side after a different sum.
                let most = if cache == CacheType::F32 { 1e-5 } else { 1e-3 };
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(difference(found, expected) < most, "chunk {chunk}, pieces of {length}");
                }
                let mut session = session(&model, cache, chunk);
                for (piece, end) in ids.chunks(length).zip((length..).step_by(length)) {
                    let found = session.feed(piece).expect("valid ids");
                    assert!(difference(found, &expected[end.min(23) - 1]) < most);
                }
            }
        }
    }
}

#[test]
fn rewinding_and_feeding_again_is_as_if_never_fed() {
    let model = model(&config(2), 2);
    let ids = ids(20);
    let mut fresh = session(&model, CacheType::F16, 256);
    fresh.feed(&ids[..9]).expect("valid ids");
    let expected = bits(fresh.feed(&ids[9..15]).expect("valid ids"));

    let mut session = session(&model, CacheType::F16, 256);
    session.feed(&ids[..9]).expect("valid ids");
    session.feed(&[3; 14]).expect("valid ids");
    session.rewind(9).expect("not past the end");
    assert_eq!((session.position(), session.ids()), (9, &ids[..9]));
    assert_eq!(bits(session.feed(&ids[9..15]).expect("valid ids")), expected);
    assert!(matches!(session.rewind(16), Err(Error::Usage(_))));
    assert_eq!(session.position(), 15);
}

#[test]
fn a_fork_has_the_same_past_and_its_own_future() {
    for cache in [CacheType::F16, CacheType::F32] {
        let model = model(&config(2), 2);
        let mut one = session(&model, cache, 256);
        one.feed(&ids(7)).expect("valid ids");
        let mut other = one.fork().expect("memory");
        one.canceller().cancel();
        assert!(matches!(one.feed(&[1]), Err(Error::Cancelled)));
        other.feed(&[5, 6, 7]).expect("a fork is cancelled by its own canceller");
        one.canceller().clear();
        let first = bits(one.feed(&[9, 8]).expect("valid ids"));

        let mut whole = session(&model, cache, 256);
        whole.feed(&ids(7)).expect("valid ids");
        assert_eq!(bits(whole.feed(&[9, 8]).expect("valid ids")), first);
        other.rewind(7).expect("not past the end");
        assert_eq!(bits(other.feed(&[9, 8]).expect("valid ids")), first);
    }
}

#[test]
fn a_cancelled_feed_leaves_the_session_as_it_was() {
    for threads in [1, 3] {
        let model = model(&config(2), threads);
        let mut session = session(&model, CacheType::F16, 4);
        session.feed(&ids(5)).expect("valid ids");
        let canceller = session.canceller();
        // In the middle of a prefill: between its first and its second chunk.
        let outcome = session.feed_each(&ids(18), &mut |_, _| canceller.cancel());
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert!(canceller.is_cancelled());
        assert!(matches!(session.feed(&[1]), Err(Error::Cancelled)));
        assert_eq!((session.position(), session.ids()), (5, &ids(5)[..]));
        canceller.clear();
        let found = bits(session.feed(&[1]).expect("no longer cancelled"));
        session.rewind(5).expect("not past the end");
        assert_eq!(bits(session.feed(&[1]).expect("valid ids")), found);
    }
}

#[test]
fn a_cancel_from_another_thread_ends_a_long_prefill() {
    let config = Config { context: 4096, width: 96, layers: 6, feed_forward: 384, ..config(1) };
    let mut session = session(&model(&config, 2), CacheType::F16, 256);
    let canceller = session.canceller();
    let prompt = ids(4096);
    let (feeding, fed) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            fed.recv().expect("the feed begins");
            std::thread::sleep(std::time::Duration::from_millis(2));
            canceller.cancel();
        });
        feeding.send(()).expect("the other thread listens");
        assert!(matches!(session.feed(&prompt), Err(Error::Cancelled)));
    });
    assert_eq!(session.position(), 0);
}

#[test]
fn sessions_of_one_model_take_turns() {
    let model = model(&config(2), 2);
    let expected = bits(session(&model, CacheType::F16, 3).feed(&ids(23)).expect("valid ids"));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut session = session(&model, CacheType::F16, 3);
                assert_eq!(bits(session.feed(&ids(23)).expect("valid ids")), expected);
            });
        }
    });
    // A visitor may use another session of the same model.
    let (mut outer, mut inner) = (session(&model, CacheType::F16, 3), session(&model, CacheType::F16, 3));
    let mut visit = |_: usize, _: &[f32]| {
        inner.feed(&[1]).expect("valid ids");
    };
    outer.feed_each(&ids(5), &mut visit).expect("valid ids");
}

#[test]
fn a_visitor_that_panics_leaves_the_session_as_it_was() {
    let model = model(&config(2), 2);
    let mut session = session(&model, CacheType::F16, 3);
    session.feed(&[1, 2]).expect("valid ids");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        session.feed_each(&[3, 4, 5, 6], &mut |position, _| assert!(position < 4, "the visitor's own"))
    }));
    assert!(outcome.is_err());
    assert_eq!(session.ids(), [1, 2]);
    session.feed(&[3]).expect("the session still works");
}

#[test]
fn what_cannot_be_fed_or_made_is_refused() {
    let model = model(&config(1), 1);
    let mut session = model
        .session_with(&SessionOptions { capacity: Some(4), ..SessionOptions::default() })
        .expect("memory for a small session");
    assert_eq!(session.context(), 4);
    session.feed(&[1, 2]).expect("valid ids");
    for ids in [&[][..], &[37], &[u32::MAX], &[0, 1, 2], &[0; 1000]] {
        assert!(matches!(session.feed(ids), Err(Error::Usage(_))), "{ids:?}");
        assert_eq!(session.position(), 2);
    }
    assert!(matches!(session.feed_each(&[1, 99], &mut |_, _| panic!("visited")), Err(Error::Usage(_))));
    session.feed_each(&[], &mut |_, _| panic!("visited")).expect("nothing to do");
    for (chunk, capacity) in [(0, None), (1, Some(0)), (1, Some(24)), (1, Some(usize::MAX))] {
        let options = SessionOptions { chunk, capacity, ..SessionOptions::default() };
        assert!(matches!(model.session_with(&options), Err(Error::Usage(_))), "{options:?}");
    }
}

#[test]
fn a_session_that_cannot_fit_is_an_error() {
    let config = Config { context: 1 << 24, layers: 1, heads: 1, width: 2, feed_forward: 2, ..config(1) };
    let model = model(&config, 1);
    // A cache of 128 MiB fits; a chunk's buffers are cut down to what the context and a cut allow.
    let options = SessionOptions { chunk: usize::MAX, ..SessionOptions::default() };
    match model.session_with(&options) {
        Ok(session) => assert_eq!(session.context(), 1 << 24),
        Err(error) => assert!(matches!(error, Error::Memory { .. }), "{error}"),
    }
}
