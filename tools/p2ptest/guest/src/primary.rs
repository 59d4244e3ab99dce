// SPDX-License-Identifier: GPL-2.0
//! The primary node of a DRM device: clients, who authenticates them, and the master,
//! who does. The DRM core answers for all drivers.

use crate::drm::Node;
use crate::must;
use crate::sys::libdrm;
use nix::errno::Errno;
use std::ffi::{c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// An open primary node, or another node that is asked the same.
#[derive(Debug)]
pub struct Primary(File);

/// What the kernel tells of a client.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Client {
    /// Whether a master authenticated it
    pub authenticated: bool,
    /// The process that opened the file
    pub pid: u32,
    /// The user that it belongs to
    pub uid: u32,
}

/// libdrm's calls end with 0, or leave the reason in errno.
fn done(result: c_int) -> Result<(), Errno> {
    match result {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

impl Primary {
    /// Opens a device's primary node. The first one to open it is its master.
    pub fn __open(node: &Node) -> std::io::Result<Self> {
        let path = node.primary.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self(file))
    }

    /// Opens a device's primary node.
    #[track_caller]
    pub fn open(node: &Node) -> Self {
        match Self::__open(node) {
            Ok(primary) => primary,
            Err(error) => panic!("{:?} could not be opened: {error}", node.primary),
        }
    }

    /// Opens the render node, which is nobody's to be the master of.
    #[track_caller]
    pub fn render(node: &Node) -> Self {
        match node.open() {
            Ok(file) => Self(file),
            Err(error) => panic!("{} could not be opened: {error}", node.path.display()),
        }
    }

    fn fd(&self) -> c_int {
        self.0.as_raw_fd()
    }

    /// `drmIsMaster`.
    pub fn is_master(&self) -> bool {
        // SAFETY: takes a number only.
        unsafe { libdrm::drmIsMaster(self.fd()) == 1 }
    }

    /// `drmSetMaster`.
    pub fn __set_master(&self) -> Result<(), Errno> {
        // SAFETY: takes a number only.
        done(unsafe { libdrm::drmSetMaster(self.fd()) })
    }

    /// `drmDropMaster`.
    pub fn __drop_master(&self) -> Result<(), Errno> {
        // SAFETY: takes a number only.
        done(unsafe { libdrm::drmDropMaster(self.fd()) })
    }

    /// `drmGetMagic`.
    pub fn __magic(&self) -> Result<u32, Errno> {
        let mut magic = 0;
        // SAFETY: the call stores one number.
        done(unsafe { libdrm::drmGetMagic(self.fd(), &mut magic) })?;
        Ok(magic)
    }

    /// The number by which a master authenticates this client.
    #[track_caller]
    pub fn magic(&self) -> u32 {
        must(self.__magic(), format_args!("drmGetMagic"))
    }

    /// `drmAuthMagic`.
    pub fn __authenticate(&self, magic: u32) -> Result<(), Errno> {
        // SAFETY: takes numbers only.
        done(unsafe { libdrm::drmAuthMagic(self.fd(), magic) })
    }

    /// `drmGetClient`.
    pub fn __client(&self, index: i32) -> Result<Client, Errno> {
        let (mut authenticated, mut pid, mut uid): (c_int, c_int, c_int) = (0, 0, 0);
        let (mut magic, mut ioctls): (c_ulong, c_ulong) = (0, 0);
        // SAFETY: the call stores a number behind each pointer.
        done(unsafe {
            libdrm::drmGetClient(
                self.fd(),
                index,
                &mut authenticated,
                &mut pid,
                &mut uid,
                &mut magic,
                &mut ioctls,
            )
        })?;
        Ok(Client {
            authenticated: authenticated != 0,
            pid: pid.cast_unsigned(),
            uid: uid.cast_unsigned(),
        })
    }

    /// What the kernel tells of this file itself.
    #[track_caller]
    pub fn client(&self) -> Client {
        must(self.__client(0), format_args!("drmGetClient"))
    }

    /// `drmGetStats`: how many there are.
    pub fn __stats(&self) -> Result<u64, Errno> {
        let mut stats = libdrm::drmStatsT::default();
        // SAFETY: the call fills the structure.
        done(unsafe { libdrm::drmGetStats(self.fd(), &mut stats) })?;
        Ok(stats.count)
    }
}

impl AsFd for Primary {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
