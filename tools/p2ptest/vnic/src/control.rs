// SPDX-License-Identifier: GPL-2.0

//! The control socket: one JSON object a line in, one out. It shows the device's state, injects
//! faults, and makes the device access memory that it has no business with.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, thread};

use p2p_vfio_user::bus::{Bus, BusError, Target};
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
    /// A DMA to an address of the operator's choice, outside of any region: what a device does that
    /// keeps an address for too long, or makes one up.
    Stray {
        write: bool,
        addr: u64,
        /// What is written, or how many bytes are read.
        data: Vec<u8>,
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
    pub fn serve(
        path: &Path,
        shared: Arc<Shared>,
        bus: Arc<dyn Bus>,
        remove: Remove,
    ) -> io::Result<Control> {
        let listener: UnixListener = wire::listen(path)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let device = Device {
                        shared: Arc::clone(&shared),
                        bus: Arc::clone(&bus),
                    };
                    let remove = Arc::clone(&remove);
                    let client = thread::Builder::new().name("control client".into());
                    let started = client.spawn(move || {
                        if let Err(error) = talk(&device, &remove, &stream) {
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

/// What a client reaches.
struct Device {
    shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
}

fn talk(device: &Device, remove: &Remove, mut stream: &UnixStream) -> io::Result<()> {
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
        let (answer, remove_now) = answer(device, &line);
        let mut text = answer.to_string();
        text.push('\n');
        stream.write_all(text.as_bytes())?;
        if remove_now {
            remove();
        }
    }
}

/// The answer to a line, and whether the device is to be removed.
fn answer(device: &Device, line: &[u8]) -> (Value, bool) {
    let shared = &device.shared;
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
            shared.inject(what, count, micros);
            (json!({ "ok": true }), false)
        }
        Ok(Command::Stray { write, addr, data }) => (stray(device, write, addr, data), false),
        Ok(Command::Remove) => (json!({ "ok": true }), true),
    }
}

/// Does the DMA and says how it ended. A reset waits for it as for any other. On return what was
/// written to a peer is there, or refused.
fn stray(device: &Device, write: bool, addr: u64, mut data: Vec<u8>) -> Value {
    let guard = {
        let mut state = device.shared.lock();
        device.shared.start_dma(&mut state, None, None)
    };
    let result = if write {
        device.bus.write(addr, &data)
    } else {
        device.bus.read(addr, &mut data)
    };
    // A posted write is home when a read has come back.
    let result = match result {
        Ok(Target::Peer) if write && !data.is_empty() => device.bus.read(addr, &mut [0]),
        other => other,
    };
    drop(guard);
    match result {
        Ok(Target::Ram) => json!({ "ok": true, "target": "ram", "data": data }),
        Ok(Target::Peer) => json!({ "ok": true, "target": "peer", "data": data }),
        Err(error) => json!({ "ok": false, "refused": reason(error), "why": error.to_string() }),
    }
}

/// One word for an error.
fn reason(error: BusError) -> &'static str {
    match error {
        BusError::NotMaster => "not-master",
        BusError::Unmapped => "unmapped",
        BusError::Refused(_) => "refused",
        BusError::Disconnected => "disconnected",
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
                "segments": region.mapping.as_ref().map(|mapping| mapping.map.ranges()),
                "in_flight": region.in_flight,
                "active": region.active,
                "asked": region.asked,
            })
        })
        .collect()
}

/// The queue pairs as they are now.
pub fn queues(shared: &Shared) -> Value {
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
    use crate::region::{Segment, SegmentMap};
    use std::sync::Mutex;

    /// A page of memory at 0, a peer's page at 0x1000 whose writes land when it is read, and
    /// nothing else.
    #[derive(Default)]
    struct Pages {
        memory: Mutex<[[u8; 8]; 2]>,
        posted: Mutex<Option<Vec<u8>>>,
    }

    impl Pages {
        fn target(addr: u64) -> Result<Target, BusError> {
            match addr {
                0 => Ok(Target::Ram),
                0x1000 => Ok(Target::Peer),
                _ => Err(BusError::Refused(19)),
            }
        }
    }

    impl Bus for Pages {
        fn read(&self, addr: u64, data: &mut [u8]) -> Result<Target, BusError> {
            let target = Self::target(addr)?;
            let mut memory = self.memory.lock().unwrap();
            let page = &mut memory[usize::from(target == Target::Peer)];
            if let Some(posted) = self.posted.lock().unwrap().take() {
                page[..posted.len()].copy_from_slice(&posted);
            }
            data.copy_from_slice(&page[..data.len()]);
            Ok(target)
        }

        fn write(&self, addr: u64, data: &[u8]) -> Result<Target, BusError> {
            let target = Self::target(addr)?;
            match target {
                Target::Ram => self.memory.lock().unwrap()[0][..data.len()].copy_from_slice(data),
                Target::Peer => *self.posted.lock().unwrap() = Some(data.to_vec()),
            }
            Ok(target)
        }
    }

    fn device() -> Device {
        Device {
            shared: Shared::new(Link::new(true)),
            bus: Arc::new(Pages::default()),
        }
    }

    #[test]
    fn stray_accesses() {
        let pages = Arc::new(Pages::default());
        let device = Device {
            bus: pages.clone(),
            ..device()
        };
        let ask = |line: &str| answer(&device, line.as_bytes()).0;
        let written = ask(r#"{"cmd":"stray","write":true,"addr":4096,"data":[1,2,3]}"#);
        assert_eq!(
            (&written["ok"], &written["target"]),
            (&json!(true), &json!("peer"))
        );
        assert_eq!(
            pages.memory.lock().unwrap()[1][..4],
            [1, 2, 3, 0],
            "it is home"
        );
        let read = ask(r#"{"cmd":"stray","write":false,"addr":4096,"data":[0,0]}"#);
        assert_eq!(read["data"], json!([1, 2]));
        let ram = ask(r#"{"cmd":"stray","write":true,"addr":0,"data":[9]}"#);
        assert_eq!(ram["target"], "ram");
        for write in [false, true] {
            let line = format!(r#"{{"cmd":"stray","write":{write},"addr":8192,"data":[7]}}"#);
            let refused = ask(&line);
            assert_eq!(
                (&refused["ok"], &refused["refused"]),
                (&json!(false), &json!("refused"))
            );
        }
        assert_eq!(device.shared.lock().in_flight, 0);
    }

    #[test]
    fn regions_show_their_addresses() {
        let device = device();
        let ask = || answer(&device, br#"{"cmd":"regions"}"#).0;
        let name = {
            let mut state = device.shared.lock();
            state.regions.create(7, 0, 24).unwrap();
            state.regions.find(7).unwrap().0
        };
        assert_eq!(ask()[0]["segments"], json!(null));
        let segment = |addr, len| Segment { addr, len };
        let list = [segment(0x1000, 8), segment(0x1008, 8), segment(0x9000, 8)];
        let map = SegmentMap::new(list, 24).unwrap();
        device.shared.lock().regions.map(name, map);
        assert_eq!(ask()[0]["segments"], json!([[0x1000, 16], [0x9000, 8]]));
    }

    #[test]
    fn lines_are_answered() {
        let device = device();
        let shared = &device.shared;
        let ask = |line: &str| answer(&device, line.as_bytes());
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
