//! Writers that are held where a test wants them, and what is said of them.

use super::*;
use crate::data::Fingerprint;
use crate::options::Options;
use crate::presets;
use crate::progress::tests::Shared;
use formats::Error;
use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a thread that should not go on to show that it does.
const MOMENT: Duration = Duration::from_millis(50);

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lectern-saver-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

/// The saver of a run of a small model, of which nothing is saved.
fn saver(folder: &Path) -> Saver {
    let zero = presets::find("gpt-zero").expect("a preset");
    let config = Options { width: 8, heads: 2, layers: 1, ..zero }.settled().model(3).expect("a model");
    let run = Arc::new(Run::lock(folder).expect("a new directory"));
    let frame = Frame {
        metrics: run.metrics(0).expect("a file"),
        run,
        layout: Layout::new(&config),
        config,
        tokenizer: Tokenizer::characters("abc").expect("not empty"),
        generation: GenerationConfig::plain(),
        dtype: Dtype::F16,
        keep: 2,
    };
    Saver::new(frame, None)
}

fn frame(saver: &Saver) -> Arc<Frame> {
    saver.frame.clone().expect("it writes")
}

fn state(saver: &Saver, step: u64) -> TrainState {
    let values = vec![0.5; frame(saver).layout.parameters()];
    TrainState {
        step,
        weights: values.clone(),
        first_moment: values.clone(),
        second_moment: values,
        generator: None,
        best_validation: None,
        text: Fingerprint { bytes: 3, xxh3: "0".to_owned() },
        options: BTreeMap::new(),
    }
}

fn newest(folder: &Path) -> Option<u64> {
    let newest = checkpoint::newest(&folder.join("checkpoints"), &mut vec![]).expect("can be read");
    newest.map(|(step, _)| step)
}

/// Looks as a training loop does until something comes of it.
fn looked(saver: &mut Saver, progress: &mut Progress) -> Result<()> {
    let began = Instant::now();
    while saver.under_way.is_some() {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing comes of it");
        saver.look(progress)?;
    }
    Ok(())
}

fn full() -> Error {
    Error::write("somewhere", io::Error::from(io::ErrorKind::StorageFull))
}

#[test]
fn a_checkpoint_is_said_to_be_saved_once_it_is_and_not_before() {
    let (folder, told, gate) = (folder("said"), Shared::default(), Arc::new(Barrier::new(2)));
    let (mut saver, mut progress) = (saver(&folder), told.messages());
    let (frame, state, held) = (frame(&saver), state(&saver, 4), Arc::clone(&gate));
    let write = move || {
        held.wait();
        frame.write(&state)
    };
    saver.start(thread::Builder::new(), 4, write, &mut progress).expect("begun");
    for _ in 0..100 {
        saver.look(&mut progress).expect("nothing is known");
    }
    assert_eq!((saver.saved(), newest(&folder), told.text()), (None, None, String::new()));
    gate.wait();
    looked(&mut saver, &mut progress).expect("it is written");
    assert_eq!((saver.saved(), newest(&folder)), (Some(4), Some(4)));
    assert!(folder.join("model/model.safetensors").is_file(), "the link leads to it");
    saver.wait(&mut progress).expect("nothing is under way");
    assert_eq!(told.text(), "saved step 4\n");
    drop(saver);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn one_is_under_way_and_the_next_waits_for_it() {
    let (folder, told) = (folder("next"), Shared::default());
    let (mut saver, mut progress) = (saver(&folder), told.messages());
    let first = Arc::new(AtomicBool::new(false));
    for step in 1..=4 {
        let (frame, state, first) = (frame(&saver), state(&saver, step), Arc::clone(&first));
        let write = move || {
            assert_eq!(step > 1, first.load(Ordering::Relaxed), "step {step} is written beside another");
            thread::sleep(MOMENT / 2);
            first.store(true, Ordering::Relaxed);
            frame.write(&state)
        };
        saver.start(thread::Builder::new(), step, write, &mut progress).expect("begun");
        assert_eq!(saver.saved(), (step > 1).then_some(step - 1));
    }
    saver.begin(state(&saver, 5), &mut progress).expect("begun");
    saver.wait(&mut progress).expect("it is written");
    assert_eq!(told.text(), "saved step 1\nsaved step 2\nsaved step 3\nsaved step 4\nsaved step 5\n");
    let kept = std::fs::read_dir(folder.join("checkpoints")).expect("checkpoints").count();
    assert_eq!((newest(&folder), kept), (Some(5), 2));
    drop(saver);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn a_failure_is_told_once_by_whoever_looks_first() {
    type Ask = fn(&mut Saver, &mut Progress) -> Result<()>;
    let next: Ask = |saver, progress| {
        let begun = saver.begin(state(saver, 9), progress);
        assert!(saver.under_way.is_none(), "nothing is begun after a failure");
        begun
    };
    let asks: [Ask; 3] = [looked, Saver::wait, next];
    let folder = folder("fails");
    for ask in asks {
        let told = Shared::default();
        let (mut saver, mut progress) = (saver(&folder), told.messages());
        saver.saved = Some(7);
        saver.start(thread::Builder::new(), 8, || Err(full()), &mut progress).expect("begun");
        let error = ask(&mut saver, &mut progress).expect_err("it failed");
        assert_eq!((error.exit_code(), error.to_string()), (5, full().to_string()));
        saver.look(&mut progress).expect("told already");
        saver.wait(&mut progress).expect("told already");
        assert_eq!((saver.saved(), told.text()), (Some(7), String::new()));
    }
    // For real: where checkpoints should stand is a file.
    let mut saver = saver(&folder);
    let mut progress = Shared::default().messages();
    std::fs::write(folder.join("checkpoints"), "in the way").expect("a file");
    saver.begin(state(&saver, 1), &mut progress).expect("begun");
    let error = looked(&mut saver, &mut progress).expect_err("no place for it");
    assert!(error.exit_code() == 5 && error.to_string().contains("checkpoints"), "{error}");
    drop(saver);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn whoever_is_dropped_waits_and_holds_the_lock() {
    let (folder, gate) = (folder("dropped"), Arc::new(Barrier::new(2)));
    let (mut saver, mut progress) = (saver(&folder), Shared::default().messages());
    let (frame, state, held) = (frame(&saver), state(&saver, 1), Arc::clone(&gate));
    let write = move || {
        held.wait();
        frame.write(&state)
    };
    saver.start(thread::Builder::new(), 1, write, &mut progress).expect("begun");
    let dropping = thread::spawn(move || drop(saver));
    thread::sleep(MOMENT);
    assert!(!dropping.is_finished());
    assert_eq!(Run::lock(&folder).expect_err("it is held").exit_code(), 8);
    gate.wait();
    dropping.join().expect("it ends");
    Run::lock(&folder).expect("it is free");
    assert_eq!(newest(&folder), Some(1));
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn a_bug_on_its_thread_is_one_of_the_run() {
    let folder = folder("bug");
    let (mut saver, mut progress) = (saver(&folder), Shared::default().messages());
    saver.start(thread::Builder::new(), 1, || panic!("a bug"), &mut progress).expect("begun");
    let waited = panic::catch_unwind(AssertUnwindSafe(|| saver.wait(&mut progress)));
    assert_eq!(waited.expect_err("it goes on").downcast_ref::<&str>(), Some(&"a bug"));
    assert_eq!(saver.saved(), None);
    drop(saver);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn where_no_thread_can_be_had_training_waits() {
    let (folder, told) = (folder("alone"), Shared::default());
    let (mut saver, mut progress) = (saver(&folder), told.messages());
    // No address space holds such a stack.
    let none = || thread::Builder::new().stack_size(usize::MAX / 4);
    let (frame, state) = (frame(&saver), state(&saver, 3));
    saver.start(none(), 3, move || frame.write(&state), &mut progress).expect("it is written");
    assert!(saver.under_way.is_none());
    assert_eq!(
        (saver.saved(), newest(&folder), told.text()),
        (Some(3), Some(3), "saved step 3\n".to_owned())
    );
    let error = saver.start(none(), 4, || Err(full()), &mut progress).expect_err("it failed");
    assert_eq!((error.exit_code(), saver.saved()), (5, Some(3)));
    drop(saver);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}
