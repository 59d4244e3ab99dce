// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Work queues of a driver's own.

use super::Queue;
use crate::{
    bindings,
    prelude::*, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// A work queue that is drained and destroyed when dropped: nothing that was queued runs
/// afterwards.
///
/// Its items run on any CPU and may sleep for long: they hold up each other only once as many run
/// as the queue allows. No item may drop the queue, which would wait for itself. Delayed items whose
/// time has not come are not waited for; do not use the queue for them.
///
/// # Examples
///
/// ```
/// use kernel::{
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
///         OwnedQueue,
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
/// let queue = OwnedQueue::new_unbound(c"example", 0)?;
/// let _ = queue.enqueue(answer.clone());
/// // It has run then.
/// drop(queue);
/// assert_eq!(answer.value.load(Relaxed), 42);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The queue is valid, and nobody else destroys it.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues can be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue of which `most` items run at a time, or the system's default if that is 0.
    pub fn new_unbound(name: &CStr, most: u16) -> Result<Self> {
        // SAFETY: The format takes one string, which is copied.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                c_int::from(most),
                name.as_char_ptr(),
            )
        };
        // INVARIANT: We have just made it.
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant, and it is destroyed only when `self` is dropped.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Nobody can queue anything any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
