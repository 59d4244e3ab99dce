// SPDX-License-Identifier: GPL-2.0
//! QEMU's machine protocol: one command at a time, each answered before the next.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// How long QEMU may take: a command waits for a message of a vCPU at most.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// A connection.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    last: u64,
}

impl Qmp {
    /// Connects to the socket that QEMU listens on, and leaves negotiation.
    ///
    /// # Errors
    ///
    /// When QEMU is not there or does not speak the protocol.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            last: 0,
        };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "not QMP: {greeting}");
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Executes a command; without arguments they are null. Events are passed over.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it, or does not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.last += 1;
        let mut request = json!({"execute": command, "id": self.last});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let stream = self.stream.get_mut();
        stream.write_all(format!("{request}\n").as_bytes())?;
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            let mut answer = self.line()?;
            // Events have no id; what comes too late has another one.
            if answer["id"] != self.last {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("{command} is refused: {error}");
            }
            return Ok(answer["return"].take());
        }
        bail!("{command} is not answered");
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        ensure!(read != 0, "QEMU closed the connection");
        serde_json::from_slice(&line).context("what QEMU says")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A QEMU that says these lines, one after each line that it is told.
    fn qemu(says: &'static [&'static str], talk: impl FnOnce(Result<Qmp>)) -> Vec<Value> {
        let folder = crate::session::socket_folder().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for (i, text) in says.iter().enumerate() {
                if i > 0 {
                    let Some(Ok(line)) = lines.next() else { break };
                    heard.push(serde_json::from_str(&line).unwrap());
                }
                stream.write_all(text.as_bytes()).unwrap();
            }
            heard
        });
        talk(Qmp::connect(&path));
        server.join().unwrap()
    }

    const GREETING: &str = "{\"QMP\":{}}\n";
    const READY: &str = "{\"return\":{},\"id\":1}\n";

    #[test]
    fn events_and_late_answers_are_passed_over() {
        let answer = "{\"event\":\"RESET\"}\n{\"return\":0,\"id\":1}\n{\"return\":[5],\"id\":2}\n";
        let refusal = "{\"error\":{\"class\":\"x\"},\"id\":3}\n";
        let heard = qemu(
            Box::leak(Box::new([GREETING, READY, answer, refusal])),
            |qmp| {
                let mut qmp = qmp.unwrap();
                let found = qmp.execute("query-pci", Value::Null).unwrap();
                assert_eq!(found, json!([5]));
                let error = qmp.execute("device_del", json!({"id": "x"})).unwrap_err();
                assert!(error.to_string().contains("refused"), "{error}");
            },
        );
        assert_eq!(heard[1], json!({"execute": "query-pci", "id": 2}));
        assert_eq!(heard[2]["arguments"], json!({"id": "x"}));
    }

    #[test]
    fn what_is_no_qemu_is_an_error() {
        qemu(&["SSH-2.0\n"], |qmp| assert!(qmp.is_err()));
        qemu(&["{}\n"], |qmp| assert!(qmp.is_err()));
        qemu(&[GREETING], |qmp| assert!(qmp.is_err()));
    }
}
