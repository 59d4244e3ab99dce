// SPDX-License-Identifier: GPL-2.0
//! What a process can do with a dma-buf's file: CPU access, and its fences.

use crate::map::Mapping;
use crate::must;
use crate::sys::linux::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

mod request {
    use crate::sys::linux::*;

    nix::ioctl_write_ptr!(sync, b'b', 0, dma_buf_sync);
    nix::ioctl_readwrite!(export_sync_file, b'b', 2, dma_buf_export_sync_file);
    nix::ioctl_write_ptr!(import_sync_file, b'b', 3, dma_buf_import_sync_file);
    nix::ioctl_readwrite!(sync_file, b'>', 4, sync_file_info);
}

/// What the fences that somebody asks for, or brings, are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    /// Work that reads
    Read = DMA_BUF_SYNC_READ,
    /// Work that writes
    Write = DMA_BUF_SYNC_WRITE,
    /// Both
    Both = DMA_BUF_SYNC_RW,
}

/// The file of a dma-buf.
#[derive(Debug)]
pub struct DmaBuf(pub OwnedFd);

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for DmaBuf {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl DmaBuf {
    /// Maps `len` bytes from `offset`.
    #[track_caller]
    pub fn map(&self, offset: u64, len: u64) -> Mapping {
        let len = usize::try_from(len).expect("fits");
        must(
            Mapping::__new(self, offset, len),
            format_args!("mmap of a dma-buf"),
        )
    }

    /// Names the dma-buf, whatever file descriptor it has.
    #[track_caller]
    pub fn inode(&self) -> u64 {
        must(fstat(self), format_args!("fstat")).st_ino
    }

    /// `DMA_BUF_IOCTL_SYNC`.
    pub fn __sync(&self, flags: u32) -> Result<(), Errno> {
        let arg = dma_buf_sync {
            flags: flags.into(),
        };
        // SAFETY: the structure is the one that the request is for.
        unsafe { request::sync(self.as_raw_fd(), &raw const arg) }.map(drop)
    }

    /// `DMA_BUF_IOCTL_SYNC`: CPU access begins, when it may.
    #[track_caller]
    pub fn begin(&self, access: Access) {
        let begun = self.__sync(DMA_BUF_SYNC_START | access as u32);
        must(begun, format_args!("DMA_BUF_IOCTL_SYNC START"));
    }

    /// `DMA_BUF_IOCTL_SYNC`: CPU access ends.
    #[track_caller]
    pub fn end(&self, access: Access) {
        let ended = self.__sync(DMA_BUF_SYNC_END | access as u32);
        must(ended, format_args!("DMA_BUF_IOCTL_SYNC END"));
    }

    /// What the CPU reads in a mapping of it, when it may.
    #[track_caller]
    pub fn load(&self, map: &Mapping, offset: usize) -> u64 {
        self.begin(Access::Read);
        let found = map.load(offset);
        self.end(Access::Read);
        found
    }

    /// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`.
    pub fn __export_sync_file(&self, flags: u32) -> Result<OwnedFd, Errno> {
        let mut arg = dma_buf_export_sync_file { flags, fd: -1 };
        // SAFETY: the structure is the one that the request is for.
        unsafe { request::export_sync_file(self.as_raw_fd(), &raw mut arg)? };
        // SAFETY: the kernel has just made it, for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
    }

    /// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`: a file that is ready when who wants such
    /// access need not wait any more.
    #[track_caller]
    pub fn export_sync_file(&self, access: Access) -> OwnedFd {
        must(
            self.__export_sync_file(access as u32),
            format_args!("DMA_BUF_IOCTL_EXPORT_SYNC_FILE"),
        )
    }

    /// `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`: others wait for these fences too.
    #[track_caller]
    pub fn import_sync_file(&self, access: Access, file: &impl AsRawFd) {
        let arg = dma_buf_import_sync_file {
            flags: access as u32,
            fd: file.as_raw_fd(),
        };
        // SAFETY: the structure is the one that the request is for.
        let done = unsafe { request::import_sync_file(self.as_raw_fd(), &raw const arg) };
        must(done, format_args!("DMA_BUF_IOCTL_IMPORT_SYNC_FILE"));
    }

    /// Whether the file is ready: `Read` when nobody writes, `Write` when nobody
    /// uses it.
    #[track_caller]
    pub fn is_ready(&self, access: Access) -> bool {
        poll(self, access, 0)
    }

    /// Waits for at most `ms` until the file is ready; whether it is.
    #[track_caller]
    pub fn wait_ready(&self, access: Access, ms: i32) -> bool {
        poll(self, access, ms)
    }
}

/// Whether a file of fences, of a dma-buf or of some work, is ready within `ms`.
#[track_caller]
pub fn poll(file: &impl AsRawFd, access: Access, ms: i32) -> bool {
    let events = match access {
        Access::Read => libc::POLLIN,
        Access::Write => libc::POLLOUT,
        Access::Both => libc::POLLIN | libc::POLLOUT,
    };
    let mut entry = libc::pollfd {
        fd: file.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one entry, as the call is told.
    let ready = unsafe { libc::poll(&raw mut entry, 1, ms) };
    must(Errno::result(ready), format_args!("poll"));
    entry.revents & events != 0
}

/// `SYNC_IOC_FILE_INFO`: how the work of a file of fences has ended; `None` if it has not.
#[track_caller]
pub fn outcome(file: &impl AsRawFd) -> Option<Result<(), Errno>> {
    let mut arg = sync_file_info::default();
    // SAFETY: the structure is the one that the request is for; without room for fences
    // none is written.
    let done = unsafe { request::sync_file(file.as_raw_fd(), &raw mut arg) };
    must(done, format_args!("SYNC_IOC_FILE_INFO"));
    match arg.status {
        0 => None,
        1 => Some(Ok(())),
        errno => Some(Err(Errno::from_raw(-errno))),
    }
}
