// SPDX-License-Identifier: GPL-2.0

//! Slots that a peer holds together, and those that were held a moment ago.
//!
//! An importer often maps again what it has just unmapped. So its slots are set aside as a whole,
//! as a *lease* that still holds them, and the next mapping of the same pages is given it as it is:
//! whatever the object's size, no slot is looked at. Nobody can tell the difference, as whoever
//! looks at slots, or wants some, first has the leases set aside let go of theirs, in the order in
//! which they were first given back.
//!
//! ```text
//!          add             take
//!   Held ───────► Aside ◄──────────► Known
//!    │              │     give_back    │
//!    │ end          ▼ settle           │ end
//!    └───────────► Gone ◄──────────────┘
//! ```
//!
//! A *known* lease is among those that are asked to let go. So a peer can give it back, and take it
//! again, by its mark alone: without the lock under which slots change. It does so only while that
//! lock is *quiet*:
//!
//! - Who takes the lock says so first, and then looks at the marks ([`Known::settle`]); who gives a
//!   lease back sets its mark first, and then looks whether the lock is quiet. One of them sees the
//!   other, at least.
//! - While slots are claimed or drain, it is never quiet: what is given back then is let go of at
//!   once, in the usual way.

use super::{
    Class,
    PageName,
    Released,
    SlotId,
    Slots,
    Storage, //
};

/// A number that all may change at once; each change is fully ordered.
pub(crate) trait Mark {
    fn new(value: u32) -> Self;

    fn get(&self) -> u32;

    fn set(&self, value: u32);

    /// Makes `from` to `to`; `false` if it is another.
    fn change(&self, from: u32, to: u32) -> bool;
}

/// A peer has it, and it is not known.
pub(crate) const HELD: u32 = 0;
/// A peer has it, and it is known.
pub(crate) const KNOWN: u32 = 1;
/// Nobody has it; it is known, and holds its slots.
pub(crate) const ASIDE: u32 = 2;
/// It holds no slots any more.
pub(crate) const GONE: u32 = 3;

/// Slots that show pages side by side of an object, and that are held together.
pub(crate) struct Lease<M: Storage> {
    /// The name of the first page.
    first: PageName,
    class: Class,
    slots: M::Array<SlotId>,
    mark: M::Mark,
}

impl<M: Storage> Lease<M> {
    /// Of `slots`, which a peer holds as `class`, and which show the pages from `first` on.
    pub(crate) fn new(first: PageName, class: Class, slots: M::Array<SlotId>) -> Self {
        Self {
            first,
            class,
            slots,
            mark: M::Mark::new(HELD),
        }
    }

    /// The slots in the order of their pages.
    pub(crate) fn slots(&self) -> &[SlotId] {
        &self.slots
    }

    /// What its slots count as.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    fn is_of(&self, first: PageName, count: usize, class: Class) -> bool {
        self.first == first && self.slots.len() == count && self.class == class
    }

    /// Its peer gives it back. `false`: that cannot be now, and nothing has changed.
    pub(crate) fn give_back(&self, quiet: &Quiet<M>) -> bool {
        // If it is gone meanwhile, its slots were let go of, as they were to be.
        self.lay_aside() && (quiet.is() || !self.pick_up())
    }

    /// Somebody has it again, who gave it back. `false`: it may be somebody else's, or gone.
    pub(crate) fn take(&self, quiet: &Quiet<M>) -> bool {
        quiet.is() && self.pick_up()
    }

    /// Nobody has it any more, if it is known.
    pub(crate) fn lay_aside(&self) -> bool {
        self.mark.change(KNOWN, ASIDE)
    }

    /// Somebody has it, if nobody had.
    pub(crate) fn pick_up(&self) -> bool {
        self.mark.change(ASIDE, KNOWN)
    }

    fn drains(&self, slots: &Slots<M>) -> bool {
        let mut slots_of = self.slots.iter();
        slots.counts().draining != 0 && slots_of.any(|&slot| slots.drains(slot))
    }

    fn let_go(&self, slots: &mut Slots<M>) {
        for &slot in &*self.slots {
            // It stays with its page: none of them drains.
            slots.unhold(slot);
        }
    }

    /// The slots are let go of, under the lock: its peer has given it back. Calls `each` with those
    /// that are the caller's now, as they drained.
    pub(crate) fn end(&self, slots: &mut Slots<M>, mut each: impl FnMut(SlotId)) {
        self.mark.set(GONE);
        for &slot in &*self.slots {
            if slots.unhold(slot) == Released::Taken {
                each(slot);
            }
        }
    }
}

/// Whether nobody changes slots.
pub(crate) struct Quiet<M: Storage>(M::Mark);

impl<M: Storage> Quiet<M> {
    /// It is not.
    pub(crate) fn new() -> Self {
        Self(M::Mark::new(0))
    }

    pub(crate) fn is(&self) -> bool {
        self.0.get() != 0
    }

    /// The lock was taken: before [`Known::settle`].
    pub(crate) fn end(&self) {
        self.0.change(1, 0);
    }

    /// The lock is about to be released; nothing is claimed and no slot drains.
    pub(crate) fn begin(&self) {
        self.0.set(1);
    }
}

/// Has a lease, which others may know too.
pub(crate) trait Leased<M: Storage> {
    fn lease(&self) -> &Lease<M>;
}

/// The leases that are known, at most `MAX`, in the order in which they were first given back.
/// Under the lock.
#[derive(Clone)]
pub(crate) struct Known<L, const MAX: usize>([Option<L>; MAX]);

impl<L, const MAX: usize> Known<L, MAX> {
    /// None.
    pub(crate) const fn new() -> Self {
        Self([const { None }; MAX])
    }

    /// Those that are known now.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &L> {
        self.0.iter().flatten()
    }

    /// Removes those that do not `stay`.
    fn retain(&mut self, mut stays: impl FnMut(&L) -> bool) {
        let mut len = 0;
        for place in 0..MAX {
            let Some(lease) = self.0.get_mut(place).and_then(Option::take) else {
                break;
            };
            if !stays(&lease) {
                continue;
            }
            if let Some(room) = self.0.get_mut(len) {
                *room = Some(lease);
                len += 1;
            }
        }
    }

    /// Those that are aside let go of their slots; those that are gone are forgotten.
    pub(crate) fn settle<M: Storage>(&mut self, slots: &mut Slots<M>)
    where
        L: Leased<M>,
    {
        let any = |known: &L| matches!(known.lease().mark.get(), ASIDE | GONE);
        if !self.iter().any(any) {
            return;
        }
        self.retain(|known| {
            let lease = known.lease();
            // Whoever gave one back whose slots drain is just about to see it.
            let goes = !lease.drains(slots) && lease.mark.change(ASIDE, GONE);
            if goes {
                lease.let_go(slots);
            }
            lease.mark.get() != GONE
        });
    }

    /// The lease of `count` pages from `first` on that counts as `class`, if there is one aside;
    /// nothing is claimed and no slot drains.
    pub(crate) fn take<M: Storage>(&self, first: PageName, count: usize, class: Class) -> Option<&L>
    where
        L: Leased<M>,
    {
        let fits = |known: &&L| {
            let lease = known.lease();
            lease.is_of(first, count, class) && lease.mark.change(ASIDE, KNOWN)
        };
        self.iter().rev().find(fits)
    }

    /// Sets a lease aside that its peer gives back; nothing is claimed and no slot drains. It is
    /// known from now on: if there is no room the oldest that is aside lets go of its slots, or else the
    /// oldest is no longer known.
    pub(crate) fn add<M: Storage>(&mut self, slots: &mut Slots<M>, lease: L)
    where
        L: Leased<M>,
    {
        if lease.lease().mark.change(KNOWN, ASIDE) {
            return;
        }
        if self.0.iter().all(Option::is_some) {
            let mut full = true;
            self.retain(|known| {
                let goes = full && known.lease().mark.change(ASIDE, GONE);
                if goes {
                    known.lease().let_go(slots);
                    full = false;
                }
                !goes
            });
            self.retain(|known| {
                let goes = full && known.lease().mark.change(KNOWN, HELD);
                full &= !goes;
                !goes
            });
        }
        match self.0.iter_mut().find(|room| room.is_none()) {
            Some(room) => {
                lease.lease().mark.set(ASIDE);
                *room = Some(lease);
            }
            // All were given back at this moment.
            None => lease.lease().end(slots, |_| {}),
        }
    }
}
