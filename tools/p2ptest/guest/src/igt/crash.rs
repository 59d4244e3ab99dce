// SPDX-License-Identifier: GPL-2.0
//! What a program still says when a signal ends it in a subtest: the subtest's result,
//! which `igt_runner` would not know otherwise.

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io::{Cursor, Write as _};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

/// The signals by which a program ends itself.
const SIGNALS: [Signal; 5] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
];
/// Of the line, bytes; a longer name is cut.
const LONGEST: usize = 256;

/// The subtest that runs.
struct Running {
    /// Its process: a child that dies is the subtest's own affair.
    pid: u32,
    name: String,
    start: Instant,
    /// The streams that have the line.
    streams: &'static [c_int],
}

/// Null if none runs. What it points to is never freed.
static RUNNING: AtomicPtr<Running> = AtomicPtr::new(ptr::null_mut());

static HANDLERS: Once = Once::new();

/// From here on the death of this process is the result of this subtest, on stderr as
/// well if `stderr` says so.
pub fn arm(name: &str, stderr: bool) {
    let running = Box::new(Running {
        pid: std::process::id(),
        name: name.to_owned(),
        start: Instant::now(),
        streams: if stderr { &[1, 2] } else { &[1] },
    });
    RUNNING.store(Box::into_raw(running), Ordering::Release);
    HANDLERS.call_once(install);
}

/// The subtest has come to its end.
pub fn disarm() {
    // The value stays: a handler may be reading it. There are as many as subtests.
    RUNNING.store(ptr::null_mut(), Ordering::Release);
}

fn install() {
    // On the stack that the standard library has for that, as ours may be full; the
    // second signal is deadly.
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_RESETHAND;
    let action = SigAction::new(SigHandler::Handler(tell), flags, SigSet::empty());
    for signal in SIGNALS {
        // SAFETY: the handler calls only what is async-signal-safe.
        let set = unsafe { sigaction(signal, &action) };
        set.expect("a handler of a signal that may have one");
    }
}

extern "C" fn tell(signal: c_int) {
    // SAFETY: null, or from Box::into_raw() in arm() and never freed.
    let running = unsafe { RUNNING.load(Ordering::Acquire).as_ref() };
    if let Some(running) = running
        && running.pid == std::process::id()
    {
        let mut line = Cursor::new([0; LONGEST]);
        let seconds = running.start.elapsed().as_secs_f64();
        // Into a buffer: it neither allocates nor locks.
        let _ = writeln!(line, "Subtest {}: CRASH ({seconds:.3}s)", running.name);
        let length = usize::try_from(line.position()).unwrap_or(0);
        for stream in running.streams {
            // SAFETY: `length` bytes of the buffer were written; write() is
            // async-signal-safe.
            unsafe { libc::write(*stream, line.get_ref().as_ptr().cast(), length) };
        }
    }
    // Ends the process once this function returns, also where the signal was sent.
    // SAFETY: raise() is async-signal-safe.
    unsafe { libc::raise(signal) };
}
