// SPDX-License-Identifier: GPL-2.0

//! Peer-to-peer DMA between PCI devices.
//!
//! C header: [`include/linux/pci-p2pdma.h`](srctree/include/linux/pci-p2pdma.h)

use super::Device;
use crate::{
    bindings,
    device,
    dma::DmaAddress,
    error::to_result,
    io::PhysAddr,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// How a device reaches the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Not at all.
    None,
    /// Through PCIe switches only, by bus address.
    Switch,
    /// Through a host bridge that is known to forward, by physical address.
    HostBridge,
    /// Through a host bridge, by an address that the IOMMU translates for the device.
    Iommu,
}

/// A BAR whose memory other devices can be given.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     pci::{
///         self,
///         p2pdma::{
///             Peer,
///             Provider,
///             Ranges,
///             Route, //
///         }, //
///     }, //
/// };
///
/// /// The first and the third page of BAR 2, if `peer` can reach them.
/// fn offer(pdev: &pci::Device<Bound>, peer: &Device) -> Result<Option<Ranges>> {
///     let provider = Provider::new(pdev, 2)?;
///     if provider.route(peer) == Route::None {
///         return Ok(None);
///     }
///     let mut ranges = provider.ranges();
///     ranges.push(0, 4096)?;
///     ranges.push(2 * 4096, 4096)?;
///     assert_eq!((ranges.count(), ranges.size()), (2, 2 * 4096));
///     Ok(Some(ranges))
/// }
///
/// // There are 32 devices on a bus.
/// assert_eq!(Peer::find(0, 0, 32, 0).err(), Some(EINVAL));
/// ```
///
/// # Invariants
///
/// `raw` is the provider of BAR `bar` of a device that is bound for all of `'a`.
pub struct Provider<'a> {
    raw: NonNull<bindings::p2pdma_provider>,
    start: PhysAddr,
    size: u64,
    _dev: PhantomData<&'a Device<device::Bound>>,
}

// SAFETY: A provider is constant once made.
unsafe impl Send for Provider<'_> {}
// SAFETY: As above.
unsafe impl Sync for Provider<'_> {}

impl<'a> Provider<'a> {
    /// Makes BAR `bar`, 0 to 5, of `pdev` available to peers, until `pdev` is unbound.
    pub fn new(pdev: &'a Device<device::Bound>, bar: u32) -> Result<Self> {
        // Other resources (the ROM) have a number too, but no provider.
        if bar >= bindings::PCI_STD_NUM_BARS {
            return Err(EINVAL);
        }
        let start = pdev.resource_start(bar)?;
        let size = pdev.resource_len(bar)?;
        // SAFETY: `pdev` is a valid, bound device.
        to_result(unsafe { bindings::pcim_p2pdma_init(pdev.as_raw()) })?;
        // SAFETY: `pdev` is a valid, bound device that p2pdma knows.
        let raw = unsafe { bindings::pcim_p2pdma_provider(pdev.as_raw(), i32::try_from(bar)?) };
        // INVARIANT: The provider is managed: it lives until `pdev` is unbound.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(EINVAL)?,
            start,
            size,
            _dev: PhantomData,
        })
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::p2pdma_provider {
        self.raw.as_ptr()
    }

    /// CPU physical address of the byte at `offset` of the BAR; `EINVAL` past its end.
    pub fn phys(&self, offset: u64) -> Result<PhysAddr> {
        if offset >= self.size {
            return Err(EINVAL);
        }
        self.start.checked_add(offset).ok_or(EOVERFLOW)
    }

    /// Ranges of the BAR, none yet.
    pub fn ranges(&self) -> Ranges {
        Ranges {
            provider: self.raw,
            start: self.start,
            bar_size: self.size,
            vec: KVVec::new(),
            size: 0,
        }
    }

    /// The address by which peers reach a page of the BAR through switches only.
    #[cfg(CONFIG_P2P_VMA)]
    pub(crate) fn bus_address(&self, start: PhysAddr) -> DmaAddress {
        // SAFETY: By the type invariant.
        start.wrapping_add(unsafe { self.raw.as_ref() }.bus_offset)
    }

    /// How `peer` reaches the BAR.
    #[inline(never)] // `pci_p2pdma_map_type()` is not exported: the call stays in this crate.
    pub fn route(&self, peer: &device::Device) -> Route {
        // SAFETY: The provider is valid by the type invariant, `peer` is a valid device.
        match unsafe { bindings::pci_p2pdma_map_type(self.as_raw(), peer.as_raw()) } {
            bindings::pci_p2pdma_map_type_PCI_P2PDMA_MAP_BUS_ADDR => Route::Switch,
            bindings::pci_p2pdma_map_type_PCI_P2PDMA_MAP_THRU_HOST_BRIDGE => {
                // SAFETY: `peer` is a valid device.
                match unsafe { bindings::use_dma_iommu(peer.as_raw()) } {
                    true => Route::Iommu,
                    false => Route::HostBridge,
                }
            }
            _ => Route::None,
        }
    }
}

/// Ranges of the BAR of a provider, in the order in which an importer is to see them.
///
/// They can outlive the provider, but are mapped by it only.
///
/// # Invariants
///
/// Each one is of whole pages of the BAR of `provider`, at least one; they have `size` bytes in all.
pub struct Ranges {
    provider: NonNull<bindings::p2pdma_provider>,
    start: PhysAddr,
    bar_size: u64,
    vec: KVVec<bindings::phys_vec>,
    size: usize,
}

// SAFETY: The provider is only compared.
unsafe impl Send for Ranges {}
// SAFETY: As above.
unsafe impl Sync for Ranges {}

impl Ranges {
    /// Adds the `len` bytes at `offset` of the BAR; it becomes part of the last range if it follows
    /// that.
    ///
    /// `EINVAL`: they are not whole pages of the BAR, or none. On an error nothing has changed.
    pub fn push(&mut self, offset: u64, len: usize) -> Result {
        // CAST: `usize` is not longer than `u64`.
        let (page, bytes) = (PAGE_SIZE as u64, len as u64);
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bar_size);
        if len == 0 || !inside || !offset.is_multiple_of(page) || !bytes.is_multiple_of(page) {
            return Err(EINVAL);
        }
        let size = self.size.checked_add(len).ok_or(EOVERFLOW)?;
        let paddr = self.start.checked_add(offset).ok_or(EOVERFLOW)?;
        // INVARIANT: It was checked; of two neighbours that are whole pages of the BAR one can be
        // made.
        match self.vec.last_mut() {
            // CAST: As above.
            Some(last) if last.paddr.checked_add(last.len as u64) == Some(paddr) => {
                last.len = last.len.checked_add(len).ok_or(EOVERFLOW)?;
            }
            _ => self
                .vec
                .push(bindings::phys_vec { paddr, len }, GFP_KERNEL)?,
        }
        self.size = size;
        Ok(())
    }

    /// Number of ranges.
    pub fn count(&self) -> usize {
        self.vec.len()
    }

    /// Number of bytes, of all of them.
    pub fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn is_of(&self, provider: &Provider<'_>) -> bool {
        self.provider == provider.raw
    }

    pub(crate) fn as_slice(&self) -> &[bindings::phys_vec] {
        &self.vec
    }
}

/// A PCI device that may be a peer.
pub struct Peer(ARef<Device>);

impl Peer {
    /// The device at a PCI address; `None` if there is no such device.
    ///
    /// `EINVAL`: `device` is over 31, or `function` over 7.
    pub fn find(domain: u16, bus: u8, device: u8, function: u8) -> Result<Option<Self>> {
        Ok(find(domain, bus, device, function)?.map(Self))
    }

    /// The device.
    pub fn device(&self) -> &device::Device {
        (*self.0).as_ref()
    }

    /// Passes the name of the device's driver to `f`, if it has one.
    ///
    /// `EAGAIN`: the device is just being bound or unbound.
    pub fn with_driver_name<R>(&self, f: impl FnOnce(Option<&CStr>) -> R) -> Result<R> {
        let dev = self.device().as_raw();
        // SAFETY: The device is valid. The lock is only tried: its holder may wait for the caller.
        if !unsafe { bindings::device_trylock(dev) } {
            return Err(EAGAIN);
        }
        // SAFETY: A device is not unbound from its driver while it is locked, and the name of a
        // driver is a constant string.
        let name = unsafe {
            let driver = (*dev).driver;
            (!driver.is_null()).then(|| CStr::from_char_ptr((*driver).name))
        };
        let result = f(name);
        // SAFETY: We hold the lock.
        unsafe { bindings::device_unlock(dev) };
        Ok(result)
    }
}

/// The device at a PCI address, if there is one.
///
/// `EINVAL`: `device` is over 31, or `function` over 7.
pub fn find(domain: u16, bus: u8, device: u8, function: u8) -> Result<Option<ARef<Device>>> {
    if device > 31 || function > 7 {
        return Err(EINVAL);
    }
    let devfn = u32::from(device) << 3 | u32::from(function);
    // SAFETY: Any address may be looked up.
    let raw = unsafe { bindings::pci_get_domain_bus_and_slot(domain.into(), bus.into(), devfn) };
    // SAFETY: The look-up returned a valid device and a reference to it, which is ours.
    Ok(NonNull::new(raw).map(|raw| unsafe { ARef::from_raw(raw.cast()) }))
}
