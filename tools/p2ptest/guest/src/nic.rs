// SPDX-License-Identifier: GPL-2.0
//! The p2pnic uapi: devices, memory regions and queue pairs that are destroyed
//! when dropped.

use crate::drm::PciAddress;
use crate::map::Mapping;
use crate::sys::uapi::*;
use crate::{igt, must};
use nix::errno::Errno;
use nix::libc;
use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A structure that one ioctl of p2pnic takes.
///
/// # Safety
///
/// `REQUEST` makes the kernel access that structure and nothing else.
pub unsafe trait Argument {
    /// The ioctl's number.
    const REQUEST: u32;
}

macro_rules! arguments {
    ($($type:ty = $request:ident),+ $(,)?) => {
        $(
            // SAFETY: the uapi header gives the ioctl this structure, which
            // has no pointers.
            unsafe impl Argument for $type {
                const REQUEST: u32 = $request;
            }
        )+
    };
}

arguments! {
    p2pnic_query = P2PNIC_IOCTL_QUERY,
    p2pnic_reg_region = P2PNIC_IOCTL_REG_REGION,
    p2pnic_reg_user = P2PNIC_IOCTL_REG_USER,
    p2pnic_dereg_region = P2PNIC_IOCTL_DEREG_REGION,
    p2pnic_region_info = P2PNIC_IOCTL_REGION_INFO,
    p2pnic_create_qp = P2PNIC_IOCTL_CREATE_QP,
    p2pnic_connect_qp = P2PNIC_IOCTL_CONNECT_QP,
    p2pnic_destroy_qp = P2PNIC_IOCTL_DESTROY_QP,
    p2pnic_post_send = P2PNIC_IOCTL_POST_SEND,
    p2pnic_post_recv = P2PNIC_IOCTL_POST_RECV,
}

/// Every right to a region.
pub const ACCESS_ALL: u32 =
    P2PNIC_ACCESS_LOCAL_WRITE | P2PNIC_ACCESS_REMOTE_READ | P2PNIC_ACCESS_REMOTE_WRITE;

/// An open file of a p2pnic device.
#[derive(Debug)]
pub struct Nic {
    file: File,
    path: PathBuf,
    pci: PciAddress,
}

impl Nic {
    /// The files of all NICs, in the order of their PCI addresses.
    pub fn paths() -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/dev")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("p2pnic") {
                found.push((Self::__open(&entry.path())?.pci, entry.path()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Opens a NIC's file.
    pub fn __open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let pci = PciAddress {
            domain: 0,
            bus: 0,
            device: 0,
            function: 0,
        };
        let mut nic = Self {
            file,
            path: path.to_owned(),
            pci,
        };
        let query = nic.__query()?;
        nic.pci = PciAddress {
            domain: query.pci_domain,
            bus: query.pci_bus,
            device: query.pci_device,
            function: query.pci_function,
        };
        Ok(nic)
    }

    /// Opens the NIC with this number; skips the subtest if there are fewer.
    #[track_caller]
    pub fn open(index: usize) -> Self {
        let paths = match Self::paths() {
            Ok(paths) => paths,
            Err(error) => panic!("the NICs could not be listed: {error}"),
        };
        let Some(path) = paths.get(index) else {
            igt::skip(format!(
                "needs {} p2pnic devices, found {}",
                index + 1,
                paths.len()
            ));
        };
        match Self::__open(path) {
            Ok(nic) => nic,
            Err(error) => panic!("{} could not be opened: {error}", path.display()),
        }
    }

    /// Opens the same device another time.
    #[track_caller]
    pub fn reopen(&self) -> Self {
        match Self::__open(&self.path) {
            Ok(nic) => nic,
            Err(error) => panic!("{} could not be opened: {error}", self.path.display()),
        }
    }

    /// Where the device is.
    pub fn pci(&self) -> PciAddress {
        self.pci
    }

    /// Any ioctl, with any argument.
    ///
    /// # Safety
    ///
    /// `arg` is good for what `request` makes the kernel read and write there,
    /// or is an address that this process does not have.
    pub unsafe fn __ioctl_raw(&self, request: u32, arg: *mut c_void) -> Result<(), Errno> {
        // Not drmIoctl, which would try again at EAGAIN: a full queue.
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request.into(), arg) };
        Errno::result(result).map(drop)
    }

    /// An ioctl, with any argument of its type.
    pub fn __ioctl<T: Argument>(&self, arg: &mut T) -> Result<(), Errno> {
        // SAFETY: the structure is the one that the request is for.
        unsafe { self.__ioctl_raw(T::REQUEST, (&raw mut *arg).cast()) }
    }

    /// `QUERY`.
    pub fn __query(&self) -> Result<p2pnic_query, Errno> {
        let mut arg = p2pnic_query::default();
        self.__ioctl(&mut arg)?;
        Ok(arg)
    }

    /// `QUERY`.
    #[track_caller]
    pub fn query(&self) -> p2pnic_query {
        must(self.__query(), format_args!("p2pnic QUERY"))
    }

    /// `REG_REGION`; `fd` may be any number, open or not.
    pub fn __register(
        &self,
        fd: i32,
        access: u32,
        offset: u64,
        size: u64,
    ) -> Result<Region<'_>, Errno> {
        let mut arg = p2pnic_reg_region {
            fd,
            access,
            offset,
            size,
            ..Default::default()
        };
        self.__ioctl(&mut arg)?;
        Ok(Region {
            nic: self,
            key: arg.key,
            size,
        })
    }

    /// `REG_REGION` of the first `size` bytes of a dma-buf.
    #[track_caller]
    pub fn register(&self, fd: &impl AsRawFd, access: u32, size: u64) -> Region<'_> {
        must(
            self.__register(fd.as_raw_fd(), access, 0, size),
            format_args!("REG_REGION of {size:#x} bytes"),
        )
    }

    /// `REG_USER`; `address` may be any number.
    pub fn __register_user(
        &self,
        address: usize,
        access: u32,
        size: u64,
    ) -> Result<Region<'_>, Errno> {
        let mut arg = p2pnic_reg_user {
            address: address as u64,
            size,
            access,
            key: 0,
        };
        self.__ioctl(&mut arg)?;
        Ok(Region {
            nic: self,
            key: arg.key,
            size,
        })
    }

    /// `REG_USER` of a whole mapping.
    pub fn __register_map(&self, map: &Mapping, access: u32) -> Result<Region<'_>, Errno> {
        self.__register_user(map.address().get(), access, map.len() as u64)
    }

    /// `REG_USER` of a whole mapping.
    #[track_caller]
    pub fn register_map(&self, map: &Mapping, access: u32) -> Region<'_> {
        must(
            self.__register_map(map, access),
            format_args!("REG_USER of {:#x} bytes", map.len()),
        )
    }

    /// `DEREG_REGION`, by key.
    pub fn __deregister(&self, key: u32) -> Result<(), Errno> {
        self.__ioctl(&mut p2pnic_dereg_region { key, pad: 0 })
    }

    /// `CREATE_QP`.
    pub fn __create_qp(&self, send_entries: u32, recv_entries: u32) -> Result<Qp<'_>, Errno> {
        let mut arg = p2pnic_create_qp {
            send_entries,
            recv_entries,
            ..Default::default()
        };
        self.__ioctl(&mut arg)?;
        Ok(Qp {
            nic: self,
            number: arg.qp,
        })
    }

    /// `CREATE_QP`.
    #[track_caller]
    pub fn create_qp(&self, send_entries: u32, recv_entries: u32) -> Qp<'_> {
        must(
            self.__create_qp(send_entries, recv_entries),
            format_args!("CREATE_QP {send_entries} {recv_entries}"),
        )
    }

    /// `DESTROY_QP`, by number.
    pub fn __destroy_qp(&self, qp: u32) -> Result<(), Errno> {
        self.__ioctl(&mut p2pnic_destroy_qp { qp, pad: 0 })
    }
}

impl AsFd for Nic {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A memory region, destroyed when dropped.
#[derive(Debug)]
pub struct Region<'n> {
    nic: &'n Nic,
    /// Names the region in requests
    pub key: u32,
    /// Bytes
    pub size: u64,
}

impl<'n> Region<'n> {
    /// A region that another process has made with the same open file.
    pub fn of(nic: &'n Nic, key: u32, size: u64) -> Self {
        Self { nic, key, size }
    }

    /// The open file that the region is of.
    pub fn nic(&self) -> &'n Nic {
        self.nic
    }

    /// `REGION_INFO`.
    pub fn __info(&self) -> Result<p2pnic_region_info, Errno> {
        let mut arg = p2pnic_region_info {
            key: self.key,
            ..Default::default()
        };
        self.nic.__ioctl(&mut arg)?;
        Ok(arg)
    }

    /// `REGION_INFO`.
    #[track_caller]
    pub fn info(&self) -> p2pnic_region_info {
        must(self.__info(), format_args!("REGION_INFO"))
    }

    /// `DEREG_REGION`.
    #[track_caller]
    pub fn deregister(self) {
        let (nic, key) = (self.nic, self.key);
        std::mem::forget(self);
        must(nic.__deregister(key), format_args!("DEREG_REGION"));
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // It may be destroyed already; one that stays shows as a leak.
        let _ = self.nic.__deregister(self.key);
    }
}

/// A queue pair, destroyed when dropped.
#[derive(Debug)]
pub struct Qp<'n> {
    nic: &'n Nic,
    /// Its number on the device
    pub number: u32,
}

impl<'n> Qp<'n> {
    /// The open file that the queue pair is of.
    pub fn nic(&self) -> &'n Nic {
        self.nic
    }

    /// `CONNECT_QP`.
    pub fn __connect(&self, remote_qp: u32) -> Result<(), Errno> {
        self.nic.__ioctl(&mut p2pnic_connect_qp {
            qp: self.number,
            remote_qp,
        })
    }

    /// `CONNECT_QP`.
    #[track_caller]
    pub fn connect(&self, remote: &Qp<'_>) {
        must(self.__connect(remote.number), format_args!("CONNECT_QP"));
    }

    /// `POST_SEND`; the queue pair's number is filled in.
    pub fn __post_send(&self, mut request: p2pnic_post_send) -> Result<(), Errno> {
        request.qp = self.number;
        self.nic.__ioctl(&mut request)
    }

    /// `POST_SEND`; the queue pair's number is filled in.
    #[track_caller]
    pub fn post_send(&self, request: p2pnic_post_send) {
        must(self.__post_send(request), format_args!("POST_SEND"));
    }

    /// `POST_RECV` of a whole region; the id is that of the completion.
    pub fn __post_recv(&self, id: u64, region: &Region<'_>) -> Result<(), Errno> {
        self.nic.__ioctl(&mut p2pnic_post_recv {
            qp: self.number,
            local_key: region.key,
            id,
            local_offset: 0,
            size: region.size,
        })
    }

    /// `POLL` for up to `capacity` completions.
    pub fn __poll(
        &self,
        capacity: u32,
        timeout: Duration,
    ) -> Result<Vec<p2pnic_completion>, Errno> {
        let room = usize::try_from(capacity).map_err(|_| Errno::EOVERFLOW)?;
        let mut completions = vec![p2pnic_completion::default(); room];
        let mut arg = p2pnic_poll {
            qp: self.number,
            capacity,
            timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            completions: completions.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the array has room for `capacity` entries.
        unsafe {
            self.nic
                .__ioctl_raw(P2PNIC_IOCTL_POLL, (&raw mut arg).cast())?
        };
        completions.truncate(usize::try_from(arg.count).map_err(|_| Errno::EOVERFLOW)?);
        Ok(completions)
    }

    /// Waits for one completion.
    #[track_caller]
    pub fn wait(&self) -> p2pnic_completion {
        let found = must(self.__poll(1, TIMEOUT), format_args!("POLL"));
        assert_eq!(found.len(), 1, "POLL returned without a completion");
        found[0]
    }

    /// Waits for one completion and asserts its status.
    #[track_caller]
    pub fn expect(&self, status: u32) -> p2pnic_completion {
        let completion = self.wait();
        assert_eq!(
            status_name(completion.status),
            status_name(status),
            "status of {completion:?}"
        );
        completion
    }
}

/// Longer than any transfer of a test takes on a slow machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What a status is called.
pub fn status_name(status: u32) -> &'static str {
    match status {
        P2PNIC_STATUS_OK => "OK",
        P2PNIC_STATUS_LOCAL_ACCESS => "LOCAL_ACCESS",
        P2PNIC_STATUS_REMOTE_ACCESS => "REMOTE_ACCESS",
        P2PNIC_STATUS_LENGTH => "LENGTH",
        P2PNIC_STATUS_REVOKED => "REVOKED",
        P2PNIC_STATUS_FLUSHED => "FLUSHED",
        P2PNIC_STATUS_LINK_DOWN => "LINK_DOWN",
        P2PNIC_STATUS_DMA_ERROR => "DMA_ERROR",
        P2PNIC_STATUS_BAD_REQUEST => "BAD_REQUEST",
        _ => "unknown status",
    }
}

impl Drop for Qp<'_> {
    fn drop(&mut self) {
        // It may be destroyed already; one that stays shows as a leak.
        let _ = self.nic.__destroy_qp(self.number);
    }
}
