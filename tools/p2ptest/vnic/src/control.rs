// SPDX-License-Identifier: GPL-2.0

//! The control socket: one JSON object a line in, one out. It shows the device's state and injects
//! faults.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, thread};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::counters::NAMES;
use crate::inject::What;
use crate::state::Shared;
use crate::wire;

/// Longest line that is read, bytes.
const MAX_LINE: u64 = 64 * 1024;

#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    Counters,
    Regions,
    Queues,
    Inject {
        what: What,
        #[serde(default = "once")]
        count: u64,
        #[serde(default)]
        micros: u64,
    },
    Remove,
}

fn once() -> u64 {
    1
}

/// A control socket that is served; dropping it removes the socket.
#[derive(Debug)]
pub struct Control(PathBuf);

/// What surprise removal does.
pub type Remove = Arc<dyn Fn() + Send + Sync>;

impl Control {
    /// Serves `path`, each client on a thread of its own.
    pub fn serve(path: &Path, shared: Arc<Shared>, remove: Remove) -> io::Result<Control> {
        let listener: UnixListener = wire::listen(path)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (shared, remove) = (Arc::clone(&shared), Arc::clone(&remove));
                    let client = thread::Builder::new().name("control client".into());
                    let started = client.spawn(move || {
                        if let Err(error) = talk(&shared, &remove, &stream) {
                            log::debug!("control: {error}");
                        }
                    });
                    if let Err(error) = started {
                        log::error!("control: {error}");
                    }
                }
            })?;
        Ok(Control(path.to_owned()))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn talk(shared: &Shared, remove: &Remove, mut stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let n = reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(());
        }
        let (answer, remove_now) = answer(shared, &line);
        let mut text = answer.to_string();
        text.push('\n');
        stream.write_all(text.as_bytes())?;
        if remove_now {
            remove();
        }
    }
}

/// The answer to a line, and whether the device is to be removed.
fn answer(shared: &Shared, line: &[u8]) -> (Value, bool) {
    match serde_json::from_slice(line) {
        Err(error) => (json!({ "error": error.to_string() }), false),
        Ok(Command::Counters) => (counters(shared), false),
        Ok(Command::Regions) => (regions(shared), false),
        Ok(Command::Queues) => (queues(shared), false),
        Ok(Command::Inject {
            what,
            count,
            micros,
        }) => {
            shared.injector.set(what, count, micros);
            (json!({ "ok": true }), false)
        }
        Ok(Command::Remove) => (json!({ "ok": true }), true),
    }
}

fn counters(shared: &Shared) -> Value {
    NAMES
        .iter()
        .map(|&(counter, name)| (name.to_lowercase(), shared.counters.get(counter)))
        .collect()
}

fn regions(shared: &Shared) -> Value {
    let state = shared.lock();
    state
        .regions
        .iter()
        .map(|region| {
            json!({
                "key": region.key,
                "access": region.access,
                "length": region.length,
                "valid": region.mapping.is_some(),
                "in_flight": region.in_flight,
                "active": region.active,
                "asked": region.asked,
            })
        })
        .collect()
}

fn queues(shared: &Shared) -> Value {
    let state = shared.lock();
    state
        .pairs
        .iter()
        .map(|(number, qp)| {
            json!({
                "qp": number,
                "phase": format!("{:?}", qp.phase).to_lowercase(),
                "send": { "head": qp.send.head, "tail": qp.send.tail },
                "recv": { "head": qp.recv.head, "tail": qp.recv.tail },
                "cq": { "head": qp.cq.head, "tail": qp.cq.tail },
                "in_flight": qp.in_flight,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Link;

    #[test]
    fn lines_are_answered() {
        let shared = Shared::new(Link::new(true));
        let ask = |line: &str| answer(&shared, line.as_bytes());
        assert_eq!(ask(r#"{"cmd":"counters"}"#).0["parked"], 0);
        assert_eq!(ask(r#"{"cmd":"regions"}"#).0, json!([]));
        assert_eq!(ask(r#"{"cmd":"queues"}"#).0, json!([]));
        assert!(ask(r#"{"cmd":"remove"}"#).1);
        assert!(ask(r#"{"cmd":"inject","what":"no-such"}"#).0["error"].is_string());
        assert!(ask("not json").0["error"].is_string());
        let inject = r#"{"cmd":"inject","what":"delay-chunk","count":2,"micros":5}"#;
        assert_eq!(ask(inject).0["ok"], true);
        let delay = std::time::Duration::from_micros(5);
        assert_eq!(shared.injector.take(What::DelayChunk), Some(delay));
        assert_eq!(shared.injector.take(What::DelayChunk), Some(delay));
        assert_eq!(shared.injector.take(What::DelayChunk), None);
    }
}
