// SPDX-License-Identifier: GPL-2.0

//! Commands, segments and slot ranges: from untrusted bytes to types.

use crate::regs::{self, Error};

/// A list in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// DMA address.
    pub at: u64,
    /// Entries.
    pub count: u32,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    Nop,
    /// Copies segments.
    Copy(List),
    /// Stores a value over segments.
    Fill(List, u32),
    /// Hashes segments; the digest goes to this DMA address.
    Checksum(List, u64),
    /// Makes the page table take effect.
    Flush(List),
    /// Looks at the poison.
    Check,
    /// Adds segments to segments.
    Add(List, Element),
}

/// What the elements of an ADD are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Unsigned, modulo 2^32.
    U32,
    /// IEEE 754 binary32.
    F32,
}

impl Element {
    fn parse(value: u64) -> Result<Self, Error> {
        match value {
            regs::ADD_U32 => Ok(Self::U32),
            regs::ADD_F32 => Ok(Self::F32),
            _ => Err(Error::BadCommand),
        }
    }
}

/// A well-formed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What it does.
    pub op: Op,
    /// Whether its completion raises the ring's interrupt.
    pub irq: bool,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut value = [0; 2];
    value.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(value)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// The little-endian number of 64 bits at `at`, which must lie inside.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// FENCE of a command, well-formed or not.
pub fn fence(bytes: &[u8; regs::COMMAND_BYTES]) -> u64 {
    u64_at(bytes, regs::CMD_FENCE)
}

impl Command {
    /// Checks all that can be told from the command alone.
    pub fn parse(bytes: &[u8; regs::COMMAND_BYTES]) -> Result<Self, Error> {
        let opcode = u16_at(bytes, regs::CMD_OPCODE);
        let flags = u16_at(bytes, regs::CMD_FLAGS);
        let value = u64_at(bytes, regs::CMD_VALUE);
        let list = List {
            at: u64_at(bytes, regs::CMD_LIST),
            count: u32_at(bytes, regs::CMD_COUNT),
        };

        let op = match opcode {
            regs::OP_NOP => Op::Nop,
            regs::OP_COPY => Op::Copy(list),
            regs::OP_FILL => Op::Fill(list, u32_at(bytes, regs::CMD_VALUE)),
            regs::OP_CHECKSUM => Op::Checksum(list, value),
            regs::OP_FLUSH => Op::Flush(list),
            regs::OP_CHECK => Op::Check,
            regs::OP_ADD => Op::Add(list, Element::parse(value)?),
            _ => return Err(Error::BadOpcode),
        };
        let unused = match op {
            Op::Checksum(..) | Op::Add(..) => 0,
            Op::Fill(..) => value >> 32,
            _ => value,
        };
        let reserved = bytes[regs::CMD_RESERVED..].iter().any(|byte| *byte != 0);
        if flags & !regs::FLAG_IRQ != 0 || unused != 0 || reserved {
            return Err(Error::BadCommand);
        }
        let has_list = !matches!(op, Op::Nop | Op::Check);
        let good = if has_list {
            list.count <= regs::MAX_COUNT && list.at.is_multiple_of(regs::LIST_ALIGN)
        } else {
            list == List { at: 0, count: 0 }
        };
        if !good {
            return Err(Error::BadList);
        }
        Ok(Self {
            op,
            irq: flags & regs::FLAG_IRQ != 0,
        })
    }
}

/// One end of a segment, which was checked: it lies in VRAM, or does not wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// VRAM offset.
    Vram(u64),
    /// DMA address.
    Memory(u64),
}

impl Place {
    /// The place `by` bytes further, inside the segment.
    pub fn plus(self, by: u64) -> Self {
        match self {
            Self::Vram(at) => Self::Vram(at + by),
            Self::Memory(at) => Self::Memory(at + by),
        }
    }
}

/// A segment's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    src: u64,
    dst: u64,
    /// Bytes.
    pub len: u64,
    src_space: u32,
    dst_space: u32,
}

impl Segment {
    /// Reads the fields.
    pub fn parse(bytes: &[u8; regs::SEGMENT_BYTES]) -> Self {
        Self {
            src: u64_at(bytes, regs::SEG_SRC),
            dst: u64_at(bytes, regs::SEG_DST),
            len: u64_at(bytes, regs::SEG_LEN),
            src_space: u32_at(bytes, regs::SEG_SRC_SPACE),
            dst_space: u32_at(bytes, regs::SEG_DST_SPACE),
        }
    }

    /// Both ends, for COPY.
    pub fn copy(&self, vram: u64) -> Result<(Place, Place), Error> {
        let src = self.place(self.src_space, self.src, vram)?;
        Ok((src, self.place(self.dst_space, self.dst, vram)?))
    }

    /// Both ends, for ADD.
    pub fn add(&self, vram: u64) -> Result<(Place, Place), Error> {
        if !self.len.is_multiple_of(regs::ELEMENT_BYTES as u64) {
            return Err(Error::BadSegment);
        }
        self.copy(vram)
    }

    /// The destination, for FILL.
    pub fn fill(&self, vram: u64) -> Result<Place, Error> {
        let unused = self.src != 0 || self.src_space != 0;
        if unused || !self.len.is_multiple_of(regs::FILL_UNIT) {
            return Err(Error::BadSegment);
        }
        self.place(self.dst_space, self.dst, vram)
    }

    /// The source, for CHECKSUM.
    pub fn checksum(&self, vram: u64) -> Result<Place, Error> {
        if self.dst != 0 || self.dst_space != 0 {
            return Err(Error::BadSegment);
        }
        self.place(self.src_space, self.src, vram)
    }

    fn place(&self, space: u32, at: u64, vram: u64) -> Result<Place, Error> {
        let last = self.len.checked_sub(1).ok_or(Error::BadSegment)?;
        let last = at.checked_add(last);
        match space {
            regs::SPACE_VRAM if last.is_some_and(|last| last < vram) => Ok(Place::Vram(at)),
            // No bus has an address beyond 64 bits.
            regs::SPACE_MEMORY => last.map(|_| Place::Memory(at)).ok_or(Error::Dma),
            _ => Err(Error::BadSegment),
        }
    }
}

/// Slots that a FLUSH names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The first slot.
    pub first: u32,
    /// The slot behind the last.
    pub end: u32,
}

impl SlotRange {
    /// Checks a range against an aperture of `slots` slots.
    pub fn parse(bytes: &[u8; regs::RANGE_BYTES], slots: u32) -> Result<Self, Error> {
        let first = u32_at(bytes, 0);
        let count = u32_at(bytes, 4);
        match first.checked_add(count) {
            Some(end) if count != 0 && end <= slots => Ok(Self { first, end }),
            _ => Err(Error::BadRange),
        }
    }

    /// The same slots, each once, in order.
    pub fn merge(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable_by_key(|range| range.first);
        ranges.dedup_by(|next, last| {
            let touches = next.first <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, end: u32) -> SlotRange {
        SlotRange { first, end }
    }

    #[test]
    fn merged_ranges_name_each_slot_once() {
        let ranges = vec![
            range(8, 9),
            range(0, 4),
            range(2, 3),
            range(4, 6),
            range(8, 12),
        ];
        assert_eq!(SlotRange::merge(ranges), [range(0, 6), range(8, 12)]);
    }

    #[test]
    fn ranges_empty_past_the_end_or_wrapping_are_refused() {
        let parse = |first: u32, count: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&first.to_le_bytes());
            bytes[4..].copy_from_slice(&count.to_le_bytes());
            SlotRange::parse(&bytes, 16)
        };
        assert_eq!(parse(15, 1), Ok(range(15, 16)));
        for (first, count) in [(0, 0), (15, 2), (16, 1), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(parse(first, count), Err(Error::BadRange), "{first} {count}");
        }
    }

    #[test]
    fn a_segment_ends_inside_vram_and_inside_64_bits() {
        let at = |space: u32, at: u64, len: u64| {
            let segment = Segment {
                src: at,
                dst: 0,
                len,
                src_space: space,
                dst_space: 0,
            };
            segment.checksum(4096)
        };
        assert_eq!(at(0, 4095, 1), Ok(Place::Vram(4095)));
        assert_eq!(at(1, u64::MAX, 1), Ok(Place::Memory(u64::MAX)));
        assert_eq!(at(1, u64::MAX, 2), Err(Error::Dma));
        for (space, start, len) in [(0, 0, 0), (0, 4095, 2), (0, u64::MAX, 2), (2, 0, 1)] {
            assert_eq!(
                at(space, start, len),
                Err(Error::BadSegment),
                "{space} {start} {len}"
            );
        }
    }
}
