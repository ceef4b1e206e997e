//! Threads that do one thing at once, and nothing in between.

use super::gate::Gate;
use formats::{Error, Result};
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads that work side by side, the caller's among them.
#[derive(Debug)]
pub struct Crew {
    control: Arc<Control>,
    helpers: Vec<JoinHandle<()>>,
}

/// What the caller and its helpers tell each other.
#[derive(Debug)]
struct Control {
    /// Advances when there is a job, or when the crew is dropped.
    start: Gate,
    /// The job: valid from an advance of `start` until `working` is zero again.
    job: AtomicPtr<Job<'static>>,
    working: AtomicUsize,
    /// Advances when the last helper has left the job.
    done: Gate,
    dismissed: AtomicBool,
}

/// What each member does, and the first panic of any.
struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Never unwinds.
    fn run(&self, index: usize) {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| (self.body)(index))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

impl Crew {
    /// Most threads a crew may have.
    pub const MOST: usize = 1024;

    /// Refuses a number of threads that no crew can have.
    pub fn check(members: usize) -> Result<()> {
        match members {
            1..=Crew::MOST => Ok(()),
            _ => Err(Error::Usage(format!("threads is {members}, expected 1 to {}", Crew::MOST))),
        }
    }

    /// Starts a crew of `members` threads, of which the caller's is one.
    pub fn new(members: usize) -> Result<Crew> {
        Crew::check(members)?;
        let control = Arc::new(Control {
            start: Gate::new(members),
            job: AtomicPtr::default(),
            working: AtomicUsize::new(0),
            done: Gate::new(members),
            dismissed: AtomicBool::new(false),
        });
        // Dropping the crew on a failure half-way dismisses those already started.
        let mut crew = Crew { control, helpers: Vec::with_capacity(members - 1) };
        for index in 1..members {
            let control = Arc::clone(&crew.control);
            let helper = thread::Builder::new()
                .name(format!("lectern-{index}"))
                .spawn(move || help(&control, index))
                .map_err(|problem| {
                    Error::Device(format!(
                        "cannot start thread {index} of {members}: {problem}\n  help: ask for fewer threads"
                    ))
                })?;
            crew.helpers.push(helper);
        }
        Ok(crew)
    }

    /// Number of threads.
    pub fn members(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `body` on every member at once, with the member's number, and returns when all are done. The first
    /// panic goes on in the caller then. Allocates nothing.
    pub fn run(&mut self, body: &(dyn Fn(usize) + Sync)) {
        let job = Job { body, panic: Mutex::new(None) };
        let control = &*self.control;
        if self.helpers.is_empty() {
            job.run(0);
        } else {
            let seen = control.done.value();
            control.working.store(self.helpers.len(), Ordering::Relaxed);
            control.job.store(std::ptr::from_ref(&job).cast::<Job<'static>>().cast_mut(), Ordering::Relaxed);
            control.start.advance();
            job.run(0);
            control.done.wait(seen);
        }
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            panic::resume_unwind(panic);
        }
    }

    /// Does `work` for each item: the first is always the caller's, the second the next member's and so on, so
    /// that what one worked on last time is still in its caches. Allocates nothing.
    pub fn each<T: Send>(&mut self, items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        let (members, len, items) = (self.members(), items.len(), Items(items.as_mut_ptr()));
        self.run(&|member| {
            for index in (member..len).step_by(members) {
                // SAFETY: `index` is inside the slice, which is borrowed mutably until `run` returns, and belongs
                // to this member alone: the others step through other remainders.
                work(index, unsafe { &mut *items.at(index) });
            }
        });
    }

    /// Does `work` for each item, in any order, by whoever is free. Allocates nothing.
    pub fn deal<T: Send>(&mut self, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
        let items = Mutex::new(items);
        self.run(&|_| {
            loop {
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                match item {
                    Some(item) => work(item),
                    None => return,
                }
            }
        });
    }
}

/// The start of a slice whose items are dealt to the members.
struct Items<T>(*mut T);

impl<T> Items<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

// SAFETY: only `Crew::each` makes one, which gives each item to one member; the items may be sent to it.
unsafe impl<T: Send> Sync for Items<T> {}

/// A helper's life: wait for a job, do it, say so.
fn help(control: &Control, index: usize) {
    let mut seen = 0;
    loop {
        seen = control.start.wait(seen);
        if control.dismissed.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: `Crew::run` stored a job that lives on its stack before it advanced `start`, and it neither
        // returns nor unwinds (`Job::run` never does) before this thread has counted itself out below.
        let job = unsafe { &*control.job.load(Ordering::Relaxed) };
        job.run(index);
        if control.working.fetch_sub(1, Ordering::AcqRel) == 1 {
            control.done.advance();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.control.dismissed.store(true, Ordering::Release);
        self.control.start.advance();
        for helper in self.helpers.drain(..) {
            // A helper cannot panic: everything it runs is caught. Were it to, there would be nothing to add here.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for members in 1..=3 {
            let mut crew = Crew::new(members).expect("threads");
            for len in [0, 1, 2, 3, 7] {
                let mut items = vec![0; len];
                crew.each(&mut items, |index, item| *item += index + 1);
                crew.deal(items.iter_mut(), |item| *item *= 2);
                assert!(items.iter().enumerate().all(|(index, item)| *item == 2 * (index + 1)), "{items:?}");
            }
        }
    }

    #[test]
    fn a_panic_comes_to_the_caller_and_the_crew_goes_on() {
        let mut crew = Crew::new(2).expect("threads");
        for culprit in 0..2 {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                crew.run(&|member| assert_ne!(member, culprit, "the culprit"));
            }));
            assert!(outcome.is_err(), "member {culprit}");
        }
        let done = AtomicUsize::new(0);
        crew.run(&|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 2);
    }
}
