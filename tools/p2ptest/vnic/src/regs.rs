// SPDX-License-Identifier: GPL-2.0

//! The numbers of the NIC's contract: offsets, bits, opcodes, errors and sizes, as hardware.rst
//! ("The NIC") lists them. Nothing but constants lives here; a test compares them with that page.

/// PCI vendor.
pub const VENDOR: u16 = 0x1234;
/// PCI device.
pub const DEVICE: u16 = 0x2020;
/// PCI class: network controller, other.
pub const CLASS: u32 = 0x02_80_00;
/// The BAR that holds the registers.
pub const REGISTER_BAR: u8 = 0;
/// Its size in bytes.
pub const REGISTER_BAR_SIZE: u64 = 0x1_0000;
/// MSI-X vectors.
pub const VECTORS: u16 = 3;
/// Vector of the mailbox.
pub const VECTOR_MAILBOX: u16 = 0;
/// Vector of the event queue.
pub const VECTOR_EVENTS: u16 = 1;
/// Vector of the completion queues.
pub const VECTOR_COMPLETIONS: u16 = 2;

/// Register: what the device is.
pub const ID: u64 = 0x000;
/// Register: version of the contract.
pub const VERSION: u64 = 0x004;
/// Register: optional features.
pub const FEATURES: u64 = 0x008;
/// Register: see the `STATUS_` bits.
pub const STATUS: u64 = 0x00c;
/// Register: number of regions.
pub const MAX_REGIONS: u64 = 0x010;
/// Register: number of queue pairs.
pub const MAX_QUEUE_PAIRS: u64 = 0x014;
/// Register: segments of one region.
pub const MAX_SEGMENTS: u64 = 0x018;
/// Register: see the `CONTROL_` bits.
pub const CONTROL: u64 = 0x01c;
/// Register (64 bits): DMA address of the mailbox.
pub const MAILBOX_ADDR: u64 = 0x020;
/// Register: a command is in the mailbox.
pub const MAILBOX_DOORBELL: u64 = 0x028;
/// Register (64 bits): DMA address of the event queue.
pub const EVENT_ADDR: u64 = 0x030;
/// Register: log2 of the event queue's entries; 0 stops it.
pub const EVENT_SIZE: u64 = 0x038;
/// Register: events consumed.
pub const EVENT_HEAD: u64 = 0x03c;
/// First counter (64 bits each).
pub const COUNTERS: u64 = 0x100;
/// End of the window of the counters; accesses to the window are not counted.
pub const COUNTERS_END: u64 = 0x200;
/// First doorbell; a queue pair has [`DOORBELL_STRIDE`] bytes.
pub const DOORBELLS: u64 = 0x1000;
/// Bytes of doorbells of one queue pair.
pub const DOORBELL_STRIDE: u64 = 16;
/// In a queue pair's doorbells: the send queue's tail.
pub const SEND_TAIL: u64 = 0;
/// In a queue pair's doorbells: the receive queue's tail.
pub const RECV_TAIL: u64 = 4;
/// In a queue pair's doorbells: completions consumed.
pub const CQ_HEAD: u64 = 8;

/// Value of [`ID`]: "P2PN".
pub const ID_VALUE: u32 = 0x4e50_3250;
/// Value of [`VERSION`]: 1.0.
pub const VERSION_VALUE: u32 = 0x0001_0000;
/// Value of [`MAX_REGIONS`].
pub const MAX_REGIONS_VALUE: u32 = 4096;
/// Value of [`MAX_QUEUE_PAIRS`].
pub const MAX_QUEUE_PAIRS_VALUE: u32 = 64;
/// Value of [`MAX_SEGMENTS`].
pub const MAX_SEGMENTS_VALUE: u32 = 65536;
/// Segments of all regions together.
pub const MAX_TOTAL_SEGMENTS: usize = 1 << 22;

/// [`STATUS`]: the device works.
pub const STATUS_READY: u32 = 1 << 0;
/// [`STATUS`]: a reset waits for the last DMA.
pub const STATUS_RESETTING: u32 = 1 << 1;
/// [`STATUS`]: the wire is connected.
pub const STATUS_LINK_UP: u32 = 1 << 2;
/// [`CONTROL`]: reset the device.
pub const CONTROL_RESET: u32 = 1 << 0;

/// Alignment of [`MAILBOX_ADDR`], bytes.
pub const MAILBOX_ALIGN: u64 = 256;
/// Bytes of a mailbox command.
pub const COMMAND_BYTES: usize = 128;
/// Mailbox offset of the answer's SEQ.
pub const ANSWER_SEQ: u64 = 0x80;
/// Mailbox offset of the answer's STATUS.
pub const ANSWER_STATUS: u64 = 0x84;
/// Alignment of all queues, bytes.
pub const QUEUE_ALIGN: u64 = 4096;
/// Bytes of a region's segment in a list.
pub const SEGMENT_BYTES: usize = 16;

/// Mailbox command: create a region.
pub const MR_CREATE: u32 = 1;
/// Mailbox command: give a region its addresses.
pub const MR_MAP: u32 = 2;
/// Mailbox command: take them away.
pub const MR_INVALIDATE: u32 = 3;
/// Mailbox command: take the region away.
pub const MR_DESTROY: u32 = 4;
/// Mailbox command: create a queue pair.
pub const QP_CREATE: u32 = 5;
/// Mailbox command: connect a queue pair.
pub const QP_CONNECT: u32 = 6;
/// Mailbox command: take a queue pair away.
pub const QP_DESTROY: u32 = 7;

/// Mailbox error: unknown opcode, or a reserved field is not zero.
pub const BAD_COMMAND: u32 = 1;
/// Mailbox error: INDEX out of range, unknown or in use.
pub const BAD_INDEX: u32 = 2;
/// Mailbox error: an argument is malformed.
pub const BAD_ARGUMENT: u32 = 3;
/// Mailbox error: memory that the command names was not readable.
pub const MAILBOX_DMA_ERROR: u32 = 4;

/// Region right: local requests may write it.
pub const LOCAL_WRITE: u32 = 1;
/// Region right: the other end may read it.
pub const REMOTE_READ: u32 = 2;
/// Region right: the other end may write it.
pub const REMOTE_WRITE: u32 = 4;

/// Smallest and largest log2 of a queue pair's queues.
pub const QUEUE_LOG2: std::ops::RangeInclusive<u32> = 2..=12;
/// Smallest and largest log2 of the event queue.
pub const EVENT_LOG2: std::ops::RangeInclusive<u32> = 4..=16;

/// Request: write to the other end's region.
pub const WRITE: u32 = 1;
/// Request: read from the other end's region.
pub const READ: u32 = 2;
/// Request: send to the other end's receive queue.
pub const SEND: u32 = 3;
/// Opcode in the completion of a receive entry.
pub const RECV: u32 = 4;
/// Bytes of a send-queue entry.
pub const SEND_ENTRY_BYTES: usize = 64;
/// Bytes of a receive-queue entry.
pub const RECV_ENTRY_BYTES: usize = 32;
/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 32;
/// Bytes of an event.
pub const EVENT_BYTES: usize = 32;
/// Offset of GENERATION in completions and events.
pub const GENERATION: usize = 0x1c;
/// Longest request, bytes.
pub const MAX_LENGTH: u64 = 1 << 31;
/// Longest DMA of payload, bytes.
pub const CHUNK: usize = 32 * 1024;

/// Completion: success.
pub const OK: u32 = 0;
/// Completion error: unknown local key, range or rights.
pub const LOCAL_ACCESS: u32 = 1;
/// Completion error: unknown remote key, range or rights.
pub const REMOTE_ACCESS: u32 = 2;
/// Completion error: the message is longer than the receive entry.
pub const LENGTH: u32 = 3;
/// Completion error: the region was destroyed while the request was parked.
pub const REVOKED: u32 = 4;
/// Completion error: the queue pair was in the error state.
pub const FLUSHED: u32 = 5;
/// Completion error: the wire broke.
pub const LINK_DOWN: u32 = 6;
/// Completion error: a DMA was refused.
pub const DMA_ERROR: u32 = 7;
/// Completion error: unknown opcode or reserved bits.
pub const BAD_REQUEST: u32 = 8;

/// Event: a request waits for this region's addresses.
pub const REGION_NEEDED: u32 = 1;
