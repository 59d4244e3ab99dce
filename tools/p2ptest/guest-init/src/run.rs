// SPDX-License-Identifier: GPL-2.0
//! Running one program: its output line by line, its timeout, and nothing of it
//! left when it has ended.

use std::io::{BufRead, BufReader, pipe};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use p2p_init::{Status, TESTS};

/// How long a killed program may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(40);
/// How long output may come after the program's end, from what it left behind.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether a program has ended that has not closed its output. To look
/// takes an emulated processor long, and most close it as they end.
const TICK: Duration = Duration::from_millis(50);
/// The same of one that has.
const LAST_TICK: Duration = Duration::from_millis(2);

/// Runs a program for at most `timeout` seconds and hands on what it writes.
pub fn run(argv: &[String], timeout: u64, mut output: impl FnMut(String) -> Result<()>) -> Status {
    match try_run(argv, timeout, &mut output) {
        Ok(status) => status,
        Err(e) => Status::Failed(format!("{e:#}")),
    }
}

fn try_run(
    argv: &[String],
    timeout: u64,
    output: &mut impl FnMut(String) -> Result<()>,
) -> Result<Status> {
    let Some((program, arguments)) = argv.split_first() else {
        return Ok(Status::Failed("no program".into()));
    };
    let (reader, writer) = pipe()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", format!("/bin:{TESTS}"))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(i32::try_from(child.id())?);

    let lines = lines(reader);
    let deadline = Instant::now() + Duration::from_secs(timeout);
    let ended = wait(&mut child, deadline, &lines, output)?;
    // What it left behind in its group ends with it.
    let _ = killpg(group, Signal::SIGKILL);
    let status = match ended {
        Some(status) => describe(status),
        None if wait(&mut child, Instant::now() + KILL_LIMIT, &lines, output)?.is_some() => {
            Status::Timeout
        }
        None => Status::Stuck,
    };
    let until = Instant::now() + DRAIN_LIMIT;
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        output(line)?;
    }
    reap();
    Ok(status)
}

fn lines(reader: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn wait(
    child: &mut Child,
    deadline: Instant,
    lines: &Receiver<String>,
    output: &mut impl FnMut(String) -> Result<()>,
) -> Result<Option<ExitStatus>> {
    loop {
        // The sender may be gone before the child is: then this does not wait.
        match lines.recv_timeout(TICK) {
            Ok(line) => output(line)?,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(LAST_TICK),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

fn describe(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Exit(code),
        (None, Some(signal)) => Status::Signal(signal),
        (None, None) => Status::Failed(format!("{status}")),
    }
}

/// /init inherits the orphans: none of them stays a zombie.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: u64) -> (Status, Vec<String>) {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        let mut seen = Vec::new();
        // reap() in another thread's test may take this child's status: see below.
        let status = try_run(&argv, timeout, &mut |line| {
            seen.push(line);
            Ok(())
        });
        (status.unwrap(), seen)
    }

    // One test: run() reaps all children of the process, as only /init may.
    #[test]
    fn outcomes() {
        assert_eq!(
            sh("echo a; echo b >&2; exit 77", 10),
            (Status::Exit(77), vec!["a".into(), "b".into()])
        );
        assert_eq!(sh("kill -SEGV $$", 10).0, Status::Signal(11));
        assert_eq!(sh("echo x; sleep 100", 0).0, Status::Timeout);
        assert!(matches!(
            run(&["/no/such".to_owned()], 1, |_| Ok(())),
            Status::Failed(_)
        ));
        assert!(matches!(run(&[], 1, |_| Ok(())), Status::Failed(_)));
        let start = Instant::now();
        assert_eq!(sh("sleep 100 & exit 0", 10).0, Status::Exit(0));
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
