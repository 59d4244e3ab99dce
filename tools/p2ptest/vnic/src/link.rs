// SPDX-License-Identifier: GPL-2.0

//! The wire as the queue pairs see it: what goes out, what a message that comes in does, and what
//! happens when the wire breaks. Nothing here blocks; `wire.rs` moves the bytes.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar};

use crate::message::{Message, Op, Request, Violation};
use crate::queue::{Phase, QpRef, Reply, WINDOW};
use crate::state::State;

/// Messages that may wait for the socket: more than all windows together and some connecting. An
/// other end that lets more pile up is not reading.
const MAX_WAITING: usize = 8192;
/// As [`MAX_WAITING`], in bytes: above all windows of 64 queue pairs together (32 MiB).
const MAX_WAITING_BYTES: usize = 64 << 20;

/// The wire.
#[derive(Debug)]
pub(crate) struct Link {
    loopback: bool,
    /// A session with the other end; `None` while there is none, and in loopback.
    socket: Option<UnixStream>,
    /// Tells sessions apart.
    pub session: u64,
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    /// Something waits for the socket, or the session ended.
    pub wake: Arc<Condvar>,
}

impl Link {
    pub fn new(loopback: bool) -> Link {
        Link {
            loopback,
            socket: None,
            session: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            wake: Arc::new(Condvar::new()),
        }
    }

    pub fn is_up(&self) -> bool {
        self.loopback || self.socket.is_some()
    }

    pub fn is_session(&self, session: u64) -> bool {
        self.socket.is_some() && self.session == session
    }

    /// The next message for the socket.
    pub fn take(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        self.waiting_bytes -= weight(&message);
        Some(message)
    }
}

fn weight(message: &Message) -> usize {
    match message {
        Message::Request { request, .. } => request.data.len(),
        Message::Answer { data, .. } => data.len(),
        _ => 0,
    }
}

impl State {
    /// Sends a message if there is a wire; never waits.
    pub fn send(&mut self, message: Message) {
        if self.link.loopback {
            if let Err(violation) = self.deliver(message) {
                log::error!("loopback: {violation}");
            }
            return;
        }
        if self.link.socket.is_none() {
            return;
        }
        self.link.waiting_bytes += weight(&message);
        self.link.waiting.push_back(message);
        self.link.wake.notify_all();
        if self.link.waiting.len() > MAX_WAITING || self.link.waiting_bytes > MAX_WAITING_BYTES {
            log::warn!("the other end of the wire does not read");
            self.sever();
        }
    }

    /// A session begins; its number.
    pub fn link_up(&mut self, socket: UnixStream) -> u64 {
        self.link.session += 1;
        self.link.socket = Some(socket);
        let connecting: Vec<_> = self
            .pairs
            .iter()
            .filter_map(|(&from, qp)| match qp.phase {
                Phase::Connecting(to) => Some((from, to, qp.serial)),
                _ => None,
            })
            .collect();
        for (from, to, serial) in connecting {
            self.send(Message::Connect {
                from,
                to,
                serial,
                answers: 0,
            });
        }
        self.link.session
    }

    /// Ends the session, if there is one: all pairs are broken.
    pub fn sever(&mut self) {
        let Some(socket) = self.link.socket.take() else {
            return;
        };
        // The other end may have closed it already.
        let _ = socket.shutdown(Shutdown::Both);
        self.link.waiting.clear();
        self.link.waiting_bytes = 0;
        self.link.wake.notify_all();
        for qp in self.pairs.values_mut() {
            if qp.paired().is_some() {
                qp.leave(Phase::Broken);
            }
        }
    }

    /// QP_CONNECT.
    pub fn connect(&mut self, from: u32, to: u32) {
        if let Some(qp) = self.pairs.get_mut(&from) {
            qp.phase = Phase::Connecting(to);
            let serial = qp.serial;
            self.send(Message::Connect {
                from,
                to,
                serial,
                answers: 0,
            });
        }
    }

    /// Takes a queue pair off the wire, for the error state or its end.
    pub fn leave(&mut self, from: u32, phase: Phase) {
        let Some(qp) = self.pairs.get_mut(&from) else {
            return;
        };
        let before = qp.phase;
        qp.leave(phase);
        if let Phase::Connecting(to) | Phase::Paired(to) = before {
            self.send(Message::Disconnect { from, to });
        }
    }

    /// Asks the other end for a chunk whose answer brings `expected` bytes. The caller keeps to the
    /// window.
    pub fn ask(&mut self, me: QpRef, request: Request) {
        let Some(qp) = self.pair(me) else { return };
        let Some(to) = qp.paired() else { return };
        let number = qp.next_asked;
        qp.next_asked = number.wrapping_add(1);
        qp.expected.push_back(if request.op == Op::Read {
            request.len()
        } else {
            0
        });
        self.send(Message::Request {
            from: me.number,
            to,
            number,
            request,
        });
    }

    /// Answers the chunk of number `number`.
    pub fn answer(&mut self, me: QpRef, number: u32, status: u32, data: Vec<u8>) {
        let Some(qp) = self.pair(me) else { return };
        let Some(to) = qp.paired() else { return };
        if status != 0 {
            qp.refusing = true;
            qp.requests.clear();
        }
        self.send(Message::Answer {
            from: me.number,
            to,
            number,
            status,
            data,
        });
    }

    /// What a message from the other end does. Messages for a pair that is no longer there are
    /// dropped: they may have been under way when it ended.
    pub fn deliver(&mut self, message: Message) -> Result<(), Violation> {
        match message {
            Message::Hello { .. } => Err(Violation("second hello")),
            Message::Connect {
                from,
                to,
                serial,
                answers,
            } => {
                self.deliver_connect(from, to, serial, answers);
                Ok(())
            }
            Message::Disconnect { from, to } => {
                if let Some(qp) = self.pairs.get_mut(&to)
                    && qp.paired() == Some(from)
                {
                    qp.leave(Phase::Broken);
                }
                Ok(())
            }
            Message::Request {
                from,
                to,
                number,
                request,
            } => self.deliver_request(from, to, number, request),
            Message::Answer {
                from,
                to,
                number,
                status,
                data,
            } => self.deliver_answer(from, to, number, Reply { status, data }),
        }
    }

    /// The queue pairs that a number names in turns are told apart by their serials: what one of them
    /// sent may arrive when the next one waits.
    fn deliver_connect(&mut self, from: u32, to: u32, serial: u64, answers: u64) {
        let Some(qp) = self.pairs.get_mut(&to) else {
            return;
        };
        if qp.phase != Phase::Connecting(from) {
            return;
        }
        let mine = qp.serial;
        if answers == mine {
            qp.phase = Phase::Paired(from);
            qp.wake.notify_all();
        } else if answers != 0 {
            return;
        }
        self.send(Message::Connect {
            from: to,
            to: from,
            serial: mine,
            answers: serial,
        });
    }

    fn deliver_request(
        &mut self,
        from: u32,
        to: u32,
        number: u32,
        request: Request,
    ) -> Result<(), Violation> {
        let Some(qp) = self.pairs.get_mut(&to) else {
            return Ok(());
        };
        if qp.paired() != Some(from) {
            return Ok(());
        }
        if number != qp.next_request {
            return Err(Violation("chunk out of order"));
        }
        if qp.requests.len() >= WINDOW {
            return Err(Violation("more chunks than the window"));
        }
        qp.next_request = number.wrapping_add(1);
        if !qp.refusing {
            qp.requests.push_back((number, request));
            qp.wake.notify_all();
        }
        Ok(())
    }

    fn deliver_answer(
        &mut self,
        from: u32,
        to: u32,
        number: u32,
        reply: Reply,
    ) -> Result<(), Violation> {
        let Some(qp) = self.pairs.get_mut(&to) else {
            return Ok(());
        };
        if qp.paired() != Some(from) {
            return Ok(());
        }
        let Some(expected) = qp.expected.pop_front() else {
            return Err(Violation("answer to nothing"));
        };
        if number != qp.next_answer {
            return Err(Violation("answer out of order"));
        }
        if reply.status == 0 && reply.data.len() != expected {
            return Err(Violation("answer of the wrong length"));
        }
        qp.next_answer = number.wrapping_add(1);
        if reply.status != 0 {
            qp.refused_by_peer = Some(reply.status);
        }
        qp.answers.push_back(reply);
        qp.wake.notify_all();
        Ok(())
    }
}
