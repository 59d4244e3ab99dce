// SPDX-License-Identifier: GPL-2.0
//! Child processes: for what may end in a signal, and for what must work in
//! several address spaces.

use super::{Skip, critical};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork as unix_fork};
use std::panic::{self, AssertUnwindSafe};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its closure returned.
    Passed,
    /// Its closure panicked; the message was printed.
    Failed,
    /// A signal ended it.
    Killed(Signal),
}

/// A child process; killed and waited for when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Option<Pid>,
}

/// Runs a closure in a child process, which has copies of all open files and
/// mappings. Destructors of the parent's values do not run there.
///
/// Call it while no other thread runs: the child has only the calling one, and
/// locks that others hold stay locked in it.
#[track_caller]
pub fn fork(run: impl FnOnce()) -> Child {
    // SAFETY: the callers have one thread, so nothing is held in the child.
    match unsafe { unix_fork() } {
        Ok(ForkResult::Parent { child }) => Child { pid: Some(child) },
        Ok(ForkResult::Child) => {
            let status = match panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(()) => 0,
                Err(payload) => {
                    if payload.is::<Skip>() {
                        critical("a child process cannot skip");
                    }
                    1
                }
            };
            // SAFETY: ends the process; the parent's destructors must not run.
            unsafe { nix::libc::_exit(status) }
        }
        Err(errno) => panic!("fork failed: {errno}"),
    }
}

impl Child {
    /// Waits for the end.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let pid = self.pid.take().expect("taken only here and in drop");
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, 0)) => Outcome::Passed,
            Ok(WaitStatus::Signaled(_, signal, _)) => Outcome::Killed(signal),
            Ok(_) => Outcome::Failed,
            Err(errno) => panic!("waitpid failed: {errno}"),
        }
    }

    /// Waits for the end and asserts that the closure returned.
    #[track_caller]
    pub fn join(self) {
        assert_eq!(self.outcome(), Outcome::Passed, "a child process failed");
    }

    /// Asserts that the child still runs.
    #[track_caller]
    pub fn assert_runs(&self) {
        if let Some(pid) = self.pid {
            let state = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            assert_eq!(state, Ok(WaitStatus::StillAlive), "a child has ended");
        }
    }

    /// Waits until the child waits for something, as it can for as long as no signal comes.
    #[track_caller]
    pub fn wait_asleep(&self) {
        let pid = self.pid.expect("taken only when the child is no more");
        let sleeps = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            // The name before the state may hold anything.
            stat.is_ok_and(|stat| {
                stat.rsplit_once(')')
                    .is_some_and(|(_, rest)| rest.starts_with(" S"))
            })
        };
        crate::binding::wait_until("a child sleeps", sleeps);
    }

    /// Sends the child a signal.
    #[track_caller]
    pub fn send(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let sent = kill(pid, signal);
            assert_eq!(sent, Ok(()), "the child gets no {signal}");
        }
    }

    /// Ends the child at once, whatever it does.
    #[track_caller]
    pub fn kill(self) {
        if let Some(pid) = self.pid {
            let killed = kill(pid, Signal::SIGKILL);
            assert_eq!(killed, Ok(()), "the child could not be killed");
        }
        self.outcome();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // The child may have ended by itself; there is no one to tell.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Mapping;
    use std::fs::{File, OpenOptions};

    fn empty_file(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("p2pguest-{name}-{}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn outcomes_are_told_apart() {
        assert_eq!(fork(|| ()).outcome(), Outcome::Passed);
        // Not by a panic: another test's thread may hold the lock of stdout.
        // SAFETY: ends the child.
        let fails = fork(|| unsafe { nix::libc::_exit(1) });
        assert_eq!(fails.outcome(), Outcome::Failed);
    }

    #[test]
    fn a_bus_error_is_an_outcome() {
        // No page of an empty file is there: the access raises SIGBUS.
        let map = Mapping::__new(&empty_file("sigbus"), 0, 4096).unwrap();
        let child = fork(|| {
            map.load(0);
        });
        assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS));
    }

    #[test]
    fn a_child_can_be_killed() {
        let child = fork(|| {
            loop {
                std::thread::park()
            }
        });
        child.assert_runs();
        child.kill();
    }
}
