// SPDX-License-Identifier: GPL-2.0

//! The scheduler: which job goes to the engine next, and what becomes of those that do not end.
//!
//! One job at a time is in the engine's ring, so that a job that hangs takes no other with it. The
//! others wait in the lanes of their contexts, which get their turns one after the other. What moves
//! them on is the interrupt of the job before, the fence that a job waits for, or a new job; each of
//! these queues a work item, and no thread waits for a job.

use crate::{
    context::{
        Context,
        JOBS_MAX, //
    },
    driver::{
        DrmDevice,
        DrmDriver,
        Gpu, //
    },
    job::{
        End,
        Job, //
    },
};
use kernel::{
    dma_buf::fence::{
        SignalQueue,
        Signalling, //
    },
    drm::RegisteredRef,
    impl_has_delayed_work,
    impl_has_work,
    io::poll::read_poll_timeout,
    new_delayed_work,
    new_mutex,
    new_spinlock_irq,
    new_work,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        Mutex,
        SpinLockIrq, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant, //
    },
    uapi,
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    }, //
};

/// Contexts of a device.
const LANES_MAX: usize = 256;
/// Time between two looks at a job that runs.
const LOOK_MS: u32 = 100;

/// What moves the scheduler on, from any context.
#[pin_data]
pub(crate) struct Kick {
    /// `None` from the end of the binding on.
    #[pin]
    queue: SpinLockIrq<Option<Arc<SignalQueue>>>,
    #[pin]
    device: Mutex<Option<Arc<RegisteredRef<DrmDriver>>>>,
    /// A look is due.
    armed: Atomic<bool>,
    #[pin]
    step: Work<Kick, 0>,
    #[pin]
    look: DelayedWork<Kick, 1>,
    #[pin]
    reap: Work<Kick, 2>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Kick { self.step }
    impl HasWork<Self, 2> for Kick { self.reap }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Kick { self.look }
}

impl Kick {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let queue = Arc::new(SignalQueue::new(c"p2pgpu")?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                queue <- new_spinlock_irq!(Some(queue), "p2pgpu::scheduler::queue"),
                device <- new_mutex!(None, "p2pgpu::scheduler::device"),
                armed: Atomic::new(false),
                step <- new_work!("p2pgpu::scheduler::step"),
                look <- new_delayed_work!("p2pgpu::scheduler::look"),
                reap <- new_work!("p2pgpu::scheduler::reap"),
            }),
            GFP_KERNEL,
        )
    }

    /// Says which device it is of.
    pub(crate) fn connect(&self, device: RegisteredRef<DrmDriver>) -> Result {
        let device = Arc::new(device, GFP_KERNEL)?;
        *self.device.lock() = Some(device);
        Ok(())
    }

    /// Has the scheduler look what is next.
    pub(crate) fn step(self: &Arc<Self>) {
        if let Some(queue) = &*self.queue.lock() {
            // If it is queued already, it has not looked yet.
            let _ = queue.enqueue::<Arc<Self>, 0>(self.clone());
        }
    }

    /// Has the memory of jobs freed that have ended.
    fn reap(self: &Arc<Self>) {
        if let Some(queue) = &*self.queue.lock() {
            let _ = queue.enqueue::<Arc<Self>, 2>(self.clone());
        }
    }

    /// Has the job that runs looked at, in a while.
    fn arm(self: &Arc<Self>) {
        if let Some(queue) = &*self.queue.lock() {
            if !self.armed.xchg(true, Full) {
                let _ =
                    queue.enqueue_delayed::<Arc<Self>, 1>(self.clone(), msecs_to_jiffies(LOOK_MS));
            }
        }
    }

    /// Ends all: nothing runs on return, nor later.
    fn close(&self) {
        let queue = self.queue.lock().take();
        while self.armed.load(Acquire) {
            fsleep(Delta::from_millis(1));
        }
        // Waits for what is queued.
        drop(queue);
        let device = self.device.lock().take();
        drop(device);
    }

    /// Runs `f` while the device is there.
    fn with(&self, f: impl FnOnce(&Gpu<'_>, &DrmDevice)) {
        let device = self.device.lock().clone();
        let Some(device) = device else {
            return;
        };
        let guard = device.registration_guard();
        if let Some(dev) = &guard {
            dev.registration_data_with(|gpu| f(gpu, dev));
        }
    }
}

impl WorkItem<0> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.with(|gpu, _| gpu.scheduler.step(gpu));
    }
}

impl WorkItem<1> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.armed.store(false, Release);
        this.with(|gpu, dev| {
            gpu.scheduler.look(gpu, dev);
            gpu.scheduler.step(gpu);
        });
    }
}

impl WorkItem<2> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.with(|gpu, _| gpu.scheduler.free_ended());
    }
}

/// The jobs of a context that have not run.
struct Lane<'drm> {
    context: Arc<Context>,
    /// In their order. Its memory is there from the beginning.
    jobs: KVec<KBox<Job<'drm>>>,
}

struct State<'drm> {
    /// Its memory is there from the beginning.
    lanes: KVec<Lane<'drm>>,
    /// The lane that is asked first.
    turn: usize,
    /// In the ring.
    running: Option<KBox<Job<'drm>>>,
    /// To go there once more, before any other.
    again: Option<KBox<Job<'drm>>>,
    /// A list: what is not freed yet.
    ended: Option<KBox<Job<'drm>>>,
    /// The device goes: nothing is queued any more.
    closed: bool,
}

impl<'drm> State<'drm> {
    /// The job whose turn it is.
    fn next(&mut self) -> Option<KBox<Job<'drm>>> {
        if self.again.is_some() {
            return self.again.take();
        }
        let count = self.lanes.len();
        for index in 0..count {
            let at = self.turn.wrapping_add(index).checked_rem(count)?;
            let lane = self.lanes.get_mut(at)?;
            if lane.jobs.first_mut().is_some_and(|job| job.is_ready()) {
                self.turn = at.wrapping_add(1);
                return lane.jobs.remove(0).ok();
            }
        }
        None
    }

    fn end(&mut self, mut job: KBox<Job<'drm>>, ns: u64) {
        job.context.ended(ns);
        job.next = self.ended.take();
        self.ended = Some(job);
    }

    /// Ends jobs of those contexts for which `which` says so.
    fn fail_queued(&mut self, which: impl Fn(&Arc<Context>) -> bool, error: Error) {
        for index in 0..self.lanes.len() {
            loop {
                let lane = self.lanes.get_mut(index).filter(|l| which(&l.context));
                let Some(job) = lane.and_then(|lane| lane.jobs.remove(0).ok()) else {
                    break;
                };
                job.track.fail(error);
                self.end(job, 0);
            }
        }
    }

    /// The context of `job` is lost on its account.
    fn lose(&mut self, job: KBox<Job<'drm>>, reason: u32, error: Error) {
        let context = job.context.clone();
        // First: who learns of the error by the fence finds it lost.
        context.lose(reason);
        job.track.fail(error);
        self.end(job, 0);
        self.fail_queued(|other| Arc::ptr_eq(other, &context), ECANCELED);
    }
}

/// The scheduler of a bound device.
#[pin_data(PinnedDrop)]
pub(crate) struct Scheduler<'drm> {
    /// Taken by what signals fences: nothing is allocated under it.
    #[pin]
    state: Mutex<State<'drm>>,
    pub(crate) kick: Arc<Kick>,
}

impl<'drm> Scheduler<'drm> {
    pub(crate) fn new(kick: Arc<Kick>) -> impl PinInit<Self, Error> + use<'drm> {
        try_pin_init!(Self {
            state <- new_mutex!(State {
                lanes: KVec::with_capacity(LANES_MAX, GFP_KERNEL)?,
                turn: 0,
                running: None,
                again: None,
                ended: None,
                closed: false,
            }, "p2pgpu::scheduler::state"),
            kick,
        }? Error)
    }

    /// Makes room for the jobs of a context. `ENOSPC`: there are too many.
    pub(crate) fn open(&self, context: Arc<Context>) -> Result {
        let lane = Lane {
            context,
            jobs: KVec::with_capacity(JOBS_MAX, GFP_KERNEL)?,
        };
        let pushed = self.state.lock().lanes.push_within_capacity(lane);
        // Dropped without the lock.
        pushed.map_err(|_| ENOSPC)
    }

    /// Queues a job. `ECANCELED`: its context is lost. `EBUSY`: it has too many. `ENODEV`: the
    /// device goes.
    pub(crate) fn push(&self, job: KBox<Job<'drm>>) -> Result {
        let mut state = self.state.lock();
        if state.closed {
            return Err(ENODEV);
        }
        if job.context.state() != uapi::P2PGPU_CONTEXT_OK {
            return Err(ECANCELED);
        }
        if usize::try_from(job.context.jobs())? >= JOBS_MAX {
            return Err(EBUSY);
        }
        let lane = state
            .lanes
            .iter_mut()
            .find(|lane| Arc::ptr_eq(&lane.context, &job.context))
            .ok_or(ENOENT)?;
        let context = job.context.clone();
        lane.jobs.push_within_capacity(job).map_err(|_| EBUSY)?;
        context.began();
        drop(state);
        self.kick.step();
        Ok(())
    }

    /// Does all that can be done now.
    fn step(&self, gpu: &Gpu<'_>) {
        let _signalling = Signalling::begin();
        let mut state = self.state.lock();
        let mut freed = false;
        loop {
            if let Some(job) = state.running.take() {
                let Some(end) = job.track.end() else {
                    state.running = Some(job);
                    self.kick.arm();
                    break;
                };
                freed = true;
                self.left_ring(&mut state, job, end);
            }
            let Some(mut job) = state.next() else {
                break;
            };
            job.since = Some(Instant::now());
            match gpu.engine_ring.submit_job(&mut job) {
                Ok(()) => state.running = Some(job),
                // Full, or stopped for a reset.
                Err(error) if error == EAGAIN => {
                    state.again = Some(job);
                    self.kick.arm();
                    break;
                }
                Err(error) => {
                    freed = true;
                    state.lose(job, uapi::P2PGPU_CONTEXT_ERROR, error);
                }
            }
        }
        // A context without a file and without jobs is none.
        let mut at = 0;
        while let Some(lane) = state.lanes.get(at) {
            if lane.jobs.is_empty() && lane.context.is_closed() {
                drop(state.lanes.remove(at));
            } else {
                at += 1;
            }
        }
        drop(state);
        if freed {
            self.kick.reap();
        }
    }

    /// What becomes of a job that is no longer in the ring.
    fn left_ring(&self, state: &mut State<'drm>, job: KBox<Job<'drm>>, end: End) {
        let ns = job.since.map_or(0, |since| since.elapsed().as_nanos());
        let ns = u64::try_from(ns).unwrap_or(0);
        match end {
            End::Done => state.end(job, ns),
            End::Error => state.lose(job, uapi::P2PGPU_CONTEXT_ERROR, EIO),
            End::Stopped => state.lose(job, uapi::P2PGPU_CONTEXT_TIMEOUT, ETIME),
            End::Innocent if !job.memory.is_empty() => {
                job.track.begin_again();
                state.again = Some(job);
            }
            End::Innocent => state.lose(job, uapi::P2PGPU_CONTEXT_ERROR, EIO),
        }
    }

    /// Looks whether the job that runs has ended without an interrupt, or does not end.
    fn look(&self, gpu: &Gpu<'_>, dev: &DrmDevice) {
        gpu.engine_ring.look();
        let running = {
            let state = self.state.lock();
            state.running.as_ref().and_then(|job| {
                let passed = job.since?.elapsed().as_millis();
                let late = passed >= i64::from(dev.patience.job_ms());
                Some((job.track.clone(), late))
            })
        };
        let Some((track, late)) = running else {
            return;
        };
        if track.end().is_none() && (late || gpu.engine_ring.is_gone()) {
            dev.patience.late.up();
            gpu.engine_ring.abandon(&track);
        }
    }

    /// Frees what jobs that have ended used. Takes reservation locks.
    fn free_ended(&self) {
        let mut ended = self.state.lock().ended.take();
        while let Some(mut job) = ended {
            ended = job.next.take();
        }
    }

    /// The device goes: what is queued fails, and what runs ends, in bounded time.
    pub(crate) fn leave(&self, dev: &DrmDevice) {
        {
            let _signalling = Signalling::begin();
            let mut state = self.state.lock();
            state.closed = true;
            state.fail_queued(|_| true, ENODEV);
        }
        self.kick.reap();
        // A job that is innocent is tried again.
        let most = i64::from(dev.patience.job_ms()).saturating_mul(2);
        let ended = read_poll_timeout(
            || {
                let state = self.state.lock();
                Ok(state.running.is_none() && state.again.is_none())
            },
            |ended| *ended,
            Delta::from_millis(1),
            Delta::from_millis(most.saturating_add(10_000)),
        );
        if ended.is_err() {
            pr_err!("a job does not end\n");
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
            let left = [state.running.take(), state.again.take()];
            for job in left.into_iter().flatten() {
                job.track.fail(ENODEV);
                state.end(job, 0);
            }
            state.fail_queued(|_| true, ENODEV);
        }
        self.free_ended();
    }
}
