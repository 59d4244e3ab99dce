// SPDX-License-Identifier: GPL-2.0

//! One client's requests, from its first message to its last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::config::{Backing, Bar, Config, MSIX_BAR, MSIX_PBA};
use crate::connection::{Connection, ConnectionError, Message, refused_number};
use crate::dma::Dma;
use crate::msix::Msix;
use crate::pci::{self, Space, Written};
use crate::wire::{
    CONFIG_REGION, Command, DmaMap, DmaUnmap, Fields, Header, IRQS, Kind, MSIX_IRQ, REGIONS,
    RegionAccess, SetIrqs, irq, push32, push64, region,
};
use crate::{Device, version};

/// `VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI`
const DEVICE_FLAGS: u32 = 1 | 2;
/// `VFIO_IRQ_INFO_EVENTFD`
const IRQ_EVENTFD: u32 = 1;

/// Bytes of a region's description, which carries no capabilities: a mapped BAR is mapped whole.
const REGION_INFO: u32 = 32;

/// A reply that says yes: a payload, and for a mapped region its memory.
#[derive(Debug, Default)]
struct Reply<'a> {
    payload: Vec<u8>,
    fd: Option<BorrowedFd<'a>>,
}

impl From<Vec<u8>> for Reply<'_> {
    fn from(payload: Vec<u8>) -> Self {
        Self { payload, fd: None }
    }
}

/// What a client's requests act on.
pub struct Session<'a> {
    config: &'a Config,
    connection: Arc<Connection>,
    dma: &'a Dma,
    msix: &'a Msix,
    device: &'a mut dyn Device,
    space: Space,
    /// The MSI-X table, as written: whoever writes it here does not let the client emulate it.
    table: [u8; MSIX_PBA as usize],
}

impl<'a> Session<'a> {
    /// For a client that has just connected.
    pub fn new(
        config: &'a Config,
        connection: Arc<Connection>,
        (dma, msix): (&'a Dma, &'a Msix),
        device: &'a mut dyn Device,
    ) -> Self {
        let space = Space::new(config);
        Self {
            config,
            connection,
            dma,
            msix,
            device,
            space,
            table: [0; _],
        }
    }

    /// Serves until the connection ends, and takes everything of the client away.
    pub fn serve(mut self) -> ConnectionError {
        if let Err(error) = self.negotiate() {
            self.connection.shut_down();
            return error;
        }
        self.device.connected();
        let error = loop {
            if let Err(error) = self.serve_one() {
                break error;
            }
        };
        self.connection.shut_down();
        self.dma.detach();
        self.msix.detach();
        self.device.disconnected();
        error
    }

    fn negotiate(&mut self) -> Result<(), ConnectionError> {
        let message = self.connection.receive()?;
        let suits = match message.header.kind {
            Kind::Request { .. } if !message.fds.is_empty() => Err(Errno::INVAL),
            Kind::Request { .. } if message.header.command == Command::Version as u16 => {
                version::Client::parse(&message.payload)
            }
            _ => Err(Errno::INVAL),
        };
        let client = match suits {
            Ok(client) => client,
            Err(errno) => {
                self.reply(&message.header, Err(errno))?;
                return Err(ConnectionError::Version);
            }
        };
        self.dma
            .attach(Arc::clone(&self.connection), client.max_data);
        self.reply(&message.header, Ok(version::reply().into()))
    }

    fn serve_one(&mut self) -> Result<(), ConnectionError> {
        let Message {
            header,
            payload,
            fds,
        } = self.connection.receive()?;
        let silent = match header.kind {
            Kind::Reply(result) => return self.connection.complete(&header, result, payload),
            Kind::Request { silent } => silent,
        };
        let connection = Arc::clone(&self.connection);
        let result = self.request(header.command, &payload, fds);
        if let Err(errno) = &result {
            log::debug!("request {} refused: {errno}", header.command);
        }
        if silent {
            Ok(())
        } else {
            send_reply(&connection, &header, result)
        }
    }

    fn reply(
        &self,
        header: &Header,
        result: Result<Reply<'_>, Errno>,
    ) -> Result<(), ConnectionError> {
        send_reply(&self.connection, header, result)
    }

    fn request(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Reply<'_>, Errno> {
        let command = Command::try_from(command)?;
        if !fds.is_empty() && !matches!(command, Command::DmaMap | Command::SetIrqs) {
            return Err(Errno::INVAL);
        }
        match command {
            Command::DmaMap => self.dma_map(payload, fds),
            Command::DmaUnmap => self.dma_unmap(payload),
            Command::GetInfo => device_info(payload),
            Command::GetRegionInfo => self.region_info(payload),
            Command::GetIrqInfo => self.irq_info(payload),
            Command::SetIrqs => self.set_irqs(payload, fds),
            Command::RegionRead => self.region_read(payload),
            Command::RegionWrite => {
                let (access, data) = RegionAccess::parse_write(payload)?;
                self.write(&access, data)?;
                Ok(access.encode().into())
            }
            Command::RegionWriteMulti => {
                for (access, data) in RegionAccess::parse_multi(payload)? {
                    self.write(&access, data)?;
                }
                Ok(Reply::default())
            }
            Command::Reset => {
                Fields(payload).end()?;
                self.space.reset();
                self.reset();
                Ok(Reply::default())
            }
            Command::GetRegionIoFds | Command::DirtyPages => Err(Errno::OPNOTSUPP),
            // The version is settled, and DMA is the server's to ask for.
            Command::Version | Command::DmaRead | Command::DmaWrite => Err(Errno::INVAL),
        }
    }

    fn dma_map(&mut self, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<Reply<'_>, Errno> {
        let map = DmaMap::parse(payload)?;
        let fd = fds.pop();
        if !fds.is_empty() {
            return Err(Errno::INVAL);
        }
        self.dma.map(&map, fd)?;
        Ok(Reply::default())
    }

    fn dma_unmap(&mut self, payload: &[u8]) -> Result<Reply<'_>, Errno> {
        let unmap = DmaUnmap::parse(payload)?;
        let size = self.dma.unmap(&unmap)?;
        let mut reply = payload[..16].to_vec(); // as it came, but for the size
        push64(&mut reply, &[size]);
        Ok(reply.into())
    }

    fn region_info(&self, payload: &[u8]) -> Result<Reply<'_>, Errno> {
        let mut fields = Fields(payload);
        let (argsz, _flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let _ = (fields.u32()?, fields.u64()?, fields.u64()?);
        fields.end()?;
        if argsz < REGION_INFO || index >= REGIONS {
            return Err(Errno::INVAL);
        }
        let (size, memory) = self.region(index);
        let fd = memory.map(AsFd::as_fd);
        let access = if size == 0 {
            0
        } else {
            region::READ | region::WRITE
        };
        let map = if fd.is_some() { region::MMAP } else { 0 };
        let mut reply = Vec::new();
        push32(&mut reply, &[REGION_INFO, access | map, index, 0]);
        push64(&mut reply, &[size, 0]);
        Ok(Reply { payload: reply, fd })
    }

    /// Size of a region, 0 if there is none, and its memory if it is mapped.
    fn region(&self, index: u32) -> (u64, Option<&'a crate::SharedMemory>) {
        if index == CONFIG_REGION {
            return (pci::SIZE as u64, None);
        }
        let Ok(bar) = u8::try_from(index) else {
            return (0, None);
        };
        let size = self.config.bar_size(bar).unwrap_or(0);
        let memory = match self.config.bars.get(usize::from(bar)) {
            Some(Some(Bar {
                backing: Backing::Mapped(memory),
                ..
            })) => Some(&**memory),
            _ => None,
        };
        (size, memory)
    }

    fn irq_info(&self, payload: &[u8]) -> Result<Reply<'_>, Errno> {
        let mut fields = Fields(payload);
        let (argsz, _flags, index, _count) =
            (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        fields.end()?;
        if argsz < 16 || index >= IRQS {
            return Err(Errno::INVAL);
        }
        let count = if index == MSIX_IRQ {
            self.config.msix_vectors
        } else {
            0
        };
        let mut reply = Vec::new();
        push32(&mut reply, &[16, IRQ_EVENTFD, index, u32::from(count)]);
        Ok(reply.into())
    }

    fn set_irqs(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Reply<'_>, Errno> {
        let set = SetIrqs::parse(payload)?;
        let off = set.count == 0 && set.flags & irq::DATA_MASK == irq::DATA_NONE;
        match set.index {
            MSIX_IRQ => self.msix.set(&set, fds)?,
            index if index < IRQS && off && fds.is_empty() => {} // nothing to switch off
            _ => return Err(Errno::INVAL),
        }
        Ok(Reply::default())
    }

    fn region_read(&mut self, payload: &[u8]) -> Result<Reply<'_>, Errno> {
        let access = RegionAccess::parse_read(payload)?;
        let mut reply = access.encode();
        let front = reply.len();
        reply.resize(front + access.count, 0xff);
        self.read(&access, &mut reply[front..])?;
        Ok(reply.into())
    }

    /// The checks that all accesses need: the mapped memory of the region, if it has some.
    fn locate(
        &self,
        access: &RegionAccess,
    ) -> Result<(u8, Option<&'a crate::SharedMemory>), Errno> {
        let (size, memory) = self.region(access.region);
        let end = access
            .offset
            .checked_add(access.count as u64)
            .ok_or(Errno::INVAL)?;
        let bar = u8::try_from(access.region).map_err(|_| Errno::INVAL)?;
        if end > size {
            Err(Errno::INVAL)
        } else {
            Ok((bar, memory))
        }
    }

    fn read(&mut self, access: &RegionAccess, data: &mut [u8]) -> Result<(), Errno> {
        let (bar, memory) = self.locate(access)?;
        if access.region == CONFIG_REGION {
            return if self.space.read(access.offset, data) {
                Ok(())
            } else {
                Err(Errno::INVAL)
            };
        }
        if !self.space.memory() {
            return Ok(()); // nobody answers: all ones
        }
        if let Some(memory) = memory {
            return memory.read(access.offset, data).map_err(|_| Errno::INVAL);
        }
        if bar == MSIX_BAR && self.config.msix_vectors > 0 {
            self.msix_read(access.offset, data);
        } else {
            self.device.read(bar, access.offset, data);
        }
        Ok(())
    }

    fn write(&mut self, access: &RegionAccess, data: &[u8]) -> Result<(), Errno> {
        let (bar, memory) = self.locate(access)?;
        if access.region == CONFIG_REGION {
            return self.config_write(access.offset, data);
        }
        if !self.space.memory() {
            return Ok(());
        }
        if let Some(memory) = memory {
            return memory.write(access.offset, data).map_err(|_| Errno::INVAL);
        }
        if bar == MSIX_BAR && self.config.msix_vectors > 0 {
            self.msix_write(access.offset, data);
        } else {
            self.device.write(bar, access.offset, data);
        }
        Ok(())
    }

    fn msix_read(&self, offset: u64, data: &mut [u8]) {
        let pending = self.msix.pending_bits();
        for (place, byte) in (offset..).zip(data) {
            *byte = match usize::try_from(place) {
                Ok(place) if place < self.table.len() => self.table[place],
                Ok(place) => pending.get(place - self.table.len()).copied().unwrap_or(0),
                Err(_) => 0,
            };
        }
    }

    fn msix_write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in self.table.iter_mut().skip(start).zip(data) {
            *place = *byte;
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self.space.write(offset, data).ok_or(Errno::INVAL)? {
            Written::Bits => self.follow_config(),
            Written::FunctionLevelReset => self.reset(),
        }
        Ok(())
    }

    /// Configuration space may have changed: DMA and interrupts must heed it from now on.
    fn follow_config(&mut self) {
        self.dma.set_master(self.space.master());
        self.msix.set_enabled(self.space.msix_enabled());
    }

    /// The space has been reset: now the rest. The client does not know of a function-level reset
    /// by the guest and will not send its event descriptors again: they stay.
    fn reset(&mut self) {
        self.follow_config();
        self.table.fill(0);
        self.device.reset();
    }
}

fn device_info(payload: &[u8]) -> Result<Reply<'static>, Errno> {
    let mut fields = Fields(payload);
    let argsz = fields.u32()?;
    let _ = (fields.u32()?, fields.u32()?, fields.u32()?);
    fields.end()?;
    if argsz < 16 {
        return Err(Errno::INVAL);
    }
    let mut reply = Vec::new();
    push32(&mut reply, &[16, DEVICE_FLAGS, REGIONS, IRQS]);
    Ok(reply.into())
}

fn send_reply(
    connection: &Connection,
    request: &Header,
    result: Result<Reply<'_>, Errno>,
) -> Result<(), ConnectionError> {
    let (kind, reply) = match result {
        Ok(reply) => (Kind::Reply(Ok(())), reply),
        Err(errno) => (Kind::Reply(Err(refused_number(errno))), Reply::default()),
    };
    let header = Header {
        kind,
        payload: reply.payload.len(),
        ..*request
    };
    connection.send(&header, [&reply.payload, &[]], reply.fd)
}
