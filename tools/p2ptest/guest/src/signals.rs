// SPDX-License-Identifier: GPL-2.0
//! A signal for calls that wait, and who gets it.

use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use std::thread;
use std::time::Duration;

/// Ignored unless it is handled.
const SIGNAL: Signal = Signal::SIGURG;
/// How long [`send`] gives who gets the signal.
pub const PAUSE: Duration = Duration::from_millis(10);

/// This thread has the signal blocked: sent to the process, it goes to another one. If this is the
/// first thread, it is also not dropped where nobody handles it.
#[derive(Debug)]
pub struct Blocked(SigSet);

impl Blocked {
    /// Until it is dropped, by the same thread.
    #[track_caller]
    pub fn new() -> Self {
        let set = SigSet::from(SIGNAL);
        set.thread_block().expect("the signal is blocked");
        Self(set)
    }
}

impl Default for Blocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.thread_unblock().expect("the signal is unblocked");
    }
}

/// The signal has a handler, which does nothing.
#[derive(Debug)]
pub struct Handled(SigAction);

impl Handled {
    /// Until it is dropped.
    #[track_caller]
    pub fn new(flags: SaFlags) -> Self {
        extern "C" fn pass(_: c_int) {}
        let action = SigAction::new(SigHandler::Handler(pass), flags, SigSet::empty());
        // SAFETY: the handler does nothing.
        Self(unsafe { sigaction(SIGNAL, &action) }.expect("a handler"))
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        // SAFETY: as it was before.
        unsafe { sigaction(SIGNAL, &self.0) }.expect("no handler");
    }
}

/// Sends the process the signal.
#[track_caller]
pub fn send() {
    kill(Pid::this(), SIGNAL).expect("the signal is sent");
    thread::sleep(PAUSE);
}
