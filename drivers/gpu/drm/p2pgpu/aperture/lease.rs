// SPDX-License-Identifier: GPL-2.0

//! What a peer has of the aperture, and may have again.

use super::{
    ranges,
    Aperture,
    Locked, //
};
use crate::{
    driver::Gpu,
    memory::KernelMemory,
    slots::{
        lease,
        Class,
        PageName,
        SlotId, //
    }, //
};
use kernel::{
    pci::p2pdma::Ranges,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// The most leases that are known.
pub(super) const MAX_KNOWN: usize = 16;

/// A lease, and what its slots are for peers.
pub(super) struct Inner {
    lease: lease::Lease<KernelMemory>,
    /// The aperture's ranges that the slots make up, in their order.
    ranges: Ranges,
}

impl lease::Leased<KernelMemory> for Arc<Inner> {
    fn lease(&self) -> &lease::Lease<KernelMemory> {
        &self.lease
    }
}

/// Slots that a peer holds, which show pages side by side of an object.
///
/// They are lost if it is dropped: see [`Aperture::set_aside`].
pub(crate) struct Lease(pub(super) Arc<Inner>);

impl Lease {
    /// Of `slots`, which a peer holds as `class`, and which show the pages from `first` on.
    pub(super) fn new(
        gpu: &Gpu<'_>,
        first: PageName,
        class: Class,
        slots: KVVec<SlotId>,
    ) -> Result<Self, (KVVec<SlotId>, Error)> {
        // Room first: an error gives the slots back.
        let room = match UniqueArc::<Inner>::new_uninit(GFP_KERNEL) {
            Ok(room) => room,
            Err(error) => return Err((slots, error.into())),
        };
        match ranges(gpu, &slots) {
            Ok(ranges) => {
                let lease = lease::Lease::new(first, class, slots);
                Ok(Self(room.write(Inner { lease, ranges }).into()))
            }
            Err(error) => Err((slots, error)),
        }
    }

    pub(super) fn inner(&self) -> &lease::Lease<KernelMemory> {
        &self.0.lease
    }

    /// The aperture's ranges that the slots make up, in their order.
    pub(crate) fn ranges(&self) -> &Ranges {
        &self.0.ranges
    }
}

/// A lease that was given back. It may be had again, unless somebody else has it or it is gone.
pub(crate) struct Kept(Arc<Inner>);

impl Aperture {
    /// Sets a lease aside that its peer gives back, without a lock. It is returned if that cannot be
    /// now, or for the first time: [`Aperture::set_aside`] takes it then.
    #[inline]
    pub(crate) fn set_aside_quietly(&self, lease: Lease) -> Result<Kept, Lease> {
        match lease.inner().give_back(&self.quiet) {
            true => Ok(Kept(lease.0)),
            false => Err(lease),
        }
    }

    /// Sets a lease aside that its peer gives back. It is returned if that cannot be now:
    /// [`Aperture::unmap`] takes it then.
    pub(crate) fn set_aside(&self, lease: Lease) -> Result<Kept, Lease> {
        let mut state = Locked::new(self);
        match state.set_aside(&lease.0) {
            true => Ok(Kept(lease.0)),
            false => Err(lease),
        }
    }

    /// Has the lease again that was given back, if it counts as `class`. `None`:
    /// [`Aperture::map`] finds another.
    pub(crate) fn take_again(&self, kept: Kept, class: Class) -> Option<Lease> {
        let lease = Lease(kept.0);
        (lease.inner().class() == class && lease.inner().take(&self.quiet)).then_some(lease)
    }
}
