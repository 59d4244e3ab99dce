// SPDX-License-Identifier: GPL-2.0
//! What userspace can do with any dma-buf: synchronize, and wait for its fences.

use crate::must;
use nix::errno::Errno;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The processor reads.
pub const READ: u32 = 1;
/// The processor writes.
pub const WRITE: u32 = 2;
/// Ends an access; without it one begins.
pub const END: u32 = 4;

/// `struct dma_buf_sync`
#[derive(Debug)]
#[repr(C)]
pub struct Sync {
    flags: u64,
}

/// `struct dma_buf_export_sync_file` and `struct dma_buf_import_sync_file`
#[derive(Debug)]
#[repr(C)]
pub struct SyncFile {
    flags: u32,
    fd: i32,
}

/// `struct sw_sync_create_fence_data`
#[derive(Debug)]
#[repr(C)]
pub struct CreateFence {
    value: u32,
    name: [u8; 32],
    fence: i32,
}

mod raw {
    use super::{CreateFence, Sync, SyncFile};
    nix::ioctl_write_ptr!(sync, b'b', 0, Sync);
    nix::ioctl_readwrite!(export_sync_file, b'b', 2, SyncFile);
    nix::ioctl_write_ptr!(import_sync_file, b'b', 3, SyncFile);
    nix::ioctl_readwrite!(create_fence, b'W', 0, CreateFence);
    nix::ioctl_write_ptr!(increment, b'W', 1, u32);
}

/// `DMA_BUF_IOCTL_SYNC`; any of [`READ`], [`WRITE`], [`END`].
pub fn __sync(fd: &impl AsRawFd, flags: u32) -> Result<(), Errno> {
    let arg = Sync {
        flags: flags.into(),
    };
    // SAFETY: the structure is the one that the request is for.
    unsafe { raw::sync(fd.as_raw_fd(), &arg) }.map(drop)
}

/// `DMA_BUF_IOCTL_SYNC`.
#[track_caller]
pub fn sync(fd: &impl AsRawFd, flags: u32) {
    must(
        __sync(fd, flags),
        format_args!("DMA_BUF_IOCTL_SYNC {flags}"),
    );
}

/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`: what who reads, or writes, has to wait for.
pub fn __export_sync_file(fd: &impl AsRawFd, flags: u32) -> Result<OwnedFd, Errno> {
    let mut arg = SyncFile { flags, fd: -1 };
    // SAFETY: the structure is the one that the request is for.
    unsafe { raw::export_sync_file(fd.as_raw_fd(), &mut arg)? };
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
}

/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`.
#[track_caller]
pub fn export_sync_file(fd: &impl AsRawFd, flags: u32) -> OwnedFd {
    must(
        __export_sync_file(fd, flags),
        format_args!("DMA_BUF_IOCTL_EXPORT_SYNC_FILE {flags}"),
    )
}

/// `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`: who reads or writes has to wait for it.
#[track_caller]
pub fn import_sync_file(fd: &impl AsRawFd, flags: u32, fence: &impl AsRawFd) {
    let arg = SyncFile {
        flags,
        fd: fence.as_raw_fd(),
    };
    // SAFETY: the structure is the one that the request is for.
    let imported = unsafe { raw::import_sync_file(fd.as_raw_fd(), &arg) };
    must(
        imported,
        format_args!("DMA_BUF_IOCTL_IMPORT_SYNC_FILE {flags}"),
    );
}

/// `poll`, for at most so long: which of `events` are there.
#[track_caller]
pub fn poll(fd: &impl AsRawFd, events: i16, limit: Duration) -> i16 {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: there is one entry.
    let result = unsafe { libc::poll(&mut entry, 1, limit) };
    must(Errno::result(result), format_args!("poll"));
    entry.revents
}

/// A timeline whose fences signal when the test says so.
#[derive(Debug)]
pub struct SoftwareTimeline(File);

impl SoftwareTimeline {
    /// A new one, at 0.
    #[track_caller]
    pub fn new() -> Self {
        let path = "/sys/kernel/debug/sync/sw_sync";
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Self(file),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// A fence that signals when the timeline reaches `value`.
    #[track_caller]
    pub fn fence(&self, value: u32) -> OwnedFd {
        let mut arg = CreateFence {
            value,
            name: [0; 32],
            fence: -1,
        };
        // SAFETY: the structure is the one that the request is for.
        let made = unsafe { raw::create_fence(self.0.as_raw_fd(), &mut arg) };
        must(made, format_args!("SW_SYNC_IOC_CREATE_FENCE"));
        // SAFETY: the kernel has just made it, for us alone.
        unsafe { OwnedFd::from_raw_fd(arg.fence) }
    }

    /// Goes on by one.
    #[track_caller]
    pub fn advance(&self) {
        // SAFETY: the request takes a number.
        let done = unsafe { raw::increment(self.0.as_raw_fd(), &1) };
        must(done, format_args!("SW_SYNC_IOC_INC"));
    }
}

impl Default for SoftwareTimeline {
    #[track_caller]
    fn default() -> Self {
        Self::new()
    }
}
