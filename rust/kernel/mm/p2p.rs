// SPDX-License-Identifier: GPL-2.0

//! Peer mapping by user address: a device is given a range of user addresses.
//!
//! The range may show ordinary memory, or that of devices whose drivers map their VMAs for others.
//! The header states the contract of both sides.
//!
//! C header: [`include/linux/p2p_vma.h`](srctree/include/linux/p2p_vma.h)

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DmaAddress,
    error::{
        from_result,
        to_result, //
    },
    mm::Mm,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};
use core::{
    ops::Range,
    slice, //
};

#[cfg(all(CONFIG_DMA_SHARED_BUFFER, CONFIG_PCI_P2PDMA))]
pub mod exporter;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;

/// What an importer does when a region is mapped, and when that is taken back.
///
/// Both are called with any lock of the memory management, and with those of exporters, and while
/// memory is reclaimed. They may sleep, but must not take `mmap_lock` or a reservation lock, must
/// not allocate memory by reclaim, must not wait for who does, and must not use the region.
pub trait Importer: Send + Sync + 'static {
    /// Gives the device the addresses, one a page of the region. An error undoes the mapping.
    fn publish(&self, pages: &[DmaAddress]) -> Result;

    /// Stops the device: when this returns it does no DMA by the addresses that were published.
    fn invalidate(&self);
}

/// A range of user addresses that a device uses.
///
/// Dropping it stops the device and unmaps what is mapped. It must not be dropped with `mmap_lock`
/// or a reservation lock held.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     dma::DmaAddress,
///     dma_buf::software::SoftwareDevice,
///     mm::p2p::{
///         Importer,
///         Region, //
///     },
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc, //
///     }, //
/// };
///
/// /// What a device knows of a region.
/// struct Window(Arc<Atomic<usize>>);
///
/// impl Importer for Window {
///     fn publish(&self, pages: &[DmaAddress]) -> Result {
///         // Here the device is given the addresses.
///         self.0.store(pages.len(), Relaxed);
///         Ok(())
///     }
///
///     fn invalidate(&self) {
///         // Here it is told to stop, and waited for.
///         self.0.store(0, Relaxed);
///     }
/// }
///
/// # use kernel::{bindings, error::to_result};
/// # // SAFETY: The task is KUnit's: it may be given an address space, and memory in it.
/// # let address = unsafe {
/// #     to_result(bindings::kunit_attach_mm())?;
/// #     // Readable, writable, private and anonymous.
/// #     bindings::vm_mmap(core::ptr::null_mut(), 0, 4 * 4096, 3, 0x22, 0)
/// # };
/// let registration = SoftwareDevice::new(c"example-region")?;
/// let dev: &Device<Bound> = registration.as_ref();
/// let pages = Arc::new(Atomic::new(0_usize), GFP_KERNEL)?;
/// let current = kernel::current!();
/// let mm = current.mm().ok_or(ESRCH)?;
/// // Four pages of the current process.
/// let range = address..address + 4 * 4096;
/// // SAFETY: The device is bound for longer than the region is there.
/// let region = unsafe { Region::new(dev, mm, range, true, Window(pages.clone()))? };
/// assert_eq!(pages.load(Relaxed), 0);
///
/// // When the device first needs it, and again after each invalidation.
/// region.map()?;
/// assert_eq!(pages.load(Relaxed), 4);
///
/// # // SAFETY: Nothing refers to this memory.
/// # to_result(unsafe { bindings::vm_munmap(address, 4096) })?;
/// // The process has unmapped the first page.
/// assert_eq!(pages.load(Relaxed), 0);
/// assert_eq!(region.map(), Err(EFAULT));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `raw` is registered, with `Self::OPS`, and does not move.
#[pin_data(PinnedDrop)]
pub struct Region<T: Importer> {
    #[pin]
    raw: Opaque<bindings::p2p_vma_region>,
    importer: T,
    dev: ARef<Device>,
}

// SAFETY: The functions of a region lock it, and the importer is `Send`.
unsafe impl<T: Importer> Send for Region<T> {}
// SAFETY: As above; the importer is `Sync`.
unsafe impl<T: Importer> Sync for Region<T> {}

impl<T: Importer> Region<T> {
    const OPS: bindings::p2p_vma_ops = bindings::p2p_vma_ops {
        publish: Some(Self::publish_callback),
        invalidate: Some(Self::invalidate_callback),
    };

    /// Registers the addresses `range` of `mm` for `dev`, which will write if `write`.
    ///
    /// Nothing is mapped yet. `EINVAL`: the range is empty, not of whole pages, or past the end of
    /// the address space.
    ///
    /// # Safety
    ///
    /// The device stays bound until the region is dropped.
    pub unsafe fn new(
        dev: &Device<Bound>,
        mm: &Mm,
        range: Range<usize>,
        write: bool,
        importer: T,
    ) -> Result<Pin<KBox<Self>>> {
        let length = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        let dev: &Device = dev;
        let init = try_pin_init!(Self {
            importer,
            dev: dev.into(),
            raw <- Opaque::try_ffi_init(|raw: *mut bindings::p2p_vma_region| {
                // SAFETY: `raw` is ours alone, and is pinned. The device stays bound, by the
                // safety requirement, until the region is dropped; the operations are constant.
                // INVARIANT: It is registered, or there is no region.
                to_result(unsafe {
                    raw.write_bytes(0, 1);
                    bindings::p2p_vma_register(
                        raw,
                        dev.as_raw(),
                        mm.as_raw(),
                        range.start,
                        length,
                        write,
                        &const { Self::OPS },
                    )
                })
            }),
        }? Error);
        KBox::pin_init(init, GFP_KERNEL)
    }

    /// The device that uses it.
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// Maps all of it and calls [`Importer::publish`], unless it is mapped. Waits for page faults.
    ///
    /// `EFAULT`: addresses show nothing. `ESRCH`: the address space is gone. `EACCES`: a VMA does
    /// not allow it. `EOPNOTSUPP`: one is a device's whose driver does not support this. `EBUSY`:
    /// the range changes too fast. Errors of exporters. On an error nothing is mapped.
    pub fn map(&self) -> Result {
        // SAFETY: By the type invariant.
        to_result(unsafe { bindings::p2p_vma_map(self.raw.get()) })
    }

    /// Stops the device, by [`Importer::invalidate`], and undoes the mapping, if there is one.
    pub fn unmap(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::p2p_vma_unmap(self.raw.get()) };
    }

    /// # Safety
    ///
    /// `raw` is that of a `Self` that lives.
    unsafe fn from_raw<'a>(raw: *mut bindings::p2p_vma_region) -> &'a Self {
        // SAFETY: By the safety requirement.
        unsafe { &*crate::container_of!(Opaque::cast_from(raw), Self, raw) }
    }

    /// # Safety
    ///
    /// Called by the core with a region of a `Self` that is mapped.
    unsafe extern "C" fn publish_callback(raw: *mut bindings::p2p_vma_region) -> c_int {
        // SAFETY: Only regions of `Self` have these operations; one that is being mapped lives.
        let this = unsafe { Self::from_raw(raw) };
        // SAFETY: The array has an address for each page, which nobody changes during the call.
        let pages = unsafe { slice::from_raw_parts((*raw).dma, (*raw).pages) };
        from_result(|| this.importer.publish(pages).map(|()| 0))
    }

    /// # Safety
    ///
    /// Called by the core with a region of a `Self` that was published.
    unsafe extern "C" fn invalidate_callback(raw: *mut bindings::p2p_vma_region) {
        // SAFETY: As for `publish_callback()`; unregistering waits for invalidations.
        unsafe { Self::from_raw(raw) }.importer.invalidate();
    }
}

#[pinned_drop]
impl<T: Importer> PinnedDrop for Region<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant; who drops it is the only user.
        unsafe { bindings::p2p_vma_unregister(self.raw.get()) };
    }
}
