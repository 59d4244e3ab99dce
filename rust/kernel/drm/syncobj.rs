// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Synchronization objects: fences that userspace holds by handle.
//!
//! A *binary* syncobj holds one fence or none; a *timeline* syncobj holds a fence for each of its
//! points, which are numbers from 1. Point 0 means the binary kind.
//!
//! A driver has them with [`Driver::FEAT_SYNCOBJ`](crate::drm::Driver::FEAT_SYNCOBJ). It takes
//! fences to wait for with [`find_fence`], and gives the fence of its work to those that are found
//! as [`Slot`]s: what can fail happens before the work is submitted.
//!
//! C header: [`include/drm/drm_syncobj.h`](srctree/include/drm/drm_syncobj.h)

use crate::{
    bindings,
    dma_buf::fence::Fence,
    drm::file::{
        DriverFile,
        File, //
    },
    error::to_result,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::{
    num::NonZero,
    ptr::{
        self,
        NonNull, //
    },
};

/// A `struct drm_syncobj`.
///
/// # Invariants
///
/// Instances are initialized and refcounted.
#[repr(transparent)]
pub struct Syncobj(Opaque<bindings::drm_syncobj>);

// SAFETY: Syncobjs are made to be shared, and may be released from any thread.
unsafe impl Send for Syncobj {}
// SAFETY: As above; the C side locks.
unsafe impl Sync for Syncobj {}

// SAFETY: `drm_syncobj_get()` and `drm_syncobj_put()` count references.
unsafe impl AlwaysRefCounted for Syncobj {
    fn inc_ref(&self) {
        // SAFETY: The shared reference means that the refcount is not zero.
        unsafe { bindings::drm_syncobj_get(self.0.get()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference that it owns.
        unsafe { bindings::drm_syncobj_put(obj.as_ptr().cast()) };
    }
}

impl Syncobj {
    /// The syncobj behind a handle of `file`. `ENOENT`: there is none.
    pub fn find<T: DriverFile>(file: &File<T>, handle: u32) -> Result<ARef<Self>> {
        // SAFETY: `file` is open.
        let raw = unsafe { bindings::drm_syncobj_find(file.as_raw(), handle) };
        let raw = NonNull::new(raw).ok_or(ENOENT)?;
        // SAFETY: The syncobj is valid, and we were given a reference.
        // INVARIANT: It is initialized.
        Ok(unsafe { ARef::from_raw(raw.cast()) })
    }

    /// Puts `fence` in the place of what the syncobj holds. Allocates nothing; for process context.
    pub fn replace_fence(&self, fence: &Fence) {
        // SAFETY: Both are valid.
        unsafe { bindings::drm_syncobj_replace_fence(self.0.get(), fence.as_raw()) };
    }

    /// Makes `fence` that of `point`, in memory that is allocated before. For process context.
    ///
    /// Points are to rise: one that does not is there, but waiting for it is waiting for those
    /// before.
    pub fn add_point(&self, node: ChainNode, fence: &Fence, point: NonZero<u64>) {
        let node = KBox::into_raw(node.0).cast();
        // SAFETY: Both are valid. The node is initialized and owned by the syncobj from here on: it
        // is freed with `kfree_rcu()`, which matches the `KBox` whose only content, at offset 0, is
        // the node.
        unsafe { bindings::drm_syncobj_add_point(self.0.get(), node, fence.as_raw(), point.get()) };
    }
}

/// Memory for a point of a timeline syncobj.
pub struct ChainNode(KBox<Opaque<bindings::dma_fence_chain>>);

impl ChainNode {
    /// Allocates. `ENOMEM`: there is none.
    pub fn new() -> Result<Self> {
        Ok(Self(KBox::new(Opaque::zeroed(), GFP_KERNEL)?))
    }
}

/// The fence that a syncobj of `file` holds, for `point` or, if that is 0, as a binary one.
///
/// `ENOENT`: no such handle. `EINVAL`: it holds none yet, or not for this point.
pub fn find_fence<T: DriverFile>(file: &File<T>, handle: u32, point: u64) -> Result<ARef<Fence>> {
    let mut fence = ptr::null_mut();
    // SAFETY: `file` is open. Without flags the call does not wait.
    to_result(unsafe {
        bindings::drm_syncobj_find_fence(file.as_raw(), handle, point, 0, &mut fence)
    })?;
    // SAFETY: We were given a reference.
    unsafe { Fence::from_owned(fence) }.ok_or(EINVAL)
}

/// A place of a syncobj that a fence can be put in.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::fence::Fence,
///     drm::{
///         file::{
///             DriverFile,
///             File, //
///         },
///         syncobj::{
///             self,
///             Slot, //
///         }, //
///     },
///     sync::aref::ARef,
///     time::msecs_to_jiffies, //
/// };
///
/// /// Submits work that waits for point 7 of one syncobj; another one is given its fence.
/// fn submit<T: DriverFile>(
///     file: &File<T>,
///     (wait, signal): (u32, u32),
///     queue: impl FnOnce() -> ARef<Fence>,
/// ) -> Result {
///     let before = syncobj::find_fence(file, wait, 7)?;
///     let slot = Slot::new(file, signal, 0)?;
///     before.wait(msecs_to_jiffies(1000))?;
///     // From here on nothing fails.
///     slot.fill(&queue());
///     Ok(())
/// }
/// ```
pub struct Slot {
    syncobj: ARef<Syncobj>,
    point: Option<(NonZero<u64>, ChainNode)>,
}

impl Slot {
    /// The place for `point` of a syncobj of `file`, or, if that is 0, its only one.
    ///
    /// `ENOENT`: no such handle.
    pub fn new<T: DriverFile>(file: &File<T>, handle: u32, point: u64) -> Result<Self> {
        let syncobj = Syncobj::find(file, handle)?;
        let point = match NonZero::new(point) {
            Some(point) => Some((point, ChainNode::new()?)),
            None => None,
        };
        Ok(Self { syncobj, point })
    }

    /// Puts `fence` there. Allocates nothing; for process context.
    pub fn fill(self, fence: &Fence) {
        match self.point {
            Some((point, node)) => self.syncobj.add_point(node, fence, point),
            None => self.syncobj.replace_fence(fence),
        }
    }
}
