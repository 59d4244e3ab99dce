// SPDX-License-Identifier: GPL-2.0

//! What a device model's engines see of the machine: memory by DMA, and interrupts.
//!
//! Only engine (worker) threads hold these. A region handler has neither: the virtual CPU that
//! waits for its answer holds QEMU's big lock, which a DMA by message needs.

use std::fmt;

/// Where a DMA went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Guest memory that the server has mapped.
    Ram,
    /// Anything else: the request went to the client as messages, to a peer's BAR for example.
    Peer,
}

/// Why a DMA failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusError {
    /// The bus-master bit is clear.
    NotMaster,
    /// Nothing answers at this address, or the range crosses the end of what does.
    Unmapped,
    /// The client refused it, with this errno.
    Refused(u32),
    /// There is no client, or the connection broke.
    Disconnected,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMaster => f.write_str("bus mastering is off"),
            Self::Unmapped => f.write_str("no memory at this DMA address"),
            Self::Refused(errno) => write!(f, "refused by the client (errno {errno})"),
            Self::Disconnected => f.write_str("no client"),
        }
    }
}

impl std::error::Error for BusError {}

/// DMA, for engine threads.
pub trait Bus: Send + Sync {
    /// Reads `data.len()` bytes from DMA address `addr`.
    fn read(&self, addr: u64, data: &mut [u8]) -> Result<Target, BusError>;

    /// Writes `data` to DMA address `addr`. On return the bytes are in RAM or, for a peer, posted.
    fn write(&self, addr: u64, data: &[u8]) -> Result<Target, BusError>;
}

/// Message-signalled interrupts, for engine threads.
pub trait Interrupts: Send + Sync {
    /// Raises MSI-X vector `vector`; kept pending while masked, dropped while MSI-X is off.
    fn raise(&self, vector: u16);
}
