// SPDX-License-Identifier: GPL-2.0

//! Importers without hardware: a device on behalf of which a buffer can be attached and mapped,
//! though nothing does DMA.

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    faux,
    prelude::*, //
};

/// A device without hardware, with 64-bit DMA addresses. It has no route to any BAR.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     dma_buf::software::SoftwareDevice, //
/// };
///
/// let registration = SoftwareDevice::new(c"example-software")?;
/// let dev: &Device<Bound> = registration.as_ref();
/// assert!(dev.name() == c"example-software");
/// # Ok::<(), Error>(())
/// ```
pub struct SoftwareDevice(faux::Registration);

impl SoftwareDevice {
    /// Makes a device; its name is shown in sysfs, where it is the only one of that name.
    pub fn new(name: &CStr) -> Result<Self> {
        let registration = faux::Registration::new(name, None)?;
        let dev: &Device<Bound> = registration.as_ref().as_ref();
        // SAFETY: The device is valid and ours alone; its mask lies in the device itself.
        to_result(unsafe {
            let raw = dev.as_raw();
            (*raw).dma_mask = &raw mut (*raw).coherent_dma_mask;
            bindings::dma_set_mask_and_coherent(raw, u64::MAX)
        })?;
        Ok(Self(registration))
    }
}

impl AsRef<Device<Bound>> for SoftwareDevice {
    fn as_ref(&self) -> &Device<Bound> {
        self.0.as_ref().as_ref()
    }
}
