//! Checkpoints are written beside training. What is said of them holds all the same: each in its turn, once it is
//! durable, and the last before the run ends, whatever ends it.

use formats::checkpoint;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::programs::{Program, run, wait};
use tests::training::{Job, assert_same_run, metrics, tiny, with};

fn text() -> String {
    tests::fixtures::text().chars().take(700).collect()
}

/// The steps that were said to be saved, in the order in which they were.
fn said(stderr: &str) -> Vec<u64> {
    let step = |line: &str| line.trim().strip_prefix("saved step ")?.parse().ok();
    stderr.lines().filter_map(step).collect()
}

/// The newest checkpoint; none may be damaged, and nothing unfinished may lie beside them.
#[track_caller]
fn newest(out: &Path) -> Option<u64> {
    let (checkpoints, mut problems) = (out.join("checkpoints"), vec![]);
    let newest = checkpoint::newest(&checkpoints, &mut problems).expect("checkpoints");
    assert!(problems.is_empty(), "{problems:?}");
    for entry in std::fs::read_dir(&checkpoints).expect("checkpoints") {
        let name = entry.expect("an entry").file_name().into_string().expect("a step");
        assert!(name.parse::<u64>().is_ok(), "{name} is left");
    }
    newest.map(|(step, _)| step)
}

#[test]
fn every_save_is_said_in_its_turn_and_the_last_before_the_end() {
    let job = Job::new("turns", &text(), &with(tiny(60), &[("keep", "2"), ("eval_every", "7")]));
    let ran = job.train(&job.out("run"), &[]).expect(0);
    assert_eq!(said(&ran.stderr), (1..=60).collect::<Vec<_>>(), "{ran}");
    let place = |words: &str| ran.stderr.find(words).unwrap_or_else(|| panic!("{words} is not said: {ran}"));
    assert!(place("saved step 60") < place("report  "), "{ran}");
    assert_eq!(newest(&job.out("run")), Some(60));
}

#[test]
fn an_interrupt_while_one_is_written_saves_what_was_learned_after_it() {
    let job = Job::new("interrupted", &text(), &with(tiny(60), &[("keep", "2"), ("eval_every", "25")]));
    let (whole, part) = (job.out("whole"), job.out("part"));
    job.train(&whole, &[]).expect(0);
    for heard in [1, 2, 3, 5, 8] {
        let mut child = job.command(&part, &["--resume"]).stderr(Stdio::piped()).spawn().expect("a trainer");
        let (mut stderr, mut line) = (String::new(), String::new());
        let mut pipe = BufReader::new(child.stderr.take().expect("a pipe"));
        // As soon as so many are said to be saved, the next is on its way.
        while said(&stderr).len() < heard && pipe.read_line(&mut line).expect("text on standard error") > 0 {
            stderr += &std::mem::take(&mut line);
        }
        let pid = i32::try_from(child.id()).expect("a process id");
        // SAFETY: a signal to our own child, which has not been waited for, so the number is still its.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        pipe.read_to_string(&mut stderr).expect("text on standard error");
        let status = wait(&mut child, Duration::from_secs(20)).expect("the trainer ends");
        assert_eq!(status.code(), Some(143), "{stderr}");
        let (before, after) = stderr.split_once("interrupted after ").expect("where it stopped");
        let step: u64 = after.split(' ').next().and_then(|word| word.parse().ok()).expect("a step");
        let said = said(before);
        assert!(said.is_sorted_by(|a, b| a + 1 == *b), "{stderr}");
        assert_eq!((said.last(), newest(&part)), (Some(&step), Some(step)), "{stderr}");
    }
    job.train(&part, &["--resume"]).expect(0);
    assert_same_run("interrupted", &part, &whole);
}

#[test]
fn what_cannot_be_written_ends_the_run_long_before_the_next_save() {
    const EVERY: u64 = 3000;
    let every = EVERY.to_string();
    let keys = [("save_every", every.as_str()), ("log_every", "500"), ("eval_every", "0"), ("keep", "2")];
    let job = Job::new("fault", &text(), &with(tiny(50 * EVERY), &keys));
    let out = job.out("run");
    let inner = job.command(&out, &[]);
    // Files may grow to 16 KiB here, which the state does not fit.
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""]).arg(Program::Trainer.path());
    let ran =
        run(with_arguments(command, &inner)).expect(5).naming("cannot write").naming("state.safetensors");
    assert_eq!((said(&ran.stderr), newest(&out)), (vec![], None), "{ran}");
    let rows = metrics(&out);
    let last = rows.last().and_then(|row| row["step"].as_u64()).expect("rows");
    assert!((EVERY - 500..2 * EVERY - 500).contains(&last), "it went on to step {last}: {ran}");
}

fn with_arguments(mut command: Command, inner: &Command) -> Command {
    command.args(inner.get_args());
    command
}

#[test]
fn divergence_beside_a_write_names_the_checkpoint_that_was_under_way() {
    let more = [("learning_rate", "100.0"), ("weight_decay", "1.0"), ("dtype", "\"f32\""), ("keep", "2")];
    let job = Job::new("diverges", &text(), &with(tiny(3000), &[&more[..], &[("eval_every", "0")]].concat()));
    let out = job.out("run");
    let ran = job.train(&out, &[]).expect(9);
    let number = |before: &str| {
        let (_, after) = ran.stderr.split_once(before).unwrap_or_else(|| panic!("no {before:?}: {ran}"));
        after.split([' ', ':']).next().and_then(|word| word.parse::<u64>().ok()).expect("a step")
    };
    let (diverged, intact) = (number("error: step "), number("the checkpoint of step "));
    assert_eq!((intact + 1, newest(&out)), (diverged, Some(intact)), "{ran}");
    assert_eq!(said(&ran.stderr).last(), Some(&intact), "{ran}");
    assert!(ran.stderr.find("saved step ") < ran.stderr.find("error: "), "{ran}");
}
