// SPDX-License-Identifier: GPL-2.0

//! The gate between open files and the bound device.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    new_srcu,
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            AtomicFlag,
            Full,
            Relaxed,
            Release, //
        },
        srcu,
        Srcu, //
    }, //
};

/// Lets tasks in while the device is bound; closing it waits for those inside.
///
/// # Invariants
///
/// The device is bound while `closed` is false, and until [`Gate::close`] has waited for the
/// readers of `inside`.
#[pin_data]
pub(crate) struct Gate {
    pdev: ARef<pci::Device>,
    closed: AtomicFlag,
    #[pin]
    inside: Srcu,
}

impl Gate {
    /// # Safety
    ///
    /// The gate is closed before the driver of `pdev` is unbound.
    pub(crate) unsafe fn new(pdev: &pci::Device<Bound>) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            // INVARIANT: The device is bound, and the caller promises to close the gate.
            pdev: pdev.into(),
            closed: AtomicFlag::new(false),
            inside <- new_srcu!("p2pnic::Gate::inside"),
        })
    }

    /// Goes in, unless the gate is closed. May sleep inside, but no longer than it has to once
    /// [`Self::is_closed`], and not for user memory.
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let guard = self.inside.read_lock();
        // The read lock is a full barrier: either we see the flag, or `close` sees us.
        (!self.closed.load(Relaxed)).then_some(Inside {
            gate: self,
            _guard: guard,
        })
    }

    /// Whether nobody is let in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Lets nobody in any more, calls `wake` to hurry those inside, and waits for them.
    ///
    /// Returns whether the gate was open.
    pub(crate) fn close(&self, wake: impl FnOnce()) -> bool {
        let was_closed = self.closed.xchg(true, Full);
        wake();
        self.inside.synchronize();
        !was_closed
    }

    /// Lets tasks in again.
    ///
    /// # Safety
    ///
    /// The device is bound, and the gate is closed before its driver is unbound.
    pub(crate) unsafe fn open(&self) {
        // INVARIANT: By the safety requirements.
        self.closed.store(false, Release);
    }

    /// The device, bound or not.
    pub(crate) fn pdev(&self) -> &pci::Device {
        &self.pdev
    }
}

/// Proof of being inside: the device stays bound.
pub(crate) struct Inside<'a> {
    gate: &'a Gate,
    _guard: srcu::Guard<'a>,
}

impl Inside<'_> {
    /// The bound device.
    pub(crate) fn device(&self) -> &Device<Bound> {
        let device: &Device = self.gate.pdev.as_ref();
        // SAFETY: By the invariant of `Gate`: the gate was open after the read lock was taken, so
        // `close`, which comes before the unbind, waits for `_guard`.
        unsafe { device.as_bound() }
    }
}
