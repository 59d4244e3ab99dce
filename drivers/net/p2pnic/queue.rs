// SPDX-License-Identifier: GPL-2.0

//! Queue pairs: requests out, completions in.

use crate::{
    mailbox::{
        Command,
        Mailbox,
        Queues, //
    },
    regs::{
        self,
        Bar, //
    },
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        register::Array,
        Io, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Full,
            Relaxed, //
        },
        barrier::{
            dma_mb,
            Read, //
        },
        lock::mutex::MutexBackend,
        lock::Guard,
        Arc,
        Mutex, //
    }, //
};

/// What a queue pair is; it does not change.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Number in the device.
    pub(crate) number: u32,
    /// Tells it from others that had the number.
    pub(crate) serial: u64,
    /// The open file that made it.
    pub(crate) owner: u64,
    /// Entries of the send queue: a power of two from 4 to 2048.
    pub(crate) send_entries: u32,
    /// Entries of the receive queue, likewise.
    pub(crate) recv_entries: u32,
}

/// A request for the send queue.
pub(crate) struct Request {
    pub(crate) opcode: u32,
    pub(crate) id: u64,
    pub(crate) local_key: u32,
    pub(crate) remote_key: u32,
    pub(crate) local_offset: u64,
    pub(crate) remote_offset: u64,
    pub(crate) size: u64,
}

/// Room for a message, for the receive queue.
pub(crate) struct Room {
    pub(crate) id: u64,
    pub(crate) local_key: u32,
    pub(crate) local_offset: u64,
    pub(crate) size: u64,
}

/// What the device says about a request. Nothing in it is checked.
pub(crate) struct Completion {
    pub(crate) id: u64,
    pub(crate) status: u32,
    pub(crate) opcode: u32,
    pub(crate) size: u64,
}

/// A queue that we fill with entries of `N` 64-bit words. Counters are free running.
struct Ring<const N: usize> {
    memory: Coherent<[[u64; N]]>,
    size: u32,
    tail: u32,
}

impl<const N: usize> Ring<N> {
    fn new(dev: &Device<Bound>, size: u32) -> Result<Self> {
        Ok(Self {
            memory: Coherent::zeroed_slice(dev, usize::try_from(size)?, GFP_KERNEL)?,
            size,
            tail: 0,
        })
    }

    /// Writes an entry and returns the new tail. `EAGAIN`: `done` leaves no room.
    fn push(&mut self, entry: [u64; N], done: u32) -> Result<u32>
    where
        [u64; N]: IntoBytes,
    {
        if self.tail.wrapping_sub(done) >= self.size {
            return Err(EAGAIN);
        }
        let place = usize::try_from(self.tail & (self.size - 1))?;
        io_project!(self.memory, [try: place]).copy_write(entry.map(u64::to_le));
        self.tail = self.tail.wrapping_add(1);
        Ok(self.tail)
    }
}

/// The completions that have not been consumed.
pub(crate) struct Completions {
    memory: Coherent<[[u32; 8]]>,
    size: u32,
    head: u32,
}

impl Completions {
    /// The word of a completion that holds its generation.
    const GENERATION: usize = 7;

    /// Completions consumed, free running.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// The completion `ahead` of the head, if the device has written it.
    pub(crate) fn peek(&self, ahead: u32) -> Result<Option<Completion>> {
        if ahead >= self.size {
            return Ok(None);
        }
        let index = self.head.wrapping_add(ahead);
        let place = usize::try_from(index & (self.size - 1))?;
        let entry = io_project!(self.memory, [try: place]);
        let generation = u32::from_le(io_read!(entry, [build: Self::GENERATION]));
        let lap = index.checked_div(self.size).ok_or(EINVAL)?;
        if generation != lap.wrapping_add(1) {
            return Ok(None);
        }
        // GENERATION was written last.
        dma_mb(Read);
        let [id0, id1, status, opcode, size0, size1, ..] = entry.copy_read().map(u32::from_le);
        Ok(Some(Completion {
            id: long(id0, id1),
            status,
            opcode,
            size: long(size0, size1),
        }))
    }
}

/// A queue pair.
#[pin_data]
pub(crate) struct QueuePair {
    shape: Shape,
    mailbox: Arc<Mailbox>,
    /// The device knows the queue pair: its number is not somebody else's. Looked at under the lock
    /// of what is then used, each of which [`Self::destroy`] takes once after clearing it.
    alive: AtomicFlag,
    #[pin]
    connected: Mutex<bool>,
    #[pin]
    send: Mutex<Ring<8>>,
    #[pin]
    recv: Mutex<Ring<4>>,
    #[pin]
    completions: Mutex<Completions>,
    /// Requests whose completions were consumed, free running.
    send_done: Atomic<u32>,
    /// Receive entries whose completions were consumed, free running.
    recv_done: Atomic<u32>,
}

impl QueuePair {
    /// Makes a queue pair in the device.
    pub(crate) fn new(
        dev: &Device<Bound>,
        mailbox: Arc<Mailbox>,
        shape: Shape,
    ) -> Result<Arc<Self>> {
        // Room for all that can be posted: the completion queue never overruns.
        let size = shape
            .send_entries
            .checked_add(shape.recv_entries)
            .and_then(u32::checked_next_power_of_two)
            .ok_or(EINVAL)?;
        let send = Ring::new(dev, shape.send_entries)?;
        let recv = Ring::new(dev, shape.recv_entries)?;
        let completions = Completions {
            memory: Coherent::zeroed_slice(dev, usize::try_from(size)?, GFP_KERNEL)?,
            size,
            head: 0,
        };
        let queues = Queues {
            log2: [log2(send.size)?, log2(recv.size)?, log2(size)?],
            address: [
                send.memory.dma_address(),
                recv.memory.dma_address(),
                completions.memory.dma_address(),
            ],
        };
        let this = Arc::pin_init(
            try_pin_init!(Self {
                shape,
                mailbox,
                alive: AtomicFlag::new(true),
                connected <- new_mutex!(false, "p2pnic::QueuePair::connected"),
                send <- new_mutex!(send, "p2pnic::QueuePair::send"),
                recv <- new_mutex!(recv, "p2pnic::QueuePair::recv"),
                completions <- new_mutex!(completions, "p2pnic::QueuePair::completions"),
                send_done: Atomic::new(0),
                recv_done: Atomic::new(0),
            }? Error),
            GFP_KERNEL,
        )?;
        // On an error the device is stopped or has no such queue pair: the memory can go.
        this.mailbox.submit(Command::CreateQueuePair {
            number: shape.number,
            queues,
        })?;
        Ok(this)
    }

    /// What the queue pair is.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// `ENOENT`, if it has been destroyed.
    fn check_alive(&self) -> Result {
        self.alive.load(Relaxed).then_some(()).ok_or(ENOENT)
    }

    /// Names the queue pair at the other end. `EISCONN`: it has been named.
    pub(crate) fn connect(&self, remote: u32) -> Result {
        let mut connected = self.connected.lock();
        self.check_alive()?;
        if *connected {
            return Err(EISCONN);
        }
        self.mailbox.submit(Command::ConnectQueuePair {
            number: self.shape.number,
            remote,
        })?;
        *connected = true;
        Ok(())
    }

    /// Posts a request. `EAGAIN`: the queue is full.
    pub(crate) fn post_send(&self, bar: &Bar<'_>, request: &Request) -> Result {
        let entry = [
            u64::from(request.opcode),
            request.id,
            long(request.local_key, request.remote_key),
            request.local_offset,
            request.remote_offset,
            request.size,
            0,
            0,
        ];
        let mut send = self.send.lock();
        self.check_alive()?;
        let tail = send.push(entry, self.send_done.load(Relaxed))?;
        let doorbell = regs::SEND_TAIL::try_at(self.index()?).ok_or(EINVAL)?;
        bar.try_write(doorbell, tail.into())
    }

    /// Posts room for a message. `EAGAIN`: the queue is full.
    pub(crate) fn post_recv(&self, bar: &Bar<'_>, room: &Room) -> Result {
        let entry = [
            room.id,
            u64::from(room.local_key),
            room.local_offset,
            room.size,
        ];
        let mut recv = self.recv.lock();
        self.check_alive()?;
        let tail = recv.push(entry, self.recv_done.load(Relaxed))?;
        let doorbell = regs::RECV_TAIL::try_at(self.index()?).ok_or(EINVAL)?;
        bar.try_write(doorbell, tail.into())
    }

    /// Locks the completions, to look at them and then [`Self::consume`] some. `ENOENT`: the queue
    /// pair has been destroyed.
    pub(crate) fn completions(&self) -> Result<Guard<'_, Completions, MutexBackend>> {
        let completions = self.completions.lock();
        self.check_alive()?;
        Ok(completions)
    }

    /// Tells the device, and the send and receive queue, that the first completions were consumed:
    /// `sent` of requests and `received` of receive entries.
    pub(crate) fn consume(
        &self,
        bar: &Bar<'_>,
        completions: &mut Completions,
        sent: u32,
        received: u32,
    ) -> Result {
        let count = sent.wrapping_add(received);
        completions.head = completions.head.wrapping_add(count);
        self.send_done.fetch_add(sent, Relaxed);
        self.recv_done.fetch_add(received, Relaxed);
        let doorbell = regs::CQ_HEAD::try_at(self.index()?).ok_or(EINVAL)?;
        bar.try_write(doorbell, completions.head.into())
    }

    /// Makes the device forget the queue pair.
    pub(crate) fn destroy(&self) {
        if self.alive.xchg(false, Full) {
            // Whoever saw the flag set is through with the doorbells after this.
            drop(self.connected.lock());
            drop(self.send.lock());
            drop(self.recv.lock());
            drop(self.completions.lock());
            // On an error the device has been stopped: it does no DMA either way.
            let _ = self.mailbox.submit(Command::DestroyQueuePair {
                number: self.shape.number,
            });
        }
    }

    fn index(&self) -> Result<usize> {
        Ok(usize::try_from(self.shape.number)?)
    }
}

/// Two 32-bit fields as one 64-bit field.
fn long(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn log2(size: u32) -> Result<u8> {
    Ok(u8::try_from(size.checked_ilog2().ok_or(EINVAL)?)?)
}
