// SPDX-License-Identifier: GPL-2.0
//! Which points of the drivers' code this thread's calls reach
//! (Documentation/dev-tools/kcov.rst). Only the debug kernel tells.

use crate::map::Mapping;
use nix::libc::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::path::Path;

const KCOV: &str = "/sys/kernel/debug/kcov";
/// Bytes of a word of the kernel's.
const WORD: usize = size_of::<c_ulong>();
/// Words that are shared with the kernel: how many points there are, and then the points.
/// What a call reaches after so many is not told.
const WORDS: usize = 1 << 18;
/// Tells of points, not of comparisons.
const TRACE_PC: i32 = 0;

/// include/uapi/linux/kcov.h
mod ioctl {
    nix::ioctl_write_int_bad!(init_trace, nix::request_code_read!(b'c', 1, super::WORD));
    nix::ioctl_write_int_bad!(enable, nix::request_code_none!(b'c', 100));
    nix::ioctl_none!(disable, b'c', 101);
}

/// Counts for the thread that opened it, until dropped.
#[derive(Debug)]
pub struct Kcov {
    shared: Mapping,
    file: File,
}

impl Kcov {
    /// Whether the kernel tells.
    pub fn exists() -> bool {
        Path::new(KCOV).exists()
    }

    /// From now on points are counted.
    ///
    /// # Errors
    ///
    /// `EBUSY`: this thread counts already. `ENOMEM`.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(KCOV)?;
        // SAFETY: the calls take numbers.
        unsafe { ioctl::init_trace(file.as_raw_fd(), WORDS as i32) }?;
        let shared = Mapping::__new(&file, 0, WORDS * WORD)?;
        // SAFETY: as above.
        unsafe { ioctl::enable(file.as_raw_fd(), TRACE_PC) }?;
        Ok(Self { shared, file })
    }

    /// The points that were reached since the last time, in their order; some of them
    /// often.
    pub fn take(&self) -> Vec<u64> {
        let count = usize::try_from(self.shared.load(0)).unwrap_or(usize::MAX);
        // The kernel adds to the end, in this thread's calls and faults only. Those that
        // the list below takes are not of interest, and go unread.
        let places = 1..=count.min(WORDS - 1);
        let points = places.map(|at| self.shared.load(at * WORD)).collect();
        self.shared.store(0, 0);
        points
    }
}

impl Drop for Kcov {
    fn drop(&mut self) {
        // SAFETY: the call takes nothing. It fails in another thread only, where nothing
        // is counted.
        let _ = unsafe { ioctl::disable(self.file.as_raw_fd()) };
    }
}
