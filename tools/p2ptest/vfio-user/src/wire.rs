// SPDX-License-Identifier: GPL-2.0

//! The protocol's numbers and layouts: headers and payloads, to and from bytes. No I/O here.
//!
//! All fields are little endian. What a client sends is only reached through [`Fields`], which
//! cannot read past the end.

use rustix::io::Errno;

/// Bytes of a header.
pub const HEADER: usize = 16;

/// Most data bytes in one message, as announced to the client.
pub const MAX_DATA: usize = 64 * 1024;

/// Most bytes after the header: data after an address and a count.
pub const MAX_PAYLOAD: usize = MAX_DATA + 16;

/// Most file descriptors in one message, as announced to the client.
pub const MAX_FDS: usize = 16;

/// Most DMA maps at a time, as announced to the client (and what QEMU takes for granted).
pub const MAX_MAPS: usize = 65535;

/// What the client may send at most if it names no limit.
pub const DEFAULT_MAX_DATA: u64 = 1024 * 1024;

const TYPE_MASK: u32 = 0xf;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;
const KNOWN_FLAGS: u32 = TYPE_MASK | NO_REPLY | ERROR;

/// Region index of configuration space.
pub const CONFIG_REGION: u32 = 7;
/// Regions that a PCI device has: BARs, ROM, configuration space, VGA.
pub const REGIONS: u32 = 9;
/// Interrupt kinds: INTx, MSI and MSI-X, of which only the last has vectors. Those for errors and
/// for unplugging are left out: QEMU warns of an error interrupt without a vector.
pub const IRQS: u32 = 3;
/// Interrupt index of MSI-X.
pub const MSIX_IRQ: u32 = 2;

/// Region flags.
pub mod region {
    /// Can be read.
    pub const READ: u32 = 1;
    /// Can be written.
    pub const WRITE: u32 = 2;
    /// Can be mapped, whole.
    pub const MMAP: u32 = 4;
}

/// Flags of `SET_IRQS`.
pub mod irq {
    /// No data: the action alone.
    pub const DATA_NONE: u32 = 1;
    /// One event file descriptor for each interrupt, or none to take them away.
    pub const DATA_EVENTFD: u32 = 4;
    /// The kind of data: one bit.
    pub const DATA_MASK: u32 = 7;
    /// The file descriptors are written when the interrupt fires.
    pub const ACTION_TRIGGER: u32 = 32;
}

/// Commands, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    GetInfo = 4,
    GetRegionInfo = 5,
    GetRegionIoFds = 6,
    GetIrqInfo = 7,
    SetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    Reset = 13,
    DirtyPages = 14,
    RegionWriteMulti = 15,
}

impl TryFrom<u16> for Command {
    type Error = Errno;

    fn try_from(number: u16) -> Result<Self, Errno> {
        Ok(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::GetInfo,
            5 => Self::GetRegionInfo,
            6 => Self::GetRegionIoFds,
            7 => Self::GetIrqInfo,
            8 => Self::SetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            11 => Self::DmaRead,
            12 => Self::DmaWrite,
            13 => Self::Reset,
            14 => Self::DirtyPages,
            15 => Self::RegionWriteMulti,
            _ => return Err(Errno::NOSYS),
        })
    }
}

/// Request, or reply and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request; the other side waits for no answer if `silent`.
    Request { silent: bool },
    /// A reply, with an errno if the request failed.
    Reply(Result<(), u32>),
}

/// What every message starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Ties a reply to its request; each direction counts for itself.
    pub id: u16,
    /// Number of a [`Command`], perhaps an unknown one.
    pub command: u16,
    /// Bytes after the header, at most [`MAX_PAYLOAD`].
    pub payload: usize,
    /// Request or reply.
    pub kind: Kind,
}

/// Why a header cannot be trusted; what follows it in the stream cannot be told apart then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header or longer than a message may be.
    #[error("message of {0} bytes")]
    Size(u32),
    /// Neither request nor reply, or unknown bits.
    #[error("message flags {0:#x}")]
    Flags(u32),
}

impl Header {
    /// Takes a header apart.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, HeaderError> {
        let mut fields = Fields(bytes);
        let (Ok(id), Ok(command), Ok(size), Ok(flags), Ok(error)) = (
            fields.u16(),
            fields.u16(),
            fields.u32(),
            fields.u32(),
            fields.u32(),
        ) else {
            return Err(HeaderError::Size(0));
        };
        let payload = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_sub(HEADER))
            .filter(|&payload| payload <= MAX_PAYLOAD)
            .ok_or(HeaderError::Size(size))?;
        let kind = match flags & TYPE_MASK {
            _ if flags & !KNOWN_FLAGS != 0 => return Err(HeaderError::Flags(flags)),
            0 if flags & ERROR == 0 => Kind::Request {
                silent: flags & NO_REPLY != 0,
            },
            TYPE_REPLY if flags & ERROR != 0 => Kind::Reply(Err(error)),
            TYPE_REPLY => Kind::Reply(Ok(())),
            _ => return Err(HeaderError::Flags(flags)),
        };
        Ok(Self {
            id,
            command,
            payload,
            kind,
        })
    }

    /// Puts it together.
    pub fn encode(&self) -> [u8; HEADER] {
        let (flags, error) = match self.kind {
            Kind::Request { silent: false } => (0, 0),
            Kind::Request { silent: true } => (NO_REPLY, 0),
            Kind::Reply(Ok(())) => (TYPE_REPLY, 0),
            Kind::Reply(Err(errno)) => (TYPE_REPLY | ERROR, errno),
        };
        // No caller sends more than a message may hold, so that the size fits.
        let size = u32::try_from(self.payload + HEADER).unwrap_or(u32::MAX);
        let mut bytes = [0; HEADER];
        bytes[0..2].copy_from_slice(&self.id.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_le_bytes());
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&error.to_le_bytes());
        bytes
    }
}

/// Takes fields off the front of a payload; too few bytes are `EINVAL`.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*bytes)
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_le_bytes)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }
}

/// Payload of `DMA_MAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// Offset in the file descriptor that comes with it, if one does.
    pub offset: u64,
    /// DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// The device may write it.
    pub write: bool,
}

impl DmaMap {
    pub fn parse(payload: &[u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let _argsz = fields.u32()?;
        let flags = fields.u32()?;
        let map = Self {
            offset: fields.u64()?,
            address: fields.u64()?,
            size: fields.u64()?,
            write: flags & 2 != 0,
        };
        fields.end()?;
        if flags & !3 != 0 {
            Err(Errno::INVAL)
        } else {
            Ok(map)
        }
    }
}

/// Payload of `DMA_UNMAP`: a range, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    All,
    Range { address: u64, size: u64 },
}

impl DmaUnmap {
    pub fn parse(payload: &[u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let _argsz = fields.u32()?;
        let flags = fields.u32()?;
        let (address, size) = (fields.u64()?, fields.u64()?);
        fields.end()?;
        match flags {
            0 => Ok(Self::Range { address, size }),
            4 if address == 0 && size == 0 => Ok(Self::All),
            2 => Err(Errno::OPNOTSUPP), // with the dirty bitmap
            _ => Err(Errno::INVAL),
        }
    }
}

/// Payload of `SET_IRQS`, without the file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs {
    pub flags: u32,
    pub index: u32,
    pub start: u32,
    pub count: u32,
}

impl SetIrqs {
    pub fn parse(payload: &[u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let _argsz = fields.u32()?;
        let set = Self {
            flags: fields.u32()?,
            index: fields.u32()?,
            start: fields.u32()?,
            count: fields.u32()?,
        };
        fields.end()?;
        Ok(set)
    }
}

/// Where a region access goes. `REGION_READ` and `REGION_WRITE` start with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAccess {
    pub offset: u64,
    pub region: u32,
    /// Bytes, at most [`MAX_DATA`].
    pub count: usize,
}

impl RegionAccess {
    fn take(fields: &mut Fields<'_>) -> Result<Self, Errno> {
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let count = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        if count == 0 || count > MAX_DATA {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            offset,
            region,
            count,
        })
    }

    pub fn parse_read(payload: &[u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let access = Self::take(&mut fields)?;
        fields.end()?;
        Ok(access)
    }

    /// Also gives the data, which has `count` bytes.
    pub fn parse_write(payload: &[u8]) -> Result<(Self, &[u8]), Errno> {
        let mut fields = Fields(payload);
        let access = Self::take(&mut fields)?;
        let data = fields.rest();
        if data.len() == access.count {
            Ok((access, data))
        } else {
            Err(Errno::INVAL)
        }
    }

    /// Takes the writes of a `REGION_WRITE_MULTI` apart: each has 8 bytes for its data.
    pub fn parse_multi(payload: &[u8]) -> Result<Vec<(Self, &[u8])>, Errno> {
        const ENTRY: usize = 24;
        let mut fields = Fields(payload);
        let count = fields.u64()?;
        let entries = fields.rest();
        if entries.len() % ENTRY != 0 || count != (entries.len() / ENTRY) as u64 {
            return Err(Errno::INVAL);
        }
        entries
            .chunks_exact(ENTRY)
            .map(|entry| {
                let mut fields = Fields(entry);
                let access = Self::take(&mut fields)?;
                let data = fields.rest().get(..access.count).ok_or(Errno::INVAL)?;
                Ok((access, data))
            })
            .collect()
    }

    /// The front of a reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.offset.to_le_bytes().to_vec();
        push32(
            &mut bytes,
            &[self.region, u32::try_from(self.count).unwrap_or(u32::MAX)],
        );
        bytes
    }
}

/// Appends 32-bit fields.
pub fn push32(bytes: &mut Vec<u8>, fields: &[u32]) {
    for field in fields {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
}

/// Appends 64-bit fields.
pub fn push64(bytes: &mut Vec<u8>, fields: &[u64]) {
    for field in fields {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            any::<bool>().prop_map(|silent| Kind::Request { silent }),
            Just(Kind::Reply(Ok(()))),
            any::<u32>().prop_map(|errno| Kind::Reply(Err(errno))),
        ]
    }

    proptest! {
        #[test]
        fn headers_survive_the_way(id: u16, command: u16, payload in 0..=MAX_PAYLOAD, kind in kinds()) {
            let header = Header { id, command, payload, kind };
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn accepted_headers_are_bounded(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.payload <= MAX_PAYLOAD);
            }
        }

        #[test]
        fn accesses_have_as_much_data_as_they_say(payload in prop::collection::vec(0u8..4, 0..60)) {
            if let Ok((access, data)) = RegionAccess::parse_write(&payload) {
                prop_assert_eq!(access.count, data.len());
            }
            for (access, data) in RegionAccess::parse_multi(&payload).unwrap_or_default() {
                prop_assert_eq!(access.count, data.len());
                prop_assert!(data.len() <= 8);
            }
        }
    }

    #[test]
    fn sizes_at_the_limits() {
        let sized = |size: u32| {
            let mut bytes = [0; HEADER];
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            Header::parse(&bytes).map(|header| header.payload)
        };
        assert_eq!(sized(16), Ok(0));
        assert_eq!(sized(65568), Ok(MAX_PAYLOAD));
        assert_eq!(sized(15), Err(HeaderError::Size(15)));
        assert_eq!(sized(65569), Err(HeaderError::Size(65569)));
        assert_eq!(sized(u32::MAX), Err(HeaderError::Size(u32::MAX)));
    }

    #[test]
    fn payloads_of_another_length_are_refused() {
        for len in (0..64).filter(|&len| len != 32) {
            assert_eq!(DmaMap::parse(&vec![0; len]), Err(Errno::INVAL));
        }
        for len in (0..64).filter(|&len| len != 24) {
            assert_eq!(DmaUnmap::parse(&vec![0; len]), Err(Errno::INVAL));
        }
        for len in (0..64).filter(|&len| len != 20) {
            assert_eq!(SetIrqs::parse(&vec![0; len]), Err(Errno::INVAL));
        }
        for len in (0..64).filter(|&len| len != 16) {
            assert_eq!(RegionAccess::parse_read(&vec![1; len]), Err(Errno::INVAL));
        }
    }

    #[test]
    fn commands_keep_their_numbers() {
        for number in 0..=u16::MAX {
            match Command::try_from(number) {
                Ok(command) => assert_eq!(command as u16, number),
                Err(errno) => assert!(errno == Errno::NOSYS && !(1..=15).contains(&number)),
            }
        }
    }
}
