// SPDX-License-Identifier: GPL-2.0
//! Dma-bufs of exporters of the kernel that are not ours.

use crate::dmabuf::DmaBuf;
use crate::drm::{self, PRIME_FLAGS};
use crate::must;
use crate::sys::linux::*;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

mod request {
    use crate::sys::linux::*;

    nix::ioctl_readwrite!(create_dumb, b'd', 0xb2, drm_mode_create_dumb);
    nix::ioctl_readwrite!(alloc, b'H', 0, dma_heap_allocation_data);
    // It returns a file descriptor.
    nix::ioctl_write_ptr!(create, b'u', 0x42, udmabuf_create);
}

/// Who exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    /// A DRM driver without hardware
    Vgem,
    /// Memory of a process
    Udmabuf,
    /// Memory of the kernel
    Heap,
}

impl Exporter {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vgem, Self::Udmabuf, Self::Heap];

    /// A dma-buf of `size` bytes, whole pages, which are 0.
    #[track_caller]
    pub fn export(self, size: u64) -> DmaBuf {
        let made = match self {
            Self::Vgem => vgem(size),
            Self::Udmabuf => udmabuf(size),
            Self::Heap => heap(size),
        };
        DmaBuf(must(made, format_args!("a dma-buf of {self:?}")))
    }
}

#[track_caller]
fn open(path: &str) -> File {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) => panic!("{path} could not be opened: {error}"),
    }
}

/// The node of vgem, which is no PCI device.
#[track_caller]
fn vgem_node() -> File {
    let entries = fs::read_dir("/dev/dri").expect("/dev/dri");
    for path in entries.flatten().map(|entry| entry.path()) {
        // Its dumb buffers come from the primary node.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("card") {
            continue;
        }
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            continue;
        };
        if drm::version(&file).is_ok_and(|version| version.name == "vgem") {
            return file;
        }
    }
    panic!("there is no vgem");
}

fn vgem(size: u64) -> Result<OwnedFd, Errno> {
    let file = vgem_node();
    // A page a line.
    let mut arg = drm_mode_create_dumb {
        width: 1024,
        height: u32::try_from(size / 4096).map_err(|_| Errno::EOVERFLOW)?,
        bpp: 32,
        ..Default::default()
    };
    // SAFETY: the structure is the one that the request is for.
    unsafe { request::create_dumb(file.as_raw_fd(), &raw mut arg)? };
    assert_eq!(arg.size, size, "vgem made another size");
    drm::prime_handle_to_fd(&file, arg.handle, PRIME_FLAGS)
}

fn udmabuf(size: u64) -> Result<OwnedFd, Errno> {
    let memory = memfd_create(
        c"foreign",
        MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC,
    )?;
    ftruncate(&memory, size.try_into().map_err(|_| Errno::EOVERFLOW)?)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let arg = udmabuf_create {
        memfd: memory.as_raw_fd().cast_unsigned(),
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size,
    };
    let maker = open("/dev/udmabuf");
    // SAFETY: the structure is the one that the request is for.
    let fd = unsafe { request::create(maker.as_raw_fd(), &raw const arg)? };
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn heap(size: u64) -> Result<OwnedFd, Errno> {
    let heap = open("/dev/dma_heap/system");
    let mut arg = dma_heap_allocation_data {
        len: size,
        fd_flags: (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned(),
        ..Default::default()
    };
    // SAFETY: the structure is the one that the request is for.
    unsafe { request::alloc(heap.as_raw_fd(), &raw mut arg)? };
    let fd = i32::try_from(arg.fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
