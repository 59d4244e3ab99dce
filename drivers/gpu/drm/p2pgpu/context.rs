// SPDX-License-Identifier: GPL-2.0

//! Contexts: queues of jobs that run in their order.

use crate::kick::Kick;
use kernel::{
    c_str,
    dma_buf::fence::{
        Names,
        Timeline, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    uapi, //
};

/// Most contexts of an open file.
pub(crate) const CONTEXTS_MAX: usize = 16;
/// Most jobs of a context that have not ended.
pub(crate) const JOBS_MAX: usize = 64;

pub(crate) struct ContextNames;

impl Names for ContextNames {
    const DRIVER: &'static CStr = c_str!("p2pgpu");
    const TIMELINE: &'static CStr = c_str!("context");
}

/// A context. It outlives the hardware, as its file does.
#[pin_data]
pub(crate) struct Context {
    /// The fences of its jobs.
    pub(crate) timeline: Timeline<ContextNames>,
    /// Held from the making of a fence until its job is queued, so that fences signal in order.
    #[pin]
    pub(crate) order: Mutex<()>,
    /// One of `P2PGPU_CONTEXT_*`.
    state: Atomic<u32>,
    jobs: Atomic<u32>,
    engine_ns: Atomic<u64>,
    /// As above, of all contexts of the file.
    file_ns: Arc<Atomic<u64>>,
    closed: Atomic<bool>,
    drivers: bool,
    pub(crate) kick: Arc<Kick>,
}

impl Context {
    pub(crate) fn new(kick: Arc<Kick>, file_ns: Arc<Atomic<u64>>) -> Result<Arc<Self>> {
        Self::make(kick, file_ns, false)
    }

    /// That of the driver's own copies: it is never lost, and takes any number of jobs.
    pub(crate) fn of_driver(kick: Arc<Kick>) -> Result<Arc<Self>> {
        let file_ns = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        Self::make(kick, file_ns, true)
    }

    fn make(kick: Arc<Kick>, file_ns: Arc<Atomic<u64>>, drivers: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                timeline: Timeline::new(),
                order <- new_mutex!((), "p2pgpu::context::order"),
                state: Atomic::new(uapi::P2PGPU_CONTEXT_OK),
                jobs: Atomic::new(0),
                engine_ns: Atomic::new(0),
                file_ns,
                closed: Atomic::new(false),
                drivers,
                kick,
            }),
            GFP_KERNEL,
        )
    }

    /// Whether it is that of the driver.
    pub(crate) fn is_drivers(&self) -> bool {
        self.drivers
    }

    /// One of `P2PGPU_CONTEXT_*`.
    pub(crate) fn state(&self) -> u32 {
        self.state.load(Acquire)
    }

    /// The context takes no more jobs. The first reason stays.
    pub(crate) fn lose(&self, reason: u32) {
        let _ = self.state.cmpxchg(uapi::P2PGPU_CONTEXT_OK, reason, Release);
    }

    /// Jobs that have not ended.
    pub(crate) fn jobs(&self) -> u32 {
        self.jobs.load(Relaxed)
    }

    /// Counts a job that is queued.
    pub(crate) fn began(&self) {
        self.jobs.fetch_add(1, Relaxed);
    }

    /// Counts a job that has ended, and the time that the engine spent on it.
    pub(crate) fn ended(&self, ns: u64) {
        self.jobs.fetch_add(u32::MAX, Relaxed);
        self.engine_ns.fetch_add(ns, Relaxed);
        self.file_ns.fetch_add(ns, Relaxed);
    }

    /// Time that the engine spent on its jobs.
    pub(crate) fn engine_ns(&self) -> u64 {
        self.engine_ns.load(Relaxed)
    }

    /// Nobody can submit to it any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Release);
        self.kick.step();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }
}
