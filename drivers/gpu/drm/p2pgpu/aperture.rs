// SPDX-License-Identifier: GPL-2.0

//! The aperture: pages of VRAM shown in slots of BAR 2, to CPUs and to peers.
//!
//! The state of the slots outlives the hardware: importers may unmap after the device is gone.
//! The page table and the ring that flushes it belong to the bound device.

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
        Counts,
        NoPromise,
        PageName,
        Released,
        Slot,
        SlotId,
        Slots,
        Took, //
    },
    table::Flush,
    vram::VramPages, //
};
use core::ops::Range;
use kernel::{
    drm::gem::managed,
    io::PhysAddr,
    mm::fault::{
        Fault,
        Outcome, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    }, //
};

/// Pages that a CPU's fault shows at once, if slots can be had cheaply: an aligned group.
const FAULT_GROUP: usize = 16;

/// The slots of a device.
#[pin_data]
pub(crate) struct Aperture {
    /// Held while slots change hands and their entries are flushed, and while page-table entries
    /// of CPU mappings are installed: a slot that is taken has no CPU mapping.
    #[pin]
    state: Mutex<State>,
    /// A flush did not complete: what its slots show is not known, so that nothing is shown any
    /// more. Set under the lock of the slots, for as long as the device is bound.
    broken: Atomic<bool>,
    /// The device is being reset: it forgets all translations. Set as `broken` is.
    suspended: Atomic<bool>,
}

struct State {
    slots: Slots<KernelMemory>,
    /// Slots that are about to be promised or to drain, and are not lent meanwhile.
    claimed: u32,
}

impl State {
    /// Slots that can be taken and then held as `class`, claims of others being kept.
    fn available(&self, class: Class) -> u32 {
        let available = self.slots.available(class);
        match class {
            Class::Lent => available.saturating_sub(self.claimed),
            Class::Promised => available,
        }
    }
}

/// Names of the pages of an object, from that of its first page.
#[derive(Clone, Copy)]
pub(crate) struct Names(pub(crate) PageName);

/// Pages of VRAM by their names.
#[derive(Clone, Copy)]
pub(crate) struct NamedPages<'a> {
    pub(crate) names: Names,
    pub(crate) vram: &'a VramPages,
}

impl NamedPages<'_> {
    fn name(&self, index: usize) -> Result<PageName> {
        let index = PageName::try_from(index)?;
        self.names.0.checked_add(index).ok_or(EOVERFLOW)
    }
}

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

/// Slots that are not lent to anybody while this lives.
pub(crate) struct Claim<'a> {
    aperture: &'a Aperture,
    count: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.aperture.state.lock();
        state.claimed = state.claimed.saturating_sub(self.count);
    }
}

impl Aperture {
    /// An aperture of `count` slots, all free.
    pub(crate) fn new(count: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            state <- new_mutex!(
                State {
                    slots: Slots::new(u32::try_from(count)?)?,
                    claimed: 0,
                },
                "p2pgpu::aperture::state"
            ),
            broken: Atomic::new(false),
            suspended: Atomic::new(false),
        }? Error)
    }

    /// Whether slots can no longer be changed.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Slots can no longer be changed. Under the lock of the slots.
    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Relaxed);
    }

    /// Before a reset, when importers have been told: nothing is shown until it is over. The caller
    /// zaps the CPU mappings next.
    pub(crate) fn suspend(&self) {
        let _state = self.state.lock();
        self.suspended.store(true, Relaxed);
    }

    /// Whether the device is being reset. Under the lock of the slots.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed)
    }

    /// After a reset: the device has forgotten all translations.
    pub(crate) fn resume(&self, gpu: &Gpu<'_>) -> Result {
        let mut state = self.state.lock();
        gpu.table.clear()?;
        state.slots.forget();
        self.broken.store(false, Relaxed);
        self.suspended.store(false, Relaxed);
        Ok(())
    }

    /// After a reset that has failed.
    pub(crate) fn give_up(&self) {
        let _state = self.state.lock();
        self.broken.store(true, Relaxed);
        self.suspended.store(false, Relaxed);
    }

    /// `EIO`, if slots can no longer be changed; `EAGAIN`, if they cannot for now. Under the lock
    /// of the slots.
    pub(crate) fn check(&self) -> Result {
        if self.is_suspended() {
            return Err(EAGAIN);
        }
        if self.is_broken() {
            return Err(EIO);
        }
        Ok(())
    }

    /// Number of slots.
    pub(crate) fn total(&self) -> usize {
        self.state.lock().slots.total()
    }

    /// Slots that can be lent now, without taking any from other peers.
    pub(crate) fn available(&self) -> u32 {
        if self.is_broken() {
            return 0;
        }
        self.state.lock().available(Class::Lent)
    }

    /// Slots by state.
    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().slots.counts()
    }

    /// Slots that are claimed.
    pub(crate) fn claimed(&self) -> u32 {
        self.state.lock().claimed
    }

    /// Calls `each` with the state of every slot, in order.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Slot)) {
        let state = self.state.lock();
        let mut id = 0;
        while let Some(slot) = state.slots.get(id) {
            each(slot);
            id += 1;
        }
    }

    /// A copy of all slots, in order.
    pub(crate) fn copy(&self) -> Result<KVVec<Slot>> {
        let mut copy = KVVec::with_capacity(self.total(), GFP_KERNEL)?;
        // There is room: the number of slots does not change.
        let mut whole = true;
        self.for_each(|slot| whole &= copy.push_within_capacity(slot).is_ok());
        whole.then_some(copy).ok_or(EINVAL)
    }

    /// Slots that show pages of the object, and those that peers hold.
    pub(crate) fn usage(&self, pages: NamedPages<'_>) -> Result<(u32, u32)> {
        let state = self.state.lock();
        let (mut shown, mut held) = (0, 0);
        for index in 0..pages.vram.count() {
            let slot = state.slots.get(pages.vram.hint(index));
            shown += u32::from(shows(slot, pages.name(index)?));
            held += u32::from(holds(slot, pages.name(index)?).is_some());
        }
        Ok((shown, held))
    }

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
        let mut state = self.state.lock();
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

    /// Shows the pages `range` for a peer, which holds the slots until [`Aperture::unmap`].
    ///
    /// On an error nothing has changed.
    pub(crate) fn map(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        pages: NamedPages<'_>,
        range: Range<usize>,
        class: Class,
    ) -> Result<KVVec<SlotId>, NotShown> {
        let mut held = KVVec::with_capacity(range.len(), GFP_KERNEL)?;
        let mut missing = KVVec::new();
        let mut state = self.state.lock();
        self.check()?;

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

    /// A peer lets go of the slots that [`Aperture::map`] gave it.
    ///
    /// Without hardware the translations are gone already.
    pub(crate) fn unmap(&self, gpu: Option<&Gpu<'_>>, held: &[SlotId]) -> Result {
        let mut state = self.state.lock();
        let slots = &mut state.slots;
        let mut flush = Flush::new(self, gpu);
        // An error keeps slots from being used again, but not their holders from letting go.
        let mut cleared = Ok(());
        for &slot in held {
            if slots.unhold(slot) == Released::Taken {
                cleared = cleared.and(flush.set(slot, 0));
            }
        }
        cleared.and(flush.finish())?;
        slots.give_back_many(held.iter().copied());
        Ok(())
    }

    /// The pages leave: their slots become free, or drain while peers hold them.
    ///
    /// The caller has zapped the CPU mappings, and holds off new ones. The slots that drain of an
    /// object that is promised were claimed.
    pub(crate) fn release(&self, gpu: Option<&Gpu<'_>>, pages: NamedPages<'_>) -> Result {
        let mut state = self.state.lock();
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

    /// Keeps `count` slots from being lent, whatever is lent already.
    pub(crate) fn claim(&self, count: u32) -> Claim<'_> {
        let mut state = self.state.lock();
        state.claimed = state.claimed.saturating_add(count);
        Claim {
            aperture: self,
            count,
        }
    }

    /// Claims the slots that will drain if the pages of a promised object leave now, as peers
    /// hold them. `EBUSY`: with them the promises could not be kept.
    pub(crate) fn claim_drain(&self, pages: NamedPages<'_>) -> Result<Claim<'_>> {
        let mut state = self.state.lock();
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
        let mut state = self.state.lock();
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
        let slots = &mut self.state.lock().slots;
        slots.unpromise(count);
        reclass(slots, shown, Class::Lent);
    }
}

/// Whether `slot` shows the page `name`.
fn shows(slot: Option<Slot>, name: PageName) -> bool {
    matches!(slot, Some(Slot::Idle { page, .. } | Slot::Peers { page, .. }) if page == name)
}

/// What the slot counts as, if it shows the page `name` and peers hold it.
fn holds(slot: Option<Slot>, name: PageName) -> Option<Class> {
    match slot {
        Some(Slot::Peers { page, class, .. }) if page == name => Some(class),
        _ => None,
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

/// The aperture's ranges that `slots` make up, in their order, adjacent ones merged: physical
/// address and length in bytes.
pub(crate) fn ranges(gpu: &Gpu<'_>, slots: &[SlotId]) -> Result<KVVec<(PhysAddr, usize)>> {
    let mut ranges: KVVec<(PhysAddr, usize)> = KVVec::new();
    let mut previous = None;
    for &slot in slots {
        match ranges.last_mut() {
            Some((_, len)) if previous.and_then(|p: SlotId| p.checked_add(1)) == Some(slot) => {
                *len = len.checked_add(SLOT_SIZE).ok_or(EOVERFLOW)?;
            }
            _ => ranges.push((gpu.aperture_phys(slot)?, SLOT_SIZE), GFP_KERNEL)?,
        }
        previous = Some(slot);
    }
    Ok(ranges)
}
