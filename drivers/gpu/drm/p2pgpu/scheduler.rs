// SPDX-License-Identifier: GPL-2.0

//! The scheduler: which job goes to the engine next, and what becomes of those that do not end.
//!
//! Jobs wait in the lanes of their contexts, which get their turns one after the other. The driver's
//! own copies are jobs too, of a context that is never lost. Those that are ready go to the engine's
//! ring, as many as it takes, and the device is told of them together. When the ring is stopped, as
//! a job hangs or fails, the others in it have not begun: they go back to where they came from.
//!
//! What moves jobs on is the interrupt of one that ends, the fence that one waits for, or a new one;
//! each of these queues a work item, and no thread waits for a job.

use crate::{
    context::{
        Context,
        JOBS_MAX, //
    },
    driver::Gpu,
    evict,
    job::{
        End,
        Fifo,
        Job, //
    },
    kick::Kick,
    patience::Patience,
    ring::RingId, //
};
use kernel::{
    dma_buf::fence::Signalling,
    io::poll::read_poll_timeout,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
    uapi, //
};

/// Contexts of a device, with that of the driver.
const LANES_MAX: usize = 257;
/// Most jobs in the ring. What hangs delays those behind it.
const RING_JOBS: usize = 16;

/// The jobs of a context that are not in the ring, in their order.
struct Lane<'drm> {
    context: Arc<Context>,
    jobs: Fifo<'drm>,
}

struct State<'drm> {
    /// The driver's own comes first. Its memory is there from the beginning.
    lanes: KVec<Lane<'drm>>,
    /// The lane that is asked first.
    turn: usize,
    /// In the ring, in this order. Its memory is there from the beginning.
    running: KVec<KBox<Job<'drm>>>,
    /// When the last job has ended: the one behind it runs from then on.
    last_end: Option<Instant<Monotonic>>,
    /// A list: what is not freed yet.
    ended: Option<KBox<Job<'drm>>>,
    /// The device goes: nothing is queued any more.
    closed: bool,
}

impl<'drm> State<'drm> {
    /// The job whose turn it is.
    fn next(&mut self) -> Option<KBox<Job<'drm>>> {
        let count = self.lanes.len();
        for index in 0..count {
            let at = self.turn.wrapping_add(index).checked_rem(count)?;
            let lane = self.lanes.get_mut(at)?;
            if lane.jobs.first_mut().is_some_and(|job| job.is_ready()) {
                self.turn = at.wrapping_add(1);
                return lane.jobs.pop();
            }
        }
        None
    }

    /// A job that is not in the ring is the first of its lane again.
    fn put_back(&mut self, job: KBox<Job<'drm>>) {
        job.track.begin_again();
        let lane = self
            .lanes
            .iter_mut()
            .find(|lane| Arc::ptr_eq(&lane.context, &job.context));
        match lane {
            Some(lane) => lane.jobs.push_front(job),
            // A lane stays while it has jobs.
            None => self.fail(job, ENODEV),
        }
    }

    fn end(&mut self, mut job: KBox<Job<'drm>>, ns: u64) {
        job.context.ended(ns);
        job.next = self.ended.take();
        self.ended = Some(job);
    }

    fn fail(&mut self, job: KBox<Job<'drm>>, error: Error) {
        job.track.fail(error);
        self.end(job, 0);
    }

    /// Ends jobs of those contexts for which `which` says so.
    fn fail_queued(&mut self, which: impl Fn(&Arc<Context>) -> bool, error: Error) {
        for index in 0..self.lanes.len() {
            loop {
                let lane = self.lanes.get_mut(index).filter(|l| which(&l.context));
                let Some(job) = lane.and_then(|lane| lane.jobs.pop()) else {
                    break;
                };
                self.fail(job, error);
            }
        }
    }

    /// A job fails, and its context is lost on its account; that of the driver is not.
    fn lose(&mut self, job: KBox<Job<'drm>>, reason: u32, error: Error) {
        let context = job.context.clone();
        if context.is_drivers() {
            return self.fail(job, error);
        }
        // First: who learns of the error by the fence finds it lost.
        context.lose(reason);
        self.fail(job, error);
        self.fail_queued(|other| Arc::ptr_eq(other, &context), ECANCELED);
    }

    /// From when on a job that is the first in the ring runs.
    fn start_of(&self, job: &Job<'_>) -> Option<Instant<Monotonic>> {
        let since = job.since?;
        let later = self.last_end.filter(|&end| (end - since).as_nanos() > 0);
        Some(later.unwrap_or(since))
    }

    /// Takes the jobs that are no longer in the ring. Returns whether some have ended.
    fn sort_out(&mut self) -> bool {
        let mut some = false;
        while let Some((End::Done, at)) = self.running.first().and_then(|job| job.track.ended()) {
            let Ok(job) = self.running.remove(0) else {
                break;
            };
            let ns = self
                .start_of(&job)
                .map_or(0, |start| (at - start).as_nanos());
            self.last_end = Some(at);
            self.end(job, u64::try_from(ns).unwrap_or(0));
            some = true;
        }
        // From the end: what is put back later comes before what is there.
        let mut left = self.running.len();
        while let Some(at) = left.checked_sub(1) {
            left = at;
            let Some((end, when)) = self.running.get(at).and_then(|job| job.track.ended()) else {
                continue;
            };
            if let Ok(job) = self.running.remove(at) {
                self.last_end = Some(when);
                // Who waits for a copy waits for one hang at most.
                self.turn = 0;
                self.left_ring(job, end);
                some = true;
            }
        }
        some
    }

    /// What becomes of a job that has left the ring without being done.
    fn left_ring(&mut self, mut job: KBox<Job<'drm>>, end: End) {
        match end {
            End::Done => self.end(job, 0),
            End::Innocent if self.closed => self.fail(job, ENODEV),
            End::Innocent => self.put_back(job),
            End::Error | End::Stopped if job.retries != 0 && !self.closed => {
                job.retries -= 1;
                self.put_back(job);
            }
            End::Error => self.lose(job, uapi::P2PGPU_CONTEXT_ERROR, EIO),
            End::Stopped => self.lose(job, uapi::P2PGPU_CONTEXT_TIMEOUT, ETIME),
            End::Gone => self.lose(job, uapi::P2PGPU_CONTEXT_ERROR, ENODEV),
        }
    }
}

/// The scheduler of a bound device.
#[pin_data(PinnedDrop)]
pub(crate) struct Scheduler<'drm> {
    /// Taken by what signals fences: nothing is allocated under it.
    #[pin]
    state: Mutex<State<'drm>>,
    /// Of the driver's own copies.
    pub(crate) drivers: Arc<Context>,
    patience: Arc<Patience>,
    pub(crate) kick: Arc<Kick>,
}

impl<'drm> Scheduler<'drm> {
    pub(crate) fn new(
        kick: Arc<Kick>,
        patience: Arc<Patience>,
    ) -> Result<impl PinInit<Self, Error> + use<'drm>> {
        let drivers = Context::of_driver(kick.clone())?;
        let mut lanes = KVec::with_capacity(LANES_MAX, GFP_KERNEL)?;
        let lane = Lane {
            context: drivers.clone(),
            jobs: Fifo::new(),
        };
        lanes.push(lane, GFP_KERNEL)?;
        Ok(try_pin_init!(Self {
            state <- new_mutex!(State {
                lanes,
                turn: 0,
                running: KVec::with_capacity(RING_JOBS, GFP_KERNEL)?,
                last_end: None,
                ended: None,
                closed: false,
            }, "p2pgpu::scheduler::state"),
            drivers,
            patience,
            kick,
        }? Error))
    }

    /// Makes room for the jobs of a context. `ENOSPC`: there are too many.
    pub(crate) fn open(&self, context: Arc<Context>) -> Result {
        let lane = Lane {
            context,
            jobs: Fifo::new(),
        };
        let pushed = self.state.lock().lanes.push_within_capacity(lane);
        // Dropped without the lock.
        pushed.map_err(|_| ENOSPC)
    }

    /// Queues a job. `ECANCELED`: its context is lost. `EBUSY`: it has too many. `ENODEV`: the
    /// device goes.
    pub(crate) fn push(&self, gpu: &Gpu<'_>, job: KBox<Job<'drm>>) -> Result {
        let mut state = self.state.lock();
        if state.closed {
            return Err(ENODEV);
        }
        if job.context.state() != uapi::P2PGPU_CONTEXT_OK {
            return Err(ECANCELED);
        }
        if !job.context.is_drivers() && usize::try_from(job.context.jobs())? >= JOBS_MAX {
            return Err(EBUSY);
        }
        let lane = state
            .lanes
            .iter_mut()
            .find(|lane| Arc::ptr_eq(&lane.context, &job.context))
            .ok_or(ENOENT)?;
        job.context.began();
        lane.jobs.push(job);
        drop(state);
        self.step(gpu);
        Ok(())
    }

    /// Does all that can be done now.
    pub(crate) fn step(&self, gpu: &Gpu<'_>) {
        let _signalling = Signalling::begin();
        let mut state = self.state.lock();
        gpu.engine_ring.revive();
        // The ring is not started again from here to the end: what is put back is not overtaken.
        let batch = gpu.engine_ring.batch();
        let mut some = state.sort_out();
        match batch {
            Ok(mut batch) => {
                while state.running.len() < RING_JOBS {
                    let Some(mut job) = state.next() else {
                        break;
                    };
                    if job.is_in_vain() {
                        some = true;
                        state.lose(job, uapi::P2PGPU_CONTEXT_ERROR, EIO);
                        continue;
                    }
                    job.since = Some(Instant::now());
                    if batch.add(&job.commands, job.track.clone()).is_err() {
                        state.put_back(job);
                        break;
                    }
                    // There is room.
                    let _ = state.running.push_within_capacity(job);
                }
            }
            // Stopped for a reset, or just halted.
            Err(EAGAIN) => self.kick.arm(),
            Err(error) => {
                while let Some(job) = state.next() {
                    some = true;
                    state.lose(job, uapi::P2PGPU_CONTEXT_ERROR, error);
                }
            }
        }
        if !state.running.is_empty() {
            self.kick.arm();
        }
        // A context without a file and without jobs is none.
        let mut at = 0;
        while let Some(lane) = state.lanes.get(at) {
            if lane.context.is_closed() && lane.context.jobs() == 0 {
                drop(state.lanes.remove(at));
            } else {
                at += 1;
            }
        }
        drop(state);
        if some {
            self.kick.reap();
        }
    }

    /// Looks whether what runs has ended without an interrupt, or does not end; then as
    /// [`Scheduler::step`].
    pub(crate) fn poll(&self, gpu: &Gpu<'_>) {
        gpu.engine_ring.look();
        let running = {
            let state = self.state.lock();
            state.running.first().and_then(|job| {
                let limit = match job.context.is_drivers() {
                    true => self.patience.timeout_ms(RingId::Engine),
                    false => self.patience.job_ms(),
                };
                let passed = state.start_of(job)?.elapsed().as_millis();
                Some((job.track.clone(), passed >= i64::from(limit)))
            })
        };
        if let Some((track, late)) = running {
            if track.ended().is_none() {
                self.patience.late.up();
                if late || gpu.engine_ring.is_gone() {
                    gpu.engine_ring.abandon(&track);
                }
            }
        }
        self.step(gpu);
    }

    /// Frees what jobs that have ended used. Takes reservation locks.
    pub(crate) fn free_ended(&self) {
        let mut ended = self.state.lock().ended.take();
        while let Some(mut job) = ended {
            ended = job.next.take();
            if let Some(obj) = &job.arriving {
                let _guard = obj.resv().lock();
                evict::settle(obj);
            }
        }
    }

    /// The device goes: what is queued fails, and what runs ends, in bounded time.
    pub(crate) fn leave(&self, gpu: &Gpu<'_>) {
        {
            let _signalling = Signalling::begin();
            let mut state = self.state.lock();
            state.closed = true;
            state.fail_queued(|_| true, ENODEV);
        }
        self.kick.reap();
        let one = self.patience.timeout_ms(RingId::Engine);
        let most = i64::from(one.max(self.patience.job_ms()));
        let ended = read_poll_timeout(
            || {
                self.poll(gpu);
                Ok(self.state.lock().running.is_empty())
            },
            |ended| *ended,
            Delta::from_millis(1),
            Delta::from_millis(most.saturating_add(10_000)),
        );
        if ended.is_err() {
            pr_err!("a job does not end\n");
            gpu.engine_ring.halt();
            self.step(gpu);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Scheduler<'_> {
    fn drop(self: Pin<&mut Self>) {
        // The rings are stopped, and no ioctl runs any more.
        self.kick.close();
        {
            let mut state = self.state.lock();
            state.closed = true;
            while let Some(job) = state.running.pop() {
                state.fail(job, ENODEV);
            }
            state.fail_queued(|_| true, ENODEV);
        }
        self.free_ended();
    }
}
