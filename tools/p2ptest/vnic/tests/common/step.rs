// SPDX-License-Identifier: GPL-2.0

//! What a guest can do to the device and what can come in on the wire, as data: for tests and
//! fuzzers that mean harm.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vnic::regs;

use super::{Host, PATIENCE, pattern};

#[derive(Clone, Debug)]
pub enum Step {
    Store(u64, u64, bool),
    Command(u32, u32, u32, Vec<u64>),
    Bell(u32, u64, u32),
    Request([u64; 7]),
    Memory(u64, u8),
    Reset,
}

pub fn play(h: &mut Host, step: Step) {
    match step {
        Step::Store(offset, value, true) => h.write64(offset, value),
        Step::Store(offset, value, false) => h.write32(offset, value as u32),
        Step::Command(op, index, arg32, mut args) => {
            // Half of the commands are nearly right.
            if index % 2 == 0 && op == regs::QP_CREATE {
                args = vec![0x10_0000, 0x11_0000, 0x12_0000];
                h.begin(op, index, 0x02_0202, &args);
            } else {
                h.begin(op, index, arg32, &args);
            }
        }
        Step::Bell(qp, field, value) => h.doorbell(qp, field, value),
        Step::Request(words) => {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut entry = [0; 64];
            entry[..56].copy_from_slice(&bytes);
            entry[0] %= 5;
            entry[1..4].fill(0);
            h.memory
                .put(0x10_0000 + 64 * u64::from(entry[8] % 4), &entry);
            h.doorbell(0, regs::SEND_TAIL, u32::from(entry[9] % 8));
        }
        Step::Memory(at, seed) => h.memory.put(at, &pattern(seed, 64)),
        Step::Reset => h.write32(regs::CONTROL, regs::CONTROL_RESET),
    }
}

/// A message as the other end of the wire may put it: every field on its own, true or not.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub kind: u32,
    /// Bytes of payload that the header claims, if not those that follow.
    pub claimed: Option<u32>,
    /// from, to, number, word, key
    pub words: [u32; 5],
    /// base, total, at
    pub places: [u64; 3],
    pub data: Vec<u8>,
}

impl Frame {
    pub fn bytes(&self) -> Vec<u8> {
        let length = self.claimed.unwrap_or(self.data.len() as u32);
        let [from, to, number, word, key] = self.words;
        let words = [self.kind, length, from, to, number, word, key, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(self.places.iter().flat_map(|p| p.to_le_bytes()));
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

/// A NIC whose wire ends in the test's hands: link up, queue pairs 0 connected on both ends, keys 1
/// and 2 valid.
pub fn held() -> (Host, UnixStream) {
    let mut h = Host::new(false);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    h.nic.attach(theirs).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut message = [0; 56];
    ours.read_exact(&mut message).unwrap();
    ours.write_all(&message).unwrap();
    h.until("link", |h| {
        h.read32(regs::STATUS) & regs::STATUS_LINK_UP != 0
    });
    for key in [1, 2] {
        h.region(
            key,
            regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE,
            100_000,
        );
    }
    h.create_qp(0, 2);
    h.connect(0, 0);
    ours.read_exact(&mut message).unwrap();
    ours.write_all(&message).unwrap();
    (h, ours)
}

/// Plays the other end: nothing that it gets is read while it sends, if it is deaf. Returns once
/// all was taken or the device has hung up.
pub fn lie(mut ours: UnixStream, frames: &[Frame], deaf: bool) {
    let listener = ours.try_clone().unwrap();
    std::thread::scope(|scope| {
        if !deaf {
            scope.spawn(|| std::io::copy(&mut &listener, &mut std::io::sink()));
        }
        for frame in frames {
            // An error: the device has hung up, as it should.
            if ours.write_all(&frame.bytes()).is_err() {
                break;
            }
        }
        let _ = ours.shutdown(Shutdown::Both);
    });
}
