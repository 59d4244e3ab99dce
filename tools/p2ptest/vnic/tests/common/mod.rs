// SPDX-License-Identifier: GPL-2.0

//! A fake machine for the NIC: memory, a peer with posted writes, interrupts, and a small driver.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod step;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use p2p_vfio_user::bus::{Bus, BusError, Interrupts, Target};
use vnic::{Counter, Nic, Registers, regs};

pub const RAM_BYTES: u64 = 32 << 20;
/// Where the peer's BAR begins.
pub const PEER: u64 = 0x10_0000_0000;
pub const PEER_BYTES: u64 = 4 << 20;
/// What a test waits for at most.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Inside {
    ram: Vec<u8>,
    peer: Vec<u8>,
    /// Writes to the peer that have not landed; a read of the peer lands them.
    posted: Vec<(usize, Vec<u8>)>,
    /// DMAs that touch this range wait.
    gate: Option<(u64, u64)>,
    waiting: usize,
    /// DMAs that touch this range are errors of the NIC.
    forbidden: Option<(u64, u64)>,
    violations: usize,
}

/// The fake machine's memory.
#[derive(Default)]
pub struct Memory {
    inside: Mutex<Inside>,
    changed: Condvar,
    vectors: Mutex<[u64; 3]>,
}

fn meets(range: Option<(u64, u64)>, addr: u64, len: usize) -> bool {
    range.is_some_and(|(start, end)| addr < end && start < addr + len as u64)
}

impl Memory {
    fn new() -> Arc<Memory> {
        let memory = Memory::default();
        {
            let mut inside = memory.inside.lock().unwrap();
            inside.ram = vec![0; RAM_BYTES as usize];
            inside.peer = vec![0; PEER_BYTES as usize];
        }
        Arc::new(memory)
    }

    pub fn set_gate(&self, gate: Option<(u64, u64)>) {
        self.inside.lock().unwrap().gate = gate;
        self.changed.notify_all();
    }

    pub fn wait_for_gate(&self) {
        let inside = self.inside.lock().unwrap();
        let (inside, _) = self
            .changed
            .wait_timeout_while(inside, PATIENCE, |i| i.waiting == 0)
            .unwrap();
        assert!(inside.waiting > 0, "no DMA came to the gate");
    }

    pub fn forbid(&self, range: Option<(u64, u64)>) {
        self.inside.lock().unwrap().forbidden = range;
    }

    pub fn violations(&self) -> usize {
        self.inside.lock().unwrap().violations
    }

    pub fn interrupts(&self, vector: u16) -> u64 {
        self.vectors.lock().unwrap()[usize::from(vector)]
    }

    /// What the processor sees: posted writes that are still under way are not there.
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let inside = self.inside.lock().unwrap();
        let (bytes, at) = if addr >= PEER {
            (&inside.peer, (addr - PEER) as usize)
        } else {
            (&inside.ram, addr as usize)
        };
        bytes[at..at + len].to_vec()
    }

    pub fn put(&self, addr: u64, data: &[u8]) {
        let mut inside = self.inside.lock().unwrap();
        let inside = &mut *inside;
        let (bytes, at) = if addr >= PEER {
            (&mut inside.peer, (addr - PEER) as usize)
        } else {
            (&mut inside.ram, addr as usize)
        };
        bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn access(&self, addr: u64, data: Result<&mut [u8], &[u8]>) -> Result<Target, BusError> {
        let len = data.as_ref().map_or_else(|d| d.len(), |d| d.len());
        assert!(len <= regs::CHUNK, "a DMA of {len} bytes");
        let mut inside = self.inside.lock().unwrap();
        let end = addr.checked_add(len as u64).ok_or(BusError::Unmapped)?;
        if meets(inside.gate, addr, len) {
            inside.waiting += 1;
            self.changed.notify_all();
            while meets(inside.gate, addr, len) {
                inside = self.changed.wait(inside).unwrap();
            }
            inside.waiting -= 1;
        }
        if meets(inside.forbidden, addr, len) {
            inside.violations += 1;
        }
        let inside = &mut *inside;
        if end <= RAM_BYTES {
            let range = addr as usize..end as usize;
            match data {
                Ok(data) => data.copy_from_slice(&inside.ram[range]),
                Err(data) => inside.ram[range].copy_from_slice(data),
            }
            Ok(Target::Ram)
        } else if addr >= PEER && end <= PEER + PEER_BYTES {
            let at = (addr - PEER) as usize;
            match data {
                Ok(data) => {
                    for (at, bytes) in inside.posted.drain(..) {
                        inside.peer[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                    data.copy_from_slice(&inside.peer[at..at + len]);
                }
                Err(data) => inside.posted.push((at, data.to_vec())),
            }
            Ok(Target::Peer)
        } else {
            Err(BusError::Unmapped)
        }
    }
}

impl Bus for Memory {
    fn read(&self, addr: u64, data: &mut [u8]) -> Result<Target, BusError> {
        self.access(addr, Ok(data))
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<Target, BusError> {
        self.access(addr, Err(data))
    }
}

impl Interrupts for Memory {
    fn raise(&self, vector: u16) {
        self.vectors.lock().unwrap()[usize::from(vector)] += 1;
    }
}

/// A completion as software reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub id: u64,
    pub status: u32,
    pub opcode: u32,
    pub length: u64,
}

#[derive(Clone, Copy)]
struct Queues {
    send: u64,
    recv: u64,
    cq: u64,
    log2: u32,
    send_tail: u32,
    recv_tail: u32,
    cq_head: u32,
}

/// One side of a request.
#[derive(Clone, Copy)]
pub struct At(pub u32, pub u64);

/// One machine with a NIC and the driver's part.
pub struct Host {
    pub nic: Nic,
    pub regs: Registers,
    pub memory: Arc<Memory>,
    free: u64,
    mailbox: u64,
    seq: u32,
    events: u64,
    event_head: u32,
    queues: Vec<Option<Queues>>,
}

pub const EVENT_LOG2: u32 = 4;

impl Host {
    pub fn new(loopback: bool) -> Host {
        let memory = Memory::new();
        let nic = Nic::start(memory.clone(), memory.clone(), loopback).unwrap();
        let regs = nic.registers();
        let mut host = Host {
            nic,
            regs,
            memory,
            free: 0x1000,
            mailbox: 0,
            seq: 0,
            events: 0,
            event_head: 0,
            queues: vec![None; 64],
        };
        host.mailbox = host.alloc(4096);
        host.events = host.alloc(32 << EVENT_LOG2);
        host.start();
        host
    }

    /// What a driver writes after a reset.
    pub fn start(&mut self) {
        self.write64(regs::MAILBOX_ADDR, self.mailbox);
        self.write64(regs::EVENT_ADDR, self.events);
        self.memory.put(self.events, &[0; 32 << EVENT_LOG2]);
        self.event_head = 0;
        self.write32(regs::EVENT_SIZE, EVENT_LOG2);
    }

    /// Two machines whose NICs are wired.
    pub fn wired() -> (Host, Host) {
        let (a, b) = (Host::new(false), Host::new(false));
        let (left, right) = UnixStream::pair().unwrap();
        a.nic.attach(left).unwrap();
        b.nic.attach(right).unwrap();
        a.until("link", |h| {
            h.read32(regs::STATUS) & regs::STATUS_LINK_UP != 0
        });
        b.until("link", |h| {
            h.read32(regs::STATUS) & regs::STATUS_LINK_UP != 0
        });
        (a, b)
    }

    /// Wired machines whose queue pairs 0 are connected.
    pub fn paired() -> (Host, Host) {
        let (mut a, mut b) = Host::wired();
        for host in [&mut a, &mut b] {
            host.create_qp(0, 4);
            host.connect(0, 0);
        }
        (a, b)
    }

    pub fn alloc(&mut self, len: u64) -> u64 {
        let addr = self.free;
        self.free += len.next_multiple_of(4096);
        assert!(self.free <= RAM_BYTES);
        addr
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut b = [0; 4];
        self.regs.load(offset, &mut b);
        u32::from_le_bytes(b)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut b = [0; 8];
        self.regs.load(offset, &mut b);
        u64::from_le_bytes(b)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.regs.store(offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.regs.store(offset, &value.to_le_bytes());
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.read64(regs::COUNTERS + 8 * counter as u64)
    }

    pub fn until(&self, what: &str, mut good: impl FnMut(&Host) -> bool) {
        let start = Instant::now();
        while !good(self) {
            assert!(start.elapsed() < PATIENCE, "no {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn word(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.memory.get(addr, 4).try_into().unwrap())
    }

    /// Puts a command into the mailbox; see [`Host::answer`].
    pub fn begin(&mut self, opcode: u32, index: u32, arg32: u32, args: &[u64]) {
        self.seq += 1;
        let mut bytes = Vec::new();
        for word in [opcode, self.seq, index, arg32] {
            bytes.extend(word.to_le_bytes());
        }
        for arg in args {
            bytes.extend(arg.to_le_bytes());
        }
        bytes.resize(128, 0);
        self.memory.put(self.mailbox, &bytes);
        self.write32(regs::MAILBOX_DOORBELL, 1);
    }

    pub fn is_answered(&self) -> bool {
        self.word(self.mailbox + regs::ANSWER_SEQ) == self.seq
    }

    pub fn answer(&self) -> u32 {
        self.until("mailbox answer", Host::is_answered);
        self.word(self.mailbox + regs::ANSWER_STATUS)
    }

    pub fn command(&mut self, opcode: u32, index: u32, arg32: u32, args: &[u64]) -> u32 {
        self.begin(opcode, index, arg32, args);
        self.answer()
    }

    pub fn create_region(&mut self, key: u32, access: u32, length: u64) {
        assert_eq!(self.command(regs::MR_CREATE, key, access, &[length]), 0);
    }

    pub fn map(&mut self, key: u32, segments: &[(u64, u64)]) -> u32 {
        let list = self.alloc(segments.len() as u64 * 16);
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|(addr, len)| [addr.to_le_bytes(), len.to_le_bytes()].concat())
            .collect();
        self.memory.put(list, &bytes);
        self.command(regs::MR_MAP, key, segments.len() as u32, &[list])
    }

    /// A valid region of one segment in fresh RAM; its address.
    pub fn region(&mut self, key: u32, access: u32, length: u64) -> u64 {
        let addr = self.alloc(length);
        self.region_at(key, access, addr, length);
        addr
    }

    pub fn region_at(&mut self, key: u32, access: u32, addr: u64, length: u64) {
        self.create_region(key, access, length);
        assert_eq!(self.map(key, &[(addr, length)]), 0);
    }

    pub fn create_qp(&mut self, qp: u32, log2: u32) {
        let mut q = Queues {
            send: self.alloc(64 << log2),
            recv: self.alloc(32 << log2),
            cq: self.alloc(32 << log2),
            log2,
            send_tail: 0,
            recv_tail: 0,
            cq_head: 0,
        };
        q.cq_head = 0;
        let sizes = log2 | log2 << 8 | log2 << 16;
        let queues = [q.send, q.recv, q.cq];
        assert_eq!(self.command(regs::QP_CREATE, qp, sizes, &queues), 0);
        self.queues[qp as usize] = Some(q);
    }

    pub fn connect(&mut self, qp: u32, peer: u32) {
        assert_eq!(self.command(regs::QP_CONNECT, qp, peer, &[]), 0);
    }

    pub fn doorbell(&self, qp: u32, field: u64, value: u32) {
        self.write32(
            regs::DOORBELLS + u64::from(qp) * regs::DOORBELL_STRIDE + field,
            value,
        );
    }

    pub fn post_raw(&mut self, qp: u32, entry: &[u8; 64]) {
        let q = self.queues[qp as usize].as_mut().unwrap();
        let place = q.send + u64::from(q.send_tail & ((1 << q.log2) - 1)) * 64;
        q.send_tail = q.send_tail.wrapping_add(1);
        let tail = q.send_tail;
        self.memory.put(place, entry);
        self.doorbell(qp, regs::SEND_TAIL, tail);
    }

    pub fn post(&mut self, qp: u32, opcode: u32, id: u64, local: At, remote: At, length: u64) {
        let mut e = [0; 64];
        e[0..4].copy_from_slice(&opcode.to_le_bytes());
        e[8..16].copy_from_slice(&id.to_le_bytes());
        e[16..20].copy_from_slice(&local.0.to_le_bytes());
        e[20..24].copy_from_slice(&remote.0.to_le_bytes());
        e[24..32].copy_from_slice(&local.1.to_le_bytes());
        e[32..40].copy_from_slice(&remote.1.to_le_bytes());
        e[40..48].copy_from_slice(&length.to_le_bytes());
        self.post_raw(qp, &e);
    }

    pub fn post_recv(&mut self, qp: u32, id: u64, local: At, length: u64) {
        let mut e = [0; 32];
        e[0..8].copy_from_slice(&id.to_le_bytes());
        e[8..12].copy_from_slice(&local.0.to_le_bytes());
        e[16..24].copy_from_slice(&local.1.to_le_bytes());
        e[24..32].copy_from_slice(&length.to_le_bytes());
        let q = self.queues[qp as usize].as_mut().unwrap();
        let place = q.recv + u64::from(q.recv_tail & ((1 << q.log2) - 1)) * 32;
        q.recv_tail = q.recv_tail.wrapping_add(1);
        let tail = q.recv_tail;
        self.memory.put(place, &e);
        self.doorbell(qp, regs::RECV_TAIL, tail);
    }

    pub fn try_poll(&self, qp: u32) -> Option<Done> {
        let q = self.queues[qp as usize].unwrap();
        let place = q.cq + u64::from(q.cq_head & ((1 << q.log2) - 1)) * 32;
        let b = self.memory.get(place, 32);
        let u32_at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().unwrap());
        let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().unwrap());
        if u32_at(28) != 1 + (q.cq_head >> q.log2) {
            return None;
        }
        assert_eq!(u32_at(24), qp);
        Some(Done {
            id: u64_at(0),
            status: u32_at(8),
            opcode: u32_at(12),
            length: u64_at(16),
        })
    }

    /// The next completion, without telling the device that it is consumed.
    pub fn peek_next(&mut self, qp: u32) -> Done {
        self.until("completion", |h| h.try_poll(qp).is_some());
        let done = self.try_poll(qp).unwrap();
        self.queues[qp as usize].as_mut().unwrap().cq_head += 1;
        done
    }

    pub fn consume(&self, qp: u32) {
        self.doorbell(qp, regs::CQ_HEAD, self.queues[qp as usize].unwrap().cq_head);
    }

    pub fn poll(&mut self, qp: u32) -> Done {
        let done = self.peek_next(qp);
        self.consume(qp);
        done
    }

    pub fn try_event(&self) -> Option<(u32, u64)> {
        let index = self.event_head & ((1 << EVENT_LOG2) - 1);
        let b = self.memory.get(self.events + u64::from(index) * 32, 32);
        let u32_at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().unwrap());
        if u32_at(28) != 1 + (self.event_head >> EVENT_LOG2) {
            return None;
        }
        assert_eq!(u32_at(0), regs::REGION_NEEDED);
        Some((u32_at(4), u64::from_le_bytes(b[8..16].try_into().unwrap())))
    }

    /// The next event's key and offset; `acknowledge` tells the device.
    pub fn event(&mut self, acknowledge: bool) -> (u32, u64) {
        self.until("event", |h| h.try_event().is_some());
        let event = self.try_event().unwrap();
        self.event_head += 1;
        if acknowledge {
            self.write32(regs::EVENT_HEAD, self.event_head);
        }
        event
    }

    pub fn reset(&mut self) {
        self.write32(regs::CONTROL, regs::CONTROL_RESET);
        self.until("end of reset", |h| {
            h.read32(regs::STATUS) & regs::STATUS_RESETTING == 0
        });
        self.start();
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed)
        .collect()
}
