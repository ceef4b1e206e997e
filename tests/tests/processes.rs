//! Data parallel on emulated devices: processes that share every batch learn what one of them alone learns, and only the
//! first of them writes. And products as cuBLASLt makes them, by its documented meaning.

use formats::checkpoint;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tests::emulator::{available, emulated};
use tests::programs::{Program, Ran, run};
use tests::training::{Job, metrics, tiny, with};

const STEPS: u64 = 6;

/// A run of a few steps, of two micro-batches each.
fn job(name: &str, more: &[(&'static str, &str)]) -> Job {
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let keys =
        [("save_every", "2"), ("eval_every", "3"), ("log_every", "1"), ("dropout", "0.1"), ("batch", "4")];
    Job::new(name, &text, &with(with(tiny(STEPS), &keys), more))
}

/// A command on an emulated device that has NCCL.
fn command(job: &Job, out: &Path, more: &[&str], environment: &[(&str, String)]) -> Command {
    let more: Vec<&str> = ["--device", "cuda", "--precision", "f32"].iter().chain(more).copied().collect();
    let mut inner = job.command(out, &more);
    inner.env("LECTERN_EMULATOR_WITH", "nccl");
    inner.envs(environment.iter().map(|(name, value)| (name, value)));
    emulated(&inner)
}

/// Whether there is an emulator; then with every kernel compiled, which takes longer than a command of a test may.
fn ready() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        available() && {
            let job = job("ready", &[("steps", "1")]);
            let status = command(&job, &job.out("run"), &[], &[]).status().expect("the emulator starts");
            assert!(status.success(), "a first run: {status}");
            true
        }
    })
}

/// The commands of all processes of one run.
fn commands(job: &Job, out: &Path, world: usize, more: &[&str]) -> Vec<Command> {
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let of = |rank: usize| {
        let environment = [
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", world.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("MASTER_ADDR", "127.0.0.1".to_owned()),
            ("MASTER_PORT", (free.port() - 1).to_string()),
        ];
        command(job, out, more, &environment)
    };
    (0..world).map(of).collect()
}

/// All processes of one run, to their ends.
fn together(job: &Job, out: &Path, world: usize, more: &[&str]) -> Vec<Ran> {
    let ran = std::thread::scope(|scope| {
        let started: Vec<_> = commands(job, out, world, more)
            .into_iter()
            .map(|command| scope.spawn(move || run(command)))
            .collect();
        started.into_iter().map(|process| process.join().expect("no panic")).collect::<Vec<Ran>>()
    });
    ran.into_iter().map(|ran| ran.sound().calm()).collect()
}

/// Asserts that two runs logged the same losses, but for the order in which their sums were made.
#[track_caller]
fn assert_same_losses(what: &str, actual: &Path, expected: &Path) {
    let (actual, expected) = (metrics(actual), metrics(expected));
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (row, other) in actual.iter().zip(&expected) {
        for (key, value) in other.iter().filter(|(key, _)| key.contains("loss") || *key == "gradient_norm") {
            let (a, b) = (row[key].as_f64().expect("a number"), value.as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: {key} is {a}, {b} alone: {row:?}");
        }
    }
}

#[test]
fn processes_learn_together_what_one_learns_alone() {
    if !ready() {
        return;
    }
    let experts = [("experts", "4"), ("active_experts", "2"), ("balance", "0.01"), ("bias_rate", "0.01")];
    for (name, more) in [("dense", &[][..]), ("mixture", &experts[..])] {
        let job = job(name, &[more, &[("accumulate", "2")]].concat());
        let (alone, two, four) = (job.out("alone"), job.out("two"), job.out("four"));
        run(command(&job, &alone, &[], &[])).sound().calm().expect(0);
        for (out, world) in [(&two, 2), (&four, 4)] {
            for (rank, ran) in together(&job, out, world, &[]).into_iter().enumerate() {
                let ran = ran.expect(0);
                // The first speaks for all; of the others one hears at most that kernels are compiled.
                assert_eq!(ran.stderr.contains("saved step 6"), rank == 0, "{ran}");
                assert_eq!(ran.stderr.contains(&format!("one of {world}")), rank == 0, "{ran}");
            }
            assert_same_losses(&format!("{name} by {world}"), out, &alone);
        }
        // From the middle on, by another number of processes.
        tests::folder::remove(&two.join("checkpoints/00000006"));
        together(&job, &two, 4, &["--resume"]).into_iter().for_each(|ran| drop(ran.expect(0)));
        assert_same_losses(&format!("{name} resumed"), &two, &alone);
    }
}

#[test]
fn one_process_goes_the_same_way_and_an_uneven_batch_is_refused() {
    if !ready() {
        return;
    }
    let job = job("one", &[]);
    let (alone, one) = (job.out("alone"), job.out("one"));
    run(command(&job, &alone, &[], &[])).sound().calm().expect(0);
    together(&job, &one, 1, &[]).into_iter().for_each(|ran| drop(ran.expect(0)));
    tests::training::assert_same_run("one of one", &one, &alone);

    for ran in together(&job, &job.out("three"), 3, &[]) {
        ran.expect(4).naming("batch is 4, expected a multiple of the 3 processes that share it");
    }
    let environment = ["RANK", "WORLD_SIZE", "LOCAL_RANK"].map(|name| (name, "1".to_owned()));
    let wrong = run(command(&job, &job.out("wrong"), &[], &environment)).sound().calm();
    wrong.expect(4).naming("RANK is 1, expected less than WORLD_SIZE (1)");
}

#[test]
fn who_is_left_behind_ends_and_nothing_saved_is_lost() {
    if !ready() {
        return;
    }
    for gone in [0, 1] {
        let job = job(&format!("gone-{gone}"), &[("steps", "1000000"), ("eval_every", "0")]);
        let out = job.out("run");
        let [first, second] = <[Command; 2]>::try_from(commands(&job, &out, 2, &[])).expect("two");
        let (mut killed, left) = if gone == 0 { (first, second) } else { (second, first) };
        let mut killed = killed.stderr(Stdio::null()).spawn().expect("the command starts");
        let left = std::thread::spawn(move || run(left));
        let saved = |step: u64| {
            let mut problems = vec![];
            checkpoint::newest(&out.join("checkpoints"), &mut problems)
                .is_ok_and(|newest| newest.is_some_and(|(newest, _)| newest >= step) && problems.is_empty())
        };
        while !saved(4) && !left.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        killed.kill().expect("our own child can be killed");
        killed.wait().expect("a killed child ends");
        let left = left.join().expect("it does not hang").sound().calm();
        left.expect(6).naming(&format!("process {gone} of this run is gone"));
        assert!(saved(4), "what was saved is whole");
    }
}

#[test]
fn products_by_the_library_agree_with_the_processor() {
    if !available() {
        return;
    }
    for precision in ["f32", "bf16"] {
        let mut inner =
            Program::Trainer.command(&["selfcheck", "--device", "cuda", "--quick", "--precision", precision]);
        inner.env("LECTERN_EMULATOR_WITH", "cublasLt");
        let output = emulated(&inner).output().expect("the emulator starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "selfcheck --precision {precision} with cuBLASLt: {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        // And by our own kernels, for all that the library is there.
        let parts: Vec<&str> = said.lines().filter(|line| line.contains("products by")).collect();
        assert_eq!(parts.len(), 2, "{said}");
        assert!(parts[0].ends_with("products by cuBLASLt 13.0"), "{said}");
        assert!(parts[1].ends_with("products by our own kernels"), "{said}");
        let own = said.split(parts[1]).nth(1).unwrap_or_default();
        for operation in ["linear ", "linear_activation ", "loss "] {
            assert!(own.contains(&format!("ok     {operation}")), "{operation}: {said}");
        }
    }
}
