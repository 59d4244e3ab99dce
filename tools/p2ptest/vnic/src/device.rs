// SPDX-License-Identifier: GPL-2.0

//! The registers. No bus in here: a doorbell sets something for a worker thread and wakes it.

use std::sync::Arc;

use p2p_vfio_user::Device;

use crate::counters::{Counter, NAMES};
use crate::queue::Ring;
use crate::regs;
use crate::state::{Shared, State};

/// The device's BAR0, as the guest sees it.
#[derive(Clone, Debug)]
pub struct Registers {
    shared: Arc<Shared>,
}

/// A register of 32 or 64 bits, named by its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Bytes of the register.
    Width(usize),
    /// Nothing is there.
    None,
}

/// A doorbell: the queue pair and the place in its doorbells.
fn doorbell(offset: u64) -> Option<(u32, u64)> {
    let place = offset.checked_sub(regs::DOORBELLS)?;
    let number = u32::try_from(place / regs::DOORBELL_STRIDE).ok()?;
    let field = place % regs::DOORBELL_STRIDE;
    let known = matches!(field, regs::SEND_TAIL | regs::RECV_TAIL | regs::CQ_HEAD);
    (number < regs::MAX_QUEUE_PAIRS_VALUE && known).then_some((number, field))
}

fn counter(offset: u64) -> Option<Counter> {
    let place = offset.checked_sub(regs::COUNTERS)?;
    let index = usize::try_from(place / 8)
        .ok()
        .filter(|_| place.is_multiple_of(8))?;
    NAMES.get(index).map(|(counter, _)| *counter)
}

fn access(offset: u64) -> Access {
    match offset {
        regs::MAILBOX_ADDR | regs::EVENT_ADDR => Access::Width(8),
        regs::ID
        | regs::VERSION
        | regs::FEATURES
        | regs::STATUS
        | regs::MAX_REGIONS
        | regs::MAX_QUEUE_PAIRS
        | regs::MAX_SEGMENTS
        | regs::CONTROL
        | regs::MAILBOX_DOORBELL
        | regs::EVENT_SIZE
        | regs::EVENT_HEAD => Access::Width(4),
        _ if counter(offset).is_some() => Access::Width(8),
        _ if doorbell(offset).is_some() => Access::Width(4),
        _ => Access::None,
    }
}

impl Registers {
    pub(crate) fn new(shared: Arc<Shared>) -> Registers {
        Registers { shared }
    }

    /// A load from BAR0. What is no register, or not accessed at its own size, reads as all ones.
    pub fn load(&self, offset: u64, data: &mut [u8]) {
        self.count(Counter::RegReads, offset);
        data.fill(0xff);
        if access(offset) != Access::Width(data.len()) {
            self.shared
                .complain(format_args!("load of {} bytes at {offset:#x}", data.len()));
            return;
        }
        let value = self.value(offset).to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
    }

    /// A store to BAR0. What is no register, or not accessed at its own size, ignores it.
    pub fn store(&self, offset: u64, data: &[u8]) {
        self.count(Counter::RegWrites, offset);
        let mut value = [0; 8];
        if access(offset) != Access::Width(data.len()) {
            self.shared
                .complain(format_args!("store of {} bytes at {offset:#x}", data.len()));
            return;
        }
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        let mut state = self.shared.lock();
        if !state.resetting && !self.apply(&mut state, offset, value) {
            drop(state);
            self.shared.complain(format_args!(
                "store of {value:#x} at {offset:#x} is ignored"
            ));
        }
    }

    /// Function-level reset or CONTROL.RESET; STATUS.RESETTING tells when it is over.
    pub fn start_reset(&self) {
        self.shared.lock().begin_reset();
        self.shared.mailbox.notify_all();
        // A mailbox command that waits for DMAs is abandoned.
        self.shared.drained.notify_all();
    }

    fn count(&self, counter: Counter, offset: u64) {
        if !(regs::COUNTERS..regs::COUNTERS_END).contains(&offset) {
            self.shared.counters.add(counter, 1);
        }
    }

    fn value(&self, offset: u64) -> u64 {
        if let Some(counter) = counter(offset) {
            return self.shared.counters.get(counter);
        }
        let state = self.shared.lock();
        match offset {
            regs::ID => regs::ID_VALUE.into(),
            regs::VERSION => regs::VERSION_VALUE.into(),
            regs::STATUS => {
                let mut status = regs::STATUS_READY;
                if state.resetting {
                    status |= regs::STATUS_RESETTING;
                }
                if state.link.is_up() {
                    status |= regs::STATUS_LINK_UP;
                }
                status.into()
            }
            regs::MAX_REGIONS => regs::MAX_REGIONS_VALUE.into(),
            regs::MAX_QUEUE_PAIRS => regs::MAX_QUEUE_PAIRS_VALUE.into(),
            regs::MAX_SEGMENTS => regs::MAX_SEGMENTS_VALUE.into(),
            regs::MAILBOX_ADDR => state.mailbox.addr,
            regs::EVENT_ADDR => state.events.addr,
            regs::EVENT_SIZE => state.events.ring.map_or(0, |ring| ring.log2).into(),
            // FEATURES is 0, and so is what can only be written.
            _ => 0,
        }
    }

    /// `false` if the value makes no sense there.
    fn apply(&self, state: &mut State, offset: u64, value: u64) -> bool {
        // Registers of 32 bits hold no more.
        let word = value as u32;
        match offset {
            regs::CONTROL if word & !regs::CONTROL_RESET != 0 => return false,
            regs::CONTROL => {
                if word & regs::CONTROL_RESET != 0 {
                    state.begin_reset();
                    self.shared.mailbox.notify_all();
                    self.shared.drained.notify_all();
                }
            }
            regs::MAILBOX_ADDR if value.is_multiple_of(regs::MAILBOX_ALIGN) => {
                state.mailbox.addr = value;
            }
            regs::MAILBOX_DOORBELL if state.mailbox.addr != 0 => {
                state.mailbox.rung = true;
                self.shared.mailbox.notify_all();
            }
            regs::EVENT_ADDR if value.is_multiple_of(regs::QUEUE_ALIGN) => {
                state.events.addr = value;
            }
            regs::EVENT_SIZE => {
                self.shared.events.notify_all();
                return state.events.start(word);
            }
            regs::EVENT_HEAD => {
                let Some(ring) = &mut state.events.ring else {
                    return false;
                };
                ring.head = word;
                self.shared.events.notify_all();
            }
            _ => {
                return doorbell(offset).is_some_and(|(n, field)| ring_bell(state, n, field, word));
            }
        }
        true
    }
}

fn ring_bell(state: &mut State, number: u32, field: u64, value: u32) -> bool {
    let Some(qp) = state.pairs.get_mut(&number) else {
        return false;
    };
    let good = match field {
        regs::SEND_TAIL => Ring::accept_tail(&mut qp.send, value),
        regs::RECV_TAIL => Ring::accept_tail(&mut qp.recv, value),
        _ => {
            qp.cq.head = value;
            true
        }
    };
    qp.wake.notify_all();
    good
}

impl Device for Registers {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == regs::REGISTER_BAR {
            self.load(offset, data);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == regs::REGISTER_BAR {
            self.store(offset, data);
        }
    }

    fn reset(&mut self) {
        self.start_reset();
    }
}
