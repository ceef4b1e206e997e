//! Kill -9 at random moments of a run that saves at every step. Nothing that was reported saved may be lost, what
//! stands under the run's name must open at all times, and the end must be the end of a run nobody disturbed.

use formats::checkpoint;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tests::Chance;
use tests::training::{Job, assert_same_run, tiny, with};

/// Kills in the everyday suite, and when LECTERN_LONG is set.
fn kills() -> usize {
    if std::env::var_os("LECTERN_LONG").is_some() { 100 } else { 20 }
}

/// Starts or resumes the run and kills it after `delay`; the answer is the last step it reported as saved, and
/// whether it came to its end before.
fn disturbed(job: &Job, out: &Path, delay: Duration) -> (Option<u64>, bool) {
    let mut child = job.command(out, &["--resume"]).stderr(Stdio::piped()).spawn().expect("a trainer");
    let pipe = BufReader::new(child.stderr.take().expect("a pipe"));
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in pipe.lines() {
            lines.push(line.expect("text on standard error"));
        }
        lines
    });
    std::thread::sleep(delay);
    child.kill().expect("our own child can be killed");
    let status = child.wait().expect("a killed child ends");
    let lines = reader.join().expect("standard error was read");
    assert!(
        status.success() || status.code().is_none(),
        "it failed by itself: {status}\n{}",
        lines.join("\n")
    );
    let saved = lines.iter().filter_map(|line| line.trim().strip_prefix("saved step ")?.parse().ok());
    (saved.max(), status.success())
}

/// Asserts that everything reported saved is there, whole, and under the run's name.
fn check(out: &Path, reported: Option<u64>) {
    let mut problems = vec![];
    let newest = match checkpoint::newest(&out.join("checkpoints"), &mut problems) {
        Ok(newest) => newest,
        Err(_) if reported.is_none() => None,
        Err(error) => panic!("step {reported:?} was reported saved: {error}"),
    };
    assert!(problems.is_empty(), "a checkpoint under its final name is not whole: {problems:?}");
    let newest = newest.map(|(step, _)| step);
    assert!(newest >= reported, "step {reported:?} was reported saved, the newest is {newest:?}");
    if reported.is_some() {
        checkpoint::Directory::open(out).expect("the run's model opens");
    }
}

#[test]
fn killed_at_random_moments_nothing_reported_is_lost_and_the_end_is_the_same() {
    const STEPS: u64 = 150;
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let keys = with(tiny(STEPS), &[("keep", "2"), ("eval_every", "20")]);
    let job = Job::new("kill", &text, &keys);
    let whole = job.out("whole");
    let began = Instant::now();
    job.train(&whole, &[]).expect(0);
    let whole_time = began.elapsed();

    let mut chance = Chance::new(std::process::id().into());
    let (mut killed, mut runs, mut finished) = (0, 0, 0);
    while killed < kills() {
        let out = job.out(&format!("run-{runs}"));
        runs += 1;
        let mut reported = None;
        loop {
            // Anywhere from the first instruction to a third of the whole run.
            let delay = whole_time.mul_f64((chance.signed() + 1.0) / 6.0);
            let (saved, done) = disturbed(&job, &out, delay);
            reported = reported.max(saved);
            check(&out, reported);
            if done {
                break;
            }
            killed += 1;
            if killed >= kills() {
                job.train(&out, &["--resume"]).expect(0);
                break;
            }
        }
        assert_same_run(&format!("run {runs} after {killed} kills"), &out, &whole);
        let mut left: Vec<_> = std::fs::read_dir(out.join("checkpoints")).expect("checkpoints").collect();
        left.retain(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().starts_with('.')
        });
        assert!(left.is_empty(), "what a kill left behind is still there: {left:?}");
        tests::folder::remove(&out);
        finished += 1;
    }
    println!("{killed} kills, {finished} runs to the same end");
}

#[test]
fn killed_as_soon_as_a_save_is_reported() {
    // The moment right after the report is the one a user relies on.
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let job = Job::new("kill-saved", &text, &with(tiny(40), &[("keep", "1")]));
    let out = job.out("run");
    for _ in 0..5 {
        let mut child = job.command(&out, &["--resume"]).stderr(Stdio::piped()).spawn().expect("a trainer");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let saved = lines.by_ref().map(|line| line.expect("text")).find_map(|line| {
            line.trim().strip_prefix("saved step ").and_then(|step| step.parse::<u64>().ok())
        });
        child.kill().expect("our own child can be killed");
        child.wait().expect("a killed child ends");
        check(&out, Some(saved.expect("a save is reported")));
    }
}
