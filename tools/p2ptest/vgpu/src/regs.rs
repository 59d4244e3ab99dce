// SPDX-License-Identifier: GPL-2.0

//! Every number of the GPU's contract, and nothing else.
//!
//! The tables of `Documentation/gpu/p2pgpu/hardware.rst` are compared with this file by the test
//! `hardware_rst`.

/// Size of a slot, of a VRAM page and of a page-table page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// [`PAGE_SIZE`] as a buffer length.
pub const PAGE_BYTES: usize = 4096;

/// PCI vendor.
pub const VENDOR_ID: u16 = 0x1234;
/// PCI device.
pub const DEVICE_ID: u16 = 0x2019;
/// PCI class: display controller, other.
pub const CLASS: u32 = 0x03_8000;
/// BAR that holds the registers.
pub const REGISTER_BAR: u8 = 0;
/// BAR that is the aperture.
pub const APERTURE_BAR: u8 = 2;
/// Size of BAR0, in bytes.
pub const REGISTER_BAR_SIZE: u64 = 4096;

/// Largest VRAM, in bytes.
pub const MAX_VRAM: u64 = 1 << 40;
/// Largest aperture, in bytes.
pub const MAX_APERTURE: u64 = 1 << 32;

/// Value of ID.
pub const ID: u64 = 0x4750_3250;
/// Value of VERSION.
pub const VERSION: u64 = 0x0001_0000;
/// FEATURES: the aperture is in mapped mode.
pub const FEATURE_MAPPED: u64 = 1 << 0;
/// STATUS: the device takes register writes.
pub const STATUS_READY: u64 = 1 << 0;
/// STATUS: a reset is under way.
pub const STATUS_RESETTING: u64 = 1 << 1;
/// STATUS: the fault log is not empty.
pub const STATUS_FAULT_PENDING: u64 = 1 << 2;
/// CONTROL: start a reset.
pub const CONTROL_RESET: u64 = 1 << 0;
/// Ring CONTROL: the ring runs.
pub const RING_ENABLE: u64 = 1 << 0;

/// Number of rings.
pub const RINGS: usize = 2;
/// Offset of the first ring's registers.
pub const RING_BASE: u64 = 0x080;
/// Bytes of registers that one ring takes.
pub const RING_STRIDE: u64 = 0x20;
/// Smallest SIZE of a ring (log2).
pub const RING_SIZE_MIN: u64 = 4;
/// Largest SIZE of a ring (log2).
pub const RING_SIZE_MAX: u64 = 12;
/// Alignment of a ring's BASE and of PT_ROOT.
pub const BASE_ALIGN: u64 = 4096;
/// Alignment of a status block.
pub const STATUS_ALIGN: u64 = 64;
/// First offset of the counters, which are not counted themselves.
pub const COUNTERS_START: u64 = 0x100;
/// First offset behind the counters' range.
pub const COUNTERS_END: u64 = 0x200;

/// MSI-X vectors: one a ring, then the fault log.
pub const VECTORS: usize = RINGS + 1;
/// MSI-X vector of the fault log.
pub const FAULT_VECTOR: u16 = 2;

/// What software may do with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes are ignored.
    Ro,
    /// Reads return 0.
    Wo,
    /// Both work.
    Rw,
}

/// One register's row in the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Row<T: 'static> {
    /// Which one.
    pub register: T,
    /// The documented name.
    pub name: &'static str,
    /// Offset in its block, in bytes.
    pub offset: u64,
    /// Width; the only width that it is accessed with.
    pub bits: u32,
    /// What may be done with it.
    pub access: Access,
}

macro_rules! registers {
    ($(#[$meta:meta])* $kind:ident {
        $($(#[$doc:meta])* $variant:ident = $offset:literal, $bits:literal, $access:ident, $name:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind { $($(#[$doc])* $variant,)* }

        impl $kind {
            /// All of them, in the order of their offsets.
            pub const ALL: &'static [Row<$kind>] = &[$(Row {
                register: $kind::$variant,
                name: $name,
                offset: $offset,
                bits: $bits,
                access: Access::$access,
            },)*];

            fn at(offset: u64, len: usize) -> Option<&'static Row<$kind>> {
                Self::ALL.iter().find(|row| row.offset == offset && row.bits as usize == len * 8)
            }
        }
    };
}

registers! {
    /// A register of the device as a whole.
    Global {
        /// What the device is.
        Id = 0x000, 32, Ro, "ID";
        /// Version of the contract.
        Version = 0x004, 32, Ro, "VERSION";
        /// Feature bits.
        Features = 0x008, 32, Ro, "FEATURES";
        /// State bits.
        Status = 0x00c, 32, Ro, "STATUS";
        /// Bytes of VRAM.
        VramSize = 0x010, 64, Ro, "VRAM_SIZE";
        /// Bytes of the aperture.
        ApertureSize = 0x018, 64, Ro, "APERTURE_SIZE";
        /// Reset.
        Control = 0x020, 32, Wo, "CONTROL";
        /// DMA address of the page table's root.
        PtRoot = 0x028, 64, Rw, "PT_ROOT";
        /// Faults since power on.
        FaultCount = 0x030, 32, Ro, "FAULT_COUNT";
        /// Drops the oldest fault.
        FaultAck = 0x034, 32, Wo, "FAULT_ACK";
        /// What the oldest fault is.
        FaultInfo = 0x038, 64, Ro, "FAULT_INFO";
        /// Where the oldest fault was.
        FaultAddr = 0x040, 64, Ro, "FAULT_ADDR";
    }
}

registers! {
    /// A register of one ring.
    RingReg {
        /// DMA address of the commands.
        Base = 0x00, 64, Rw, "BASE";
        /// DMA address of the status block.
        StatusAddr = 0x08, 64, Rw, "STATUS_ADDR";
        /// log2 of the number of commands.
        Size = 0x10, 32, Rw, "SIZE";
        /// Enable.
        Control = 0x14, 32, Rw, "CONTROL";
        /// The new tail.
        Doorbell = 0x18, 32, Wo, "DOORBELL";
        /// State of the ring.
        State = 0x1c, 32, Ro, "STATE";
    }
}

registers! {
    /// A counter; its offset counts from the start of BAR0.
    Counter {
        /// Loads from BAR0.
        RegReads = 0x100, 64, Ro, "REG_READS";
        /// Stores to BAR0.
        RegWrites = 0x108, 64, Ro, "REG_WRITES";
        /// Messages that read BAR2.
        ApertureReads = 0x110, 64, Ro, "APERTURE_READS";
        /// Messages that write BAR2.
        ApertureWrites = 0x118, 64, Ro, "APERTURE_WRITES";
        /// Bytes of those reads.
        ApertureReadBytes = 0x120, 64, Ro, "APERTURE_READ_BYTES";
        /// Bytes of those writes.
        ApertureWriteBytes = 0x128, 64, Ro, "APERTURE_WRITE_BYTES";
        /// FLUSH commands completed.
        Flushes = 0x130, 64, Ro, "FLUSHES";
        /// Slots whose translation a flush changed.
        PtesChanged = 0x138, 64, Ro, "PTES_CHANGED";
        /// Bytes that the engine moved or read.
        EngineBytes = 0x140, 64, Ro, "ENGINE_BYTES";
        /// Bytes read from memory.
        DmaReadBytes = 0x148, 64, Ro, "DMA_READ_BYTES";
        /// Bytes written to memory.
        DmaWriteBytes = 0x150, 64, Ro, "DMA_WRITE_BYTES";
    }
}

/// A register of BAR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// One of the device's own.
    Global(Global),
    /// One of a ring's.
    Ring(usize, RingReg),
    /// A counter.
    Counter(Counter),
}

/// The register that an access of `len` bytes at `offset` of BAR0 names, if there is one of
/// exactly that place and size.
pub fn decode(offset: u64, len: usize) -> Option<(Register, Access)> {
    let rings_end = RING_BASE + RING_STRIDE * RINGS as u64;

    match offset {
        0..RING_BASE => {
            Global::at(offset, len).map(|row| (Register::Global(row.register), row.access))
        }
        _ if offset < rings_end => {
            let inside = offset - RING_BASE;
            let ring = usize::from(inside >= RING_STRIDE);
            RingReg::at(inside % RING_STRIDE, len)
                .map(|row| (Register::Ring(ring, row.register), row.access))
        }
        _ => Counter::at(offset, len).map(|row| (Register::Counter(row.register), row.access)),
    }
}

/// STATE of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RingState {
    /// Its registers may be written.
    Disabled = 0,
    /// It executes commands.
    Running = 1,
    /// A command failed.
    Halted = 2,
    /// Told to stop while a DMA is in flight.
    Stopping = 3,
}

/// A field's row in the documentation: name, offset in bytes, bits (0: not a number).
pub type Field = (&'static str, usize, u32);

/// Size of the status block's used part, in bytes.
pub const STATUS_BYTES: usize = 0x18;
/// Offset of DONE in the status block.
pub const STATUS_DONE: u64 = 0x00;
/// Offset of ERROR in the status block.
pub const STATUS_ERROR: u64 = 0x08;
/// Offset of ERROR_FENCE in the status block.
pub const STATUS_ERROR_FENCE: u64 = 0x10;
/// The status block as documented.
pub const STATUS_FIELDS: &[Field] = &[
    ("DONE", STATUS_DONE as usize, 64),
    ("ERROR", STATUS_ERROR as usize, 32),
    ("ERROR_FENCE", STATUS_ERROR_FENCE as usize, 64),
];

/// Size of a command, in bytes.
pub const COMMAND_BYTES: usize = 64;
/// Offset of OPCODE.
pub const CMD_OPCODE: usize = 0x00;
/// Offset of FLAGS.
pub const CMD_FLAGS: usize = 0x02;
/// Offset of COUNT.
pub const CMD_COUNT: usize = 0x04;
/// Offset of FENCE.
pub const CMD_FENCE: usize = 0x08;
/// Offset of LIST.
pub const CMD_LIST: usize = 0x10;
/// Offset of VALUE.
pub const CMD_VALUE: usize = 0x18;
/// Offset of the reserved rest.
pub const CMD_RESERVED: usize = 0x20;
/// A command as documented.
pub const COMMAND_FIELDS: &[Field] = &[
    ("OPCODE", CMD_OPCODE, 16),
    ("FLAGS", CMD_FLAGS, 16),
    ("COUNT", CMD_COUNT, 32),
    ("FENCE", CMD_FENCE, 64),
    ("LIST", CMD_LIST, 64),
    ("VALUE", CMD_VALUE, 64),
    ("reserved", CMD_RESERVED, 0),
];
/// FLAGS: interrupt on completion.
pub const FLAG_IRQ: u16 = 1 << 0;
/// Most entries of a list.
pub const MAX_COUNT: u32 = 65536;
/// Alignment of a list.
pub const LIST_ALIGN: u64 = 8;

/// Opcode: complete.
pub const OP_NOP: u16 = 0;
/// Opcode: copy segments.
pub const OP_COPY: u16 = 1;
/// Opcode: fill segments.
pub const OP_FILL: u16 = 2;
/// Opcode: SHA-256 of segments.
pub const OP_CHECKSUM: u16 = 3;
/// Opcode: make page-table entries take effect.
pub const OP_FLUSH: u16 = 4;
/// Opcode: look at the poison.
pub const OP_CHECK: u16 = 5;
/// Opcode: add segments to segments.
pub const OP_ADD: u16 = 6;
/// The opcodes as documented.
pub const OPCODES: &[(u16, &str)] = &[
    (OP_NOP, "NOP"),
    (OP_COPY, "COPY"),
    (OP_FILL, "FILL"),
    (OP_CHECKSUM, "CHECKSUM"),
    (OP_FLUSH, "FLUSH"),
    (OP_CHECK, "CHECK"),
    (OP_ADD, "ADD"),
];
/// VALUE of ADD: the elements are unsigned numbers of 32 bits.
pub const ADD_U32: u64 = 0;
/// VALUE of ADD: the elements are floating-point numbers of 32 bits.
pub const ADD_F32: u64 = 1;
/// Bytes of an element; LEN of an ADD is a multiple of this.
pub const ELEMENT_BYTES: usize = 4;

/// Size of a segment, in bytes.
pub const SEGMENT_BYTES: usize = 32;
/// Offset of SRC.
pub const SEG_SRC: usize = 0x00;
/// Offset of DST.
pub const SEG_DST: usize = 0x08;
/// Offset of LEN.
pub const SEG_LEN: usize = 0x10;
/// Offset of SRC_SPACE.
pub const SEG_SRC_SPACE: usize = 0x18;
/// Offset of DST_SPACE.
pub const SEG_DST_SPACE: usize = 0x1c;
/// A segment as documented.
pub const SEGMENT_FIELDS: &[Field] = &[
    ("SRC", SEG_SRC, 64),
    ("DST", SEG_DST, 64),
    ("LEN", SEG_LEN, 64),
    ("SRC_SPACE", SEG_SRC_SPACE, 32),
    ("DST_SPACE", SEG_DST_SPACE, 32),
];
/// Space: VRAM.
pub const SPACE_VRAM: u32 = 0;
/// Space: memory.
pub const SPACE_MEMORY: u32 = 1;
/// LEN of a FILL is a multiple of this.
pub const FILL_UNIT: u64 = 4;
/// Bytes of CHECKSUM's digest.
pub const DIGEST_BYTES: usize = 32;

/// Size of a slot range, in bytes: first slot, number of slots.
pub const RANGE_BYTES: usize = 8;

/// Why a ring halted; the numbers of the status block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Error {
    /// Unknown opcode.
    BadOpcode = 1,
    /// Unknown flag, or a reserved field not zero.
    BadCommand = 2,
    /// Count or address of the list.
    BadList = 3,
    /// A segment that cannot be.
    BadSegment = 4,
    /// A slot range that cannot be.
    BadRange = 5,
    /// A DMA was refused.
    Dma = 6,
    /// A tail too far ahead.
    BadTail = 7,
    /// Fault injection asked for it.
    Injected = 8,
}

/// The errors as documented.
pub const ERRORS: &[(Error, &str)] = &[
    (Error::BadOpcode, "BAD_OPCODE"),
    (Error::BadCommand, "BAD_COMMAND"),
    (Error::BadList, "BAD_LIST"),
    (Error::BadSegment, "BAD_SEGMENT"),
    (Error::BadRange, "BAD_RANGE"),
    (Error::Dma, "DMA_ERROR"),
    (Error::BadTail, "BAD_TAIL"),
    (Error::Injected, "INJECTED"),
];

/// PTE: the slot is installed.
pub const PTE_VALID: u64 = 1 << 0;
/// PTE: the page, at its place as a VRAM offset.
pub const PTE_PAGE: u64 = ((1 << 52) - 1) & !(PAGE_SIZE - 1);
/// PTEs of a leaf, and leaves that one page of the root names.
pub const PTES_PER_LEAF: u32 = 512;
/// Size of a PTE and of a root entry, in bytes.
pub const PTE_BYTES: usize = 8;
/// What an empty slot is filled with in mapped mode.
pub const POISON: u8 = 0xa5;

/// Kinds of faults; the numbers of FAULT_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum FaultKind {
    /// Access to a slot that is not installed.
    InvalidSlot = 1,
    /// A slot's poison changed.
    StaleWrite = 2,
    /// Malformed entry.
    BadPte = 3,
    /// The page is shown by another slot.
    Alias = 4,
}

/// The fault kinds as documented.
pub const FAULT_KINDS: &[(FaultKind, &str)] = &[
    (FaultKind::InvalidSlot, "INVALID_SLOT"),
    (FaultKind::StaleWrite, "STALE_WRITE"),
    (FaultKind::BadPte, "BAD_PTE"),
    (FaultKind::Alias, "ALIAS"),
];
/// Entries that the fault log keeps.
pub const FAULT_LOG: usize = 64;
/// FAULT_INFO: where the write bit stands.
pub const FAULT_WRITE_SHIFT: u32 = 8;
/// FAULT_INFO: where the size stands.
pub const FAULT_SIZE_SHIFT: u32 = 16;
/// FAULT_INFO: where the slot stands.
pub const FAULT_SLOT_SHIFT: u32 = 32;
