//! The buffers a team shares, and the only way to reach them while it works.
//!
//! A buffer (a slot) is `[rows, columns]`. Within one epoch, the time between two barriers, every member sees a
//! slot in the same way: all may read the whole of it, or each may write its own part of one [`Cut`]. A member
//! that wants to see a slot in another way than it did in this epoch passes the barrier first, so no caller
//! places a barrier by hand and none is passed in vain.
//!
//! [SLOT-CLAIM] Members decide alike only if they run the same program. Soundness does not rest on that: the
//! first view of a slot in an epoch is written into the slot's claim word by compare-and-swap, and a member that
//! comes with a different view panics before it holds a reference.

use super::gate::Barrier;
use crate::memory;
use formats::{Error, Result};
use std::alloc::{self, Layout};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most rows of a slot that can be cut by rows.
pub(crate) const MAX_ROWS: usize = (1 << ROW_BITS) - 1;
const ROW_BITS: u32 = 16;
const FIRST_BITS: u32 = 25;
const KIND_BITS: u32 = 2;
const CODE_BITS: u32 = KIND_BITS + ROW_BITS + FIRST_BITS;
/// Most slots a member can see in one epoch before it passes a barrier for want of memory.
const TOUCHES: usize = 16;
/// Slots start on a cache line, so that neighbours never share one and vector loads stay aligned.
const ALIGNMENT: usize = 64;

/// What a slot can hold: numbers for which all bits zero is zero.
pub(crate) trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// Which of the kinds this type is.
    const KIND: Kind;
}

/// The element types of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `f32`.
    F32,
    /// [`half::f16`].
    F16,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
}

impl Element for f32 {
    const KIND: Kind = Kind::F32;
}

impl Element for half::f16 {
    const KIND: Kind = Kind::F16;
}

/// How a slot is dealt to the members; each gets one part, and the parts do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Every row, and a range of columns at multiples of the slot's grain.
    Columns,
    /// A range of the first `rows` rows, whole.
    Rows {
        /// How many rows are dealt.
        rows: usize,
    },
    /// A range of rows where row `r` is work for `first + r + 1`: causal attention after `first` positions.
    Causal {
        /// How many rows are dealt.
        rows: usize,
        /// The position of the first.
        first: usize,
    },
}

impl Cut {
    /// The cut as a number that no other cut has. Zero is left for a slot read whole.
    fn code(self) -> u64 {
        let (kind, rows, first) = match self {
            Cut::Columns => (1, 0, 0),
            Cut::Rows { rows } => (2, rows, 0),
            Cut::Causal { rows, first } => (3, rows, first),
        };
        assert!(rows <= MAX_ROWS && first >> FIRST_BITS == 0, "{self:?} is larger than a claim can say");
        kind | (rows as u64) << KIND_BITS | (first as u64) << (KIND_BITS + ROW_BITS)
    }

    /// The rows and columns of a slot that are `member`'s of `members`. Depends on nothing but the cut's code and
    /// the slot's own constants, increases with `member`, and never passes the slot's end.
    fn part(self, slot: &Slot, member: usize, members: usize) -> (Range<usize>, Range<usize>) {
        match self {
            Cut::Columns => {
                let grains = slot.columns.div_ceil(slot.grain);
                let edge = |member: usize| (share(grains, member, members) * slot.grain).min(slot.columns);
                (0..slot.rows, edge(member)..edge(member + 1))
            }
            Cut::Rows { rows } => {
                let rows = rows.min(slot.rows);
                (share(rows, member, members)..share(rows, member + 1, members), 0..slot.columns)
            }
            Cut::Causal { rows, first } => {
                let rows = rows.min(slot.rows);
                let work = |row: usize| row * first + row * (row + 1) / 2;
                let edge = |member: usize| {
                    let due = share(work(rows), member, members);
                    // The first row whose predecessors' work reaches what is due: `work` only grows.
                    let (mut low, mut high) = (0, rows);
                    while low < high {
                        let middle = (low + high) / 2;
                        if work(middle) < due {
                            low = middle + 1;
                        } else {
                            high = middle;
                        }
                    }
                    low
                };
                (edge(member)..edge(member + 1), 0..slot.columns)
            }
        }
    }
}

/// How many of `items` come before `member`'s when they are dealt evenly.
fn share(items: usize, member: usize, members: usize) -> usize {
    (items as u128 * member as u128 / members as u128) as usize
}

/// Names a slot of one [`Slots`].
#[derive(Debug)]
pub(crate) struct Place<T> {
    index: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Place<T> {
    fn clone(&self) -> Place<T> {
        *self
    }
}

impl<T> Copy for Place<T> {}

/// Buffers that the members of one team share. Outside of [`super::Team::run`], which borrows them exclusively,
/// they are ordinary memory.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    memory: NonNull<u8>,
    layout: Layout,
    kind: Kind,
    rows: usize,
    columns: usize,
    grain: usize,
    /// `epoch << CODE_BITS | code` of the latest view, see [SLOT-CLAIM].
    claim: AtomicU64,
}

// SAFETY: a slot owns its memory, which holds plain numbers.
unsafe impl Send for Slot {}
// SAFETY: through a shared reference the memory is reached by `get`, which only reads and cannot be called while a
// team works (it has the slots exclusively borrowed), and by `Access::view`, whose callers keep [SLOT-CLAIM].
unsafe impl Sync for Slot {}

impl Slot {
    fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// The memory as elements of the type it was made for.
    fn pointer<T: Element>(&self) -> NonNull<T> {
        assert_eq!(self.kind, T::KIND, "a place is used with slots it does not belong to");
        self.memory.cast()
    }

    /// Enters a view of this slot in `epoch` into the claim word, or panics if another view is there.
    fn claim(&self, epoch: u64, code: u64) {
        let mine = epoch << CODE_BITS | code;
        // Relaxed: the word decides alone, by the order of its own changes; the barrier orders the memory.
        let outcome = self.claim.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |latest| {
            (latest >> CODE_BITS < epoch).then_some(mine)
        });
        if let Err(latest) = outcome {
            assert_eq!(latest, mine, "members of a team see one slot in two ways at once");
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: allocated in `Slots::add` with this layout, and freed only here.
        unsafe { alloc::dealloc(self.memory.as_ptr(), self.layout) }
    }
}

impl Slots {
    /// Adds a slot of zeros. A slot cut by columns is cut at multiples of `grain`. The system hands out zeroed
    /// pages when they are first touched, so a long cache costs memory as it fills.
    pub(crate) fn add<T: Element>(&mut self, rows: usize, columns: usize, grain: usize) -> Result<Place<T>> {
        assert!(rows > 0 && columns > 0 && grain > 0, "a slot holds something");
        let layout = rows
            .checked_mul(columns)
            .and_then(|len| Layout::array::<T>(len).ok())
            .and_then(|layout| layout.align_to(ALIGNMENT).ok())
            .ok_or_else(|| memory::refusal(u64::MAX))?;
        // SAFETY: the layout is not empty, by the assertion above.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        let memory = NonNull::new(memory).ok_or_else(|| memory::refusal(layout.size() as u64))?;
        let slot = Slot { memory, layout, kind: T::KIND, rows, columns, grain, claim: AtomicU64::new(0) };
        self.slots.push(slot);
        Ok(Place { index: self.slots.len() - 1, element: PhantomData })
    }

    /// The whole of a slot.
    pub(crate) fn get<T: Element>(&self, place: Place<T>) -> &[T] {
        let slot = &self.slots[place.index];
        // SAFETY: `pointer` checked the type, the memory is `len` long and was zeroed, and nobody writes: writing
        // takes `&mut self`, here or in `Team::run`.
        unsafe { std::slice::from_raw_parts(slot.pointer().as_ptr(), slot.len()) }
    }

    /// The whole of a slot, to be written.
    pub(crate) fn get_mut<T: Element>(&mut self, place: Place<T>) -> &mut [T] {
        let slot = &self.slots[place.index];
        // SAFETY: as in `get`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(slot.pointer().as_ptr(), slot.len()) }
    }

    /// Forgets the claims of an earlier run, whose epochs begin again.
    pub(super) fn clear_claims(&mut self) {
        for slot in &mut self.slots {
            *slot.claim.get_mut() = 0;
        }
    }
}

/// One member's part of a slot, to be read and written.
#[derive(Debug)]
pub(crate) struct Part<'a, T> {
    memory: NonNull<T>,
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Part<'_, T> {
    /// The rows of the part, in the slot's own counting.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of the part, in the slot's own counting.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The part's columns of one row, which is counted as the slot counts it.
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row {row} lies outside {:?}", self.rows);
        // SAFETY: rows and columns lie in the slot (`Cut::part`), and for the part's lifetime no other reference
        // reaches them: other members' parts are disjoint, and `&mut self` excludes this member's own.
        unsafe {
            let start = self.memory.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(start.as_ptr(), self.columns.len())
        }
    }

    /// Every value from the start of `row` on, if the part's rows are whole, so that nobody else's values lie between
    /// them.
    pub(crate) fn rest(&mut self, row: usize) -> Option<&mut [T]> {
        if self.columns.len() != self.stride || !self.rows.contains(&row) {
            return None;
        }
        // SAFETY: as in `row`, for all rows from this one on, which follow each other without a gap.
        Some(unsafe {
            let start = self.memory.add(row * self.stride);
            std::slice::from_raw_parts_mut(start.as_ptr(), (self.rows.end - row) * self.stride)
        })
    }
}

/// One way to see a slot.
pub(crate) trait Access {
    /// What it gives.
    type View<'a>;

    /// The slot's index and the view's code.
    fn touch(&self) -> Touch;

    /// The view itself.
    ///
    /// # Safety
    ///
    /// `touch` has been claimed in an epoch that lasts as long as `'a`; the member holds no other view of the slot
    /// for `'a`, unless both only read.
    unsafe fn view<'a>(&self, slots: &'a Slots, member: usize, members: usize) -> Self::View<'a>;
}

/// A slot and a way to see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touch {
    slot: usize,
    code: u64,
}

/// The whole of a slot, to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole<T>(pub Place<T>);

impl<T: Element> Access for Whole<T> {
    type View<'a> = &'a [T];

    fn touch(&self) -> Touch {
        Touch { slot: self.0.index, code: 0 }
    }

    unsafe fn view<'a>(&self, slots: &'a Slots, _: usize, _: usize) -> &'a [T] {
        slots.get(self.0)
    }
}

/// The member's own part of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mine<T>(pub Place<T>, pub Cut);

impl<T: Element> Access for Mine<T> {
    type View<'a> = Part<'a, T>;

    fn touch(&self) -> Touch {
        Touch { slot: self.0.index, code: self.1.code() }
    }

    unsafe fn view<'a>(&self, slots: &'a Slots, member: usize, members: usize) -> Part<'a, T> {
        let slot = &slots.slots[self.0.index];
        let (rows, columns) = self.1.part(slot, member, members);
        Part { memory: slot.pointer(), stride: slot.columns, rows, columns, borrow: PhantomData }
    }
}

/// Several views at once: a tuple of [`Access`]es.
pub(crate) trait Accesses {
    /// The tuple of what they give.
    type Views<'a>;
    /// The touches, one for each.
    type Touches: AsRef<[Touch]>;

    /// Every slot and code.
    fn touches(&self) -> Self::Touches;

    /// The views.
    ///
    /// # Safety
    ///
    /// As for [`Access::view`], for each.
    unsafe fn views<'a>(&self, slots: &'a Slots, member: usize, members: usize) -> Self::Views<'a>;
}

/// Tuples of one to four accesses; a trait cannot be written for tuples of any length at once.
macro_rules! tuple_of_accesses {
    ($count:literal: $($name:ident $index:tt),+) => {
        impl<$($name: Access),+> Accesses for ($($name,)+) {
            type Views<'a> = ($($name::View<'a>,)+);
            type Touches = [Touch; $count];

            fn touches(&self) -> [Touch; $count] {
                [$(self.$index.touch()),+]
            }

            unsafe fn views<'a>(&self, slots: &'a Slots, member: usize, members: usize) -> Self::Views<'a> {
                // SAFETY: the caller's promise, for each.
                unsafe { ($(self.$index.view(slots, member, members),)+) }
            }
        }
    };
}

tuple_of_accesses!(1: A 0);
tuple_of_accesses!(2: A 0, B 1);
tuple_of_accesses!(3: A 0, B 1, C 2);
tuple_of_accesses!(4: A 0, B 1, C 2, D 3);

/// Whether somebody asked the team to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cancelled<'a>(&'a AtomicBool);

impl Cancelled<'_> {
    /// An error once somebody did.
    pub(crate) fn check(self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// One thread at work in a team: the way to the shared slots.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    index: usize,
    members: usize,
    slots: &'a Slots,
    barrier: &'a Barrier,
    cancelled: &'a AtomicBool,
    epoch: u64,
    touched: [Touch; TOUCHES],
    touches: usize,
}

impl<'a> Member<'a> {
    /// A member at the start of a run. Only [`super::Team::run`] calls this, once for each index, with slots it
    /// has borrowed exclusively and whose claims it has cleared.
    pub(super) fn new(
        index: usize,
        members: usize,
        slots: &'a Slots,
        barrier: &'a Barrier,
        cancelled: &'a AtomicBool,
    ) -> Member<'a> {
        let touched = [Touch::default(); TOUCHES];
        Member { index, members, slots, barrier, cancelled, epoch: 1, touched, touches: 0 }
    }

    /// The member's number in its team.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Number of members.
    pub(crate) fn members(&self) -> usize {
        self.members
    }

    /// Whether every member's own columns of a slot are those of its own items, where so many items of `width` columns
    /// are dealt evenly: then nobody needs another's columns for its items.
    pub(crate) fn deals_alike<T: Element>(&self, place: Place<T>, items: usize, width: usize) -> bool {
        let slot = &self.slots.slots[place.index];
        slot.columns == items * width
            && (0..self.members).all(|member| {
                let (_, columns) = Cut::Columns.part(slot, member, self.members);
                let item = |member| share(items, member, self.members) * width;
                columns == (item(member)..item(member + 1))
            })
    }

    /// The wish to stop, to be asked in long work between two calls of [`Member::open`], which asks itself.
    pub(crate) fn cancelled(&self) -> Cancelled<'a> {
        Cancelled(self.cancelled)
    }

    /// Gives views of slots, passing the barrier first if this epoch has seen one of them in another way. The
    /// views end before the next call, so no reference outlives its epoch.
    pub(crate) fn open<A: Accesses>(&mut self, accesses: A) -> Result<A::Views<'_>> {
        self.cancelled().check()?;
        let touches = accesses.touches();
        let touches = touches.as_ref();
        for (index, touch) in touches.iter().enumerate() {
            let alone =
                touches[..index].iter().all(|other| other.slot != touch.slot || other.code | touch.code == 0);
            assert!(alone, "one slot is opened twice at once");
        }
        if self.members > 1 {
            self.claim(touches)?;
        }
        // SAFETY: every touch is claimed in this epoch, so other members, if there are any, see these slots in the same
        // way (all read, or disjoint parts of one cut). The epoch ends only when every member has come to the barrier, and
        // each comes there through `&mut self`, when its views are gone; a run's last epoch ends with the run,
        // which the members' lifetime does not outlast. No slot stands twice among the touches unless only read.
        Ok(unsafe { accesses.views(self.slots, self.index, self.members) })
    }

    /// Claims the slots for this epoch, or for the next if this one has seen one of them in another way.
    fn claim(&mut self, touches: &[Touch]) -> Result<()> {
        let seen_otherwise = |touch: &Touch| {
            let same_slot = |other: &&Touch| other.slot == touch.slot;
            self.touched[..self.touches].iter().find(same_slot).is_some_and(|other| other.code != touch.code)
        };
        if touches.iter().any(seen_otherwise) || self.touches + touches.len() > TOUCHES {
            self.barrier.wait().map_err(|_| Error::Cancelled)?;
            self.epoch += 1;
            self.touches = 0;
        }
        assert!(self.epoch >> (u64::BITS - CODE_BITS) == 0, "a run has more epochs than a claim can count");
        for touch in touches {
            self.slots.slots[touch.slot].claim(self.epoch, touch.code);
            if !self.touched[..self.touches].contains(touch) {
                self.touched[self.touches] = *touch;
                self.touches += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(rows: usize, columns: usize, grain: usize) -> Slots {
        let mut slots = Slots::default();
        slots.add::<f32>(rows, columns, grain).expect("memory for a small slot");
        slots
    }

    #[test]
    fn every_cut_covers_each_element_exactly_once() {
        for rows in [1, 2, 7] {
            for columns in [1, 5, 16, 33, 48] {
                for grain in [1, 3, 16, 100] {
                    let slots = slot(rows, columns, grain);
                    let cuts = [
                        Cut::Columns,
                        Cut::Rows { rows },
                        Cut::Rows { rows: rows.div_ceil(2) },
                        Cut::Causal { rows, first: 0 },
                        Cut::Causal { rows, first: 100 },
                    ];
                    for cut in cuts {
                        for members in if cfg!(miri) { 3..4 } else { 1..9 } {
                            let mut counts = vec![0; rows * columns];
                            for member in 0..members {
                                let (part_rows, part_columns) = cut.part(&slots.slots[0], member, members);
                                for row in part_rows {
                                    for column in part_columns.clone() {
                                        counts[row * columns + column] += 1;
                                    }
                                }
                            }
                            let dealt = if cut == (Cut::Rows { rows: rows.div_ceil(2) }) {
                                rows.div_ceil(2) * columns
                            } else {
                                rows * columns
                            };
                            assert!(counts[..dealt].iter().all(|&count| count == 1), "{cut:?} {members}");
                            assert!(counts[dealt..].iter().all(|&count| count == 0), "{cut:?} {members}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn causal_parts_carry_about_the_same_work() {
        let slots = slot(256, 1, 1);
        let work = |rows: Range<usize>| rows.map(|row| row + 1).sum::<usize>();
        let whole = work(0..256);
        for member in 0..4 {
            let (rows, _) = Cut::Causal { rows: 256, first: 0 }.part(&slots.slots[0], member, 4);
            assert!(work(rows).abs_diff(whole / 4) <= 256, "member {member}");
        }
    }

    #[test]
    fn codes_tell_cuts_apart() {
        let cuts = [
            Cut::Columns,
            Cut::Rows { rows: 0 },
            Cut::Rows { rows: 1 },
            Cut::Rows { rows: MAX_ROWS },
            Cut::Causal { rows: 0, first: 0 },
            Cut::Causal { rows: 1, first: 0 },
            Cut::Causal { rows: 0, first: 1 },
            Cut::Causal { rows: MAX_ROWS, first: 1 << 24 },
        ];
        for (index, cut) in cuts.iter().enumerate() {
            assert_ne!(cut.code(), 0);
            assert!(cut.code() >> CODE_BITS == 0);
            assert!(cuts[..index].iter().all(|other| other.code() != cut.code()), "{cut:?}");
        }
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let mut slots = Slots::default();
        assert!(matches!(slots.add::<f32>(usize::MAX, 2, 1), Err(Error::Memory { .. })));
        // Miri ends the program where a system allocator says no.
        if !cfg!(miri) {
            assert!(matches!(slots.add::<f32>(1 << 40, 1 << 20, 1), Err(Error::Memory { .. })));
        }
    }

    #[test]
    fn half_precision_slots_are_zero_and_keep_what_is_written() {
        let mut slots = slot(2, 3, 1);
        let halves = slots.add::<half::f16>(2, 3, 1).expect("memory");
        assert!(slots.get(halves).iter().all(|value| value.to_bits() == 0));
        slots.get_mut(halves)[4] = half::f16::ONE;
        assert_eq!(slots.get(halves)[4], half::f16::ONE);
    }
}
