// SPDX-License-Identifier: GPL-2.0

//! What the worker threads do to memory: chunks of regions, queue entries, completions.

use std::sync::Arc;
use std::time::Instant;

use p2p_vfio_user::bus::{Bus, BusError, Interrupts, Target};

use crate::counters::Counter;
use crate::events::Event;
use crate::inject::What;
use crate::queue::{Completion, Phase, QpRef, QueuePair, Which};
use crate::region::RegionRef;
use crate::regs;
use crate::state::{InFlight, Shared, State};

/// The device with its bus; only worker threads hold it.
pub(crate) struct Engine {
    pub shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
    interrupts: Arc<dyn Interrupts>,
}

/// Why a request cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It completes with this error.
    Status(u32),
    /// Nobody waits for its end: the queue pair is gone, or off the wire.
    Gone,
}

/// Which of a queue pair's two threads acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Executes the send queue.
    Requester,
    /// Serves the other end.
    Responder,
}

impl Role {
    /// Whether a request may go on.
    pub fn check(self, qp: &QueuePair) -> Result<(), Stop> {
        match (self, qp.phase) {
            (Role::Responder, Phase::Paired(_)) if !qp.refusing => Ok(()),
            (Role::Responder, _) | (Role::Requester, Phase::Dead) => Err(Stop::Gone),
            (Role::Requester, phase) => match (qp.refused_by_peer, phase) {
                (Some(status), _) => Err(Stop::Status(status)),
                (None, Phase::Paired(_)) => Ok(()),
                (None, Phase::Error) => Err(Stop::Status(regs::FLUSHED)),
                (None, _) => Err(Stop::Status(regs::LINK_DOWN)),
            },
        }
    }
}

/// A request's place in one region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub me: QpRef,
    pub role: Role,
    pub region: RegionRef,
    /// Where the request starts in the region.
    pub base: u64,
}

/// The last peer address that a request wrote, and through which mapping. A later mapping needs no
/// read-back of it: MR_INVALIDATE did that, and the address may be another's by now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trail(Option<(u64, u64)>);

/// Part of a region that is free to be accessed while this lives.
struct Chunk {
    pieces: Vec<(u64, usize)>,
    mapping: u64,
    guard: InFlight,
}

impl Engine {
    pub fn new(
        shared: Arc<Shared>,
        bus: Arc<dyn Bus>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Arc<Engine> {
        Arc::new(Engine {
            shared,
            bus,
            interrupts,
        })
    }

    /// Raises a vector, unless fault injection drops it.
    pub fn raise(&self, vector: u16) {
        if self.shared.injector.take(What::DropInterrupt).is_none() {
            self.interrupts.raise(vector);
        }
    }

    /// Reads memory that is not payload. The caller holds an [`InFlight`].
    pub fn read_memory(&self, addr: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.read(addr, data).map(|_| ())
    }

    /// Writes memory that is not payload. The caller holds an [`InFlight`].
    pub fn write_memory(&self, addr: u64, data: &[u8]) -> Result<(), BusError> {
        self.bus.write(addr, data).map(|_| ())
    }

    /// Writes an entry whose last field is its GENERATION, that field last.
    pub fn publish(&self, addr: u64, entry: &[u8; 32]) -> Result<(), BusError> {
        let (body, generation) = entry.split_at(regs::GENERATION);
        self.write_memory(addr, body)?;
        self.write_memory(addr + regs::GENERATION as u64, generation)
    }

    /// Pushes a posted write home.
    pub fn read_back(&self, addr: u64) -> Result<(), BusError> {
        self.read_memory(addr, &mut [0])
    }

    /// The oldest entry of a queue; `None` if the queue pair is gone.
    pub fn fetch<const N: usize>(
        &self,
        me: QpRef,
        which: Which,
    ) -> Option<Result<[u8; N], BusError>> {
        let mut state = self.shared.lock();
        let ring = *state.pair(me)?.ring(which);
        let guard = self.shared.start_dma(&mut state, Some(me), None);
        drop(state);
        let mut entry = [0; N];
        let result = self.read_memory(ring.place(ring.head, N), &mut entry);
        drop(guard);
        Some(result.map(|()| entry))
    }

    /// Takes the oldest entry off a queue and writes its completion. An error, also the one that
    /// the completion queue is full, puts the queue pair into the error state.
    ///
    /// Does nothing where the requester's flushing of the error state will do it: for the responder
    /// when the pair is off the wire, and when a pair in the error state has no room.
    pub fn complete(&self, me: QpRef, role: Role, which: Which, completion: Completion) {
        let mut state = self.shared.lock();
        let Some(qp) = state.pair(me) else { return };
        let had_failed = qp.phase == Phase::Error;
        let full = !qp.cq.has_room();
        let receiving = role == Role::Responder && std::mem::take(&mut qp.receiving);
        if receiving {
            // What is posted behind it can be flushed now.
            qp.wake.notify_all();
        }
        let gone = role == Role::Responder && qp.paired().is_none() && !receiving;
        if gone || (had_failed && full) {
            return;
        }
        let ring = qp.ring(which);
        ring.head = ring.head.wrapping_add(1);
        let cq = qp.cq;
        if !full {
            qp.cq.tail = cq.tail.wrapping_add(1);
        }
        if (full || completion.status != regs::OK) && !had_failed {
            state.leave(me.number, Phase::Error);
        }
        if full {
            drop(state);
            self.shared.complain(format_args!(
                "queue pair {}: completion queue full",
                me.number
            ));
            return;
        }
        let guard = self.shared.start_dma(&mut state, Some(me), None);
        drop(state);
        let entry = completion.encode(me.number, cq.generation(cq.tail));
        match self.publish(cq.place(cq.tail, regs::COMPLETION_BYTES), &entry) {
            Ok(()) => self.raise(regs::VECTOR_COMPLETIONS),
            Err(error) => {
                self.shared.complain(format_args!(
                    "queue pair {}: completion is lost: {error}",
                    me.number
                ));
                let mut state = self.shared.lock();
                if state.pair(me).is_some_and(|qp| qp.phase != Phase::Error) {
                    state.leave(me.number, Phase::Error);
                }
            }
        }
        drop(guard);
    }

    /// Reads `len` bytes at `at` of the request; parks while the region is invalid.
    pub fn read_chunk(&self, span: Span, at: u64, len: usize) -> Result<Vec<u8>, Stop> {
        let mut data = vec![0; len];
        if len == 0 {
            return Ok(data);
        }
        let chunk = self.acquire(span, at, len)?;
        self.disturb()?;
        let mut rest = &mut data[..];
        for &(addr, n) in &chunk.pieces {
            let (piece, tail) = rest.split_at_mut(n);
            let target = self
                .bus
                .read(addr, piece)
                .map_err(|error| self.dma_error(addr, error))?;
            let counter = match target {
                Target::Ram => Counter::RamReadBytes,
                Target::Peer => Counter::PeerReadBytes,
            };
            self.shared.counters.add(counter, n as u64);
            rest = tail;
        }
        drop(chunk.guard);
        Ok(data)
    }

    /// Writes `data` at `at` of the request; parks while the region is invalid. With `last`, what
    /// the request wrote to peers is home on return.
    pub fn write_chunk(
        &self,
        span: Span,
        at: u64,
        data: &[u8],
        trail: &mut Trail,
        last: bool,
    ) -> Result<(), Stop> {
        if data.is_empty() {
            return Ok(());
        }
        let chunk = self.acquire(span, at, data.len())?;
        self.disturb()?;
        let mut result = self.write_pieces(&chunk, data, trail);
        if let Trail(Some((mapping, addr))) = *trail
            && mapping == chunk.mapping
        {
            if let Some(region) = self.shared.lock().regions.any(span.region) {
                region.last_peer = Some(addr);
            }
            if last && result.is_ok() {
                result = self
                    .read_back(addr)
                    .map_err(|error| self.dma_error(addr, error));
            }
        }
        drop(chunk.guard);
        result
    }

    fn write_pieces(&self, chunk: &Chunk, data: &[u8], trail: &mut Trail) -> Result<(), Stop> {
        let mut rest = data;
        for &(addr, n) in &chunk.pieces {
            let (piece, tail) = rest.split_at(n);
            let target = self
                .bus
                .write(addr, piece)
                .map_err(|error| self.dma_error(addr, error))?;
            let counter = match target {
                Target::Ram => Counter::RamWriteBytes,
                Target::Peer => {
                    *trail = Trail(Some((chunk.mapping, addr + n as u64 - 1)));
                    Counter::PeerWriteBytes
                }
            };
            self.shared.counters.add(counter, n as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Pushes home what a request that failed wrote to peers.
    pub fn settle(&self, span: Span, trail: Trail) {
        let Trail(Some((mapping, addr))) = trail else {
            return;
        };
        let mut state = self.shared.lock();
        let current = state
            .regions
            .live(span.region)
            .and_then(|r| r.mapping.as_ref());
        if current.is_none_or(|m| m.id != mapping) || state.pair(span.me).is_none() {
            return;
        }
        let guard = self
            .shared
            .start_dma(&mut state, Some(span.me), Some(span.region));
        drop(state);
        if let Err(error) = self.read_back(addr) {
            self.dma_error(addr, error);
        }
        drop(guard);
    }

    fn dma_error(&self, addr: u64, error: BusError) -> Stop {
        self.shared
            .complain(format_args!("DMA at {addr:#x}: {error}"));
        Stop::Status(regs::DMA_ERROR)
    }

    /// Fault injection while a chunk is in flight.
    fn disturb(&self) -> Result<(), Stop> {
        if let Some(delay) = self.shared.injector.take(What::DelayChunk) {
            std::thread::sleep(delay);
        }
        match self.shared.injector.take(What::DmaError) {
            Some(_) => Err(Stop::Status(regs::DMA_ERROR)),
            None => Ok(()),
        }
    }

    /// Waits until the region is valid and counts a DMA in.
    fn acquire(&self, span: Span, at: u64, len: usize) -> Result<Chunk, Stop> {
        let Span {
            me,
            role,
            region: name,
            base,
        } = span;
        let offset = base
            .checked_add(at)
            .ok_or(Stop::Status(regs::BAD_REQUEST))?;
        let mut parked = false;
        let stalled = self
            .shared
            .injector
            .take(What::Stall)
            .map(|time| Instant::now() + time);
        let mut state = self.shared.lock();
        loop {
            let qp = state.pair(me).ok_or(Stop::Gone)?;
            role.check(qp)?;
            let wake = Arc::clone(&qp.wake);
            let left = stalled.map(|end| end.saturating_duration_since(Instant::now()));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                state = self.shared.wait_for(&wake, state, left);
                continue;
            }
            let region = state
                .regions
                .live(name)
                .ok_or(Stop::Status(regs::REVOKED))?;
            if let Some(mapping) = &region.mapping {
                let (map, mapping) = (Arc::clone(&mapping.map), mapping.id);
                let guard = self.shared.start_dma(&mut state, Some(me), Some(name));
                drop(state);
                if parked {
                    self.shared.counters.add(Counter::Resumed, 1);
                }
                return Ok(Chunk {
                    pieces: map.pieces(offset, len),
                    mapping,
                    guard,
                });
            }
            if !parked {
                parked = true;
                self.shared.counters.add(Counter::Parked, 1);
            }
            self.ask_for(&mut state, name, offset);
            state = self.shared.wait(&wake, state);
        }
    }

    /// One event for each region until its next MR_MAP.
    fn ask_for(&self, state: &mut State, name: RegionRef, offset: u64) {
        let Some(region) = state.regions.live(name).filter(|region| !region.asked) else {
            return;
        };
        region.asked = true;
        let event = Event {
            region: name,
            key: region.key,
            offset,
        };
        state.events.pending.push_back(event);
        self.shared.events.notify_all();
    }
}
