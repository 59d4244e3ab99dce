// SPDX-License-Identifier: GPL-2.0

//! The NIC's counters, as the counter registers show them. They only rise.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter; the value is its place in the register window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Loads from BAR0.
    RegReads,
    /// Stores to BAR0.
    RegWrites,
    /// Payload read from other devices.
    PeerReadBytes,
    /// Payload written to other devices.
    PeerWriteBytes,
    /// Payload read from mapped memory.
    RamReadBytes,
    /// Payload written to mapped memory.
    RamWriteBytes,
    /// Requests that parked.
    Parked,
    /// Parked requests that went on.
    Resumed,
    /// MR_INVALIDATE and MR_DESTROY of a valid region.
    Invalidations,
    /// Those that met a DMA in flight or an unfinished request.
    InvalidationsBusy,
    /// Events written.
    Events,
}

/// Every counter with its name in the contract, in register order.
pub const NAMES: [(Counter, &str); 11] = [
    (Counter::RegReads, "REG_READS"),
    (Counter::RegWrites, "REG_WRITES"),
    (Counter::PeerReadBytes, "PEER_READ_BYTES"),
    (Counter::PeerWriteBytes, "PEER_WRITE_BYTES"),
    (Counter::RamReadBytes, "RAM_READ_BYTES"),
    (Counter::RamWriteBytes, "RAM_WRITE_BYTES"),
    (Counter::Parked, "PARKED"),
    (Counter::Resumed, "RESUMED"),
    (Counter::Invalidations, "INVALIDATIONS"),
    (Counter::InvalidationsBusy, "INVALIDATIONS_BUSY"),
    (Counter::Events, "EVENTS"),
];

/// All counters, from power on.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; NAMES.len()]);

impl Counters {
    /// Adds `n`.
    pub fn add(&self, counter: Counter, n: u64) {
        self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }
}
