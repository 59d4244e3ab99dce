// SPDX-License-Identifier: GPL-2.0

//! What has happened on a device: counters that only grow, from the binding of the driver.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Counts events.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// One more.
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What debugfs shows together with what others count.
pub(crate) struct Activity {
    /// Faults of CPUs on pages in VRAM, once more for each time that one has to wait.
    pub(crate) cpu_faults: Counter,
    /// Times that the importers of an object were told to let go of mappings.
    pub(crate) invalidations: Counter,
    /// Objects that were moved to system memory as an importer could not be given slots.
    pub(crate) fall_backs: Counter,
}

impl Activity {
    pub(crate) const fn new() -> Self {
        Self {
            cpu_faults: Counter::new(),
            invalidations: Counter::new(),
            fall_backs: Counter::new(),
        }
    }
}
