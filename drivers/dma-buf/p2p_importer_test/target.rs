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
    sync::aref::ARef, //
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

    /// A new device without hardware. `ENOMEM`: there is no memory for it.
    pub(crate) fn software() -> Result<Self> {
        Ok(Self::Software(SoftwareDevice::new(c"p2p-importer-test")?))
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
