// SPDX-License-Identifier: GPL-2.0
//! Signals that come while `POLL` waits.

use super::PAGE;
use nix::errno::Errno;
use nix::sys::signal::SaFlags;
use p2pguest::gpu::Placement;
use p2pguest::nic::TIMEOUT;
use p2pguest::rig::{Rig, Wire};
use p2pguest::signals::{Blocked, Handled, PAUSE, send};
use p2pguest::sys::uapi::*;
use std::thread;
use std::time::Duration;

/// So many are sent to a thread that goes on waiting all the same.
const MANY: usize = 1000;

/// `POLL` of a queue without completions, while signals come: how it ends, and what `timeout_ns`
/// is then. `None`: it did not end before the last of [`MANY`].
fn poll(wire: &Wire<'_>, limit: Duration) -> Option<(Result<(), Errno>, Duration)> {
    let mut completion = p2pnic_completion::default();
    let mut arg = p2pnic_poll {
        qp: wire.near.number,
        capacity: 1,
        timeout_ns: u64::try_from(limit.as_nanos()).expect("nanoseconds"),
        completions: (&raw mut completion) as u64,
        ..Default::default()
    };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            // SAFETY: there is room for a completion.
            let end = unsafe {
                let arg = (&raw mut arg).cast();
                wire.near.nic().__ioctl_raw(P2PNIC_IOCTL_POLL, arg)
            };
            (end, Duration::from_nanos(arg.timeout_ns))
        });
        let _blocked = Blocked::new();
        let ended = (0..MANY).any(|_| {
            send();
            waiting.is_finished()
        });
        ended.then(|| waiting.join().expect("the waiting thread"))
    })
}

pub fn poll_outlasts_ignored_signals() {
    let rig = Rig::open();
    let [near, far] = [0, 1].map(|index| rig.register(index, PAGE, Placement::Vram));
    let wire = rig.connect(4);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wire.near.wait().status);
        let _blocked = Blocked::new();
        (0..20).for_each(|_| send());
        assert!(!waiting.is_finished(), "a signal ended POLL");
        wire.start_write(&near.region, &far.region);
        let status = waiting.join().expect("the waiting thread");
        assert_eq!(status, P2PNIC_STATUS_OK);
    });
}

pub fn poll_ends_at_handled_signals() {
    let rig = Rig::open();
    let wire = rig.connect(4);
    let _handled = Handled::new(SaFlags::empty());
    let (end, left) = poll(&wire, TIMEOUT).expect("an end");
    assert_eq!(end, Err(Errno::EINTR));
    assert!(!left.is_zero() && left < TIMEOUT, "{left:?} of {TIMEOUT:?}");
}

pub fn poll_outlasts_restarting_signals() {
    let rig = Rig::open();
    let wire = rig.connect(4);
    let _handled = Handled::new(SaFlags::SA_RESTART);
    // Waiting anew after each signal, it would not end before the last.
    let end = poll(&wire, 20 * PAUSE).map(|(end, _)| end);
    assert_eq!(end, Some(Err(Errno::ETIMEDOUT)));
}
