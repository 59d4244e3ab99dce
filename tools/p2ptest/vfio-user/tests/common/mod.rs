// SPDX-License-Identifier: GPL-2.0

//! A client for tests that speaks the protocol byte by byte, right or wrong, and answers DMA.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::VecDeque;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use p2p_vfio_user::{Backing, Server, Stop};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

#[path = "../../examples/mover/model.rs"]
pub mod model;

/// The example device, served until dropped.
pub struct Served {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    folder: TempDir,
}

impl Served {
    pub fn new(window: Backing) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::bind(folder.path().join("sock"), model::config(window)).unwrap();
        let stop = server.stop_handle();
        let mut device = model::Mover::new(server.bus(), server.interrupts()).unwrap();
        let thread = Some(thread::spawn(move || server.run(&mut device).unwrap()));
        Self {
            stop,
            thread,
            folder,
        }
    }

    pub fn trapped() -> Self {
        Self::new(Backing::Trapped)
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    pub fn finish(mut self) {
        self.end();
        assert!(!self.path().exists());
    }

    fn end(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub payload: Vec<u8>,
}

/// Memory that the client serves by message: what a peer's BAR is to a real one.
pub struct Peer {
    pub base: u64,
    pub bytes: Vec<u8>,
    /// The DMA requests that came: command, address, count.
    pub log: Vec<(u16, u64, u64)>,
}

/// The client.
pub struct Client {
    pub stream: UnixStream,
    pub peer: Peer,
    next: u16,
    /// DMA waits for the test to take it, instead of being answered as it comes.
    pub hold: bool,
    held: VecDeque<Message>,
}

pub fn header(id: u16, command: u16, size: u32, flags: u32, error: u32) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
    for field in [size, flags, error] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

/// Fields one after another.
#[macro_export]
macro_rules! fields {
    ($($field:expr),* $(,)?) => { [$(&$field.to_le_bytes()[..]),*].concat() };
}

impl Client {
    /// Connects, and no more.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let peer = Peer {
            base: 0,
            bytes: Vec::new(),
            log: Vec::new(),
        };
        Self {
            stream,
            peer,
            next: 0,
            hold: false,
            held: VecDeque::new(),
        }
    }

    /// Connects and agrees on the version.
    pub fn new(path: &Path) -> Self {
        Self::with_limit(path, 1 << 20)
    }

    pub fn with_limit(path: &Path, max_data: u32) -> Self {
        let mut client = Self::connect(path);
        let json = format!(r#"{{"capabilities":{{"max_data_xfer_size":{max_data}}}}}"#);
        let reply = client
            .call(1, &[&[0; 4], json.as_bytes(), &[0]].concat())
            .unwrap();
        assert_eq!((&reply[..4], reply.last()), (&[0; 4][..], Some(&0)));
        client
    }

    /// Sets the memory and bus-master bits.
    pub fn enable(mut self) -> Self {
        self.write(7, 4, &[6, 0]).unwrap();
        self
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// Receives one message, or the error or end of the stream.
    pub fn receive(&mut self) -> std::io::Result<Message> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; u32_at(4) as usize - 16];
        self.stream.read_exact(&mut payload)?;
        Ok(Message {
            id: u16::from_le_bytes([head[0], head[1]]),
            command: u16::from_le_bytes([head[2], head[3]]),
            flags: u32_at(8),
            error: u32_at(12),
            payload,
        })
    }

    /// Makes a request; DMA that comes in between is answered. An error is the server's errno.
    pub fn call(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.call_with(command, payload, &[])
    }

    pub fn call_with(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, u32> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let message = [
            header(id, command, payload.len() as u32 + 16, 0, 0),
            payload.to_vec(),
        ];
        self.send_with(&message.concat(), fds);
        loop {
            let reply = self.receive().expect("a reply");
            if reply.flags & 0xf == 0 {
                if self.hold {
                    self.held.push_back(reply);
                } else {
                    self.serve(&reply);
                }
                continue;
            }
            assert_eq!((reply.id, reply.command), (id, command));
            return if reply.flags & 0x20 != 0 {
                Err(reply.error)
            } else {
                Ok(reply.payload)
            };
        }
    }

    /// The next DMA, while they are held.
    pub fn next_dma(&mut self) -> Message {
        self.held
            .pop_front()
            .unwrap_or_else(|| self.receive().unwrap())
    }

    /// Answers a DMA as QEMU does.
    pub fn serve(&mut self, request: &Message) {
        let u64_at =
            |at: usize| u64::from_le_bytes(request.payload[at..at + 8].try_into().unwrap());
        let (address, count) = (u64_at(0), u64_at(8));
        self.peer.log.push((request.command, address, count));
        let start = address.wrapping_sub(self.peer.base) as usize;
        let end = start.saturating_add(count as usize);
        let Some(bytes) = self.peer.bytes.get_mut(start..end) else {
            return self.send(&header(request.id, request.command, 16, 0x21, 19));
        };
        if request.command == 11 {
            let head = header(request.id, 11, 32 + count as u32, 1, 0);
            let reply = [&head, &request.payload[..16], bytes].concat();
            self.send(&reply);
        } else {
            assert_eq!(request.payload.len() as u64, 16 + count);
            bytes.copy_from_slice(&request.payload[16..]);
            self.send(&header(request.id, 12, 16, 1, 0));
        }
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        self.call(9, &fields![offset, region, count])
            .map(|reply| reply[16..].to_vec())
    }

    pub fn read32(&mut self, region: u32, offset: u64) -> u32 {
        let bytes = self.read(region, offset, 4).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let place = fields![offset, region, data.len() as u32];
        self.call(10, &[&place, data].concat()).map(drop)
    }

    pub fn map(&mut self, fd: &OwnedFd, offset: u64, address: u64, size: u64) -> Result<(), u32> {
        let payload = fields![32u32, 3u32, offset, address, size];
        self.call_with(2, &payload, &[fd.as_fd()]).map(drop)
    }

    pub fn unmap(&mut self, address: u64, size: u64) -> Result<u64, u32> {
        let reply = self.call(3, &fields![24u32, 0u32, address, size])?;
        Ok(u64::from_le_bytes(reply[16..24].try_into().unwrap()))
    }

    /// Starts a copy by the device's engine.
    pub fn start(&mut self, src: u64, dst: u64, len: u32) {
        self.write(0, model::SRC, &src.to_le_bytes()).unwrap();
        self.write(0, model::DST, &dst.to_le_bytes()).unwrap();
        self.write(0, model::LEN, &len.to_le_bytes()).unwrap();
        self.write(0, model::GO, &[1, 0, 0, 0]).unwrap();
    }

    /// A copy from start to end, answering its DMA; its result.
    pub fn copy(&mut self, src: u64, dst: u64, len: u32) -> u32 {
        let before = self.read32(0, model::STATUS);
        self.start(src, dst, len);
        while self.read32(0, model::STATUS) == before {
            thread::sleep(Duration::from_millis(1));
        }
        self.read32(0, model::RESULT)
    }

    /// The server has closed the connection.
    pub fn is_cut_off(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
            || matches!(self.receive(), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock)
    }
}

/// Guest memory as QEMU makes it: a memfd that cannot change its size.
pub fn guest_memory(size: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, size).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    fd
}

pub fn put(fd: &OwnedFd, offset: u64, data: &[u8]) {
    assert_eq!(rustix::io::pwrite(fd, data, offset), Ok(data.len()));
}

pub fn get(fd: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    assert_eq!(rustix::io::pread(fd, &mut data[..], offset), Ok(len));
    data
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + (at >> 8)) as u8).collect()
}
