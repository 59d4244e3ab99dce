// SPDX-License-Identifier: GPL-2.0
//! Ending: the user's wish to stop, and children that never outlive us.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::step::read_lines;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP: AtomicBool = AtomicBool::new(false);

/// How long an ended child may take to go before it is killed.
const GRACE: Duration = Duration::from_secs(2);

extern "C" fn note(_signal: i32) {
    if STOP.swap(true, Ordering::Relaxed) {
        // Asked twice: at once. The namespace ends whatever is left.
        // SAFETY: _exit() is async-signal-safe and does not return.
        unsafe { nix::libc::_exit(130) };
    }
}

/// From here on SIGINT, SIGTERM and SIGHUP are wishes to stop, seen by [`check`].
///
/// # Errors
///
/// When a handler cannot be set.
pub fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only swaps an atomic and may call _exit(); both are
        // async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("setting a signal handler")?;
    }
    Ok(())
}

/// Whether the user wants to stop.
pub fn wanted() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Fails when the user wants to stop.
///
/// # Errors
///
/// Then, and only then.
pub fn check() -> Result<()> {
    if wanted() {
        bail!("stopped");
    }
    Ok(())
}

/// A child in a process group of its own, ended with all of the group when dropped.
#[derive(Debug)]
pub struct Group(Child);

/// Starts a command as a [`Group`].
///
/// # Errors
///
/// When the program cannot be started.
pub fn spawn(command: &mut Command) -> Result<Group> {
    command.process_group(0);
    command
        .spawn()
        .map(Group)
        .with_context(|| format!("starting {}", command.get_program().display()))
}

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output's lines, then those of its standard error.
    pub lines: Vec<String>,
}

/// Runs a short command and captures what it writes.
///
/// # Errors
///
/// When it cannot be started, takes longer than `limit`, or the user stops the run.
pub fn capture(command: &mut Command, limit: Duration) -> Result<Captured> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let out = child.0.stdout.take().map(read_lines);
    let err = child.0.stderr.take().map(read_lines);
    let status = child.wait_for(limit)?;
    // Dropping the group ends a child that still runs, and with it its output.
    drop(child);
    check()?;
    let lines = [out, err].into_iter().flatten().flat_map(|r| r.into_iter());
    let lines = lines.collect();
    match status {
        Some(status) => Ok(Captured { status, lines }),
        None => bail!("{command:?} did not end within {limit:?}"),
    }
}

impl Group {
    /// The child's process id, which is the group's.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits for the child's end, or for the user's wish to stop, which ends it.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if wanted() {
                self.end();
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Waits at most so long; `None` if the child still runs then.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if wanted() || Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the group to end, then kills what is left of it.
    pub fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::SIGKILL);
        // The child is dead or was just killed: this does not block.
        let _ = self.0.wait();
    }

    fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.0.id()) {
            // A group that is gone already is what we want.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            // What the child left behind in its group.
            self.signal(Signal::SIGKILL);
        } else {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Captured> {
        capture(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn captures_both_streams() {
        let seen = sh("echo a; echo b >&2; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!(seen.lines, ["a", "b"]);
        assert_eq!(seen.status.code(), Some(3));
    }

    #[test]
    fn late_command_is_ended_with_its_children() {
        let start = Instant::now();
        let error = sh("sleep 100 & sleep 100", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end within"));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
