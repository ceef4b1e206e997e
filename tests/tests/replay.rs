//! PyTorch's own rows, replayed: the same initialisation, batches, gradients and updates, or the rows part.

use std::path::Path;
use tests::fixtures;
use tests::training::{Job, rows};

/// How far a row may lie from PyTorch's: sums in another order part by far less over these steps.
const ALLOWED: f64 = 0.001;

/// The keys of a run whose every choice is the lecture's but the ones the fixture names.
fn keys(run: &fixtures::Run) -> Vec<(&'static str, String)> {
    let model = &run.model;
    vec![
        ("block", toml(&model.context)),
        ("width", toml(&model.width)),
        ("layers", toml(&model.layers)),
        ("heads", toml(&model.heads)),
        ("feed_forward", toml(&model.feed_forward)),
        ("activation", toml(&model.activation)),
        ("attention_scale", toml(&model.attention_scale)),
        ("norm_bias", toml(&model.norm_bias)),
        ("qkv_bias", toml(&model.qkv_bias)),
        ("attention_bias", toml(&model.attention_bias)),
        ("feed_forward_bias", toml(&model.feed_forward_bias)),
        ("tied", toml(&model.tied)),
        ("head_bias", toml(&model.head_bias)),
        ("batch", toml(&run.batch)),
        ("steps", toml(&run.steps)),
        ("seed", toml(&run.seed)),
        ("learning_rate", toml(&run.learning_rate)),
        ("eval_every", toml(&run.evaluate_every)),
        ("eval_batches", toml(&run.evaluate_batches)),
        ("rng", "\"torch\"".into()),
        ("save_every", "0".into()),
        ("sample", "0".into()),
    ]
}

/// A value as TOML writes it, which for numbers, words and switches is as JSON does.
fn toml(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a plain value")
}

#[track_caller]
fn assert_rows(what: &str, actual: &[(u64, f64, f64)], expected: &[(u64, f64, f64)]) {
    let steps = |rows: &[(u64, f64, f64)]| rows.iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(steps(actual), steps(expected), "{what}: steps");
    assert!(!expected.is_empty(), "{what}: nothing to compare");
    let mut worst = 0.0f64;
    for (a, e) in actual.iter().zip(expected) {
        for (a, e) in [(a.1, e.1), (a.2, e.2)] {
            // The printed rows have four decimals.
            assert!((a - e).abs() <= ALLOWED, "{what}: {actual:?}\nexpected {expected:?}");
            worst = worst.max((a - e).abs());
        }
    }
    println!("{what}: {} rows, at most {worst:.6} apart", expected.len());
}

#[test]
fn pytorchs_first_rows_on_a_text_of_our_own() {
    for (name, run) in fixtures::runs() {
        let job = Job::new("replay", &fixtures::text(), &keys(&run));
        let ran = job.train(&job.out("run"), &["--threads", "2"]).expect(0);
        assert_rows(&name, &rows(&ran.stderr), &run.rows);
        assert!(ran.stdout.is_empty(), "rows belong to standard error: {ran}");
    }
}

#[test]
fn another_seed_gives_other_rows() {
    let run = fixtures::runs().remove("lecture").expect("the lecture's run");
    let other = fixtures::Run { seed: 1338, ..run.clone() };
    let job = Job::new("replay", &fixtures::text(), &keys(&other));
    let actual = rows(&job.train(&job.out("run"), &[]).expect(0).stderr);
    assert_eq!(actual.len(), run.rows.len());
    let apart = |(a, e): (&(u64, f64, f64), &(u64, f64, f64))| (a.1 - e.1).abs() > ALLOWED;
    assert!(actual.iter().zip(&run.rows).all(apart), "{actual:?}");
}

#[test]
fn the_lectures_51_rows() {
    let Some(data) = std::env::var_os("LECTERN_DATA") else {
        println!("skipped: LECTERN_DATA names no folder with lecture-input.txt and lecture-log.txt");
        return;
    };
    let data = Path::new(&data);
    let text = std::fs::read_to_string(data.join("lecture-input.txt")).expect("the lecture's text");
    let log = std::fs::read_to_string(data.join("lecture-log.txt")).expect("the lecture's log");
    let expected = rows(&log);
    assert_eq!(expected.len(), 51);
    let keys = [("rng", "\"torch\"".into()), ("seed", "1337".into()), ("save_every", "0".into())];
    let job = Job::new("lecture", &text, &keys);
    let ran = job.train(&job.out("run"), &["--preset", "gpt-zero", "--sample", "0"]).expect(0);
    assert_rows("the lecture", &rows(&ran.stderr), &expected);
    ran.naming("208,961");
}
