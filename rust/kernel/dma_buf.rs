// SPDX-License-Identifier: GPL-2.0

//! Shared buffers (dma-buf): exporters, importers, reservation locks and fences.
//!
//! A buffer has one exporter, which owns the backing and decides, and any number of importers,
//! devices that reach it by DMA. The types here encode the contract between the two for the
//! *dynamic* case, in which the exporter may move the backing while importers have it mapped:
//!
//! - [`exporter::Exporter`] is implemented by who owns the backing. It is called to attach, pin,
//!   map and unmap, and calls [`DmaBuf::invalidate`] when the backing is about to move.
//! - [`importer::Importer`] is implemented by a device driver that uses somebody's buffer. It is
//!   called when a mapping is taken back, and maps again when it needs to.
//! - [`resv::Resv`] is the lock both sides hold while they map, unmap, pin or invalidate;
//!   [`resv::Held`] proves that it is held.
//! - [`fence::Fence`] is what they wait for.
//! - [`vmap::KernelMapping`] is for who reaches the bytes by the CPU, in the kernel.
//!
//! C headers: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h),
//! [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h),
//! [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h)

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    mm::virt::VmaNew,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::ptr::NonNull;

pub mod exporter;
pub mod fence;
pub mod importer;
pub mod pages;
pub mod resv;
pub mod software;
pub mod vmap;

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) mod tests;

/// A file descriptor, or a negative errno.
fn to_result_fd(fd: i32) -> Result<i32> {
    to_result(fd.min(0)).map(|()| fd)
}

/// A `struct dma_buf`.
///
/// # Invariants
///
/// Instances are always C-created, exported dma-bufs, and refcounted by their file.
#[repr(transparent)]
pub struct DmaBuf(Opaque<bindings::dma_buf>);

// SAFETY: A `struct dma_buf` can be used and released from any thread.
unsafe impl Send for DmaBuf {}

// SAFETY: All methods of a shared `DmaBuf` are synchronized on the C side.
unsafe impl Sync for DmaBuf {}

// SAFETY: The file of a dma-buf is its refcount; `get_dma_buf()` and `dma_buf_put()` count it.
unsafe impl AlwaysRefCounted for DmaBuf {
    fn inc_ref(&self) {
        // SAFETY: The shared reference means that the refcount is not zero.
        unsafe { bindings::get_dma_buf(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference that it owns.
        unsafe { bindings::dma_buf_put(obj.as_ptr().cast()) };
    }
}

impl DmaBuf {
    /// Returns the dma-buf behind a file descriptor of the current process.
    ///
    /// `EBADF`: not an open descriptor. `EINVAL`: not a dma-buf.
    pub fn from_fd(fd: i32) -> Result<ARef<Self>> {
        // SAFETY: `dma_buf_get()` may be called with any number.
        let raw = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        let raw = NonNull::new(raw).ok_or(EINVAL)?;

        // SAFETY: `dma_buf_get()` returned a dma-buf and a reference to it, which is ours now.
        Ok(unsafe { ARef::from_raw(raw.cast()) })
    }

    /// # Safety
    ///
    /// `raw` is a valid, exported dma-buf for all of `'a`.
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::dma_buf) -> &'a Self {
        // SAFETY: `DmaBuf` is a transparent wrapper; the caller promises validity.
        unsafe { &*raw.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::dma_buf {
        self.0.get()
    }

    /// Gives the current process a file descriptor for the dma-buf, with `flags` of `O_CLOEXEC`.
    pub fn into_fd(this: ARef<Self>, flags: i32) -> Result<i32> {
        // SAFETY: `this` is valid.
        let fd = to_result_fd(unsafe { bindings::dma_buf_fd(this.as_raw(), flags) })?;
        // The descriptor has the reference now.
        let _ = ARef::into_raw(this);
        Ok(fd)
    }

    /// Shows the buffer in a mapping that somebody makes, of a driver's own file for example: from
    /// its start on. The mapping is the buffer's from then on; the driver does not change it.
    ///
    /// `EINVAL`: the mapping is longer than the buffer. Errors of the exporter.
    pub fn mmap(&self, vma: &VmaNew) -> Result {
        // SAFETY: `self` is valid, and nobody else has the mapping yet.
        to_result(unsafe { bindings::dma_buf_mmap(self.as_raw(), vma.as_ptr(), 0) })
    }

    /// Size in bytes; it never changes.
    pub fn size(&self) -> usize {
        // SAFETY: `self` is a valid dma-buf, and `size` is constant after the export.
        unsafe { (*self.as_raw()).size }
    }

    /// The lock that guards the buffer's mappings.
    pub fn resv(&self) -> &resv::Resv {
        // SAFETY: The reservation object of a dma-buf is set at export and lives as long as it.
        unsafe { resv::Resv::from_raw((*self.as_raw()).resv) }
    }

    /// Tells every importer that can be told to let go of its mappings.
    ///
    /// For the exporter, before it moves the backing. On return no importer starts a new access
    /// by the old addresses, but those under way end only with the fences of the reservation
    /// object, and the addresses stay in use until the importers unmap.
    pub fn invalidate(&self, held: resv::Held<'_>) -> Result {
        held.check(self.resv())?;
        // SAFETY: `self` is valid and its reservation lock is held.
        unsafe { bindings::dma_buf_invalidate_mappings(self.as_raw()) };
        Ok(())
    }
}
