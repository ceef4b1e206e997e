//! The emulator itself: kernels do on it what plain loops do, and what a kernel may not do is noticed.

use runtime::random::{Purpose, Stream};
use std::process::Command;
use tests::emulator::{FOUND, available, emulated};
use tests::programs::{Ran, run};

/// Runs the emulator's own test, or one case of what must be noticed.
fn check(case: Option<&str>, seed: u64) -> Ran {
    let mut inner = Command::new("check");
    inner.args(case).env("LECTERN_EMULATOR_SEED", seed.to_string());
    run(emulated(&inner))
}

#[test]
fn kernels_do_what_loops_do_in_any_order_and_draw_the_runtimes_numbers() {
    if !available() {
        return;
    }
    let stream = Stream::new(1337, Purpose::Dropout);
    let expected: Vec<u32> = (0..8).flat_map(|block| stream.draws(7, (1 << 40) + block)).collect();
    for seed in 0..8 {
        assert_eq!(check(None, seed).expect(0).sound().ids(), expected, "seed {seed}");
    }
}

#[test]
fn what_a_kernel_may_not_do_is_noticed_and_named() {
    if !available() {
        return;
    }
    let named = [
        ("early_end", "thread 7 has ended without it"),
        ("lost_lane", "lanes 00000200 do not come"),
        ("beyond", "heap-buffer-overflow"),
        ("beyond_shared", "global-buffer-overflow"),
        ("beyond_dynamic", "heap-buffer-overflow"),
        ("askew", "store16 at"),
        ("freed", "is no memory of the device"),
        ("copy_beyond", "lie in no allocation"),
    ];
    for (case, message) in named {
        let ran = check(Some(case), 5).expect(FOUND).naming(message);
        if !matches!(case, "freed" | "copy_beyond") {
            ran.naming(&format!("kernel {case}<<<")).naming("LECTERN_EMULATOR_SEED=5");
        }
    }
}

#[test]
fn what_only_an_order_shows_is_shown_by_some_order() {
    if !available() {
        return;
    }
    for (case, message) in
        [("missed_barrier", "a missed barrier shows"), ("missed_wait", "a missed wait shows")]
    {
        assert!((0..8).any(|seed| check(Some(case), seed).stderr.contains(message)), "{case}");
    }
}
