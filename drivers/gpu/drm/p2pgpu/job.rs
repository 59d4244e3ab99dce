// SPDX-License-Identifier: GPL-2.0

//! Jobs: commands that are queued, what they use, and their fence.

use crate::{
    context::Context,
    gem::Object,
    regs::{
        Operation,
        RawSegment, //
    },
    scheduler::Kick, //
};
use kernel::{
    dma::Coherent,
    dma_buf::{
        fence::{
            Callback,
            Fence,
            FenceMemory,
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
    /// The ring was stopped at what was before them, or they did not get into it.
    Innocent,
}

struct TrackState {
    fence: Option<PendingFence>,
    end: Option<End>,
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
            state.end = Some(end);
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

    /// How they left it, if they have.
    pub(crate) fn end(&self) -> Option<End> {
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

/// Times that a job can be in a ring that is stopped on account of another.
pub(crate) const TRIES: usize = 3;

/// A job.
pub(crate) struct Job<'drm> {
    pub(crate) context: Arc<Context>,
    pub(crate) track: Arc<Track>,
    /// What it waits for still.
    pub(crate) waits: KVec<ARef<Fence>>,
    /// For one of them after the other.
    pub(crate) wake: Pin<KBox<Callback<Wake>>>,
    pub(crate) commands: KVec<Command>,
    /// One for each time that it goes into a ring.
    pub(crate) memory: KVec<FenceMemory>,
    /// When it went there.
    pub(crate) since: Option<Instant<Monotonic>>,
    pub(crate) next: Option<KBox<Job<'drm>>>,
    // What the engine uses until the job has left the ring.
    pub(crate) _list: Coherent<[RawSegment]>,
    pub(crate) _digests: Coherent<[u8]>,
    pub(crate) _maps: KVec<SharedMapping<'drm>>,
    // Last: what they are made of.
    pub(crate) _objects: KVec<ARef<Object>>,
}

impl Job<'_> {
    /// Whether all that it waits for has ended. If not, the scheduler is told when it may have.
    pub(crate) fn is_ready(&mut self) -> bool {
        if self.wake.waits_for().is_some() {
            return false;
        }
        while let Some(fence) = self.waits.last() {
            if !fence.is_signaled() && self.wake.as_mut().wait_for(fence) {
                return false;
            }
            self.waits.pop();
        }
        true
    }
}
