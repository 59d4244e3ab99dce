// SPDX-License-Identifier: GPL-2.0

//! Reservation objects: the lock of a shared buffer, and the fences of the work that uses it.
//!
//! C header: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use super::fence::Fence;
use crate::{
    bindings,
    error::to_result,
    ffi::c_int,
    prelude::*,
    sync::aref::ARef,
    time::Jiffies,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::ptr;

mod locks;

pub use self::locks::Locks;

/// A `struct dma_resv`.
///
/// # Lock order
///
/// `mmap_lock`, then one reservation lock, then driver locks. Several are taken at once with
/// [`Locks`]; one more while others are held only with [`Resv::try_lock`].
///
/// # Examples
///
/// A job that writes a buffer. Adding its fence is the last step, and cannot fail.
///
/// ```
/// use kernel::{
///     dma_buf::{
///         fence::{
///             FenceMemory,
///             Names,
///             PendingFence,
///             Timeline, //
///         },
///         resv::Usage,
///         DmaBuf, //
///     },
///     time::msecs_to_jiffies, //
/// };
///
/// fn submit<N: Names>(buffer: &DmaBuf, timeline: &Timeline<N>) -> Result<PendingFence> {
///     let memory = FenceMemory::new(GFP_KERNEL)?;
///     let guard = buffer.resv().lock_interruptible()?;
///     let mut room = guard.held().reserve_fences(1)?;
///     // Who writes waits for all that was submitted before.
///     buffer.resv().wait(Usage::Read, msecs_to_jiffies(1000))?;
///     let pending = timeline.fence(memory);
///     room.add(pending.fence(), Usage::Write)?;
///     Ok(pending)
/// }
/// ```
#[repr(transparent)]
pub struct Resv(Opaque<bindings::dma_resv>);

// SAFETY: A `struct dma_resv` is a lock and what it protects; it is made to be shared.
unsafe impl Send for Resv {}
// SAFETY: As above.
unsafe impl Sync for Resv {}

/// Who a fence in a reservation object matters to. Each usage includes those above it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Memory management: everybody waits for these before touching the buffer.
    Kernel,
    /// Writes by submitted work.
    Write,
    /// Reads by submitted work.
    Read,
    /// No implicit synchronization: page-table updates, accesses of importers that end late.
    Bookkeep,
}

impl From<Usage> for bindings::dma_resv_usage {
    fn from(usage: Usage) -> Self {
        match usage {
            Usage::Kernel => bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL,
            Usage::Write => bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE,
            Usage::Read => bindings::dma_resv_usage_DMA_RESV_USAGE_READ,
            Usage::Bookkeep => bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP,
        }
    }
}

impl Resv {
    /// # Safety
    ///
    /// `raw` is a valid, initialized reservation object for all of `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::dma_resv) -> &'a Self {
        // SAFETY: `Resv` is a transparent wrapper; the caller promises validity.
        unsafe { &*raw.cast() }
    }

    #[inline]
    fn as_raw(&self) -> *mut bindings::dma_resv {
        self.0.get()
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_> {
        // SAFETY: `self` is valid. Without a ticket the lock cannot fail.
        unsafe { bindings::dma_resv_lock(self.as_raw(), ptr::null_mut()) };
        // INVARIANT: We hold the lock now.
        Guard(self, NotThreadSafe)
    }

    /// Takes the lock, unless a signal arrives first (`ERESTARTSYS`).
    pub fn lock_interruptible(&self) -> Result<Guard<'_>> {
        // SAFETY: `self` is valid.
        locked(unsafe { bindings::dma_resv_lock_interruptible(self.as_raw(), ptr::null_mut()) })?;
        // INVARIANT: We hold the lock now.
        Ok(Guard(self, NotThreadSafe))
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<Guard<'_>> {
        // SAFETY: `self` is valid.
        let locked = unsafe { bindings::dma_resv_trylock(self.as_raw()) };
        // INVARIANT: We hold the lock if the trylock says so.
        locked.then(|| Guard(self, NotThreadSafe))
    }

    /// Waits, for at most `timeout`, until all fences up to `usage` have signalled.
    ///
    /// `ETIMEDOUT`: they have not. The lock need not be held; fences added meanwhile may be
    /// waited for or not.
    pub fn wait(&self, usage: Usage, timeout: Jiffies) -> Result {
        self.wait_raw(usage, timeout, false)
    }

    /// As [`Resv::wait`]; a signal ends it with `ERESTARTSYS`.
    pub fn wait_interruptible(&self, usage: Usage, timeout: Jiffies) -> Result {
        self.wait_raw(usage, timeout, true)
    }

    /// Whether all fences up to `usage` have signalled. The lock need not be held.
    pub fn is_idle(&self, usage: Usage) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::dma_resv_test_signaled(self.as_raw(), usage.into()) }
    }

    fn wait_raw(&self, usage: Usage, timeout: Jiffies, interruptible: bool) -> Result {
        // The C side takes it as signed.
        let timeout = timeout.min(isize::MAX.cast_unsigned());
        // SAFETY: `self` is valid.
        let left = unsafe {
            bindings::dma_resv_wait_timeout(self.as_raw(), usage.into(), interruptible, timeout)
        };
        match i32::try_from(left) {
            Ok(0) => Err(ETIMEDOUT),
            Ok(errno) if errno < 0 => Err(Error::from_errno(errno)),
            _ => Ok(()),
        }
    }
}

/// What came of taking a lock that a signal interrupts.
///
/// The C side says `EINTR`, for signals that nobody handles too. With `ERESTARTSYS` the system call
/// is made again after those, as with TTM (`ttm_bo_reserve()`).
fn locked(result: c_int) -> Result {
    to_result(result).map_err(|error| if error == EINTR { ERESTARTSYS } else { error })
}

/// A reservation lock held; dropping it unlocks.
///
/// # Invariants
///
/// The current task holds the lock.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard<'a>(&'a Resv, NotThreadSafe);

impl Guard<'_> {
    /// The proof that the lock is held.
    pub fn held(&self) -> Held<'_> {
        // INVARIANT: The lock stays held while `self` is borrowed.
        Held(self.0, NotThreadSafe)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we hold the lock.
        unsafe { bindings::dma_resv_unlock(self.0.as_raw()) };
    }
}

/// Proof that a reservation lock is held, by this task or on its behalf by a caller.
///
/// # Invariants
///
/// The lock is held for all of `'a`.
#[derive(Clone, Copy)]
pub struct Held<'a>(&'a Resv, NotThreadSafe);

impl<'a> Held<'a> {
    /// # Safety
    ///
    /// The lock of `raw`, a valid reservation object, is held for all of `'a`.
    pub(crate) unsafe fn assume(raw: *mut bindings::dma_resv) -> Self {
        // SAFETY: The caller promises that `raw` is valid.
        // INVARIANT: The caller promises that the lock is held.
        Self(unsafe { Resv::from_raw(raw) }, NotThreadSafe)
    }

    /// As [`Resv::is_idle`], at no cost for an object that never had a fence.
    #[inline]
    pub fn is_idle(self, usage: Usage) -> bool {
        // SAFETY: The object is valid, and the pointer does not change while it is locked.
        let fences = unsafe { (*self.0.as_raw()).fences };
        fences.is_null() || self.0.is_idle(usage)
    }

    /// The reservation object that is locked.
    pub fn resv(self) -> &'a Resv {
        self.0
    }

    /// `EINVAL`, unless it is `resv` that is locked.
    pub fn check(self, resv: &Resv) -> Result {
        if ptr::eq(self.0, resv) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// One fence that signals when all fences up to `usage` have; `None` if there is none.
    ///
    /// Do not add it to a reservation object: it may be made of that object's own fences.
    pub fn fence(self, usage: Usage) -> Result<Option<ARef<Fence>>> {
        let mut fence = ptr::null_mut();
        // SAFETY: The object is valid and locked.
        to_result(unsafe {
            bindings::dma_resv_get_singleton(self.0.as_raw(), usage.into(), &mut fence)
        })?;
        // SAFETY: If there is one, we were given a reference.
        Ok(unsafe { Fence::from_owned(fence) })
    }

    /// Makes room for `count` fences, so that adding them cannot fail.
    ///
    /// Rooms of one object do not add up: a second reservation covers what the first did. Fill one
    /// before the next is made.
    pub fn reserve_fences(self, count: u32) -> Result<FenceRoom<'a>> {
        // SAFETY: The object is valid and locked.
        to_result(unsafe { bindings::dma_resv_reserve_fences(self.0.as_raw(), count) })?;
        Ok(FenceRoom { held: self, count })
    }
}

/// Room for fences in a locked reservation object.
///
/// Work is submitted between reserving the room and filling it: what has been submitted cannot be
/// taken back because memory ran out.
#[must_use = "reserved room is meant to be filled"]
pub struct FenceRoom<'a> {
    held: Held<'a>,
    count: u32,
}

impl FenceRoom<'_> {
    /// Adds `fence`; `ENOSPC` if the room is used up.
    pub fn add(&mut self, fence: &Fence, usage: Usage) -> Result {
        self.count = self.count.checked_sub(1).ok_or(ENOSPC)?;
        // SAFETY: The object is valid and locked, and there is room for one fence more.
        unsafe { bindings::dma_resv_add_fence(self.held.0.as_raw(), fence.as_raw(), usage.into()) };
        Ok(())
    }
}
