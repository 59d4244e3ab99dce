// SPDX-License-Identifier: GPL-2.0

//! What the commands do, chunk by chunk.

use std::cell::Cell;
use std::sync::Arc;

use p2p_vfio_user::bus::{Bus, Target};
use sha2::{Digest, Sha256};

use crate::aperture::{Checkpoint, Pte, Stopped};
use crate::command::{Command, Element, List, Op, Place, Segment, SlotRange, u64_at};
use crate::ratelimit::warn_limited;
use crate::regs::{
    BASE_ALIGN, Counter, ELEMENT_BYTES, Error, FILL_UNIT, PTE_BYTES, PTES_PER_LEAF, RANGE_BYTES,
    SEGMENT_BYTES,
};
use crate::state::Core;

/// Bytes between two looks whether to stop; a multiple of [`FILL_UNIT`] and [`ELEMENT_BYTES`].
pub const CHUNK: usize = 64 << 10;
/// Bytes of a list that are read at once; a multiple of every entry's size.
const LIST_CHUNK: usize = 16 << 10;

/// How a command ended without completing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It failed.
    Error(Error),
    /// It was abandoned: nobody is told.
    Stopped,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// One worker's way to memory. It counts, and knows what peers have not confirmed yet.
pub struct Dma {
    bus: Arc<dyn Bus>,
    core: Arc<Core>,
    posted: Cell<Option<u64>>,
}

impl Dma {
    /// A way over `bus`, for the device `core`.
    pub fn new(bus: Arc<dyn Bus>, core: Arc<Core>) -> Self {
        Self {
            bus,
            core,
            posted: Cell::new(None),
        }
    }

    /// Reads memory.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Result<(), Error> {
        self.bus.read(addr, data).map_err(|error| {
            warn_limited!("DMA read of {} bytes at {addr:#x}: {error}", data.len());
            Error::Dma
        })?;
        self.core
            .counters
            .add(Counter::DmaReadBytes, data.len() as u64);
        Ok(())
    }

    /// Writes memory. It is counted first, so that who sees the bytes sees them counted.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), Error> {
        let (counters, len) = (&self.core.counters, data.len() as u64);
        counters.add(Counter::DmaWriteBytes, len);
        let target = self.bus.write(addr, data).map_err(|error| {
            counters.take_back(Counter::DmaWriteBytes, len);
            warn_limited!("DMA write of {len} bytes at {addr:#x}: {error}");
            Error::Dma
        })?;
        if target == Target::Peer && len > 0 {
            self.posted.set(Some(addr.saturating_add(len - 1)));
        }
        Ok(())
    }

    /// Returns when what was written to peers has arrived: a read pushes posted writes.
    pub fn settle(&self) -> Result<(), Error> {
        match self.posted.take() {
            Some(last) => self.read(last, &mut [0]),
            None => Ok(()),
        }
    }
}

/// Executes commands; one for each ring.
pub struct Engine {
    core: Arc<Core>,
    dma: Dma,
    buffer: Vec<u8>,
    addend: Vec<u8>,
}

impl Engine {
    /// An engine of the device `core` on `bus`.
    pub fn new(bus: Arc<dyn Bus>, core: Arc<Core>) -> Self {
        Self {
            dma: Dma::new(bus, Arc::clone(&core)),
            core,
            buffer: vec![0; CHUNK],
            addend: vec![0; CHUNK],
        }
    }

    /// The engine's way to memory.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// Executes a command. On return all that it wrote is in place.
    pub fn execute(
        &mut self,
        command: &Command,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), Failure> {
        checkpoint.reached()?;
        match command.op {
            Op::Nop => {}
            Op::Copy(list) => self.copy(list, checkpoint)?,
            Op::Fill(list, value) => self.fill(list, value, checkpoint)?,
            Op::Checksum(list, digest) => self.checksum(list, digest, checkpoint)?,
            Op::Flush(list) => self.flush(list, checkpoint)?,
            Op::Check => self.core.aperture.check(checkpoint)?,
            Op::Add(list, element) => self.add(list, element, checkpoint)?,
        }
        Ok(self.dma.settle()?)
    }

    fn copy(&mut self, list: List, checkpoint: &dyn Checkpoint) -> Result<(), Failure> {
        self.segments(list, checkpoint, |engine, segment| {
            let (src, dst) = segment.copy(engine.core.aperture.vram_size())?;
            engine.chunks(segment.len, checkpoint, |engine, done, len| {
                engine.load(src.plus(done), len)?;
                engine.store(dst.plus(done), len)
            })
        })
    }

    fn fill(&mut self, list: List, value: u32, checkpoint: &dyn Checkpoint) -> Result<(), Failure> {
        for unit in self.buffer.chunks_exact_mut(FILL_UNIT as usize) {
            unit.copy_from_slice(&value.to_le_bytes());
        }
        self.segments(list, checkpoint, |engine, segment| {
            let dst = segment.fill(engine.core.aperture.vram_size())?;
            engine.chunks(segment.len, checkpoint, |engine, done, len| {
                engine.store(dst.plus(done), len)
            })
        })
    }

    fn add(
        &mut self,
        list: List,
        element: Element,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), Failure> {
        self.segments(list, checkpoint, |engine, segment| {
            let (src, dst) = segment.add(engine.core.aperture.vram_size())?;
            engine.chunks(segment.len, checkpoint, |engine, done, len| {
                engine.load(src.plus(done), len)?;
                std::mem::swap(&mut engine.buffer, &mut engine.addend);
                engine.load(dst.plus(done), len)?;
                let sums = engine.buffer[..len].as_chunks_mut::<ELEMENT_BYTES>().0;
                let addends = engine.addend[..len].as_chunks::<ELEMENT_BYTES>().0;
                for (sum, addend) in sums.iter_mut().zip(addends) {
                    *sum = sum_of(element, *sum, *addend);
                }
                engine.store(dst.plus(done), len)
            })
        })
    }

    fn checksum(
        &mut self,
        list: List,
        digest: u64,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), Failure> {
        let mut hash = Sha256::new();
        self.segments(list, checkpoint, |engine, segment| {
            let src = segment.checksum(engine.core.aperture.vram_size())?;
            engine.chunks(segment.len, checkpoint, |engine, done, len| {
                engine.load(src.plus(done), len)?;
                hash.update(&engine.buffer[..len]);
                Ok(())
            })
        })?;
        Ok(self.dma.write(digest, &hash.finalize())?)
    }

    /// Runs `each` for the segments of a list, in order.
    fn segments(
        &mut self,
        list: List,
        checkpoint: &dyn Checkpoint,
        mut each: impl FnMut(&mut Self, &Segment) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut read = ListReader::new::<SEGMENT_BYTES>(list)?;
        while let Some(bytes) = read.next(&self.dma)? {
            checkpoint.reached()?;
            for bytes in bytes.as_chunks::<SEGMENT_BYTES>().0 {
                each(self, &Segment::parse(bytes))?;
            }
        }
        Ok(())
    }

    /// Runs `each` for the chunks of `len` bytes: bytes done before, bytes of this chunk.
    fn chunks(
        &mut self,
        len: u64,
        checkpoint: &dyn Checkpoint,
        mut each: impl FnMut(&mut Self, u64, usize) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        let mut done = 0;
        while done < len {
            checkpoint.reached()?;
            let part = (len - done).min(CHUNK as u64);
            // At most CHUNK.
            each(self, done, part as usize)?;
            self.core.counters.add(Counter::EngineBytes, part);
            done += part;
        }
        Ok(())
    }

    fn load(&mut self, from: Place, len: usize) -> Result<(), Error> {
        let data = &mut self.buffer[..len];
        match from {
            Place::Memory(addr) => self.dma.read(addr, data),
            Place::Vram(offset) => self
                .core
                .aperture
                .vram_read(offset, data)
                .map_err(host_error),
        }
    }

    fn store(&mut self, to: Place, len: usize) -> Result<(), Error> {
        let data = &self.buffer[..len];
        match to {
            Place::Memory(addr) => self.dma.write(addr, data),
            Place::Vram(offset) => self
                .core
                .aperture
                .vram_write(offset, data)
                .map_err(host_error),
        }
    }

    fn flush(&mut self, list: List, checkpoint: &dyn Checkpoint) -> Result<(), Failure> {
        let slots = self.core.aperture.slots();
        let mut ranges = Vec::new();
        let mut read = ListReader::new::<RANGE_BYTES>(list)?;
        while let Some(bytes) = read.next(&self.dma)? {
            checkpoint.reached()?;
            for bytes in bytes.as_chunks::<RANGE_BYTES>().0 {
                ranges.push(SlotRange::parse(bytes, slots)?);
            }
        }

        let flush = self.core.aperture.begin_flush();
        let mut ptes = Vec::new();
        for range in SlotRange::merge(ranges) {
            self.read_ptes(range, &mut ptes, checkpoint)?;
        }
        self.core.aperture.apply(&flush, &ptes, checkpoint)?;
        self.core.counters.add(Counter::Flushes, 1);
        Ok(())
    }

    /// Walks the page table for the slots of a range.
    fn read_ptes(
        &self,
        range: SlotRange,
        ptes: &mut Vec<Pte>,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), Failure> {
        let root = self.core.pt_root();
        let mut first = range.first;
        while first < range.end {
            checkpoint.reached()?;
            let index = first / PTES_PER_LEAF;
            let end = range.end.min((index + 1).saturating_mul(PTES_PER_LEAF));
            let leaf = self.read_entry(root, index)?;
            if leaf.is_multiple_of(BASE_ALIGN) {
                let mut bytes = vec![0; (end - first) as usize * PTE_BYTES];
                // The address is aligned and the offset smaller than that.
                let inside = u64::from(first % PTES_PER_LEAF) * PTE_BYTES as u64;
                self.dma.read(leaf + inside, &mut bytes)?;
                let entries = bytes.chunks_exact(PTE_BYTES).map(|entry| u64_at(entry, 0));
                ptes.extend((first..end).zip(entries).map(|(slot, entry)| Pte {
                    slot,
                    entry,
                    lost: false,
                }));
            } else {
                ptes.extend((first..end).map(|slot| Pte {
                    slot,
                    entry: leaf,
                    lost: true,
                }));
            }
            first = end;
        }
        Ok(())
    }

    fn read_entry(&self, table: u64, index: u32) -> Result<u64, Error> {
        let offset = u64::from(index) * PTE_BYTES as u64;
        let addr = table.checked_add(offset).ok_or(Error::Dma)?;
        let mut bytes = [0; PTE_BYTES];
        self.dma.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Two elements, added.
fn sum_of(element: Element, a: [u8; ELEMENT_BYTES], b: [u8; ELEMENT_BYTES]) -> [u8; ELEMENT_BYTES] {
    match element {
        Element::U32 => u32::from_le_bytes(a)
            .wrapping_add(u32::from_le_bytes(b))
            .to_le_bytes(),
        Element::F32 => (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes(),
    }
}

/// The segment was checked against VRAM: what fails now is the host.
fn host_error(error: crate::vram::MemoryError) -> Error {
    log::error!("VRAM: {error}");
    Error::Dma
}

/// Reads a list piece by piece, so that its length costs no memory.
struct ListReader {
    at: u64,
    left: usize,
    bytes: Vec<u8>,
}

impl ListReader {
    /// A reader of entries of `ENTRY` bytes. A list that wraps around is refused.
    fn new<const ENTRY: usize>(list: List) -> Result<Self, Error> {
        // COUNT was checked: at most 2 MiB.
        let left = list.count as usize * ENTRY;
        if left > 0 && list.at.checked_add(left as u64 - 1).is_none() {
            return Err(Error::Dma);
        }
        Ok(Self {
            at: list.at,
            left,
            bytes: Vec::new(),
        })
    }

    /// The next whole entries, none at the end.
    fn next(&mut self, dma: &Dma) -> Result<Option<&[u8]>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.bytes.resize(self.left.min(LIST_CHUNK), 0);
        dma.read(self.at, &mut self.bytes)?;
        self.left -= self.bytes.len();
        // May reach 2^64 behind the last entry, where it is not used any more.
        self.at = self.at.wrapping_add(self.bytes.len() as u64);
        Ok(Some(&self.bytes))
    }
}
