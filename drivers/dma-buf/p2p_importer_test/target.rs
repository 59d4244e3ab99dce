// SPDX-License-Identifier: GPL-2.0

//! The device on whose behalf an importer attaches.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma_buf::software::SoftwareDevice,
    pci::{
        self,
        p2pdma, //
    },
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
    }, //
};

/// See the module's documentation.
pub(crate) enum Target {
    /// Some PCI device; what its driver thinks of it does not matter.
    Pci(ARef<pci::Device>),
    /// A device of our own.
    Software(SoftwareDevice),
}

impl Target {
    /// The device at a PCI address. `EINVAL`: no such address. `ENXIO`: no such device.
    pub(crate) fn pci(domain: u32, bus: u32, device: u32, function: u32) -> Result<Self> {
        let number = |number: u32| u8::try_from(number).map_err(|_| EINVAL);
        let (bus, device, function) = (number(bus)?, number(device)?, number(function)?);
        let domain = u16::try_from(domain).map_err(|_| ENXIO)?;
        let found = p2pdma::find(domain, bus, device, function)?.ok_or(ENXIO)?;
        Ok(Self::Pci(found))
    }

    /// A new device without hardware.
    pub(crate) fn software() -> Result<Self> {
        static NEXT: Atomic<u32> = Atomic::new(0);

        let number = NEXT.fetch_add(1, Relaxed);
        let name = CString::try_from_fmt(fmt!("p2p-importer-test-{number}"))?;
        Ok(Self::Software(SoftwareDevice::new(&name)?))
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device<Bound> {
        match self {
            // SAFETY: What an importer does with it is to map for DMA. That needs the device, to
            // which we hold a reference, its DMA mask and its IOMMU domain: both are the bus's, and
            // stay when a driver is unbound. No mapping is used by the device through us.
            Self::Pci(pdev) => unsafe { AsRef::<Device>::as_ref(&**pdev).as_bound() },
            Self::Software(device) => device.as_ref(),
        }
    }
}
