//! Training on a CUDA device, emulated: what the device does wrong at any call ends the run with the right exit code, no
//! panic and nothing lost; what it does right gives the same bytes in whatever order its threads run.

use formats::checkpoint;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::emulator::{available, calls, emulated, kernels};
use tests::folder::{self, Folder};
use tests::programs::{Program, Ran, run};
use tests::training::{Job, assert_same_run, metrics, tiny, with};
use trainer::device::signature::signatures;
use trainer::ops::KERNELS;

const STEPS: u64 = 6;

/// A run of a few steps with everything in it that takes a path of its own on a device.
fn job(name: &str, more: &[(&'static str, &str)]) -> Job {
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let keys =
        with(tiny(STEPS), &[("save_every", "2"), ("eval_every", "3"), ("dropout", "0.1"), ("clip", "1.0")]);
    Job::new(name, &text, &with(keys, more))
}

/// The training command on the emulated device, with its environment.
fn on_device(job: &Job, out: &Path, more: &[&str], environment: &[(&str, &str)]) -> Command {
    let more: Vec<&str> = ["--device", "cuda"].iter().chain(more).copied().collect();
    let mut inner = job.command(out, &more);
    inner.envs(environment.iter().copied());
    emulated(&inner)
}

/// Runs it to its end.
fn train(job: &Job, out: &Path, more: &[&str], environment: &[(&str, &str)]) -> Ran {
    run(on_device(job, out, more, environment)).sound().calm()
}

/// Asserts that every step reported saved is there, whole.
#[track_caller]
fn assert_nothing_lost(ran: &Ran, out: &Path) {
    let reported = ran
        .stderr
        .lines()
        .filter_map(|line| line.trim().strip_prefix("saved step ")?.parse::<u64>().ok())
        .max();
    let mut problems = vec![];
    let newest = match checkpoint::newest(&out.join("checkpoints"), &mut problems) {
        Ok(newest) => newest.map(|(step, _)| step),
        Err(_) if reported.is_none() => None,
        Err(error) => panic!("step {reported:?} was reported saved: {error}: {ran}"),
    };
    assert!(problems.is_empty(), "{problems:?}: {ran}");
    assert!(newest >= reported, "step {reported:?} was reported saved, the newest is {newest:?}: {ran}");
}

/// Does `work` for every item, on all processors.
fn side_by_side<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Every kernel of every source that some run of the self-check launched, in each geometry and precision once. Its suite
/// compares what they give with the processor's results.
#[test]
fn every_kernel_runs_soundly_and_agrees_with_the_processor() {
    if !available() {
        return;
    }
    let folder = Folder::new("selfcheck");
    let mut runs = 0;
    let mut launched = BTreeSet::new();
    for precision in ["f32", "bf16"] {
        let trace = folder.join(precision);
        let mut inner =
            Program::Trainer.command(&["selfcheck", "--quick", "--device", "cuda", "--precision", precision]);
        inner.env("LECTERN_EMULATOR_TRACE", &trace);
        let status = emulated(&inner).status().expect("the emulator starts");
        assert!(status.success(), "selfcheck --precision {precision} on the emulated device: {status}");
        let kernels = kernels(&trace);
        runs += kernels.len();
        launched.extend(kernels.into_iter().filter_map(|kernel| Some(kernel.split(' ').next()?.to_owned())));
    }
    let mut forgotten = Vec::new();
    for source in KERNELS {
        for signature in signatures(source.text).expect("sources are understood") {
            if !launched.contains(signature.name) {
                forgotten.push(format!("{}: {}", source.file, signature.name));
            }
        }
    }
    assert!(forgotten.is_empty(), "the self-check launches no\n{}", forgotten.join("\n"));
    println!("host runs: {runs}");
}

#[test]
fn the_bytes_are_the_same_in_any_order_of_threads_and_after_any_stop() {
    if !available() {
        return;
    }
    for precision in ["f32", "bf16"] {
        let job = job("order", &[]);
        let whole = job.out("whole");
        train(&job, &whole, &["--precision", precision], &[]).expect(0);
        let other = job.out("other");
        train(&job, &other, &["--precision", precision], &[("LECTERN_EMULATOR_SEED", "77")]).expect(0);
        assert_same_run(&format!("{precision}, another order"), &other, &whole);
        for step in [4, 6] {
            folder::remove(&other.join(format!("checkpoints/{step:08}")));
        }
        let left = std::fs::read_dir(other.join("checkpoints")).expect("checkpoints").count();
        assert!(left >= 1, "something to resume from");
        train(&job, &other, &["--precision", precision, "--resume"], &[("LECTERN_EMULATOR_SEED", "78")])
            .expect(0);
        assert_same_run(&format!("{precision}, resumed"), &other, &whole);
    }
}

#[test]
fn the_losses_are_those_of_the_processor() {
    if !available() {
        return;
    }
    let job = job("losses", &[]);
    let (cpu, f32, bf16) = (job.out("cpu"), job.out("f32"), job.out("bf16"));
    job.train(&cpu, &["--device", "cpu"]).expect(0);
    train(&job, &f32, &["--precision", "f32"], &[]).expect(0);
    train(&job, &bf16, &["--precision", "bf16"], &[]).expect(0);
    let expected = metrics(&cpu);
    for (out, bound) in [(f32, 1e-4), (bf16, 3e-2)] {
        let rows = metrics(&out);
        assert_eq!(rows.len(), expected.len());
        let mut compared = 0;
        for (row, expected) in rows.iter().zip(&expected) {
            for (key, value) in expected.iter().filter(|(key, _)| key.contains("loss")) {
                let (a, b) = (row[key].as_f64().expect("a number"), value.as_f64().expect("a number"));
                assert!(
                    (a - b).abs() <= bound * b.abs().max(1.0),
                    "{key} is {a}, {b} on the processor: {row:?}"
                );
                compared += 1;
            }
        }
        assert!(compared > 0, "no loss in {expected:?}");
    }
}

/// A run that is over in a moment and saves at every step.
fn short(name: &str) -> Job {
    job(name, &[("steps", "3"), ("layers", "1"), ("batch", "3"), ("save_every", "1"), ("eval_batches", "1")])
}

/// Calls whose failure is no failure of the run: they give something back when all is done, or have another way. The
/// first two also come at moments when something else has to be told of the error.
const FORGIVEN: [&str; 11] = [
    "cuCtxSetCurrent",
    "cuStreamSynchronize",
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
    "nvrtcDestroyProgram",
];

#[test]
fn each_error_at_each_call_ends_well() {
    if !available() {
        return;
    }
    const INVALID_VALUE: u32 = 1;
    const OUT_OF_MEMORY: u32 = 2;
    const ILLEGAL_ADDRESS: u32 = 700;
    const LAUNCH_FAILED: u32 = 719;
    const UNKNOWN: u32 = 999;
    let job = short("errors");
    let (whole, trace) = (job.out("whole"), job.out("trace"));
    train(&job, &whole, &[], &[("LECTERN_EMULATOR_TRACE", trace.to_str().expect("a plain path"))]).expect(0);
    let mut cases: Vec<(String, u64, u32)> = Vec::new();
    for (name, count) in calls(&trace).into_iter().filter(|(name, _)| !name.starts_with("nvrtc")) {
        // The first call, one amidst and the last. Errors from 700 on come back from every later call.
        for error in [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED, UNKNOWN] {
            cases.push((name.clone(), 1, error));
        }
        for call in [count.div_ceil(2), count] {
            for error in [OUT_OF_MEMORY, ILLEGAL_ADDRESS] {
                cases.push((name.clone(), call, error));
            }
        }
    }
    cases.sort();
    cases.dedup();
    assert!(cases.len() > 200, "{cases:?}");
    let resumed = Mutex::new(BTreeSet::new());
    side_by_side(&cases, |(name, call, error)| {
        let fail = format!("{name}:{call}:{error}");
        let code = if *error == OUT_OF_MEMORY { 7 } else { 6 };
        let out = job.out(&fail.replace(':', "-"));
        let ran = train(&job, &out, &[], &[("LECTERN_EMULATOR_FAIL", &fail)]);
        // An image that came from the cache is made anew; one of the last calls may find nobody to tell.
        let forgiven = ran.code == Some(0)
            && (FORGIVEN.contains(&name.as_str()) || name == "cuModuleLoadData" && *error < ILLEGAL_ADDRESS);
        assert!(forgiven || ran.code == Some(code), "{fail} was to end with {code}: {ran}");
        let said =
            ran.stderr.contains(&format!("({error})")) || code == 7 && ran.stderr.contains("MiB are free");
        assert!(forgiven || said, "{fail} is not spoken of: {ran}");
        assert_nothing_lost(&ran, &out);
        // From whatever it left, once for each number of checkpoints, the run comes to the same end.
        let saved = std::fs::read_dir(out.join("checkpoints")).map_or(0, Iterator::count);
        if !forgiven && saved > 0 && resumed.lock().expect("no thread panics with it").insert(saved) {
            train(&job, &out, &["--resume"], &[]).expect(0);
            assert_same_run(&fail, &out, &whole);
        }
        folder::remove(&out);
    });
    assert!(!resumed.lock().expect("no thread panicked").is_empty(), "no run failed after it had saved");
    println!("errors: {} ended well", cases.len());
}

#[test]
fn each_error_of_the_compiler_ends_well() {
    if !available() {
        return;
    }
    let job = short("compiler");
    let trace = job.out("trace");
    let images = job.out("images");
    let cache = |path: &PathBuf| path.to_str().expect("a plain path").to_owned();
    let healthy = [("LECTERN_CACHE", cache(&images)), ("LECTERN_EMULATOR_TRACE", cache(&trace))];
    let healthy = healthy.each_ref().map(|(name, value)| (*name, value.as_str()));
    train(&job, &job.out("whole"), &["--steps", "1"], &healthy).expect(0);
    let names: Vec<String> = calls(&trace).into_keys().filter(|name| name.starts_with("nvrtc")).collect();
    assert!(names.len() >= 5, "{names:?}");
    let cases: Vec<(&String, u32)> =
        names.iter().flat_map(|name| [(name, 1), (name, 6), (name, 11)]).collect();
    side_by_side(&cases, |(name, error)| {
        let fail = format!("{name}:1:{error}");
        let out = job.out(&fail.replace(':', "-"));
        let empty = cache(&job.out(&format!("{fail}-images").replace(':', "-")));
        let ran = train(
            &job,
            &out,
            &["--steps", "1"],
            &[("LECTERN_CACHE", &empty), ("LECTERN_EMULATOR_FAIL", &fail)],
        );
        let forgiven = FORGIVEN.contains(&name.as_str()) && ran.code == Some(0);
        assert!(forgiven || ran.code == Some(6), "{fail} was to end with 6: {ran}");
        folder::remove(Path::new(&empty));
    });
}

#[test]
fn what_a_machine_lacks_is_said_and_auto_goes_on_without() {
    if !available() {
        return;
    }
    let job = short("lacking");
    let trace = job.out("trace");
    train(&job, &job.out("whole"), &[], &[("LECTERN_EMULATOR_TRACE", trace.to_str().expect("a plain path"))])
        .expect(0);
    let mut lacking: Vec<(&str, String, &str)> = vec![
        ("LECTERN_EMULATOR_WITHOUT", "libcuda".to_owned(), "libcuda"),
        ("LECTERN_EMULATOR_WITHOUT", "libnvrtc".to_owned(), "libnvrtc"),
        ("LECTERN_EMULATOR_DEVICES", "0".to_owned(), "cuInit"),
        ("LECTERN_EMULATOR_CAPABILITY", "75".to_owned(), "7.5"),
        ("LECTERN_EMULATOR_DRIVER", "12080".to_owned(), "222"),
    ];
    for name in calls(&trace).into_keys() {
        lacking.push(("LECTERN_EMULATOR_WITHOUT", name, ""));
    }
    side_by_side(&lacking, |(variable, value, said)| {
        let said = if said.is_empty() { value.as_str() } else { said };
        let out = job.out(&format!("{variable}-{value}"));
        train(&job, &out, &[], &[(variable, value)]).expect(6).naming(said);
        assert!(!out.join("checkpoints").exists(), "{value}: nothing was trained");
        if *variable != "LECTERN_EMULATOR_WITHOUT" || value.starts_with("lib") {
            let mut inner = job.command(&out, &["--device", "auto"]);
            inner.env(variable, value);
            run(emulated(&inner)).sound().expect(0).naming(said);
        }
    });
    // Later cards run what the newest known architecture can be finished to.
    train(&job, &job.out("later"), &[], &[("LECTERN_EMULATOR_CAPABILITY", "200")]).expect(0);
    // Too little memory is said before the first step.
    train(&job, &job.out("small"), &[], &[("LECTERN_EMULATOR_MEMORY", "100000")]).expect(7);
}

#[test]
fn damaged_images_are_made_anew() {
    if !available() {
        return;
    }
    let job = short("images");
    let images = job.out("images");
    let cache = images.to_str().expect("a plain path");
    let whole = job.out("whole");
    train(&job, &whole, &[], &[("LECTERN_CACHE", cache)]).expect(0);
    let files = || -> Vec<PathBuf> {
        std::fs::read_dir(&images).expect("images").map(|entry| entry.expect("an entry").path()).collect()
    };
    assert!(files().len() > 5);
    for damage in ["cut", "empty", "changed", "of the driver"] {
        for file in files() {
            let mut bytes = std::fs::read(&file).expect("an image");
            match damage {
                "cut" => bytes.truncate(bytes.len() / 2),
                "empty" => bytes.clear(),
                "changed" => *bytes.last_mut().expect("an image") ^= 1,
                // Whole to us, and refused by the driver once.
                _ => continue,
            }
            std::fs::write(&file, bytes).expect("a damaged image");
        }
        let out = job.out(&format!("after-{}", damage.replace(' ', "-")));
        let refused = [("LECTERN_CACHE", cache), ("LECTERN_EMULATOR_FAIL", "cuModuleLoadData:2:200")];
        let environment = if damage == "of the driver" { &refused[..] } else { &refused[..1] };
        train(&job, &out, &[], environment).expect(0);
        assert_same_run(damage, &out, &whole);
    }
}
