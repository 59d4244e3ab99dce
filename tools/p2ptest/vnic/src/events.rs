// SPDX-License-Identifier: GPL-2.0

//! The event queue: what waits to be told to software, and the thread that writes it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::counters::Counter;
use crate::engine::Engine;
use crate::queue::Ring;
use crate::region::RegionRef;
use crate::regs;

/// A region whose addresses a parked request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub region: RegionRef,
    pub key: u32,
    pub offset: u64,
}

impl Event {
    fn encode(&self, generation: u32) -> [u8; regs::EVENT_BYTES] {
        let mut b = [0; regs::EVENT_BYTES];
        b[0..4].copy_from_slice(&regs::REGION_NEEDED.to_le_bytes());
        b[4..8].copy_from_slice(&self.key.to_le_bytes());
        b[8..16].copy_from_slice(&self.offset.to_le_bytes());
        b[28..32].copy_from_slice(&generation.to_le_bytes());
        b
    }
}

/// The registers of the queue and the events that wait for room.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    pub addr: u64,
    /// `None`: stopped.
    pub ring: Option<Ring>,
    /// At most one a region: see [`Region::asked`](crate::region::Region).
    pub pending: VecDeque<Event>,
}

impl EventQueue {
    /// EVENT_SIZE was written; `false` if neither 0 nor a size.
    pub fn start(&mut self, log2: u32) -> bool {
        if log2 == 0 {
            self.ring = None;
            return true;
        }
        if !regs::EVENT_LOG2.contains(&log2) {
            return false;
        }
        match Ring::new(self.addr, log2, regs::EVENT_BYTES) {
            Some(ring) => self.ring = Some(ring),
            None => return false,
        }
        true
    }

    /// The next event, its place and GENERATION, if there is one and room for it.
    fn take(&mut self) -> Option<(u64, Event, u32)> {
        let ring = self.ring.as_mut().filter(|ring| ring.has_room())?;
        let event = self.pending.pop_front()?;
        let place = ring.place(ring.tail, regs::EVENT_BYTES);
        let generation = ring.generation(ring.tail);
        ring.tail = ring.tail.wrapping_add(1);
        Some((place, event, generation))
    }
}

/// Writes events until the device stops.
pub(crate) fn run(engine: &Arc<Engine>) {
    let mut state = engine.shared.lock();
    loop {
        if state.stopping {
            return;
        }
        let Some((place, event, generation)) = state.events.take() else {
            state = engine.shared.wait(&engine.shared.events, state);
            continue;
        };
        let guard = engine.shared.start_dma(&mut state, None, None);
        drop(state);
        match engine.publish(place, &event.encode(generation)) {
            Ok(()) => {
                engine.shared.counters.add(Counter::Events, 1);
                engine.raise(regs::VECTOR_EVENTS);
            }
            Err(error) => engine
                .shared
                .complain(format_args!("event is lost: {error}")),
        }
        drop(guard);
        state = engine.shared.lock();
    }
}
