// SPDX-License-Identifier: GPL-2.0

//! What is kept of an aperture's slots under one lock: the slots, the leases that are known, and
//! what is claimed.
//!
//! *Claimed* are slots that are about to be promised, or to drain. They are not lent meanwhile, and
//! no lease is set aside.

use super::{
    lease::{
        Known,
        Leased, //
    },
    Class,
    NoPromise,
    PageName,
    SlotId,
    Slots,
    Storage, //
};

/// The slots, and who is about to have some. `L` has a lease; at most `MAX_KNOWN` are known.
pub(crate) struct State<M: Storage, L, const MAX_KNOWN: usize> {
    pub(crate) slots: Slots<M>,
    claimed: u32,
    pub(crate) known: Known<L, MAX_KNOWN>,
}

// For searches on the host, which go on from copies. It cannot be derived.
impl<M: Storage, L: Clone, const MAX_KNOWN: usize> Clone for State<M, L, MAX_KNOWN>
where
    Slots<M>: Clone,
{
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            claimed: self.claimed,
            known: self.known.clone(),
        }
    }
}

impl<M: Storage, L, const MAX_KNOWN: usize> State<M, L, MAX_KNOWN> {
    /// `total` free slots, at most [`MAX_SLOTS`](super::MAX_SLOTS).
    pub(crate) fn new(total: u32) -> Result<Self, M::Error> {
        Ok(Self {
            slots: Slots::new(total)?,
            claimed: 0,
            known: Known::new(),
        })
    }

    /// Slots that can be taken and then held as `class`, claims of others being kept.
    pub(crate) fn available(&self, class: Class) -> u32 {
        let available = self.slots.available(class);
        match class {
            Class::Lent => available.saturating_sub(self.claimed),
            Class::Promised => available,
        }
    }

    /// Slots that are claimed.
    pub(crate) fn claimed(&self) -> u32 {
        self.claimed
    }

    /// Keeps `count` slots from being lent until [`State::unclaim`], whatever is lent already.
    pub(crate) fn claim(&mut self, count: u32) {
        self.claimed = self.claimed.saturating_add(count);
    }

    /// Ends a claim of `count` slots.
    pub(crate) fn unclaim(&mut self, count: u32) {
        self.claimed = self.claimed.saturating_sub(count);
    }

    /// Claims `count` slots that will drain, as peers hold them of a promised object that leaves.
    /// `false`: with them the promises could not be kept. Where none will, nothing is in the way.
    pub(crate) fn claim_drain(&mut self, count: u32) -> bool {
        let fits = count == 0 || self.slots.may_drain(count.saturating_add(self.claimed));
        if fits {
            self.claim(count);
        }
        fits
    }

    /// Promises an object as many slots as are claimed for it: `count`, one for each of its pages.
    /// `shown` are the slots that may show pages of it: those that peers hold become part of the
    /// promise.
    pub(crate) fn promise(
        &mut self,
        count: u32,
        shown: impl Iterator<Item = (SlotId, PageName)> + Clone,
    ) -> Result<(), NoPromise> {
        // What others claim is as good as promised. It counts in the way, as it may yet end.
        let others = self.claimed.saturating_sub(count);
        self.reclass(shown.clone(), Class::Promised);
        let promised = match self.slots.promise(count) {
            Ok(()) if !self.slots.may_drain(others) => {
                self.slots.unpromise(count);
                Err(NoPromise::InTheWay(others))
            }
            result => result,
        };
        if promised.is_err() {
            self.reclass(shown, Class::Lent);
        }
        promised
    }

    /// Takes back the promise to an object of `count` pages, which `shown` may show.
    pub(crate) fn unpromise(
        &mut self,
        count: u32,
        shown: impl Iterator<Item = (SlotId, PageName)>,
    ) {
        self.slots.unpromise(count);
        self.reclass(shown, Class::Lent);
    }

    /// The slots that peers hold, and that show these pages, count as `class` from now on.
    fn reclass(&mut self, shown: impl Iterator<Item = (SlotId, PageName)>, class: Class) {
        for (slot, page) in shown {
            self.slots.reclass(slot, page, class);
        }
    }

    /// Whether leases can be set aside, and taken again.
    pub(crate) fn may_be_quiet(&self) -> bool {
        self.claimed == 0 && self.slots.counts().draining == 0
    }
}

impl<M: Storage, L: Leased<M>, const MAX_KNOWN: usize> State<M, L, MAX_KNOWN> {
    /// The leases that were set aside let go of their slots.
    pub(crate) fn settle(&mut self) {
        self.known.settle(&mut self.slots);
    }

    /// The lease of `count` pages from `first` on that counts as `class`, if there is one aside.
    pub(crate) fn recall(&self, first: PageName, count: usize, class: Class) -> Option<&L> {
        match self.may_be_quiet() {
            true => self.known.take(first, count, class),
            false => None,
        }
    }

    /// Sets a lease aside that its peer gives back. `false`: that cannot be now. Its slots may be
    /// among those that drain; and what is claimed is not lent again.
    pub(crate) fn set_aside(&mut self, lease: &L) -> bool
    where
        L: Clone,
    {
        let may = self.may_be_quiet();
        if may {
            self.known.add(&mut self.slots, lease.clone());
        }
        may
    }
}
