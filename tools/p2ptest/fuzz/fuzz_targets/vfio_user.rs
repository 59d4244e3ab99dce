// SPDX-License-Identifier: GPL-2.0

//! A vfio-user client that means harm. The server must serve the next one.

#![no_main]

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use p2p_fuzz::{bytes, number};
use p2p_vfio_user::{Backing, Server};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../vfio-user/examples/mover/model.rs"]
mod model;

const VERSION: u16 = 1;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
/// The server hangs up within its own limits: 10 s for a message, 30 s for a DMA.
const PATIENCE: Duration = Duration::from_secs(60);

/// One server for all inputs, as one must survive them all.
struct Served {
    folder: TempDir,
    memory: OwnedFd,
    event: OwnedFd,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let config = model::config(Backing::Trapped);
        let mut server = Server::bind(folder.path().join("sock"), config).expect("a server");
        let mut device = model::Mover::new(server.bus(), server.interrupts()).expect("a device");
        std::thread::spawn(move || server.run(&mut device).expect("it runs for ever"));
        let memory = memfd_create("guest", MemfdFlags::ALLOW_SEALING).expect("memory");
        ftruncate(&memory, 1 << 20).expect("memory");
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).expect("seals");
        let event = eventfd(0, EventfdFlags::NONBLOCK).expect("an event");
        Served {
            folder,
            memory,
            event,
        }
    })
}

fn message(id: u16, command: u16, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
    for field in [payload.len() as u32 + 16, flags, error] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The fields that a command's payload has, with any values; then perhaps some bytes.
fn payload(u: &mut Unstructured<'_>, command: u16) -> Result<Vec<u8>> {
    let widths: &[usize] = match command {
        2 => &[4, 4, 8, 8, 8],
        3 => &[4, 4, 8, 8],
        4 => &[4, 4, 4, 4],
        5 => &[4, 4, 4, 4, 8, 8],
        7 => &[4, 4, 4, 4],
        8 => &[4, 4, 4, 4, 4],
        9 | 10 => &[8, 4, 4],
        11 | 12 => &[8, 8],
        15 => &[8, 8, 4, 4, 8],
        _ => &[],
    };
    let mut payload = Vec::new();
    for &width in widths {
        let value = number(u, &[4096, 65536, 1 << 20])?;
        payload.extend_from_slice(&value.to_le_bytes()[..width]);
    }
    if bool::arbitrary(u)? {
        payload.extend(bytes(u, 100)?);
    }
    Ok(payload)
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    match sent {
        Ok(count) => {
            let rest = bytes.get(count..).unwrap_or_default();
            let mut stream = stream;
            stream.write_all(rest).is_ok()
        }
        Err(_) => false,
    }
}

fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// The hello of a well-behaved client, and the memory and bus-master bits.
fn hello() -> Vec<u8> {
    let enable = [
        &4u64.to_le_bytes()[..],
        &7u32.to_le_bytes(),
        &2u32.to_le_bytes(),
        &[6, 0],
    ];
    let version = message(0, VERSION, 0, 0, b"\0\0\0\0{}\0");
    [version, message(1, REGION_WRITE, 0, 0, &enable.concat())].concat()
}

fn play(stream: &UnixStream, u: &mut Unstructured<'_>) -> Result<()> {
    let served = served();
    if u8::arbitrary(u)? >= 16 && !send(stream, &hello(), &[]) {
        return Ok(());
    }
    while !u.is_empty() {
        let kind = u8::arbitrary(u)?;
        let command = match kind {
            0..8 => u16::arbitrary(u)?,
            _ => 1 + u16::from(kind) % 15,
        };
        let raw = match u8::arbitrary(u)? {
            0..4 => bytes(u, 200)?,
            flags => {
                let flags = match flags {
                    4..8 => u32::arbitrary(u)?,
                    8..40 => 1,
                    40..60 => 0x10,
                    _ => 0,
                };
                let payload = payload(u, command)?;
                message(u8::arbitrary(u)?.into(), command, flags, 0, &payload)
            }
        };
        let fds = match u8::arbitrary(u)? {
            0..64 => vec![served.memory.as_fd()],
            64..96 => vec![served.event.as_fd()],
            96..100 => vec![served.memory.as_fd(), served.event.as_fd()],
            _ => vec![],
        };
        if raw.is_empty() || !send(stream, &raw, &fds) {
            break;
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let path = served().folder.path().join("sock");
    let stream = connect(&path);
    let answers = stream.try_clone().expect("another handle");
    let reader = std::thread::spawn(move || {
        // Until the server hangs up: an error is as good.
        let _ = std::io::copy(&mut &answers, &mut std::io::sink());
    });
    // Input that ends early ends the client.
    let _ = play(&stream, &mut Unstructured::new(data));
    let _ = stream.shutdown(Shutdown::Write);
    reader.join().expect("the reader");
    drop(stream);

    let mut next = connect(&path);
    let id = [
        &0u64.to_le_bytes()[..],
        &0u32.to_le_bytes(),
        &4u32.to_le_bytes(),
    ]
    .concat();
    let call = [hello(), message(2, REGION_READ, 0, 0, &id)].concat();
    next.write_all(&call).expect("the server reads");
    next.shutdown(Shutdown::Write).expect("a socket");
    let mut answer = Vec::new();
    next.read_to_end(&mut answer).expect("the server answers");
    assert!(answer.ends_with(&model::ID_VALUE.to_le_bytes()));
});
