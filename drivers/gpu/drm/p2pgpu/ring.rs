// SPDX-License-Identifier: GPL-2.0

//! Command rings: commands in, fences out.
//!
//! A command is written to the ring, the doorbell is stored (the only register access of a
//! submission), and the device reports the command's sequence number in the status block. Each
//! command has a fence, which signals in the interrupt handler.

use crate::{
    driver,
    job::{
        Command,
        End,
        Track, //
    },
    patience::Patience,
    regs::{
        self,
        Bar,
        Operation,
        RawCommand,
        RawStatus, //
    }, //
};
use kernel::{
    c_str, device,
    dma::Coherent,
    dma_buf::fence::{
        Fence,
        FenceMemory,
        Names,
        Signalling,
        Timeline, //
    },
    io::{
        io_project,
        io_write,
        poll::read_poll_timeout,
        register::Array,
        Io, //
    },
    irq, new_mutex, pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        msecs_to_jiffies,
        Delta, //
    },
};

mod completions;

pub(crate) use self::completions::Completions;
use self::completions::Waiter;

/// The device's rings, by register index, which is the number of the interrupt vector too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingId {
    /// Copies, fills, checksums.
    Engine = 0,
    /// Flushes: they do not wait behind a long copy.
    Aperture = 1,
}

/// Log2 of the commands in a ring.
const RING_LOG2: u32 = 8;
const RING_COMMANDS: u32 = 1 << RING_LOG2;

/// Time after which completions are looked for without an interrupt, in case one was lost.
const LOOK_MS: u32 = 100;
/// Time after which a ring that was told to stop is taken for dead.
const STOP_TIMEOUT: Delta = Delta::from_millis(5_000);

struct FenceNames;

impl Names for FenceNames {
    const DRIVER: &'static CStr = c_str!("p2pgpu");
    const TIMELINE: &'static CStr = c_str!("ring");
}

/// The interrupt handler of a vector.
pub(crate) enum Handler {
    /// Fences of a ring.
    Ring(Arc<Completions>),
    /// Entries of the device's fault log, counted.
    Fault(Arc<Atomic<u64>>),
}

impl irq::Handler for Handler {
    fn handle(&self) -> irq::IrqReturn {
        match self {
            Self::Ring(completions) => completions.update(),
            Self::Fault(count) => {
                count.fetch_add(1, Relaxed);
            }
        }
        irq::IrqReturn::Handled
    }
}

/// Where the next command goes.
struct Submission {
    tail: u32,
    /// The ring did not stop when told to, and why; it is not used any more.
    dead: Option<Error>,
    /// The device is going to be reset: nothing is submitted.
    suspended: bool,
    /// The ring is stopped for the reset.
    stopped: bool,
}

/// A command ring of a bound device.
#[pin_data(PinnedDrop)]
pub(crate) struct Ring<'drm> {
    id: RingId,
    pdev: &'drm pci::Device<device::Bound>,
    bar: Arc<Bar<'drm>>,
    commands: Coherent<[RawCommand]>,
    completions: Arc<Completions>,
    timeline: Timeline<FenceNames>,
    patience: Arc<Patience>,
    #[pin]
    submission: Mutex<Submission>,
}

impl<'drm> Ring<'drm> {
    /// Starts ring `id`; `completions` is already with the interrupt handler.
    pub(crate) fn new(
        pdev: &'drm pci::Device<device::Bound>,
        bar: Arc<Bar<'drm>>,
        id: RingId,
        completions: Arc<Completions>,
        patience: Arc<Patience>,
    ) -> impl PinInit<Self, Error> + use<'drm> {
        try_pin_init!(Self {
            id,
            pdev,
            commands: Coherent::zeroed_slice(pdev.as_ref(), usize::try_from(RING_COMMANDS)?, GFP_KERNEL)?,
            completions,
            timeline: Timeline::new(),
            patience,
            submission <- new_mutex!(Submission {
                tail: 0,
                dead: None,
                suspended: false,
                stopped: false,
            }, "p2pgpu::ring::submission"),
            bar,
        }? Error)
        .pin_chain(|ring| ring.set_up())
    }

    /// Tells the device, which has been reset, where the ring is.
    fn set_up(&self) -> Result {
        let at = self.id as usize;
        let base = regs::RING_BASE::zeroed().with_address(self.commands.dma_address());
        let status =
            regs::RING_STATUS_ADDR::zeroed().with_address(self.completions.status.dma_address());
        let size = regs::RING_SIZE::zeroed().with_const_log2::<{ RING_LOG2 }>();
        self.bar
            .try_write(regs::RING_BASE::try_at(at).ok_or(EINVAL)?, base)?;
        self.bar
            .try_write(regs::RING_STATUS_ADDR::try_at(at).ok_or(EINVAL)?, status)?;
        self.bar
            .try_write(regs::RING_SIZE::try_at(at).ok_or(EINVAL)?, size)?;
        self.enable(true)
    }

    /// Before a reset: lets what is pending end, and nobody in.
    pub(crate) fn suspend(&self) {
        self.submission.lock().suspended = true;
        // Without the lock, which is needed to end a command that is lost. Who waits for what
        // failed learns it from its fence.
        let ended = || {
            self.completions.update();
            let pending = self.completions.pending.lock();
            Ok(pending.signalled == pending.submitted)
        };
        let most = Delta::from_millis(self.patience.timeout_ms(self.id).into());
        let _ = read_poll_timeout(ended, |ended| *ended, Delta::from_millis(1), most);
        self.halt();
    }

    /// Stops the ring, whatever is in it, and lets nobody in until it is resumed.
    pub(crate) fn halt(&self) {
        let _signalling = Signalling::begin();
        let mut submission = self.submission.lock();
        submission.suspended = true;
        submission.stopped = true;
        if let Err(error) = self.stop() {
            self.cut_off(error);
        }
        self.fail_pending(End::Stopped);
    }

    /// After a reset that has failed: the ring is not used any more.
    pub(crate) fn give_up(&self) {
        let mut submission = self.submission.lock();
        submission.dead = Some(EIO);
        submission.suspended = false;
    }

    /// After a reset: starts the ring, empty.
    pub(crate) fn resume(&self) -> Result {
        let mut submission = self.submission.lock();
        self.set_up()?;
        *submission = Submission {
            tail: 0,
            dead: None,
            suspended: false,
            stopped: false,
        };
        Ok(())
    }

    fn enable(&self, enable: bool) -> Result {
        let control = regs::RING_CONTROL::zeroed().with_enable(enable);
        let at = regs::RING_CONTROL::try_at(self.id as usize).ok_or(EINVAL)?;
        self.bar.try_write(at, control)
    }

    fn state(&self) -> Result<regs::RING_STATE> {
        let at = regs::RING_STATE::try_at(self.id as usize).ok_or(EINVAL)?;
        self.bar.try_read(at)
    }

    /// Whether the device is off the bus: then it neither answers nor does any DMA.
    pub(crate) fn is_gone(&self) -> bool {
        self.state()
            .is_ok_and(|state| u32::from(state.state()) == regs::ALL_ONES)
    }

    /// Stops the ring; when this succeeds no DMA of it is in flight. `ENODEV`: the device is off
    /// the bus.
    fn stop(&self) -> Result {
        self.enable(false)?;
        read_poll_timeout(
            || {
                if self.is_gone() {
                    return Err(ENODEV);
                }
                self.state()
            },
            |state| u32::from(state.state()) == regs::RING_DISABLED,
            Delta::from_micros(500),
            STOP_TIMEOUT,
        )?;
        Ok(())
    }

    /// Keeps a device whose ring does not stop from the bus: the ring's memory is going to be freed.
    fn cut_off(&self, error: Error) {
        if error == ENODEV {
            dev_err!(self.pdev, "the device is off the bus\n");
        } else {
            dev_err!(self.pdev, "a ring does not stop: the device is cut off\n");
        }
        driver::cut_off(self.pdev);
    }

    /// Submits a command; the fence signals when it is done.
    ///
    /// `EIO`: the ring is dead. `ENODEV`: the device is off the bus. `EAGAIN`: the device is being
    /// reset. The memory that the command names stays valid until the fence has signalled *and*
    /// [`Ring::wait`] has returned.
    pub(crate) fn submit(&self, op: Operation, count: usize, list: u64) -> Result<ARef<Fence>> {
        // Not under the lock, which whoever signals the fence of a lost command takes.
        let memory = FenceMemory::new(GFP_KERNEL)?;
        let mut submission = self.lock_with_room()?;
        let fence = self.timeline.fence(memory);
        let shared: ARef<Fence> = fence.fence().into();
        self.write(&mut submission, &[(op, count, list)], Waiter::Fence(fence))?;
        self.ring_doorbell(&submission)?;
        Ok(shared)
    }

    /// Lets the commands of jobs in, for as long as the value lives.
    ///
    /// `EIO`: the ring is dead. `ENODEV`: the device is off the bus. `EAGAIN`: the device is being
    /// reset, or reports an error. Does not wait for a fence, and allocates nothing.
    pub(crate) fn batch(&self) -> Result<Batch<'_, 'drm>> {
        let submission = self.submission.lock();
        if submission.suspended || self.completions.pending.lock().halted {
            return Err(EAGAIN);
        }
        match submission.dead {
            Some(error) => Err(error),
            None => Ok(Batch {
                ring: self,
                submission,
                added: false,
            }),
        }
    }

    /// Starts the ring again if it has halted at an error. Allocates nothing.
    pub(crate) fn revive(&self) {
        let mut submission = self.submission.lock();
        // Who submits next learns what is wrong.
        let _ = self.check(&mut submission);
    }

    /// Writes commands, for which there is room. The device is not told yet. `EAGAIN`: the ring has
    /// just halted.
    fn write(&self, submission: &mut Submission, commands: &[Command], waiter: Waiter) -> Result {
        let added = u64::try_from(commands.len())?;
        let (first, last) = {
            let mut pending = self.completions.pending.lock();
            // What is put behind a command that has failed would be taken for the next that does.
            if pending.halted {
                return Err(EAGAIN);
            }
            let first = pending.submitted;
            let last = first.checked_add(added).ok_or(EOVERFLOW)?;
            pending.submitted = last;
            if let Some(entry) = pending.entry(last) {
                *entry = Some(waiter);
            }
            (first, last)
        };
        for (seqno, &(op, count, list)) in (first + 1..).zip(commands) {
            let index = usize::try_from(submission.tail % RING_COMMANDS)?;
            let command = regs::command(op, u32::try_from(count)?, list, seqno, seqno == last);
            for (word, value) in command.into_iter().enumerate() {
                io_write!(self.commands, [try: index][try: word], value);
            }
            submission.tail = submission.tail.wrapping_add(1);
        }
        Ok(())
    }

    /// Tells the device of what was written.
    fn ring_doorbell(&self, submission: &Submission) -> Result {
        // The store to the register is ordered after those to memory.
        let doorbell = regs::RING_DOORBELL::zeroed().with_tail(submission.tail);
        let at = regs::RING_DOORBELL::try_at(self.id as usize).ok_or(EINVAL)?;
        self.bar.try_write(at, doorbell)
    }

    /// Signals what has ended without an interrupt.
    pub(crate) fn look(&self) {
        self.completions.update();
    }

    /// Gives up a job that does not end; the ring is restarted, if that is possible.
    pub(crate) fn abandon(&self, job: &Track) {
        let _signalling = Signalling::begin();
        let mut submission = self.submission.lock();
        let stopped = submission.dead.is_some() || submission.stopped;
        if !stopped && job.ended().is_none() {
            // A ring that does not stop is dead: who submits next is told.
            let _ = self.restart(&mut submission);
        }
    }

    /// Whether commands can be submitted; starts a ring again that has halted.
    fn check(&self, submission: &mut Submission) -> Result {
        if submission.suspended {
            return Err(EAGAIN);
        }
        if let Some(error) = submission.dead {
            return Err(error);
        }
        if self.completions.pending.lock().halted {
            self.restart(submission)?;
        }
        Ok(())
    }

    /// Takes the submission lock when fewer commands are pending than the ring holds.
    fn lock_with_room(&self) -> Result<MutexGuard<'_, Submission>> {
        loop {
            let mut submission = self.submission.lock();
            self.check(&mut submission)?;
            let Some(oldest) = self.oldest_of_full_ring() else {
                return Ok(submission);
            };
            // Should it be lost, the lock is needed to end it.
            drop(submission);
            // Who submitted what failed learns it from its fence.
            let _ = self.wait(&oldest);
        }
    }

    /// The oldest command, if as many are pending as the ring holds.
    fn oldest_of_full_ring(&self) -> Option<ARef<Fence>> {
        let mut pending = self.completions.pending.lock();
        if pending.room() != 0 {
            return None;
        }
        let oldest = pending.signalled + 1;
        match pending.entry(oldest) {
            Some(Some(Waiter::Fence(fence))) => Some(fence.fence().into()),
            _ => None,
        }
    }

    /// Waits for a command, for as long as a command may take. `EIO`: it failed, or has not ended.
    fn ended(&self, fence: &Fence) -> Result {
        let mut left = self.patience.timeout_ms(self.id);
        while left != 0 {
            let part = left.min(LOOK_MS);
            left -= part;
            match fence.wait(msecs_to_jiffies(part)) {
                Err(error) if error == ETIMEDOUT => self.completions.update(),
                ended => return ended,
            }
            if let Some(ended) = fence.status() {
                return ended;
            }
            self.patience.late.up();
            if self.is_gone() {
                break;
            }
        }
        fence.status().unwrap_or(Err(EIO))
    }

    /// Waits for a command. When this returns, the device no longer uses the command's memory.
    ///
    /// `EIO`: the command failed, or was lost; the ring has been restarted, if that was possible.
    pub(crate) fn wait(&self, fence: &Fence) -> Result {
        if self.ended(fence).is_ok() {
            return Ok(());
        }
        let _signalling = Signalling::begin();
        let mut submission = self.submission.lock();
        // A later command may have restarted the ring already, or a reset.
        let stopped = submission.dead.is_some() || submission.stopped;
        if !stopped && (self.completions.pending.lock().halted || !fence.is_signaled()) {
            self.restart(&mut submission)?;
        }
        Err(EIO)
    }

    /// Stops the ring, fails what is pending, and starts it empty.
    fn restart(&self, submission: &mut Submission) -> Result {
        let stopped = self.stop();
        if let Err(error) = stopped {
            let gone = error == ENODEV;
            submission.dead = Some(if gone { ENODEV } else { EIO });
            self.cut_off(error);
            self.fail_pending(if gone { End::Gone } else { End::Stopped });
            return Err(EIO);
        }
        self.fail_pending(End::Stopped);
        submission.tail = 0;
        self.enable(true)
    }

    /// Fails what is pending, and forgets what the device said. The ring is stopped.
    fn fail_pending(&self, first: End) {
        let mut pending = self.completions.pending.lock();
        io_project!(self.completions.status,).copy_write(RawStatus::default());
        pending.signal_to(u64::MAX, Err(EIO), first);
        pending.halted = false;
    }

    /// Submits a command and waits for it.
    pub(crate) fn run(&self, op: Operation, count: usize, list: u64) -> Result {
        let fence = self.submit(op, count, list)?;
        self.wait(&fence)
    }
}

#[pinned_drop]
impl PinnedDrop for Ring<'_> {
    fn drop(self: Pin<&mut Self>) {
        // The memory of the ring is freed next.
        if let Err(error) = self.stop() {
            self.cut_off(error);
        }
        let mut pending = self.completions.pending.lock();
        pending.signal_to(u64::MAX, Err(ENODEV), End::Gone);
    }
}

/// Jobs that the device is told of together, when this is dropped.
pub(crate) struct Batch<'a, 'drm> {
    ring: &'a Ring<'drm>,
    submission: MutexGuard<'a, Submission>,
    added: bool,
}

impl Batch<'_, '_> {
    /// Adds the commands of a job. `EAGAIN`: the ring is full, or has just halted; who waits in it is
    /// told when it goes on.
    ///
    /// The memory that the commands name stays valid until the job has left the ring.
    pub(crate) fn add(&mut self, commands: &[Command], job: Arc<Track>) -> Result {
        let room = self.ring.completions.pending.lock().room();
        if u64::try_from(commands.len())? > room {
            return Err(EAGAIN);
        }
        let waiter = Waiter::Job(job);
        self.ring.write(&mut self.submission, commands, waiter)?;
        self.added = true;
        Ok(())
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        if self.added {
            // It fails for no ring that there is.
            let _ = self.ring.ring_doorbell(&self.submission);
        }
    }
}
