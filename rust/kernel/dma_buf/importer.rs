// SPDX-License-Identifier: GPL-2.0

//! Importers: device drivers that reach somebody else's buffer by DMA.
//!
//! An [`Attachment`] is dynamic: the exporter may take the mapping back at any time, by calling
//! [`Importer::invalidate`], and the importer maps again when it next needs the buffer.

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
    error::from_err_ptr,
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

    /// The mapping is taken back: make the device stop using its addresses.
    ///
    /// Called too when a mapped attachment is dropped, which unmaps whatever the answer.
    ///
    /// Called with the buffer's reservation lock held, so it does not wait for anything that needs
    /// that lock, nor allocates memory that reclaim could wait for. It may sleep for as long as
    /// the device takes to stop. Called only while the buffer is mapped, once for each mapping; once
    /// more if the attachment is dropped with a mapping that was taken back but not unmapped.
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

/// What an attachment's callback needs; its address is the importer's private pointer.
#[pin_data]
struct Inner<T> {
    /// Changed only with the reservation lock held. Held over a call out only while somebody looks
    /// at the table: who unmaps it there waits for himself, and does not pull it away.
    #[pin]
    mapped: Mutex<Option<Mapped>>,
    #[pin]
    data: T,
}

/// A device attached to a buffer, and its mapping while there is one.
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
        invalidate_mappings: Some(Self::invalidate_callback),
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
        let inner = KBox::pin_init(
            try_pin_init!(Inner {
                mapped <- new_mutex!(None, "dma_buf::importer::mapped"),
                data <- data,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: `dmabuf` and `dev` are valid; `OPS` is a constant of static lifetime; `inner`
        // is pinned and outlives the attachment, which `drop()` ends first.
        let raw = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(
                dmabuf.as_raw(),
                dev.as_raw(),
                &const { Self::OPS },
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
        held.check(self.dmabuf.resv())?;
        // SAFETY: The attachment is valid, and so is its device.
        if unsafe { (*self.raw.as_ptr()).dev } != dev.as_raw() {
            return Err(EINVAL);
        }

        let known = self
            .inner
            .mapped
            .lock()
            .as_ref()
            .map(|mapped| (mapped.revoked, mapped.dir));
        match known {
            Some((true, _)) => return Err(EBUSY),
            Some((false, known)) if known == dir => (),
            Some(_) => return Err(EINVAL),
            None => {
                // SAFETY: The attachment is valid and the reservation lock is held.
                let sgt = from_err_ptr(unsafe {
                    bindings::dma_buf_map_attachment(self.raw.as_ptr(), dir.into())
                })?;
                let sgt = NonNull::new(sgt).ok_or(ENOMEM)?;
                *self.inner.mapped.lock() = Some(Mapped {
                    sgt,
                    dir,
                    revoked: false,
                });
            }
        }

        held.resv()
            .wait_interruptible(Usage::Kernel, msecs_to_jiffies(Self::MOVE_TIMEOUT_MS))?;

        let mapped = self.inner.mapped.lock();
        let sgt = mapped.as_ref().ok_or(EINVAL)?.sgt;
        // SAFETY: The table stays valid while we hold the mutex: unmapping takes it.
        use_table(unsafe { SGTable::from_raw(sgt.as_ptr()) })
    }

    /// Whether the buffer is mapped now. The answer can change unless the lock is held.
    pub fn is_mapped(&self) -> bool {
        self.inner.mapped.lock().is_some()
    }

    /// Undoes the mapping, if there is one. The device no longer uses its addresses.
    pub fn unmap(&self, held: Held<'_>) -> Result {
        held.check(self.dmabuf.resv())?;
        // SAFETY: The attachment is ours, and its lock is held.
        unsafe { Self::unmap_raw(self.raw.as_ptr(), &self.inner) };
        Ok(())
    }

    /// # Safety
    ///
    /// `raw` is the valid attachment of `inner`, and the buffer's reservation lock is held.
    unsafe fn unmap_raw(raw: *mut bindings::dma_buf_attachment, inner: &Inner<T>) {
        let Some(mapped) = inner.mapped.lock().take() else {
            return;
        };
        // SAFETY: The caller promises a valid attachment and the lock; the table is the one that
        // mapping returned, and is given back once as it was taken out of `mapped`.
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
        match &mut *inner.mapped.lock() {
            Some(mapped) if !mapped.revoked => mapped.revoked = true,
            _ => return,
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
        }
        // SAFETY: By the type invariant `raw` is an attachment of `dmabuf`; nothing uses it after.
        unsafe { bindings::dma_buf_detach(self.dmabuf.as_raw(), self.raw.as_ptr()) };
    }
}
