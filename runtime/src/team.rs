//! The threads of a model and the work they do together.
//!
//! A team runs one closure on all its threads at once, the caller's among them; inside, each thread is a
//! [`Member`] that reaches the team's shared [`Slots`]. Between runs the threads sleep. This room holds the
//! runtime's only unsafe code outside of the SIMD routines; it computes nothing.
//!
//! A thread pool of rayon's would do the same, but its broadcast allocates at every call, and a session allocates
//! nothing between two tokens.

mod gate;
mod slots;

pub(crate) use slots::{Cut, Element, MAX_ROWS, Member, Mine, Part, Place, Slots, Whole};

use formats::{Error, Result};
use gate::{Barrier, Gate};
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads that work side by side.
#[derive(Debug)]
pub(crate) struct Team {
    control: Arc<Control>,
    helpers: Vec<JoinHandle<()>>,
}

/// What the caller and its helpers tell each other.
#[derive(Debug)]
struct Control {
    members: usize,
    barrier: Barrier,
    /// Advances when there is a job, or when the team is dropped.
    start: Gate,
    /// The job: valid from an advance of `start` until `working` is zero again.
    job: AtomicPtr<Job<'static>>,
    working: AtomicUsize,
    /// Advances when the last helper has left the job.
    done: Gate,
    dismissed: AtomicBool,
}

/// What each member does; never unwinds.
struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
}

/// Why a run did not come to its end.
enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

impl Team {
    /// Most threads a team may have.
    pub(crate) const MOST: usize = 1024;

    /// Refuses a number of threads that no team can have.
    pub(crate) fn check(members: usize) -> Result<()> {
        match members {
            1..=Team::MOST => Ok(()),
            _ => Err(Error::Usage(format!("threads is {members}, expected 1 to {}", Team::MOST))),
        }
    }

    /// Starts a team of `members` threads, of which the caller's is one.
    pub(crate) fn new(members: usize) -> Result<Team> {
        Team::check(members)?;
        let control = Arc::new(Control {
            members,
            barrier: Barrier::new(members),
            start: Gate::new(members),
            job: AtomicPtr::default(),
            working: AtomicUsize::new(0),
            done: Gate::new(members),
            dismissed: AtomicBool::new(false),
        });
        // Dropping the team on a failure half-way dismisses those already started.
        let mut team = Team { control, helpers: Vec::with_capacity(members - 1) };
        for index in 1..members {
            let control = Arc::clone(&team.control);
            let helper = thread::Builder::new()
                .name(format!("lectern-{index}"))
                .spawn(move || help(&control, index))
                .map_err(|problem| {
                    Error::Device(format!(
                        "cannot start thread {index} of {members}: {problem}\n  help: ask for fewer threads"
                    ))
                })?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Runs `work` on every member at once and returns when all are done. The first error or panic releases the
    /// others from their barriers; the error is returned, the panic goes on in the caller. `cancelled` stops the
    /// run at the members' next step. Allocates nothing.
    pub(crate) fn run(
        &mut self,
        slots: &mut Slots,
        cancelled: &AtomicBool,
        work: &(dyn Fn(&mut Member<'_>) -> Result<()> + Sync),
    ) -> Result<()> {
        slots.clear_claims();
        let slots = &*slots;
        let control = &*self.control;
        control.barrier.reset();
        let failure = Mutex::new(None);
        let body = |index: usize| {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                let mut member = Member::new(index, control.members, slots, &control.barrier, cancelled);
                work(&mut member)?;
                control.barrier.finish();
                Ok(())
            }));
            let reason = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => Failure::Error(error),
                Err(panic) => Failure::Panic(panic),
            };
            // Recorded before the barrier breaks, so that the first is the cause and the rest its consequences.
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
            control.barrier.break_up();
        };
        control.run(self.helpers.len(), &Job { body: &body });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(Failure::Error(error)) => Err(error),
            Some(Failure::Panic(panic)) => panic::resume_unwind(panic),
        }
    }
}

impl Control {
    /// Gives the job to the helpers, does the caller's part, and waits for the rest. `&mut Team` in the one caller
    /// makes this the only run.
    fn run(&self, helpers: usize, job: &Job<'_>) {
        if helpers > 0 {
            let seen = self.done.value();
            self.working.store(helpers, Ordering::Relaxed);
            self.job.store(std::ptr::from_ref(job).cast::<Job<'static>>().cast_mut(), Ordering::Relaxed);
            self.start.advance();
            (job.body)(0);
            self.done.wait(seen);
        } else {
            (job.body)(0);
        }
    }
}

/// A helper's life: wait for a job, do it, say so.
fn help(control: &Control, index: usize) {
    let mut seen = 0;
    loop {
        seen = control.start.wait(seen);
        if control.dismissed.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: `Control::run` stored a job that lives on its stack before it advanced `start`, and it does not
        // return, nor unwind (`Job::body` never does), before this thread has counted itself out below.
        let job = unsafe { &*control.job.load(Ordering::Relaxed) };
        (job.body)(index);
        if control.working.fetch_sub(1, Ordering::AcqRel) == 1 {
            control.done.advance();
        }
    }
}

impl Drop for Team {
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

    const ROUNDS: usize = if cfg!(miri) { 3 } else { 50 };

    /// Adds up a row in rounds: each member writes its columns, then sums what the others wrote.
    fn sums(members: usize) -> Vec<f32> {
        let mut team = Team::new(members).expect("threads");
        let mut slots = Slots::default();
        let [a, b] = [0, 1].map(|_| slots.add::<f32>(2, 7, 2).expect("memory"));
        let go = AtomicBool::new(false);
        slots.get_mut(a).fill(1.0);
        for _ in 0..ROUNDS {
            team.run(&mut slots, &go, &|member| {
                for (from, to) in [(a, b), (b, a)] {
                    let (whole, mut mine) = member.open((Whole(from), Mine(to, Cut::Columns)))?;
                    let columns = mine.columns();
                    for row in mine.rows() {
                        let sum: f32 = whole.iter().sum();
                        for (value, column) in mine.row(row).iter_mut().zip(columns.clone()) {
                            *value = (sum + column as f32) % 11.0;
                        }
                    }
                }
                let (mut mine, mut other) = member.open((Mine(a, Cut::Columns), Mine(b, Cut::Columns)))?;
                for row in mine.rows() {
                    for (value, other) in mine.row(row).iter_mut().zip(other.row(row)) {
                        *value += *other;
                    }
                }
                let (mut rows,) = member.open((Mine(a, Cut::Rows { rows: 2 }),))?;
                for row in rows.rows() {
                    rows.row(row)[0] += 1.0;
                }
                Ok(())
            })
            .expect("the work has no error");
        }
        slots.get(a).to_vec()
    }

    #[test]
    fn any_number_of_members_computes_the_same() {
        let alone = sums(1);
        assert!(alone.iter().all(|value| value.is_finite()));
        for members in [2, 3] {
            assert_eq!(sums(members), alone, "{members} members");
        }
    }

    #[test]
    fn an_error_in_one_member_releases_the_rest_and_the_team_goes_on() {
        let mut team = Team::new(3).expect("threads");
        let mut slots = Slots::default();
        let slot = slots.add::<f32>(1, 3, 1).expect("memory");
        let go = AtomicBool::new(false);
        let outcome = team.run(&mut slots, &go, &|member| {
            if member.index() == 1 {
                return Err(Error::Usage("one gives up".into()));
            }
            member.open((Mine(slot, Cut::Columns),))?;
            member.open((Whole(slot),))?;
            Ok(())
        });
        assert!(matches!(outcome, Err(Error::Usage(text)) if text == "one gives up"));
        team.run(&mut slots, &go, &|member| member.open((Whole(slot),)).map(drop)).expect("no error now");
    }

    #[test]
    fn a_panic_in_one_member_goes_on_in_the_caller() {
        let mut team = Team::new(2).expect("threads");
        let mut slots = Slots::default();
        let slot = slots.add::<f32>(1, 3, 1).expect("memory");
        let go = AtomicBool::new(false);
        for culprit in 0..2 {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                team.run(&mut slots, &go, &|member| {
                    assert_ne!(member.index(), culprit, "the culprit");
                    member.open((Mine(slot, Cut::Columns),))?;
                    member.open((Whole(slot),)).map(drop)
                })
            }));
            assert!(outcome.is_err(), "member {culprit}");
        }
        team.run(&mut slots, &go, &|member| member.open((Whole(slot),)).map(drop)).expect("no error now");
    }

    #[test]
    fn a_cancelled_run_stops_at_the_next_step() {
        for members in 1..4 {
            let mut team = Team::new(members).expect("threads");
            let mut slots = Slots::default();
            let slot = slots.add::<f32>(1, 3, 1).expect("memory");
            let stop = AtomicBool::new(false);
            let outcome = team.run(&mut slots, &stop, &|member| {
                loop {
                    member.open((Mine(slot, Cut::Columns),))?;
                    member.open((Whole(slot),))?;
                    if member.index() == members - 1 {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
            assert!(matches!(outcome, Err(Error::Cancelled)), "{members} members");
        }
    }

    #[test]
    fn members_that_disagree_panic_instead_of_racing() {
        let mut team = Team::new(2).expect("threads");
        let mut slots = Slots::default();
        let slot = slots.add::<f32>(2, 2, 1).expect("memory");
        let go = AtomicBool::new(false);
        let met = std::sync::Barrier::new(2);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            team.run(&mut slots, &go, &|member| {
                let cut = if member.index() == 0 { Cut::Columns } else { Cut::Rows { rows: 2 } };
                let outcome =
                    panic::catch_unwind(AssertUnwindSafe(|| member.open((Mine(slot, cut),)).map(drop)));
                met.wait();
                match outcome {
                    Ok(outcome) => outcome,
                    Err(panic) => panic::resume_unwind(panic),
                }
            })
        }));
        assert!(outcome.is_err());
    }

    #[test]
    #[should_panic(expected = "one slot is opened twice")]
    fn one_slot_cannot_be_written_through_two_views() {
        let mut team = Team::new(1).expect("one thread");
        let mut slots = Slots::default();
        let slot = slots.add::<f32>(1, 2, 1).expect("memory");
        let _ = team.run(&mut slots, &AtomicBool::new(false), &|member| {
            member.open((Mine(slot, Cut::Columns), Mine(slot, Cut::Columns))).map(drop)
        });
    }

    #[test]
    fn a_team_needs_at_least_one_and_not_too_many() {
        for members in [0, Team::MOST + 1, usize::MAX] {
            assert!(matches!(Team::new(members), Err(Error::Usage(_))), "{members}");
        }
    }
}
