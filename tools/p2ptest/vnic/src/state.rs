// SPDX-License-Identifier: GPL-2.0

//! What all threads of the device share, under one lock that is never held during a DMA: so a
//! region handler may take it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::counters::Counters;
use crate::events::EventQueue;
use crate::inject::{Injector, What};
use crate::link::Link;
use crate::queue::{Phase, QpRef, QueuePair};
use crate::region::{RegionRef, Regions};

/// Complaints about the guest or the other end that are logged; a hostile one must not fill a disk.
const MAX_COMPLAINTS: u32 = 1000;

/// The device without its bus.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    /// A doorbell of the mailbox, a reset, or the end.
    pub(crate) mailbox: Condvar,
    /// A DMA ended.
    pub(crate) drained: Condvar,
    /// An event, or room for one.
    pub(crate) events: Condvar,
    /// See [`Counters`].
    pub counters: Counters,
    /// See [`Injector`].
    pub injector: Injector,
    complaints: AtomicU32,
}

/// The mailbox as the registers have it.
#[derive(Debug, Default)]
pub(crate) struct MailboxRegisters {
    /// 0: unset.
    pub addr: u64,
    pub rung: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    /// The process ends.
    pub stopping: bool,
    /// A reset waits for the last DMA.
    pub resetting: bool,
    /// DMAs in flight, of any kind.
    pub in_flight: u32,
    pub mailbox: MailboxRegisters,
    pub events: EventQueue,
    pub regions: Regions,
    pub pairs: BTreeMap<u32, QueuePair>,
    pub link: Link,
    pub next_serial: u64,
}

impl State {
    /// The same queue pair as before, unless it is being destroyed.
    pub fn pair(&mut self, name: QpRef) -> Option<&mut QueuePair> {
        self.pairs
            .get_mut(&name.number)
            .filter(|qp| qp.serial == name.serial && qp.phase != Phase::Dead)
    }

    /// Wakes the threads of all queue pairs: a region changed.
    pub fn wake_pairs(&self) {
        for qp in self.pairs.values() {
            qp.wake.notify_all();
        }
    }

    /// First half of a reset: nothing starts any more.
    pub fn begin_reset(&mut self) {
        self.resetting = true;
        self.mailbox = MailboxRegisters::default();
        self.events = EventQueue::default();
        self.regions.kill_all();
        for number in self.pairs.keys().copied().collect::<Vec<_>>() {
            self.leave(number, Phase::Dead);
        }
        self.sever();
    }
}

/// A DMA in flight; nothing that it uses goes away before it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    pair: Option<u32>,
    region: Option<RegionRef>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.in_flight -= 1;
        if let Some(qp) = self.pair.and_then(|number| state.pairs.get_mut(&number)) {
            qp.in_flight -= 1;
        }
        if let Some(region) = self.region.and_then(|name| state.regions.any(name)) {
            region.in_flight -= 1;
        }
        self.shared.drained.notify_all();
    }
}

/// A request that has begun at a region and not ended.
#[derive(Debug)]
pub(crate) struct Touch {
    shared: Arc<Shared>,
    region: RegionRef,
}

impl Drop for Touch {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(region) = state.regions.any(self.region) {
            region.active -= 1;
        }
    }
}

impl Shared {
    /// A device after power on.
    pub(crate) fn new(link: Link) -> Arc<Shared> {
        let state = State {
            stopping: false,
            resetting: false,
            in_flight: 0,
            mailbox: MailboxRegisters::default(),
            events: EventQueue::default(),
            regions: Regions::default(),
            pairs: BTreeMap::new(),
            link,
            next_serial: 0,
        };
        Arc::new(Shared {
            state: Mutex::new(state),
            mailbox: Condvar::new(),
            drained: Condvar::new(),
            events: Condvar::new(),
            counters: Counters::default(),
            injector: Injector::default(),
            complaints: AtomicU32::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(
        &self,
        condvar: &Condvar,
        state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        condvar.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_for<'a>(
        &self,
        condvar: &Condvar,
        state: MutexGuard<'a, State>,
        time: Duration,
    ) -> MutexGuard<'a, State> {
        condvar
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Counts a DMA in, on behalf of a queue pair and of a region if named.
    pub(crate) fn start_dma(
        self: &Arc<Self>,
        state: &mut State,
        pair: Option<QpRef>,
        region: Option<RegionRef>,
    ) -> InFlight {
        state.in_flight += 1;
        let pair = pair.and_then(|name| {
            state.pair(name)?.in_flight += 1;
            Some(name.number)
        });
        let region = region.and_then(|name| {
            state.regions.any(name)?.in_flight += 1;
            Some(name)
        });
        InFlight {
            shared: Arc::clone(self),
            pair,
            region,
        }
    }

    /// Counts a request in at a region.
    pub(crate) fn touch(self: &Arc<Self>, state: &mut State, region: RegionRef) -> Option<Touch> {
        state.regions.live(region)?.active += 1;
        Some(Touch {
            shared: Arc::clone(self),
            region,
        })
    }

    /// Logs what the guest or the other end did wrong.
    pub(crate) fn complain(&self, what: fmt::Arguments<'_>) {
        let n = self.complaints.fetch_add(1, Ordering::Relaxed);
        if n < MAX_COMPLAINTS {
            log::warn!("{what}");
        } else if n == MAX_COMPLAINTS {
            log::warn!("more complaints are not logged");
        } else {
            // Keeps the count from wrapping to where it would log again.
            self.complaints.store(MAX_COMPLAINTS + 1, Ordering::Relaxed);
        }
    }

    /// Sets a rule of fault injection, see [`Injector::set`]. A reset that it held up goes on.
    pub fn inject(&self, what: What, count: u64, micros: u64) {
        self.injector.set(what, count, micros);
        // Who waits looks under the lock.
        let _state = self.lock();
        self.drained.notify_all();
    }

    /// Ends all threads of the device, as soon as they are out of a DMA.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.begin_reset();
        self.mailbox.notify_all();
        self.drained.notify_all();
        self.events.notify_all();
    }
}
