// SPDX-License-Identifier: GPL-2.0

//! The mailbox: one command to the device at a time, each with an answer in bounded time.
//!
//! The device must let go of memory when it is told to. One that does not answer such a command,
//! or refuses it, is stopped by a reset, so that a failure here never means that DMA goes on.

use crate::{
    regs::{
        self,
        opcode,
        DevresBar, //
    },
    settings::Time,
    signal::{
        Signal,
        Wake, //
    },
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    dma::Coherent,
    io::{
        io_read,
        io_write,
        Io, //
    },
    new_mutex, pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    },
};

/// A command and its arguments.
#[derive(Clone, Copy)]
pub(crate) enum Command {
    /// Make a region of `length` bytes, without addresses.
    CreateRegion { key: u32, access: u32, length: u64 },
    /// Give a region its addresses: `count` segments at the DMA address `list`.
    MapRegion { key: u32, count: u32, list: u64 },
    /// Take them away; no DMA is in flight afterwards.
    InvalidateRegion { key: u32 },
    /// As that, and forget the region.
    DestroyRegion { key: u32 },
    /// Make a queue pair.
    CreateQueuePair { number: u32, queues: Queues },
    /// Name the queue pair at the other end.
    ConnectQueuePair { number: u32, remote: u32 },
    /// Forget a queue pair; no DMA of it is in flight afterwards.
    DestroyQueuePair { number: u32 },
}

/// The queues of a queue pair.
#[derive(Clone, Copy)]
pub(crate) struct Queues {
    /// log2 of the entries of the send, receive and completion queue.
    pub(crate) log2: [u8; 3],
    /// Their DMA addresses, in the same order.
    pub(crate) address: [u64; 3],
}

/// A command as the device reads it.
#[derive(Default)]
struct Encoded {
    opcode: u32,
    index: u32,
    arg32: u32,
    args: [u64; 3],
}

impl Command {
    fn encode(self) -> Encoded {
        match self {
            Self::CreateRegion {
                key,
                access,
                length,
            } => Encoded {
                opcode: opcode::MR_CREATE,
                index: key,
                arg32: access,
                args: [length, 0, 0],
            },
            Self::MapRegion { key, count, list } => Encoded {
                opcode: opcode::MR_MAP,
                index: key,
                arg32: count,
                args: [list, 0, 0],
            },
            Self::InvalidateRegion { key } => Encoded {
                opcode: opcode::MR_INVALIDATE,
                index: key,
                ..Encoded::default()
            },
            Self::DestroyRegion { key } => Encoded {
                opcode: opcode::MR_DESTROY,
                index: key,
                ..Encoded::default()
            },
            Self::CreateQueuePair { number, queues } => {
                let [send, recv, completions] = queues.log2;
                Encoded {
                    opcode: opcode::QP_CREATE,
                    index: number,
                    arg32: u32::from_le_bytes([send, recv, completions, 0]),
                    args: queues.address,
                }
            }
            Self::ConnectQueuePair { number, remote } => Encoded {
                opcode: opcode::QP_CONNECT,
                index: number,
                arg32: remote,
                ..Encoded::default()
            },
            Self::DestroyQueuePair { number } => Encoded {
                opcode: opcode::QP_DESTROY,
                index: number,
                ..Encoded::default()
            },
        }
    }

    /// Whether memory is given back after this command, so that it has to work.
    fn must_work(self) -> bool {
        matches!(
            self,
            Self::InvalidateRegion { .. }
                | Self::DestroyRegion { .. }
                | Self::DestroyQueuePair { .. }
        )
    }
}

/// The mailbox in memory: 256 bytes as 64-bit words. Each of the words 0 and 1 holds two 32-bit
/// fields, the lower offset in the lower half; words 2 to 7 are the arguments.
type Memory = Coherent<[u64; 32]>;

/// The first word of the answer: SEQ below, STATUS above.
const ANSWER: usize = 16;

enum State {
    Running(Memory),
    /// The device was stopped because it did not obey, or is off the bus. The memory stays, in case
    /// it was not stopped.
    Failed {
        _memory: Memory,
        error: Error,
    },
    /// The driver is unbound.
    Unbound,
}

impl State {
    /// The error of a mailbox that does not run.
    fn check(&self) -> Result {
        match self {
            Self::Running(_) => Ok(()),
            Self::Failed { error, .. } => Err(*error),
            Self::Unbound => Err(ENODEV),
        }
    }
}

struct Inner {
    state: State,
    seq: u32,
}

/// See the module's documentation.
#[pin_data]
pub(crate) struct Mailbox {
    pdev: ARef<pci::Device>,
    bar: Arc<DevresBar>,
    failed: AtomicFlag,
    /// How long the device may take for an answer.
    pub(crate) answer_timeout: Time,
    /// How long the device may take for a reset: longer than a DMA that is in flight.
    pub(crate) reset_timeout: Time,
    #[pin]
    answered: Signal,
    #[pin]
    inner: Mutex<Inner>,
}

impl Mailbox {
    /// After this time the answer is looked for without an interrupt, in case one was lost.
    const LOOK_MS: Msecs = 20;
    /// How often it is looked for while a signal is pending.
    const POLL_US: Delta = Delta::from_micros(50);
    const RESET_POLL_US: Delta = Delta::from_micros(100);

    /// A mailbox that works once [`Self::start`] has run.
    pub(crate) fn new(
        pdev: &pci::Device<Bound>,
        bar: Arc<DevresBar>,
    ) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            pdev: pdev.into(),
            bar,
            failed: AtomicFlag::new(false),
            answer_timeout: Time::from_millis(10_000),
            reset_timeout: Time::from_millis(10_000),
            answered <- Signal::new(),
            inner <- new_mutex!(
                Inner {
                    state: State::Unbound,
                    seq: 0,
                },
                "p2pnic::Mailbox::inner"
            ),
        })
    }

    /// Resets the device, lets it reach memory, and gives it a mailbox.
    pub(crate) fn start(&self, pdev: &pci::Device<Core<'_>>) -> Result {
        // Not under the lock, which is taken where memory is reclaimed.
        let bound: &pci::Device<Bound> = pdev;
        let memory = Memory::zeroed(bound.as_ref(), GFP_KERNEL)?;
        let mut inner = self.inner.lock();
        self.reset()?;
        // Not before: what the device was at has ended.
        pdev.set_master();
        let address = regs::MAILBOX_ADDR::from(memory.dma_address());
        self.bar
            .try_access()
            .ok_or(ENODEV)?
            .try_write_reg(address)?;
        inner.state = State::Running(memory);
        self.failed.store(false, Relaxed);
        Ok(())
    }

    /// Stops the device for good: no DMA of it is in flight afterwards.
    pub(crate) fn stop(&self, pdev: &pci::Device<Bound>) {
        let mut inner = self.inner.lock();
        // What did not start is no bus master, and nobody waits for its reset once more.
        if !matches!(inner.state, State::Unbound) {
            // If that fails, what follows stops the DMA.
            if let Err(error) = self.reset() {
                self.log_reset(error);
            }
        }
        pdev.config_space()
            .update(regs::PCI_COMMAND, |command| command.with_bus_master(false));
        inner.state = State::Unbound;
    }

    /// The interrupt handler's part.
    pub(crate) fn answered(&self) {
        self.answered.raise();
    }

    /// Whether commands fail from now on.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// `EIO`: the device was stopped because it did not obey. `ENODEV`: it is off the bus, or the
    /// driver is unbound.
    pub(crate) fn check(&self) -> Result {
        self.inner.lock().state.check()
    }

    /// Has the device execute a command.
    ///
    /// `EIO`: it refused, or was stopped before. `ETIMEDOUT`: it did not answer, and was stopped.
    /// `ENODEV`: it is off the bus, or the driver is unbound and the device stopped.
    pub(crate) fn submit(&self, command: Command) -> Result {
        let mut inner = self.inner.lock();
        let Inner { state, seq } = &mut *inner;
        let State::Running(memory) = state else {
            return state.check();
        };
        *seq = seq.wrapping_add(1);
        let error = match self.execute(memory, command, *seq) {
            Ok(0) => return Ok(()),
            Ok(_) if !command.must_work() => return Err(EIO),
            Ok(status) => {
                dev_err!(self.pdev, "command refused with {}: stopped\n", status);
                EIO
            }
            Err(error) => {
                dev_err!(self.pdev, "command failed ({:?}): stopped\n", error);
                error
            }
        };
        Err(self.fail(state, error))
    }

    /// Returns the answer's status.
    fn execute(&self, memory: &Memory, command: Command, seq: u32) -> Result<u32> {
        let encoded = command.encode();
        io_write!(memory, [build: 0], word(encoded.opcode, seq));
        io_write!(memory, [build: 1], word(encoded.index, encoded.arg32));
        let [first, second, third] = encoded.args;
        io_write!(memory, [build: 2], first.to_le());
        io_write!(memory, [build: 3], second.to_le());
        io_write!(memory, [build: 4], third.to_le());

        let start = Instant::<Monotonic>::now();
        self.bar
            .try_access()
            .ok_or(ENODEV)?
            .write_reg(regs::MAILBOX_DOORBELL::from(1));
        loop {
            let seen = self.answered.count();
            if let Some(status) = answer(memory, seq) {
                // What the device wrote before its answer is read after it.
                dma_mb(Read);
                return Ok(status);
            }
            if start.elapsed() > self.answer_timeout.get() {
                return Err(ETIMEDOUT);
            }
            // Not interruptible: the caller gives memory back, or must know what the device has.
            match self.answered.wait(seen, Self::LOOK_MS) {
                Wake::Raised => (),
                Wake::Interrupted => fsleep(Self::POLL_US),
                // A device that is off the bus never answers.
                Wake::TimedOut => {
                    self.status()?;
                }
            }
        }
    }

    /// Stops the device after `error`. Returns what the caller is told.
    fn fail(&self, state: &mut State, error: Error) -> Error {
        let (now, later) = match self.reset() {
            Ok(()) => (error, EIO),
            Err(reset_error) => {
                self.log_reset(reset_error);
                (reset_error, reset_error)
            }
        };
        if let State::Running(memory) = core::mem::replace(state, State::Unbound) {
            *state = State::Failed {
                _memory: memory,
                error: later,
            };
        }
        self.failed.store(true, Relaxed);
        now
    }

    fn log_reset(&self, error: Error) {
        if error == ENODEV {
            dev_warn!(self.pdev, "off the bus\n");
        } else {
            dev_err!(self.pdev, "reset failed: {:?}\n", error);
        }
    }

    /// `ENODEV`: the device is off the bus.
    fn status(&self) -> Result<regs::STATUS> {
        let status = self.bar.try_access().ok_or(ENODEV)?.read(regs::STATUS);
        if u32::from(status) == regs::ALL_ONES {
            return Err(ENODEV);
        }
        Ok(status)
    }

    /// Resets the device and waits until no DMA is in flight. `ETIMEDOUT`: there may be some.
    /// `ENODEV`: the device is off the bus.
    fn reset(&self) -> Result {
        let control = regs::CONTROL::zeroed().with_reset(true);
        self.bar.try_access().ok_or(ENODEV)?.write_reg(control);
        let start = Instant::<Monotonic>::now();
        loop {
            let status = self.status()?;
            if status.ready() && !status.resetting() {
                return Ok(());
            }
            if start.elapsed() > self.reset_timeout.get() {
                return Err(ETIMEDOUT);
            }
            fsleep(Self::RESET_POLL_US);
        }
    }
}

/// Two 32-bit fields as one 64-bit word.
fn word(low: u32, high: u32) -> u64 {
    (u64::from(low) | u64::from(high) << 32).to_le()
}

/// The status, if the answer to command `seq` is there. SEQ is written last, and one load reads
/// both.
fn answer(memory: &Memory, seq: u32) -> Option<u32> {
    let [s0, s1, s2, s3, status @ ..] = io_read!(memory, [build: ANSWER]).to_ne_bytes();
    (u32::from_le_bytes([s0, s1, s2, s3]) == seq).then_some(u32::from_le_bytes(status))
}
