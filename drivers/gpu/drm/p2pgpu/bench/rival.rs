// SPDX-License-Identifier: GPL-2.0

//! The C allocators that the slots are measured against: see `rivals.c`.

use core::{
    ffi::c_ulong,
    ptr::NonNull, //
};
use kernel::prelude::*;

/// Of C.
#[repr(C)]
struct CRival {
    _private: [u8; 0],
}

// What `rivals.h` declares.
extern "C" {
    fn p2pgpu_rival_new(kind: u32, filled: *const c_ulong, pages: u32, count: u32) -> *mut CRival;
    fn p2pgpu_rival_take(rival: *mut CRival, contiguous: bool) -> bool;
    fn p2pgpu_rival_give_back(rival: *mut CRival);
    fn p2pgpu_rival_free(rival: *mut CRival);
}

/// Which allocator.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    DrmMm,
    /// One request for all pages, to be had in blocks of any size.
    Buddy,
    /// A request for each page.
    BuddyPages,
}

/// An allocator of pages.
///
/// # Invariants
///
/// The pointer came from `p2pgpu_rival_new`, and is this object's own.
pub(crate) struct Rival(NonNull<CRival>);

impl Rival {
    /// An allocator with a page for each bit of `filled`; those of ones are in use. It is asked for
    /// `count` pages at a time.
    pub(crate) fn new(kind: Kind, filled: &[c_ulong], count: u32) -> Result<Self> {
        let pages = u32::try_from(filled.len())?
            .checked_mul(c_ulong::BITS)
            .ok_or(EOVERFLOW)?;
        // As in `rivals.h`.
        let kind = match kind {
            Kind::DrmMm => 0,
            Kind::Buddy => 1,
            Kind::BuddyPages => 2,
        };
        // SAFETY: `filled` has `pages` bits, and is only read during the call.
        let rival = unsafe { p2pgpu_rival_new(kind, filled.as_ptr(), pages, count) };
        // INVARIANT: It is the result of `p2pgpu_rival_new`, and nobody else has it.
        NonNull::new(rival).map(Self).ok_or(ENOMEM)
    }

    /// Takes pages and returns them.
    pub(crate) fn round(&self, contiguous: bool) -> Result {
        // SAFETY: By the type invariant the rival is alive; `Self` is neither `Send` nor `Sync`, so
        // that nobody else uses it now.
        let taken = unsafe { p2pgpu_rival_take(self.0.as_ptr(), contiguous) };
        // SAFETY: As above.
        unsafe { p2pgpu_rival_give_back(self.0.as_ptr()) };
        taken.then_some(()).ok_or(ENOSPC)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the rival is ours, and this is its last use.
        unsafe { p2pgpu_rival_free(self.0.as_ptr()) };
    }
}
