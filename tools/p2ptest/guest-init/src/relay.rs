// SPDX-License-Identifier: GPL-2.0
//! Hands on what a program in the guest asks of the host: a line on a UNIX socket
//! becomes a report, and the answer that comes back a line. One at a time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use p2p_init::{Answer, Ask, HOST_SOCKET, MAX_ASK, Report};

use crate::agent::Port;

/// How long the host may take; its own limits are shorter.
const HOST_LIMIT: Duration = Duration::from_secs(30);
/// How long a program may take to write its line, or to read the answer.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5);

/// Where answers find who waits for them.
pub struct Relay(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    last: u64,
    answer: Option<Sender<Answer>>,
}

impl Relay {
    /// Serves the socket from a thread of its own.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start(port: Arc<Port>) -> Result<Arc<Self>> {
        let listener = UnixListener::bind(HOST_SOCKET)
            .with_context(|| format!("listening on {HOST_SOCKET}"))?;
        let relay = Arc::new(Self(Mutex::default()));
        let here = Arc::clone(&relay);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who does not stay for the answer has nobody to be told.
                let _ = converse(&stream, |ask| here.ask(&port, ask));
            }
        });
        Ok(relay)
    }

    /// The host's answer to what was asked with this number; one that nobody waits
    /// for any more is dropped.
    pub fn deliver(&self, number: u64, answer: Answer) {
        let mut waiting = self.waiting();
        if number == waiting.last
            && let Some(to) = waiting.answer.take()
        {
            // It may have given up in this very moment.
            let _ = to.send(answer);
        }
    }

    fn ask(&self, port: &Port, ask: Ask) -> Answer {
        let (sender, receiver) = channel();
        let number = {
            let mut waiting = self.waiting();
            waiting.last += 1;
            waiting.answer = Some(sender);
            waiting.last
        };
        port.send(&Report::Ask { number, ask })
            .map_err(|e| format!("{e:#}"))?;
        receiver
            .recv_timeout(HOST_LIMIT)
            .unwrap_or_else(|e| match e {
                RecvTimeoutError::Timeout => Err("the host does not answer".into()),
                RecvTimeoutError::Disconnected => Err("overtaken by another".into()),
            })
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one line, and writes what `ask` makes of it.
fn converse(mut stream: &UnixStream, ask: impl FnOnce(Ask) -> Answer) -> Result<()> {
    stream.set_read_timeout(Some(PROGRAM_LIMIT))?;
    stream.set_write_timeout(Some(PROGRAM_LIMIT))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_ASK)).read_until(b'\n', &mut line)?;
    let answer = match serde_json::from_slice(&line) {
        _ if !line.ends_with(b"\n") => Err(format!("more than {MAX_ASK} bytes, or no whole line")),
        Ok(what) => ask(what),
        Err(e) => Err(e.to_string()),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What comes back for these bytes.
    fn answer_to(bytes: &[u8]) -> Answer {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(bytes).unwrap();
        here.shutdown(std::net::Shutdown::Write).unwrap();
        converse(&there, |ask| match ask {
            Ask::Restart { model } => Ok(model.into()),
            _ => Err("unexpected".into()),
        })
        .unwrap();
        drop(there);
        let mut line = String::new();
        here.read_to_string(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_line_is_answered() {
        let line = b"{\"ask\":\"restart\",\"model\":\"gpu1\"}\n";
        assert_eq!(answer_to(line), Ok(json!("gpu1")));
    }

    #[test]
    fn nonsense_is_answered_too() {
        let long = vec![b' '; usize::try_from(MAX_ASK).unwrap()];
        for bytes in [&b"\n"[..], b"", b"[]\n", b"{\"ask\":\"restart\"", &long] {
            assert!(answer_to(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_reaches_only_who_waits_for_it() {
        let relay = Relay(Mutex::default());
        let (sender, receiver) = channel();
        *relay.waiting() = Waiting {
            last: 2,
            answer: Some(sender),
        };
        relay.deliver(1, Ok(Value::Null));
        assert!(receiver.try_recv().is_err());
        relay.deliver(2, Ok(json!(2)));
        assert_eq!(receiver.try_recv(), Ok(Ok(json!(2))));
        relay.deliver(2, Ok(json!(3)));
        assert!(receiver.try_recv().is_err());
    }
}
