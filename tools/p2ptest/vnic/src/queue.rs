// SPDX-License-Identifier: GPL-2.0

//! Queue pairs: their rings, the entries' layouts, and what state a pair is in.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar};

use crate::message::Request;
use crate::regs;

/// Reads a little-endian field; the offsets are constants inside the array.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

/// As [`le32`], 64 bits.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

/// A send-queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendEntry {
    /// [`regs::WRITE`], [`regs::READ`], [`regs::SEND`] or anything else.
    pub opcode: u32,
    /// Returned in the completion.
    pub id: u64,
    /// Key at this end.
    pub local_key: u32,
    /// Key at the other end.
    pub remote_key: u32,
    /// Bytes from the start of the local region.
    pub local_offset: u64,
    /// Bytes from the start of the remote region.
    pub remote_offset: u64,
    /// Bytes.
    pub length: u64,
    /// All reserved fields, and those that the opcode does not use, are zero.
    pub clean: bool,
}

impl SendEntry {
    /// Never fails: software writes what it likes.
    pub fn decode(b: &[u8; regs::SEND_ENTRY_BYTES]) -> Self {
        let mut entry = SendEntry {
            opcode: le32(b, 0),
            id: le64(b, 8),
            local_key: le32(b, 0x10),
            remote_key: le32(b, 0x14),
            local_offset: le64(b, 0x18),
            remote_offset: le64(b, 0x20),
            length: le64(b, 0x28),
            clean: le32(b, 4) == 0 && b[0x30..].iter().all(|&x| x == 0),
        };
        if entry.opcode == regs::SEND {
            entry.clean &= entry.remote_key == 0 && entry.remote_offset == 0;
        }
        entry
    }
}

/// A receive-queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvEntry {
    /// Returned in the completion.
    pub id: u64,
    /// Key of the region that takes the message.
    pub key: u32,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Room in bytes.
    pub length: u64,
    /// The reserved field is zero.
    pub clean: bool,
}

impl RecvEntry {
    /// Never fails: software writes what it likes.
    pub fn decode(b: &[u8; regs::RECV_ENTRY_BYTES]) -> Self {
        RecvEntry {
            id: le64(b, 0),
            key: le32(b, 8),
            clean: le32(b, 0xc) == 0,
            offset: le64(b, 0x10),
            length: le64(b, 0x18),
        }
    }
}

/// A completion, but for its GENERATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// That of the entry.
    pub id: u64,
    /// [`regs::OK`] or a completion error.
    pub status: u32,
    /// That of the entry; [`regs::RECV`] for a receive entry.
    pub opcode: u32,
    /// Bytes moved.
    pub length: u64,
}

impl Completion {
    /// The entry as memory holds it.
    pub fn encode(&self, qp: u32, generation: u32) -> [u8; regs::COMPLETION_BYTES] {
        let mut b = [0; regs::COMPLETION_BYTES];
        b[0..8].copy_from_slice(&self.id.to_le_bytes());
        b[8..12].copy_from_slice(&self.status.to_le_bytes());
        b[12..16].copy_from_slice(&self.opcode.to_le_bytes());
        b[16..24].copy_from_slice(&self.length.to_le_bytes());
        b[24..28].copy_from_slice(&qp.to_le_bytes());
        b[28..32].copy_from_slice(&generation.to_le_bytes());
        b
    }
}

/// A power-of-two array of entries in guest memory with free-running counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// DMA address.
    pub base: u64,
    /// log2 of the entries, at most 16.
    pub log2: u32,
    /// Counter of the consumer.
    pub head: u32,
    /// Counter of the producer.
    pub tail: u32,
}

impl Ring {
    /// An empty ring; `None` if it is unaligned or runs past the end of the address space.
    pub fn new(base: u64, log2: u32, entry: usize) -> Option<Ring> {
        let bytes = (entry as u64) << log2;
        let ring = Ring {
            base,
            log2,
            head: 0,
            tail: 0,
        };
        (base.is_multiple_of(regs::QUEUE_ALIGN) && base.checked_add(bytes).is_some())
            .then_some(ring)
    }

    /// Number of entries.
    pub fn size(&self) -> u32 {
        1 << self.log2
    }

    /// Entries between head and tail; more than the size if the other side lied.
    pub fn used(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Room for the producer.
    pub fn has_room(&self) -> bool {
        self.used() < self.size()
    }

    /// DMA address of the entry of a counter.
    pub fn place(&self, counter: u32, entry: usize) -> u64 {
        self.base + u64::from(counter & (self.size() - 1)) * entry as u64
    }

    /// GENERATION of the entry of a producer's counter: never 0, also after the counter wraps.
    pub fn generation(&self, counter: u32) -> u32 {
        1 + (counter >> self.log2)
    }

    /// Takes a consumer's new tail; `false` if it is more than the ring ahead.
    pub fn accept_tail(&mut self, tail: u32) -> bool {
        let good = tail.wrapping_sub(self.head) <= self.size();
        if good {
            self.tail = tail;
        }
        good
    }
}

/// Where a queue pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Created.
    Idle,
    /// QP_CONNECT was done at this end.
    Connecting(u32),
    /// And at the other: requests run.
    Paired(u32),
    /// The other end, or the wire, went away. There is no way back but destroying.
    Broken,
    /// A completion with an error was made.
    Error,
    /// Being destroyed: nothing starts any more.
    Dead,
}

/// A queue pair, named in a way that a later one with the same number does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QpRef {
    pub number: u32,
    pub serial: u64,
}

/// Which of a pair's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Send,
    Recv,
}

/// An answer to a chunk that this end asked for.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u32,
    pub data: Vec<u8>,
}

/// Chunks of a queue pair that may be under way in one direction.
pub(crate) const WINDOW: usize = 8;

#[derive(Debug)]
pub(crate) struct QueuePair {
    pub serial: u64,
    pub phase: Phase,
    pub send: Ring,
    pub recv: Ring,
    pub cq: Ring,
    /// DMAs in flight; the pair is not removed while there are any.
    pub in_flight: u32,
    /// Wakes both of its threads.
    pub wake: Arc<Condvar>,
    /// Number of the next chunk to ask for.
    pub next_asked: u32,
    /// Number of the next answer to come.
    pub next_answer: u32,
    /// Bytes that each answer to come must bring.
    pub expected: VecDeque<usize>,
    pub answers: VecDeque<Reply>,
    /// The other end refused the request under way.
    pub refused_by_peer: Option<u32>,
    /// Number of the next chunk that the other end asks for.
    pub next_request: u32,
    /// Chunks to execute, with their numbers.
    pub requests: VecDeque<(u32, Request)>,
    /// A request of the other end was refused: what follows it is dropped.
    pub refusing: bool,
    /// The receive entry that a refused request took is about to complete with its own status, even
    /// if the other end, which knows of it, leaves first.
    pub receiving: bool,
}

impl QueuePair {
    pub fn new(serial: u64, send: Ring, recv: Ring, cq: Ring) -> Self {
        QueuePair {
            serial,
            phase: Phase::Idle,
            send,
            recv,
            cq,
            in_flight: 0,
            wake: Arc::new(Condvar::new()),
            next_asked: 0,
            next_answer: 0,
            expected: VecDeque::new(),
            answers: VecDeque::new(),
            refused_by_peer: None,
            next_request: 0,
            requests: VecDeque::new(),
            refusing: false,
            receiving: false,
        }
    }

    pub fn ring(&mut self, which: Which) -> &mut Ring {
        match which {
            Which::Send => &mut self.send,
            Which::Recv => &mut self.recv,
        }
    }

    /// The pair takes no part in the wire any more.
    pub fn leave(&mut self, phase: Phase) {
        self.phase = phase;
        self.requests.clear();
        self.wake.notify_all();
    }

    pub fn paired(&self) -> Option<u32> {
        match self.phase {
            Phase::Paired(peer) => Some(peer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_wrap_and_refuse_lies() {
        let mut ring = Ring::new(0x1000, 2, 64).unwrap();
        assert!(!ring.accept_tail(5));
        assert!(ring.accept_tail(4));
        assert!(!ring.has_room());
        ring.head = u32::MAX;
        ring.tail = u32::MAX;
        assert!(ring.accept_tail(3));
        assert_eq!(ring.used(), 4);
        assert_eq!(ring.place(u32::MAX, 64), 0x1000 + 3 * 64);
        assert_eq!(ring.generation(0), 1);
        assert_eq!(ring.generation(5), 2);
        assert!(Ring::new(0x800, 2, 64).is_none());
        assert!(Ring::new(!0xfff, 12, 64).is_none());
    }
}
