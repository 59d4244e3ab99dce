// SPDX-License-Identifier: GPL-2.0

//! Slots that a peer holds together, and those that were held a moment ago.
//!
//! An importer often maps again what it has just unmapped. So its slots are set aside as a whole,
//! as a *lease* that still holds them, and the next mapping of the same pages is given it as it is:
//! whatever the object's size, no slot is looked at. Nobody can tell the difference, as whoever
//! looks at slots, or wants some, first has the leases set aside let go of theirs, in the order in
//! which they were given back. See [`Aperture::lock`].

use super::{
    ranges,
    Aperture,
    State, //
};
use crate::{
    driver::Gpu,
    memory::KernelMemory,
    slots::{
        Class,
        PageName,
        SlotId,
        Slots, //
    }, //
};
use core::ops::DerefMut;
use kernel::{
    pci::p2pdma::Ranges,
    prelude::*,
    sync::Arc, //
};

/// The most leases that are set aside.
const MAX_ASIDE: usize = 16;

/// Slots that a peer holds, which show pages side by side of an object.
pub(crate) struct Lease {
    /// The name of the first page.
    first: PageName,
    class: Class,
    slots: KVVec<SlotId>,
    ranges: Arc<Ranges>,
}

impl Lease {
    /// Of `slots`, which a peer holds as `class`, and which show the pages from `first` on.
    pub(super) fn new(
        gpu: &Gpu<'_>,
        first: PageName,
        class: Class,
        slots: KVVec<SlotId>,
    ) -> Result<Self, (KVVec<SlotId>, Error)> {
        match ranges(gpu, &slots) {
            Ok(ranges) => Ok(Self {
                first,
                class,
                slots,
                ranges,
            }),
            Err(error) => Err((slots, error)),
        }
    }

    /// The slots in the order of their pages.
    pub(super) fn slots(&self) -> &[SlotId] {
        &self.slots
    }

    /// The aperture's ranges that the slots make up, in their order.
    pub(crate) fn ranges(&self) -> &Arc<Ranges> {
        &self.ranges
    }
}

/// Leases that nobody has, in the order in which they were given back.
///
/// # Invariants
///
/// While there are any, nothing is claimed and no slot drains: all of their slots show the pages
/// that they are named by.
pub(super) struct Aside(KVec<Lease>);

impl Aside {
    /// None, and room for as many as there can be.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(KVec::with_capacity(MAX_ASIDE, GFP_KERNEL)?))
    }

    /// The lease of `count` pages from `first` on that counts as `class`, if there is one.
    pub(super) fn take(&mut self, first: PageName, count: usize, class: Class) -> Option<Lease> {
        let fits = |lease: &Lease| {
            lease.first == first && lease.slots.len() == count && lease.class == class
        };
        let place = self.0.iter().rposition(fits)?;
        self.0.remove(place).ok()
    }

    /// Adds a lease; the oldest lets go of its slots if there is no room.
    fn add(&mut self, slots: &mut Slots<KernelMemory>, lease: Lease) {
        if self.0.len() >= MAX_ASIDE {
            if let Ok(oldest) = self.0.remove(0) {
                let_go(slots, &oldest);
            }
        }
        // There is room: nobody shrinks the vector.
        if let Err(full) = self.0.push_within_capacity(lease) {
            let_go(slots, &full.0);
        }
    }
}

fn let_go(slots: &mut Slots<KernelMemory>, lease: &Lease) {
    for &slot in &lease.slots {
        // It stays with its page: none of them drains.
        slots.unhold(slot);
    }
}

impl State {
    /// The leases that were set aside let go of their slots.
    pub(super) fn settle(&mut self) {
        for lease in self.aside.0.drain_all() {
            let_go(&mut self.slots, &lease);
        }
    }
}

impl Aperture {
    /// The slots, none of which is held by a lease that was set aside.
    pub(super) fn lock(&self) -> impl DerefMut<Target = State> + '_ {
        let mut state = self.state.lock();
        state.settle();
        state
    }

    /// Sets a lease aside that its peer gives back. It is returned if that cannot be now:
    /// [`Aperture::unmap`] takes it then.
    pub(crate) fn set_aside(&self, lease: Lease) -> Option<Lease> {
        let mut state = self.state.lock();
        // Its slots may be among those that drain; and what is claimed is not lent again.
        if state.claimed != 0 || state.slots.counts().draining != 0 {
            return Some(lease);
        }
        let State { slots, aside, .. } = &mut *state;
        aside.add(slots, lease);
        None
    }
}
