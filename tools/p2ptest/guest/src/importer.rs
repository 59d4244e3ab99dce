// SPDX-License-Identifier: GPL-2.0
//! Importers that behave as a test wants: the uapi of `/dev/p2p_importer_test`.

use crate::drm::PciAddress;
use crate::must;
use crate::sys::uapi::*;
use nix::errno::Errno;
use nix::libc;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::ptr;

/// The device's file.
pub const PATH: &str = "/dev/p2p_importer_test";

/// What the exporter can expect of an importer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Knows of no move: the core pins while it is mapped
    Static = P2P_IMPORTER_STATIC,
    /// Lets go when it is told
    Dynamic = P2P_IMPORTER_DYNAMIC,
    /// Dynamic, but cannot be told
    Deaf = P2P_IMPORTER_DEAF,
}

/// What a dynamic importer does when it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// Unmaps at once
    Unmap = P2P_IMPORTER_UNMAP,
    /// Keeps the mapping
    Keep = P2P_IMPORTER_KEEP,
    /// Unmaps from a work item, some time later
    UnmapLater = P2P_IMPORTER_UNMAP_LATER,
    /// The same, and maps again
    Remap = P2P_IMPORTER_REMAP,
}

/// What the device does with the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// Reads and writes
    Both = P2P_IMPORTER_BIDIRECTIONAL,
    /// Reads
    ToDevice = P2P_IMPORTER_TO_DEVICE,
    /// Writes
    FromDevice = P2P_IMPORTER_FROM_DEVICE,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Both, Self::ToDevice, Self::FromDevice];
}

/// How to attach.
#[derive(Debug, Clone, Copy)]
pub struct Attach {
    /// See [`Kind`]
    pub kind: Kind,
    /// See [`Answer`]
    pub answer: Answer,
    /// Milliseconds until the work item of a late answer runs
    pub delay_ms: u32,
    /// Whether the device can use memory without `struct page`
    pub peer: bool,
    /// On whose behalf; `None`: a device without hardware
    pub device: Option<PciAddress>,
}

impl Attach {
    /// A well-behaved dynamic peer.
    pub fn peer(device: PciAddress) -> Self {
        Self {
            kind: Kind::Dynamic,
            answer: Answer::Unmap,
            delay_ms: 0,
            peer: true,
            device: Some(device),
        }
    }

    /// The same as another kind.
    pub fn kind(self, kind: Kind) -> Self {
        let peer = self.peer && kind != Kind::Static;
        Self { kind, peer, ..self }
    }

    /// The same with another answer, after a while if that is a late one.
    pub fn answer(self, answer: Answer, delay_ms: u32) -> Self {
        Self {
            answer,
            delay_ms,
            ..self
        }
    }

    /// The same without peer-to-peer.
    pub fn no_peer(self) -> Self {
        Self {
            peer: false,
            ..self
        }
    }

    /// The same on behalf of a device without hardware.
    pub fn software(self) -> Self {
        Self {
            device: None,
            ..self
        }
    }
}

/// An importer; what it holds ends when it is dropped.
#[derive(Debug)]
pub struct Importer(File);

impl Importer {
    /// Opens a file that is not attached.
    #[track_caller]
    pub fn open() -> Self {
        match OpenOptions::new().read(true).write(true).open(PATH) {
            Ok(file) => Self(file),
            Err(error) => panic!("{PATH} could not be opened: {error}"),
        }
    }

    /// # Safety
    ///
    /// `arg` is good for what `request` makes the kernel read and write there,
    /// or is an address that this process does not have.
    pub unsafe fn __ioctl_raw(&self, request: u32, arg: *mut c_void) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request.into(), arg) };
        Errno::result(result).map(drop)
    }

    /// `ATTACH`, with any argument.
    pub fn __attach_raw(&self, mut arg: p2p_importer_attach) -> Result<(), Errno> {
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_ATTACH, (&raw mut arg).cast()) }
    }

    /// `ATTACH`.
    pub fn __attach_to(&self, fd: &impl AsRawFd, how: Attach) -> Result<(), Errno> {
        let none = PciAddress {
            domain: 0,
            bus: 0,
            device: 0,
            function: 0,
        };
        let pci = how.device.unwrap_or(none);
        let peer = if how.peer { P2P_IMPORTER_PEER2PEER } else { 0 };
        let software = match how.device {
            Some(_) => 0,
            None => P2P_IMPORTER_SOFTWARE,
        };
        self.__attach_raw(p2p_importer_attach {
            fd: fd.as_raw_fd(),
            kind: how.kind as u32,
            answer: how.answer as u32,
            flags: peer | software,
            delay_ms: how.delay_ms,
            pci_domain: pci.domain,
            pci_bus: pci.bus,
            pci_device: pci.device,
            pci_function: pci.function,
            pad: 0,
        })
    }

    /// `ATTACH` of a new importer.
    pub fn __attach(fd: &impl AsRawFd, how: Attach) -> Result<Self, Errno> {
        let importer = Self::open();
        importer.__attach_to(fd, how)?;
        Ok(importer)
    }

    /// `ATTACH` of a new importer.
    #[track_caller]
    pub fn attach(fd: &impl AsRawFd, how: Attach) -> Self {
        must(Self::__attach(fd, how), format_args!("ATTACH {how:?}"))
    }

    fn __plain(&self, request: u32) -> Result<(), Errno> {
        // SAFETY: the request takes no argument.
        unsafe { self.__ioctl_raw(request, ptr::null_mut()) }
    }

    /// `DETACH`.
    pub fn __detach(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_DETACH)
    }

    /// `DETACH`.
    #[track_caller]
    pub fn detach(&self) {
        must(self.__detach(), format_args!("DETACH"));
    }

    /// `PIN`.
    pub fn __pin(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_PIN)
    }

    /// `PIN`.
    #[track_caller]
    pub fn pin(&self) {
        must(self.__pin(), format_args!("PIN"));
    }

    /// `UNPIN`.
    pub fn __unpin(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_UNPIN)
    }

    /// `UNPIN`.
    #[track_caller]
    pub fn unpin(&self) {
        must(self.__unpin(), format_args!("UNPIN"));
    }

    /// `START_ACCESS`.
    pub fn __start_access(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_START_ACCESS)
    }

    /// `START_ACCESS`.
    #[track_caller]
    pub fn start_access(&self) {
        must(self.__start_access(), format_args!("START_ACCESS"));
    }

    /// `MAP`; the index of the mapping and how many ranges it has.
    pub fn __map(&self, direction: Direction) -> Result<(u32, u32), Errno> {
        let mut arg = p2p_importer_map {
            direction: direction as u32,
            ..Default::default()
        };
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_MAP, (&raw mut arg).cast())? };
        Ok((arg.index, arg.ranges))
    }

    /// `MAP`; the index of the mapping.
    #[track_caller]
    pub fn map(&self, direction: Direction) -> u32 {
        must(self.__map(direction), format_args!("MAP {direction:?}")).0
    }

    /// `UNMAP`.
    pub fn __unmap(&self, index: u32) -> Result<(), Errno> {
        let mut arg = p2p_importer_unmap { index, pad: 0 };
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_UNMAP, (&raw mut arg).cast()) }
    }

    /// `UNMAP`.
    #[track_caller]
    pub fn unmap(&self, index: u32) {
        must(self.__unmap(index), format_args!("UNMAP {index}"));
    }

    /// `RANGES`.
    pub fn __ranges(&self, index: u32) -> Result<Vec<p2p_importer_range>, Errno> {
        let mut ranges = Vec::new();
        loop {
            let mut arg = p2p_importer_ranges {
                index,
                capacity: u32::try_from(ranges.len()).map_err(|_| Errno::EOVERFLOW)?,
                ranges: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the array has room for `capacity` entries.
            unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_RANGES, (&raw mut arg).cast())? };
            let count = usize::try_from(arg.count).map_err(|_| Errno::EOVERFLOW)?;
            if count <= ranges.len() {
                ranges.truncate(count);
                return Ok(ranges);
            }
            ranges.resize(count, p2p_importer_range::default());
        }
    }

    /// `RANGES`.
    #[track_caller]
    pub fn ranges(&self, index: u32) -> Vec<p2p_importer_range> {
        must(self.__ranges(index), format_args!("RANGES {index}"))
    }

    /// `CYCLE`: maps and unmaps `count` times.
    pub fn __cycle(&self, direction: Direction, count: u32) -> Result<(), Errno> {
        let mut arg = p2p_importer_cycle {
            direction: direction as u32,
            count,
        };
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_CYCLE, (&raw mut arg).cast()) }
    }

    /// `CYCLE`: maps and unmaps `count` times.
    #[track_caller]
    pub fn cycle(&self, direction: Direction, count: u32) {
        must(
            self.__cycle(direction, count),
            format_args!("CYCLE {count}"),
        );
    }

    /// `TIME`: how long it took to map and to unmap, `count` times.
    pub fn __time(
        &self,
        direction: Direction,
        count: usize,
    ) -> Result<Vec<p2p_importer_sample>, Errno> {
        let mut samples = vec![p2p_importer_sample::default(); count];
        let mut arg = p2p_importer_time {
            direction: direction as u32,
            count: count.try_into().map_err(|_| Errno::EOVERFLOW)?,
            samples: samples.as_mut_ptr() as u64,
        };
        // SAFETY: the structure is the one that the request is for, and its array has
        // as many entries as it says.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_TIME, (&raw mut arg).cast())? };
        Ok(samples)
    }

    /// `VMAP`: the kernel's CPU can reach the buffer.
    pub fn __vmap(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_VMAP)
    }

    /// `VMAP`.
    #[track_caller]
    pub fn vmap(&self) {
        must(self.__vmap(), format_args!("VMAP"));
    }

    /// `VUNMAP`.
    pub fn __vunmap(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_VUNMAP)
    }

    /// `VUNMAP`.
    #[track_caller]
    pub fn vunmap(&self) {
        must(self.__vunmap(), format_args!("VUNMAP"));
    }

    /// `VREAD` of as many bytes as `to` has.
    pub fn __vread(&self, offset: u64, to: &mut [u8]) -> Result<(), Errno> {
        let mut arg = p2p_importer_access {
            offset,
            size: to.len() as u64,
            data: to.as_mut_ptr() as u64,
        };
        // SAFETY: the structure is the one that the request is for, and its bytes are there.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_VREAD, (&raw mut arg).cast()) }
    }

    /// `VREAD` of `size` bytes.
    #[track_caller]
    pub fn vread(&self, offset: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        must(
            self.__vread(offset, &mut bytes),
            format_args!("VREAD {offset}"),
        );
        bytes
    }

    /// `VWRITE`.
    pub fn __vwrite(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let mut arg = p2p_importer_access {
            offset,
            size: from.len() as u64,
            data: from.as_ptr() as u64,
        };
        // SAFETY: the structure is the one that the request is for, and its bytes are there.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_VWRITE, (&raw mut arg).cast()) }
    }

    /// `VWRITE`.
    #[track_caller]
    pub fn vwrite(&self, offset: u64, from: &[u8]) {
        must(self.__vwrite(offset, from), format_args!("VWRITE {offset}"));
    }

    /// `INFO`.
    pub fn __info(&self) -> Result<p2p_importer_info, Errno> {
        let mut arg = p2p_importer_info::default();
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(P2P_IMPORTER_IOCTL_INFO, (&raw mut arg).cast())? };
        Ok(arg)
    }

    /// `INFO`.
    #[track_caller]
    pub fn info(&self) -> p2p_importer_info {
        must(self.__info(), format_args!("INFO"))
    }
}
