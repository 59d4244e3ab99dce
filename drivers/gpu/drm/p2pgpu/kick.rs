// SPDX-License-Identifier: GPL-2.0

//! What moves the scheduler on: work items, which interrupts, fences and new jobs queue.

use crate::driver::{
    DrmDriver,
    Gpu, //
};
use kernel::{
    dma_buf::fence::SignalQueue,
    drm::RegisteredRef,
    impl_has_delayed_work,
    impl_has_work,
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
        Delta, //
    },
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    }, //
};

/// Time between two looks at what runs.
pub(crate) const LOOK_MS: u32 = 100;

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
    pub(crate) fn reap(self: &Arc<Self>) {
        if let Some(queue) = &*self.queue.lock() {
            let _ = queue.enqueue::<Arc<Self>, 2>(self.clone());
        }
    }

    /// Has what runs looked at, in a while.
    pub(crate) fn arm(self: &Arc<Self>) {
        if let Some(queue) = &*self.queue.lock() {
            if !self.armed.xchg(true, Full) {
                let _ =
                    queue.enqueue_delayed::<Arc<Self>, 1>(self.clone(), msecs_to_jiffies(LOOK_MS));
            }
        }
    }

    /// Ends all: nothing runs on return, nor later.
    pub(crate) fn close(&self) {
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
    fn with(&self, f: impl FnOnce(&Gpu<'_>)) {
        let device = self.device.lock().clone();
        let Some(device) = device else {
            return;
        };
        let guard = device.registration_guard();
        if let Some(dev) = &guard {
            dev.registration_data_with(f);
        }
    }
}

impl WorkItem<0> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.with(|gpu| gpu.scheduler.step(gpu));
    }
}

impl WorkItem<1> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.armed.store(false, Release);
        this.with(|gpu| gpu.scheduler.poll(gpu));
    }
}

impl WorkItem<2> for Kick {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.with(|gpu| gpu.scheduler.free_ended());
    }
}
