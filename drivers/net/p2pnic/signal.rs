// SPDX-License-Identifier: GPL-2.0

//! Waiting for an interrupt, with a limit and without missing one.

use kernel::{
    new_condvar,
    new_spinlock_irq,
    prelude::*,
    sync::{
        CondVar,
        CondVarTimeoutResult,
        SpinLockIrq, //
    },
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The signal was raised.
    Raised,
    /// The time is over.
    TimedOut,
    /// The task has a POSIX signal pending: waiting again would not wait.
    Interrupted,
}

/// Counts interrupts.
///
/// A waiter reads the count, looks at what the device wrote, and waits for the count to move on: an
/// interrupt between the look and the wait ends the wait at once.
#[pin_data]
pub(crate) struct Signal {
    #[pin]
    count: SpinLockIrq<u64>,
    #[pin]
    changed: CondVar,
}

impl Signal {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            count <- new_spinlock_irq!(0, "p2pnic::Signal::count"),
            changed <- new_condvar!("p2pnic::Signal::changed"),
        })
    }

    /// Wakes all waiters. For any context.
    pub(crate) fn raise(&self) {
        {
            let mut count = self.count.lock();
            *count = count.wrapping_add(1);
        }
        self.changed.notify_all();
    }

    /// The count now, for [`Self::wait`].
    pub(crate) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Waits until the count is no longer `seen`, for about `timeout` at most.
    pub(crate) fn wait(&self, seen: u64, timeout: Msecs) -> Wake {
        let mut count = self.count.lock();
        if *count != seen {
            return Wake::Raised;
        }
        match self
            .changed
            .wait_interruptible_timeout(&mut count, msecs_to_jiffies(timeout))
        {
            CondVarTimeoutResult::Signal { .. } => Wake::Interrupted,
            CondVarTimeoutResult::Woken { .. } => Wake::Raised,
            CondVarTimeoutResult::Timeout => Wake::TimedOut,
        }
    }
}
