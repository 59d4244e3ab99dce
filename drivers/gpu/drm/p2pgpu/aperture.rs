// SPDX-License-Identifier: GPL-2.0

//! The aperture: pages of VRAM shown in slots of BAR 2, to CPUs and to peers.
//!
//! The state of the slots outlives the hardware: importers may unmap after the device is gone.
//! The page table and the ring that flushes it belong to the bound device.

mod lease;
mod promise;
mod show;

pub(crate) use self::{
    lease::{
        Kept,
        Lease, //
    },
    show::NotShown, //
};

use crate::{
    driver::Gpu,
    memory::KernelMemory,
    regs::{
        SLOT_SHIFT,
        SLOT_SIZE, //
    },
    slots::{
        lease::Quiet,
        state,
        Class,
        Counts,
        PageName,
        Slot,
        SlotId, //
    },
    vram::VramPages, //
};
use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::{
    new_mutex,
    pci::p2pdma::Ranges,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        Mutex, //
    }, //
};

/// The slots of a device.
#[pin_data]
pub(crate) struct Aperture {
    /// Held while slots change hands and their entries are flushed, and while page-table entries
    /// of CPU mappings are installed: a slot that is taken has no CPU mapping.
    #[pin]
    state: Mutex<State>,
    /// Nobody holds the lock to change slots, nothing is claimed, no slot drains, and slots can be
    /// changed.
    quiet: Quiet<KernelMemory>,
    /// A flush did not complete: what its slots show is not known, so that nothing is shown any
    /// more. Set under the lock of the slots, for as long as the device is bound.
    broken: Atomic<bool>,
    /// The device is being reset: it forgets all translations. Set as `broken` is.
    suspended: Atomic<bool>,
}

type State = state::State<KernelMemory, Arc<lease::Inner>, { lease::MAX_KNOWN }>;

/// The slots, for somebody who may change them. Leases are neither set aside nor taken meanwhile
/// but by its holder.
struct Locked<'a> {
    aperture: &'a Aperture,
    state: Guard<'a, State, MutexBackend>,
}

impl<'a> Locked<'a> {
    fn new(aperture: &'a Aperture) -> Self {
        let state = aperture.state.lock();
        aperture.quiet.end();
        Self { aperture, state }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.state.may_be_quiet() && self.aperture.check().is_ok() {
            self.aperture.quiet.begin();
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

impl Aperture {
    /// An aperture of `count` slots, all free.
    pub(crate) fn new(count: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            state <- new_mutex!(
                State::new(u32::try_from(count)?)?,
                "p2pgpu::aperture::state"
            ),
            quiet: Quiet::new(),
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
        let _state = self.lock();
        self.suspended.store(true, Relaxed);
    }

    /// Whether the device is being reset. Under the lock of the slots.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed)
    }

    /// After a reset: the device has forgotten all translations.
    pub(crate) fn resume(&self, gpu: &Gpu<'_>) -> Result {
        let mut state = self.lock();
        gpu.table.clear()?;
        state.slots.forget();
        self.broken.store(false, Relaxed);
        self.suspended.store(false, Relaxed);
        Ok(())
    }

    /// After a reset that has failed.
    pub(crate) fn give_up(&self) {
        let _state = self.lock();
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

    /// The slots, none of which is held by a lease that was set aside.
    fn lock(&self) -> Locked<'_> {
        let mut state = Locked::new(self);
        state.settle();
        state
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
        self.lock().available(Class::Lent)
    }

    /// Slots by state.
    pub(crate) fn counts(&self) -> Counts {
        self.lock().slots.counts()
    }

    /// Slots that are claimed.
    pub(crate) fn claimed(&self) -> u32 {
        self.state.lock().claimed()
    }

    /// Calls `each` with the state of every slot, in order.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Slot)) {
        let state = self.lock();
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
        let state = self.lock();
        let (mut shown, mut held) = (0, 0);
        for index in 0..pages.vram.count() {
            let slot = state.slots.get(pages.vram.hint(index));
            shown += u32::from(shows(slot, pages.name(index)?));
            held += u32::from(holds(slot, pages.name(index)?).is_some());
        }
        Ok((shown, held))
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

/// The aperture's ranges that `slots` make up, in their order.
fn ranges(gpu: &Gpu<'_>, slots: &[SlotId]) -> Result<Ranges> {
    let mut ranges = gpu.provider.ranges();
    for &slot in slots {
        ranges.push(u64::from(slot) << SLOT_SHIFT, SLOT_SIZE)?;
    }
    Ok(ranges)
}
