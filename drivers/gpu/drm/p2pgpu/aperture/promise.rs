// SPDX-License-Identifier: GPL-2.0

//! Slots that are promised to objects, and those that are claimed until they are.

use super::{
    holds,
    Aperture,
    NamedPages, //
};
use crate::slots::{
    Class,
    NoPromise,
    PageName,
    SlotId, //
};
use kernel::prelude::*;

/// Slots that are not lent to anybody while this lives.
pub(crate) struct Claim<'a> {
    aperture: &'a Aperture,
    count: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.aperture.lock().unclaim(self.count);
    }
}

impl Aperture {
    /// Keeps `count` slots from being lent, whatever is lent already.
    pub(crate) fn claim(&self, count: u32) -> Claim<'_> {
        self.lock().claim(count);
        Claim {
            aperture: self,
            count,
        }
    }

    /// Claims the slots that will drain if the pages of a promised object leave now, as peers
    /// hold them. `EBUSY`: with them the promises could not be kept.
    pub(crate) fn claim_drain(&self, pages: NamedPages<'_>) -> Result<Claim<'_>> {
        let mut state = self.lock();
        let mut count = 0;
        for index in 0..pages.vram.count() {
            let slot = state.slots.get(pages.vram.hint(index));
            count += u32::from(holds(slot, pages.name(index)?) == Some(Class::Promised));
        }
        if !state.claim_drain(count) {
            return Err(EBUSY);
        }
        drop(state);
        Ok(Claim {
            aperture: self,
            count,
        })
    }

    /// Promises an object as many slots as are claimed, one for each of its pages. `shown` are
    /// its pages, if they are in VRAM: slots that peers hold become part of the promise.
    pub(crate) fn promise(
        &self,
        shown: Option<NamedPages<'_>>,
        claim: &Claim<'_>,
    ) -> Result<(), NoPromise> {
        self.lock().promise(claim.count, slots_of(shown))
    }

    /// Takes back the promise to an object of `count` pages.
    pub(crate) fn unpromise(&self, shown: Option<NamedPages<'_>>, count: u32) {
        self.lock().unpromise(count, slots_of(shown));
    }
}

/// The slots that may show the pages, with the names of these.
fn slots_of(
    shown: Option<NamedPages<'_>>,
) -> impl Iterator<Item = (SlotId, PageName)> + Clone + '_ {
    shown.into_iter().flat_map(|pages| {
        let slot = move |index| Some((pages.vram.hint(index), pages.name(index).ok()?));
        (0..pages.vram.count()).filter_map(slot)
    })
}
