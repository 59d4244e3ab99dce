// SPDX-License-Identifier: GPL-2.0

//! The `memory` cgroup controller: who pays for memory that the kernel allocates for a task.
//!
//! What is allocated with [`GFP_KERNEL_ACCOUNT`] is charged to the cgroup of the current task, and
//! uncharged when it is freed, by whichever task. That is wrong where a driver allocates for somebody
//! else: in a work item, or because one client's call makes another client's buffer move. The driver
//! remembers then whose the buffer is, as a [`Payer`].
//!
//! Without `CONFIG_MEMCG` nothing is charged.
//!
//! [`GFP_KERNEL_ACCOUNT`]: crate::alloc::flags::GFP_KERNEL_ACCOUNT
//!
//! C header: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h)

#[cfg(CONFIG_MEMCG)]
use crate::bindings;
#[cfg(CONFIG_MEMCG)]
use core::ptr::NonNull;

/// The cgroup that pays. If it is removed, the one above it pays instead.
///
/// # Examples
///
/// ```
/// use kernel::cgroup::memory::Payer;
///
/// // When a client makes a buffer:
/// let payer = Payer::current();
/// // When the buffer needs memory, in whichever task:
/// let memory = payer.charge(|| KVVec::<u8>::with_capacity(1 << 16, GFP_KERNEL_ACCOUNT))?;
/// assert!(memory.capacity() >= 1 << 16);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// If there is a pointer, it is valid, and we own a reference to it.
pub struct Payer(#[cfg(CONFIG_MEMCG)] Option<NonNull<bindings::obj_cgroup>>);

// SAFETY: References can be had and let go of by any thread.
unsafe impl Send for Payer {}
// SAFETY: As above.
unsafe impl Sync for Payer {}

impl Payer {
    /// The one who pays at this moment: the cgroup of the current task. For a kernel thread nobody
    /// does.
    pub fn current() -> Self {
        // INVARIANT: The reference is ours. Without the controller there is none.
        // SAFETY: There are no requirements.
        #[cfg(CONFIG_MEMCG)]
        return Self(NonNull::new(unsafe {
            bindings::get_obj_cgroup_from_current()
        }));
        #[cfg(not(CONFIG_MEMCG))]
        Self()
    }

    /// Runs `f`: what it allocates with [`GFP_KERNEL_ACCOUNT`] is charged to this cgroup, and not to
    /// that of the current task.
    ///
    /// A limit of this cgroup that is in the way is answered as one of the task's would be: its
    /// memory is reclaimed, and if that does not help, one of its tasks is killed, or the allocation
    /// fails if its flags have [`__GFP_RETRY_MAYFAIL`] or [`__GFP_NORETRY`].
    ///
    /// [`GFP_KERNEL_ACCOUNT`]: crate::alloc::flags::GFP_KERNEL_ACCOUNT
    /// [`__GFP_NORETRY`]: crate::alloc::flags::__GFP_NORETRY
    /// [`__GFP_RETRY_MAYFAIL`]: crate::alloc::flags::__GFP_RETRY_MAYFAIL
    pub fn charge<R>(&self, f: impl FnOnce() -> R) -> R {
        #[cfg(CONFIG_MEMCG)]
        if let Some(payer) = self.0 {
            // SAFETY: By the type invariant. The reference that we get keeps the cgroup in place
            // until it is the active one no more; the one that was before is so in a scope around
            // ours, which keeps it.
            let (memcg, outer) = unsafe {
                let memcg = bindings::get_mem_cgroup_from_objcg(payer.as_ptr());
                (memcg, bindings::set_active_memcg(memcg))
            };
            let result = f();
            // SAFETY: As above.
            unsafe {
                bindings::set_active_memcg(outer);
                bindings::mem_cgroup_put(memcg);
            }
            return result;
        }
        f()
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        #[cfg(CONFIG_MEMCG)]
        if let Some(payer) = self.0 {
            // SAFETY: By the type invariant; the reference ends here.
            unsafe { bindings::obj_cgroup_put(payer.as_ptr()) };
        }
    }
}
