//! The best logits against all of them, for heads that are ordinary and heads that are not.

use super::*;
use crate::generate::{GenerateOptions, Generator};
use crate::model::{Model, ModelOptions};
use crate::random::{Purpose, Stream};
use crate::sampler::Sampling;
use crate::session::tests::{ids, large, lines, plain, random};
use formats::checkpoint::Dtype;
use formats::{Config, Layout, families};

const ROWS: usize = 403;

/// Numbers from -1 to 1.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Init);
    (0..count as u64).map(|index| 2.0 * stream.uniform(0, index) - 1.0).collect()
}

/// What all rows have in common is taken to be one of them, which is as good as any.
fn common(head: &[f32], columns: usize) -> &[f32] {
    &head[3 * columns..][..columns]
}

fn shortlist(simd: &Simd, head: &[f32], columns: usize) -> Option<Shortlist> {
    shortlist_about(simd, head, common(head, columns))
}

fn shortlist_about(simd: &Simd, head: &[f32], common: &[f32]) -> Option<Shortlist> {
    let columns = common.len();
    let mut shortlist = Shortlist::empty(head.len() / columns, columns).expect("memory");
    let mut largest = 0.0f64;
    // Parts that no number of threads makes.
    for mut part in shortlist.parts(7) {
        for at in 0..part.scales.len() {
            part.copy(simd, at, &head[(part.first + at) * columns..][..columns], common);
        }
        largest = largest.max(part.largest);
    }
    shortlist.finish(largest)
}

/// Heads `[ROWS, columns]` of every kind that a bound could get wrong.
fn heads(columns: usize) -> Vec<(&'static str, Vec<f32>)> {
    let plain = values(ROWS * columns, 1);
    let scaled = |by: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        plain.iter().enumerate().map(|(at, value)| value * by(at / columns, at % columns)).collect()
    };
    let equal = (0..ROWS).flat_map(|row| plain[row % 3 * columns..][..columns].to_vec()).collect();
    let nearly = |row: usize, value: f32| f32::from_bits(value.to_bits() + (row % 2) as u32);
    let nearly = (0..ROWS * columns).map(|at| nearly(at / columns, plain[at % columns])).collect();
    vec![
        ("random", plain.clone()),
        ("equal rows", equal),
        ("rows one bit apart", nearly),
        ("zero rows", scaled(&|row, _| f32::from(u8::from(row % 5 == 0)))),
        ("all zero", vec![0.0; ROWS * columns]),
        ("one huge weight a row", scaled(&|row, column| if column == row % columns { 1e6 } else { 1e-3 })),
        ("a huge column", scaled(&|_, column| if column == 0 { 1e20 } else { 1.0 })),
        ("rows of all sizes", scaled(&|row, _| 10f32.powi(row as i32 % 60 - 40))),
        ("subnormal", scaled(&|_, _| 1e-40)),
        ("smallest", scaled(&|_, _| 1e-45)),
        ("large", scaled(&|_, _| 1e25)),
    ]
}

/// All logits as the head itself gives them.
fn all(simd: &Simd, head: &[f32], x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut logits = vec![f32::NAN; head.len() / x.len()];
    (simd.gemv_f32)(head, Origin::Memory, x, &mut logits);
    if let Some(bias) = bias {
        (simd.add)(&mut logits, bias);
    }
    logits
}

/// What [`Shortlist::choose`] leaves of some rows, and for how many it computed a logit.
fn choose(
    shortlist: &Shortlist,
    simd: &Simd,
    (head, x, bias): (&[f32], &[f32], Option<&[f32]>),
    rows: Range<usize>,
    best: usize,
) -> Option<(Vec<f32>, usize)> {
    let norm = shortlist.norm(x)?;
    let mut out = vec![f32::NAN; rows.len()];
    let mut room = memory::reserved(2 * best).expect("memory");
    let before = room.capacity();
    let count = shortlist.choose(simd, (x, norm), rows, bias, best, &mut room, &mut out, |row, logit| {
        let bias = bias.map(|bias| &bias[row..=row]);
        *logit = all(simd, &head[row * x.len()..][..x.len()], x, bias)[0];
    });
    assert_eq!(room.capacity(), before, "the room was too small");
    count.map(|count| (out, count))
}

#[test]
fn the_best_are_found_with_the_bits_that_the_head_gives() {
    let mut found = 0;
    for simd in Simd::available() {
        for columns in [1, 7, 16, 33, 96] {
            let sides = |x: &[f32]| -> Vec<Vec<f32>> {
                let scaled = |by: f32| x.iter().map(|value| value * by).collect();
                let mut outlier = x.to_vec();
                outlier[0] = 1e4;
                vec![x.to_vec(), outlier, scaled(1e-40), scaled(1e-20), scaled(0.0), scaled(1e4)]
            };
            for (name, head) in heads(columns) {
                let shortlist = shortlist(simd, &head, columns).expect("finite weights");
                let bias = values(ROWS, 3);
                for (x, bias) in
                    sides(&values(columns, 2)).iter().flat_map(|x| [(x, None), (x, Some(&bias[..]))])
                {
                    let logits = all(simd, &head, x, bias);
                    for best in [1, 5, 40, MOST_BEST] {
                        for rows in [0..ROWS, 0..134, 134..ROWS, 390..ROWS] {
                            let Some((out, count)) =
                                choose(&shortlist, simd, (&head, x, bias), rows.clone(), best)
                            else {
                                continue;
                            };
                            found += 1;
                            let logits = &logits[rows];
                            let mut sorted = logits.to_vec();
                            sorted.sort_by(|a, b| b.total_cmp(a));
                            let last = sorted[best.min(sorted.len()) - 1];
                            let mut computed = 0;
                            for (row, (logit, out)) in logits.iter().zip(&out).enumerate() {
                                let same = logit.to_bits() == out.to_bits();
                                computed += usize::from(*out != NOT_AMONG_THE_BEST);
                                assert!(
                                    same || (*logit < last && *out == NOT_AMONG_THE_BEST),
                                    "{} {name}, {columns} columns, best {best}, row {row}: {out} for {logit}",
                                    simd.name
                                );
                            }
                            assert_eq!(computed, count);
                        }
                    }
                }
            }
        }
    }
    assert!(found > 1000, "only {found} choices had few candidates");
}

#[test]
fn logits_lie_within_their_bounds_in_float64_and_in_f32() {
    for simd in Simd::available() {
        for columns in [1, 7, 16, 33, 96] {
            for (name, head) in heads(columns) {
                let shortlist = shortlist(simd, &head, columns).expect("finite weights");
                // What the copy of a row leaves out is what the inequality is an equation for.
                let numbers: &[i8] = bytemuck::cast_slice(&shortlist.numbers);
                let (of_all, scale) = (common(&head, columns), shortlist.scales[11]);
                let left_out = |at: usize| {
                    let column = at % columns;
                    (head[at] - of_all[column] - scale * f32::from(numbers[at]))
                        / scale.max(f32::MIN_POSITIVE)
                };
                let scaled = |by: f32| values(columns, 4).iter().map(|value| value * by).collect();
                let left_out = (11 * columns..12 * columns).map(left_out).collect();
                let sides: [(Vec<f32>, bool); 4] =
                    [(scaled(1.0), false), (scaled(1e-30), true), (scaled(1e3), true), (left_out, false)];
                for (x, with_bias) in sides {
                    let bias = values(ROWS, 5);
                    let bias = with_bias.then_some(&bias[..]);
                    let norm = shortlist.norm(&x).expect("a norm in bounds");
                    let exact: f64 = x.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                    assert!(f64::from(norm) >= exact && f64::from(norm) <= exact * 1.001 + 1e-44);
                    let bounds = Bounds {
                        scales: &shortlist.scales,
                        errors: &shortlist.errors,
                        bias,
                        norm,
                        least: shortlist.least,
                    };
                    let mut sums = vec![f32::NAN; ROWS];
                    (simd.gemv_i8)(numbers, Origin::Memory, &x, &mut sums);
                    let logits = all(simd, &head, &x, bias);
                    for row in 0..ROWS {
                        let [[centre], [radius]] = bounds.of::<1>(&sums, row);
                        let products = head[row * columns..].iter().zip(&x).take(columns);
                        let exact = products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                        let shift =
                            common(&head, columns).iter().zip(&x).map(|(m, x)| f64::from(*m) * f64::from(*x));
                        let shift = shift.sum::<f64>();
                        let exact = exact + bias.map_or(0.0, |bias| f64::from(bias[row]));
                        for logit in [exact, f64::from(logits[row])] {
                            let off = (f64::from(centre) - (logit - shift)).abs();
                            assert!(
                                off <= f64::from(radius),
                                "{} {name} row {row}: {off} > {radius}",
                                simd.name
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn few_of_many_random_rows_are_candidates() {
    let (rows, columns, simd) = (20_000, 256, Simd::best());
    let (head, x) = (values(rows * columns, 1), values(columns, 2));
    let shortlist = shortlist_about(simd, &head, &vec![0.0; columns]).expect("finite weights");
    for (best, most) in [(1, 30), (40, 200), (MOST_BEST, 700)] {
        let (_, count) = choose(&shortlist, simd, (&head, &x, None), 0..rows, best).expect("few candidates");
        assert!((best..most).contains(&count), "{count} candidates for {best}");
    }
}

#[test]
fn what_is_no_number_or_overflows_is_left_to_the_head() {
    let simd = Simd::best();
    let head = values(ROWS * 20, 1);
    for weight in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e35] {
        for at in [0, 15, 16, 19, ROWS * 20 - 1] {
            let mut head = head.clone();
            head[at] = weight;
            assert!(shortlist(simd, &head, 20).is_none(), "{weight} at {at}");
        }
    }
    let shortlist = shortlist(simd, &head, 20).expect("finite weights");
    assert!(shortlist.norm(&[1e20; 20]).is_some());
    for x in [f32::NAN, f32::INFINITY, f32::MAX, 1e30] {
        assert!(shortlist.norm(&[x; 20]).is_none(), "{x}");
    }
}

/// A model with a head of many rows that is read as it stands.
fn many(config: Config) -> Config {
    Config { vocabulary: 3001, ..config }
}

fn open(config: &Config, dtype: Dtype, file: &[u8], threads: usize, shortlist: bool) -> Model {
    let options =
        ModelOptions { threads: Some(threads), shortlist: Some(shortlist), ..ModelOptions::default() };
    Model::from_bytes_with(&families::config_json(config, dtype), file, None, &options)
        .expect("a valid model")
}

#[test]
fn a_session_gives_the_best_logits_as_it_gives_all() {
    for (config, dtype) in [(large(), Dtype::F16), (lines(5, 2), Dtype::Bf16), (lines(7, 1), Dtype::F32)] {
        let config = many(config);
        let (file, _) = random(&config, dtype);
        let ids = ids(&config, 24);
        for threads in [1, 2, 3] {
            let model = open(&config, dtype, &file, threads, true);
            let mut session = model.session().expect("a session");
            let all: Vec<Vec<f32>> =
                ids.iter().map(|id| session.feed(&[*id]).expect("room").to_vec()).collect();
            assert!(model.make_shortlist() && model.make_shortlist());
            for best in [1, 40, 300] {
                session.rewind(0).expect("the start");
                for (id, all) in ids.iter().zip(&all) {
                    let some = session.feed_best(&[*id], best).expect("room");
                    let mut sorted = all.clone();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    let same = |(all, some): (&f32, &f32)| {
                        all.to_bits() == some.to_bits() || (*some == f32::MIN && *all < sorted[best - 1])
                    };
                    assert!(all.iter().zip(some).all(same), "{dtype}, {threads} threads, best {best}");
                    let few = best..config.vocabulary / ROWS_A_CANDIDATE;
                    assert!(best > MOST_BEST || few.contains(&session.candidates()));
                }
            }
            // A feed of all is whole again, and a prompt's last row is chosen from as a single one is.
            session.rewind(0).expect("the start");
            let some = session.feed_best(&ids[..9], 1).expect("room");
            assert!(some.iter().filter(|logit| **logit != f32::MIN).count() < config.vocabulary / 8);
            assert!(session.feed(&ids[9..10]).expect("room").iter().all(|logit| *logit != f32::MIN));
        }
    }
}

#[test]
fn generation_is_the_same_with_a_shortlist_and_without() {
    let config = many(large());
    let (file, _) = random(&config, Dtype::F16);
    for sampling in
        [Sampling::GREEDY, Sampling::default(), Sampling { top_p: 1.0, min_p: 0.0, ..Sampling::default() }]
    {
        let run = |threads, shortlist, logprobs| -> Vec<u32> {
            let model = open(&config, Dtype::F16, &file, threads, shortlist);
            let mut session = model.session().expect("a session");
            let options =
                GenerateOptions { max_tokens: 70, sampling, seed: 7, logprobs, ..GenerateOptions::default() };
            let mut generator = Generator::new(&mut session, &[1, 2, 3], &options).expect("a generator");
            let tokens: Vec<_> = generator.by_ref().map(|token| token.expect("a token")).collect();
            drop(generator);
            assert!(tokens.iter().all(|token| token.logprob.is_some() == logprobs));
            assert_eq!(session.candidates() > 0, shortlist && !logprobs, "{threads} threads");
            tokens.iter().map(|token| token.id).collect()
        };
        let expected = run(1, false, false);
        assert_eq!(expected.len(), 70);
        for threads in [1, 2, 3] {
            assert_eq!(run(threads, true, false), expected, "{threads} threads");
            assert_eq!(run(threads, true, true), expected, "{threads} threads with probabilities");
        }
    }
}

#[test]
fn a_shortlist_that_gains_nothing_rests() {
    let config = Config { head_bias: false, ..many(large()) };
    let (file, _) = random(&config, Dtype::F32);
    // Rows that are all alike: every one is a candidate.
    let file = with_head(&config, file, |at, row| row[at % config.width]);
    let model = open(&config, Dtype::F32, &file, 2, true);
    let mut session = model.session().expect("a session");
    assert!(model.make_shortlist());
    let all = session.feed(&[1]).expect("room").to_vec();
    session.rewind(0).expect("the start");
    let counts: Vec<usize> = (0..3)
        .map(|_| {
            session.rewind(0).expect("the start");
            assert_eq!(session.feed_best(&[1], 1).expect("room"), all);
            session.candidates()
        })
        .collect();
    assert_eq!(counts, [config.vocabulary, 0, 0]);
}

/// A file of single precision with another head: `weight` gets the place in it and its first row.
fn with_head(config: &Config, mut file: Vec<u8>, weight: impl Fn(usize, &[f32]) -> f32) -> Vec<u8> {
    let layout = Layout::new(config);
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let mut stored = families::stored(config, &layout).into_iter();
    let name = stored.find(|stored| stored.id == layout.head.weight).expect("a head").name;
    let place = |end: usize| header[&name]["data_offsets"][end].as_u64().expect("a number") as usize;
    let head = &mut file[8 + length..][place(0)..place(1)];
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let row: Vec<f32> = head[..4 * config.width].chunks_exact(4).map(number).collect();
    for (at, bytes) in head.chunks_exact_mut(4).enumerate() {
        bytes.copy_from_slice(&weight(at, &row).to_le_bytes());
    }
    file
}

#[test]
fn a_head_with_a_weight_that_is_no_number_has_no_shortlist_and_the_same_error() {
    let config = many(large());
    let (file, _) = random(&config, Dtype::F32);
    for spoiled in [f32::NAN, f32::INFINITY, f32::MAX] {
        let file = with_head(&config, file.clone(), |at, row| if at == 777 { spoiled } else { row[0] });
        let error = |shortlist| {
            let model = open(&config, Dtype::F32, &file, 2, shortlist);
            assert!(!model.make_shortlist());
            let mut session = model.session().expect("a session");
            let options = GenerateOptions { max_tokens: 100, ..GenerateOptions::default() };
            let options = GenerateOptions { sampling: Sampling::GREEDY, ..options };
            let mut generator = Generator::new(&mut session, &[1], &options).expect("a generator");
            generator.next().map(|token| token.map_err(|error| error.to_string()))
        };
        assert_eq!(error(true), error(false));
        assert!(spoiled == f32::MAX || error(true).is_some_and(|token| token.is_err()), "{spoiled}");
    }
}

#[test]
fn where_nothing_is_gained_there_is_no_shortlist() {
    // Packed when it was opened; small enough for a cache; not wanted.
    let (small, _) = random(&plain(), Dtype::F16);
    assert!(!open(&plain(), Dtype::F16, &small, 1, true).make_shortlist());
    let config = many(large());
    let (file, _) = random(&config, Dtype::F16);
    let json = families::config_json(&config, Dtype::F16);
    let usual = Model::from_bytes(&json, &file, None).expect("a valid model");
    assert_eq!(usual.make_shortlist(), usual.shared().origin == Origin::Memory);
    assert!(!open(&config, Dtype::F16, &file, 1, false).make_shortlist());
}

#[test]
fn a_shortlist_that_was_stopped_can_be_made_later() {
    let config = many(large());
    let (file, _) = random(&config, Dtype::F16);
    let model = open(&config, Dtype::F16, &file, 2, true);
    assert!(!model.make_shortlist_unless(&AtomicBool::new(true)));
    assert!(model.make_shortlist());
}
