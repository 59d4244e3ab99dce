// SPDX-License-Identifier: GPL-2.0

//! The messages that two NICs exchange on the wire, and their bytes.
//!
//! A message is a header of 56 bytes, little endian, and at most 32 KiB of payload:
//!
//! ```text
//! 0   32  kind: 1 hello, 2 connect, 3 disconnect, 4 write, 5 read, 6 send, 7 answer
//! 4   32  bytes of payload after the header
//! 8   32  from: queue pair of the sender        (0 in hello)
//! 12  32  to: queue pair of the receiver        (0 in hello)
//! 16  32  number: of the chunk, rising by one   (write, read, send, answer)
//! 20  32  hello: version; answer: completion status
//! 24  32  key of the receiver's region          (write, read)
//! 28  32  0
//! 32  64  offset of the request in that region  (write, read)
//! 40  64  length of the whole request           (write, read, send); connect: the sender's serial
//! 48  64  place of this chunk in the request    (write, read, send); connect: the serial that it
//!         answers, or 0
//! ```
//!
//! What a kind does not use is zero. A request is cut at multiples of 32 KiB from its start; one of
//! length 0 is one empty chunk. Each chunk is answered, in order; the answer to a read brings the
//! chunk's bytes. At most [`WINDOW`](crate::queue::WINDOW) chunks of a queue pair are unanswered in
//! each direction, which bounds what either end must keep.
//!
//! `connect` says that the sender did QP_CONNECT, and which of the queue pairs that have its number
//! in turns it is: the serial. One that answers none is answered by a queue pair that waits for the
//! sender. One that answers a queue pair's own serial makes the pair for it, and is answered too, so
//! that the other end learns it before the first chunk. What an earlier queue pair of the same number
//! sent makes no pair. `disconnect` ends a pair for good.

use std::io::{self, Read};

use thiserror::Error;

use crate::queue::{le32, le64};
use crate::regs;

/// Bytes of a header.
pub const HEADER: usize = 56;
/// Version of this protocol, sent in hello.
pub const VERSION: u32 = 2;

/// What a chunk asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write the payload to the region.
    Write,
    /// Answer with the region's bytes.
    Read,
    /// Put the payload into the receive entry.
    Send,
}

/// One chunk of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks for.
    pub op: Op,
    /// Key of the receiver's region; 0 for a send.
    pub key: u32,
    /// Where the whole request starts in the region; 0 for a send.
    pub base: u64,
    /// Bytes of the whole request.
    pub total: u64,
    /// Place of this chunk in the request.
    pub at: u64,
    /// Payload; empty for a read.
    pub data: Vec<u8>,
}

impl Request {
    /// Bytes of this chunk.
    pub fn len(&self) -> usize {
        chunk_len(self.total, self.at)
    }

    /// Whether the request ends with this chunk.
    pub fn is_last(&self) -> bool {
        self.total - self.at <= regs::CHUNK as u64
    }
}

/// Bytes of the chunk at `at` of a request of `total` bytes.
pub fn chunk_len(total: u64, at: u64) -> usize {
    usize::try_from(total.saturating_sub(at)).map_or(regs::CHUNK, |left| left.min(regs::CHUNK))
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message of each end.
    Hello {
        /// [`VERSION`] of the sender.
        version: u32,
    },
    /// The sender's queue pair is connected to the receiver's.
    Connect {
        /// Queue pair of the sender.
        from: u32,
        /// Queue pair of the receiver.
        to: u32,
        /// Serial of the sender's, not 0.
        serial: u64,
        /// Serial of the receiver's, whose message this answers, or 0.
        answers: u64,
    },
    /// The sender's queue pair is gone or in the error state.
    Disconnect {
        /// Queue pair of the sender.
        from: u32,
        /// Queue pair of the receiver.
        to: u32,
    },
    /// A chunk.
    Request {
        /// Queue pair of the sender.
        from: u32,
        /// Queue pair of the receiver.
        to: u32,
        /// Number of the chunk.
        number: u32,
        /// The chunk.
        request: Request,
    },
    /// The answer to a chunk.
    Answer {
        /// Queue pair of the sender.
        from: u32,
        /// Queue pair of the receiver.
        to: u32,
        /// Number of the chunk.
        number: u32,
        /// 0 or a completion error.
        status: u32,
        /// The bytes that were read.
        data: Vec<u8>,
    },
}

/// What is wrong with bytes from the wire, or with the moment at which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed or misplaced message: {0}")]
pub struct Violation(pub &'static str);

/// Why no message could be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The socket failed or ended.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no message.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl Message {
    /// The bytes that carry it.
    pub fn encode(&self) -> Vec<u8> {
        let mut f = Fields::default();
        let mut payload: &[u8] = &[];
        match self {
            Message::Hello { version } => (f.kind, f.word) = (1, *version),
            Message::Connect {
                from,
                to,
                serial,
                answers,
            } => {
                (f.kind, f.from, f.to) = (2, *from, *to);
                (f.total, f.at) = (*serial, *answers);
            }
            Message::Disconnect { from, to } => (f.kind, f.from, f.to) = (3, *from, *to),
            Message::Request {
                from,
                to,
                number,
                request,
            } => {
                f.kind = match request.op {
                    Op::Write => 4,
                    Op::Read => 5,
                    Op::Send => 6,
                };
                (f.from, f.to, f.number, f.key) = (*from, *to, *number, request.key);
                (f.base, f.total, f.at) = (request.base, request.total, request.at);
                payload = &request.data;
            }
            Message::Answer {
                from,
                to,
                number,
                status,
                data,
            } => {
                (f.kind, f.from, f.to, f.number, f.word) = (7, *from, *to, *number, *status);
                payload = data;
            }
        }
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        // A payload is at most a chunk, so its length fits.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        for word in [f.kind, length, f.from, f.to, f.number, f.word, f.key, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [f.base, f.total, f.at] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Reads one message. Allocates no more than a chunk, whatever comes.
    pub fn read_from(stream: &mut impl Read) -> Result<Message, ReadError> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        let length = le32(&header, 4) as usize;
        if length > regs::CHUNK {
            return Err(Violation("payload too long").into());
        }
        let fields = Fields::parse(&header);
        if le32(&header, 28) != 0 {
            return Err(Violation("reserved field").into());
        }
        fields.check(length)?;
        let mut data = vec![0; length];
        stream.read_exact(&mut data)?;
        Ok(fields.into_message(data)?)
    }
}

/// The header's fields but the payload's length.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Fields {
    kind: u32,
    from: u32,
    to: u32,
    number: u32,
    word: u32,
    key: u32,
    base: u64,
    total: u64,
    at: u64,
}

impl Fields {
    fn parse(b: &[u8; HEADER]) -> Fields {
        Fields {
            kind: le32(b, 0),
            from: le32(b, 8),
            to: le32(b, 12),
            number: le32(b, 16),
            word: le32(b, 20),
            key: le32(b, 24),
            base: le64(b, 32),
            total: le64(b, 40),
            at: le64(b, 48),
        }
    }

    fn check(&self, length: usize) -> Result<(), Violation> {
        let used = match self.kind {
            1 => Fields {
                word: self.word,
                ..Fields::default()
            },
            2 => Fields {
                from: self.from,
                to: self.to,
                total: self.total,
                at: self.at,
                ..Fields::default()
            },
            3 => Fields {
                from: self.from,
                to: self.to,
                ..Fields::default()
            },
            4 | 5 => Fields { word: 0, ..*self },
            6 => Fields {
                word: 0,
                key: 0,
                base: 0,
                ..*self
            },
            7 => Fields {
                key: 0,
                base: 0,
                total: 0,
                at: 0,
                ..*self
            },
            _ => return Err(Violation("unknown kind")),
        };
        if (Fields {
            kind: self.kind,
            ..used
        }) != *self
        {
            return Err(Violation("unused field"));
        }
        if self.from.max(self.to) >= regs::MAX_QUEUE_PAIRS_VALUE {
            return Err(Violation("queue pair out of range"));
        }
        let chunk = chunk_len(self.total, self.at);
        match self.kind {
            1..=3 | 5 if length != 0 => Err(Violation("payload where none belongs")),
            2 if self.total == 0 => Err(Violation("no serial")),
            4..=6 if self.total > regs::MAX_LENGTH => Err(Violation("request too long")),
            4..=6 if self.at >= self.total.max(1) => Err(Violation("chunk past the end")),
            4..=6 if !self.at.is_multiple_of(regs::CHUNK as u64) => {
                Err(Violation("chunk unaligned"))
            }
            4 | 6 if length != chunk => Err(Violation("chunk of the wrong length")),
            7 if self.word > regs::BAD_REQUEST => Err(Violation("unknown status")),
            7 if self.word != 0 && length != 0 => Err(Violation("payload with an error")),
            _ => Ok(()),
        }
    }

    fn into_message(self, data: Vec<u8>) -> Result<Message, Violation> {
        let Fields {
            from, to, number, ..
        } = self;
        let op = match self.kind {
            1 => return Ok(Message::Hello { version: self.word }),
            2 => {
                return Ok(Message::Connect {
                    from,
                    to,
                    serial: self.total,
                    answers: self.at,
                });
            }
            3 => return Ok(Message::Disconnect { from, to }),
            4 => Op::Write,
            5 => Op::Read,
            6 => Op::Send,
            7 => {
                return Ok(Message::Answer {
                    from,
                    to,
                    number,
                    status: self.word,
                    data,
                });
            }
            _ => return Err(Violation("unknown kind")),
        };
        let Fields {
            key,
            base,
            total,
            at,
            ..
        } = self;
        let request = Request {
            op,
            key,
            base,
            total,
            at,
            data,
        };
        Ok(Message::Request {
            from,
            to,
            number,
            request,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Message> {
        let op = prop_oneof![Just(Op::Write), Just(Op::Read), Just(Op::Send)];
        (
            op,
            any::<u32>(),
            any::<u64>(),
            0u64..200_000,
            any::<u64>(),
            0u32..64,
        )
            .prop_map(|(op, key, base, total, place, qp)| {
                let chunks = total.div_ceil(regs::CHUNK as u64).max(1);
                let at = place % chunks * regs::CHUNK as u64;
                let len = if op == Op::Read {
                    0
                } else {
                    chunk_len(total, at)
                };
                let (key, base) = if op == Op::Send { (0, 0) } else { (key, base) };
                let request = Request {
                    op,
                    key,
                    base,
                    total,
                    at,
                    data: vec![7; len],
                };
                Message::Request {
                    from: qp,
                    to: 63 - qp,
                    number: key,
                    request,
                }
            })
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(message in request()) {
            let bytes = message.encode();
            prop_assert_eq!(Message::read_from(&mut &bytes[..]).unwrap(), message);
        }

        #[test]
        fn any_bytes_end_in_a_message_or_an_error(
            kind in 0u32..9, bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut input = kind.to_le_bytes().to_vec();
            input.extend(bytes);
            if let Ok(message) = Message::read_from(&mut &input[..]) {
                let again = message.encode();
                prop_assert_eq!(&again[..], &input[..again.len()]);
            }
        }
    }

    #[test]
    fn long_payloads_are_refused_before_they_are_read() {
        let mut bytes = Message::Answer {
            from: 0,
            to: 0,
            number: 0,
            status: 0,
            data: vec![],
        }
        .encode();
        bytes[4..8].copy_from_slice(&(regs::CHUNK as u32 + 1).to_le_bytes());
        assert!(matches!(
            Message::read_from(&mut &bytes[..]),
            Err(ReadError::Violation(_))
        ));
    }
}
