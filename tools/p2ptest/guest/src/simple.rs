// SPDX-License-Identifier: GPL-2.0
//! The simple device, an `ivshmem-plain` of QEMU, and what the sample drivers offer.

use crate::binding::{Unbound, wait_until};
use crate::dmabuf::DmaBuf;
use crate::drm::PciAddress;
use crate::map::Mapping;
use crate::memory::aperture;
use crate::must;
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

const PATH: &str = "/dev/p2p_simple";
/// `_IOW('V', 0, __u64[3])`
const EXPORT: u64 = 0x4018_5600;
/// `_IOW('V', 1, __u64)`
const EXPORT_LAZY: u64 = 0x4008_5601;

/// The drivers of the device: either can be bound, and both offer the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// That of `samples/rust/rust_p2p_simple.rs`
    Rust,
    /// That of `samples/p2p_bar/p2p_simple.c`
    C,
}

impl Driver {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust_p2p_simple",
            Self::C => "p2p_simple",
        }
    }

    /// That which is bound to the device, if one is.
    fn bound(pci: PciAddress) -> Option<Self> {
        let link = fs::read_link(pci.sysfs().join("driver")).ok()?;
        [Self::Rust, Self::C]
            .into_iter()
            .find(|driver| link.ends_with(driver.name()))
    }

    /// Has it bound to the device, and not the other one.
    #[track_caller]
    pub fn take(self) {
        let pci = find();
        let bound = Self::bound(pci);
        if bound == Some(self) {
            return;
        }
        if let Some(other) = bound {
            other.tell("unbind", pci);
        }
        self.tell("bind", pci);
    }

    #[track_caller]
    fn tell(self, file: &str, pci: PciAddress) {
        let path = format!("/sys/bus/pci/drivers/{}/{file}", self.name());
        if let Err(error) = fs::write(&path, pci.to_string()) {
            panic!("{pci} to {path}: {error}");
        }
    }
}

/// An open file of the driver.
#[derive(Debug)]
pub struct Simple {
    file: File,
    /// Whose file it is
    pub driver: Driver,
    /// Where the device is
    pub pci: PciAddress,
}

/// Where the device is: all guests have one.
#[track_caller]
fn find() -> PciAddress {
    let folder = fs::read_dir("/sys/bus/pci/devices").expect("the PCI devices");
    let is_it = |path: &std::path::Path| {
        let has =
            |file: &str, id| fs::read_to_string(path.join(file)).is_ok_and(|s| s.trim() == id);
        has("vendor", "0x1af4") && has("device", "0x1110")
    };
    folder
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| is_it(path))
        .and_then(|path| path.file_name()?.to_str()?.parse().ok())
        .expect("an ivshmem-plain")
}

impl Simple {
    /// Opens the driver's file, of whose pages nobody has any.
    #[track_caller]
    pub fn open() -> Self {
        let pci = find();
        let of_device = || Driver::bound(pci).is_some();
        wait_until("the device has a driver", of_device);
        let simple = Self::of(Driver::bound(pci).expect("a driver"), pci);
        simple.wait_free();
        simple
    }

    /// Opens the driver's file, of a device that is bound to it.
    #[track_caller]
    pub fn of(driver: Driver, pci: PciAddress) -> Self {
        let file = || OpenOptions::new().read(true).write(true).open(PATH);
        // The device may have been bound a moment ago.
        wait_until(PATH, || file().is_ok());
        Self {
            file: file().expect(PATH),
            driver,
            pci,
        }
    }

    /// Any ioctl; the descriptor of a dma-buf.
    ///
    /// # Safety
    ///
    /// `arg` is good for what `request` makes the kernel read there, or is an address
    /// that this process does not have.
    pub unsafe fn __ioctl_raw(&self, request: u64, arg: *const u64) -> Result<DmaBuf, Errno> {
        // SAFETY: the caller's promise.
        let fd = Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), request, arg) })?;
        // SAFETY: the driver has just made it, for us alone.
        Ok(DmaBuf(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// `EXPORT`, with any arguments.
    pub fn __export_raw(&self, arg: [u64; 3]) -> Result<DmaBuf, Errno> {
        // SAFETY: three numbers are what it reads.
        unsafe { self.__ioctl_raw(EXPORT, arg.as_ptr()) }
    }

    /// `EXPORT` of pages of the BAR.
    pub fn __export(&self, pages: Range<u64>) -> Result<DmaBuf, Errno> {
        self.__export_raw([pages.start * PAGE, (pages.end - pages.start) * PAGE, 0])
    }

    /// `EXPORT` of pages of the BAR.
    #[track_caller]
    pub fn export(&self, pages: Range<u64>) -> DmaBuf {
        must(
            self.__export(pages.clone()),
            format_args!("EXPORT of {pages:?}"),
        )
    }

    /// `EXPORT` of pages of the BAR, to read only.
    #[track_caller]
    pub fn export_read_only(&self, pages: Range<u64>) -> DmaBuf {
        let arg = [pages.start * PAGE, (pages.end - pages.start) * PAGE, 1];
        must(self.__export_raw(arg), format_args!("EXPORT of {pages:?}"))
    }

    /// `EXPORT_LAZY`, of any number of bytes.
    pub fn __export_lazy(&self, size: u64) -> Result<DmaBuf, Errno> {
        // SAFETY: one number is what it reads.
        unsafe { self.__ioctl_raw(EXPORT_LAZY, &raw const size) }
    }

    /// `EXPORT_LAZY` of so many pages.
    #[track_caller]
    pub fn export_lazy(&self, pages: u64) -> DmaBuf {
        must(
            self.__export_lazy(pages * PAGE),
            format_args!("EXPORT_LAZY of {pages} pages"),
        )
    }

    /// Maps the driver's file: lazy pages.
    #[track_caller]
    pub fn map(&self, pages: u64) -> Mapping {
        let len = usize::try_from(pages * PAGE).expect("fits");
        let map = Mapping::__new(self, 0, len);
        must(map, format_args!("mmap of {pages} pages"))
    }

    /// Where the BAR is.
    #[track_caller]
    pub fn bar(&self) -> Range<u64> {
        aperture(self.pci)
    }

    /// Pages of the BAR.
    #[track_caller]
    pub fn pages(&self) -> u64 {
        let bar = self.bar();
        (bar.end - bar.start) / PAGE
    }

    /// The whole BAR, past the driver.
    #[track_caller]
    pub fn memory(&self) -> Mapping {
        let path = self.pci.sysfs().join("resource2");
        let file = OpenOptions::new().read(true).write(true).open(path);
        let len = usize::try_from(self.pages() * PAGE).expect("fits");
        let map = Mapping::__new(&file.expect("the BAR's file"), 0, len);
        must(map, format_args!("mmap of the BAR"))
    }

    /// Pages of the BAR that belong to a dma-buf.
    #[track_caller]
    pub fn used(&self) -> BTreeSet<u64> {
        let is_used = |page: &u64| match self.__export(*page..*page + 1) {
            Ok(_) => false,
            Err(Errno::EBUSY) => true,
            Err(errno) => panic!("page {page}: {errno}"),
        };
        (0..self.pages()).filter(is_used).collect()
    }

    /// Waits until nobody has a page: closed files are released a moment later.
    #[track_caller]
    pub fn wait_free(&self) {
        wait_until("all pages are free", || {
            self.__export(0..self.pages()).is_ok()
        });
    }

    /// Takes the device from its driver, until the result is dropped.
    #[track_caller]
    pub fn unbind(&self) -> Unbound {
        Unbound::new(self.driver.name(), self.pci)
    }
}

impl AsFd for Simple {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
