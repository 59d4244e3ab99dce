// SPDX-License-Identifier: GPL-2.0

//! Command rings: commands in, fences out.
//!
//! A command is written to the ring, the doorbell is stored (the only register access of a
//! submission), and the device reports the command's sequence number in the status block. Each
//! command has a fence, which signals in the interrupt handler.

use crate::{
    job::{
        Command,
        End,
        Job,
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
        PendingFence,
        Signalling,
        Timeline, //
    },
    io::{
        io_project,
        io_read,
        io_write,
        poll::read_poll_timeout,
        register::Array,
        Io, //
    },
    irq, new_mutex, new_spinlock_irq, pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        Mutex,
        MutexGuard,
        SpinLockIrq, //
    },
    time::{
        msecs_to_jiffies,
        Delta, //
    },
};

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

/// The last command of those that were submitted together.
struct Entry {
    fence: PendingFence,
    /// The job, if they are one's.
    job: Option<Arc<Track>>,
}

/// Commands whose fence has not signalled.
struct Pending {
    /// That of sequence number `n` is at `n` modulo the ring's size.
    fences: KVec<Option<Entry>>,
    /// Sequence number up to which all fences have signalled.
    signalled: u64,
    /// Sequence number of the newest command.
    submitted: u64,
    /// The device has reported an error and the ring is halted.
    halted: bool,
}

impl Pending {
    fn entry(&mut self, seqno: u64) -> Option<&mut Option<Entry>> {
        let index = usize::try_from(seqno % u64::from(RING_COMMANDS)).ok()?;
        self.fences.get_mut(index)
    }

    /// Signals all fences up to `seqno`. A job at whose commands the ring is ends with `first`, those
    /// behind it are innocent.
    fn signal_to(&mut self, seqno: u64, outcome: Result, first: End) {
        let mut end = first;
        // The device is not trusted to report only what was submitted.
        let last = seqno.min(self.submitted);
        while self.signalled < last {
            self.signalled += 1;
            let seqno = self.signalled;
            if let Some(entry) = self.entry(seqno).and_then(Option::take) {
                if let Some(job) = entry.job {
                    job.left_ring(end);
                }
                entry.fence.signal(outcome);
                if end != End::Done {
                    end = End::Innocent;
                }
            }
        }
    }
}

/// What a ring shares with its interrupt handler.
#[pin_data]
pub(crate) struct Completions {
    status: Coherent<RawStatus>,
    #[pin]
    pending: SpinLockIrq<Pending>,
}

impl Completions {
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
    /// The ring did not stop when told to; it is not used any more.
    dead: bool,
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
    /// Allocates what the device and the handler share, before the ring is started.
    pub(crate) fn completions(dev: &device::Device<device::Bound>) -> Result<Arc<Completions>> {
        let status = Coherent::zeroed(dev, GFP_KERNEL)?;
        let mut fences = KVec::with_capacity(usize::try_from(RING_COMMANDS)?, GFP_KERNEL)?;
        for _ in 0..RING_COMMANDS {
            fences.push(None, GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Completions {
                status,
                pending <- new_spinlock_irq!(Pending {
                    fences,
                    signalled: 0,
                    submitted: 0,
                    halted: false,
                }, "p2pgpu::ring::pending"),
            }? Error),
            GFP_KERNEL,
        )
    }

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
                dead: false,
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
        let newest: Option<ARef<Fence>> = {
            let mut pending = self.completions.pending.lock();
            let seqno = pending.submitted;
            pending
                .entry(seqno)
                .and_then(|entry| entry.as_ref())
                .map(|entry| entry.fence.fence().into())
        };
        // Without the lock, which is needed to end a command that is lost. Who waits for what
        // failed learns it from its fence.
        let _ = newest.map(|fence| self.ended(&fence));
        let _signalling = Signalling::begin();
        let mut submission = self.submission.lock();
        submission.stopped = true;
        if let Err(error) = self.stop() {
            self.cut_off(error);
        }
        self.fail_pending();
    }

    /// After a reset that has failed: the ring is not used any more.
    pub(crate) fn give_up(&self) {
        let mut submission = self.submission.lock();
        submission.dead = true;
        submission.suspended = false;
    }

    /// After a reset: starts the ring, empty.
    pub(crate) fn resume(&self) -> Result {
        let mut submission = self.submission.lock();
        self.set_up()?;
        *submission = Submission {
            tail: 0,
            dead: false,
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

    /// Keeps a device whose ring does not stop from the bus: its memory is going to be freed.
    fn cut_off(&self, error: Error) {
        if error == ENODEV {
            dev_err!(self.pdev, "the device is off the bus\n");
        } else {
            dev_err!(self.pdev, "a ring does not stop: the device is cut off\n");
        }
        self.pdev
            .config_space()
            .update(regs::PCI_COMMAND, |command| command.with_bus_master(false));
    }

    /// Submits a command; the fence signals when it is done.
    ///
    /// `EIO`: the ring is dead. `EAGAIN`: the device is being reset. The memory that the command names stays valid until the fence has
    /// signalled *and* [`Ring::wait`] has returned.
    pub(crate) fn submit(&self, op: Operation, count: usize, list: u64) -> Result<ARef<Fence>> {
        // Not under the lock, which whoever signals the fence of a lost command takes.
        let memory = FenceMemory::new(GFP_KERNEL)?;
        let mut submission = self.lock_with_room()?;
        let fence = self.timeline.fence(memory);
        let shared: ARef<Fence> = fence.fence().into();
        self.write(&mut submission, &[(op, count, list)], fence, None)?;
        Ok(shared)
    }

    /// Submits the commands of a job, or none of them.
    ///
    /// `EIO`: the ring is dead. `EAGAIN`: the device is being reset, or the ring is full. Does not
    /// wait for a fence, and allocates nothing. The memory that the commands name stays valid until
    /// the job has left the ring.
    pub(crate) fn submit_job(&self, job: &mut Job<'_>) -> Result {
        let mut submission = self.submission.lock();
        self.check(&mut submission)?;
        let count = u64::try_from(job.commands.len())?;
        let used = {
            let pending = self.completions.pending.lock();
            pending.submitted - pending.signalled
        };
        if used.saturating_add(count) > u64::from(RING_COMMANDS) {
            return Err(EAGAIN);
        }
        let memory = job.memory.pop().ok_or(EIO)?;
        let fence = self.timeline.fence(memory);
        let track = job.track.clone();
        self.write(&mut submission, &job.commands, fence, Some(track))
    }

    /// Writes commands, for which there is room, and tells the device.
    fn write(
        &self,
        submission: &mut Submission,
        commands: &[Command],
        fence: PendingFence,
        job: Option<Arc<Track>>,
    ) -> Result {
        let added = u64::try_from(commands.len())?;
        let first = {
            let mut pending = self.completions.pending.lock();
            let first = pending.submitted;
            let last = first.checked_add(added).ok_or(EOVERFLOW)?;
            pending.submitted = last;
            if let Some(entry) = pending.entry(last) {
                *entry = Some(Entry { fence, job });
            }
            first
        };
        for (seqno, &(op, count, list)) in (first + 1..).zip(commands) {
            let index = usize::try_from(submission.tail % RING_COMMANDS)?;
            let command = regs::command(op, u32::try_from(count)?, list, seqno);
            for (word, value) in command.into_iter().enumerate() {
                io_write!(self.commands, [try: index][try: word], value);
            }
            submission.tail = submission.tail.wrapping_add(1);
        }
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
        let stopped = submission.dead || submission.stopped;
        if !stopped && job.end().is_none() {
            // A ring that does not stop is dead: who submits next is told.
            let _ = self.restart(&mut submission);
        }
    }

    /// Whether commands can be submitted; starts a ring again that has halted.
    fn check(&self, submission: &mut Submission) -> Result {
        if submission.suspended {
            return Err(EAGAIN);
        }
        if submission.dead {
            return Err(EIO);
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
        if pending.submitted - pending.signalled < u64::from(RING_COMMANDS) {
            return None;
        }
        // The last of the commands that were submitted together has the fence of all.
        for seqno in pending.signalled + 1..=pending.submitted {
            if let Some(Some(entry)) = pending.entry(seqno) {
                return Some(entry.fence.fence().into());
            }
        }
        None
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
        let stopped = submission.dead || submission.stopped;
        if !stopped && (self.completions.pending.lock().halted || !fence.is_signaled()) {
            self.restart(&mut submission)?;
        }
        Err(EIO)
    }

    /// Stops the ring, fails what is pending, and starts it empty.
    fn restart(&self, submission: &mut Submission) -> Result {
        if let Err(error) = self.stop() {
            submission.dead = true;
            self.cut_off(error);
        }
        self.fail_pending();
        if submission.dead {
            return Err(EIO);
        }
        submission.tail = 0;
        self.enable(true)
    }

    /// Fails what is pending, and forgets what the device said. The ring is stopped.
    fn fail_pending(&self) {
        let mut pending = self.completions.pending.lock();
        io_project!(self.completions.status,).copy_write(RawStatus::default());
        pending.signal_to(u64::MAX, Err(EIO), End::Stopped);
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
        pending.signal_to(u64::MAX, Err(ENODEV), End::Stopped);
    }
}
