// SPDX-License-Identifier: GPL-2.0
//! libdrm: devices, versions, PRIME and ioctls. The C library does the work.

use crate::sys::libdrm;
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr;
use std::str::FromStr;

/// Where a function is on the PCI bus. Ordered as the bus is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment
    pub domain: u32,
    /// 0 to 255
    pub bus: u32,
    /// 0 to 31
    pub device: u32,
    /// 0 to 7
    pub function: u32,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl PciAddress {
    /// The device's folder in sysfs.
    pub fn sysfs(&self) -> PathBuf {
        PathBuf::from("/sys/bus/pci/devices").join(self.to_string())
    }
}

/// The text is not of the form `0000:03:00.0`.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPciAddress;

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        let number = |part: &str| u32::from_str_radix(part, 16).map_err(|_| BadPciAddress);
        let (rest, function) = text.rsplit_once('.').ok_or(BadPciAddress)?;
        let mut parts = rest.split(':');
        let mut next = || parts.next().ok_or(BadPciAddress).and_then(number);
        let (domain, bus, device) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(BadPciAddress);
        }
        Ok(Self {
            domain,
            bus,
            device,
            function: number(function)?,
        })
    }
}

/// A DRM device with a render node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `/dev/dri/renderD*`
    pub path: PathBuf,
    /// `/dev/dri/card*`, if the device has one
    pub primary: Option<PathBuf>,
    /// Where the device is
    pub pci: PciAddress,
    /// PCI vendor
    pub vendor: u16,
    /// PCI device
    pub device: u16,
}

impl Node {
    /// Opens the render node.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(&self.path)
    }
}

/// What a driver says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The driver's name, as `p2pgpu`
    pub name: String,
    /// What it is for
    pub description: String,
    /// When it was made, as it has it
    pub date: String,
    /// Major and minor version, patch level
    pub number: (i32, i32, i32),
}

/// Most devices that a guest is expected to have.
const MAX_DEVICES: usize = 64;

/// The PCI devices with a render node whose driver is `driver`, in the order
/// of their PCI addresses.
pub fn nodes(driver: &str) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for node in pci_nodes()? {
        // A device that cannot be opened is not one of ours: others may be
        // out of reach for good reasons.
        let Ok(file) = node.open() else { continue };
        if version(&file)?.name == driver {
            nodes.push(node);
        }
    }
    nodes.sort_by_key(|node| node.pci);
    Ok(nodes)
}

fn pci_nodes() -> io::Result<Vec<Node>> {
    let mut devices = [ptr::null_mut(); MAX_DEVICES];
    // SAFETY: the array has room for as many entries as the call is told.
    let count = unsafe { libdrm::drmGetDevices2(0, devices.as_mut_ptr(), MAX_DEVICES as c_int) };
    if count == -libc::ENOENT {
        // There is no /dev/dri: no device at all.
        return Ok(Vec::new());
    }
    if count < 0 {
        return Err(io::Error::from_raw_os_error(-count));
    }
    let found = usize::try_from(count).unwrap_or(0).min(MAX_DEVICES);
    // SAFETY: libdrm filled these entries with devices, freed below only.
    let nodes = devices[..found]
        .iter()
        .filter_map(|&device| unsafe { pci_node(device) })
        .collect();
    // SAFETY: these entries are from drmGetDevices2 and nothing borrows them.
    unsafe { libdrm::drmFreeDevices(devices.as_mut_ptr(), count) };
    Ok(nodes)
}

/// # Safety
///
/// `device` comes from `drmGetDevices2` and was not freed.
unsafe fn pci_node(device: libdrm::drmDevicePtr) -> Option<Node> {
    // SAFETY: the caller's promise.
    let device = unsafe { &*device };
    if device.bustype != libdrm::DRM_BUS_PCI as c_int {
        return None;
    }
    let path = |kind: u32| {
        (device.available_nodes & (1 << kind) != 0).then(|| {
            // SAFETY: `nodes` has DRM_NODE_MAX entries, and those that are
            // available are C strings.
            let text = unsafe { CStr::from_ptr(*device.nodes.add(kind as usize)) };
            PathBuf::from(text.to_string_lossy().into_owned())
        })
    };
    // SAFETY: the bus is PCI, which says what the two unions hold.
    let (bus, info) = unsafe { (&*device.businfo.pci, &*device.deviceinfo.pci) };
    Some(Node {
        path: path(libdrm::DRM_NODE_RENDER)?,
        primary: path(libdrm::DRM_NODE_PRIMARY),
        pci: PciAddress {
            domain: bus.domain.into(),
            bus: bus.bus.into(),
            device: bus.dev.into(),
            function: bus.func.into(),
        },
        vendor: info.vendor_id,
        device: info.device_id,
    })
}

/// `drmGetVersion`.
pub fn version(file: &impl AsFd) -> io::Result<Version> {
    // SAFETY: takes nothing but a file descriptor.
    let raw = unsafe { libdrm::drmGetVersion(file.as_fd().as_raw_fd()) };
    // SAFETY: null, or a structure that is ours until it is freed.
    let Some(version) = (unsafe { raw.as_ref() }) else {
        return Err(io::Error::last_os_error());
    };
    let text = |start: *const std::ffi::c_char| {
        // SAFETY: libdrm ends these strings with a zero.
        unsafe { CStr::from_ptr(start) }
            .to_string_lossy()
            .into_owned()
    };
    let copy = Version {
        name: text(version.name),
        description: text(version.desc),
        date: text(version.date),
        number: (
            version.version_major,
            version.version_minor,
            version.version_patchlevel,
        ),
    };
    // SAFETY: came from drmGetVersion; the strings were copied.
    unsafe { libdrm::drmFreeVersion(raw) };
    Ok(copy)
}

/// `drmIoctl`, which tries again after EINTR.
///
/// # Safety
///
/// `arg` is good for what `request` makes the kernel read and write there, or
/// is an address that this process does not have.
pub unsafe fn ioctl(file: &impl AsFd, request: u32, arg: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { libdrm::drmIoctl(file.as_fd().as_raw_fd(), c_ulong::from(request), arg) };
    Errno::result(result).map(drop)
}

/// `drmPrimeHandleToFD`; `flags` of `DRM_CLOEXEC` and `DRM_RDWR`, which are
/// `O_CLOEXEC` and `O_RDWR`.
pub fn prime_handle_to_fd(file: &impl AsFd, handle: u32, flags: i32) -> Result<OwnedFd, Errno> {
    let mut fd = -1;
    // SAFETY: the call stores one int.
    let result = unsafe {
        libdrm::drmPrimeHandleToFD(
            file.as_fd().as_raw_fd(),
            handle,
            flags.cast_unsigned(),
            &mut fd,
        )
    };
    Errno::result(result)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The flags that an ordinary export has.
pub const PRIME_FLAGS: i32 = libc::O_CLOEXEC | libc::O_RDWR;

/// `drmPrimeFDToHandle`; `fd` may be any number, open or not.
pub fn prime_fd_to_handle(file: &impl AsFd, fd: i32) -> Result<u32, Errno> {
    let mut handle = 0;
    // SAFETY: the call stores one u32.
    let result = unsafe { libdrm::drmPrimeFDToHandle(file.as_fd().as_raw_fd(), fd, &mut handle) };
    Errno::result(result)?;
    Ok(handle)
}

/// `drmCloseBufferHandle`.
pub fn close_handle(file: &impl AsFd, handle: u32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    let result = unsafe { libdrm::drmCloseBufferHandle(file.as_fd().as_raw_fd(), handle) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_read_and_written() {
        let address = PciAddress {
            domain: 0,
            bus: 0x1a,
            device: 0x1f,
            function: 7,
        };
        assert_eq!(address.to_string(), "0000:1a:1f.7");
        assert_eq!("0000:1a:1f.7".parse(), Ok(address));
        for bad in [
            "",
            "0000:1a:1f",
            "1a:1f.7",
            "0000:1a:1f:3.7",
            "0000:zz:1f.7",
        ] {
            assert_eq!(bad.parse::<PciAddress>(), Err(BadPciAddress), "{bad}");
        }
    }

    #[test]
    fn pci_addresses_sort_as_numbers() {
        let low: PciAddress = "0000:03:00.0".parse().unwrap();
        let high: PciAddress = "0000:10:00.0".parse().unwrap();
        assert!(low < high);
    }

    #[test]
    fn calls_on_what_is_no_drm_file_are_errors() {
        let file = File::open("/dev/null").unwrap();
        assert!(version(&file).is_err());
        assert_eq!(prime_fd_to_handle(&file, -1), Err(Errno::ENOTTY));
        assert_eq!(close_handle(&file, 1), Err(Errno::ENOTTY));
        assert!(prime_handle_to_fd(&file, 1, PRIME_FLAGS).is_err());
    }

    #[test]
    fn no_driver_has_this_name() {
        assert_eq!(nodes("no-such-driver").unwrap(), []);
    }
}
