// SPDX-License-Identifier: GPL-2.0

//! Fences: work that ends in bounded time.
//!
//! C header: [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h)

use crate::{
    alloc::Flags,
    bindings,
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
    time::Jiffies,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

mod callback;
mod queue;

pub use self::{
    callback::{
        Callback,
        Listener, //
    },
    queue::SignalQueue, //
};

/// A `struct dma_fence`.
///
/// # Invariants
///
/// Instances are initialized, refcounted fences.
#[repr(transparent)]
pub struct Fence(Opaque<bindings::dma_fence>);

// SAFETY: Fences are made to be shared, and may be released from any context.
unsafe impl Send for Fence {}
// SAFETY: As above.
unsafe impl Sync for Fence {}

// SAFETY: `dma_fence_get()` and `dma_fence_put()` count references.
unsafe impl AlwaysRefCounted for Fence {
    fn inc_ref(&self) {
        // SAFETY: The shared reference means that the refcount is not zero.
        unsafe { bindings::dma_fence_get(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference that it owns.
        unsafe { bindings::dma_fence_put(obj.as_ptr().cast()) };
    }
}

impl Fence {
    pub(crate) fn as_raw(&self) -> *mut bindings::dma_fence {
        self.0.get()
    }

    /// # Safety
    ///
    /// `raw` is null, or a valid fence with a reference that is the caller's to give away.
    pub(crate) unsafe fn from_owned(raw: *mut bindings::dma_fence) -> Option<ARef<Self>> {
        // SAFETY: The caller's promise.
        // INVARIANT: The fence is initialized, as it is counted.
        NonNull::new(raw.cast()).map(|raw| unsafe { ARef::from_raw(raw) })
    }

    /// The number of the timeline that the fence is of.
    pub fn context(&self) -> u64 {
        // SAFETY: `self` is a valid fence, whose context does not change.
        unsafe { (*self.as_raw()).context }
    }

    /// Whether the work has ended.
    pub fn is_signaled(&self) -> bool {
        // SAFETY: `self` is a valid fence.
        unsafe { bindings::dma_fence_is_signaled(self.as_raw()) }
    }

    /// How the work ended: `None` if it has not.
    pub fn status(&self) -> Option<Result> {
        // SAFETY: `self` is a valid fence.
        match unsafe { bindings::dma_fence_get_status(self.as_raw()) } {
            0 => None,
            errno if errno < 0 => Some(Err(Error::from_errno(errno))),
            _ => Some(Ok(())),
        }
    }

    /// Waits for the work to end, for at most `timeout`, and returns how it ended.
    ///
    /// `ETIMEDOUT`: it has not.
    pub fn wait(&self, timeout: Jiffies) -> Result {
        self.wait_raw(timeout, false)?;
        self.status().unwrap_or(Err(ETIMEDOUT))
    }

    /// Waits for the work to end, well or not, for at most `timeout`.
    ///
    /// `ETIMEDOUT`: it has not. A signal ends the wait with `ERESTARTSYS`.
    pub fn wait_interruptible(&self, timeout: Jiffies) -> Result {
        self.wait_raw(timeout, true)
    }

    fn wait_raw(&self, timeout: Jiffies, interruptible: bool) -> Result {
        let timeout = timeout.try_into().unwrap_or(isize::MAX);
        // SAFETY: `self` is a valid fence.
        let left =
            unsafe { bindings::dma_fence_wait_timeout(self.as_raw(), interruptible, timeout) };
        match i32::try_from(left) {
            Ok(0) => Err(ETIMEDOUT),
            Ok(errno) if errno < 0 => Err(Error::from_errno(errno)),
            _ => Ok(()),
        }
    }
}

/// The names that a driver's fences show in debugfs and traces.
pub trait Names: 'static {
    /// Name of the driver.
    const DRIVER: &'static CStr;
    /// Name of the timeline, an engine for example.
    const TIMELINE: &'static CStr;
}

/// A timeline: fences of one timeline signal in the order in which they were made.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::fence::{
///         Fence,
///         FenceMemory,
///         Names,
///         Signalling,
///         Timeline, //
///     },
///     sync::aref::ARef,
///     time::msecs_to_jiffies, //
/// };
///
/// struct CopyEngine;
///
/// impl Names for CopyEngine {
///     const DRIVER: &'static CStr = c"example";
///     const TIMELINE: &'static CStr = c"copy";
/// }
///
/// let timeline = Timeline::<CopyEngine>::new();
/// // What can fail comes before the work is begun.
/// let memory = FenceMemory::new(GFP_KERNEL)?;
/// let pending = timeline.fence(memory);
/// let fence: ARef<Fence> = pending.fence().into();
/// assert_eq!(fence.status(), None);
/// assert_eq!(fence.wait(msecs_to_jiffies(1)), Err(ETIMEDOUT));
///
/// // The handler of the engine's interrupt, or whoever gives the work up:
/// let signalling = Signalling::begin();
/// pending.signal(Ok(()));
/// drop(signalling);
/// assert_eq!(fence.wait(msecs_to_jiffies(1000)), Ok(()));
///
/// // Work that nobody ends has failed.
/// let pending = timeline.fence(FenceMemory::new(GFP_KERNEL)?);
/// let fence: ARef<Fence> = pending.fence().into();
/// drop(pending);
/// assert_eq!(fence.status(), Some(Err(ECANCELED)));
/// # Ok::<(), Error>(())
/// ```
pub struct Timeline<N: Names> {
    context: u64,
    next: Atomic<u64>,
    _names: PhantomData<N>,
}

impl<N: Names> Timeline<N> {
    const OPS: bindings::dma_fence_ops = bindings::dma_fence_ops {
        get_driver_name: Some(Self::driver_name),
        get_timeline_name: Some(Self::timeline_name),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the core with a fence of such a timeline.
    unsafe extern "C" fn driver_name(_fence: *mut bindings::dma_fence) -> *const c_char {
        N::DRIVER.as_char_ptr()
    }

    /// # Safety
    ///
    /// Called by the core with a fence of such a timeline.
    unsafe extern "C" fn timeline_name(_fence: *mut bindings::dma_fence) -> *const c_char {
        N::TIMELINE.as_char_ptr()
    }

    /// Makes a timeline of its own context.
    pub fn new() -> Self {
        Self {
            // SAFETY: There are no requirements.
            context: unsafe { bindings::dma_fence_context_alloc(1) },
            next: Atomic::new(1),
            _names: PhantomData,
        }
    }

    /// The number that its fences have as their context.
    pub fn context(&self) -> u64 {
        self.context
    }

    /// Makes the next fence of the timeline, in memory that is allocated before.
    ///
    /// Call it under the lock that orders submission, so that fences signal in order.
    pub fn fence(&self, memory: FenceMemory) -> PendingFence {
        let seqno = self.next.fetch_add(1, Relaxed);

        // SAFETY: The memory is ours alone. `OPS` is a constant of static lifetime. Without an
        // external lock the fence uses its own.
        unsafe {
            bindings::dma_fence_init64(
                memory.0.get(),
                &const { Self::OPS },
                core::ptr::null_mut(),
                self.context,
                seqno,
            )
        };

        let fence = NonNull::from(KBox::leak(memory.0)).cast::<Fence>();
        PendingFence {
            // SAFETY: `dma_fence_init64()` gave us the first reference. Without a `release`
            // operation the last one frees the fence with `kfree_rcu()`, which matches the `KBox`
            // whose only content, at offset 0, is the fence.
            // INVARIANT: The fence is initialized.
            fence: unsafe { ARef::from_raw(fence) },
            outcome: Err(ECANCELED),
        }
    }
}

/// Memory of a fence that is not made yet.
///
/// To allocate may wait for memory, and that for a fence: so it is not done under a lock that
/// signalling a fence needs, as that which orders submission often is.
pub struct FenceMemory(KBox<Opaque<bindings::dma_fence>>);

// SAFETY: It is memory that nobody else knows.
unsafe impl Send for FenceMemory {}

impl FenceMemory {
    /// Allocates. `ENOMEM`: there is none.
    pub fn new(flags: Flags) -> Result<Self> {
        let memory = KBox::new(Opaque::new(bindings::dma_fence::default()), flags)?;
        Ok(Self(memory))
    }
}

/// A section of code that must end for a fence to signal; it ends when the value is dropped.
///
/// With lockdep, a section that waits for a fence is reported, or that allocates memory in a way
/// that may wait for one, or that takes a lock under which one of both is done elsewhere. Has no
/// effect in atomic context, where none of that is possible.
#[must_use = "the section ends when the value is dropped"]
pub struct Signalling(bool, NotThreadSafe);

impl Signalling {
    /// Begins a section, before the first lock that it takes.
    pub fn begin() -> Self {
        // SAFETY: `drop` ends the section, in the same task as the type is not `Send`.
        Self(
            unsafe { bindings::dma_fence_begin_signalling() },
            NotThreadSafe,
        )
    }
}

impl Drop for Signalling {
    fn drop(&mut self) {
        // SAFETY: This is the value that the beginning returned.
        unsafe { bindings::dma_fence_end_signalling(self.0) };
    }
}

impl<N: Names> Default for Timeline<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The end of a fence that signals it.
///
/// Whoever holds it has promised that the work ends. Dropping it signals, so that a fence cannot
/// be forgotten: with `ECANCELED`, unless [`PendingFence::signal`] said how the work ended.
/// Signalling is possible from any context.
pub struct PendingFence {
    fence: ARef<Fence>,
    outcome: Result,
}

impl PendingFence {
    /// The fence, to wait for or to add to a reservation object.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Signals that the work has ended, well or not.
    pub fn signal(mut self, outcome: Result) {
        self.outcome = outcome;
    }
}

impl Drop for PendingFence {
    fn drop(&mut self) {
        let raw = self.fence.as_raw();
        if let Err(error) = self.outcome {
            // SAFETY: The fence is valid and not signalled yet: only `self` signals it, here.
            unsafe { bindings::dma_fence_set_error(raw, error.to_errno()) };
        }
        // SAFETY: The fence is valid.
        unsafe { bindings::dma_fence_signal(raw) };
    }
}
