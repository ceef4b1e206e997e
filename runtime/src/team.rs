//! The threads of a model and the work they do together.
//!
//! A [`Crew`] runs one closure on all its threads at once, the caller's among them; between runs they sleep. A
//! team is a crew whose threads meet inside a run: each is a [`Member`] that reaches the team's shared [`Slots`].
//! This room holds the runtime's only unsafe code outside of the SIMD routines; it computes nothing.
//!
//! A thread pool of rayon's would do the same, but its broadcast allocates at every call, where a session allocates
//! nothing between two tokens and the trainer nothing in a step, and its threads sleep between two forks that a
//! small model's step has a dozen microseconds apart.

mod crew;
mod gate;
mod slots;

pub(crate) use slots::{Cancelled, Cut, Element, MAX_ROWS, Member, Mine, Part, Place, Slots, Whole};

pub use crew::Crew;

use formats::{Error, Result};
use gate::Barrier;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// A crew with a barrier and slots to share.
#[derive(Debug)]
pub(crate) struct Team {
    crew: Crew,
    barrier: Barrier,
}

/// Why a run did not come to its end.
enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

impl Team {
    /// Starts a team of `members` threads, of which the caller's is one.
    pub(crate) fn new(members: usize) -> Result<Team> {
        Ok(Team { crew: Crew::new(members)?, barrier: Barrier::new(members) })
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
        let (barrier, members) = (&self.barrier, self.crew.members());
        barrier.reset();
        let failure = Mutex::new(None);
        let body = |index: usize| {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                let mut member = Member::new(index, members, slots, barrier, cancelled);
                work(&mut member)?;
                barrier.finish();
                Ok(())
            }));
            let reason = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => Failure::Error(error),
                Err(panic) => Failure::Panic(panic),
            };
            // Recorded before the barrier breaks, so that the first is the cause and the rest its consequences.
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
            barrier.break_up();
        };
        self.crew.run(&body);
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(Failure::Error(error)) => Err(error),
            Some(Failure::Panic(panic)) => panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

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
        for members in [0, Crew::MOST + 1, usize::MAX] {
            assert!(matches!(Team::new(members), Err(Error::Usage(_))), "{members}");
        }
    }
}
