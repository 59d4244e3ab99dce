// SPDX-License-Identifier: GPL-2.0

//! What a ring shares with its interrupt handler: which commands have ended.

use super::RING_COMMANDS;
use crate::{
    job::{
        End,
        Track, //
    },
    regs::{
        self,
        RawStatus, //
    }, //
};
use kernel::{
    device,
    dma::Coherent,
    dma_buf::fence::PendingFence,
    io::io_read,
    new_spinlock_irq,
    prelude::*,
    sync::{
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        SpinLockIrq, //
    }, //
};

/// Who is told that commands which were submitted together have ended.
pub(super) enum Waiter {
    Fence(PendingFence),
    Job(Arc<Track>),
}

/// Commands that have not ended.
pub(super) struct Pending {
    /// That of sequence number `n`, the last of its commands, is at `n` modulo the ring's size.
    pub(super) waiters: KVec<Option<Waiter>>,
    /// Sequence number up to which all have ended.
    pub(super) signalled: u64,
    /// Sequence number of the newest command.
    pub(super) submitted: u64,
    /// The device has reported an error and the ring is halted.
    pub(super) halted: bool,
}

impl Pending {
    pub(super) fn entry(&mut self, seqno: u64) -> Option<&mut Option<Waiter>> {
        let index = usize::try_from(seqno % u64::from(RING_COMMANDS)).ok()?;
        self.waiters.get_mut(index)
    }

    /// Commands for which there is room.
    pub(super) fn room(&self) -> u64 {
        u64::from(RING_COMMANDS).saturating_sub(self.submitted.saturating_sub(self.signalled))
    }

    /// Tells all up to `seqno`. A job at whose commands the ring is ends with `first`, those behind
    /// it are innocent.
    pub(super) fn signal_to(&mut self, seqno: u64, outcome: Result, first: End) {
        let mut end = first;
        // The device is not trusted to report only what was submitted.
        let last = seqno.min(self.submitted);
        while self.signalled < last {
            self.signalled += 1;
            let seqno = self.signalled;
            match self.entry(seqno).and_then(Option::take) {
                Some(Waiter::Fence(fence)) => fence.signal(outcome),
                Some(Waiter::Job(job)) => job.left_ring(end),
                None => continue,
            }
            if end != End::Done {
                end = End::Innocent;
            }
        }
    }
}

/// What a ring shares with its interrupt handler.
#[pin_data]
pub(crate) struct Completions {
    pub(super) status: Coherent<RawStatus>,
    #[pin]
    pub(super) pending: SpinLockIrq<Pending>,
}

impl Completions {
    /// Allocates what the device and the handler share, before the ring is started.
    pub(crate) fn new(dev: &device::Device<device::Bound>) -> Result<Arc<Self>> {
        let status = Coherent::zeroed(dev, GFP_KERNEL)?;
        let mut waiters = KVec::with_capacity(usize::try_from(RING_COMMANDS)?, GFP_KERNEL)?;
        for _ in 0..RING_COMMANDS {
            waiters.push(None, GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                status,
                pending <- new_spinlock_irq!(Pending {
                    waiters,
                    signalled: 0,
                    submitted: 0,
                    halted: false,
                }, "p2pgpu::ring::pending"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Signals what the status block says. Callable from any context.
    pub(crate) fn update(&self) {
        // Under the lock: what a restart clears is not acted on after it.
        let mut pending = self.pending.lock();
        let done = u64::from_le(io_read!(self.status, [build: regs::STATUS_DONE]));
        let error = u64::from_le(io_read!(self.status, [build: regs::STATUS_ERROR]));
        // What the command wrote is read after the word that says it is there.
        dma_mb(Read);
        pending.signal_to(done, Ok(()), End::Done);
        if error != 0 {
            pending.halted = true;
            pending.signal_to(u64::MAX, Err(EIO), End::Error);
        }
    }
}
