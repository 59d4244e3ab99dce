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
    prelude::*,
    str::CString,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
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
/// assert!(dev.name().to_bytes().starts_with(b"example-software-"));
/// // Another one of the same kind has a name of its own.
/// let other = SoftwareDevice::new(c"example-software")?;
/// let other: &Device<Bound> = other.as_ref();
/// assert!(other.name() != dev.name());
/// # Ok::<(), Error>(())
/// ```
pub struct SoftwareDevice(faux::Registration);

impl SoftwareDevice {
    /// Makes a device; sysfs shows it by `kind` and a number, which no other of these devices has.
    ///
    /// `ENOMEM`: there is no memory for it. May sleep.
    pub fn new(kind: &CStr) -> Result<Self> {
        static NEXT: Atomic<u32> = Atomic::new(0);

        let name = CString::try_from_fmt(fmt!("{kind}-{}", NEXT.fetch_add(1, Relaxed)))?;
        // `faux_device_create()` does not say why it fails, and `Registration` calls that `ENODEV`.
        // The name is not taken, and no probe function can refuse: what is left is memory.
        let registration = faux::Registration::new(&name, None).map_err(|_| ENOMEM)?;
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
