// SPDX-License-Identifier: GPL-2.0

//! The control socket: one JSON object a line, one line as answer.
//!
//! `{"cmd":"inject","what":"error","ring":0,"count":1}`: see [`Rule`].
//! `{"cmd":"clear"}`: drops the rules that wait and lets stalled commands and resets go.
//! `{"cmd":"counters"}`, `{"cmd":"faults"}`, `{"cmd":"aperture"}`: what the device remembers.
//! `{"cmd":"remove"}`: surprise removal.
//!
//! Each answer has `"ok"`; if it is false, `"error"` says why.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::Builder;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::inject::Rule;
use crate::ratelimit::warn_limited;
use crate::state::{Core, Mode};

/// Longest line, so that a writer without line ends costs no memory.
const MAX_LINE: u64 = 4096;
/// Runs of slots that one answer lists.
const MAX_RUNS: usize = 4096;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
enum Request {
    Inject(Rule),
    Clear,
    Counters,
    Faults,
    Aperture,
    Remove,
}

/// What the control socket reaches.
pub struct Control {
    core: Arc<Core>,
    remove: Box<dyn Fn() + Send + Sync>,
}

impl Control {
    /// A control of `core`; `remove` pulls the device out.
    pub fn new(core: Arc<Core>, remove: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            core,
            remove: Box::new(remove),
        })
    }

    /// Answers one line.
    pub fn answer(&self, line: &[u8]) -> Value {
        match serde_json::from_slice(line) {
            Ok(request) => self.run(request),
            Err(error) => refusal(&error),
        }
    }

    fn run(&self, request: Request) -> Value {
        let core = &self.core;
        match request {
            Request::Inject(rule) => match core.injections.add(rule) {
                Ok(()) => json!({"ok": true}),
                Err(error) => refusal(&error),
            },
            Request::Clear => {
                core.clear_injections();
                json!({"ok": true})
            }
            Request::Counters => {
                let counters: Map<String, Value> = core
                    .counters
                    .all()
                    .map(|(name, n)| (name.to_owned(), n.into()))
                    .collect();
                json!({"ok": true, "counters": counters})
            }
            Request::Faults => {
                json!({"ok": true, "count": core.faults.count(), "log": core.faults.entries()})
            }
            Request::Aperture => {
                let (runs, installed) = core.aperture.map(MAX_RUNS);
                let listed: u64 = runs.iter().map(|(_, _, n)| u64::from(*n)).sum();
                let mode = match core.mode() {
                    Mode::Trapped => "trapped",
                    Mode::Mapped => "mapped",
                };
                json!({
                    "ok": true,
                    "mode": mode,
                    "slots": core.aperture.slots(),
                    "installed": installed,
                    "runs": runs,
                    "complete": listed == installed as u64,
                })
            }
            Request::Remove => {
                (self.remove)();
                json!({"ok": true})
            }
        }
    }

    /// Serves connections until the listener fails.
    pub fn serve(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        let connections = Arc::new(());
        loop {
            let (stream, _) = listener.accept()?;
            if Arc::strong_count(&connections) > MAX_CONNECTIONS {
                warn_limited!("more than {MAX_CONNECTIONS} control connections");
                continue;
            }
            let (control, connection) = (Arc::clone(self), Arc::clone(&connections));
            Builder::new().name("control".into()).spawn(move || {
                if let Err(error) = control.converse(&stream) {
                    log::debug!("control connection: {error}");
                }
                drop(connection);
            })?;
        }
    }

    fn converse(&self, mut stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            let whole = line.ends_with(b"\n") || (line.len() as u64) < MAX_LINE;
            let mut answer = match whole {
                true => self.answer(&line),
                false => refusal(&"the line is too long"),
            }
            .to_string();
            answer.push('\n');
            stream.write_all(answer.as_bytes())?;
            if !whole {
                return Ok(());
            }
        }
    }
}

fn refusal(why: &dyn std::fmt::Display) -> Value {
    json!({"ok": false, "error": why.to_string()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Parameters;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn control(removed: &Arc<AtomicBool>) -> Arc<Control> {
        let parameters = Parameters {
            vram: 1 << 20,
            aperture: 1 << 16,
            mode: Mode::Trapped,
        };
        let removed = Arc::clone(removed);
        Control::new(Core::new(&parameters).unwrap(), move || {
            removed.store(true, Ordering::Relaxed)
        })
    }

    #[test]
    fn nonsense_is_refused_and_the_rest_goes_on() {
        let control = control(&Arc::default());
        for line in [
            "",
            "[]",
            "{}",
            r#"{"cmd":"fly"}"#,
            r#"{"cmd":"inject"}"#,
            "\u{0}",
            r#"{"cmd":"inject","what":"error","rnig":1}"#,
            r#"{"cmd":"inject","what":"error","ring":-1}"#,
        ] {
            let answer = control.answer(line.as_bytes());
            assert_eq!(answer["ok"], false, "{line}");
            assert!(answer["error"].is_string());
        }
        assert_eq!(
            control.answer(br#"{"cmd":"counters"}"#)["counters"]["FLUSHES"],
            0
        );
        assert_eq!(control.answer(br#"{"cmd":"aperture"}"#)["slots"], 16);
        assert_eq!(control.answer(br#"{"cmd":"faults"}"#)["log"], json!([]));
    }

    #[test]
    fn remove_pulls_the_device() {
        let removed = Arc::default();
        assert_eq!(control(&removed).answer(br#"{"cmd":"remove"}"#)["ok"], true);
        assert!(removed.load(Ordering::Relaxed));
    }

    #[test]
    fn an_endless_line_ends_the_connection() {
        let control = control(&Arc::default());
        let (here, there) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || control.converse(&there));
        (&here).write_all(&vec![b' '; MAX_LINE as usize]).unwrap();
        let mut answer = String::new();
        BufReader::new(&here).read_line(&mut answer).unwrap();
        assert!(answer.contains("too long"), "{answer}");
        server.join().unwrap().unwrap();
    }
}
