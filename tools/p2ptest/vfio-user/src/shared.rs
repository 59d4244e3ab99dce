// SPDX-License-Identifier: GPL-2.0

//! Memory that this process and the client both map: what stands behind a mapped BAR.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// A range that does not lie inside the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset:#x} are not inside {size:#x} bytes of memory")]
pub struct OutOfRange {
    /// Start of the range.
    pub offset: u64,
    /// Length of the range.
    pub len: usize,
    /// Size of the memory.
    pub size: u64,
}

/// Zeroed memory in a file descriptor, shared with the client and usable from any thread.
///
/// The guest may write it at any time: it is never lent out as a slice, only copied. An aligned
/// access of 1, 2, 4 or 8 bytes is one load or store; anything else may be seen torn.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    map: MmapRegion,
}

impl SharedMemory {
    /// Makes `size` bytes of zeroed memory; pages take room when first touched.
    pub fn new(size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = File::from(memfd_create(
            "p2p-bar",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?);
        ftruncate(&file, size)?;
        // The client gets this file: it must not be able to take the pages away from under us.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), len)
            .map_err(io::Error::other)?;
        Ok(Self { file, map })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.map.len() as u64
    }

    /// Copies `data.len()` bytes at `offset` out.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), OutOfRange> {
        let slice = self.slice(offset, data.len())?;
        copy_out(&slice, data);
        Ok(())
    }

    /// Copies `data` in at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let slice = self.slice(offset, data.len())?;
        copy_in(&slice, data);
        Ok(())
    }

    /// Stores `byte` over `len` bytes at `offset`.
    pub fn fill(&self, offset: u64, len: usize, byte: u8) -> Result<(), OutOfRange> {
        let slice = self.slice(offset, len)?;
        let page = [byte; 4096];
        for (at, take) in pieces(len, page.len()) {
            if let Ok(part) = slice.subslice(at, take) {
                copy_in(&part, &page[..take]);
            }
        }
        Ok(())
    }

    /// Offset of the first of `len` bytes at `offset` that is not `byte`; `None` if all are.
    pub fn find_other(&self, offset: u64, len: usize, byte: u8) -> Result<Option<u64>, OutOfRange> {
        let slice = self.slice(offset, len)?;
        let mut page = [0; 4096];
        let expected = [byte; 4096];
        for (at, take) in pieces(len, page.len()) {
            let part = slice
                .subslice(at, take)
                .map_err(|_| self.out_of_range(offset, len))?;
            copy_out(&part, &mut page[..take]);
            // As a whole first: that is some ten times as fast, and mostly all there is to do.
            if page[..take] == expected[..take] {
                continue;
            }
            if let Some(found) = page[..take].iter().position(|&have| have != byte) {
                return Ok(Some(offset + (at + found) as u64));
            }
        }
        Ok(None)
    }

    fn slice(&self, offset: u64, len: usize) -> Result<VolatileSlice<'_>, OutOfRange> {
        let start = usize::try_from(offset).map_err(|_| self.out_of_range(offset, len))?;
        self.map
            .get_slice(start, len)
            .map_err(|_| self.out_of_range(offset, len))
    }

    fn out_of_range(&self, offset: u64, len: usize) -> OutOfRange {
        OutOfRange {
            offset,
            len,
            size: self.size(),
        }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Splits `len` bytes into (start, length) pieces of at most `most`.
fn pieces(len: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(most)
        .map(move |at| (at, most.min(len - at)))
}

/// Copies from shared memory. What was read after a flag is not older than the flag.
pub(crate) fn copy_out(from: &VolatileSlice<'_>, to: &mut [u8]) {
    // Lengths agree by construction, so that the copy is never short.
    let copied = from.read(to, 0);
    debug_assert!(to.is_empty() || copied.is_ok_and(|n| n == to.len()));
    fence(Ordering::Acquire);
}

/// Copies to shared memory. What was written before is visible before.
pub(crate) fn copy_in(to: &VolatileSlice<'_>, from: &[u8]) {
    fence(Ordering::Release);
    let copied = to.write(from, 0);
    debug_assert!(from.is_empty() || copied.is_ok_and(|n| n == from.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let memory = SharedMemory::new(8192).unwrap();
        memory
            .write(4090, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
            .unwrap();
        let mut back = [0; 14];
        memory.read(4089, &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0]);
    }

    #[test]
    fn ranges_past_the_end_are_refused() {
        let memory = SharedMemory::new(4096).unwrap();
        assert!(memory.read(4095, &mut [0; 2]).is_err());
        assert!(memory.write(u64::MAX, &[0]).is_err());
        assert!(memory.fill(1, 4096, 0).is_err());
        assert!(memory.find_other(0, usize::MAX, 0).is_err());
        assert!(memory.write(4095, &[0]).is_ok());
    }

    #[test]
    fn a_changed_fill_is_found_at_its_first_byte() {
        let memory = SharedMemory::new(16384).unwrap();
        memory.fill(100, 12000, 0xa5).unwrap();
        assert_eq!(memory.find_other(100, 12000, 0xa5), Ok(None));
        memory.write(9000, &[0, 0]).unwrap();
        assert_eq!(memory.find_other(100, 12000, 0xa5), Ok(Some(9000)));
        assert_eq!(memory.find_other(99, 12000, 0xa5), Ok(Some(99)));
    }

    #[test]
    fn the_client_cannot_shrink_it() {
        let memory = SharedMemory::new(4096).unwrap();
        assert!(ftruncate(memory.as_fd(), 0).is_err());
    }
}
