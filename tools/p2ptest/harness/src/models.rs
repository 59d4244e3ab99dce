// SPDX-License-Identifier: GPL-2.0
//! The device models of one guest: two GPUs and two NICs joined by a wire.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cargo::Programs;
use crate::context::Mode;
use crate::stop::{self, Group};

const START_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// An answer is a line of a few KiB; more is a defect.
const MAX_ANSWER: u64 = 1 << 20;

/// One running model.
#[derive(Debug)]
struct Model {
    name: String,
    process: Group,
    socket: PathBuf,
    control: PathBuf,
    log: PathBuf,
    /// Faults that were reported already; a NIC keeps no log of them.
    faults: Option<u64>,
}

/// The models, in the order of the ports: GPU 0, NIC 0, GPU 1, NIC 1.
#[derive(Debug)]
pub struct Models(Vec<Model>);

impl Models {
    /// Starts all four; `folder` gets their sockets, `logs` what they write.
    ///
    /// # Errors
    ///
    /// When one does not start or does not listen in time.
    pub fn start(programs: &Programs, mode: Mode, folder: &Path, logs: &Path) -> Result<Self> {
        let wire = folder.join("wire");
        let mut models = Self(Vec::new());
        for number in 0..2 {
            models.start_one(&programs.vgpu, &format!("gpu{number}"), folder, logs, |c| {
                c.args(["--mode", mode.name()]);
            })?;
            models.start_one(&programs.vnic, &format!("nic{number}"), folder, logs, |c| {
                c.arg(if number == 0 {
                    "--wire-listen"
                } else {
                    "--wire-connect"
                })
                .arg(&wire);
            })?;
        }
        models.await_sockets()?;
        Ok(models)
    }

    fn start_one(
        &mut self,
        program: &Path,
        name: &str,
        folder: &Path,
        logs: &Path,
        options: impl FnOnce(&mut Command),
    ) -> Result<()> {
        let socket = folder.join(format!("{name}.sock"));
        let control = folder.join(format!("{name}.control"));
        let log = logs.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .arg("--socket")
            .arg(&socket)
            .arg("--control")
            .arg(&control);
        options(&mut command);
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let process = stop::spawn(&mut command)?;
        let faults = name.starts_with("gpu").then_some(0);
        self.0.push(Model {
            name: name.to_owned(),
            process,
            socket,
            control,
            log,
            faults,
        });
        Ok(())
    }

    fn await_sockets(&mut self) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        for model in &mut self.0 {
            while !(model.socket.exists() && model.control.exists()) {
                stop::check()?;
                if let Some(status) = model.process.child().try_wait()? {
                    let log = std::fs::read_to_string(&model.log).unwrap_or_default();
                    bail!(
                        "the model of {} ended ({status}): {}",
                        model.name,
                        log.trim()
                    );
                }
                ensure!(
                    Instant::now() < until,
                    "the model of {} does not listen",
                    model.name
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// The sockets that QEMU connects to.
    pub fn sockets(&self) -> Vec<PathBuf> {
        self.0.iter().map(|m| m.socket.clone()).collect()
    }

    /// What went wrong in the devices since the last call: one line each for a new
    /// fault, or a model that ended or does not answer.
    pub fn findings(&mut self) -> Vec<String> {
        self.0.iter_mut().filter_map(Model::finding).collect()
    }
}

impl Model {
    fn finding(&mut self) -> Option<String> {
        match self.process.child().try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                return Some(format!("the model of {} ended ({status})", self.name));
            }
            Err(e) => return Some(format!("the model of {}: {e}", self.name)),
        }
        let known = self.faults?;
        match self.ask_faults() {
            Ok((count, _)) if count == known => None,
            Ok((count, log)) => {
                self.faults = Some(count);
                let new = count.saturating_sub(known);
                Some(format!("{}: {new} device fault(s), log: {log}", self.name))
            }
            Err(e) => Some(format!("the model of {} does not answer: {e:#}", self.name)),
        }
    }

    /// Faults since power on, and the log that the device keeps.
    fn ask_faults(&self) -> Result<(u64, Value)> {
        let answer = self.ask(&json!({"cmd": "faults"}))?;
        let count = answer
            .get("count")
            .and_then(Value::as_u64)
            .context("an answer without count")?;
        Ok((count, answer.get("log").cloned().unwrap_or(Value::Null)))
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        ensure!(answer["ok"] == true, "refused: {answer}");
        Ok(answer)
    }
}
