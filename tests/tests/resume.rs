//! Stopping loses nothing: whatever stopped a run and however often, what it ends with is what it would have
//! ended with, byte for byte; so with any number of threads. What is not the same run is refused by name.

use std::path::Path;
use std::time::{Duration, Instant};
use tests::folder;
use tests::programs::{Program, run, wait};
use tests::training::{Job, assert_same_run, assert_same_tree, tiny, with};

const STEPS: u64 = 12;

/// A text of a few hundred characters.
fn text() -> String {
    tests::fixtures::text().chars().take(700).collect()
}

/// Removes every checkpoint after `step`, as if the run had been stopped right after saving it.
fn stop_after(out: &Path, step: u64) {
    let checkpoints = out.join("checkpoints");
    for entry in std::fs::read_dir(&checkpoints).expect("checkpoints") {
        let name = entry.expect("an entry").file_name().into_string().expect("a step");
        if name.parse::<u64>().expect("a step") > step {
            folder::remove(&checkpoints.join(name));
        }
    }
}

/// Trains straight through, then once more from every step there is, and compares.
#[track_caller]
fn from_every_step(what: &str, more: &[(&'static str, &str)]) {
    let job = Job::new("resume", &text(), &with(tiny(STEPS), more));
    let whole = job.out("whole");
    job.train(&whole, &[]).expect(0);
    for step in 1..STEPS {
        let part = job.out("part");
        folder::remove(&part);
        folder::copy(&whole, &part);
        stop_after(&part, step);
        Program::Trainer
            .run(&["train".as_ref(), "--resume".as_ref(), "--out".as_ref(), part.as_os_str()])
            .expect(0)
            .naming(&format!("resumed from step {step}"));
        assert_same_run(&format!("{what}, resumed from step {step}"), &part, &whole);
    }
}

#[test]
fn every_step_is_a_place_to_resume_from() {
    from_every_step("counter", &[]);
}

#[test]
fn every_step_is_a_place_to_resume_from_with_pytorchs_generator() {
    // Its normals come in pairs of which one may be left over, and evaluation draws from it too.
    from_every_step("torch", &[("rng", "\"torch\""), ("width", "9"), ("eval_every", "3")]);
}

#[test]
fn every_step_is_a_place_to_resume_from_with_dropout_schedule_and_clipping() {
    let more = [
        ("dropout", "0.2"),
        ("schedule", "\"cosine\""),
        ("warmup", "4"),
        ("clip", "0.5"),
        ("decay", "\"matrices\""),
        ("tied", "true"),
        ("head_bias", "false"),
        ("dtype", "\"f32\""),
    ];
    from_every_step("dropout", &more);
}

/// A mixture with everything that draws, counts or keeps something.
const MIXTURE: [(&str, &str); 14] = [
    ("experts", "4"),
    ("active_experts", "2"),
    ("expert_width", "10"),
    ("shared_experts", "1"),
    ("router_score", "\"sigmoid\""),
    ("router_noise", "true"),
    ("bias_rate", "0.01"),
    ("router_jitter", "0.1"),
    ("expert_dropout", "0.1"),
    ("output_dropout", "0.1"),
    ("router_dropout", "0.2"),
    ("capacity_factor", "1.25"),
    ("position", "\"rotary\""),
    ("activation", "\"swiglu\""),
];

#[test]
fn every_step_is_a_place_to_resume_from_with_a_mixture() {
    from_every_step("mixture", &MIXTURE);
}

#[test]
fn a_shorter_run_made_longer_is_the_longer_run() {
    // Where a schedule ends is part of what is learned, so the shorter run must be told the longer one's.
    let keys = with(tiny(STEPS), &[("decay_steps", "12"), ("schedule", "\"cosine\"")]);
    let job = Job::new("longer", &text(), &keys);
    let whole = job.out("whole");
    job.train(&whole, &[]).expect(0);
    for step in [1, 5, 6, STEPS - 1] {
        let part = job.out(&format!("part-{step}"));
        job.train(&part, &["--steps", &step.to_string()]).expect(0);
        job.train(&part, &["--resume"]).expect(0);
        let checkpoints = |run: &Path| run.join("checkpoints");
        assert_same_tree(&format!("{step} steps first"), &checkpoints(&part), &checkpoints(&whole));
    }
}

#[test]
fn an_interrupt_saves_and_names_the_command_that_resumes() {
    let keys = with(tiny(4000), &[("save_every", "0"), ("keep", "1"), ("log_every", "1000")]);
    let job = Job::new("interrupt", &text(), &keys);
    let whole = job.out("whole");
    job.train(&whole, &[]).expect(0);
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let part = job.out(&format!("part-{signal}"));
        let rows = || std::fs::read_to_string(part.join("metrics.jsonl")).unwrap_or_default().lines().count();
        let each = std::fs::read_to_string(whole.join("metrics.jsonl")).expect("rows").lines().count() / 8;
        for _ in 0..3 {
            let mut command = job.command(&part, &["--resume"]);
            let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("a trainer");
            // On its way, however fast the machine: some rows are written, and more are still to come.
            let reached = rows() + each;
            while rows() < reached && child.try_wait().expect("a child").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pid = i32::try_from(child.id()).expect("a process id");
            // SAFETY: a signal to our own child, which has not been waited for, so the number is still its.
            unsafe { libc::kill(pid, signal) };
            let output = child.wait_with_output().expect("the trainer ends");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{stderr}");
            assert!(stderr.contains("saved step") && stderr.contains("--resume --out"), "{stderr}");
        }
        job.train(&part, &["--resume"]).expect(0);
        assert_same_run(&format!("signal {signal}"), &part, &whole);
    }
}

#[test]
fn a_second_interrupt_leaves_at_once() {
    // One step of this takes far longer than the test waits.
    let keys =
        with(tiny(3), &[("batch", "4096"), ("width", "96"), ("layers", "8"), ("feed_forward", "2048")]);
    let job = Job::new("twice", &text(), &keys);
    let mut command = job.command(&job.out("run"), &["--threads", "1"]);
    let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("a trainer");
    let pid = i32::try_from(child.id()).expect("a process id");
    std::thread::sleep(Duration::from_millis(400));
    for _ in 0..2 {
        // SAFETY: a signal to our own child, which has not been waited for, so the number is still its.
        unsafe { libc::kill(pid, libc::SIGINT) };
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = wait(&mut child, Duration::from_secs(1)).expect("the trainer leaves at once");
    assert_ne!(status.code(), Some(0));
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    // One model of a single shard, and one whose batch is cut into several.
    let large = [("batch", "64"), ("block", "12"), ("eval_batches", "7")];
    let mixture: Vec<_> = MIXTURE.iter().chain(&large).copied().collect();
    for more in [&[][..], &large, &mixture] {
        let job = Job::new("threads", &text(), &with(tiny(STEPS), more));
        let one = job.out("1");
        job.train(&one, &["--threads", "1"]).expect(0);
        for threads in ["2", "3"] {
            let out = job.out(threads);
            job.train(&out, &["--threads", threads]).expect(0);
            assert_same_run(&format!("{threads} threads"), &out, &one);
        }
    }
}

#[test]
fn what_is_not_the_same_run_is_refused_by_name() {
    let job = Job::new("refused", &text(), &tiny(4));
    let out = job.out("run");
    job.train(&out, &["--steps", "2"]).expect(0);
    let before = tests::training::tree(&out.join("checkpoints"));
    let differences = [
        ("--seed", "8", "seed"),
        ("--width", "24", "width"),
        ("--layers", "3", "layers"),
        ("--block", "5", "block"),
        ("--activation", "relu", "activation"),
        ("--batch", "6", "batch"),
        ("--learning-rate", "0.5", "learning_rate"),
        ("--rng", "torch", "rng"),
        ("--dropout", "0.1", "dropout"),
        ("--dtype", "f32", "dtype"),
        ("--eval-every", "2", "eval_every"),
    ];
    for (flag, value, field) in differences {
        job.train(&out, &["--resume", flag, value]).expect(4).naming(field);
    }
    // The text: one letter, one letter more, and another file of the same length.
    for (name, other) in [("letter", text().replacen('e', "a", 1)), ("longer", text() + "a")] {
        let other = job.folder.write(name, other);
        let mut command = job.command(&out, &["--resume"]);
        command = replace_data(command, &other);
        run(command).expect(4).naming("text");
    }
    // The text changed where it stands, and nothing but --out is given.
    let original = std::fs::read(job.folder.join("text.txt")).expect("the text");
    job.folder.write("text.txt", text().replacen('e', "a", 1));
    Program::Trainer
        .run(&["train".as_ref(), "--resume".as_ref(), "--out".as_ref(), out.as_os_str()])
        .expect(4)
        .naming("text");
    job.folder.write("text.txt", original);
    assert_eq!(tests::training::tree(&out.join("checkpoints")), before, "a refusal changed something");
    // Without --resume a directory that holds a run is not touched.
    job.train(&out, &[]).expect(2).naming("--resume");
    assert_eq!(tests::training::tree(&out.join("checkpoints")), before, "a refusal changed something");
    // What may change, may.
    job.train(&out, &["--resume", "--steps", "4", "--threads", "1", "--save-every", "2", "--keep", "1"])
        .expect(0)
        .naming("resumed from step 2");
}

/// The same command with another text.
fn replace_data(command: std::process::Command, data: &Path) -> std::process::Command {
    let mut arguments: Vec<_> = command.get_args().map(|argument| argument.to_owned()).collect();
    let at = arguments.iter().position(|argument| argument == "--data").expect("a text") + 1;
    arguments[at] = data.as_os_str().to_owned();
    Program::Trainer.command(&arguments)
}

#[test]
fn a_run_that_another_process_holds_is_refused() {
    let job = Job::new("locked", &text(), &with(tiny(100_000), &[("save_every", "0")]));
    let out = job.out("run");
    let mut first = job.command(&out, &[]).stderr(std::process::Stdio::null()).spawn().expect("a trainer");
    let end = Instant::now() + Duration::from_secs(10);
    while !out.join("metrics.jsonl").exists() {
        assert!(Instant::now() < end, "the first run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = job.train(&out, &["--resume"]);
    first.kill().expect("our own child can be killed");
    first.wait().expect("a killed child ends");
    refused.expect(8).naming(&first.id().to_string());
}
