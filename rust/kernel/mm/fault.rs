// SPDX-License-Identifier: GPL-2.0

//! Page faults in mappings that a driver fills itself.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// How a fault handler ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The page-table entry is there: the access goes on.
    Done,
    /// Take the fault again, a lock was contended for example.
    Retry,
    /// The access is not possible: the task gets `SIGBUS`.
    Sigbus,
    /// There was no memory.
    Oom,
}

impl Outcome {
    /// The C result.
    pub(crate) fn into_raw(self) -> bindings::vm_fault_t {
        match self {
            // The page-table entry is present, or was zapped again: then the task faults again.
            Self::Done | Self::Retry => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            Self::Sigbus => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
            Self::Oom => bindings::vm_fault_reason_VM_FAULT_OOM,
        }
    }
}

impl From<Error> for Outcome {
    /// What an error in a fault handler means to the task.
    fn from(error: Error) -> Self {
        if error == ENOMEM {
            Self::Oom
        } else if error == EINTR || error == ERESTARTSYS || error == EAGAIN {
            Self::Retry
        } else {
            Self::Sigbus
        }
    }
}

/// A page fault in a `VM_PFNMAP` mapping.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::pages::Pages,
///     mm::fault::{
///         Fault,
///         Outcome, //
///     }, //
/// };
///
/// /// The handler of a mapping that shows `pages`, which nobody moves, from offset 0 on.
/// fn fault(pages: &Pages, fault: &Fault<'_>) -> Outcome {
///     match pages.pfn(fault.page_offset()) {
///         // SAFETY: The page is for whoever has the mapping, which keeps the pages.
///         Some(pfn) => unsafe { fault.insert_pfn(pfn) },
///         None => Outcome::Sigbus,
///     }
/// }
///
/// // What an error in a handler means to the task.
/// assert!(Outcome::from(ENOMEM) == Outcome::Oom);
/// assert!(Outcome::from(EINTR) == Outcome::Retry);
/// assert!(Outcome::from(ENODEV) == Outcome::Sigbus);
/// ```
///
/// # Invariants
///
/// `raw` is the fault being handled, in a mapping with `VM_PFNMAP` that is not private and
/// writable, for all of `'a`.
pub struct Fault<'a> {
    raw: NonNull<bindings::vm_fault>,
    _fault: PhantomData<&'a ()>,
}

impl Fault<'_> {
    /// # Safety
    ///
    /// `raw` is the argument of a fault handler that is running, and its mapping is as the type
    /// invariant says, for as long as the result lives.
    pub(crate) unsafe fn from_raw(raw: *mut bindings::vm_fault) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            // SAFETY: The argument of a fault handler is not null.
            raw: unsafe { NonNull::new_unchecked(raw) },
            _fault: PhantomData,
        }
    }

    fn raw(&self) -> &bindings::vm_fault {
        // SAFETY: By the type invariant.
        unsafe { self.raw.as_ref() }
    }

    /// Offset of the page in what is mapped (the file), in pages.
    pub fn page_offset(&self) -> usize {
        self.raw().__bindgen_anon_1.pgoff
    }

    /// Installs the page-table entry of page `other` of what is mapped, where page `this` is the
    /// one that faulted. Pages outside of the mapping are left out: `Sigbus`.
    ///
    /// # Safety
    ///
    /// As for [`Fault::insert_pfn`]; if there is an entry already, it is one for the page `pfn`.
    pub unsafe fn insert_pfn_near(&self, this: usize, other: usize, pfn: usize) -> Outcome {
        let distance = other.wrapping_sub(this).wrapping_mul(PAGE_SIZE);
        let address = self.raw().__bindgen_anon_1.address;
        // SAFETY: The caller promises what `insert_at` requires.
        unsafe { self.insert_at(address.wrapping_add(distance), pfn) }
    }

    /// Installs the page-table entry of the page that faulted.
    ///
    /// # Safety
    ///
    /// The task may read the page `pfn`, and write it if the mapping is writable. That stays so
    /// (the page is not freed, for example) until the mapping is zapped.
    pub unsafe fn insert_pfn(&self, pfn: usize) -> Outcome {
        // SAFETY: The caller promises what `insert_at` requires.
        unsafe { self.insert_at(self.raw().__bindgen_anon_1.address, pfn) }
    }

    /// # Safety
    ///
    /// If `address` is in the mapping, `pfn` is as [`Fault::insert_pfn`] requires for that place.
    unsafe fn insert_at(&self, address: usize, pfn: usize) -> Outcome {
        let vma = self.raw().__bindgen_anon_1.vma;
        // SAFETY: The mapping is valid, has `VM_PFNMAP` and is not copy-on-write, by the type
        // invariant; addresses outside of it are refused.
        let result = unsafe { bindings::vmf_insert_pfn(vma, address, pfn) };
        match result {
            bindings::vm_fault_reason_VM_FAULT_NOPAGE => Outcome::Done,
            bindings::vm_fault_reason_VM_FAULT_OOM => Outcome::Oom,
            _ => Outcome::Sigbus,
        }
    }
}
