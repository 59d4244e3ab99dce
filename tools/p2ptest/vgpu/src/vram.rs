// SPDX-License-Identifier: GPL-2.0

//! VRAM.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Why device memory could not be accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The range does not lie in the memory.
    #[error("range {offset:#x}+{len:#x} lies outside")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
    },
    /// The host has no memory left.
    #[error("host: {0}")]
    Host(#[from] io::Error),
}

/// Zeroed memory that costs nothing where it was never written.
///
/// It is an anonymous file, accessed by positioned reads and writes and never mapped: a read of what
/// was never written takes no room, and a host that runs out of memory is an error and not a signal.
#[derive(Debug)]
pub struct Memory {
    file: File,
    len: u64,
}

impl Memory {
    /// Memory of `len` bytes; `name` is seen in `/proc` only.
    pub fn new(name: &str, len: u64) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `len` bytes from `offset` lie inside.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), MemoryError> {
        if self.contains(offset, len as u64) {
            Ok(())
        } else {
            Err(MemoryError::OutOfRange { offset, len })
        }
    }

    /// Reads the bytes from `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, data.len())?;
        Ok(self.file.read_exact_at(data, offset)?)
    }

    /// Writes the bytes at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(offset, data.len())?;
        Ok(self.file.write_all_at(data, offset)?)
    }

    /// Makes it all zero again, and gives the room back to the host.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn untouched_memory_is_zero_and_costs_nothing() {
        let memory = Memory::new("test", 1 << 40).unwrap();
        let mut data = [1u8; 64];
        memory.read((1 << 40) - 64, &mut data).unwrap();
        assert_eq!(data, [0; 64]);
        assert_eq!(memory.file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn ranges_outside_are_refused_also_when_they_wrap() {
        let memory = Memory::new("test", 4096).unwrap();
        for offset in [4090, 4096, u64::MAX - 3, u64::MAX] {
            assert!(memory.write(offset, &[0; 8]).is_err(), "{offset:#x}");
            assert!(memory.read(offset, &mut [0; 8]).is_err(), "{offset:#x}");
        }
        assert!(memory.write(4088, &[0; 8]).is_ok());
    }

    #[test]
    fn clear_gives_the_room_back() {
        let memory = Memory::new("test", 1 << 20).unwrap();
        memory.write(4096, &[7; 4096]).unwrap();
        memory.clear().unwrap();
        let mut data = [1; 8];
        memory.read(4096, &mut data).unwrap();
        assert_eq!(data, [0; 8]);
        assert_eq!(memory.file.metadata().unwrap().blocks(), 0);
    }
}
