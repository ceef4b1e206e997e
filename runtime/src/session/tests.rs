//! Whole sessions of small random models against the same model in float64, written out plainly.

use super::*;
use crate::model::ModelOptions;
use formats::checkpoint::Dtype;
use formats::config::{Activation, AttentionScale, Config, NormKind, NormOrder, Position, QueryKeyNorm};
use formats::layout::{FeedForward, Layout, Linear, Norm, ParameterId};
use formats::{architecture, families};
use half::{bf16, f16};
use std::panic::{self, AssertUnwindSafe};
use std::thread;

/// Sizes that are no multiples of a panel or a vector, all biases, and heads that three threads share unevenly.
pub(crate) fn plain() -> Config {
    Config {
        vocabulary: 37,
        context: 48,
        width: 40,
        layers: 2,
        heads: 5,
        kv_heads: 5,
        head_size: 8,
        feed_forward: 75,
        experts: None,
        position: Position::Learned,
        rotary_base: 10_000.0,
        norm: NormKind::LayerNorm,
        norm_order: NormOrder::Pre,
        query_key_norm: QueryKeyNorm::None,
        activation: Activation::GeluErf,
        attention_scale: AttentionScale::HeadSize,
        norm_eps: 1e-5,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        tied: false,
        head_bias: true,
        dropout: 0.0,
    }
}

/// The other side of every switch, and a feed-forward layer as wide as other buffers are.
fn other() -> Config {
    Config {
        activation: Activation::Relu,
        attention_scale: AttentionScale::Width,
        norm_bias: false,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        tied: true,
        head_bias: false,
        feed_forward: 40,
        ..plain()
    }
}

/// A random model: its file, and its values in the layout's order as the file's dtype has them.
pub(crate) fn random(config: &Config, dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
    let layout = Layout::new(config);
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut values = vec![f32::NAN; layout.parameters()];
    let mut bytes = Vec::new();
    let mut header = serde_json::Map::new();
    for stored in families::stored(config, &layout) {
        let begin = bytes.len();
        let parameter = layout.parameter(stored.id);
        let start = parameter.range().start + stored.first_row * parameter.columns;
        for index in 0..stored.shape.iter().product() {
            let value = draw();
            let value = match dtype {
                Dtype::F32 => {
                    bytes.extend(value.to_le_bytes());
                    value
                }
                Dtype::F16 => {
                    bytes.extend(f16::from_f32(value).to_le_bytes());
                    f16::from_f32(value).to_f32()
                }
                Dtype::Bf16 => {
                    bytes.extend(bf16::from_f32(value).to_le_bytes());
                    bf16::from_f32(value).to_f32()
                }
            };
            let at = match (stored.inputs_first, &stored.shape[..]) {
                (true, [_, rows]) => index % rows * parameter.columns + index / rows,
                _ => index,
            };
            values[start + at] = value;
        }
        let entry = serde_json::json!({
            "dtype": dtype.name().to_uppercase(),
            "shape": stored.shape,
            "data_offsets": [begin, bytes.len()],
        });
        header.insert(stored.name, entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(bytes);
    (file, values)
}

fn open(config: &Config, dtype: Dtype, threads: usize) -> Model {
    let (file, _) = random(config, dtype);
    let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    Model::from_bytes_with(&families::config_json(config, dtype), &file, None, &options)
        .expect("a valid model")
}

pub(crate) fn ids(config: &Config, len: usize) -> Vec<u32> {
    (0..len).map(|index| (index * index * 7 + index * 3 + 1) as u32 % config.vocabulary as u32).collect()
}

/// The logits after every id, in float64, each operation written as its equation.
fn reference(config: &Config, values: &[f32], ids: &[u32]) -> Vec<Vec<f64>> {
    let layout = Layout::new(config);
    let (width, head_size) = (config.width, config.head_size);
    let get = |id: ParameterId| -> Vec<f64> {
        values[layout.parameter(id).range()].iter().map(|&value| f64::from(value)).collect()
    };
    let norm = |x: &[f64], norm: &Norm| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
        let deviation = (variance + f64::from(config.norm_eps)).sqrt();
        let bias = norm.bias.map_or(vec![0.0; width], get);
        let gain = get(norm.gain);
        (0..width).map(|index| (x[index] - mean) / deviation * gain[index] + bias[index]).collect()
    };
    let linear = |x: &[f64], linear: &Linear| -> Vec<f64> {
        let weight = get(linear.weight);
        let mut out = linear.bias.map_or(vec![0.0; linear.outputs], get);
        for (out, row) in out.iter_mut().zip(weight.chunks_exact(linear.inputs)) {
            *out += row.iter().zip(x).map(|(weight, x)| weight * x).sum::<f64>();
        }
        out
    };
    let activation = |x: f64| match config.activation {
        Activation::Relu => x.max(0.0),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::SwiGlu => unreachable!("no model here has it"),
    };
    let tokens = get(layout.token_embedding);
    let positions = get(layout.position_embedding.expect("learned positions"));
    let mut stream: Vec<Vec<f64>> = ids
        .iter()
        .enumerate()
        .map(|(position, &id)| {
            (0..width).map(|at| tokens[id as usize * width + at] + positions[position * width + at]).collect()
        })
        .collect();
    let add = |to: &mut [f64], from: &[f64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    for layer in &layout.layers {
        let qkv: Vec<Vec<f64>> =
            stream.iter().map(|x| linear(&norm(x, &layer.attention_norm), &layer.qkv)).collect();
        for row in 0..ids.len() {
            let mut mixed = vec![0.0; width];
            for head in 0..config.heads {
                let at = |part: usize| part * width + head * head_size..part * width + (head + 1) * head_size;
                let score = |key: &Vec<f64>| {
                    let product = qkv[row][at(0)].iter().zip(&key[at(1)]).map(|(q, k)| q * k).sum::<f64>();
                    (product * f64::from(config.score_scale())).exp()
                };
                let weights: Vec<f64> = qkv[..=row].iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&qkv) {
                    for (out, value) in mixed[at(0)].iter_mut().zip(&value[at(2)]) {
                        *out += weight / sum * value;
                    }
                }
            }
            add(&mut stream[row], &linear(&mixed, &layer.attention_out));
        }
        for x in &mut stream {
            let FeedForward::Dense { up, down } = &layer.feed_forward else { panic!("dense models only") };
            let mut hidden = linear(&norm(x, &layer.feed_forward_norm), up);
            hidden.iter_mut().for_each(|value| *value = activation(*value));
            add(x, &linear(&hidden, down));
        }
    }
    stream
        .iter()
        .map(|x| linear(&norm(x, layout.final_norm.as_ref().expect("norms come first")), &layout.head))
        .collect()
}

/// The error function by its Taylor series, which converges for every argument these models reach.
fn erf(x: f64) -> f64 {
    assert!(x.abs() < 5.0, "the series is for small arguments, not {x}");
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Whether two rows of logits differ by at most `tolerance` of the largest; no number that is not finite passes.
fn close(found: &[f32], expected: &[f64], tolerance: f64) -> bool {
    let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
    found.len() == expected.len()
        && expected.iter().all(|value| value.is_finite())
        && found.iter().zip(expected).all(|(&a, &b)| (f64::from(a) - b).abs() <= tolerance * largest)
}

fn widened(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&value| f64::from(value)).collect()
}

fn session(model: &Model, cache: CacheType, chunk: usize) -> Session {
    model.session_with(&SessionOptions { cache, chunk, capacity: None }).expect("memory for a small session")
}

/// Every row's logits, one after another.
fn each(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let first = session.position();
    session
        .feed_each(ids, &mut |position, logits| {
            assert_eq!(position, first + rows.len());
            rows.push(logits.to_vec());
        })
        .expect("ids that fit");
    rows
}

#[test]
fn the_comparer_rejects_what_is_no_number_and_wrong_lengths() {
    assert!(close(&[1.0, 2.0], &[1.0, 2.0], 0.0));
    for found in [&[f32::NAN, 2.0][..], &[f32::INFINITY, 2.0], &[1.0], &[1.0, 2.0, 3.0], &[1.0, 2.1]] {
        assert!(!close(found, &[1.0, 2.0], 1e-3), "{found:?}");
    }
    assert!(!close(&[f32::INFINITY], &[f64::INFINITY], 1e-3));
    assert!(!close(&[f32::NAN], &[f64::NAN], 1e-3));
}

#[test]
fn logits_are_those_of_float64() {
    for config in [plain(), other()] {
        let ids = ids(&config, config.context);
        for dtype in Dtype::ALL {
            let expected = reference(&config, &random(&config, dtype).1, &ids);
            for chunk in [1, 3, 7, 256] {
                let model = open(&config, dtype, 2);
                let rows = each(&mut session(&model, CacheType::F32, chunk), &ids);
                assert_eq!(rows.len(), expected.len());
                for (position, (row, expected)) in rows.iter().zip(&expected).enumerate() {
                    assert!(close(row, expected, 1e-5), "{dtype} chunk {chunk} position {position}");
                }
            }
        }
    }
}

/// A model too large to be packed when it is opened: its weights are packed block by block, or multiplied row by row.
pub(crate) fn large() -> Config {
    let config =
        Config { width: 240, head_size: 48, feed_forward: 960, activation: Activation::Relu, ..plain() };
    assert!(Layout::new(&config).parameters() > crate::model::PACKED_PARAMETERS);
    config
}

/// The same as GPT-2 stores it: a line an input. Three threads' heads are those of no stretch, two threads' are.
pub(crate) fn lines(heads: usize, layers: usize) -> Config {
    let config = Config {
        width: 48 * heads,
        head_size: 48,
        heads,
        kv_heads: heads,
        layers,
        activation: Activation::GeluTanh,
        tied: true,
        head_bias: false,
        feed_forward: 192 * heads,
        ..plain()
    };
    let layout = Layout::new(&config);
    assert!(layout.parameters() > crate::model::PACKED_PARAMETERS);
    assert!(families::stored(&config, &layout).iter().any(|stored| stored.inputs_first));
    config
}

#[test]
fn a_model_that_stores_a_line_an_input_gives_the_same_logits_on_any_number_of_threads() {
    for (config, dtype) in [(lines(5, 2), Dtype::F16), (lines(6, 2), Dtype::Bf16), (lines(7, 1), Dtype::F32)]
    {
        let ids = ids(&config, 20);
        let (file, values) = random(&config, dtype);
        let expected = reference(&config, &values, &ids);
        let open = |threads| {
            let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
            Model::from_bytes_with(&families::config_json(&config, dtype), &file, None, &options)
                .expect("a valid model")
        };
        for chunk in [1, 3, 256] {
            let run = |threads| each(&mut session(&open(threads), CacheType::F32, chunk), &ids);
            let alone = run(1);
            for (position, (row, expected)) in alone.iter().zip(&expected).enumerate() {
                assert!(close(row, expected, 1e-5), "{dtype} chunk {chunk} position {position}");
            }
            let bits = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            for threads in [2, 3, 4, 8, 9] {
                assert!(bits(&run(threads)) == bits(&alone), "{dtype} chunk {chunk} on {threads} threads");
            }
            // The last row alone, and a feed that goes on where another ended.
            let mut session = session(&open(2), CacheType::F32, chunk);
            for (piece, last) in [(&ids[..7], 6), (&ids[7..9], 8), (&ids[9..], ids.len() - 1)] {
                let found = session.feed(piece).expect("room");
                assert!(close(found, &widened(&alone[last]), 1e-5), "{dtype} chunk {chunk} after {last}");
            }
        }
    }
}

#[test]
fn a_model_that_is_not_packed_gives_the_same_logits() {
    let config = large();
    let ids = ids(&config, 24);
    for dtype in Dtype::ALL {
        let expected = reference(&config, &random(&config, dtype).1, &ids);
        for chunk in [1, 4, 256] {
            let run =
                |threads| each(&mut session(&open(&config, dtype, threads), CacheType::F32, chunk), &ids);
            let alone = run(1);
            for (position, (row, expected)) in alone.iter().zip(&expected).enumerate() {
                assert!(close(row, expected, 1e-5), "{dtype} chunk {chunk} position {position}");
            }
            let bits = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(&run(3)) == bits(&alone), "{dtype} chunk {chunk} on three threads");
        }
    }
}

#[test]
fn rows_that_nobody_asked_for_are_dropped_and_not_missed() {
    for config in [plain(), other(), large(), Config { layers: 1, ..plain() }] {
        let ids = ids(&config, config.context);
        let model = open(&config, Dtype::F32, 2);
        let rows = each(&mut session(&model, CacheType::F32, 256), &ids);
        for chunk in [3, 5, 256] {
            for length in [2, 6, 48] {
                let mut session = session(&model, CacheType::F32, chunk);
                for (index, piece) in ids.chunks(length).enumerate() {
                    let last = index * length + piece.len() - 1;
                    let found = session.feed(piece).expect("room");
                    assert!(close(found, &widened(&rows[last]), 1e-5), "chunk {chunk}, {length} ids at once");
                }
            }
        }
    }
}

#[test]
fn a_half_precision_cache_costs_little() {
    let config = plain();
    let ids = ids(&config, config.context);
    let expected = reference(&config, &random(&config, Dtype::F32).1, &ids);
    let rows = each(&mut session(&open(&config, Dtype::F32, 1), CacheType::F16, 256), &ids);
    assert!(rows.iter().zip(&expected).all(|(row, expected)| close(row, expected, 2e-3)));
    assert!(!rows.iter().zip(&expected).all(|(row, expected)| close(row, expected, 1e-6)), "it is not f32");
}

#[test]
fn any_thread_count_gives_the_same_bytes() {
    for config in [plain(), other()] {
        let ids = ids(&config, config.context);
        for cache in [CacheType::F16, CacheType::F32] {
            for chunk in [1, 4, 5, 256] {
                let run = |threads| {
                    let model = open(&config, Dtype::F16, threads);
                    let rows = each(&mut session(&model, cache, chunk), &ids).concat();
                    rows.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let alone = run(1);
                for threads in [2, 3, 7] {
                    assert!(run(threads) == alone, "{cache:?} chunk {chunk} threads {threads}");
                }
            }
        }
    }
}

#[test]
fn cached_and_recomputed_are_the_same() {
    let config = plain();
    let ids = ids(&config, config.context);
    for cache in [CacheType::F16, CacheType::F32] {
        let model = open(&config, Dtype::F16, 2);
        let (mut cached, mut whole) = (session(&model, cache, 256), session(&model, cache, 16));
        for (position, id) in ids.iter().enumerate() {
            let cached = cached.feed(&[*id]).expect("room").to_vec();
            whole.rewind(0).expect("the start is always there");
            let whole = whole.feed(&ids[..=position]).expect("room");
            // An f16 cache may round a key that two orders of summing put on either side of a tie.
            let tolerance = if cache == CacheType::F32 { 1e-5 } else { 1e-4 };
            assert!(close(whole, &widened(&cached), tolerance), "{cache:?} position {position}");
        }
    }
}

#[test]
fn feeding_again_after_a_rewind_gives_the_same_bytes() {
    let config = plain();
    let ids = ids(&config, 20);
    let model = open(&config, Dtype::F16, 2);
    let mut session = session(&model, CacheType::F16, 256);
    session.feed(&ids[..8]).expect("room");
    let first = session.feed(&ids[8..]).expect("room").to_vec();
    session.rewind(12).expect("it is there");
    session.feed(&[5, 6, 7]).expect("room");
    session.rewind(8).expect("it is there");
    assert_eq!(session.feed(&ids[8..]).expect("room"), first);
    assert_eq!(session.ids(), ids);
    assert!(matches!(session.rewind(21), Err(Error::Usage(_))));
    assert_eq!(session.position(), 20);
}

#[test]
fn a_fork_has_the_past_and_its_own_future() {
    let config = plain();
    let ids = ids(&config, 16);
    let model = open(&config, Dtype::F16, 2);
    for cache in [CacheType::F16, CacheType::F32] {
        let mut parent = session(&model, cache, 256);
        parent.feed(&ids[..10]).expect("room");
        let mut fork = parent.fork().expect("memory");
        assert_eq!(fork.ids(), parent.ids());
        fork.feed(&[1, 1, 1]).expect("room");
        let expected = parent.feed(&ids[10..]).expect("room").to_vec();
        fork.rewind(10).expect("it is there");
        assert_eq!(fork.feed(&ids[10..]).expect("room"), expected);
        fork.canceller().cancel();
        assert!(parent.feed(&[1]).is_ok(), "the parent is not cancelled with its fork");
    }
}

#[test]
fn a_cancelled_feed_changes_nothing() {
    let config = plain();
    let ids = ids(&config, config.context);
    for threads in [1, 3] {
        let model = open(&config, Dtype::F16, threads);
        let mut session = session(&model, CacheType::F16, 8);
        session.feed(&ids[..4]).expect("room");
        let expected = session.fork().expect("memory").feed(&ids[4..]).expect("room").to_vec();
        let canceller = session.canceller();
        canceller.cancel();
        assert!(canceller.is_cancelled());
        assert!(matches!(session.feed(&ids[4..]), Err(Error::Cancelled)));
        assert_eq!(session.position(), 4);
        canceller.clear();
        // From within: after the first piece, as another thread would.
        let outcome = session.feed_each(&ids[4..], &mut |_, _| canceller.cancel());
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert_eq!(session.ids(), &ids[..4]);
        canceller.clear();
        assert_eq!(session.feed(&ids[4..]).expect("room"), expected);
    }
}

#[test]
fn another_thread_can_cancel_a_feed_under_way() {
    let config = Config { context: 4096, ..plain() };
    let ids = ids(&config, config.context);
    let model = open(&config, Dtype::F16, 2);
    let mut session = session(&model, CacheType::F16, 256);
    let canceller = session.canceller();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Wherever the feed is by then, before, within or (on a very fast machine) after, the session is sound.
            thread::sleep(std::time::Duration::from_millis(3));
            canceller.cancel();
        });
        match session.feed(&ids) {
            Ok(_) => assert_eq!(session.position(), ids.len()),
            Err(error) => {
                assert!(matches!(error, Error::Cancelled), "{error}");
                assert_eq!(session.position(), 0);
            }
        }
    });
    canceller.clear();
    session.rewind(0).expect("the start");
    assert!(session.feed(&ids[..300]).is_ok());
}

#[test]
fn what_cannot_be_fed_is_refused_and_changes_nothing() {
    let config = plain();
    let model = open(&config, Dtype::F16, 1);
    let options = SessionOptions { capacity: Some(9), ..SessionOptions::default() };
    let mut session = model.session_with(&options).expect("memory");
    session.feed(&[1, 2, 3]).expect("room");
    let too_many = [0; 7];
    let bad: [&[u32]; 5] = [&[], &[37], &[1, u32::MAX], &too_many, &[1, 2, 99, 4]];
    for ids in bad {
        assert!(matches!(session.feed(ids), Err(Error::Usage(_))), "{ids:?}");
        assert!(matches!(session.feed_each(ids, &mut |_, _| panic!("nothing to see")), Err(Error::Usage(_))));
        assert_eq!(session.ids(), [1, 2, 3]);
    }
    session.feed(&too_many[..6]).expect("exactly full");
    assert!(matches!(session.feed(&[0]), Err(Error::Usage(_))));
    assert_eq!((session.position(), session.context()), (9, 9));
}

#[test]
fn impossible_options_are_refused() {
    let config = plain();
    let model = open(&config, Dtype::F16, 1);
    for (chunk, capacity) in [(0, None), (1 << 16, None), (1, Some(0)), (1, Some(config.context + 1))] {
        let options = SessionOptions { chunk, capacity, ..SessionOptions::default() };
        assert!(matches!(model.session_with(&options), Err(Error::Usage(_))), "{options:?}");
    }
    let (file, _) = random(&config, Dtype::F16);
    for threads in [0, 1 << 20] {
        let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
        let json = families::config_json(&config, Dtype::F16);
        assert!(matches!(Model::from_bytes_with(&json, &file, None, &options), Err(Error::Usage(_))));
    }
}

#[test]
fn a_cache_that_memory_cannot_hold_is_an_error() {
    let config = Config {
        context: 1 << 21,
        width: 8,
        heads: 1,
        kv_heads: 1,
        layers: 1024,
        feed_forward: 8,
        ..plain()
    };
    let needed = Cache::bytes(&config, config.context, CacheType::F32);
    if memory::available().is_none_or(|available| available >= needed) {
        eprintln!("skipped: this machine does not say that it has less than {} GiB free", needed >> 30);
        return;
    }
    let model = open(&config, Dtype::F16, 1);
    let options = SessionOptions { cache: CacheType::F32, ..SessionOptions::default() };
    match model.session_with(&options) {
        Err(Error::Memory { needed: found, available, .. }) => assert!(found >= needed && available < needed),
        outcome => panic!("{outcome:?}"),
    }
    assert!(model.session_with(&SessionOptions { capacity: Some(64), ..options }).is_ok());
}

#[test]
fn a_panic_in_the_callers_code_leaves_the_session_sound() {
    let config = plain();
    let ids = ids(&config, 12);
    let model = open(&config, Dtype::F16, 2);
    let mut session = session(&model, CacheType::F16, 4);
    session.feed(&ids[..2]).expect("room");
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        session.feed_each(&ids[2..], &mut |position, _| assert!(position < 7, "the visitor gives up"))
    }));
    assert!(outcome.is_err());
    assert_eq!(session.ids(), &ids[..2]);
    let expected = session.fork().expect("memory").feed(&ids[2..]).expect("room").to_vec();
    assert_eq!(session.feed(&ids[2..]).expect("room"), expected);
}

#[test]
fn sessions_of_one_model_take_turns() {
    let config = plain();
    let model = open(&config, Dtype::F16, 2);
    let expected: Vec<Vec<f32>> = (0..4)
        .map(|start| {
            session(&model, CacheType::F16, 4).feed(&ids(&config, 20 + start)).expect("room").to_vec()
        })
        .collect();
    thread::scope(|scope| {
        for (start, expected) in expected.iter().enumerate() {
            let (model, config) = (model.clone(), &config);
            scope.spawn(move || {
                let mut session = session(&model, CacheType::F16, 4);
                for _ in 0..5 {
                    session.rewind(0).expect("the start");
                    assert_eq!(session.feed(&ids(config, 20 + start)).expect("room"), expected);
                }
            });
        }
    });
}

#[test]
fn a_token_reads_what_the_counter_counts() {
    for config in [plain(), other()] {
        let model = open(&config, Dtype::F16, 1);
        let mut parameters = architecture::count(&config, model.layout()).active_parameters;
        if config.tied {
            // The token's row lies within the head, which is read whole anyway.
            parameters -= config.width as u64;
        }
        assert_eq!(model.bytes_per_token(), 2 * parameters);
    }
}
