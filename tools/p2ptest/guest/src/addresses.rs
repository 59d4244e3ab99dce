// SPDX-License-Identifier: GPL-2.0
//! Importers of user addresses, by `/dev/p2p_importer_test`.

use crate::drm::PciAddress;
use crate::importer::Importer;
use crate::map::Mapping;
use crate::must;
use crate::sys::uapi::*;
use nix::errno::Errno;
use std::ptr;

/// A range of this process that a device uses; the use ends when it is dropped.
#[derive(Debug)]
pub struct Addresses(Importer);

/// What the device has of the range, and how often it was given and taken back.
#[derive(Debug)]
pub struct Info {
    /// Each of its pages; none if it is not mapped
    pub pages: Vec<p2p_importer_range>,
    /// Times that it was mapped
    pub maps: u32,
    /// Times that it was taken back, or unmapped
    pub invalidations: u32,
}

impl Info {
    /// The physical address of each page.
    pub fn physical(&self) -> Vec<u64> {
        self.pages.iter().map(|page| page.physical).collect()
    }
}

impl Addresses {
    /// `REGISTER`, with any argument, of a file that may be one already.
    pub fn __register_raw(
        importer: &Importer,
        mut arg: p2p_importer_register,
    ) -> Result<(), Errno> {
        // SAFETY: the structure is the one that the request is for.
        unsafe { importer.__ioctl_raw(P2P_IMPORTER_IOCTL_REGISTER, (&raw mut arg).cast()) }
    }

    /// The argument for `pages` of a mapping from page `first` on.
    pub fn argument(
        device: PciAddress,
        map: &Mapping,
        (first, pages): (usize, usize),
        write: bool,
    ) -> p2p_importer_register {
        const PAGE: usize = 4096;
        p2p_importer_register {
            start: (map.as_ptr().addr() + first * PAGE) as u64,
            length: (pages * PAGE) as u64,
            flags: if write { P2P_IMPORTER_WRITE } else { 0 },
            pci_domain: device.domain,
            pci_bus: device.bus,
            pci_device: device.device,
            pci_function: device.function,
            pad: 0,
        }
    }

    /// `REGISTER` of pages of a mapping, from page `.0` on so many as `.1`.
    #[track_caller]
    pub fn register(device: PciAddress, map: &Mapping, pages: (usize, usize), write: bool) -> Self {
        let importer = Importer::open();
        let arg = Self::argument(device, map, pages, write);
        must(
            Self::__register_raw(&importer, arg),
            format_args!("REGISTER"),
        );
        Self(importer)
    }

    /// A file that has a range.
    pub fn of(importer: Importer) -> Self {
        Self(importer)
    }

    fn __plain(&self, request: u32) -> Result<(), Errno> {
        // SAFETY: the request takes no argument.
        unsafe { self.0.__ioctl_raw(request, ptr::null_mut()) }
    }

    /// `MAP_REGION`.
    pub fn __map(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_MAP_REGION)
    }

    /// `MAP_REGION`; what the device has then.
    #[track_caller]
    pub fn map(&self) -> Info {
        must(self.__map(), format_args!("MAP_REGION"));
        self.info()
    }

    /// `UNMAP_REGION`.
    #[track_caller]
    pub fn unmap(&self) {
        let unmapped = self.__plain(P2P_IMPORTER_IOCTL_UNMAP_REGION);
        must(unmapped, format_args!("UNMAP_REGION"));
    }

    /// `UNREGISTER`.
    pub fn __unregister(&self) -> Result<(), Errno> {
        self.__plain(P2P_IMPORTER_IOCTL_UNREGISTER)
    }

    /// `REGION` of a file that may be no importer.
    pub fn __info_of(importer: &Importer) -> Result<Info, Errno> {
        let mut pages = Vec::new();
        loop {
            let mut arg = p2p_importer_region {
                pages: pages.as_mut_ptr() as u64,
                capacity: u32::try_from(pages.len()).map_err(|_| Errno::EOVERFLOW)?,
                ..Default::default()
            };
            // SAFETY: the array has room for `capacity` entries.
            unsafe { importer.__ioctl_raw(P2P_IMPORTER_IOCTL_REGION, (&raw mut arg).cast())? };
            let count = usize::try_from(arg.count).map_err(|_| Errno::EOVERFLOW)?;
            if count <= pages.len() {
                pages.truncate(count);
                return Ok(Info {
                    pages,
                    maps: arg.maps,
                    invalidations: arg.invalidations,
                });
            }
            pages.resize(count, p2p_importer_range::default());
        }
    }

    /// `REGION`.
    #[track_caller]
    pub fn info(&self) -> Info {
        must(Self::__info_of(&self.0), format_args!("REGION"))
    }
}
