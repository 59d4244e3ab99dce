// SPDX-License-Identifier: GPL-2.0

//! VRAM: which pages are free, and which an object has.

use crate::{
    engine::Extent,
    regs::{
        Place,
        SLOT_SHIFT,
        SLOT_SIZE, //
    },
    slots::SlotId, //
};
use core::ops::Range;
use kernel::{
    cgroup::dmem::Charge,
    gpu::buddy::{
        AllocatedBlocks,
        GpuBuddy,
        GpuBuddyAllocFlags,
        GpuBuddyAllocMode,
        GpuBuddyParams, //
    },
    prelude::*,
    ptr::Alignment,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// The allocator of VRAM pages.
pub(crate) struct Vram {
    buddy: GpuBuddy,
    /// Bytes that are allocated, but not an object's yet.
    in_transit: Arc<Atomic<u64>>,
}

/// Counts pages that are not an object's yet.
struct Transit {
    all: Arc<Atomic<u64>>,
    bytes: Atomic<u64>,
}

impl Transit {
    fn new(all: Arc<Atomic<u64>>, bytes: u64) -> Self {
        all.fetch_add(bytes, Relaxed);
        Self {
            all,
            bytes: Atomic::new(bytes),
        }
    }

    fn end(&self) {
        let bytes = self.bytes.xchg(0, Relaxed);
        self.all.fetch_add(bytes.wrapping_neg(), Relaxed);
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        self.end();
    }
}

impl Vram {
    /// An allocator of `size` bytes, a multiple of the page size.
    pub(crate) fn new(size: u64) -> Result<Self> {
        Ok(Self {
            buddy: GpuBuddy::new(GpuBuddyParams {
                base_offset: 0,
                size,
                chunk_size: Alignment::new::<SLOT_SIZE>(),
            })?,
            in_transit: Arc::new(Atomic::new(0), GFP_KERNEL)?,
        })
    }

    /// Size of VRAM in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.buddy.size()
    }

    /// Bytes that nobody has.
    pub(crate) fn free(&self) -> u64 {
        self.buddy.avail()
    }

    /// Bytes that are allocated, but not an object's yet: they may be free, or those of one that can
    /// leave, in a moment.
    pub(crate) fn in_transit(&self) -> u64 {
        self.in_transit.load(Relaxed)
    }

    /// Allocates `count` pages, not 0, for which a cgroup is charged as long as they are not free.
    /// They hold what was there before. `ENOSPC`: too few.
    pub(crate) fn alloc(&self, count: usize, charge: Charge) -> Result<VramPages> {
        let size = u64::try_from(count)? << SLOT_SHIFT;
        let transit = Transit::new(self.in_transit.clone(), size);
        let blocks = KBox::pin_init(
            self.buddy.alloc_blocks(
                GpuBuddyAllocMode::Simple,
                size,
                Alignment::new::<SLOT_SIZE>(),
                GpuBuddyAllocFlags::default(),
            ),
            GFP_KERNEL,
        )?;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL)?;
        let mut hints = KVVec::with_capacity(count, GFP_KERNEL)?;
        for block in blocks.iter() {
            let first = u32::try_from(block.offset() >> SLOT_SHIFT)?;
            let len = u32::try_from(block.size() >> SLOT_SHIFT)?;
            for page in first..first.checked_add(len).ok_or(EOVERFLOW)? {
                pages.push(page, GFP_KERNEL)?;
                hints.push(Atomic::new(SlotId::MAX), GFP_KERNEL)?;
            }
        }
        if pages.len() != count {
            return Err(EINVAL);
        }
        Ok(VramPages {
            pages,
            hints,
            _blocks: blocks,
            _charge: charge,
            transit,
        })
    }
}

/// VRAM pages of an object, in the object's order. Dropping it frees them: by then no slot shows
/// them and no work uses them.
pub(crate) struct VramPages {
    pages: KVVec<u32>,
    /// For each page the slot that was the last to show it. Only a hint: whether the slot still
    /// does is the aperture's to say.
    hints: KVVec<Atomic<u32>>,
    _blocks: Pin<KBox<AllocatedBlocks>>,
    _charge: Charge,
    transit: Transit,
}

impl VramPages {
    /// Number of pages.
    pub(crate) fn count(&self) -> usize {
        self.pages.len()
    }

    /// They are an object's now.
    pub(crate) fn placed(&self) {
        self.transit.end();
    }

    /// Number of page `index` in VRAM.
    pub(crate) fn page(&self, index: usize) -> Result<u32> {
        self.pages.get(index).copied().ok_or(EINVAL)
    }

    /// The slot that may show page `index`.
    pub(crate) fn hint(&self, index: usize) -> SlotId {
        self.hints
            .get(index)
            .map_or(SlotId::MAX, |hint| hint.load(Relaxed))
    }

    /// Remembers the slot that shows page `index`.
    pub(crate) fn set_hint(&self, index: usize, slot: SlotId) {
        if let Some(hint) = self.hints.get(index) {
            hint.store(slot, Relaxed);
        }
    }

    /// Where the bytes `range` of the object lie, adjacent pages in one piece.
    ///
    /// The range is not past the end.
    pub(crate) fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + '_ {
        let mut at = range.start;
        core::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let mut index = usize::try_from(at >> SLOT_SHIFT).ok()?;
            let mut page = *self.pages.get(index)?;
            let in_page = at & (SLOT_SIZE as u64 - 1);
            let place = Place::Vram((u64::from(page) << SLOT_SHIFT) + in_page);
            let mut end = at - in_page + SLOT_SIZE as u64;
            while end < range.end {
                index += 1;
                let next = *self.pages.get(index)?;
                if Some(next) != page.checked_add(1) {
                    break;
                }
                page = next;
                end += SLOT_SIZE as u64;
            }
            let len = end.min(range.end) - at;
            at += len;
            Some(Extent { place, len })
        })
    }
}
