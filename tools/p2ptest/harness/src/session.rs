// SPDX-License-Identifier: GPL-2.0
//! One guest with its devices: started, asked to run things one at a time, watched,
//! and ended with everything that belongs to it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use p2p_init::{Ask, Look, Report, Request, Status};
use serde_json::json;
use tempfile::TempDir;

use crate::cargo::Programs;
use crate::context::{Context, Flavour, Setup};
use crate::coverage::counters::{Counters, Snapshot};
use crate::host;
use crate::models::Models;
use crate::processors::{Processors, Seat};
use crate::qemu::{Accel, Console, Guest};
use crate::qmp::Qmp;
use crate::splat::is_splat;
use crate::step::read_lines;
use crate::stop::{self, Group};

/// A boot under TCG takes seconds, more where others use the processors.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// QEMU itself starts as fast with any kernel.
const QEMU_LIMIT: Duration = Duration::from_secs(60);
/// Looking for leaks takes two scans of all memory.
const LEAKS_LIMIT: Duration = Duration::from_secs(60);
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);
/// What the harness grants beyond the agent's own timeout.
const MARGIN: Duration = Duration::from_secs(45);
/// Console lines that a crash shows.
const TAIL: usize = 25;

/// What all guests of a run are started from.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Settings.
    pub ctx: &'a Context,
    /// What the kernel was configured for.
    pub flavour: Flavour,
    /// Models and test programs.
    pub programs: &'a Programs,
    /// The kernel image.
    pub image: PathBuf,
    /// The file system.
    pub initrd: PathBuf,
    /// What runs the guest's processors.
    pub accel: Accel,
    /// Memory, MiB.
    pub memory: u64,
    /// How often the kernel's lines were reached, if it counts them.
    pub counters: Option<Arc<Counters>>,
    /// The host's processors.
    pub processors: Processors,
}

/// What came of one request.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What the program wrote.
    pub output: Vec<String>,
    /// What the kernel or a device found wrong meanwhile.
    pub findings: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The agent tells.
    Told(Status),
    /// The guest died or no longer answers: this session is over.
    Crash(String),
}

enum Event {
    Console(String),
    Agent(String),
    AgentGone,
}

/// A running guest.
pub struct Session {
    qemu: Group,
    guest: Guest,
    models: Models,
    qmp: Qmp,
    agent: UnixStream,
    events: Receiver<Event>,
    console: ConsoleLog,
    /// The command that started the guest.
    pub command: String,
    /// The console's file.
    pub console_path: PathBuf,
    /// Problems and findings of the boot itself.
    pub boot: Vec<String>,
    /// The guest is not fit for another test.
    pub retired: bool,
    /// As in [`Parts`].
    pub processors: Processors,
    seat: Seat,
    counters: Option<Arc<Counters>>,
    /// What this guest's memory held of them last.
    counted: Snapshot,
    scale: f64,
    folder: TempDir,
}

impl Session {
    /// Starts models and guest, and waits until its agent is ready. `name` names
    /// the files of this boot.
    ///
    /// # Errors
    ///
    /// When the guest does not come up; the console's end is in the message.
    pub fn start(parts: &Parts<'_>, setup: Setup, name: &str, parameters: &str) -> Result<Self> {
        let folder = socket_folder()?;
        let results = parts.ctx.results().join(name);
        fs::create_dir_all(&results)?;
        let mut seat = parts.processors.seat();
        seat.settle([]);
        let models = Models::start(parts.programs, setup.mode, folder.path(), &results)?;
        let agent_path = folder.path().join("agent");
        let listener = UnixListener::bind(&agent_path)?;
        let qmp_path = folder.path().join("qmp");
        let guest = Guest {
            accel: parts.accel,
            topology: setup.topology,
            image: parts.image.clone(),
            initrd: parts.initrd.clone(),
            memory: parts.memory,
            parameters: format!("{parameters}{}", parts.flavour.parameters()),
            devices: models.devices(),
            console: Console::Output,
            agent: Some(agent_path),
            qmp: Some(qmp_path.clone()),
        };
        fs::write(results.join("command"), guest.line() + "\n")?;
        let console_path = results.join("console.log");
        let errors = File::create(results.join("qemu.log"))?;
        let mut command = guest.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut qemu = stop::spawn(&mut command)?;
        let (sender, events) = channel();
        if let Some(out) = qemu.child().stdout.take() {
            forward(read_lines(out), sender.clone(), Event::Console);
        }
        let agent = accept(&listener, &mut qemu, &results)?;
        let qmp = connect(&qmp_path, &mut qemu)?;
        let lines = read_lines(agent.try_clone()?);
        std::thread::spawn(move || {
            while let Ok(line) = lines.recv() {
                if sender.send(Event::Agent(line)).is_err() {
                    return;
                }
            }
            // The session may be over already.
            let _ = sender.send(Event::AgentGone);
        });
        let mut session = Self {
            qemu,
            models,
            qmp,
            agent,
            events,
            console: ConsoleLog::new(&console_path)?,
            command: guest.line(),
            guest,
            console_path,
            boot: Vec::new(),
            retired: false,
            processors: parts.processors.clone(),
            seat,
            counters: parts.counters.clone(),
            counted: Snapshot::new(),
            scale: parts.ctx.timeout_scale * parts.flavour.slowness(),
            folder,
        };
        parts.processors.beside_others(|| session.await_ready())?;
        Ok(session)
    }

    fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT.mul_f64(self.scale);
        loop {
            match self.next(deadline)? {
                Next::Report(Report::Ready { problems }) => {
                    self.boot.extend(problems);
                    self.boot.extend(self.models.findings());
                    return Ok(());
                }
                Next::Report(Report::Kernel { text }) if is_splat(&text) => self.boot.push(text),
                Next::Report(_) => {}
                Next::Crash(why) => {
                    bail!("the guest did not come up: {why}{}", self.console.tail())
                }
            }
        }
    }

    /// Runs one program in the guest; `live` sees its output as it comes.
    ///
    /// # Errors
    ///
    /// When the user stops the run, or a file cannot be written. What goes wrong in
    /// the guest is an outcome.
    pub fn run(
        &mut self,
        id: &str,
        argv: Vec<String>,
        timeout: Duration,
        live: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        let timeout = timeout.mul_f64(self.scale);
        let request = Request::Run {
            id: id.to_owned(),
            argv,
            timeout: timeout.as_secs().max(1),
        };
        self.request(&request, timeout + MARGIN, live)
    }

    /// Collects the results of the KUnit suites that ran at boot.
    ///
    /// # Errors
    ///
    /// As for [`Session::run`].
    pub fn kunit(&mut self) -> Result<Outcome> {
        self.request(&Request::Kunit, MARGIN.mul_f64(self.scale), &mut |_| {})
    }

    /// Asks which of the debug kernel's checkers have stopped.
    ///
    /// # Errors
    ///
    /// As for [`Session::run`].
    pub fn checkers(&mut self) -> Result<Outcome> {
        let limit = MARGIN.mul_f64(self.scale);
        self.request(&Request::Checkers, limit, &mut |_| {})
    }

    /// Asks the debug kernel what has leaked and was not told yet.
    ///
    /// # Errors
    ///
    /// As for [`Session::run`].
    pub fn leaks(&mut self, look: Look) -> Result<Outcome> {
        let limit = LEAKS_LIMIT.mul_f64(self.scale);
        let processors = self.processors.clone();
        processors.beside_others(|| self.request(&Request::Leaks { look }, limit, &mut |_| {}))
    }

    /// Takes the counters of a kernel that has them, from the guest's memory.
    ///
    /// # Errors
    ///
    /// As for [`Session::run`].
    pub fn count(&mut self) -> Result<Outcome> {
        let counters = self.counters.clone();
        let counters = counters.context("a kernel without counters")?;
        // Not all modules need be loaded: then it ends with an error.
        let mut outcome = self.run("counters", counters.question(), MARGIN, &mut |_| {})?;
        if let End::Told(status) = &mut outcome.end {
            *status = match self.read_counters(&counters, &outcome.output) {
                Ok(()) => Status::Exit(0),
                Err(e) => Status::Failed(format!("{e:#}")),
            };
        }
        Ok(outcome)
    }

    fn read_counters(&mut self, counters: &Counters, answer: &[String]) -> Result<()> {
        let file = self.folder.path().join("memory");
        let mut now = Snapshot::new();
        for (address, counted) in counters.places(answer) {
            // QEMU knows the kernel's addresses as well: those of its first processor.
            let arguments = json!({
                "val": address.cast_signed(),
                "size": counted.size(),
                "filename": file,
            });
            self.qmp.execute("memsave", arguments)?;
            let bytes = fs::read(&file)?;
            let (values, _) = bytes.as_chunks();
            let values = values.iter().map(|value| u64::from_le_bytes(*value));
            now.insert(counted.name, values.collect());
        }
        counters.add(&mut self.counted, now);
        Ok(())
    }

    fn request(
        &mut self,
        request: &Request,
        limit: Duration,
        live: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        let processes = self.models.processes().chain([self.qemu.id()]);
        self.seat.settle(processes);
        let start = Instant::now();
        let mut outcome = Outcome {
            end: End::Told(Status::Exit(0)),
            output: Vec::new(),
            findings: Vec::new(),
            time: Duration::ZERO,
        };
        if let Err(e) = self.send(request)? {
            outcome.end = End::Crash(format!("the guest's agent is gone: {e}"));
            return Ok(outcome);
        }
        outcome.end = loop {
            match self.next(start + limit)? {
                Next::Report(Report::Output { text }) => {
                    live(&text);
                    outcome.output.push(text);
                }
                Next::Report(Report::Kernel { text }) => {
                    if is_splat(&text) {
                        outcome.findings.push(text);
                    }
                }
                Next::Report(Report::Ask { number, ask }) => {
                    self.retired |= ask == Ask::Retire;
                    let answer = host::answer(&self.guest, &mut self.models, &mut self.qmp, &ask);
                    // If the agent is gone, the next report says so.
                    let _ = self.send(&Request::Answer { number, answer })?;
                }
                Next::Report(Report::Ended { status }) => break End::Told(status),
                Next::Report(Report::Ready { .. }) => {
                    break End::Crash("the guest booted again".into());
                }
                Next::Crash(why) => {
                    outcome.findings.extend(self.console.splats());
                    break End::Crash(why + &self.console.tail());
                }
            }
        };
        outcome.findings.extend(self.models.findings());
        outcome.time = start.elapsed();
        Ok(outcome)
    }

    /// Sends a request; the inner error is the guest's.
    fn send(&mut self, request: &Request) -> Result<std::io::Result<()>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        Ok(self.agent.write_all(&line))
    }

    /// The next report, or why none will come.
    fn next(&mut self, deadline: Instant) -> Result<Next> {
        loop {
            stop::check()?;
            match self.events.recv_timeout(Duration::from_millis(100)) {
                Ok(Event::Console(line)) => self.console.add(&line)?,
                // What is no report is the firmware's or a torn line.
                Ok(Event::Agent(line)) => {
                    if let Ok(report) = serde_json::from_str(&line) {
                        return Ok(Next::Report(report));
                    }
                }
                Ok(Event::AgentGone) | Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait_for(Duration::from_secs(5))?;
                    // The panic's lines may still be on their way.
                    while let Ok(event) = self.events.recv_timeout(Duration::from_millis(200)) {
                        if let Event::Console(line) = event {
                            self.console.add(&line)?;
                        }
                    }
                    return Ok(Next::Crash(match status {
                        Some(status) => format!("the guest ended ({status})"),
                        None => "the guest closed its port".into(),
                    }));
                }
                Err(RecvTimeoutError::Timeout) => {
                    if Instant::now() >= deadline {
                        return Ok(Next::Crash("the guest does not answer".into()));
                    }
                }
            }
        }
    }

    /// Powers the guest off and ends the models. Returns what was found wrong on
    /// the way.
    ///
    /// # Errors
    ///
    /// When the user stops the run, or the console cannot be written.
    pub fn power_off(mut self) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        // Of what ran since the last audit, if there was none at the end.
        if self.counters.is_some() && self.retired {
            match self.count()?.end {
                End::Told(Status::Exit(0)) => {}
                end => findings.push(format!("its counters cannot be read: {end:?}")),
            }
        }
        let sent = self.send(&Request::PowerOff)?;
        let limit = POWER_OFF_LIMIT.mul_f64(self.scale);
        match sent.map(|()| self.qemu.wait_for(limit)) {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => findings.push("the guest does not power off".to_owned()),
            Ok(Err(e)) => return Err(e),
            Err(e) => findings.push(format!("the guest's agent is gone: {e}")),
        }
        stop::check()?;
        while let Ok(event) = self.events.recv_timeout(Duration::from_millis(100)) {
            if let Event::Console(line) = event {
                if is_splat(&line) {
                    findings.push(line.clone());
                }
                self.console.add(&line)?;
            }
        }
        Ok(findings)
    }
}

enum Next {
    Report(Report),
    Crash(String),
}

fn forward(lines: Receiver<String>, to: Sender<Event>, wrap: fn(String) -> Event) {
    std::thread::spawn(move || {
        while let Ok(line) = lines.recv() {
            if to.send(wrap(line)).is_err() {
                return;
            }
        }
    });
}

/// Waits for QEMU to connect the guest's second serial port.
fn accept(listener: &UnixListener, qemu: &mut Group, results: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + QEMU_LIMIT;
    loop {
        stop::check()?;
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(Duration::from_secs(10)))?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("waiting for QEMU"),
        }
        if let Some(status) = qemu.child().try_wait()? {
            let log = fs::read_to_string(results.join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended ({status}): {}", log.trim());
        }
        if Instant::now() >= until {
            bail!("QEMU does not start");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects to QEMU's own port, which it opens when it starts.
fn connect(path: &Path, qemu: &mut Group) -> Result<Qmp> {
    let until = Instant::now() + BOOT_LIMIT;
    loop {
        stop::check()?;
        match Qmp::connect(path) {
            Ok(qmp) => return Ok(qmp),
            Err(e) if qemu.child().try_wait()?.is_some() || Instant::now() >= until => {
                return Err(e).context("asking QEMU");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The console's file, each line with the seconds since the start, and its last lines.
struct ConsoleLog {
    file: File,
    start: Instant,
    last: VecDeque<String>,
}

impl ConsoleLog {
    fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self {
            file,
            start: Instant::now(),
            last: VecDeque::new(),
        })
    }

    fn add(&mut self, line: &str) -> Result<()> {
        let line = line.trim_end_matches('\r');
        writeln!(
            self.file,
            "{:9.3} {line}",
            self.start.elapsed().as_secs_f64()
        )?;
        if self.last.len() == TAIL {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        Ok(())
    }

    fn tail(&self) -> String {
        let mut text = String::from("; the console's last lines:");
        for line in &self.last {
            text.push_str("\n  | ");
            text.push_str(line);
        }
        text
    }

    fn splats(&self) -> Vec<String> {
        self.last
            .iter()
            .filter(|line| is_splat(line))
            .cloned()
            .collect()
    }
}

/// A folder for sockets, whose paths must be short; gone with its content when dropped.
///
/// # Errors
///
/// When there is no room for it.
pub fn socket_folder() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("p2ptest.")
        .tempdir()
        .context("making a temporary folder")
}
