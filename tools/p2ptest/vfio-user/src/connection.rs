// SPDX-License-Identifier: GPL-2.0

//! One client's socket: whole messages in and out, and requests of our own with their replies.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::bus::BusError;
use crate::wire::{Command, HEADER, Header, HeaderError, Kind, MAX_FDS};

/// A message that has begun must be complete by then, in either direction.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The client must have answered a DMA by then. QEMU answers from its main loop: long only if the
/// whole machine hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A received message.
#[derive(Debug)]
pub struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Why a connection ended. Only [`Closed`](Self::Closed) is a client's normal end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection ended within a message")]
    Truncated,
    #[error("a message took too long")]
    Slow,
    #[error("more than {MAX_FDS} file descriptors in a message")]
    TooManyFds,
    #[error("bad header: {0}")]
    Header(#[from] HeaderError),
    #[error("reply to a request that was not made")]
    StrayReply,
    #[error("the first message was not a version that suits")]
    Version,
    #[error("socket: {0}")]
    Socket(Errno),
}

/// What came back for a request of ours: its payload, or the client's errno.
type Answer = Result<Vec<u8>, u32>;

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<u16, (Command, SyncSender<Answer>)>,
    next: u16,
    broken: bool,
}

/// One client's socket.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Messages of several threads must not mix.
    sending: Mutex<()>,
    pending: Mutex<Pending>,
    /// The thread that receives: it cannot wait for a reply.
    receiver: ThreadId,
}

impl Connection {
    /// Takes over a socket; the calling thread is the one that will [`receive`](Self::receive).
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        Ok(Self {
            stream,
            sending: Mutex::new(()),
            pending: Mutex::default(),
            receiver: thread::current().id(),
        })
    }

    /// Ends it: every wait for a reply fails, and so does the next receive.
    pub fn shut_down(&self) {
        let mut pending = self.pending();
        pending.broken = true;
        pending.waiting.clear();
        // Fails only if the client was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next message, as long as it takes to begin.
    pub fn receive(&self) -> Result<Message, ConnectionError> {
        let mut bytes = [0; HEADER];
        let mut fds = Vec::new();
        let deadline = self.receive_into(&mut bytes, &mut fds, None)?;
        let header = Header::parse(&bytes)?;
        let mut payload = vec![0; header.payload];
        self.receive_into(&mut payload, &mut fds, Some(deadline))?;
        Ok(Message {
            header,
            payload,
            fds,
        })
    }

    /// Fills `bytes`. Without a deadline it is a message's start: that may be long in coming, and
    /// sets the deadline.
    fn receive_into(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        mut deadline: Option<Instant>,
    ) -> Result<Instant, ConnectionError> {
        let mut done = 0;
        while done < bytes.len() {
            match self.receive_some(&mut bytes[done..], fds) {
                Ok(0) if deadline.is_none() => return Err(ConnectionError::Closed),
                Ok(0) => return Err(ConnectionError::Truncated),
                Ok(count) => {
                    done += count;
                    let deadline = deadline.get_or_insert_with(|| Instant::now() + MESSAGE_TIMEOUT);
                    if done < bytes.len() && Instant::now() > *deadline {
                        return Err(ConnectionError::Slow);
                    }
                }
                Err(ConnectionError::Socket(Errno::INTR)) => {}
                Err(ConnectionError::Socket(Errno::AGAIN)) if deadline.is_none() => {}
                Err(ConnectionError::Socket(Errno::AGAIN)) => return Err(ConnectionError::Slow),
                Err(ConnectionError::Socket(Errno::CONNRESET)) => {
                    return Err(ConnectionError::Closed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(deadline.unwrap_or_else(Instant::now))
    }

    fn receive_some(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<usize, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(ConnectionError::Socket)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(ConnectionError::TooManyFds);
        }
        Ok(received.bytes)
    }

    /// Sends one message; `fd` goes with its first byte. A failure ends the connection, as the
    /// client may have a part of the message.
    pub fn send(
        &self,
        header: &Header,
        parts: [&[u8]; 2],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ConnectionError> {
        let sent = self.try_send(&header.encode(), parts, fd);
        if sent.is_err() {
            self.shut_down();
        }
        sent.map_err(ConnectionError::Socket)
    }

    fn try_send(
        &self,
        header: &[u8],
        [first, second]: [&[u8]; 2],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let mut buffers = [
            IoSlice::new(header),
            IoSlice::new(first),
            IoSlice::new(second),
        ];
        let mut left = &mut buffers[..];
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        // QEMU reads a header in one go: it must start with the call that sends its first byte.
        while left.iter().any(|buffer| !buffer.is_empty()) {
            match sendmsg(&self.stream, left, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    IoSlice::advance_slices(&mut left, count);
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if Instant::now() > deadline {
                return Err(Errno::TIMEDOUT);
            }
        }
        Ok(())
    }

    /// Makes a request of our own and waits for the answer's payload. Not from the thread that
    /// receives: it would wait for itself.
    pub fn request(&self, command: Command, parts: [&[u8]; 2]) -> Result<Vec<u8>, BusError> {
        if thread::current().id() == self.receiver {
            log::error!("DMA by message from a region handler: refused");
            return Err(refused(Errno::DEADLK));
        }
        let (id, answer) = self.expect(command)?;
        let header = Header {
            id,
            command: command as u16,
            payload: parts[0].len() + parts[1].len(),
            kind: Kind::Request { silent: false },
        };
        self.send(&header, parts, None)
            .map_err(|_| BusError::Disconnected)?;
        match answer.recv_timeout(REPLY_TIMEOUT) {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(errno)) if errno == refused_number(Errno::NODEV) => Err(BusError::Unmapped),
            Ok(Err(errno)) => Err(BusError::Refused(errno)),
            Err(RecvTimeoutError::Disconnected) => Err(BusError::Disconnected),
            Err(RecvTimeoutError::Timeout) => {
                log::error!("the client does not answer a DMA: connection closed");
                self.shut_down();
                Err(BusError::Disconnected)
            }
        }
    }

    /// Registers a request, with a number that no other one waits under.
    fn expect(&self, command: Command) -> Result<(u16, Receiver<Answer>), BusError> {
        let mut pending = self.pending();
        if pending.broken {
            return Err(BusError::Disconnected);
        }
        if pending.waiting.len() >= usize::from(u16::MAX) {
            return Err(refused(Errno::AGAIN));
        }
        let mut id = pending.next;
        while pending.waiting.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        pending.next = id.wrapping_add(1);
        let (sender, receiver) = sync_channel(1);
        pending.waiting.insert(id, (command, sender));
        Ok((id, receiver))
    }

    /// Hands a reply to the thread that waits for it.
    pub fn complete(
        &self,
        header: &Header,
        result: Result<(), u32>,
        payload: Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let waiting = self.pending().waiting.remove(&header.id);
        let Some((command, sender)) = waiting else {
            return Err(ConnectionError::StrayReply);
        };
        if header.command != command as u16 {
            return Err(ConnectionError::StrayReply);
        }
        // The waiter may have given up; the connection is closed then.
        let _ = sender.try_send(result.map(|()| payload));
        Ok(())
    }
}

/// An errno of our own, as if the client had said it.
pub fn refused(errno: Errno) -> BusError {
    BusError::Refused(refused_number(errno))
}

/// An errno as it stands in a message.
pub fn refused_number(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}
