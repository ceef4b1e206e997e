//! Whole runs, short ones: what they leave, and what stops them.

use super::*;
use crate::options::Flags;
use std::fs;

/// A folder with a small text in it.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lectern-train-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a folder");
    let text: String = (0..900u32).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    fs::write(path.join("text"), text).expect("a text");
    path
}

fn request(folder: &Path, flags: &[(&'static str, &str)]) -> Request {
    let small = [
        ("width", "8"),
        ("heads", "2"),
        ("layers", "1"),
        ("batch", "4"),
        ("eval_every", "4"),
        ("eval_batches", "3"),
        ("save_every", "5"),
        ("log_every", "1"),
        ("sample", "0"),
        ("progress", "off"),
    ];
    Request {
        preset: Some("nano".to_owned()),
        config: None,
        data: vec![folder.join("text")],
        data_weight: vec![],
        upcycle: None,
        from: None,
        flags: Flags::of(&[&small[..], &[("block", "16"), ("decay_steps", "12")], flags].concat()),
    }
}

/// Every file under a directory with its bytes.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}

#[test]
fn a_run_cut_and_resumed_is_the_run_left_alone() {
    let folder = folder("resume");
    let checkpoint = |run: &str| {
        let at = folder.join(run).join("checkpoints/0000000012");
        let relative = |(path, bytes): (PathBuf, Vec<u8>)| {
            (path.strip_prefix(&at).expect("a path under it").to_path_buf(), bytes)
        };
        files(&at).into_iter().map(relative).collect::<Vec<_>>()
    };
    let whole = request(&folder, &[("steps", "12"), ("threads", "1")]);
    assert_eq!(train(&whole, &folder.join("whole"), false).expect("a run"), End::Done);
    let expected = checkpoint("whole");
    assert!(expected.len() >= 7, "model, state and manifest");
    for cut in ["1", "4", "7", "11"] {
        let run = folder.join(cut);
        train(&request(&folder, &[("steps", cut), ("threads", "2")]), &run, false).expect("a run");
        let rest = Request {
            flags: Flags::of(&[("steps", "12"), ("threads", "3"), ("keep", "1")]),
            ..Request::default()
        };
        train(&rest, &run, true).expect("its rest");
        assert!(checkpoint(cut) == expected, "cut after {cut} steps");
        assert_eq!(fs::read_dir(run.join("checkpoints")).expect("checkpoints").count(), 1);
    }
    fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn metrics_of_a_resumed_run_have_each_row_once() {
    let folder = folder("metrics");
    let run = folder.join("run");
    let asked = |steps| request(&folder, &[("steps", steps), ("rng", "torch"), ("dropout", "0")]);
    train(&asked("8"), &run, false).expect("a run");
    // As a kill after the last checkpoint leaves it: rows of steps that the checkpoint does not know.
    let newest = run.join("checkpoints/0000000008");
    fs::remove_dir_all(newest).expect("a checkpoint");
    train(&asked("8"), &run, true).expect("the rest");
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let steps = |key: &str| {
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("an object");
        let rows = text.lines().map(row).filter(|row| row.get(key).is_some());
        rows.map(|row| row["step"].as_u64().expect("a step")).collect::<Vec<_>>()
    };
    assert_eq!(steps("loss"), (0..8).collect::<Vec<_>>());
    assert_eq!(steps("val_loss"), [0, 4, 7]);
    fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn what_cannot_be_done_leaves_everything_as_it_was() {
    let folder = folder("refused");
    let run = folder.join("run");
    let code = |request: &Request, resume| train(request, &run, resume).expect_err("refused").exit_code();
    assert_eq!(code(&request(&folder, &[("width", "9")]), false), 4);
    assert_eq!(code(&Request::default(), true), 2);
    assert_eq!(code(&request(&folder, &[("device", "cuda")]), false), 6);
    assert_eq!(code(&request(&folder, &[("block", "400")]), false), 3);
    assert!(!run.exists());

    train(&request(&folder, &[("steps", "2")]), &run, false).expect("a run");
    let before = files(&run);
    assert_eq!(code(&request(&folder, &[("steps", "2")]), false), 2);
    assert_eq!(code(&request(&folder, &[("batch", "5")]), true), 4);
    fs::write(folder.join("text"), "another text".repeat(40)).expect("a text");
    let error = train(&Request::default(), &run, true).expect_err("another text");
    assert!(error.exit_code() == 4 && error.to_string().contains("data is 480 bytes"), "{error}");
    assert!(files(&run) == before);
    let held = Run::lock(&run).expect("nobody holds it");
    assert_eq!(code(&request(&folder, &[]), true), 8);
    drop(held);
    fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn a_loss_that_is_no_number_is_never_saved() {
    let folder = folder("diverged");
    let flags = [
        ("learning_rate", "100"),
        ("weight_decay", "1"),
        ("warmup", "0"),
        ("clip", "0"),
        ("schedule", "constant"),
        ("dtype", "f32"),
    ];
    let error = train(&request(&folder, &flags), &folder.join("run"), false).expect_err("it diverges");
    assert_eq!(error.exit_code(), 9, "{error}");
    for (path, _) in files(&folder.join("run")).iter().filter(|(path, _)| path.ends_with("state.safetensors"))
    {
        let file = checkpoint::TensorFile::open(path).expect("a state");
        for tensor in file.iter() {
            assert!((0..tensor.values.len()).all(|index| tensor.values.get(index).is_finite()));
        }
    }
    fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn numbers_are_grouped_by_three() {
    let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (208_961, "208,961"), (1_234_567, "1,234,567")];
    for (number, text) in cases {
        assert_eq!(grouped(number), text);
    }
}

#[test]
fn paths_come_back_from_a_shell_as_they_went() {
    assert_eq!(quoted(Path::new("runs/zero-1")), "runs/zero-1");
    assert_eq!(quoted(Path::new("my run's")), "'my run'\\''s'");
}
