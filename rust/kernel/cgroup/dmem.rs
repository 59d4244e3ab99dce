// SPDX-License-Identifier: GPL-2.0

//! The `dmem` cgroup controller: limits of device memory.
//!
//! A driver registers each kind of memory of a device as a [`Region`], and charges what tasks
//! allocate of it. An administrator sets a cgroup's limit of a region with `dmem.max`, and sees in
//! `dmem.current` what its tasks have.
//!
//! Without `CONFIG_CGROUP_DMEM` there are no limits: charges are always granted.
//!
//! C header: [`include/linux/cgroup_dmem.h`](srctree/include/linux/cgroup_dmem.h)

use crate::prelude::*;

#[cfg(CONFIG_CGROUP_DMEM)]
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    }, //
};
#[cfg(CONFIG_CGROUP_DMEM)]
use core::ptr;

/// A kind of memory of a device. It is known to the controller until this is dropped; charges may
/// outlive it.
///
/// # Examples
///
/// ```
/// use kernel::cgroup::dmem::Region;
///
/// let vram = Region::new(1 << 20, c"drm/example/vram")?;
/// let charge = vram.try_charge(4096)?;
/// // When the memory is free again, by whichever task:
/// drop(charge);
/// assert_eq!(Region::new(0, c"drm/example/nothing").err(), Some(EINVAL));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The pointer is that of a registered region.
pub struct Region(#[cfg(CONFIG_CGROUP_DMEM)] ptr::NonNull<bindings::dmem_cgroup_region>);

// SAFETY: The controller can be called from any thread.
unsafe impl Send for Region {}
// SAFETY: As above; it has locks of its own.
unsafe impl Sync for Region {}

impl Region {
    /// Registers a region of `size` bytes, not 0 (`EINVAL`), under a name without white space.
    ///
    /// For a DRM device the name is `drm/<parent's name>/<memory>`. Names are not checked to be
    /// unique: a limit is set for the first region of that name. May sleep.
    #[cfg(CONFIG_CGROUP_DMEM)]
    pub fn new(size: u64, name: &CStr) -> Result<Self> {
        let init = bindings::dmem_cgroup_init {
            size,
            ..Default::default()
        };
        // SAFETY: `%s` takes a string. Both strings and `init` are copied.
        let region = from_err_ptr(unsafe {
            bindings::dmem_cgroup_register_region(&init, c"%s".as_char_ptr(), name.as_char_ptr())
        })?;
        // INVARIANT: It was registered; the size was 0 if it is null.
        ptr::NonNull::new(region).map(Self).ok_or(EINVAL)
    }

    /// As with the controller.
    #[cfg(not(CONFIG_CGROUP_DMEM))]
    pub fn new(size: u64, _name: &CStr) -> Result<Self> {
        match size {
            0 => Err(EINVAL),
            _ => Ok(Self()),
        }
    }

    /// Charges `size` bytes to the cgroup of the current task.
    ///
    /// `EAGAIN`: a limit of the cgroup, or of one above it, is in the way. May sleep.
    #[cfg(CONFIG_CGROUP_DMEM)]
    pub fn try_charge(&self, size: u64) -> Result<Charge> {
        let mut pool = ptr::null_mut();
        // SAFETY: The region is registered by the type invariant. Nobody asks for the pool that
        // is in the way.
        to_result(unsafe {
            bindings::dmem_cgroup_try_charge(self.0.as_ptr(), size, &mut pool, ptr::null_mut())
        })?;
        // INVARIANT: The pool was charged with so much.
        Ok(Charge { pool, size })
    }

    /// As with the controller.
    #[cfg(not(CONFIG_CGROUP_DMEM))]
    pub fn try_charge(&self, _size: u64) -> Result<Charge> {
        Ok(Charge {})
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        #[cfg(CONFIG_CGROUP_DMEM)]
        // SAFETY: The region is registered by the type invariant. It has no callbacks.
        unsafe {
            bindings::dmem_cgroup_unregister_region(self.0.as_ptr())
        };
    }
}

/// Bytes that are charged to a cgroup, until this is dropped; which may happen in any task.
///
/// # Invariants
///
/// `pool` was charged `size` bytes, and not yet uncharged.
#[must_use = "dropping it undoes the charge"]
pub struct Charge {
    #[cfg(CONFIG_CGROUP_DMEM)]
    pool: *mut bindings::dmem_cgroup_pool_state,
    #[cfg(CONFIG_CGROUP_DMEM)]
    size: u64,
}

// SAFETY: What is charged can be uncharged from any thread.
unsafe impl Send for Charge {}
// SAFETY: A shared charge can do nothing.
unsafe impl Sync for Charge {}

impl Drop for Charge {
    fn drop(&mut self) {
        #[cfg(CONFIG_CGROUP_DMEM)]
        // SAFETY: By the type invariant. The charge keeps its pool, and that its region.
        unsafe {
            bindings::dmem_cgroup_uncharge(self.pool, self.size)
        };
    }
}
