// SPDX-License-Identifier: GPL-2.0
//! `make top`: the apertures on the console, while a load runs.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use p2p_init::{LOAD, TOP};

/// What the load writes: nothing, unless it fails.
const LOG: &str = "/tmp/load.log";

/// Returns when the user has seen enough.
///
/// # Errors
///
/// When one of the two cannot be started, or the load did not last.
pub fn run() -> Result<()> {
    let mut load = start_load()?;
    // The console itself is no terminal that a session can control: cttyhack finds
    // the one behind it.
    let top = Command::new("/bin/busybox")
        .args(["setsid", "cttyhack", TOP])
        .status()
        .with_context(|| format!("starting {TOP}"))?;
    end_load(&mut load)?;
    if !top.success() {
        bail!("{TOP}: {top}");
    }
    println!("The load ran to the end.");
    Ok(())
}

fn start_load() -> Result<Child> {
    let log = File::create(LOG).with_context(|| format!("creating {LOG}"))?;
    Command::new(LOAD)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {LOAD}"))
}

fn end_load(load: &mut Child) -> Result<()> {
    if let Some(status) = load.try_wait()? {
        let log = fs::read_to_string(LOG).unwrap_or_default();
        bail!("{LOAD} ended early: {status}\n{}", log.trim_end());
    }
    killpg(Pid::from_raw(i32::try_from(load.id())?), Signal::SIGKILL)?;
    load.wait()?;
    Ok(())
}
