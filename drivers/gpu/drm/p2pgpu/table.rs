// SPDX-License-Identifier: GPL-2.0

//! The page table of the aperture, and the flushes that make its changes take effect.

use crate::{
    activity::Counter,
    aperture::Aperture,
    driver::Gpu,
    regs::{
        self,
        Operation,
        PTES_PER_LEAF, //
    },
    slots::SlotId, //
};
use kernel::{
    device,
    dma::Coherent,
    io::io_write,
    prelude::*, //
};

/// Changes of page-table entries, and the slot ranges that have to be flushed for them.
///
/// Needs no memory, so that slots can always be released. Used under the lock of the slots: what
/// is taken when the lock is, was taken by its holder.
pub(crate) struct Flush<'a, 'drm> {
    aperture: &'a Aperture,
    /// Without hardware there are no translations.
    gpu: Option<&'a Gpu<'drm>>,
    /// The range that grows: first slot and number of slots.
    run: Option<(SlotId, u32)>,
    /// Ranges in the table's list.
    count: usize,
}

impl<'a, 'drm> Flush<'a, 'drm> {
    pub(crate) fn new(aperture: &'a Aperture, gpu: Option<&'a Gpu<'drm>>) -> Self {
        Self {
            aperture,
            gpu,
            run: None,
            count: 0,
        }
    }

    /// Stores the entry of a slot that is taken.
    pub(crate) fn set(&mut self, slot: SlotId, pte: u64) -> Result {
        let Some(gpu) = self.gpu else {
            return Ok(());
        };
        if self.aperture.is_suspended() {
            // Only takes something away: nothing is shown now. So does the reset.
            return Ok(());
        }
        self.aperture.check()?;
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
            gpu.table.flushes.up();
            gpu.aperture_ring.run(Operation::Flush, count, ranges)
        };
        // What the slots show must not be left open. The second time finds the ring restarted.
        flush().or_else(|_| flush()).inspect_err(|_| {
            self.aperture.set_broken();
            dev_err!(
                gpu.dev(),
                "a flush fails: the aperture is not used any more\n"
            );
        })
    }

    /// Makes the changes take effect: one doorbell, unless they lie in more than 65,536 pieces.
    pub(crate) fn finish(&mut self) -> Result {
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
    /// Flushes so far.
    pub(crate) flushes: Counter,
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
            flushes: Counter::new(),
        })
    }

    /// DMA address of the root.
    pub(crate) fn root(&self) -> u64 {
        self.root.dma_address()
    }

    /// Nothing is shown in any slot; takes effect in the device when it is reset.
    pub(crate) fn clear(&self) -> Result {
        for leaf in &self.leaves {
            for index in 0..PTES_PER_LEAF {
                io_write!(leaf, [try: index], 0);
            }
        }
        Ok(())
    }

    fn set(&self, slot: SlotId, pte: u64) -> Result {
        let slot = usize::try_from(slot)?;
        let leaf = self.leaves.get(slot / PTES_PER_LEAF).ok_or(EINVAL)?;
        io_write!(leaf, [try: slot % PTES_PER_LEAF], pte.to_le());
        Ok(())
    }
}
