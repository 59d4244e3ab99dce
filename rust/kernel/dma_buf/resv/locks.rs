// SPDX-License-Identifier: GPL-2.0

//! The locks of several reservation objects at once.
//!
//! C header: [`include/linux/ww_mutex.h`](srctree/include/linux/ww_mutex.h)

use super::{
    locked,
    Held,
    Resv, //
};
use crate::{
    bindings,
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::ptr;

/// Who wants locks, and since when: of two that want each other's, the younger one backs off.
///
/// # Invariants
///
/// `0` is initialized by `ww_acquire_init()`, and no lock is held by it when it is dropped.
#[pin_data(PinnedDrop)]
struct Ticket {
    #[pin]
    ctx: Opaque<bindings::ww_acquire_ctx>,
    // The task that made it ends it.
    _not_send: NotThreadSafe,
}

impl Ticket {
    fn new() -> impl PinInit<Self> {
        // INVARIANT: Initialized here, and without locks.
        pin_init!(Self {
            // SAFETY: `slot` is valid memory that does not move, and the class is static.
            ctx <- Opaque::ffi_init(|slot| unsafe {
                bindings::ww_acquire_init(slot, &raw mut bindings::reservation_ww_class)
            }),
            _not_send: NotThreadSafe,
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Ticket {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant; the type is not `Send`, so this is the same task.
        unsafe { bindings::ww_acquire_fini(self.ctx.get()) };
    }
}

/// Locks of several reservation objects; dropping it unlocks them all.
///
/// They may be taken in any order and by any number of tasks at once. Where two tasks wait for each
/// other, the one that came later lets go of all that it has, waits for the lock that it could not
/// get, and begins again with that. It stays as old as it was, so that it is nobody's victim for
/// ever.
///
/// # Examples
///
/// ```
/// use kernel::dma_buf::{
///     fence::Fence,
///     resv::{
///         Locks,
///         Usage, //
///     },
///     DmaBuf, //
/// };
///
/// /// Notes that `fence` is that of a copy.
/// fn note_copy(from: &DmaBuf, to: &DmaBuf, fence: &Fence) -> Result {
///     let locks = Locks::lock_interruptible(&[from.resv(), to.resv()])?;
///     let mut source = locks.held(from.resv())?.reserve_fences(1)?;
///     let mut target = locks.held(to.resv())?.reserve_fences(1)?;
///     source.add(fence, Usage::Read)?;
///     target.add(fence, Usage::Write)
/// }
///
/// // Locks of nothing are had at once.
/// drop(Locks::lock_interruptible(&[])?);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The current task holds the locks of `held`, each of them once and by `ticket`.
#[must_use = "the locks are released when the value is dropped"]
pub struct Locks<'a> {
    held: KVec<&'a Resv>,
    ticket: Pin<KBox<Ticket>>,
}

impl<'a> Locks<'a> {
    /// Takes the locks of all `resvs`; one that is named more than once is taken once.
    ///
    /// The caller holds no reservation lock. `ERESTARTSYS`: a signal arrived; none is held then.
    pub fn lock_interruptible(resvs: &[&'a Resv]) -> Result<Self> {
        let mut this = Self {
            held: KVec::with_capacity(resvs.len(), GFP_KERNEL)?,
            ticket: KBox::pin_init(Ticket::new(), GFP_KERNEL)?,
        };
        while let Err(contended) = this.try_all(resvs)? {
            this.unlock_all();
            // SAFETY: `contended` is valid, and no lock is held by the ticket.
            locked(unsafe {
                bindings::dma_resv_lock_slow_interruptible(
                    contended.as_raw(),
                    this.ticket.ctx.get(),
                )
            })?;
            this.remember(contended)?;
        }
        // SAFETY: The ticket is initialized, and takes no lock after this.
        unsafe { bindings::ww_acquire_done(this.ticket.ctx.get()) };
        Ok(this)
    }

    /// Takes those locks that are not held, up to one for which others have to be let go first.
    fn try_all(&mut self, resvs: &[&'a Resv]) -> Result<Result<(), &'a Resv>> {
        for resv in resvs {
            // SAFETY: `resv` is valid, and the ticket initialized.
            let result = locked(unsafe {
                bindings::dma_resv_lock_interruptible(resv.as_raw(), self.ticket.ctx.get())
            });
            match result {
                Ok(()) => self.remember(resv)?,
                Err(error) if error == EALREADY => {}
                Err(error) if error == EDEADLK => return Ok(Err(resv)),
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    /// Notes a lock that has just been taken.
    fn remember(&mut self, resv: &'a Resv) -> Result {
        // INVARIANT: The lock is held, and by the ticket.
        self.held.push_within_capacity(resv).map_err(|_| {
            // There is room for each, once.
            // SAFETY: We have just taken it.
            unsafe { bindings::dma_resv_unlock(resv.as_raw()) };
            EINVAL
        })
    }

    fn unlock_all(&mut self) {
        while let Some(resv) = self.held.pop() {
            // SAFETY: By the type invariant the lock is held.
            unsafe { bindings::dma_resv_unlock(resv.as_raw()) };
        }
    }

    /// The proof that the lock of `resv` is held; `EINVAL` if it is not by `self`.
    pub fn held(&self, resv: &Resv) -> Result<Held<'_>> {
        let held = self.held.iter().find(|held| ptr::eq(**held, resv));
        // INVARIANT: The lock stays held while `self` is borrowed.
        held.map(|held| Held(held, NotThreadSafe)).ok_or(EINVAL)
    }
}

impl Drop for Locks<'_> {
    fn drop(&mut self) {
        // Before the ticket, which is a field.
        self.unlock_all();
    }
}
