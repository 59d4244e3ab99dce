// SPDX-License-Identifier: GPL-2.0
//! The device models of one guest: two GPUs and two NICs joined by a wire.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cargo::Programs;
use crate::context::Mode;
use crate::qemu::Device;
use crate::stop::{self, Group};

const START_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// An answer is a line of a few KiB; more is a defect.
const MAX_ANSWER: u64 = 1 << 20;

/// One running model.
#[derive(Debug)]
struct Model {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
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
            let options = ["--mode".into(), mode.name().into()];
            models.add(
                (&programs.vgpu, &options),
                &format!("gpu{number}"),
                folder,
                logs,
            )?;
            let end = ["--wire-listen", "--wire-connect"][number];
            let options = [end.into(), wire.clone().into()];
            models.add(
                (&programs.vnic, &options),
                &format!("nic{number}"),
                folder,
                logs,
            )?;
        }
        for model in &mut models.0 {
            model.await_sockets()?;
        }
        Ok(models)
    }

    fn add(
        &mut self,
        (program, options): (&Path, &[OsString]),
        name: &str,
        folder: &Path,
        logs: &Path,
    ) -> Result<()> {
        let socket = folder.join(format!("{name}.sock"));
        let control = folder.join(format!("{name}.control"));
        let log = logs.join(format!("{name}.log"));
        let mut arguments = vec![
            "--socket".into(),
            socket.clone().into(),
            "--control".into(),
            control.clone().into(),
        ];
        arguments.extend(options.iter().cloned());
        self.0.push(Model {
            name: name.to_owned(),
            process: spawn(program, &arguments, &log)?,
            program: program.to_owned(),
            arguments,
            socket,
            control,
            log,
            faults: name.starts_with("gpu").then_some(0),
        });
        Ok(())
    }

    /// What QEMU is told of them.
    pub fn devices(&self) -> Vec<Device> {
        let device = |m: &Model| Device {
            name: m.name.clone(),
            socket: m.socket.clone(),
        };
        self.0.iter().map(device).collect()
    }

    /// Their process ids.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|model| model.process.id())
    }

    /// Hands a command to a model's control socket, and its answer back.
    ///
    /// # Errors
    ///
    /// When there is no such model, or it does not answer. A refusal is an answer.
    pub fn control(&mut self, name: &str, command: &Value) -> Result<Value> {
        self.named(name)?.ask(command)
    }

    /// Ends a model and starts it anew: the device has lost its power.
    ///
    /// # Errors
    ///
    /// When there is no such model, or it does not start.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.named(name)?.restart()
    }

    fn named(&mut self, name: &str) -> Result<&mut Model> {
        self.0
            .iter_mut()
            .find(|model| model.name == name)
            .with_context(|| format!("no model {name:?}"))
    }

    /// What went wrong in the devices since the last call: one line each for a new
    /// fault, or a model that ended or does not answer.
    pub fn findings(&mut self) -> Vec<String> {
        self.0.iter_mut().filter_map(Model::finding).collect()
    }
}

/// Starts a model; what it writes is added to its log.
fn spawn(program: &Path, arguments: &[OsString], log: &Path) -> Result<Group> {
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    stop::spawn(&mut command)
}

impl Model {
    fn await_sockets(&mut self) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        while !(self.socket.exists() && self.control.exists()) {
            stop::check()?;
            if let Some(status) = self.process.child().try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!(
                    "the model of {} ended ({status}): {}",
                    self.name,
                    log.trim()
                );
            }
            ensure!(
                Instant::now() < until,
                "the model of {} does not listen",
                self.name
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.process.end();
        for path in [&self.socket, &self.control] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
        self.process = spawn(&self.program, &self.arguments, &self.log)?;
        self.faults = self.faults.map(|_| 0);
        self.await_sockets()
    }

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
        ensure!(answer["ok"] == true, "refused: {answer}");
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
        serde_json::from_str(&line).with_context(|| format!("{line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that listens as a model does, as far as the harness waits for it.
    fn model(folder: &Path, script: &str) -> Result<Model> {
        let (socket, control) = (folder.join("m.sock"), folder.join("m.control"));
        let log = folder.join("m.log");
        let arguments: Vec<OsString> = vec![
            "-c".into(),
            script.into(),
            (&socket).into(),
            (&control).into(),
        ];
        Ok(Model {
            name: "m".into(),
            process: spawn(Path::new("sh"), &arguments, &log)?,
            program: "sh".into(),
            arguments,
            socket,
            control,
            log,
            faults: Some(3),
        })
    }

    #[test]
    fn a_model_starts_anew() {
        let folder = crate::session::socket_folder().unwrap();
        let script = "echo started; : > $0; : > $1; exec sleep 100";
        let mut model = model(folder.path(), script).unwrap();
        model.await_sockets().unwrap();
        let first = model.process.child().id();
        model.restart().unwrap();
        assert_ne!(model.process.child().id(), first);
        assert_eq!(model.faults, Some(0));
        let log = fs::read_to_string(&model.log).unwrap();
        assert_eq!(log, "started\nstarted\n");
    }

    #[test]
    fn a_model_that_ends_is_an_error() {
        let folder = crate::session::socket_folder().unwrap();
        let mut model = model(folder.path(), "echo why; exit 3").unwrap();
        let error = model.await_sockets().unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
        assert!(model.ask(&json!({"cmd": "faults"})).is_err());
    }

    #[test]
    fn an_unknown_model_is_refused() {
        let mut none = Models(Vec::new());
        assert!(none.control("gpu0", &json!({"cmd": "faults"})).is_err());
        assert!(none.restart("../gpu0").is_err());
    }
}
