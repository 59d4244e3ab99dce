// SPDX-License-Identifier: GPL-2.0

//! Importers: device drivers that reach somebody else's buffer by DMA.
//!
//! An [`Attachment`] is dynamic: the exporter may take the mapping back at any time, by calling
//! [`Importer::invalidate`], and the importer maps again when it next needs the buffer.
//!
//! An importer that cannot let go says so with [`Importer::CAN_BE_INVALIDATED`], and pins the buffer
//! for as long as it is mapped: [`Attachment::pin`]. One that knows nothing of all this is static,
//! [`Attachment::new_static`]: the core pins for it while it is mapped.

use super::{
    resv::{
        Held,
        Usage, //
    },
    DmaBuf, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    error::{
        from_err_ptr,
        to_result, //
    },
    io::PhysAddr,
    new_mutex,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};
use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// What becomes of a mapping after its importer was told to let go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AfterInvalidate {
    /// The device no longer uses the addresses: unmap now.
    Unmap,
    /// The device may still use them: the importer calls [`Attachment::unmap`] when it is done.
    Later,
}

/// A driver's side of an imported buffer.
pub trait Importer: Send + Sync + 'static {
    /// Whether the device can use addresses of other devices' memory.
    const ALLOW_PEER_TO_PEER: bool;

    /// Whether the exporter may take mappings back. Else it gives none unless it is pinned.
    const CAN_BE_INVALIDATED: bool = true;

    /// All mappings are taken back: make the device stop using their addresses.
    ///
    /// Called too when a mapped attachment is dropped, which unmaps whatever the answer.
    ///
    /// Called with the buffer's reservation lock held, so it does not wait for anything that needs
    /// that lock, nor allocates memory that reclaim could wait for. It may sleep for as long as
    /// the device takes to stop. Called only while the buffer is mapped, once for the mappings that
    /// are in force; once more if the attachment is dropped with one that was taken back but not
    /// unmapped.
    fn invalidate(&self, held: Held<'_>) -> AfterInvalidate;
}

/// A mapping as the exporter gave it.
struct Mapped {
    sgt: NonNull<bindings::sg_table>,
    dir: DataDirection,
    /// The exporter took it back: nobody gets these addresses any more.
    revoked: bool,
}

// SAFETY: The table is plain memory that the exporter lent us.
unsafe impl Send for Mapped {}

/// What an attachment holds of its buffer.
struct State {
    mappings: KVec<Mapped>,
    pins: u32,
}

impl State {
    /// Nothing held yet. Not generic, so that all attachments have one class of locks: a generic
    /// function is compiled in every module that uses it, and gives its class another name in each.
    #[inline(never)]
    fn new() -> impl PinInit<Mutex<Self>> {
        let state = Self {
            mappings: KVec::new(),
            pins: 0,
        };
        new_mutex!(state, "dma_buf::importer::state")
    }
}

/// What an attachment's callback needs; its address is the importer's private pointer.
#[pin_data]
struct Inner<T> {
    /// Changed only with the reservation lock held. Held over a call out only while somebody looks
    /// at a table: who unmaps it there waits for himself, and does not pull it away.
    #[pin]
    state: Mutex<State>,
    #[pin]
    data: T,
}

/// A device attached to a buffer, and its mappings while there are some: mostly one.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     dma::{
///         DataDirection,
///         DmaAddress, //
///     },
///     dma_buf::{
///         importer::{
///             AfterInvalidate,
///             Attachment,
///             Importer, //
///         },
///         resv::Held,
///         DmaBuf, //
///     },
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     }, //
/// };
///
/// /// A region of a NIC.
/// struct Region {
///     is_valid: Atomic<bool>,
/// }
///
/// impl Importer for Region {
///     const ALLOW_PEER_TO_PEER: bool = true;
///
///     fn invalidate(&self, _held: Held<'_>) -> AfterInvalidate {
///         self.is_valid.store(false, Relaxed);
///         // Here the device is told, and waited for.
///         AfterInvalidate::Unmap
///     }
/// }
///
/// fn import(dev: &Device<Bound>, fd: i32) -> Result<Attachment<Region>> {
///     let region = Region {
///         is_valid: Atomic::new(false),
///     };
///     // SAFETY: It is dropped when the driver is unbound.
///     unsafe { Attachment::new(dev, DmaBuf::from_fd(fd)?, Ok::<_, Error>(region)) }
/// }
///
/// /// Maps it, for the first time or again, and tells the device.
/// fn validate(
///     dev: &Device<Bound>,
///     attachment: &Attachment<Region>,
///     tell: impl Fn(DmaAddress, DmaAddress),
/// ) -> Result {
///     let guard = attachment.dmabuf().resv().lock_interruptible()?;
///     let both = DataDirection::Bidirectional;
///     attachment.map(dev, guard.held(), both, |table| {
///         for entry in table.iter() {
///             tell(entry.dma_address(), entry.dma_len().into());
///         }
///         Ok(())
///     })?;
///     attachment.is_valid.store(true, Relaxed);
///     Ok(())
/// }
/// ```
///
/// Dereferences to the driver's own data.
///
/// # Invariants
///
/// `raw` is an attachment of `dmabuf` whose private pointer is `inner`.
pub struct Attachment<T: Importer> {
    raw: NonNull<bindings::dma_buf_attachment>,
    dmabuf: ARef<DmaBuf>,
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: Attachments can be used and released from any thread; `T` is `Send` and `Sync`.
unsafe impl<T: Importer> Send for Attachment<T> {}
// SAFETY: All changes to the mapping happen under the reservation lock.
unsafe impl<T: Importer> Sync for Attachment<T> {}

impl<T: Importer> Attachment<T> {
    /// Longest wait for the fences of the exporter's own moves.
    const MOVE_TIMEOUT_MS: u32 = 10_000;

    const OPS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
        allow_peer2peer: T::ALLOW_PEER_TO_PEER,
        invalidate_mappings: if T::CAN_BE_INVALIDATED {
            Some(Self::invalidate_callback)
        } else {
            None
        },
    };

    /// Attaches `dev` to `dmabuf`. Errors are the exporter's.
    ///
    /// # Safety
    ///
    /// The attachment must be dropped before the driver of `dev` is unbound: a mapping is one of
    /// that device.
    pub unsafe fn new(
        dev: &Device<Bound>,
        dmabuf: ARef<DmaBuf>,
        data: impl PinInit<T, Error>,
    ) -> Result<Self> {
        // SAFETY: As the caller promises; `OPS` is a constant of static lifetime.
        unsafe { Self::attach(dev, dmabuf, data, &const { Self::OPS }) }
    }

    /// As [`Attachment::new`], for a device that can do nothing but map: it is pinned for by the
    /// core while it is mapped, and never told anything. It is no peer.
    ///
    /// # Safety
    ///
    /// As for [`Attachment::new`].
    pub unsafe fn new_static(
        dev: &Device<Bound>,
        dmabuf: ARef<DmaBuf>,
        data: impl PinInit<T, Error>,
    ) -> Result<Self> {
        // SAFETY: As the caller promises; without operations nothing is called.
        unsafe { Self::attach(dev, dmabuf, data, ptr::null()) }
    }

    /// # Safety
    ///
    /// As for [`Attachment::new`]; `ops` is null, or valid and constant for ever and only calls
    /// `Self`'s callback.
    unsafe fn attach(
        dev: &Device<Bound>,
        dmabuf: ARef<DmaBuf>,
        data: impl PinInit<T, Error>,
        ops: *const bindings::dma_buf_attach_ops,
    ) -> Result<Self> {
        let inner = KBox::pin_init(
            try_pin_init!(Inner {
                state <- State::new(),
                data <- data,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: `dmabuf` and `dev` are valid, and `ops` as the caller promises; `inner` is pinned
        // and outlives the attachment, which `drop()` ends first.
        let raw = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(
                dmabuf.as_raw(),
                dev.as_raw(),
                ops,
                ptr::from_ref(&*inner).cast_mut().cast(),
            )
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;

        // INVARIANT: This is the attachment that we just made.
        Ok(Self { raw, dmabuf, inner })
    }

    /// The buffer.
    pub fn dmabuf(&self) -> &DmaBuf {
        &self.dmabuf
    }

    /// Whether the exporter lets the device use addresses of its memory without `struct page`.
    pub fn is_peer(&self) -> bool {
        // SAFETY: The attachment is valid; the exporter changes the field while it is made only.
        unsafe { (*self.raw.as_ptr()).peer2peer }
    }

    /// `EINVAL` unless `dev` is the device that is attached, and `held` the lock of the buffer.
    fn check(&self, dev: &Device<Bound>, held: Held<'_>) -> Result {
        held.check(self.dmabuf.resv())?;
        // SAFETY: The attachment is valid, and so is its device.
        if unsafe { (*self.raw.as_ptr()).dev } != dev.as_raw() {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Makes the exporter keep the buffer where it is, until [`Attachment::unpin`] or the
    /// attachment's end. Pins count.
    ///
    /// `EINVAL`: the attachment is static. Other errors are the exporter's.
    pub fn pin(&self, held: Held<'_>) -> Result {
        held.check(self.dmabuf.resv())?;
        // SAFETY: The attachment is valid.
        if unsafe { (*self.raw.as_ptr()).importer_ops.is_null() } {
            return Err(EINVAL);
        }
        let pins = self.inner.state.lock().pins;
        let pins = pins.checked_add(1).ok_or(EOVERFLOW)?;
        // SAFETY: The attachment is valid and dynamic, and the reservation lock is held.
        to_result(unsafe { bindings::dma_buf_pin(self.raw.as_ptr()) })?;
        self.inner.state.lock().pins = pins;
        Ok(())
    }

    /// Undoes one [`Attachment::pin`]; `EINVAL` if there is none.
    pub fn unpin(&self, held: Held<'_>) -> Result {
        held.check(self.dmabuf.resv())?;
        {
            let mut state = self.inner.state.lock();
            state.pins = state.pins.checked_sub(1).ok_or(EINVAL)?;
        }
        // SAFETY: The attachment is valid and dynamic, as it has been pinned, and the reservation
        // lock is held.
        unsafe { bindings::dma_buf_unpin(self.raw.as_ptr()) };
        Ok(())
    }

    /// Maps the buffer, unless it is mapped, waits for moves to end, and passes the table of DMA
    /// addresses to `use_table`. They are valid until the mapping is taken back or undone, which
    /// `use_table` does not do.
    ///
    /// `dev` is the device that is attached and `held` the buffer's lock, and a mapping that exists
    /// has direction `dir` (else `EINVAL`). `EBUSY`: the mapping was taken back and is not unmapped
    /// yet. Other errors are the exporter's. `ETIMEDOUT`, `ERESTARTSYS`: the wait did not end.
    pub fn map<R>(
        &self,
        dev: &Device<Bound>,
        held: Held<'_>,
        dir: DataDirection,
        use_table: impl FnOnce(&SGTable) -> Result<R>,
    ) -> Result<R> {
        self.check(dev, held)?;

        let known = self
            .inner
            .state
            .lock()
            .mappings
            .first()
            .map(|mapped| (mapped.revoked, mapped.dir));
        match known {
            Some((true, _)) => return Err(EBUSY),
            Some((false, known)) if known == dir => (),
            Some(_) => return Err(EINVAL),
            None => self.map_raw(held, dir)?,
        }

        held.resv()
            .wait_interruptible(Usage::Kernel, msecs_to_jiffies(Self::MOVE_TIMEOUT_MS))?;
        self.with_mapping(held, 0, use_table)
    }

    /// Maps the buffer another time, whether it is mapped or not, and whatever became of earlier
    /// mappings; waits for moves to end, and returns how many mappings there are now.
    ///
    /// Errors are those of [`Attachment::map`]; after one of the wait the mapping is there.
    pub fn map_again(
        &self,
        dev: &Device<Bound>,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<usize> {
        self.check(dev, held)?;
        self.map_raw(held, dir)?;
        held.resv()
            .wait_interruptible(Usage::Kernel, msecs_to_jiffies(Self::MOVE_TIMEOUT_MS))?;
        Ok(self.mappings())
    }

    fn map_raw(&self, held: Held<'_>, dir: DataDirection) -> Result {
        held.check(self.dmabuf.resv())?;
        // Room first: what has been mapped is not undone because memory ran out.
        self.inner.state.lock().mappings.reserve(1, GFP_KERNEL)?;
        // SAFETY: The attachment is valid and the reservation lock is held.
        let sgt = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment(self.raw.as_ptr(), dir.into())
        })?;
        let mapped = Mapped {
            sgt: NonNull::new(sgt).ok_or(ENOMEM)?,
            dir,
            revoked: false,
        };
        // There is room: it was made under the reservation lock, which is still held.
        let pushed = self
            .inner
            .state
            .lock()
            .mappings
            .push_within_capacity(mapped);
        pushed.map_err(|_| ENOMEM)
    }

    /// How many mappings there are, taken back or not. Can change unless the lock is held.
    pub fn mappings(&self) -> usize {
        self.inner.state.lock().mappings.len()
    }

    /// Passes the table of mapping `index`, the oldest being 0, to `use_table`, which undoes none.
    ///
    /// `ENOENT`: there is no such mapping. A mapping that was taken back is shown too.
    pub fn with_mapping<R>(
        &self,
        held: Held<'_>,
        index: usize,
        use_table: impl FnOnce(&SGTable) -> Result<R>,
    ) -> Result<R> {
        held.check(self.dmabuf.resv())?;
        let state = self.inner.state.lock();
        let sgt = state.mappings.get(index).ok_or(ENOENT)?.sgt;
        // SAFETY: The table stays valid while we hold the mutex: unmapping takes it.
        use_table(unsafe { SGTable::from_raw(sgt.as_ptr()) })
    }

    /// Whether the buffer is mapped now. The answer can change unless the lock is held.
    pub fn is_mapped(&self) -> bool {
        self.mappings() != 0
    }

    /// Undoes all mappings. The device no longer uses their addresses.
    pub fn unmap(&self, held: Held<'_>) -> Result {
        held.check(self.dmabuf.resv())?;
        // SAFETY: The attachment is ours, and its lock is held.
        unsafe { Self::unmap_raw(self.raw.as_ptr(), &self.inner) };
        Ok(())
    }

    /// Undoes mapping `index`, the oldest being 0; later ones move up. `ENOENT`: there is none.
    pub fn unmap_one(&self, held: Held<'_>, index: usize) -> Result {
        held.check(self.dmabuf.resv())?;
        let mapped = {
            let mut state = self.inner.state.lock();
            state.mappings.remove(index).map_err(|_| ENOENT)?
        };
        // SAFETY: The attachment is valid and ours, and its lock is held; the table is the one that
        // mapping returned, and is given back once as it was taken out of the list.
        unsafe { Self::give_back(self.raw.as_ptr(), mapped) };
        Ok(())
    }

    /// # Safety
    ///
    /// `raw` is the valid attachment of `inner`, and the buffer's reservation lock is held.
    unsafe fn unmap_raw(raw: *mut bindings::dma_buf_attachment, inner: &Inner<T>) {
        let mappings = core::mem::take(&mut inner.state.lock().mappings);
        for mapped in mappings {
            // SAFETY: The caller promises a valid attachment and the lock; the table is the one
            // that mapping returned, and is given back once as it was taken out of the list.
            unsafe { Self::give_back(raw, mapped) };
        }
    }

    /// # Safety
    ///
    /// `raw` is a valid attachment, `mapped` a mapping of it that nobody else gives back, and the
    /// buffer's reservation lock is held.
    unsafe fn give_back(raw: *mut bindings::dma_buf_attachment, mapped: Mapped) {
        // SAFETY: As the caller promises.
        unsafe { bindings::dma_buf_unmap_attachment(raw, mapped.sgt.as_ptr(), mapped.dir.into()) };
    }

    /// Called with the reservation lock held.
    ///
    /// # Safety
    ///
    /// Called by the core with an attachment that `Self::new` made, with the lock held.
    unsafe extern "C" fn invalidate_callback(raw: *mut bindings::dma_buf_attachment) {
        // SAFETY: The core passes a valid attachment that we made, so that its private pointer is
        // an `Inner<T>`, which outlives it; its buffer's lock is held during the call.
        let (inner, held) = unsafe {
            (
                &*(*raw).importer_priv.cast_const().cast::<Inner<T>>(),
                Held::assume((*(*raw).dmabuf).resv),
            )
        };
        let mut in_force = false;
        for mapped in &mut inner.state.lock().mappings {
            in_force |= !core::mem::replace(&mut mapped.revoked, true);
        }
        if !in_force {
            return;
        }
        if inner.data.invalidate(held) == AfterInvalidate::Unmap {
            // SAFETY: As above.
            unsafe { Self::unmap_raw(raw, inner) };
        }
    }
}

impl<T: Importer> Deref for Attachment<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner.data
    }
}

impl<T: Importer> Drop for Attachment<T> {
    fn drop(&mut self) {
        {
            let guard = self.dmabuf.resv().lock();
            if self.is_mapped() {
                // The device may hold the addresses until it is told.
                self.inner.data.invalidate(guard.held());
            }
            // SAFETY: The attachment is ours, and its lock is held.
            unsafe { Self::unmap_raw(self.raw.as_ptr(), &self.inner) };
            while self.unpin(guard.held()).is_ok() {}
        }
        // SAFETY: By the type invariant `raw` is an attachment of `dmabuf`; nothing uses it after.
        unsafe { bindings::dma_buf_detach(self.dmabuf.as_raw(), self.raw.as_ptr()) };
    }
}

/// The physical address behind a DMA address of `dev`, as far as its IOMMU tells; `None` if nothing
/// is mapped there. Without an IOMMU the two are the same.
///
/// For tests and debugging, which want to know what the device would reach.
pub fn physical(dev: &Device, address: bindings::dma_addr_t) -> Option<PhysAddr> {
    #[cfg(CONFIG_IOMMU_API)]
    {
        // SAFETY: `dev` is a valid device.
        let domain = unsafe { bindings::iommu_get_domain_for_dev(dev.as_raw()) };
        if !domain.is_null() {
            // SAFETY: The domain of a device lives as long as the device has it; one that does DMA
            // by this address has it still.
            let found = unsafe { bindings::iommu_iova_to_phys(domain, address) };
            return (found != 0).then_some(found);
        }
    }
    #[cfg(not(CONFIG_IOMMU_API))]
    let _ = dev;
    Some(address)
}
