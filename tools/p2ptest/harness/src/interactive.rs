// SPDX-License-Identifier: GPL-2.0
//! The guests that a person looks at: `make demo`, `make shell` and `make top`.

use std::fs::File;
use std::io::stdout;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use p2p_init::Status;
use rustix::termios::tcgetwinsize;

use crate::cargo;
use crate::context::{Act, Context};
use crate::initrd::{self, in_guest};
use crate::kernel;
use crate::models::Models;
use crate::processors::Processors;
use crate::qemu::{Accel, Console, Guest};
use crate::session::{End, Parts, Session, socket_folder};
use crate::stop;
use crate::variable;

/// A transfer of some 100 MiB under TCG takes minutes.
const DEMO_LIMIT: Duration = Duration::from_secs(900);
/// The input is in the initrd: in memory once packed, once unpacked.
const MAX_INPUT: u64 = 1 << 30;
/// Descriptor at which `scripts/run` hands over the user's file.
const INPUT_FD: i32 = 3;

/// The demo's input: an open file, its name and its size.
struct Input {
    file: File,
    name: String,
    size: u64,
}

impl Input {
    /// The user's file, or else the kernel's image.
    fn open(kernel: &kernel::Kernel) -> Result<Self> {
        let (file, name) = match variable::text("FILE_NAME") {
            Some(name) => {
                // SAFETY: scripts/run opened this descriptor for us together with the
                // name; nothing else in this process owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(INPUT_FD) };
                (File::from(fd), name)
            }
            None => (File::open(&kernel.image)?, "bzImage".to_owned()),
        };
        let size = file
            .metadata()
            .with_context(|| format!("reading {name}"))?
            .len();
        ensure!(size > 0, "{name} is empty: there is nothing to send");
        ensure!(
            size <= MAX_INPUT,
            "{name} has {size} bytes; the demo takes at most {MAX_INPUT}"
        );
        Ok(Self { file, name, size })
    }
}

/// Boots a guest and runs the demo in it; says whether the demo and the devices are
/// content.
///
/// # Errors
///
/// When something cannot be built or the guest does not come up.
pub fn demo(ctx: &Context) -> Result<bool> {
    let kernel = kernel::ensure(ctx, ctx.flavour())?;
    let programs = cargo::programs(ctx)?;
    let program = programs
        .demo
        .as_deref()
        .context("the workspace builds no p2pdemo")?;
    let base = initrd::build(ctx, &kernel, &programs)?;
    let (initrd, arguments, memory) = match ctx.act {
        Act::File => {
            let mut input = Input::open(&kernel)?;
            let (name, size) = (input.name, input.size);
            let (initrd, path) = initrd::with_input(ctx, &base, &name, &mut input.file, size)?;
            (initrd, vec![path], 3 * size.div_ceil(1 << 20))
        }
        Act::Allreduce => {
            let arguments = ["--act", "allreduce"].map(str::to_owned);
            (base, arguments.to_vec(), 0)
        }
    };
    let accel = Accel::choose(ctx, &kernel.image)?;
    let parts = Parts {
        ctx,
        flavour: kernel.flavour,
        programs: &programs,
        image: kernel.image,
        initrd,
        accel,
        memory: kernel.flavour.memory() + memory,
        counters: None,
        processors: Processors::new(),
    };
    let mut session = Session::start(&parts, ctx.setup, "demo", "kunit.enable=0")?;
    let mut findings = std::mem::take(&mut session.boot);
    let mut argv = vec![in_guest(program)];
    argv.extend(arguments);
    let outcome = session.run("demo", argv, DEMO_LIMIT, &mut |line| println!("{line}"))?;
    findings.extend(outcome.findings);
    let command = session.command.clone();
    let console = session.console_path.display().to_string();
    let good = match outcome.end {
        End::Told(Status::Exit(0)) => {
            findings.extend(session.power_off()?);
            true
        }
        End::Told(status) => {
            eprintln!("p2ptest: the demo failed: {status:?}");
            findings.extend(session.power_off()?);
            false
        }
        End::Crash(why) => {
            eprintln!("p2ptest: {why}");
            false
        }
    };
    for finding in &findings {
        eprintln!("p2ptest: kernel log or device: {finding}");
    }
    let good = good && findings.is_empty();
    if !good {
        eprintln!("p2ptest: console: {console}\np2ptest: guest: {command}");
    }
    Ok(good)
}

/// An interactive guest on the user's terminal; returns when it has ended.
///
/// # Errors
///
/// When something cannot be built or QEMU does not start.
pub fn shell(ctx: &Context) -> Result<()> {
    on_terminal(ctx, p2p_init::Mode::Shell, "").map(drop)
}

/// Shows the apertures of a guest under load on the user's terminal, until they press
/// q; says whether the devices are content.
///
/// # Errors
///
/// As for [`shell`].
pub fn top(ctx: &Context) -> Result<bool> {
    let term = std::env::var("TERM").unwrap_or_default();
    let size = tcgetwinsize(stdout()).ok();
    let parameters = terminal_parameters(&term, size.map(|s| (s.ws_col, s.ws_row)));
    let findings = on_terminal(ctx, p2p_init::Mode::Top, &parameters)?;
    for finding in &findings {
        eprintln!("p2ptest: device: {finding}");
    }
    Ok(findings.is_empty())
}

/// What the guest cannot know of the terminal behind its serial line. The kernel hands
/// words that it does not know to /init, as its environment.
fn terminal_parameters(term: &str, size: Option<(u16, u16)>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    match size {
        Some((columns, lines)) if !term.is_empty() && term.chars().all(plain) => {
            format!(" TERM={term} COLUMNS={columns} LINES={lines}")
        }
        _ => " TERM=dumb".to_owned(),
    }
}

/// Boots a guest on the user's terminal and waits for its end. Returns what the devices
/// found wrong.
fn on_terminal(ctx: &Context, mode: p2p_init::Mode, parameters: &str) -> Result<Vec<String>> {
    let kernel = kernel::ensure(ctx, ctx.flavour())?;
    let programs = cargo::programs(ctx)?;
    let folder = socket_folder()?;
    let logs = ctx.results().join(mode.name());
    std::fs::create_dir_all(&logs)?;
    let mut models = Models::start(&programs, ctx.setup.mode, folder.path(), &logs)?;
    let guest = Guest {
        accel: Accel::choose(ctx, &kernel.image)?,
        topology: ctx.setup.topology,
        initrd: initrd::build(ctx, &kernel, &programs)?,
        image: kernel.image,
        memory: kernel.flavour.memory(),
        parameters: format!(
            "quiet kunit.enable=0 {}={}{}{parameters}",
            p2p_init::MODE_PARAMETER,
            mode.name(),
            kernel.flavour.parameters()
        ),
        devices: models.devices(),
        console: Console::Terminal,
        agent: None,
        qmp: None,
    };
    eprintln!("p2ptest: {}", guest.line());
    let mut command = guest.command();
    command.stdin(Stdio::inherit());
    // In our own process group: QEMU has to own the terminal.
    let mut child = command.spawn().context("starting QEMU")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop::wanted() {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    stop::check()?;
    ensure!(status.success(), "QEMU ended: {status}");
    Ok(models.findings())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_about_the_terminal() {
        let told = terminal_parameters("xterm-256color", Some((120, 40)));
        assert_eq!(told, " TERM=xterm-256color COLUMNS=120 LINES=40");
        for (term, size) in [
            ("xterm", None),
            ("", Some((80, 24))),
            // One word must stay one word of the kernel's command line.
            ("a init=/bin/sh", Some((80, 24))),
            ("a\"b", Some((80, 24))),
        ] {
            assert_eq!(terminal_parameters(term, size), " TERM=dumb");
        }
    }
}
