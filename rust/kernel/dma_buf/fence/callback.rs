// SPDX-License-Identifier: GPL-2.0

//! Being called when a fence signals.

use super::Fence;
use crate::{
    bindings,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

/// What is done when a fence signals.
pub trait Listener: Send + Sync {
    /// The fence has signalled.
    ///
    /// Called in any context, with interrupts off and the lock of the fence held: it does not sleep,
    /// and neither waits for a fence nor signals one.
    fn signalled(&self);
}

/// Waits for one fence at a time without blocking anybody.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::fence::{
///         Callback,
///         FenceMemory,
///         Listener,
///         Names,
///         Timeline, //
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
/// struct CopyEngine;
///
/// impl Names for CopyEngine {
///     const DRIVER: &'static CStr = c"example";
///     const TIMELINE: &'static CStr = c"copy";
/// }
///
/// /// Counts what it is told.
/// struct Counter(Arc<Atomic<u32>>);
///
/// impl Listener for Counter {
///     fn signalled(&self) {
///         self.0.fetch_add(1, Relaxed);
///     }
/// }
///
/// let count = Arc::new(Atomic::new(0_u32), GFP_KERNEL)?;
/// let mut callback = KBox::pin_init(Callback::new(Counter(count.clone())), GFP_KERNEL)?;
/// let pending = Timeline::<CopyEngine>::new().fence(FenceMemory::new(GFP_KERNEL)?);
///
/// assert!(callback.as_mut().wait_for(pending.fence()));
/// assert_eq!(count.load(Relaxed), 0);
/// pending.signal(Ok(()));
/// assert_eq!(count.load(Relaxed), 1);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `cb` is on the list of callbacks of `fence`, or was until that signalled; on no list if `fence`
/// is `None`.
#[pin_data(PinnedDrop)]
pub struct Callback<L: Listener> {
    #[pin]
    cb: Opaque<bindings::dma_fence_cb>,
    fence: Option<ARef<Fence>>,
    listener: L,
}

// SAFETY: The callback is taken off its list under the lock of the fence, from any thread; the
// listener may be used and dropped in any.
unsafe impl<L: Listener> Send for Callback<L> {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl<L: Listener> Sync for Callback<L> {}

impl<L: Listener> Callback<L> {
    /// Makes one that waits for nothing.
    pub fn new(listener: L) -> impl PinInit<Self> {
        // INVARIANT: It is on no list.
        pin_init!(Self {
            cb: Opaque::zeroed(),
            fence: None,
            listener,
        })
    }

    /// Has the listener called when `fence` signals, and forgets the fence before.
    ///
    /// `false`: it has signalled already, and the listener is not called. Allocates nothing.
    pub fn wait_for(mut self: Pin<&mut Self>, fence: &Fence) -> bool {
        self.as_mut().forget();
        let this = self.project();
        // SAFETY: The fence is valid. The callback is on no list, does not move, and is taken off
        // the list in `forget()`, at the latest when it is dropped; the fence lives until then.
        let added = unsafe {
            bindings::dma_fence_add_callback(fence.as_raw(), this.cb.get(), Some(Self::call))
        };
        if added == 0 {
            // INVARIANT: It is on the list.
            *this.fence = Some(fence.into());
        }
        added == 0
    }

    /// The fence that is waited for, unless it has signalled.
    pub fn waits_for(&self) -> Option<&Fence> {
        self.fence.as_deref().filter(|fence| !fence.is_signaled())
    }

    /// Waits for nothing any more; on return the listener is not running on account of a fence.
    pub fn forget(self: Pin<&mut Self>) {
        let this = self.project();
        if let Some(fence) = this.fence.take() {
            // SAFETY: By the type invariant the callback was added to this fence. Under the fence's
            // lock, under which it is called, it is taken off, if it has not been called.
            unsafe { bindings::dma_fence_remove_callback(fence.as_raw(), this.cb.get()) };
        }
    }

    /// # Safety
    ///
    /// Called by the core with the `cb` of a `Self`, which is valid until the call returns.
    unsafe extern "C" fn call(_fence: *mut bindings::dma_fence, cb: *mut bindings::dma_fence_cb) {
        // SAFETY: The caller's promise. The listener is not changed for as long as `Self` lives.
        let listener = unsafe {
            let this = crate::container_of!(Opaque::cast_from(cb), Self, cb);
            &(*this).listener
        };
        listener.signalled();
    }
}

#[pinned_drop]
impl<L: Listener> PinnedDrop for Callback<L> {
    fn drop(self: Pin<&mut Self>) {
        self.forget();
    }
}
