//! Waiting: a number that threads wait on, and the barrier built from it.
//!
//! Everything here spins briefly and then sleeps, so that a decode's barriers cost no system call and an idle
//! model costs no processor. No unsafe code.

use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How often a waiting thread looks before it sleeps: some tens of microseconds, longer than a barrier's usual
/// wait and about what sampling takes between two tokens.
const SPINS: usize = 2000;

/// A number that threads wait on.
#[derive(Debug)]
pub(super) struct Gate {
    value: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    woken: Condvar,
    spins: usize,
}

impl Gate {
    /// A gate at zero for `members` threads. More threads than processors never spin: the one that is waited
    /// for may need this processor.
    pub(super) fn new(members: usize) -> Gate {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Gate {
            value: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            woken: Condvar::new(),
            spins: if members <= processors { SPINS } else { 0 },
        }
    }

    pub(super) fn value(&self) -> usize {
        self.value.load(SeqCst)
    }

    /// Waits until the number is another than `seen`, and returns it.
    pub(super) fn wait(&self, seen: usize) -> usize {
        for _ in 0..self.spins {
            let value = self.value();
            if value != seen {
                return value;
            }
            hint::spin_loop();
        }
        // Either `wake` sees this sleeper, or this thread, reading the number afterwards, sees the change.
        self.sleepers.fetch_add(1, SeqCst);
        let mut guard = self.lock();
        let value = loop {
            let value = self.value();
            if value != seen {
                break value;
            }
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        drop(guard);
        self.sleepers.fetch_sub(1, SeqCst);
        value
    }

    /// Adds one and lets the waiting go.
    pub(super) fn advance(&self) {
        self.value.fetch_add(1, SeqCst);
        self.wake();
    }

    /// Sets `bits` and lets the waiting go.
    fn mark(&self, bits: usize) {
        self.value.fetch_or(bits, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            // Taking the lock once waits for a thread between its last look and its sleep.
            drop(self.lock());
            self.woken.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The barrier was released without all members: one of them gave up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Holds each member of a team back until all have come.
#[derive(Debug)]
pub(super) struct Barrier {
    members: usize,
    arrived: AtomicUsize,
    finished: AtomicUsize,
    phase: Gate,
}

/// The bit of the phase that says a member gave up.
const BROKEN: usize = 1 << (usize::BITS - 1);

impl Barrier {
    pub(super) fn new(members: usize) -> Barrier {
        Barrier {
            members,
            arrived: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            phase: Gate::new(members),
        }
    }

    /// Makes the barrier whole again. Only while no member is at work.
    pub(super) fn reset(&self) {
        self.arrived.store(0, SeqCst);
        self.finished.store(0, SeqCst);
        self.phase.value.store(0, SeqCst);
    }

    /// Waits for every member, or for the first to give up.
    pub(super) fn wait(&self) -> Result<(), Broken> {
        let seen = self.phase.value();
        if seen & BROKEN != 0 {
            return Err(Broken);
        }
        if self.arrived.fetch_add(1, SeqCst) + 1 == self.members {
            self.arrived.store(0, SeqCst);
            self.phase.advance();
            return Ok(());
        }
        // In this order: a member that came here and went on to finish has advanced the phase before.
        let deserted = self.finished.load(SeqCst) > 0 && self.phase.value() == seen;
        assert!(!deserted, "a member waits for one that has finished");
        match self.phase.wait(seen) & BROKEN {
            0 => Ok(()),
            _ => Err(Broken),
        }
    }

    /// Releases everyone, now and later: a member gave up.
    pub(super) fn break_up(&self) {
        self.phase.mark(BROKEN);
    }

    /// Says that a member's work is done. Others that still wait would wait forever, so that is a panic.
    pub(super) fn finish(&self) {
        self.finished.fetch_add(1, SeqCst);
        let broken = self.phase.value() & BROKEN != 0;
        assert!(broken || self.arrived.load(SeqCst) == 0, "a member finished while another waits for it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn nobody_passes_before_the_last_has_come() {
        const MEMBERS: usize = 3;
        const ROUNDS: usize = if cfg!(miri) { 5 } else { 200 };
        let barrier = Barrier::new(MEMBERS);
        let arrivals = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..MEMBERS {
                scope.spawn(|| {
                    for round in 1..=ROUNDS {
                        arrivals.fetch_add(1, SeqCst);
                        assert_eq!(barrier.wait(), Ok(()));
                        assert!(arrivals.load(SeqCst) >= round * MEMBERS);
                    }
                    barrier.finish();
                });
            }
        });
        assert_eq!(arrivals.load(SeqCst), ROUNDS * MEMBERS);
    }

    #[test]
    fn a_broken_barrier_releases_those_who_wait_and_those_who_come() {
        let barrier = Barrier::new(3);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| barrier.wait());
            barrier.break_up();
            assert_eq!(waiting.join().expect("the waiting thread does not panic"), Err(Broken));
        });
        assert_eq!(barrier.wait(), Err(Broken));
        barrier.reset();
        thread::scope(|scope| {
            let others = [scope.spawn(|| barrier.wait()), scope.spawn(|| barrier.wait())];
            assert_eq!(barrier.wait(), Ok(()));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Ok(()));
            }
        });
    }
}
