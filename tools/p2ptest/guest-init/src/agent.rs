// SPDX-License-Identifier: GPL-2.0
//! The agent: takes the harness's requests from a serial port, one at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use nix::libc::O_NONBLOCK;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use p2p_init::{Report, Request, Status, kmsg_text};

use crate::checkers;
use crate::relay::Relay;
use crate::run;

const PORT: &str = "/dev/ttyS1";
/// The kernel cuts longer records.
const KMSG_RECORD: usize = 8192;

/// Serves until the harness powers the guest off or closes the port.
///
/// # Errors
///
/// When the port or the kernel's log cannot be used.
pub fn serve(problems: Vec<String>) -> Result<()> {
    let mut agent = Agent::new()?;
    agent.forward_kernel_log()?;
    let relay = Relay::start(Arc::clone(&agent.port))?;
    agent.port.send(&Report::Ready { problems })?;
    let reader = BufReader::new(agent.port.reader()?);
    let (sender, requests) = channel();
    // On a thread of its own, as answers come while a program runs.
    thread::spawn(move || {
        for line in reader.lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Request::Answer { number, answer }) => relay.deliver(number, answer),
                _ if line.is_empty() => {}
                request => {
                    let request = request.map_err(|e| format!("{line}: {e}"));
                    if sender.send(request).is_err() {
                        return;
                    }
                }
            }
        }
    });
    // Whether a scan has seen all that the programs left.
    let mut seen = false;
    while let Ok(request) = requests.recv() {
        match request {
            Ok(Request::PowerOff) => return Ok(()),
            Ok(Request::Run { id, argv, timeout }) => {
                agent.note(&format!("begin {id}"));
                seen = false;
                let status = run::run(&argv, timeout, |text| agent.output(text));
                agent.note(&format!("end {id}: {status:?}"));
                agent.end(status)?;
            }
            Ok(Request::Kunit) => {
                let status = match agent.kunit() {
                    Ok(()) => Status::Exit(0),
                    Err(e) => Status::Failed(format!("{e:#}")),
                };
                agent.end(status)?;
            }
            Ok(Request::Checkers) => {
                let stopped = checkers::stopped().map(|names| {
                    let line = |name| format!("{name} has stopped");
                    names.into_iter().map(line).collect()
                });
                agent.found(stopped)?;
            }
            Ok(Request::Leaks { look }) => {
                agent.note("looking for leaks");
                agent.found(checkers::leaks(look, seen))?;
                seen = true;
            }
            // The reader delivers answers itself.
            Ok(Request::Answer { .. }) => {}
            Err(e) => agent.end(Status::Failed(e))?,
        }
    }
    Ok(())
}

/// The serial port: a line at a time, from any thread.
pub struct Port(Mutex<File>);

impl Port {
    fn open() -> Result<Self> {
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .open(PORT)
            .with_context(|| format!("opening {PORT}"))?;
        let mut settings = tcgetattr(&port)?;
        cfmakeraw(&mut settings);
        tcsetattr(&port, SetArg::TCSANOW, &settings)?;
        Ok(Self(Mutex::new(port)))
    }

    fn reader(&self) -> Result<File> {
        Ok(self.file().try_clone()?)
    }

    /// Sends one report.
    ///
    /// # Errors
    ///
    /// When the port cannot be written.
    pub fn send(&self, report: &Report) -> Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.file().write_all(&line).context("writing to the port")
    }

    fn file(&self) -> std::sync::MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Agent {
    port: Arc<Port>,
    log: File,
}

impl Agent {
    fn new() -> Result<Self> {
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open("/dev/kmsg")
            .context("opening /dev/kmsg")?;
        Ok(Self {
            port: Arc::new(Port::open()?),
            log,
        })
    }

    fn output(&mut self, text: String) -> Result<()> {
        self.port.send(&Report::Output { text })
    }

    fn end(&mut self, status: Status) -> Result<()> {
        self.forward_kernel_log()?;
        self.port.send(&Report::Ended { status })
    }

    /// Sends what a check found, and whether it found anything.
    fn found(&mut self, lines: Result<Vec<String>>) -> Result<()> {
        let status = match lines {
            Ok(lines) => {
                let code = i32::from(!lines.is_empty());
                for line in lines {
                    self.output(line)?;
                }
                Status::Exit(code)
            }
            Err(e) => Status::Failed(format!("{e:#}")),
        };
        self.end(status)
    }

    /// Marks the kernel's log, so that a console tells what ran when.
    fn note(&mut self, text: &str) {
        // The log is for people; a test does not fail because it has no mark.
        // One write is one record; without its end it would wait for the next one.
        let _ = self.log.write_all(format!("p2ptest: {text}\n").as_bytes());
    }

    fn forward_kernel_log(&mut self) -> Result<()> {
        let mut record = vec![0; KMSG_RECORD];
        loop {
            match self.log.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    let text = String::from_utf8_lossy(&record[..n]);
                    let text = kmsg_text(&text).to_owned();
                    self.port.send(&Report::Kernel { text })?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Records were overwritten before we read them; the next read goes on.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("reading /dev/kmsg"),
            }
        }
    }

    fn kunit(&mut self) -> Result<()> {
        let folder = "/sys/kernel/debug/kunit";
        let mut suites: Vec<_> = fs::read_dir(folder)
            .with_context(|| format!("reading {folder}"))?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .collect();
        suites.sort();
        for suite in suites {
            let results = fs::read(suite.join("results"))
                .with_context(|| format!("reading the results of {}", suite.display()))?;
            for text in String::from_utf8_lossy(&results).lines() {
                self.output(text.to_owned())?;
            }
        }
        Ok(())
    }
}
