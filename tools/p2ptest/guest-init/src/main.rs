// SPDX-License-Identifier: GPL-2.0
//! The guest's /init: mounts what a system has, loads the drivers, then serves the
//! harness, starts a shell, or shows the apertures under load.

#![forbid(unsafe_code)]

mod agent;
mod checkers;
mod relay;
mod run;
mod top;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use p2p_init::{MODULE_LIST, Mode, TESTS};

/// Seconds after which the kernel reports a task that waits without an end.
const HUNG_TASK_SECONDS: &str = "30";

/// Our devices, as hardware.rst has them.
const VENDOR: &str = "0x1234";
const DEVICES: [&str; 2] = ["0x2019", "0x2020"];
/// Two GPUs and two NICs.
const EXPECTED_DEVICES: usize = 4;

fn main() {
    if let Err(e) = run() {
        eprintln!("p2p-init: {e:#}");
    }
    power_off();
}

fn run() -> Result<()> {
    mount_all()?;
    let mut problems = Vec::new();
    let settings = [
        ("/proc/sys/kernel/hung_task_timeout_secs", HUNG_TASK_SECONDS),
        ("/proc/sys/kernel/hung_task_warnings", "-1"),
    ];
    for (path, value) in settings {
        if let Err(e) = fs::write(path, value) {
            problems.push(format!("{path}: {e}"));
        }
    }
    problems.extend(checkers::set_up().err().map(|e| format!("{e:#}")));
    problems.extend(load_modules().err().map(|e| format!("{e:#}")));
    problems.extend(devices_without_driver()?);
    let command_line = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    match Mode::from_command_line(&command_line) {
        Mode::Agent => agent::serve(problems),
        Mode::Shell => {
            tell(problems);
            shell()
        }
        Mode::Top => {
            tell(problems);
            top::run()
        }
    }
}

fn tell(problems: Vec<String>) {
    for problem in problems {
        eprintln!("p2p-init: {problem}");
    }
}

fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(target).with_context(|| format!("making {target}"))?;
        match mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        ) {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(e) => return Err(e).with_context(|| format!("mounting {kind} on {target}")),
        }
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    let list = fs::read_to_string(MODULE_LIST).with_context(|| format!("reading {MODULE_LIST}"))?;
    for path in list.lines() {
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("loading {path}"))?;
    }
    Ok(())
}

/// Our devices that no driver took, one line each. Tests skip where a device is
/// missing: that must not pass unseen.
fn devices_without_driver() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut found = 0;
    for entry in fs::read_dir("/sys/bus/pci/devices").context("listing PCI devices")? {
        let folder = entry?.path();
        let id =
            |name: &str| fs::read_to_string(folder.join(name)).map(|text| text.trim().to_owned());
        if id("vendor")? != VENDOR || !DEVICES.contains(&id("device")?.as_str()) {
            continue;
        }
        found += 1;
        if !folder.join("driver").exists() {
            problems.push(format!("{}: no driver took the device", folder.display()));
        }
    }
    if found != EXPECTED_DEVICES {
        problems.push(format!(
            "{found} devices found, expected {EXPECTED_DEVICES}"
        ));
    }
    Ok(problems)
}

fn shell() -> Result<()> {
    println!("\nThe tests are in {TESTS}. Leave with \"exit\".");
    Command::new("/bin/busybox")
        .args(["setsid", "cttyhack", "sh"])
        .env("PATH", format!("/bin:{TESTS}"))
        .env("PS1", "guest# ")
        .env("HOME", "/")
        .current_dir("/")
        .process_group(0)
        .status()
        .context("starting the shell")?;
    Ok(())
}

fn power_off() -> ! {
    nix::unistd::sync();
    // With -no-reboot a restart ends QEMU as well, should there be no way to
    // power off.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    std::process::exit(1)
}
