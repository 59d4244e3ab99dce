// SPDX-License-Identifier: GPL-2.0
//! A device that vfio-pci has, as an exporter of its BARs: the one in C that runs
//! here. There is no IOMMU: what userspace could do with the device is not guarded.

use crate::binding::Unbound;
use crate::dmabuf::DmaBuf;
use crate::drm::PciAddress;
use nix::errno::Errno;
use nix::libc;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

const NOIOMMU_SETTING: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";

mod request {
    use nix::libc::c_char;

    // The names and numbers of linux/vfio.h, which passes numbers by value.
    nix::ioctl_write_int_bad!(set_iommu, nix::request_code_none!(b';', 102));
    nix::ioctl_write_ptr_bad!(set_container, nix::request_code_none!(b';', 104), i32);
    nix::ioctl_write_ptr_bad!(device_fd, nix::request_code_none!(b';', 106), c_char);
    nix::ioctl_write_ptr_bad!(feature, nix::request_code_none!(b';', 117), u32);
}

/// `VFIO_NOIOMMU_IOMMU`
const NOIOMMU: i32 = 8;
/// `VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF`
const GET_DMA_BUF: u32 = 1 << 16 | 11;
/// Where the config space is in the device's file.
const CONFIG: u64 = 7 << 40;
const COMMAND: u64 = CONFIG + 4;
const COMMAND_MEMORY: u16 = 1 << 1;

/// A GPU whose BARs vfio-pci exports; p2pgpu gets it back when this is dropped.
#[derive(Debug)]
pub struct VfioDevice {
    // Fields are dropped in this order: the files first, our driver's claim last.
    device: File,
    _group: File,
    _container: File,
    _bound: Bound,
    _unbound: Unbound,
}

/// A device that vfio-pci is bound to.
#[derive(Debug)]
struct Bound(PciAddress);

impl Bound {
    fn new(pci: PciAddress) -> io::Result<Self> {
        fs::write(pci.sysfs().join("driver_override"), "vfio-pci")?;
        let bound = Self(pci);
        fs::write(format!("{DRIVER}/bind"), pci.to_string())?;
        Ok(bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // What is left shows: the GPU does not come back.
        let _ = fs::write(format!("{DRIVER}/unbind"), self.0.to_string());
        let _ = fs::write(self.0.sysfs().join("driver_override"), "\n");
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

impl VfioDevice {
    /// Takes a GPU from p2pgpu.
    pub fn new(pci: PciAddress) -> io::Result<Self> {
        fs::write(NOIOMMU_SETTING, "Y")?;
        let unbound = Unbound::new("p2pgpu", pci);
        let bound = Bound::new(pci)?;
        let group = fs::read_link(pci.sysfs().join("iommu_group"))?;
        let number = group.file_name().unwrap_or_default().to_string_lossy();
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/noiommu-{number}"))?;
        let name = std::ffi::CString::new(pci.to_string())?;
        // SAFETY: the arguments are those that the requests are for.
        let device = unsafe {
            request::set_container(group.as_raw_fd(), &container.as_raw_fd())?;
            request::set_iommu(container.as_raw_fd(), NOIOMMU)?;
            let fd = request::device_fd(group.as_raw_fd(), name.as_ptr())?;
            // The kernel has just made it, for us alone.
            File::from_raw_fd(fd)
        };
        let mut command = [0; 2];
        device.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) | COMMAND_MEMORY;
        device.write_all_at(&command.to_le_bytes(), COMMAND)?;
        Ok(Self {
            device,
            _group: group,
            _container: container,
            _bound: bound,
            _unbound: unbound,
        })
    }

    /// A dma-buf of ranges of a BAR: pairs of offset and length.
    pub fn export(&self, bar: u32, ranges: &[(u64, u64)]) -> Result<DmaBuf, Errno> {
        let flags = (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned();
        let count = u32::try_from(ranges.len()).map_err(|_| Errno::EOVERFLOW)?;
        // struct vfio_device_feature, then struct vfio_device_feature_dma_buf.
        let mut arg: Vec<u32> = vec![0, GET_DMA_BUF, bar, flags, 0, count];
        for &(offset, length) in ranges {
            for word in [offset, length] {
                arg.extend([word as u32, (word >> 32) as u32]);
            }
        }
        arg[0] = u32::try_from(size_of_val(&arg[..])).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the structure is as long as it says.
        let fd = unsafe { request::feature(self.device.as_raw_fd(), arg.as_ptr())? };
        // SAFETY: the kernel has just made it, for us alone.
        Ok(DmaBuf(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
