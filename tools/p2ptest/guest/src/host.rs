// SPDX-License-Identifier: GPL-2.0
//! Asking the host to act: faults that a device model is to show, its own view of
//! its state, and devices that come and go. The guest's agent hands it on to the
//! harness, which answers for the devices of this guest only.

use crate::igt;
use p2p_init::{Answer, Ask, HOST_SOCKET, MAX_ANSWER};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than the agent waits for the host.
const LIMIT: Duration = Duration::from_secs(40);

/// Skips unless somebody on the host listens: a shell's guest has no harness.
#[track_caller]
pub fn require() {
    igt::require(Path::new(HOST_SOCKET).exists(), "needs the harness");
}

fn ask(socket: &Path, ask: &Ask) -> Answer {
    let talk = || -> std::io::Result<Answer> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes())?;
        let mut line = Vec::new();
        // An answer, and what says that it is one.
        let longest = MAX_ANSWER as u64 + 64;
        BufReader::new(stream.take(longest)).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    };
    talk().unwrap_or_else(|error| Err(error.to_string()))
}

#[track_caller]
fn must(what: &Ask) -> Value {
    require();
    match ask(Path::new(HOST_SOCKET), what) {
        Ok(value) => value,
        Err(why) => panic!("{what:?} failed: {why}"),
    }
}

/// A command of the control socket of `model`; the model's refusals are answers.
pub fn __control(model: &str, command: Value) -> Answer {
    let model = model.to_owned();
    ask(Path::new(HOST_SOCKET), &Ask::Control { model, command })
}

/// A command of the control socket of `model`: "gpu0", "nic0", "gpu1", "nic1".
#[track_caller]
pub fn control(model: &str, command: Value) -> Value {
    let model = model.to_owned();
    let answer = must(&Ask::Control { model, command });
    assert_eq!(answer.get("error"), None, "the model refused");
    answer
}

/// A command of QEMU's machine protocol: `query-*`, or `device_del` and
/// `device_add` with a model's name as `id`.
pub fn __qmp(command: Value) -> Answer {
    ask(Path::new(HOST_SOCKET), &Ask::Qmp { command })
}

/// A command of QEMU's machine protocol.
#[track_caller]
pub fn qmp(command: Value) -> Value {
    must(&Ask::Qmp { command })
}

/// Asks for a device to be unplugged; the guest's kernel has to agree.
#[track_caller]
pub fn unplug(model: &str) {
    qmp(json!({"execute": "device_del", "arguments": {"id": model}}));
}

/// Plugs a device in again.
#[track_caller]
pub fn plug(model: &str) {
    qmp(json!({"execute": "device_add", "arguments": {"id": model}}));
}

/// Says that the devices of this guest are not going to be what they were: the
/// tests that follow run in a fresh one.
#[track_caller]
pub fn retire_guest() {
    must(&Ask::Retire);
}

/// Ends a model and starts it anew.
#[track_caller]
pub fn restart(model: &str) {
    let model = model.to_owned();
    must(&Ask::Restart { model });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What comes back from an agent that writes these bytes.
    fn told(name: &str, bytes: Vec<u8>) -> Answer {
        let file = format!("p2pguest-host-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(file);
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            // The other side may hang up on an endless answer.
            let _ = (&stream).write_all(&bytes);
            line
        });
        let answer = ask(&path, &Ask::Restart { model: "x".into() });
        std::fs::remove_file(path).unwrap();
        let line = agent.join().unwrap();
        assert_eq!(line, "{\"ask\":\"restart\",\"model\":\"x\"}\n");
        answer
    }

    #[test]
    fn answers_and_refusals() {
        assert_eq!(told("ok", b"{\"Ok\":1}\n".into()), Ok(json!(1)));
        assert_eq!(told("no", b"{\"Err\":\"y\"}\n".into()), Err("y".into()));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(told("none", Vec::new()).is_err());
        assert!(told("endless", vec![b' '; 4 * MAX_ANSWER]).is_err());
        assert!(ask(Path::new("/nonexistent"), &Ask::Qmp { command: json!({}) }).is_err());
    }
}
