// SPDX-License-Identifier: GPL-2.0

//! How long the device may take for its answers, and importers to let go.

use crate::{
    activity::Counter,
    driver::DrmDevice,
    ring::RingId,
    settings::Number, //
};
use core::ops::RangeInclusive;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Delta, //
};

/// Times after which something is taken for lost, in milliseconds.
pub(crate) struct Patience {
    copy: Atomic<u32>,
    flush: Atomic<u32>,
    job: Atomic<u32>,
    reset: Atomic<u32>,
    importers: Atomic<u32>,
    /// Times that an answer was late, and the device was asked whether it is there.
    pub(crate) late: Counter,
}

impl Patience {
    const DEFAULT: u32 = 10_000;
    /// Less: whoever waits for a copy behind it is not to give up first.
    const DEFAULT_JOB: u32 = 5_000;

    pub(crate) fn new() -> Result<Arc<Self>> {
        let patience = Self {
            copy: Atomic::new(Self::DEFAULT),
            flush: Atomic::new(Self::DEFAULT),
            job: Atomic::new(Self::DEFAULT_JOB),
            reset: Atomic::new(Self::DEFAULT),
            importers: Atomic::new(Self::DEFAULT),
            late: Counter::new(),
        };
        Ok(Arc::new(patience, GFP_KERNEL)?)
    }

    /// For the commands of a ring.
    pub(crate) fn timeout_ms(&self, ring: RingId) -> u32 {
        match ring {
            RingId::Engine => self.copy.load(Relaxed),
            RingId::Aperture => self.flush.load(Relaxed),
        }
    }

    /// For a job, from when it is in the ring.
    pub(crate) fn job_ms(&self) -> u32 {
        self.job.load(Relaxed)
    }

    /// For a reset of the device.
    pub(crate) fn reset(&self) -> Delta {
        Delta::from_millis(self.reset.load(Relaxed).into())
    }

    /// For importers that were told to let go.
    pub(crate) fn importers_ms(&self) -> u32 {
        self.importers.load(Relaxed)
    }
}

/// A time that can be set.
pub(crate) trait Time: Send + Sync {
    /// Name of its file.
    const NAME: &'static CStr;

    /// Where it is kept.
    fn of(patience: &Patience) -> &Atomic<u32>;
}

impl<T: Time> Number for T {
    const NAME: &'static CStr = T::NAME;
    /// A time of 0 would fail every command. Nobody waits for longer than the most.
    const RANGE: RangeInclusive<u32> = 1..=600_000;

    fn get(dev: &DrmDevice) -> u32 {
        T::of(&dev.patience).load(Relaxed)
    }

    fn set(dev: &DrmDevice, number: u32) {
        T::of(&dev.patience).store(number, Relaxed);
    }
}

/// The time for copies, which may be long and wait behind others.
pub(crate) struct OfCopies;

impl Time for OfCopies {
    const NAME: &'static CStr = c"copy_timeout_ms";

    fn of(patience: &Patience) -> &Atomic<u32> {
        &patience.copy
    }
}

/// The time for flushes, which are short: others wait for them with `mmap_lock` held.
pub(crate) struct OfFlushes;

impl Time for OfFlushes {
    const NAME: &'static CStr = c"flush_timeout_ms";

    fn of(patience: &Patience) -> &Atomic<u32> {
        &patience.flush
    }
}

/// The time for jobs.
pub(crate) struct OfJobs;

impl Time for OfJobs {
    const NAME: &'static CStr = c"job_timeout_ms";

    fn of(patience: &Patience) -> &Atomic<u32> {
        &patience.job
    }
}

/// The time for resets. The device that is bound anew has the default.
pub(crate) struct OfResets;

impl Time for OfResets {
    const NAME: &'static CStr = c"reset_timeout_ms";

    fn of(patience: &Patience) -> &Atomic<u32> {
        &patience.reset
    }
}

/// The time for importers: for the accesses of one that was told, and for all together to let go of
/// a device that leaves or is reset.
pub(crate) struct OfImporters;

impl Time for OfImporters {
    const NAME: &'static CStr = c"importer_timeout_ms";

    fn of(patience: &Patience) -> &Atomic<u32> {
        &patience.importers
    }
}
