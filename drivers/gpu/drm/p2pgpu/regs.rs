// SPDX-License-Identifier: GPL-2.0

//! Registers, commands and entries of the device: the only home of its numbers.
//!
//! Described in `Documentation/gpu/p2pgpu/hardware.rst`.

use kernel::{
    io::register,
    pci, //
};

/// PCI vendor and device.
pub(crate) const VENDOR_ID: u16 = 0x1234;
pub(crate) const DEVICE_ID: u32 = 0x2019;
/// BAR of the registers, and its size in bytes.
pub(crate) const BAR_REGS: u32 = 0;
pub(crate) const BAR_REGS_SIZE: usize = 0x1000;
/// BAR of the aperture.
pub(crate) const BAR_APERTURE: u32 = 2;

/// The registers of a bound device.
pub(crate) type Bar<'a> = pci::Bar<'a, BAR_REGS_SIZE>;

register! {
    /// "P2PG".
    pub(crate) ID(u32) @ 0x000 {
        31:0 magic;
    }

    /// Version of the interface.
    pub(crate) VERSION(u32) @ 0x004 {
        31:16 major;
        15:0  minor;
    }

    pub(crate) FEATURES(u32) @ 0x008 {
        /// The aperture is in mapped mode.
        0:0 mapped => bool;
    }

    pub(crate) STATUS(u32) @ 0x00c {
        0:0 ready => bool;
        1:1 resetting => bool;
        2:2 fault_pending => bool;
    }

    /// Size of VRAM in bytes.
    pub(crate) VRAM_SIZE(u64) @ 0x010 {
        63:0 bytes;
    }

    /// Size of the aperture in bytes.
    pub(crate) APERTURE_SIZE(u64) @ 0x018 {
        63:0 bytes;
    }

    pub(crate) CONTROL(u32) @ 0x020 {
        0:0 reset => bool;
    }

    /// DMA address of the page-table root.
    pub(crate) PT_ROOT(u64) @ 0x028 {
        63:0 address;
    }

    /// Faults since power on.
    pub(crate) FAULT_COUNT(u32) @ 0x030 {
        31:0 count;
    }

    /// Drops the oldest fault of the log.
    pub(crate) FAULT_ACK(u32) @ 0x034 {
        31:0 any;
    }

    /// The oldest fault of the log.
    pub(crate) FAULT_INFO(u64) @ 0x038 {
        63:32 slot;
        31:16 size;
        8:8   write => bool;
        7:0   kind;
    }

    /// Address or entry of the oldest fault, by kind.
    pub(crate) FAULT_ADDR(u64) @ 0x040 {
        63:0 address;
    }

    /// DMA address of a ring's commands.
    pub(crate) RING_BASE(u64)[2, stride = 0x20] @ 0x080 {
        63:0 address;
    }

    /// DMA address of a ring's status block.
    pub(crate) RING_STATUS_ADDR(u64)[2, stride = 0x20] @ 0x088 {
        63:0 address;
    }

    /// Log2 of the number of commands in a ring.
    pub(crate) RING_SIZE(u32)[2, stride = 0x20] @ 0x090 {
        7:0 log2;
    }

    pub(crate) RING_CONTROL(u32)[2, stride = 0x20] @ 0x094 {
        0:0 enable => bool;
    }

    /// New tail of a ring.
    pub(crate) RING_DOORBELL(u32)[2, stride = 0x20] @ 0x098 {
        31:0 tail;
    }

    pub(crate) RING_STATE(u32)[2, stride = 0x20] @ 0x09c {
        31:0 state;
    }
}

register! {
    /// The PCI command register, in configuration space.
    pub(crate) PCI_COMMAND(u16) @ 0x4 {
        /// The device may start DMA.
        2:2 bus_master => bool;
    }
}

/// Value of the register `ID`.
pub(crate) const ID_MAGIC: u32 = 0x4750_3250;
/// Major version that this driver speaks.
pub(crate) const VERSION_MAJOR: u32 = 1;
/// What every register reads as when the device is off the bus.
pub(crate) const ALL_ONES: u32 = u32::MAX;
/// Value of [`RING_STATE`] when the ring is disabled.
pub(crate) const RING_DISABLED: u32 = 0;

/// The device's counters, by offset in BAR0, with the names that debugfs shows.
pub(crate) const COUNTERS: [(&str, usize); 11] = [
    ("reg_reads", 0x100),
    ("reg_writes", 0x108),
    ("aperture_reads", 0x110),
    ("aperture_writes", 0x118),
    ("aperture_read_bytes", 0x120),
    ("aperture_write_bytes", 0x128),
    ("flushes", 0x130),
    ("ptes_changed", 0x138),
    ("engine_bytes", 0x140),
    ("dma_read_bytes", 0x148),
    ("dma_write_bytes", 0x150),
];

/// Entries of the device's fault log.
pub(crate) const FAULT_LOG_ENTRIES: usize = 64;

/// Name of a fault's kind.
pub(crate) fn fault_name(kind: u32) -> &'static str {
    match kind {
        1 => "invalid-slot",
        2 => "stale-write",
        3 => "bad-pte",
        4 => "alias",
        _ => "unknown",
    }
}

/// Bytes of a slot, of a VRAM page and of a leaf of the page table.
pub(crate) const SLOT_SIZE: usize = 4096;
/// Log2 of [`SLOT_SIZE`].
pub(crate) const SLOT_SHIFT: u32 = 12;
/// Entries of a leaf of the page table, and addresses in a page of its root.
pub(crate) const PTES_PER_LEAF: usize = 512;
/// Most entries of a command's list.
pub(crate) const LIST_MAX: usize = 65536;

/// The PTE that shows VRAM page `page`.
pub(crate) fn pte(page: u32) -> u64 {
    const VALID: u64 = 1;
    u64::from(page) << SLOT_SHIFT | VALID
}

/// What a command does.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// Copies segments.
    Copy,
    /// Stores a pattern over the destinations of segments.
    Fill(u32),
    /// Writes the SHA-256 of the sources of segments to a DMA address.
    Checksum(u64),
    /// Adds sources to destinations, as numbers of 32 bits.
    Add {
        /// They are binary32.
        float: bool,
    },
    /// Makes the page table take effect for slot ranges.
    Flush,
    /// Looks for writes to slots that are not installed.
    Check,
}

impl Operation {
    /// Opcode and value of the command.
    fn encode(self) -> (u64, u64) {
        match self {
            Self::Copy => (1, 0),
            Self::Fill(pattern) => (2, pattern.into()),
            Self::Checksum(digest) => (3, digest),
            Self::Flush => (4, 0),
            Self::Check => (5, 0),
            Self::Add { float } => (6, float.into()),
        }
    }
}

/// A command as it lies in a ring: 64 bytes.
pub(crate) type RawCommand = [u64; 8];

/// Encodes a command, which interrupts when it is done if `irq` is set.
pub(crate) fn command(op: Operation, count: u32, list: u64, fence: u64, irq: bool) -> RawCommand {
    const FLAG_IRQ: u64 = 1 << 16;
    let (opcode, value) = op.encode();
    let flags = if irq { FLAG_IRQ } else { 0 };
    [
        (opcode | flags | u64::from(count) << 32).to_le(),
        fence.to_le(),
        list.to_le(),
        value.to_le(),
        0,
        0,
        0,
        0,
    ]
}

/// One end of a segment.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Offset in VRAM.
    Vram(u64),
    /// DMA address.
    Memory(u64),
    /// The command does not use this end.
    Unused,
}

impl Place {
    fn encode(self) -> (u64, u64) {
        match self {
            Self::Vram(offset) => (offset, 0),
            Self::Memory(address) => (address, 1),
            Self::Unused => (0, 0),
        }
    }
}

/// A segment as it lies in a list: 32 bytes.
pub(crate) type RawSegment = [u64; 4];

/// Encodes a segment.
pub(crate) fn segment(src: Place, dst: Place, len: u64) -> RawSegment {
    let (src, src_space) = src.encode();
    let (dst, dst_space) = dst.encode();
    [
        src.to_le(),
        dst.to_le(),
        len.to_le(),
        (src_space | dst_space << 32).to_le(),
    ]
}

/// A slot range as it lies in a list: 8 bytes.
pub(crate) fn slot_range(first: u32, count: u32) -> u64 {
    (u64::from(first) | u64::from(count) << 32).to_le()
}

/// A ring's status block, as words.
pub(crate) type RawStatus = [u64; 8];
/// Word of [`RawStatus`]: fence of the newest command that completed.
pub(crate) const STATUS_DONE: usize = 0;
/// Word of [`RawStatus`]: 0, or the error that halted the ring.
pub(crate) const STATUS_ERROR: usize = 1;
