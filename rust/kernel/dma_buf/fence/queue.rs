// SPDX-License-Identifier: GPL-2.0

//! Where the work runs that leads to a fence.

use crate::{
    bindings,
    prelude::*,
    workqueue::Queue, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// A workqueue for what fences depend on: it makes progress when memory is short. Dropping it waits
/// for what is queued.
///
/// A delayed work item that was given to it has begun to run when it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::fence::SignalQueue,
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc, //
///     },
///     workqueue::{
///         impl_has_work,
///         new_work,
///         Work,
///         WorkItem, //
///     }, //
/// };
///
/// #[pin_data]
/// struct Answer {
///     #[pin]
///     work: Work<Answer>,
///     value: Atomic<u32>,
/// }
///
/// impl_has_work! {
///     impl HasWork<Self> for Answer { self.work }
/// }
///
/// impl WorkItem for Answer {
///     type Pointer = Arc<Answer>;
///
///     fn run(this: Arc<Answer>) {
///         this.value.store(42, Relaxed);
///     }
/// }
///
/// let answer = Arc::pin_init(
///     pin_init!(Answer {
///         work <- new_work!("Answer::work"),
///         value: Atomic::new(0),
///     }),
///     GFP_KERNEL,
/// )?;
/// let queue = SignalQueue::new(c"example")?;
/// let _ = queue.enqueue(answer.clone());
/// // It has run then.
/// drop(queue);
/// assert_eq!(answer.value.load(Relaxed), 42);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `0` is a valid workqueue, and ours.
pub struct SignalQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Workqueues may be used from any thread.
unsafe impl Send for SignalQueue {}
// SAFETY: As above.
unsafe impl Sync for SignalQueue {}

impl SignalQueue {
    /// Makes one. `ENOMEM`: there is no memory.
    pub fn new(name: &'static CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        // SAFETY: The format takes one string, which is valid.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(c"%s".as_char_ptr(), flags, 0, name.as_char_ptr())
        };
        // INVARIANT: It is ours.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }
}

impl Deref for SignalQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid for as long as `self` is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for SignalQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is ours. Nobody can add to it any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
