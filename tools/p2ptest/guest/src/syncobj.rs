// SPDX-License-Identifier: GPL-2.0
//! Synchronization objects, by libdrm's own calls.

use crate::must;
use crate::sys::libdrm;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Fails with the errno; libdrm returns it, or -1 and sets it.
fn check(result: i32) -> Result<(), Errno> {
    match result {
        0 => Ok(()),
        -1 => Err(Errno::last()),
        errno => Err(Errno::from_raw(-errno)),
    }
}

/// The time of the clock that waits are counted by, after `timeout` more.
fn deadline(timeout: Duration) -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(Duration::ZERO, Duration::from);
    i64::try_from((now + timeout).as_nanos()).unwrap_or(i64::MAX)
}

/// Longer than any work of a test takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what is not there yet, too.
pub const FOR_SUBMIT: u32 = libdrm::DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT;

/// A syncobj of an open DRM file, destroyed when dropped.
#[derive(Debug)]
pub struct Syncobj<'f> {
    file: BorrowedFd<'f>,
    /// The handle, in the open file
    pub handle: u32,
}

impl<'f> Syncobj<'f> {
    /// `drmSyncobjCreate`.
    pub fn __new(file: &'f impl AsFd, flags: u32) -> Result<Self, Errno> {
        let (file, mut handle) = (file.as_fd(), 0);
        // SAFETY: the call stores one u32.
        check(unsafe { libdrm::drmSyncobjCreate(file.as_raw_fd(), flags, &mut handle) })?;
        Ok(Self { file, handle })
    }

    /// The syncobj that a handle would be, if it were one.
    pub fn __at(file: &'f impl AsFd, handle: u32) -> Self {
        Self {
            file: file.as_fd(),
            handle,
        }
    }

    /// `drmSyncobjCreate`: one that holds no fence.
    #[track_caller]
    pub fn new(file: &'f impl AsFd) -> Self {
        must(Self::__new(file, 0), format_args!("SYNCOBJ_CREATE"))
    }

    /// `drmSyncobjWait`.
    pub fn __wait(&self, timeout: Duration, flags: u32) -> Result<(), Errno> {
        let mut handle = self.handle;
        // SAFETY: one handle, as is said; no index is asked for.
        check(unsafe {
            libdrm::drmSyncobjWait(
                self.file.as_raw_fd(),
                &mut handle,
                1,
                deadline(timeout),
                flags,
                std::ptr::null_mut(),
            )
        })
    }

    /// Waits until its fence has signalled.
    #[track_caller]
    pub fn wait(&self) {
        must(self.__wait(PATIENCE, 0), format_args!("SYNCOBJ_WAIT"));
    }

    /// Whether its fence has signalled.
    #[track_caller]
    pub fn is_signalled(&self) -> bool {
        match self.__wait(Duration::ZERO, 0) {
            Ok(()) => true,
            Err(Errno::ETIME) => false,
            Err(errno) => panic!("SYNCOBJ_WAIT failed: {errno}"),
        }
    }

    /// `drmSyncobjTimelineWait`.
    pub fn __wait_point(&self, point: u64, timeout: Duration, flags: u32) -> Result<(), Errno> {
        let (mut handle, mut point) = (self.handle, point);
        // SAFETY: one handle and one point, as is said; no index is asked for.
        check(unsafe {
            libdrm::drmSyncobjTimelineWait(
                self.file.as_raw_fd(),
                &mut handle,
                &mut point,
                1,
                deadline(timeout),
                flags,
                std::ptr::null_mut(),
            )
        })
    }

    /// Waits until the fence of a point has signalled.
    #[track_caller]
    pub fn wait_point(&self, point: u64) {
        let result = self.__wait_point(point, PATIENCE, 0);
        must(result, format_args!("SYNCOBJ_TIMELINE_WAIT {point}"));
    }

    /// `drmSyncobjQuery`: the last point that has signalled.
    #[track_caller]
    pub fn point(&self) -> u64 {
        let (mut handle, mut point) = (self.handle, 0);
        // SAFETY: one handle and one point, as is said.
        let result =
            unsafe { libdrm::drmSyncobjQuery(self.file.as_raw_fd(), &mut handle, &mut point, 1) };
        must(check(result), format_args!("SYNCOBJ_QUERY"));
        point
    }

    /// `drmSyncobjSignal`.
    #[track_caller]
    pub fn signal(&self) {
        // SAFETY: one handle, as is said.
        let result = unsafe { libdrm::drmSyncobjSignal(self.file.as_raw_fd(), &self.handle, 1) };
        must(check(result), format_args!("SYNCOBJ_SIGNAL"));
    }

    /// `drmSyncobjReset`.
    #[track_caller]
    pub fn reset(&self) {
        // SAFETY: one handle, as is said.
        let result = unsafe { libdrm::drmSyncobjReset(self.file.as_raw_fd(), &self.handle, 1) };
        must(check(result), format_args!("SYNCOBJ_RESET"));
    }

    /// `drmSyncobjTimelineSignal`.
    #[track_caller]
    pub fn signal_point(&self, mut point: u64) {
        // SAFETY: one handle and one point, as is said.
        let result = unsafe {
            libdrm::drmSyncobjTimelineSignal(self.file.as_raw_fd(), &self.handle, &mut point, 1)
        };
        must(check(result), format_args!("SYNCOBJ_TIMELINE_SIGNAL"));
    }

    /// `drmSyncobjTransfer` of the fence of `from`, of the same file; point 0 is the binary one.
    pub fn __transfer(&self, point: u64, from: &Self, from_point: u64) -> Result<(), Errno> {
        // SAFETY: takes numbers only.
        check(unsafe {
            libdrm::drmSyncobjTransfer(
                self.file.as_raw_fd(),
                self.handle,
                point,
                from.handle,
                from_point,
                0,
            )
        })
    }

    /// `drmSyncobjTransfer`.
    #[track_caller]
    pub fn transfer(&self, point: u64, from: &Self, from_point: u64) {
        let result = self.__transfer(point, from, from_point);
        must(result, format_args!("SYNCOBJ_TRANSFER"));
    }

    /// `drmSyncobjExportSyncFile`.
    pub fn __export_sync_file(&self) -> Result<OwnedFd, Errno> {
        let mut fd = -1;
        // SAFETY: the call stores one int.
        check(unsafe {
            libdrm::drmSyncobjExportSyncFile(self.file.as_raw_fd(), self.handle, &mut fd)
        })?;
        // SAFETY: the kernel has just made it, for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// `drmSyncobjExportSyncFile`.
    #[track_caller]
    pub fn export_sync_file(&self) -> OwnedFd {
        must(
            self.__export_sync_file(),
            format_args!("export to a sync file"),
        )
    }

    /// `drmSyncobjImportSyncFile`.
    #[track_caller]
    pub fn import_sync_file(&self, fence: &impl AsFd) {
        // SAFETY: takes numbers only.
        let result = unsafe {
            libdrm::drmSyncobjImportSyncFile(
                self.file.as_raw_fd(),
                self.handle,
                fence.as_fd().as_raw_fd(),
            )
        };
        must(check(result), format_args!("import of a sync file"));
    }

    /// `drmSyncobjHandleToFD` and `drmSyncobjFDToHandle`: the same syncobj in another file.
    #[track_caller]
    pub fn share<'o>(&self, file: &'o impl AsFd) -> Syncobj<'o> {
        let mut fd = -1;
        // SAFETY: the call stores one int.
        let result =
            unsafe { libdrm::drmSyncobjHandleToFD(self.file.as_raw_fd(), self.handle, &mut fd) };
        must(check(result), format_args!("SYNCOBJ_HANDLE_TO_FD"));
        // SAFETY: the kernel has just made it, for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let (file, mut handle) = (file.as_fd(), 0);
        // SAFETY: the call stores one u32.
        let result =
            unsafe { libdrm::drmSyncobjFDToHandle(file.as_raw_fd(), fd.as_raw_fd(), &mut handle) };
        must(check(result), format_args!("SYNCOBJ_FD_TO_HANDLE"));
        Syncobj { file, handle }
    }
}

impl Drop for Syncobj<'_> {
    fn drop(&mut self) {
        // SAFETY: takes numbers only. A handle that stays goes with its file.
        let _ = unsafe { libdrm::drmSyncobjDestroy(self.file.as_raw_fd(), self.handle) };
    }
}

/// `drmGetCap`: whether the driver has syncobjs, and points of timelines.
pub fn capabilities(file: &impl AsFd) -> [bool; 2] {
    [libdrm::DRM_CAP_SYNCOBJ, libdrm::DRM_CAP_SYNCOBJ_TIMELINE].map(|capability| {
        let mut value = 0;
        // SAFETY: the call stores one u64.
        let result = unsafe {
            libdrm::drmGetCap(file.as_fd().as_raw_fd(), u64::from(capability), &mut value)
        };
        result == 0 && value == 1
    })
}
