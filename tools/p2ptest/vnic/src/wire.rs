// SPDX-License-Identifier: GPL-2.0

//! The wire: a UNIX stream socket to another NIC, made again whenever it breaks.
//!
//! A thread reads messages and delivers them, which never blocks; another writes what waits. So the
//! socket drains at both ends whatever the queue pairs do, and one that parks holds up no other.
//! See `message.rs` for the bytes.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::message::{Message, ReadError, VERSION, Violation};
use crate::state::Shared;

/// How the other end is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The other end connects to this socket.
    Listen(PathBuf),
    /// The other end listens at this socket.
    Connect(PathBuf),
}

/// Why a session ended.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket failed or ended.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other end does not speak the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl From<ReadError> for WireError {
    fn from(error: ReadError) -> WireError {
        match error {
            ReadError::Io(error) => WireError::Io(error),
            ReadError::Violation(violation) => WireError::Violation(violation),
        }
    }
}

/// Wait before another attempt.
const RETRY: Duration = Duration::from_millis(50);
/// Longest wait for the other end's hello: what connects and says nothing must not keep others out.
const HELLO: Duration = Duration::from_secs(5);

/// Keeps the wire up until the device stops.
pub(crate) fn run(shared: &Arc<Shared>, mode: &Mode, listener: Option<&UnixListener>) {
    let mut told = false;
    while !shared.lock().stopping {
        let stream = match (listener, mode) {
            (Some(listener), _) => listener.accept().map(|(stream, _)| stream),
            (None, Mode::Connect(path) | Mode::Listen(path)) => UnixStream::connect(path),
        };
        if shared.lock().stopping {
            return;
        }
        match stream {
            Ok(stream) => {
                told = false;
                match session(shared, stream) {
                    Ok(()) => log::info!("the wire was taken down"),
                    Err(error) => log::info!("the wire broke: {error}"),
                }
            }
            Err(error) if !told => {
                told = true;
                log::info!("no other end yet: {error}");
            }
            Err(_) => {}
        }
        let state = shared.lock();
        if !state.stopping && listener.is_none() {
            let wake = Arc::clone(&state.link.wake);
            drop(shared.wait_for(&wake, state, RETRY));
        }
    }
}

/// Listens where a stale socket may lie.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Runs one session on a connected socket, until it breaks.
pub(crate) fn session(shared: &Arc<Shared>, stream: UnixStream) -> Result<(), WireError> {
    let mut reader = io::BufReader::with_capacity(64 * 1024, stream.try_clone()?);
    stream.set_read_timeout(Some(HELLO))?;
    stream.set_write_timeout(Some(HELLO))?;
    (&stream).write_all(&Message::Hello { version: VERSION }.encode())?;
    match Message::read_from(&mut reader)? {
        Message::Hello { version: VERSION } => {}
        Message::Hello { .. } => return Err(Violation("other version").into()),
        _ => return Err(Violation("no hello").into()),
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;

    let writer_stream = stream.try_clone()?;
    let mut state = shared.lock();
    if state.stopping {
        return Ok(());
    }
    let number = state.link_up(stream);
    drop(state);
    log::info!("the wire is up");
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = write_waiting(shared, number, &writer_stream) {
                log::debug!("wire writer: {error}");
            }
            // Wakes the reader.
            let _ = writer_stream.shutdown(Shutdown::Both);
        });
        let result = deliver_all(shared, number, &mut reader);
        let mut state = shared.lock();
        if state.link.is_session(number) {
            state.sever();
        }
        result
    })
}

fn deliver_all(shared: &Shared, session: u64, reader: &mut impl io::Read) -> Result<(), WireError> {
    loop {
        let message = Message::read_from(reader)?;
        let mut state = shared.lock();
        if !state.link.is_session(session) {
            return Ok(());
        }
        state.deliver(message)?;
    }
}

fn write_waiting(shared: &Shared, session: u64, mut stream: &UnixStream) -> io::Result<()> {
    let mut state = shared.lock();
    while state.link.is_session(session) {
        match state.link.take() {
            Some(message) => {
                drop(state);
                stream.write_all(&message.encode())?;
                state = shared.lock();
            }
            None => {
                let wake = Arc::clone(&state.link.wake);
                state = shared.wait(&wake, state);
            }
        }
    }
    Ok(())
}
