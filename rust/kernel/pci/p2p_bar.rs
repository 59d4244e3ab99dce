// SPDX-License-Identifier: GPL-2.0

//! BARs that other devices can use: the exporter for devices that are simple.
//!
//! The header says what importers, and the CPU, get of it.
//!
//! C header: [`include/linux/p2p_bar.h`](srctree/include/linux/p2p_bar.h)

use super::Device;
use crate::{
    bindings,
    device,
    dma_buf::DmaBuf,
    error::from_err_ptr,
    prelude::*,
    sync::aref::ARef, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

/// What may be done with an exported range, by the CPU and by devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is read only.
    ReadOnly,
    /// It is read and written.
    ReadWrite,
}

impl Access {
    /// As flags of `open()`.
    fn flags(self) -> u32 {
        match self {
            Self::ReadOnly => bindings::O_RDONLY,
            Self::ReadWrite => bindings::O_RDWR,
        }
    }
}

/// A BAR that other devices can use.
///
/// It can outlive the binding of its device, in an open file for example: all that it exported is
/// revoked when the device is unbound, and it exports nothing any more (`ENODEV`).
///
/// # Examples
///
/// ```
/// use kernel::{
///     device,
///     dma_buf::DmaBuf,
///     fs::file::flags,
///     pci::{
///         self,
///         p2p_bar::{
///             Access,
///             PeerBar, //
///         }, //
///     },
/// };
///
/// fn probe(pdev: &pci::Device<device::Core<'_>>) -> Result<PeerBar> {
///     pdev.enable_device_mem()?;
///     PeerBar::new(pdev, 2)
/// }
///
/// /// A file descriptor of a page of the BAR, whichever is free.
/// fn page(bar: &PeerBar) -> Result<i32> {
///     let dmabuf = bar.export_lazy(4096, Access::ReadWrite)?;
///     DmaBuf::into_fd(dmabuf, flags::O_CLOEXEC.try_into()?)
/// }
/// ```
///
/// # Invariants
///
/// `0` is a valid BAR, and we own a reference to it.
pub struct PeerBar(NonNull<bindings::p2p_bar>);

// SAFETY: The functions of a BAR lock it; references can be let go of by any thread.
unsafe impl Send for PeerBar {}
// SAFETY: As above.
unsafe impl Sync for PeerBar {}

impl PeerBar {
    /// Lets other devices use BAR `bar`, 0 to 5, of a device that is being probed, with its memory
    /// enabled. The driver gives up all of it but what it never exports.
    ///
    /// `EINVAL`: there is no such BAR, or it is not of memory, or not of whole pages. `EBUSY`:
    /// importers have not let go of it since the device was bound before; or there is one already.
    pub fn new(pdev: &Device<device::Core<'_>>, bar: u32) -> Result<Self> {
        // SAFETY: `pdev` is a valid device that is being probed.
        let raw = from_err_ptr(unsafe { bindings::pcim_p2p_bar(pdev.as_raw(), bar) })?;
        // INVARIANT: It is valid while the device is bound, which it is, so that we can take a
        // reference.
        // SAFETY: As above.
        NonNull::new(unsafe { bindings::p2p_bar_get(raw) })
            .map(Self)
            .ok_or(EINVAL)
    }

    /// Makes a dma-buf of a range of the BAR, which keeps the bytes that it has.
    ///
    /// `EINVAL`: the range is empty, not of whole pages, or past the end. `EBUSY`: a page of it
    /// belongs to another dma-buf. `ENODEV`: the device is gone.
    pub fn export(&self, range: Range<u64>, access: Access) -> Result<ARef<DmaBuf>> {
        let size = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        // SAFETY: By the type invariant.
        into_dmabuf(unsafe {
            bindings::p2p_bar_export(self.0.as_ptr(), range.start, size, access.flags())
        })
    }

    /// Makes a dma-buf of `size` bytes, whole pages, each of which gets a free page of the BAR, of
    /// zeros, when the CPU first touches it or a device first maps it.
    ///
    /// `EINVAL`: it is empty, or not of whole pages. `ENOSPC`: it is larger than the BAR.
    /// `ENODEV`: the device is gone.
    pub fn export_lazy(&self, size: u64, access: Access) -> Result<ARef<DmaBuf>> {
        // SAFETY: By the type invariant.
        into_dmabuf(unsafe { bindings::p2p_bar_export_lazy(self.0.as_ptr(), size, access.flags()) })
    }
}

fn into_dmabuf(raw: *mut bindings::dma_buf) -> Result<ARef<DmaBuf>> {
    let raw = NonNull::new(from_err_ptr(raw)?).ok_or(EINVAL)?;
    // SAFETY: It was just exported, and the reference is ours.
    Ok(unsafe { ARef::from_raw(raw.cast()) })
}

impl Clone for PeerBar {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant.
        unsafe { bindings::p2p_bar_get(self.0.as_ptr()) };
        // INVARIANT: The reference that was just taken is the clone's.
        Self(self.0)
    }
}

impl Drop for PeerBar {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the reference ends here.
        unsafe { bindings::p2p_bar_put(self.0.as_ptr()) };
    }
}
