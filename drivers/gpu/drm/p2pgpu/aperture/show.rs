// SPDX-License-Identifier: GPL-2.0

//! Pages that come into slots and leave them: for CPUs, for peers, and for good.

use super::{
    holds,
    shows,
    Aperture,
    Lease,
    Locked,
    NamedPages,
    State, //
};
use crate::{
    driver::{
        DrmDevice,
        Gpu, //
    },
    memory::KernelMemory,
    regs::{
        self,
        SLOT_SIZE, //
    },
    slots::{
        Class,
        PageName,
        Released,
        Slot,
        SlotId,
        Slots,
        Took, //
    },
    table::Flush, //
};
use core::ops::Range;
use kernel::{
    drm::gem::managed,
    mm::fault::{
        Fault,
        Outcome, //
    },
    prelude::*, //
};

/// Pages that a CPU's fault shows at once, if slots can be had cheaply: an aligned group.
const FAULT_GROUP: usize = 16;

/// Why pages were not shown.
pub(crate) enum NotShown {
    /// Slots that are lent to peers of other objects are missing.
    Lent,
    /// Another reason. `ENOSPC`: there are too few slots, whoever lets go.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for NotShown {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Aperture {
    /// A CPU touched page `index`: shows it in a slot and maps that, and the pages around it too.
    ///
    /// For the pages around only slots are taken that are free; if a walk over the object has come
    /// here, also idle ones.
    pub(crate) fn fault(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        pages: NamedPages<'_>,
        index: usize,
        fault: &Fault<'_>,
    ) -> Result<Outcome, NotShown> {
        let first = index - index % FAULT_GROUP;
        let group = first..pages.vram.count().min(first + FAULT_GROUP);
        let mut missing = Group::new();
        let mut state = self.lock();
        self.check()?;
        let takable = state.available(Class::Promised);
        let slots = &mut state.slots;

        if !slots.touch(pages.vram.hint(index), pages.name(index)?) {
            missing.push(index);
        }
        // What is shown becomes the warmest, so that it is not taken for others of the group.
        let mut own = 0;
        let mut walk = index == first;
        for other in group.clone() {
            let slot = pages.vram.hint(other);
            if slots.touch(slot, pages.name(other)?) {
                own += u32::from(matches!(slots.get(slot), Some(Slot::Idle { .. })));
                walk |= other + 1 == index;
            } else if other != index {
                missing.push(other);
            }
        }
        if missing.starts_with(index) {
            if takable == 0 {
                return Err(match slots.counts().lent {
                    0 => ENOSPC.into(),
                    _ => NotShown::Lent,
                });
            }
            let cheap = match walk {
                true => takable.saturating_sub(own),
                false => slots.counts().free,
            };
            missing.truncate(usize::try_from(cheap.max(1))?);
            show(dev, gpu, slots, pages, missing.get())?;
        }

        let mut outcome = Outcome::Sigbus;
        for other in group {
            let slot = pages.vram.hint(other);
            if !shows(slots.get(slot), pages.name(other)?) {
                continue;
            }
            let pfn = usize::try_from(gpu.aperture_phys(slot)?)? / SLOT_SIZE;
            // SAFETY: The slot is of our BAR and shows this page. Whoever takes it from the page
            // does so under the lock that we hold, and zaps the page first; so does unbinding.
            let inserted = unsafe { fault.insert_pfn_near(index, other, pfn) };
            if other == index {
                outcome = inserted;
            }
        }
        Ok(outcome)
    }

    /// Shows the pages `range` for a peer, which holds the slots until [`Aperture::set_aside`] or
    /// [`Aperture::unmap`].
    ///
    /// On an error nothing has changed.
    pub(crate) fn map(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        pages: NamedPages<'_>,
        range: Range<usize>,
        class: Class,
    ) -> Result<Lease, NotShown> {
        let first = pages.name(range.start)?;
        let mut state = Locked::new(self);
        self.check()?;
        // Often a mapping comes back to what was given back a moment ago.
        if let Some(lease) = state.recall(first, range.len(), class) {
            return Ok(Lease(lease.clone()));
        }
        state.settle();
        let held = hold(&mut state, dev, gpu, pages, range, class)?;
        Lease::new(gpu, first, class, held).map_err(|(held, error)| {
            for slot in held {
                state.slots.unhold(slot);
            }
            error.into()
        })
    }

    /// A peer lets go of the slots that [`Aperture::map`] gave it.
    ///
    /// Without hardware the translations are gone already.
    pub(crate) fn unmap(&self, gpu: Option<&Gpu<'_>>, lease: &Lease) -> Result {
        let lease = lease.inner();
        let mut state = self.lock();
        let slots = &mut state.slots;
        let mut flush = Flush::new(self, gpu);
        // An error keeps slots from being used again, but not their holders from letting go.
        let mut cleared = Ok(());
        let mut drained = false;
        lease.end(slots, |slot| {
            drained = true;
            cleared = cleared.and(flush.set(slot, 0));
        });
        cleared.and(flush.finish())?;
        if drained {
            slots.give_back_many(lease.slots().iter().copied());
        }
        Ok(())
    }

    /// The pages leave: their slots become free, or drain while peers hold them.
    ///
    /// The caller has zapped the CPU mappings, and holds off new ones. The slots that drain of an
    /// object that is promised were claimed.
    pub(crate) fn release(&self, gpu: Option<&Gpu<'_>>, pages: NamedPages<'_>) -> Result {
        let mut state = self.lock();
        let slots = &mut state.slots;
        let mut flush = Flush::new(self, gpu);
        let mut cleared = Ok(());
        for index in 0..pages.vram.count() {
            let slot = pages.vram.hint(index);
            if slots.release(slot, pages.name(index)?) == Released::Taken {
                cleared = cleared.and(flush.set(slot, 0));
            }
        }
        cleared.and(flush.finish())?;
        slots.give_back_many((0..pages.vram.count()).map(|index| pages.vram.hint(index)));
        Ok(())
    }
}

/// Shows the pages `range`, and holds their slots for a peer, which are returned in the order of the
/// pages.
///
/// On an error nothing has changed.
fn hold(
    state: &mut State,
    dev: &DrmDevice,
    gpu: &Gpu<'_>,
    pages: NamedPages<'_>,
    range: Range<usize>,
    class: Class,
) -> Result<KVVec<SlotId>, NotShown> {
    let mut held = KVVec::with_capacity(range.len(), GFP_KERNEL)?;
    let mut missing = KVVec::new();

    // Pages that are still shown need: one look at each.
    let enough = u32::try_from(range.len())? <= state.available(class);
    let slots = &mut state.slots;
    let all_shown = enough
        && range.clone().all(|index| {
            let slot = pages.vram.hint(index);
            let is_held = pages
                .name(index)
                .is_ok_and(|name| slots.hold(slot, name, class));
            // There is room for all of them.
            is_held && held.push_within_capacity(slot).is_ok()
        });
    if all_shown {
        return Ok(held);
    }
    for &slot in &held {
        slots.unhold(slot);
    }
    held.clear();

    // Pages that no peer holds yet, shown or not.
    let mut fresh = 0u32;
    for index in range.clone() {
        let slot = state.slots.get(pages.vram.hint(index));
        let name = pages.name(index)?;
        if holds(slot, name).is_none() {
            fresh += 1;
        }
        if !shows(slot, name) {
            missing.push(index, GFP_KERNEL)?;
        }
    }
    let short = fresh.saturating_sub(state.available(class));
    let slots = &mut state.slots;
    if short != 0 {
        let mut others = slots.counts().lent;
        for index in range {
            let slot = slots.get(pages.vram.hint(index));
            let own = holds(slot, pages.name(index)?) == Some(Class::Lent);
            others = others.saturating_sub(own.into());
        }
        return Err(match short <= others {
            true => NotShown::Lent,
            false => ENOSPC.into(),
        });
    }

    let found = (|| {
        // Those that are shown are held first: they are not taken for the others.
        for index in range.clone() {
            let (slot, name) = (pages.vram.hint(index), pages.name(index)?);
            if slots.hold(slot, name, class) {
                held.push(slot, GFP_KERNEL)?;
            } else if shows(slots.get(slot), name) {
                return Err(EOVERFLOW);
            }
        }
        show(dev, gpu, slots, pages, &missing)
    })();
    if let Err(error) = found {
        for slot in held {
            slots.unhold(slot);
        }
        return Err(error.into());
    }

    // All pages are shown now: list their slots in the order of the pages.
    held.clear();
    for index in range {
        let slot = pages.vram.hint(index);
        if missing.binary_search(&index).is_ok() {
            slots.hold(slot, pages.name(index)?, class);
        }
        held.push(slot, GFP_KERNEL)?;
    }
    Ok(held)
}

/// Shows the pages `missing`, which no slot shows, in adjacent slots if there are such. One flush.
///
/// `ENOSPC`: too few slots are free or idle. On an error none of them is shown.
fn show(
    dev: &DrmDevice,
    gpu: &Gpu<'_>,
    slots: &mut Slots<KernelMemory>,
    pages: NamedPages<'_>,
    missing: &[usize],
) -> Result {
    let count = u32::try_from(missing.len())?;
    let mut left = missing.iter();
    let mut assign = |slot| {
        if let Some(&index) = left.next() {
            pages.vram.set_hint(index, slot);
        }
    };
    let taken = match slots.take_run(count) {
        Some(first) => {
            (first..first.saturating_add(count)).for_each(assign);
            count
        }
        None => {
            let mut zap = Zap { dev, run: None };
            let taken = slots.take_many(count, |took| match took {
                Took::Free(slot) => assign(slot),
                Took::Idle(slot, name) => {
                    zap.add(name);
                    assign(slot);
                }
            });
            // The pages that lost a slot fault again, before it shows another.
            zap.finish();
            taken
        }
    };
    let assigned = missing.get(..usize::try_from(taken)?).unwrap_or(missing);

    let mut flush = Flush::new(&dev.aperture, Some(gpu));
    let mut shown = match taken == count {
        true => Ok(()),
        false => Err(ENOSPC),
    };
    for &index in assigned {
        let pte = pages.vram.page(index).map(regs::pte);
        shown = shown.and(pte.and_then(|pte| flush.set(pages.vram.hint(index), pte)));
    }
    shown = shown.and_then(|()| flush.finish());
    if shown.is_err() {
        slots.give_back_many(assigned.iter().map(|&index| pages.vram.hint(index)));
        return shown;
    }
    for &index in assigned {
        match pages.name(index) {
            Ok(name) => slots.install(pages.vram.hint(index), name),
            Err(_) => slots.give_back(pages.vram.hint(index)),
        }
    }
    shown
}

/// Pages to show in a fault: the one that was touched first.
struct Group {
    pages: [usize; FAULT_GROUP],
    len: usize,
}

impl Group {
    fn new() -> Self {
        Self {
            pages: [0; FAULT_GROUP],
            len: 0,
        }
    }

    /// Adds a page, if there is room.
    fn push(&mut self, page: usize) {
        if let Some(place) = self.pages.get_mut(self.len) {
            *place = page;
            self.len += 1;
        }
    }

    fn starts_with(&self, page: usize) -> bool {
        self.get().first() == Some(&page)
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn get(&self) -> &[usize] {
        self.pages.get(..self.len).unwrap_or(&[])
    }
}

/// CPU mappings to be removed, by the names of the pages; neighbours at once.
struct Zap<'a> {
    dev: &'a DrmDevice,
    run: Option<Range<u64>>,
}

impl Zap<'_> {
    fn add(&mut self, name: PageName) {
        let name = u64::from(name);
        match &mut self.run {
            Some(run) if run.end == name => run.end = name + 1,
            Some(run) if run.start == name + 1 => run.start = name,
            _ => {
                self.finish();
                self.run = Some(name..name + 1);
            }
        }
    }

    fn finish(&mut self) {
        if let Some(run) = self.run.take() {
            let (start, end) = (run.start << regs::SLOT_SHIFT, run.end << regs::SLOT_SHIFT);
            managed::zap_offsets(self.dev, start..end);
        }
    }
}
