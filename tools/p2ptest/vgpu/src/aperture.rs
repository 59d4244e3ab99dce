// SPDX-License-Identifier: GPL-2.0

//! The aperture: what BAR2 shows, what a flush does to it, and where a page lives meanwhile.
//!
//! Three parties meet here. Region handlers access slots, engines access VRAM, and a flush changes
//! translations; in mapped mode it moves pages too. All take the lock of the translations, a flush
//! for a few slots at a time, and nobody holds it over a DMA: this module knows none.

use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use p2p_vfio_user::SharedMemory;

use crate::counters::Counters;
use crate::faults::{Fault, Faults};
use crate::ratelimit::warn_limited;
use crate::regs::{
    Counter, FaultKind, PAGE_BYTES, PAGE_SHIFT, PAGE_SIZE, POISON, PTE_PAGE, PTE_VALID,
};
use crate::sync::{lock, read, write};
use crate::tlb::Tlb;
use crate::vram::{Memory, MemoryError};

/// Slots that are changed under one hold of the lock.
const BATCH: usize = 32;

/// An engine was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Asked at each chunk boundary of long work.
pub trait Checkpoint {
    /// Whether the work may go on.
    fn reached(&self) -> Result<(), Stopped>;
}

/// A page-table entry as found in memory, for one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pte {
    /// The slot.
    pub slot: u32,
    /// The entry. The upper level's, if it is that which is malformed.
    pub entry: u64,
    /// The slot's leaf could not be found: `entry` is the upper level's.
    pub lost: bool,
}

/// Where the bytes of a piece of VRAM are: offset in that memory.
enum Home {
    Vram(u64),
    Slots(u64),
}

/// The aperture, the VRAM behind it, and the translations.
#[derive(Debug)]
pub struct Aperture {
    vram: Memory,
    /// The slots' own memory: there is some in mapped mode only.
    window: Option<Arc<SharedMemory>>,
    slots: u32,
    tlb: RwLock<Tlb>,
    flush: Mutex<()>,
    faults: Arc<Faults>,
    counters: Arc<Counters>,
}

impl Aperture {
    /// An aperture of `slots` empty slots over `vram`. With a `window`, of exactly the slots' size,
    /// it is in mapped mode.
    pub fn new(
        vram: Memory,
        window: Option<Arc<SharedMemory>>,
        slots: u32,
        faults: Arc<Faults>,
        counters: Arc<Counters>,
    ) -> Self {
        let aperture = Self {
            vram,
            window,
            slots,
            tlb: RwLock::new(Tlb::new(slots)),
            flush: Mutex::new(()),
            faults,
            counters,
        };
        if let Some(window) = &aperture.window {
            for slot in 0..slots {
                aperture.poison(window, slot);
            }
        }
        aperture
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The slots' memory, for the client to map; none in trapped mode.
    pub fn window(&self) -> Option<&Arc<SharedMemory>> {
        self.window.as_ref()
    }

    /// Bytes of VRAM.
    pub fn vram_size(&self) -> u64 {
        self.vram.len()
    }

    /// Whether `len` bytes from `offset` lie in VRAM.
    pub fn vram_contains(&self, offset: u64, len: u64) -> bool {
        self.vram.contains(offset, len)
    }

    /// A message that reads BAR2.
    pub fn bar_read(&self, offset: u64, data: &mut [u8]) {
        self.counters.add(Counter::ApertureReads, 1);
        self.counters
            .add(Counter::ApertureReadBytes, data.len() as u64);
        let len = data.len();
        let ok = self.bar_access(offset, len, false, |at| match at {
            Home::Vram(at) => self.vram.read(at, data).is_ok(),
            Home::Slots(at) => self
                .window
                .as_ref()
                .is_some_and(|w| w.read(at, data).is_ok()),
        });
        if !ok {
            data.fill(0xff);
        }
    }

    /// A message that writes BAR2.
    pub fn bar_write(&self, offset: u64, data: &[u8]) {
        self.counters.add(Counter::ApertureWrites, 1);
        self.counters
            .add(Counter::ApertureWriteBytes, data.len() as u64);
        self.bar_access(offset, data.len(), true, |at| match at {
            Home::Vram(at) => self.vram.write(at, data).is_ok(),
            Home::Slots(at) => self
                .window
                .as_ref()
                .is_some_and(|w| w.write(at, data).is_ok()),
        });
    }

    /// Translates and checks a message, and runs `access` under the lock.
    fn bar_access(
        &self,
        offset: u64,
        len: usize,
        write: bool,
        access: impl FnOnce(Home) -> bool,
    ) -> bool {
        let size = u64::from(self.slots) << PAGE_SHIFT;
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            warn_limited!("BAR2 access past its end: {offset:#x}+{len:#x}");
            return false;
        }
        if self.window.is_some() {
            // The client maps this memory; a message is the same access by another way.
            return access(Home::Slots(offset));
        }

        // Below the size of the aperture: at most 2^20 slots.
        let slot = (offset >> PAGE_SHIFT) as u32;
        let inside = offset % PAGE_SIZE;
        let tlb = read(&self.tlb);
        match tlb.page(slot) {
            Some(page) if inside + len as u64 <= PAGE_SIZE => {
                access(Home::Vram((u64::from(page) << PAGE_SHIFT) + inside))
            }
            _ => {
                drop(tlb);
                let size = u16::try_from(len).unwrap_or(u16::MAX);
                let kind = FaultKind::InvalidSlot;
                self.faults.push(Fault {
                    kind,
                    write,
                    size,
                    slot,
                    addr: offset,
                });
                false
            }
        }
    }

    /// An engine reads VRAM, wherever its pages live.
    pub fn vram_read(&self, offset: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let Some(window) = &self.window else {
            return self.vram.read(offset, data);
        };
        self.vram_check(offset, data.len())?;
        let tlb = read(&self.tlb);
        for (home, start, len) in pieces(&tlb, offset, data.len()) {
            let part = &mut data[start..start + len];
            match home {
                Home::Vram(at) => self.vram.read(at, part)?,
                Home::Slots(at) => window.read(at, part).map_err(outside)?,
            }
        }
        Ok(())
    }

    /// An engine writes VRAM, wherever its pages live.
    pub fn vram_write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        let Some(window) = &self.window else {
            return self.vram.write(offset, data);
        };
        self.vram_check(offset, data.len())?;
        let tlb = read(&self.tlb);
        for (home, start, len) in pieces(&tlb, offset, data.len()) {
            let part = &data[start..start + len];
            match home {
                Home::Vram(at) => self.vram.write(at, part)?,
                Home::Slots(at) => window.write(at, part).map_err(outside)?,
            }
        }
        Ok(())
    }

    fn vram_check(&self, offset: u64, len: usize) -> Result<(), MemoryError> {
        if self.vram.contains(offset, len as u64) {
            Ok(())
        } else {
            Err(MemoryError::OutOfRange { offset, len })
        }
    }

    /// Begins a flush: until the guard is dropped there is no other. It is taken before the page
    /// table is read, so that an older reading of an entry never replaces a newer one.
    pub fn begin_flush(&self) -> MutexGuard<'_, ()> {
        lock(&self.flush)
    }

    /// Makes entries take effect: first all slots whose translation ends are emptied, then the new
    /// translations are installed, in the order of `ptes`, which names each slot at most once. A
    /// slot whose entry is what it shows already is left alone.
    pub fn apply(
        &self,
        _flush: &MutexGuard<'_, ()>,
        ptes: &[Pte],
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), Stopped> {
        // (entry, whether the slot's change is counted already)
        let mut rest: Vec<(Pte, bool)> = Vec::new();
        for batch in ptes.chunks(BATCH) {
            checkpoint.reached()?;
            let mut tlb = write(&self.tlb);
            for pte in batch {
                let shown = tlb.page(pte.slot);
                if shown.is_some() && shown == self.page_of(pte).ok().flatten() {
                    continue;
                }
                if shown.is_some() {
                    self.remove(&mut tlb, pte.slot);
                    self.counters.add(Counter::PtesChanged, 1);
                }
                if pte.entry != 0 || pte.lost {
                    rest.push((*pte, shown.is_some()));
                }
            }
        }
        for batch in rest.chunks(BATCH) {
            checkpoint.reached()?;
            let mut tlb = write(&self.tlb);
            for (pte, counted) in batch {
                if self.install(&mut tlb, pte) && !counted {
                    self.counters.add(Counter::PtesChanged, 1);
                }
            }
        }
        Ok(())
    }

    /// The page that an entry names, none if the entry is empty.
    fn page_of(&self, pte: &Pte) -> Result<Option<u32>, FaultKind> {
        if pte.entry == 0 && !pte.lost {
            return Ok(None);
        }
        let offset = pte.entry & PTE_PAGE;
        let bad = pte.lost
            || pte.entry & PTE_VALID == 0
            || pte.entry & !(PTE_PAGE | PTE_VALID) != 0
            || !self.vram.contains(offset, PAGE_SIZE);
        match u32::try_from(offset >> PAGE_SHIFT) {
            Ok(page) if !bad => Ok(Some(page)),
            _ => Err(FaultKind::BadPte),
        }
    }

    fn install(&self, tlb: &mut Tlb, pte: &Pte) -> bool {
        let slot = pte.slot;
        let installed = self.page_of(pte).and_then(|page| match page {
            None => Ok(false),
            Some(page) if tlb.install(slot, page).is_err() => Err(FaultKind::Alias),
            Some(page) => {
                if let Some(window) = &self.window {
                    self.check_poison(window, slot);
                    self.move_page(
                        page_start(page),
                        |bytes| self.vram.read(page_start(page), bytes),
                        |bytes| window.write(page_start(slot), bytes).map_err(outside),
                    );
                }
                Ok(true)
            }
        });
        installed.unwrap_or_else(|kind| {
            self.faults.push(Fault {
                kind,
                write: false,
                size: 0,
                slot,
                addr: pte.entry,
            });
            false
        })
    }

    fn remove(&self, tlb: &mut Tlb, slot: u32) {
        let Some(page) = tlb.remove(slot) else { return };
        if let Some(window) = &self.window {
            self.move_page(
                page_start(page),
                |bytes| window.read(page_start(slot), bytes).map_err(outside),
                |bytes| self.vram.write(page_start(page), bytes),
            );
            self.poison(window, slot);
        }
    }

    fn move_page(
        &self,
        page: u64,
        from: impl FnOnce(&mut [u8]) -> Result<(), MemoryError>,
        to: impl FnOnce(&[u8]) -> Result<(), MemoryError>,
    ) {
        let mut bytes = [0; PAGE_BYTES];
        // Only a host without memory fails here; the page's bytes are lost then.
        if let Err(error) = from(&mut bytes).and_then(|()| to(&bytes)) {
            log::error!("VRAM page at {page:#x} is lost: {error}");
        }
    }

    fn poison(&self, window: &SharedMemory, slot: u32) {
        if let Err(error) = window.fill(page_start(slot), PAGE_BYTES, POISON) {
            log::error!("slot {slot}: {error}");
        }
    }

    /// Logs a stale write if the slot's poison changed, and puts it back.
    fn check_poison(&self, window: &SharedMemory, slot: u32) {
        let start = page_start(slot);
        if let Ok(Some(first)) = window.find_other(start, PAGE_BYTES, POISON) {
            let kind = FaultKind::StaleWrite;
            self.faults.push(Fault {
                kind,
                write: true,
                size: 0,
                slot,
                addr: first,
            });
            self.poison(window, slot);
        }
    }

    /// Looks at the poison of every slot that is not installed.
    pub fn check(&self, checkpoint: &dyn Checkpoint) -> Result<(), Stopped> {
        let Some(window) = &self.window else {
            return Ok(());
        };
        for start in (0..self.slots).step_by(BATCH) {
            checkpoint.reached()?;
            let tlb = write(&self.tlb);
            for slot in start..self.slots.min(start.saturating_add(BATCH as u32)) {
                if tlb.page(slot).is_none() {
                    self.check_poison(window, slot);
                }
            }
        }
        Ok(())
    }

    /// Removes all translations.
    pub fn reset(&self) {
        let _flush = self.begin_flush();
        for start in (0..self.slots).step_by(BATCH) {
            let mut tlb = write(&self.tlb);
            for slot in start..self.slots.min(start.saturating_add(BATCH as u32)) {
                self.remove(&mut tlb, slot);
            }
        }
    }

    /// Makes VRAM zero, as at power on. There must be no translation.
    pub fn clear_vram(&self) {
        if let Err(error) = self.vram.clear() {
            log::error!("VRAM keeps its contents: {error}");
        }
    }

    /// Runs of installed slots, at most `most`: first slot, first page, number; and the number of
    /// installed slots.
    pub fn map(&self, most: usize) -> (Vec<(u32, u32, u32)>, usize) {
        let tlb = read(&self.tlb);
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        for (slot, page) in tlb.iter() {
            let full = runs.len() == most;
            match runs.last_mut() {
                Some((s, p, n)) if *s + *n == slot && *p + *n == page => *n += 1,
                _ if full => break,
                _ => runs.push((slot, page, 1)),
            }
        }
        (runs, tlb.installed())
    }
}

fn page_start(page: u32) -> u64 {
    u64::from(page) << PAGE_SHIFT
}

fn outside(error: p2p_vfio_user::OutOfRange) -> MemoryError {
    MemoryError::OutOfRange {
        offset: error.offset,
        len: error.len,
    }
}

/// Cuts a range of VRAM, which was checked, where a page begins that lives elsewhere than its
/// predecessor: home, start in the range, length.
fn pieces(tlb: &Tlb, offset: u64, len: usize) -> impl Iterator<Item = (Home, usize, usize)> {
    let home = move |at: u64| {
        // VRAM has at most 2^28 pages.
        let page = (at >> PAGE_SHIFT) as u32;
        tlb.slot(page).map(|slot| page_start(slot) + at % PAGE_SIZE)
    };
    let page_end = |at: u64| at - at % PAGE_SIZE + PAGE_SIZE;
    let end = offset + len as u64;
    let mut at = offset;

    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let start = at;
        at = page_end(at).min(end);
        let place = match home(start) {
            Some(place) => Home::Slots(place),
            None => {
                while at < end && home(at).is_none() {
                    at = page_end(at).min(end);
                }
                Home::Vram(start)
            }
        };
        // Both lie inside the caller's buffer.
        Some((place, (start - offset) as usize, (at - start) as usize))
    })
}
