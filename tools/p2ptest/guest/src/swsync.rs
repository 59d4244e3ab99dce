// SPDX-License-Identifier: GPL-2.0
//! Fences that signal when a test says so: the kernel's sw_sync in debugfs, whose
//! structures no uapi header has.

use crate::must;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PATH: &str = "/sys/kernel/debug/sync/sw_sync";

/// `struct sw_sync_create_fence_data`
#[repr(C)]
struct CreateFence {
    value: u32,
    name: [libc::c_char; 32],
    fence: i32,
}

mod request {
    nix::ioctl_readwrite!(create_fence, b'W', 0, super::CreateFence);
    nix::ioctl_write_ptr!(inc, b'W', 1, u32);
}

/// A counter whose fences signal when it reaches them. What has not signalled when
/// it is dropped signals then, as failed.
#[derive(Debug)]
pub struct Timeline(File);

impl Timeline {
    /// A timeline at 0.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it opens a file")]
    pub fn new() -> Self {
        match OpenOptions::new().read(true).write(true).open(PATH) {
            Ok(file) => Self(file),
            Err(error) => panic!("{PATH} could not be opened: {error}"),
        }
    }

    /// A file of a fence that signals at `value`.
    #[track_caller]
    pub fn fence(&self, value: u32) -> OwnedFd {
        let mut arg = CreateFence {
            value,
            name: [0; 32],
            fence: -1,
        };
        // SAFETY: the structure is the one that the request is for.
        let made = unsafe { request::create_fence(self.0.as_raw_fd(), &raw mut arg) };
        must(made, format_args!("SW_SYNC_IOC_CREATE_FENCE"));
        // SAFETY: the kernel has just made it, for us alone.
        unsafe { OwnedFd::from_raw_fd(arg.fence) }
    }

    /// Counts on.
    #[track_caller]
    pub fn advance(&self, by: u32) {
        // SAFETY: the number is what the request is for.
        let done = unsafe { request::inc(self.0.as_raw_fd(), &raw const by) };
        must(done, format_args!("SW_SYNC_IOC_INC"));
    }
}
