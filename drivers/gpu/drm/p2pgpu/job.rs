// SPDX-License-Identifier: GPL-2.0

//! Jobs: commands that are queued, what they use, and their fence.

use crate::{
    context::Context,
    gem::Object,
    kick::Kick, //
    regs::{
        Operation,
        RawSegment, //
    },
};
use kernel::{
    dma::Coherent,
    dma_buf::{
        fence::{
            Callback,
            Fence,
            Listener,
            PendingFence, //
        },
        pages::SharedMapping, //
    },
    new_spinlock_irq,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        SpinLockIrq, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How a job's commands left the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// They are done; the fence has signalled.
    Done,
    /// The engine reported an error.
    Error,
    /// The ring was stopped at one of them.
    Stopped,
    /// The ring was stopped at what was before them.
    Innocent,
    /// The device is off the bus.
    Gone,
}

struct TrackState {
    fence: Option<PendingFence>,
    end: Option<(End, Instant<Monotonic>)>,
}

/// What a ring has of a job. Its fence signals in the interrupt handler, without the scheduler.
#[pin_data]
pub(crate) struct Track {
    #[pin]
    state: SpinLockIrq<TrackState>,
    kick: Arc<Kick>,
}

impl Track {
    pub(crate) fn new(fence: PendingFence, kick: Arc<Kick>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock_irq!(TrackState {
                    fence: Some(fence),
                    end: None,
                }, "p2pgpu::job::track"),
                kick,
            }),
            GFP_KERNEL,
        )
    }

    /// The commands have left the ring. Callable from any context; allocates nothing.
    pub(crate) fn left_ring(&self, end: End) {
        let done = {
            let mut state = self.state.lock();
            state.end = Some((end, Instant::now()));
            match end {
                End::Done => state.fence.take(),
                _ => None,
            }
        };
        if let Some(fence) = done {
            fence.signal(Ok(()));
        }
        self.kick.step();
    }

    /// How and when they left it, if they have.
    pub(crate) fn ended(&self) -> Option<(End, Instant<Monotonic>)> {
        self.state.lock().end
    }

    /// The commands are to go into a ring again.
    pub(crate) fn begin_again(&self) {
        self.state.lock().end = None;
    }

    /// Signals the fence with an error.
    pub(crate) fn fail(&self, error: Error) {
        let fence = self.state.lock().fence.take();
        if let Some(fence) = fence {
            fence.signal(Err(error));
        }
    }
}

/// Has the scheduler look when a fence signals.
pub(crate) struct Wake(pub(crate) Arc<Kick>);

impl Listener for Wake {
    fn signalled(&self) {
        self.0.step();
    }
}

/// A command of a job: what it does, the number of its segments, and where they are.
pub(crate) type Command = (Operation, usize, u64);

/// A job.
pub(crate) struct Job<'drm> {
    pub(crate) context: Arc<Context>,
    pub(crate) track: Arc<Track>,
    /// What it waits for still.
    pub(crate) waits: KVec<ARef<Fence>>,
    /// For one of them after the other; `None` if there are none.
    pub(crate) wake: Option<Pin<KBox<Callback<Wake>>>>,
    /// Those that have to end well.
    pub(crate) needs: KVec<ARef<Fence>>,
    pub(crate) commands: KVec<Command>,
    /// Times that it is tried again when it fails.
    pub(crate) retries: u32,
    /// When it went into the ring.
    pub(crate) since: Option<Instant<Monotonic>>,
    pub(crate) next: Option<KBox<Job<'drm>>>,
    /// The object that it brings the bytes of.
    pub(crate) arriving: Option<ARef<Object>>,
    // What the engine uses until the job has left the ring.
    pub(crate) _lists: KVec<Coherent<[RawSegment]>>,
    pub(crate) _digests: Option<Coherent<[u8]>>,
    pub(crate) _maps: KVec<SharedMapping<'drm>>,
    // Last: what they are made of.
    pub(crate) _objects: KVec<ARef<Object>>,
}

impl Job<'_> {
    /// Whether all that it waits for has ended. If not, the scheduler is told when it may have.
    pub(crate) fn is_ready(&mut self) -> bool {
        let Some(wake) = &mut self.wake else {
            return true;
        };
        if wake.waits_for().is_some() {
            return false;
        }
        while let Some(fence) = self.waits.last() {
            if !fence.is_signaled() && wake.as_mut().wait_for(fence) {
                return false;
            }
            self.waits.pop();
        }
        true
    }

    /// Whether what it needs has failed. It is ready.
    pub(crate) fn is_in_vain(&self) -> bool {
        let failed = |fence: &ARef<Fence>| matches!(fence.status(), Some(Err(_)));
        self.needs.iter().any(failed)
    }
}

/// Jobs in their order, without memory of its own.
pub(crate) struct Fifo<'drm> {
    /// A list from the first on.
    front: Option<KBox<Job<'drm>>>,
    /// Those behind, a list from the last on.
    back: Option<KBox<Job<'drm>>>,
}

impl<'drm> Fifo<'drm> {
    pub(crate) fn new() -> Self {
        Self {
            front: None,
            back: None,
        }
    }

    pub(crate) fn push(&mut self, mut job: KBox<Job<'drm>>) {
        job.next = self.back.take();
        self.back = Some(job);
    }

    pub(crate) fn push_front(&mut self, mut job: KBox<Job<'drm>>) {
        job.next = self.front.take();
        self.front = Some(job);
    }

    pub(crate) fn first_mut(&mut self) -> Option<&mut Job<'drm>> {
        if self.front.is_none() {
            let mut back = self.back.take();
            while let Some(mut job) = back {
                back = job.next.take();
                self.push_front(job);
            }
        }
        self.front.as_deref_mut()
    }

    pub(crate) fn pop(&mut self) -> Option<KBox<Job<'drm>>> {
        self.first_mut()?;
        let mut job = self.front.take()?;
        self.front = job.next.take();
        Some(job)
    }
}
