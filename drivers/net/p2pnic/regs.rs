// SPDX-License-Identifier: GPL-2.0

//! Registers and numbers of the NIC, as Documentation/gpu/p2pgpu/hardware.rst lists them. Nothing
//! but definitions lives here.

use kernel::{
    io::register,
    pci, //
};

/// Size of BAR0, bytes.
pub(crate) const BAR_SIZE: usize = 0x1_0000;

/// BAR0, usable while the device is bound.
pub(crate) type DevresBar = pci::DevresBar<BAR_SIZE>;

/// BAR0 of a device that is bound.
pub(crate) type Bar<'a> = pci::Bar<'a, BAR_SIZE>;

/// PCI vendor.
pub(crate) const VENDOR: u16 = 0x1234;
/// PCI device.
pub(crate) const DEVICE: u32 = 0x2020;
/// Value of the register `ID`: "P2PN".
pub(crate) const ID_VALUE: u32 = 0x4e50_3250;
/// The major version that this driver knows.
pub(crate) const VERSION_MAJOR: u32 = 1;
/// What a register of a device that is no longer there reads as.
pub(crate) const ALL_ONES: u32 = u32::MAX;

register! {
    /// What the device is.
    pub(crate) ID(u32) @ 0x000 {
        31:0 value;
    }

    /// Version of the contract.
    pub(crate) VERSION(u32) @ 0x004 {
        31:16 major;
        15:0 minor;
    }

    /// State of the device.
    pub(crate) STATUS(u32) @ 0x00c {
        /// The wire is connected.
        2:2 link_up => bool;
        /// A reset waits for the last DMA.
        1:1 resetting => bool;
        /// The device works.
        0:0 ready => bool;
    }

    /// Number of regions.
    pub(crate) MAX_REGIONS(u32) @ 0x010 {
        31:0 value;
    }

    /// Number of queue pairs.
    pub(crate) MAX_QUEUE_PAIRS(u32) @ 0x014 {
        31:0 value;
    }

    /// Segments of one region.
    pub(crate) MAX_SEGMENTS(u32) @ 0x018 {
        31:0 value;
    }

    /// Commands to the whole device.
    pub(crate) CONTROL(u32) @ 0x01c {
        0:0 reset => bool;
    }

    /// DMA address of the mailbox.
    pub(crate) MAILBOX_ADDR(u64) @ 0x020 {
        63:0 address;
    }

    /// A command is in the mailbox.
    pub(crate) MAILBOX_DOORBELL(u32) @ 0x028 {
        31:0 value;
    }

    /// DMA address of the event queue.
    pub(crate) EVENT_ADDR(u64) @ 0x030 {
        63:0 address;
    }

    /// log2 of the event queue's entries; writing it starts the queue.
    pub(crate) EVENT_SIZE(u32) @ 0x038 {
        31:0 log2;
    }

    /// Events consumed, free running.
    pub(crate) EVENT_HEAD(u32) @ 0x03c {
        31:0 value;
    }

    /// The counters, in the order of [`Counter`].
    pub(crate) COUNTER(u64)[11] @ 0x100 {
        63:0 value;
    }

    /// Requests posted to a queue pair, free running.
    pub(crate) SEND_TAIL(u32)[64, stride = 16] @ 0x1000 {
        31:0 value;
    }

    /// Receive entries posted to a queue pair, free running.
    pub(crate) RECV_TAIL(u32)[64, stride = 16] @ 0x1004 {
        31:0 value;
    }

    /// Completions of a queue pair consumed, free running.
    pub(crate) CQ_HEAD(u32)[64, stride = 16] @ 0x1008 {
        31:0 value;
    }
}

register! {
    /// The PCI command register, in configuration space.
    pub(crate) PCI_COMMAND(u16) @ 0x4 {
        /// The device may start DMA.
        2:2 bus_master => bool;
    }
}

/// Places in [`COUNTER`].
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Counter {
    RegReads = 0,
    RegWrites = 1,
    PeerReadBytes = 2,
    PeerWriteBytes = 3,
    RamReadBytes = 4,
    RamWriteBytes = 5,
    Parked = 6,
    Resumed = 7,
    Invalidations = 8,
    InvalidationsBusy = 9,
    Events = 10,
}

impl Counter {
    /// All of them, with their names.
    pub(crate) const ALL: [(Self, &'static str); 11] = [
        (Self::RegReads, "reg_reads"),
        (Self::RegWrites, "reg_writes"),
        (Self::PeerReadBytes, "peer_read_bytes"),
        (Self::PeerWriteBytes, "peer_write_bytes"),
        (Self::RamReadBytes, "ram_read_bytes"),
        (Self::RamWriteBytes, "ram_write_bytes"),
        (Self::Parked, "parked"),
        (Self::Resumed, "resumed"),
        (Self::Invalidations, "invalidations"),
        (Self::InvalidationsBusy, "invalidations_busy"),
        (Self::Events, "events"),
    ];
}

/// MSI-X vectors, in order.
#[derive(Clone, Copy)]
pub(crate) enum Vector {
    /// The mailbox holds an answer.
    Mailbox,
    /// There are events.
    Events,
    /// There are completions.
    Completions,
}

impl Vector {
    /// All of them; the place is the vector's number.
    pub(crate) const ALL: [Self; 3] = [Self::Mailbox, Self::Events, Self::Completions];
}

/// Opcodes of mailbox commands.
pub(crate) mod opcode {
    pub(crate) const MR_CREATE: u32 = 1;
    pub(crate) const MR_MAP: u32 = 2;
    pub(crate) const MR_INVALIDATE: u32 = 3;
    pub(crate) const MR_DESTROY: u32 = 4;
    pub(crate) const QP_CREATE: u32 = 5;
    pub(crate) const QP_CONNECT: u32 = 6;
    pub(crate) const QP_DESTROY: u32 = 7;
}

/// Event: a request waits for a region's addresses.
pub(crate) const REGION_NEEDED: u32 = 1;
/// Opcode of a request: write to the other end's region.
pub(crate) const WRITE: u32 = 1;
/// Opcode of a request: read from the other end's region.
pub(crate) const READ: u32 = 2;
/// Opcode of a request: send to the other end's receive queue.
pub(crate) const SEND: u32 = 3;
/// Opcode in the completion of a receive entry.
pub(crate) const RECV: u32 = 4;
/// Longest request, bytes.
pub(crate) const MAX_LENGTH: u64 = 1 << 31;
/// Bit of a key where the generation starts.
pub(crate) const KEY_GENERATION_SHIFT: u32 = 24;
