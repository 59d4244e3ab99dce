// SPDX-License-Identifier: GPL-2.0

//! Slots that are promised to objects, and those that are claimed until they are.

use super::{
    holds,
    Aperture,
    NamedPages, //
};
use crate::{
    memory::KernelMemory,
    slots::{
        Class,
        NoPromise,
        Slots, //
    }, //
};
use kernel::prelude::*;

/// Slots that are not lent to anybody while this lives.
pub(crate) struct Claim<'a> {
    aperture: &'a Aperture,
    count: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.aperture.lock();
        state.claimed = state.claimed.saturating_sub(self.count);
    }
}

impl Aperture {
    /// Keeps `count` slots from being lent, whatever is lent already.
    pub(crate) fn claim(&self, count: u32) -> Claim<'_> {
        let mut state = self.lock();
        state.claimed = state.claimed.saturating_add(count);
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
        if !state.slots.may_drain(count.saturating_add(state.claimed)) {
            return Err(EBUSY);
        }
        state.claimed = state.claimed.saturating_add(count);
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
        let mut state = self.lock();
        // What others claim is as good as promised. It counts in the way, as it may yet end.
        let others = state.claimed.saturating_sub(claim.count);
        let slots = &mut state.slots;
        reclass(slots, shown, Class::Promised);
        let promised = match slots.promise(claim.count) {
            Ok(()) if !slots.may_drain(others) => {
                slots.unpromise(claim.count);
                Err(NoPromise::InTheWay(others))
            }
            result => result,
        };
        if promised.is_err() {
            reclass(slots, shown, Class::Lent);
        }
        promised
    }

    /// Takes back the promise to an object of `count` pages.
    pub(crate) fn unpromise(&self, shown: Option<NamedPages<'_>>, count: u32) {
        let slots = &mut self.lock().slots;
        slots.unpromise(count);
        reclass(slots, shown, Class::Lent);
    }
}

/// The slots that peers hold of an object count as `class` from now on.
fn reclass(slots: &mut Slots<KernelMemory>, shown: Option<NamedPages<'_>>, class: Class) {
    let Some(pages) = shown else {
        return;
    };
    for index in 0..pages.vram.count() {
        if let Ok(name) = pages.name(index) {
            slots.reclass(pages.vram.hint(index), name, class);
        }
    }
}
