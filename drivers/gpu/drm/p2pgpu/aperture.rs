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
    regs::{
        self,
        Operation,
        PTES_PER_LEAF,
        SLOT_SIZE, //
    },
    slots::{
        Class,
        Counts,
        PageName,
        Released,
        Slot,
        SlotId,
        Slots,
        Storage,
        Took, //
    },
    vram::VramPages, //
};
use kernel::{
    device,
    dma::Coherent,
    drm::gem::managed,
    io::{
        io_write,
        PhysAddr, //
    },
    mm::fault::{
        Fault,
        Outcome, //
    },
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// The tables of the slots are in memory that need not be contiguous.
pub(crate) struct KernelMemory;

impl Storage for KernelMemory {
    type Error = Error;
    const TOO_MANY: Error = EINVAL;
    type Array<T: Copy> = KVVec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<KVVec<T>> {
        Ok(KVVec::from_elem(value, len, GFP_KERNEL)?)
    }
}

/// The slots of a device.
#[pin_data]
pub(crate) struct Aperture {
    /// Held while slots change hands and their entries are flushed, and while page-table entries
    /// of CPU mappings are installed: a slot that is taken has no CPU mapping.
    #[pin]
    slots: Mutex<Slots<KernelMemory>>,
}

/// Names of the pages of an object, from that of its first page.
#[derive(Clone, Copy)]
pub(crate) struct Names(pub(crate) PageName);

impl Names {
    fn of(self, index: usize) -> Result<PageName> {
        let index = PageName::try_from(index)?;
        self.0.checked_add(index).ok_or(EOVERFLOW)
    }
}

impl Aperture {
    /// An aperture of `count` slots, all free.
    pub(crate) fn new(count: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            slots <- new_mutex!(
                Slots::new(u32::try_from(count)?)?,
                "p2pgpu::aperture::slots"
            ),
        }? Error)
    }

    /// Number of slots.
    pub(crate) fn total(&self) -> usize {
        self.slots.lock().total()
    }

    /// Slots that a peer could be given now.
    pub(crate) fn available(&self) -> u32 {
        self.slots.lock().available(Class::Lent)
    }

    /// Slots by state.
    pub(crate) fn counts(&self) -> Counts {
        self.slots.lock().counts()
    }

    /// Calls `each` with the state of every slot, in order.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Slot)) {
        let slots = self.slots.lock();
        let mut id = 0;
        while let Some(slot) = slots.get(id) {
            each(slot);
            id += 1;
        }
    }

    /// Slots that show pages of `vram`, and those that peers hold.
    pub(crate) fn usage(&self, names: Names, vram: &VramPages) -> Result<(u32, u32)> {
        let slots = self.slots.lock();
        let (mut shown, mut held) = (0, 0);
        for index in 0..vram.count() {
            let name = names.of(index)?;
            match slots.get(vram.hint(index)) {
                Some(Slot::Idle { page, .. }) if page == name => shown += 1,
                Some(Slot::Peers { page, .. }) if page == name => {
                    shown += 1;
                    held += 1;
                }
                _ => {}
            }
        }
        Ok((shown, held))
    }

    /// A CPU touched page `index` of `vram`: shows it in a slot and maps that.
    pub(crate) fn fault(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        (names, vram): (Names, &VramPages),
        index: usize,
        fault: &Fault<'_>,
    ) -> Result<Outcome> {
        let name = names.of(index)?;
        let mut slots = self.slots.lock();
        let mut slot = vram.hint(index);
        if !slots.touch(slot, name) {
            slot = take(dev, &mut slots)?;
            let mut flush = Flush::new(Some(gpu));
            let shown = flush
                .set(slot, regs::pte(vram.page(index)?))
                .and_then(|()| flush.finish());
            if let Err(error) = shown {
                slots.give_back(slot);
                return Err(error);
            }
            slots.install(slot, name);
            vram.set_hint(index, slot);
        }
        let phys = gpu.aperture_phys(slot)?;
        let pfn = usize::try_from(phys)? / SLOT_SIZE;
        // SAFETY: The slot is of our BAR and shows the page that faulted. Whoever takes it from the
        // page does so under the lock that we hold, and zaps the page first; so does unbinding.
        Ok(unsafe { fault.insert_pfn(pfn) })
    }

    /// Shows all pages of `vram` for a peer, which holds the slots until [`Aperture::unmap`].
    ///
    /// `ENOSPC`: there are too few slots that can be had; nothing has changed.
    pub(crate) fn map(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        names: Names,
        vram: &VramPages,
    ) -> Result<KVVec<SlotId>> {
        let mut held = KVVec::with_capacity(vram.count(), GFP_KERNEL)?;
        let mut missing = KVVec::new();
        let mut slots = self.slots.lock();

        let found = (|| {
            for index in 0..vram.count() {
                let slot = vram.hint(index);
                if slots.hold(slot, names.of(index)?, Class::Lent) {
                    held.push(slot, GFP_KERNEL)?;
                } else {
                    missing.push(index, GFP_KERNEL)?;
                }
            }
            if u32::try_from(missing.len())? > slots.available(Class::Lent) {
                return Err(ENOSPC);
            }
            self.show_all(dev, gpu, &mut slots, (names, vram), &missing)
        })();
        if let Err(error) = found {
            for slot in held {
                slots.unhold(slot);
            }
            return Err(error);
        }

        // All pages are shown now: list their slots in the order of the pages.
        held.clear();
        for index in 0..vram.count() {
            let slot = vram.hint(index);
            if missing.binary_search(&index).is_ok() {
                slots.hold(slot, names.of(index)?, Class::Lent);
            }
            held.push(slot, GFP_KERNEL)?;
        }
        Ok(held)
    }

    /// Shows the pages `missing` of `vram`, in adjacent slots if there are such. One flush.
    fn show_all(
        &self,
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        slots: &mut Slots<KernelMemory>,
        (names, vram): (Names, &VramPages),
        missing: &[usize],
    ) -> Result {
        let run = slots.take_run(u32::try_from(missing.len())?);
        let mut flush = Flush::new(Some(gpu));
        let shown = (|| {
            let mut next = run;
            for &index in missing {
                let slot = match next {
                    Some(slot) => slot,
                    None => take(dev, slots)?,
                };
                next = next.map(|slot| slot + 1);
                vram.set_hint(index, slot);
                flush.set(slot, regs::pte(vram.page(index)?))?;
            }
            flush.finish()
        })();
        for &index in missing {
            match shown {
                Ok(()) => slots.install(vram.hint(index), names.of(index)?),
                Err(_) => slots.give_back(vram.hint(index)),
            }
        }
        shown
    }

    /// A peer lets go of the slots that [`Aperture::map`] gave it.
    ///
    /// Without hardware the translations are gone already.
    pub(crate) fn unmap(&self, gpu: Option<&Gpu<'_>>, held: &[SlotId]) -> Result {
        let mut slots = self.slots.lock();
        let mut flush = Flush::new(gpu);
        // An error keeps slots from being used again, but not their holders from letting go.
        let mut cleared = Ok(());
        for &slot in held {
            if slots.unhold(slot) == Released::Taken {
                cleared = cleared.and(flush.set(slot, 0));
            }
        }
        cleared.and(flush.finish())?;
        for &slot in held {
            slots.give_back(slot);
        }
        Ok(())
    }

    /// The pages of `vram` leave: their slots become free, or drain while peers hold them.
    ///
    /// The caller has zapped the CPU mappings, and holds off new ones.
    pub(crate) fn release(&self, gpu: Option<&Gpu<'_>>, names: Names, vram: &VramPages) -> Result {
        let mut slots = self.slots.lock();
        let mut flush = Flush::new(gpu);
        let mut cleared = Ok(());
        for index in 0..vram.count() {
            let slot = vram.hint(index);
            if slots.release(slot, names.of(index)?) == Released::Taken {
                cleared = cleared.and(flush.set(slot, 0));
            }
        }
        cleared.and(flush.finish())?;
        for index in 0..vram.count() {
            slots.give_back(vram.hint(index));
        }
        Ok(())
    }
}

/// Takes a slot, from a page that only CPUs map if need be: then they fault again.
fn take(dev: &DrmDevice, slots: &mut Slots<KernelMemory>) -> Result<SlotId> {
    match slots.take().ok_or(ENOSPC)? {
        Took::Free(slot) => Ok(slot),
        Took::Idle(slot, name) => {
            let start = u64::from(name) << regs::SLOT_SHIFT;
            managed::zap_offsets(dev, start..start + SLOT_SIZE as u64);
            Ok(slot)
        }
    }
}

/// Changes of page-table entries, and the slot ranges that have to be flushed for them.
///
/// Needs no memory, so that slots can always be released. Used under the lock of the slots: what
/// is taken when the lock is, was taken by its holder.
struct Flush<'a, 'drm> {
    /// Without hardware there are no translations.
    gpu: Option<&'a Gpu<'drm>>,
    /// The range that grows: first slot and number of slots.
    run: Option<(SlotId, u32)>,
    /// Ranges in the table's list.
    count: usize,
}

impl<'a, 'drm> Flush<'a, 'drm> {
    fn new(gpu: Option<&'a Gpu<'drm>>) -> Self {
        Self {
            gpu,
            run: None,
            count: 0,
        }
    }

    /// Stores the entry of a slot that is taken.
    fn set(&mut self, slot: SlotId, pte: u64) -> Result {
        let Some(gpu) = self.gpu else {
            return Ok(());
        };
        gpu.table.set(slot, pte)?;
        match &mut self.run {
            Some((first, len)) if first.checked_add(*len) == Some(slot) => *len += 1,
            _ => {
                self.close_run(gpu)?;
                self.run = Some((slot, 1));
            }
        }
        Ok(())
    }

    fn close_run(&mut self, gpu: &Gpu<'_>) -> Result {
        let Some((first, len)) = self.run.take() else {
            return Ok(());
        };
        if self.count == gpu.table.ranges.len() {
            self.execute(gpu)?;
        }
        io_write!(gpu.table.ranges, [try: self.count], regs::slot_range(first, len));
        self.count += 1;
        Ok(())
    }

    fn execute(&mut self, gpu: &Gpu<'_>) -> Result {
        let count = core::mem::take(&mut self.count);
        if count == 0 {
            return Ok(());
        }
        let flush = || {
            let ranges = gpu.table.ranges.dma_address();
            gpu.aperture_ring.run(Operation::Flush, count, ranges)
        };
        // What the slots show must not be left open. The second time finds the ring restarted.
        flush().or_else(|_| flush())
    }

    /// Makes the changes take effect: one doorbell, unless they lie in more than 65,536 pieces.
    fn finish(&mut self) -> Result {
        if let Some(gpu) = self.gpu {
            self.close_run(gpu)?;
            self.execute(gpu)?;
        }
        Ok(())
    }
}

/// The page table of a bound device, in memory that the device reads.
pub(crate) struct PageTable {
    root: Coherent<[u64]>,
    leaves: KVVec<Coherent<[u64]>>,
    /// Slot ranges of a flush. Used under the lock of the slots.
    ranges: Coherent<[u64]>,
}

impl PageTable {
    /// A table for `count` slots, none of them installed.
    pub(crate) fn new(dev: &device::Device<device::Bound>, count: usize) -> Result<Self> {
        let leaf_count = count.div_ceil(PTES_PER_LEAF);
        // The device wants the root aligned to a page: coherent memory of whole pages is.
        let root_len = leaf_count.next_multiple_of(PTES_PER_LEAF);
        let root: Coherent<[u64]> = Coherent::zeroed_slice(dev, root_len, GFP_KERNEL)?;
        let mut leaves = KVVec::with_capacity(leaf_count, GFP_KERNEL)?;
        for index in 0..leaf_count {
            let leaf: Coherent<[u64]> = Coherent::zeroed_slice(dev, PTES_PER_LEAF, GFP_KERNEL)?;
            io_write!(root, [try: index], leaf.dma_address().to_le());
            leaves.push(leaf, GFP_KERNEL)?;
        }
        Ok(Self {
            root,
            leaves,
            ranges: Coherent::zeroed_slice(dev, count.min(regs::LIST_MAX), GFP_KERNEL)?,
        })
    }

    /// DMA address of the root.
    pub(crate) fn root(&self) -> u64 {
        self.root.dma_address()
    }

    fn set(&self, slot: SlotId, pte: u64) -> Result {
        let slot = usize::try_from(slot)?;
        let leaf = self.leaves.get(slot / PTES_PER_LEAF).ok_or(EINVAL)?;
        io_write!(leaf, [try: slot % PTES_PER_LEAF], pte.to_le());
        Ok(())
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
