//! The two commands as a user meets them: what they print where, and the codes they end with.

use formats::checkpoint::Dtype;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tests::folder::Folder;
use tests::models::{self, Written};
use tests::programs::{Program, Ran, run, run_with_input, wait};
use tests::training::{Job, rows, tiny, with};

const BOTH: [Program; 2] = [Program::Trainer, Program::Runtime];

/// A model of the printable ASCII characters.
fn model() -> &'static Written {
    static MODEL: OnceLock<Written> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = formats::Config { vocabulary: 95, context: 16, ..models::small() };
        models::write(&config, &models::random_weights(&config, 1), Dtype::F16)
    })
}

/// A `runtime` command on that model.
fn runtime(words: &[&str]) -> Command {
    let mut command = Program::Runtime.command(words);
    command.arg("--model").arg(&model().path);
    command
}

fn text() -> String {
    tests::fixtures::text().chars().take(700).collect()
}

/// Commands that answer on standard output.
fn answers() -> Vec<Command> {
    let mut list = vec![
        runtime(&["generate", "-n", "50"]),
        runtime(&["generate", "-n", "50", "--format", "ids"]),
        runtime(&["generate", "-n", "50", "--format", "json"]),
        runtime(&["score", "--text", "hello"]),
        runtime(&["score", "--text", "hello", "--format", "json"]),
        runtime(&["inspect"]),
        runtime(&["inspect", "--format", "json"]),
        runtime(&["verify"]),
        Program::Trainer.command(&["presets"]),
        Program::Trainer.command(&["presets", "--format", "json"]),
        Program::Runtime.command(&["--help"]),
        Program::Runtime.command(&["--version"]),
        Program::Trainer.command(&["--help"]),
        Program::Trainer.command(&["--version"]),
    ];
    let data = tests::fixtures::path("text.txt");
    let mut inspect = Program::Trainer.command(&["inspect", "data", "--data"]);
    inspect.arg(data);
    list.push(inspect);
    list
}

#[test]
fn every_command_explains_itself() {
    for program in BOTH {
        let help = program.run(&["--help"]).expect(0);
        let listed = help.text().lines().filter_map(|line| line.strip_prefix("  "));
        let names: Vec<String> = listed
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .filter(|name| !matches!(name.as_str(), "trainer" | "runtime" | "help"))
            .collect();
        assert!(names.len() >= 5, "{names:?} in {help}");
        for name in names {
            let explained = program.run(&[name.as_str(), "--help"]).expect(0);
            assert!(explained.text().contains("Usage"), "{explained}");
        }
        assert!(help.text().contains("Exit codes"), "{help}");
        assert!(program.run(&["--version"]).expect(0).text().contains('.'));
    }
}

#[test]
fn wrong_usage_is_code_2_on_standard_error() {
    let cases: [(Program, &[&str]); 16] = [
        (Program::Trainer, &[]),
        (Program::Runtime, &[]),
        (Program::Trainer, &["dance"]),
        (Program::Runtime, &["dance"]),
        (Program::Trainer, &["train", "--no-such-flag"]),
        (Program::Runtime, &["generate", "--no-such-flag"]),
        (Program::Trainer, &["train"]),
        (Program::Runtime, &["generate"]),
        (Program::Runtime, &["score", "--model", "x"]),
        (Program::Runtime, &["generate", "--model", "x", "--threads", "0"]),
        (Program::Runtime, &["generate", "--model", "x", "-n", "-1"]),
        (Program::Runtime, &["generate", "--model", "x", "--cache", "f8"]),
        (Program::Trainer, &["train", "--preset", "no-such-preset", "--data", "x", "--out", "/tmp/never"]),
        (Program::Trainer, &["train", "--preset", "gpt-zero", "--out", "/tmp/lectern-never"]),
        (Program::Trainer, &["eval", "--model", "x"]),
        (Program::Trainer, &["presets", "--format", "xml"]),
    ];
    for (program, words) in cases {
        let ran = program.run(words).expect(2);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{ran}");
    }
    for flags in [
        &["--temperature", "-1"][..],
        &["--temperature", "nan"],
        &["--top-p", "1.5"],
        &["--min-p", "-0.5"],
        &["--repetition-penalty", "0"],
        &["--ids", "1,2,95"],
        &["--ids", "a"],
    ] {
        let mut command = runtime(&["generate", "-n", "3"]);
        command.args(flags);
        run(command).expect(2);
    }
    run(runtime(&["generate", "--prompt", "snow \u{2744} falls"])).expect(2).naming("\u{2744}");
}

#[test]
fn keys_that_do_not_exist_and_values_that_cannot_be_are_refused_with_the_bound() {
    let refused = |key: &str, value: &str, words: &[&str]| {
        let job = Job::new("keys", &text(), &with(tiny(2), &[(key_of(key), value)]));
        let ran = job.train(&job.out("run"), &[]).expect(4);
        for word in words {
            assert!(ran.stderr.contains(word), "{key} = {value}: {word:?} is not said: {ran}");
        }
        assert!(!job.out("run").join("checkpoints").exists(), "something was trained");
    };
    refused("widht", "12", &["widht", "width"]);
    refused("width", "0", &["width", "1"]);
    refused("width", "13", &["width", "heads"]);
    refused("heads", "-1", &["heads"]);
    refused("dropout", "1.0", &["dropout", "1"]);
    refused("dropout", "nan", &["dropout"]);
    refused("layers", "2000", &["layers", "1024"]);
    refused("batch", "0", &["batch"]);
    refused("activation", "\"swish\"", &["activation", "gelu-erf"]);
    refused("learning_rate", "0.0", &["learning_rate"]);
    refused("learning_rate", "\"fast\"", &["learning_rate"]);
    refused("norm_eps", "inf", &["norm_eps"]);
    refused("seed", "-1", &["seed"]);
    refused("rng", "\"dice\"", &["rng", "torch"]);
    refused("tied", "1", &["tied"]);
    let job = Job::new("toml", &text(), &[("width", "[".into())]);
    job.train(&job.out("run"), &[]).expect(4).naming("options.toml");
    // The same bounds for flags, whose code is that of usage or of a config.
    for flags in [["--width", "13"], ["--dropout", "1"], ["--layers", "2000"], ["--steps", "x"]] {
        let job = Job::new("flags", &text(), &tiny(2));
        let ran = job.train(&job.out("run"), &flags).calm();
        assert!(matches!(ran.code, Some(2 | 4)), "{ran}");
        ran.naming(flags[0].trim_start_matches('-'));
    }
    // PyTorch's generator draws no dropout.
    let job = Job::new("torch", &text(), &with(tiny(2), &[("rng", "\"torch\""), ("dropout", "0.1")]));
    job.train(&job.out("run"), &[]).expect(4).naming("dropout");
}

/// Keys of a table of tests live as long as the program.
fn key_of(key: &str) -> &'static str {
    String::from(key).leak()
}

#[test]
fn presets_are_listed_with_their_sizes() {
    let ran = Program::Trainer.run(&["presets"]).expect(0);
    for word in ["gpt-zero", "208,961", "gpt-dev", "209,729", "nano-cpu", "nano"] {
        assert!(ran.text().contains(word), "{word} is not in {ran}");
    }
    let json = Program::Trainer.run(&["presets", "--format", "json"]).expect(0).json();
    assert!(json.to_string().contains("208961"), "{json}");
}

#[test]
fn the_text_is_inspected_as_the_lecture_prints_it() {
    let folder = Folder::new("inspect");
    let data = folder.write("text", "hello world, hello moon\n".repeat(20));
    let ran = Program::Trainer
        .run(&["inspect".as_ref(), "data".as_ref(), "--data".as_ref(), data.as_os_str()])
        .expect(0);
    let lines: Vec<&str> = ran.text().lines().filter(|line| line.starts_with("For input")).collect();
    assert_eq!(lines.len(), 8, "{ran}");
    // \n, space, comma, d, e, h, l, m, n, o, r, w: `hello wor`.
    assert_eq!(lines[0], "For input [5], target is 4");
    assert_eq!(lines[7], "For input [5, 4, 6, 6, 9, 1, 11, 9], target is 10");
    assert!(ran.text().contains("432") && ran.text().contains("48") && ran.text().contains("12"), "{ran}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for mut command in answers() {
        let line = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a command");
        drop(child.stdout.take());
        let status = wait(&mut child, Duration::from_secs(20)).unwrap_or_else(|| panic!("{line} hangs"));
        let mut stderr = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
        assert_eq!(status.code(), Some(0), "{line}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{line}: {stderr}");
    }
    // `generate | head -c1`, with far more to come.
    let mut command = runtime(&["generate", "-n", "100000000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a command");
    let mut pipe = child.stdout.take().expect("a pipe");
    let mut first = [0];
    pipe.read_exact(&mut first).expect("text comes while it is generated");
    drop(pipe);
    let status = wait(&mut child, Duration::from_secs(10)).expect("it ends when nobody reads");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn output_that_cannot_be_written_is_code_5() {
    for mut command in answers() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let line = format!("{command:?}");
        let output = command.stdout(full).stderr(Stdio::piped()).output().expect("a command");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{line}: {stderr}");
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
    }
}

#[test]
fn standard_error_that_cannot_be_written_harms_nothing() {
    let job = Job::new("stderr", &text(), &tiny(3));
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let status = job.command(&job.out("full"), &[]).stderr(full()).status().expect("a trainer");
    assert_eq!(status.code(), Some(0));
    let mut child = job.command(&job.out("closed"), &[]).stderr(Stdio::piped()).spawn().expect("a trainer");
    drop(child.stderr.take());
    let status = wait(&mut child, Duration::from_secs(20)).expect("it ends");
    assert_eq!(status.code(), Some(0));
    for out in ["full", "closed"] {
        assert!(job.out(out).join("model/model.safetensors").is_file(), "{out}");
    }
    let output = runtime(&["generate", "-n", "5"]).stderr(full()).output().expect("a command");
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());
}

#[test]
fn a_run_that_cannot_be_written_is_code_5_and_keeps_what_it_saved() {
    let job = Job::new("unwritable", &text(), &tiny(3));
    let file = job.folder.write("file", "");
    for out in [file.join("run"), PathBuf::from("/proc/lectern"), file] {
        job.train(&out, &[]).expect(5);
    }
    // Files may grow to 16 KiB here; the state of a larger model cannot be written, as on a full disk.
    let job = Job::new("full", &text(), &tiny(3));
    let out = job.out("run");
    job.train(&out, &["--steps", "2"]).expect(0);
    let before = tests::training::tree(&out.join("checkpoints"));
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" train --resume --steps 3 --out \"$1\""]);
    command.arg(Program::Trainer.path()).arg(&out);
    run(command).expect(5);
    assert_eq!(
        tests::training::tree(&out.join("checkpoints")),
        before,
        "a failed save left something or took something"
    );
    job.train(&out, &["--resume", "--steps", "3"]).expect(0);
}

#[test]
fn what_no_memory_can_hold_is_code_7_before_the_first_step() {
    let job = Job::new("memory", &text(), &tiny(2));
    let flags = ["--width", "16384", "--heads", "64", "--layers", "900", "--feed-forward", "65536"];
    let ran = job.train(&job.out("run"), &flags).expect(7);
    assert!(ran.seconds < 5.0 && ran.stderr.contains("--"), "the flag to change is not named: {ran}");
    assert!(!job.out("run").join("checkpoints").exists());
}

#[test]
fn a_loss_that_is_no_number_is_code_9_and_reaches_no_checkpoint() {
    let more = [("learning_rate", "100.0"), ("steps", "3000"), ("save_every", "100"), ("eval_every", "1000")];
    let keys = with(tiny(3000), &[&more[..], &[("weight_decay", "1.0"), ("dtype", "\"f32\"")]].concat());
    let job = Job::new("diverged", &text(), &keys);
    let out = job.out("run");
    job.train(&out, &[]).expect(9);
    let mut problems = vec![];
    let newest = formats::checkpoint::newest(&out.join("checkpoints"), &mut problems).expect("checkpoints");
    if newest.is_some() {
        let verify = Program::Runtime.run(&["verify".as_ref(), "--model".as_ref(), out.as_os_str()]);
        verify.expect(0);
    }
}

#[test]
fn a_finished_run_tells_all_it_should() {
    let job = Job::new("finished", &text(), &with(tiny(6), &[("sample", "40")]));
    let out = job.out("run");
    let ran = job.train(&out, &[]).expect(0).naming("runtime generate --model");
    let sample = ran.text();
    assert_eq!(sample.trim_end_matches('\n').chars().count().max(40), 40, "{ran}");
    assert!(sample.chars().count() >= 40, "{ran}");
    assert_eq!(rows(&ran.stderr).iter().map(|row| row.0).collect::<Vec<_>>(), [0, 5], "{ran}");
    for name in
        ["config.toml", "metrics.jsonl", "report.html", "LOCK", "model/config.json", "model/tokenizer.json"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
    let report = std::fs::read_to_string(out.join("report.html")).expect("the report");
    for foreign in ["http://", "https://", "<script", "<link", "@import", "src="] {
        let found = report.replace("http://www.w3.org/2000/svg", "").contains(foreign);
        assert!(!found, "the report needs {foreign}");
    }
    assert!(report.contains("<svg"));
    // The config as run gives the run again.
    let again = job.out("again");
    let mut command = Program::Trainer.command(&["train", "--progress", "off", "--config"]);
    command
        .arg(out.join("config.toml"))
        .arg("--data")
        .arg(job.folder.join("text.txt"))
        .arg("--out")
        .arg(&again);
    run(command).expect(0);
    tests::training::assert_same_run("from its own config.toml", &again, &out);
    // A run that is done has nothing left to do, and says so by ending well.
    job.train(&out, &["--resume"]).expect(0);
    tests::training::assert_same_run("resumed after its end", &out, &again);
}

#[test]
fn evaluation_never_happens_when_it_is_switched_off() {
    let job = Job::new("eval-off", &text(), &with(tiny(4), &[("eval_every", "0")]));
    let ran = job.train(&job.out("run"), &[]).expect(0);
    assert!(rows(&ran.stderr).is_empty(), "{ran}");
}

#[test]
fn json_is_one_object_with_the_promised_keys() {
    let keys = |ran: Ran, wanted: &[&str]| {
        let json = ran.clone().expect(0).json();
        for key in wanted {
            assert!(json.get(*key).is_some(), "{key} is missing: {ran}");
        }
        json
    };
    let score = keys(
        run(runtime(&["score", "--text", "hello", "--format", "json"])),
        &["ids", "logprobs", "nll", "nll_per_token", "bits_per_byte"],
    );
    let logprobs = score["logprobs"].as_array().expect("a list");
    assert!(logprobs.len() == 5 && logprobs[0].is_null() && logprobs[1].as_f64().expect("a number") < 0.0);
    let sum: f64 = logprobs.iter().filter_map(serde_json::Value::as_f64).sum();
    assert!((score["nll"].as_f64().expect("a number") + sum).abs() < 1e-4, "{score}");
    keys(
        run(runtime(&["inspect", "--format", "json"])),
        &["parameters", "active_parameters", "bytes", "context"],
    );
    let bench = ["bench", "--prompt", "4", "--decode", "4", "--depth", "4", "--format", "json"];
    keys(
        run(runtime(&bench)),
        &[
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "bytes_per_token",
            "decode_gb_per_s",
            "read_gb_per_s",
            "threads",
            "simd",
            "seconds",
        ],
    );
    let bench = ["bench", "--prompt", "0", "--decode", "4", "--format", "json"];
    assert!(keys(run(runtime(&bench)), &["prefill_tokens_per_s"])["prefill_tokens_per_s"].is_null());
    let bench = ["bench", "--preset", "gpt-zero", "--device", "cpu", "--secs", "0.2", "--format", "json"];
    keys(
        Program::Trainer.run(&bench),
        &["tokens_per_s", "step_ms", "gflops", "peak_gflops", "steps", "seconds", "loss"],
    );
    let selfcheck = ["selfcheck", "--device", "cpu", "--quick", "--format", "json"];
    assert_eq!(keys(Program::Trainer.run(&selfcheck), &["passed", "seconds", "parts"])["passed"], true);
    let job = Job::new("eval", &text(), &tiny(2));
    let out = job.out("run");
    job.train(&out, &[]).expect(0);
    let mut eval = Program::Trainer.command(&["eval", "--format", "json", "--model"]);
    eval.arg(&out).arg("--data").arg(job.folder.join("text.txt"));
    keys(run(eval), &["train_loss", "val_loss", "val_bits_per_byte"]);
    keys(run(runtime(&["generate", "-n", "5", "--format", "json", "--seed", "1"])), &[]);
}

#[test]
fn a_selfcheck_says_what_it_found_and_what_it_cannot_check() {
    let ran = Program::Trainer.run(&["selfcheck", "--device", "cpu", "--quick"]).expect(0);
    let last = ran.text().lines().last().expect("a last line").to_owned();
    assert!(last.starts_with("selfcheck: ") && last.contains("all within their bounds"), "{last}");
    let refused = ["selfcheck", "--device", "cpu", "--quick", "--precision", "bf16"];
    Program::Trainer.run(&refused).expect(2).naming("--precision f32");
}

#[test]
fn a_prompt_comes_from_a_flag_a_file_or_standard_input() {
    let folder = Folder::new("prompt");
    let file = folder.write("prompt", "hello");
    let file = file.to_str().expect("a path in UTF-8");
    let words = ["generate", "--greedy", "-n", "20"];
    let with = |more: &[&str]| runtime(&[&words[..], more].concat());
    let expected = run(with(&["--prompt", "hello"])).expect(0).stdout;
    assert!(!expected.is_empty());
    assert_eq!(run(with(&["--prompt-file", file])).expect(0).stdout, expected);
    assert_eq!(run_with_input(with(&["-"]), Some(b"hello")).expect(0).stdout, expected);
    // h e l l o among the printable characters, of which the space is the first.
    assert_eq!(run(with(&["--ids", "72,69,76,76,79"])).expect(0).stdout, expected);
    let echoed = run(with(&["--prompt", "hello", "--echo"])).expect(0).stdout;
    assert_eq!(echoed, [b"hello", &expected[..]].concat());
    assert_ne!(run(with(&[])).expect(0).stdout, expected);
    // Standard input that nobody asked for is not read.
    assert_eq!(run_with_input(with(&["--prompt", "hello"]), Some(b"more")).expect(0).stdout, expected);
}

#[test]
fn a_stop_text_ends_generation_and_is_not_printed() {
    let whole = run(runtime(&["generate", "--greedy", "-n", "30", "--prompt", "a"])).expect(0);
    let text = whole.text().trim_end_matches('\n').to_owned();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[10..13].iter().collect();
    let before = &text[..text.find(&stop).expect("part of the text")];
    let ran = run(runtime(&["generate", "--greedy", "-n", "30", "--prompt", "a", "--stop", &stop])).expect(0);
    assert_eq!(ran.text().trim_end_matches('\n'), before.trim_end_matches('\n'));
}
