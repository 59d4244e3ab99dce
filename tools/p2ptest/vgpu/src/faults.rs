// SPDX-License-Identifier: GPL-2.0

//! The fault log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::regs::{FAULT_LOG, FAULT_SIZE_SHIFT, FAULT_SLOT_SHIFT, FAULT_WRITE_SHIFT, FaultKind};
use crate::sync::{Bell, lock};

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// Whether the access wrote.
    pub write: bool,
    /// Size of the access in bytes, 0 where there was none.
    pub size: u16,
    /// The slot.
    pub slot: u32,
    /// By kind: an aperture offset or a page-table entry.
    pub addr: u64,
}

impl Fault {
    /// The entry as FAULT_INFO shows it.
    pub fn info(&self) -> u64 {
        self.kind as u64
            | u64::from(self.write) << FAULT_WRITE_SHIFT
            | u64::from(self.size) << FAULT_SIZE_SHIFT
            | u64::from(self.slot) << FAULT_SLOT_SHIFT
    }
}

#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Fault>,
    count: u32,
}

/// The log: the oldest entries that fit, and a count of all.
#[derive(Debug)]
pub struct Faults {
    log: Mutex<Log>,
    bell: Arc<Bell>,
}

impl Faults {
    /// An empty log that rings `bell` for each new entry.
    pub fn new(bell: Arc<Bell>) -> Self {
        Self {
            log: Mutex::default(),
            bell,
        }
    }

    /// Logs a fault; it is only counted when the log is full.
    pub fn push(&self, fault: Fault) {
        let mut log = lock(&self.log);
        log.count = log.count.wrapping_add(1);
        if log.entries.len() < FAULT_LOG {
            log::debug!("fault {fault:x?}");
            log.entries.push_back(fault);
            drop(log);
            self.bell.fault();
        }
    }

    /// The oldest entry.
    pub fn oldest(&self) -> Option<Fault> {
        lock(&self.log).entries.front().copied()
    }

    /// Drops the oldest entry.
    pub fn ack(&self) {
        lock(&self.log).entries.pop_front();
    }

    /// Faults since power on.
    pub fn count(&self) -> u32 {
        lock(&self.log).count
    }

    /// Drops all entries.
    pub fn clear(&self) {
        lock(&self.log).entries.clear();
    }

    /// An empty log that has counted nothing.
    pub fn power_on(&self) {
        *lock(&self.log) = Log::default();
    }

    /// A copy of the log.
    pub fn entries(&self) -> Vec<Fault> {
        lock(&self.log).entries.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(slot: u32) -> Fault {
        Fault {
            kind: FaultKind::InvalidSlot,
            write: true,
            size: 8,
            slot,
            addr: 0x1000,
        }
    }

    #[test]
    fn a_full_log_keeps_the_oldest_and_counts_on() {
        let faults = Faults::new(Arc::default());
        for slot in 0..100 {
            faults.push(fault(slot));
        }
        assert_eq!(faults.count(), 100);
        assert_eq!(faults.entries().len(), FAULT_LOG);
        assert_eq!(faults.oldest().unwrap().slot, 0);
        faults.ack();
        assert_eq!(faults.oldest().unwrap().slot, 1);
        faults.clear();
        assert_eq!((faults.oldest(), faults.count()), (None, 100));
    }

    #[test]
    fn info_packs_kind_write_size_and_slot() {
        assert_eq!(fault(0x1234).info(), 0x0000_1234_0008_0101);
    }
}
