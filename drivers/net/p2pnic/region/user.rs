// SPDX-License-Identifier: GPL-2.0

//! Ranges of user addresses: ordinary memory, that of devices whose drivers map it for others, or
//! both.
//!
//! Addresses are taken back in the middle of whatever the memory management does, memory reclaim
//! for one, and given in the same context: neither allocates memory, nor takes a lock under which
//! somebody does.

use super::MemoryRegion;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        Coherent,
        DmaAddress, //
    },
    io::{
        io_project,
        Io, //
    },
    mm::p2p::{
        Importer,
        Region, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// What the memory management calls.
struct Callbacks {
    region: Arc<MemoryRegion>,
    /// Room for the addresses, which the device reads.
    list: Coherent<[[u64; 2]]>,
}

impl Callbacks {
    fn set(&self, place: usize, start: DmaAddress, length: u64) -> Result {
        io_project!(self.list, [try: place]).copy_write([start, length].map(u64::to_le));
        Ok(())
    }
}

impl Importer for Callbacks {
    /// `E2BIG`: the device does not take so many ranges.
    fn publish(&self, pages: &[DmaAddress]) -> Result {
        let page = u64::try_from(PAGE_SIZE)?;
        let mut count = 0;
        let mut range: Option<(DmaAddress, u64)> = None;
        let mut add = |(start, length)| {
            if count == self.list.len() {
                return Err(E2BIG);
            }
            self.set(count, start, length)?;
            count += 1;
            Ok(())
        };
        for &address in pages {
            match &mut range {
                Some((start, length)) if start.checked_add(*length) == Some(address) => {
                    *length += page;
                }
                _ => {
                    if let Some(done) = range.replace((address, page)) {
                        add(done)?;
                    }
                }
            }
        }
        if let Some(done) = range {
            add(done)?;
        }
        self.region.load_list(&self.list, u32::try_from(count)?)
    }

    fn invalidate(&self) {
        self.region.invalidate();
    }
}

/// A range of user addresses that the device uses.
pub(super) struct UserRange(Pin<KBox<Region<Callbacks>>>);

impl UserRange {
    /// Of the current task. `EINVAL`: it is not in its address space.
    ///
    /// # Safety
    ///
    /// The device stays bound until the value is dropped.
    pub(super) unsafe fn new(
        dev: &Device<Bound>,
        region: Arc<MemoryRegion>,
        max_segments: u32,
    ) -> Result<Self> {
        let (start, length) = (
            usize::try_from(region.shape.offset)?,
            usize::try_from(region.shape.size)?,
        );
        let range = start..start.checked_add(length).ok_or(EINVAL)?;
        let writes = region.shape.writes();
        let room = usize::try_from(max_segments)?.min(length / PAGE_SIZE);
        let callbacks = Callbacks {
            region,
            list: Coherent::zeroed_slice(dev, room, GFP_KERNEL)?,
        };
        let task = current!();
        let mm = task.mm().ok_or(EINVAL)?;
        // SAFETY: By the safety requirement.
        Ok(Self(unsafe {
            Region::new(dev, mm, range, writes, callbacks)?
        }))
    }

    /// Maps it, unless it is mapped.
    pub(super) fn map(&self) -> Result {
        self.0.map()
    }
}
