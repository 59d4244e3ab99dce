// SPDX-License-Identifier: GPL-2.0
//! Tests of the synchronization objects of our render node, by libdrm's own calls.

use nix::errno::Errno;
use p2pguest::gpu::Gpu;
use p2pguest::igt::{self, Subtest};
use p2pguest::swsync;
use p2pguest::syncobj::{FOR_SUBMIT, PATIENCE, Syncobj, capabilities};
use p2pguest::sys::libdrm;
use p2pguest::{refused, subtests};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// The driver says that it has both kinds.
    both_kinds_are_there,
    /// A new one holds no fence; one made signalled does.
    new_holds_nothing,
    /// Signalling, and taking the fence away again.
    signal_and_reset,
    /// A wait ends when the fence signals, and not before.
    wait_ends_with_the_fence,
    /// A wait for a fence that is still to come.
    wait_for_submit,
    /// Points signal in order, and the last one is told.
    points_rise,
    /// Fences go from syncobj to syncobj, of both kinds.
    transfer_between_kinds,
    /// What goes out as a sync file comes in again.
    sync_files,
    /// Another file has the same syncobj.
    shared_between_files,
    /// A handle that is none, of another file, or closed is refused.
    bad_handles,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn both_kinds_are_there() {
    assert_eq!(capabilities(&Gpu::open(0)), [true, true]);
}

fn new_holds_nothing() {
    let gpu = Gpu::open(0);
    let syncobj = Syncobj::new(&gpu);
    assert_ne!(syncobj.handle, 0);
    refused(syncobj.__wait(Duration::ZERO, 0), Errno::EINVAL);
    let signalled = Syncobj::__new(&gpu, libdrm::DRM_SYNCOBJ_CREATE_SIGNALED);
    assert!(signalled.unwrap().is_signalled());
    refused(Syncobj::__new(&gpu, 1 << 31), Errno::EINVAL);
}

fn signal_and_reset() {
    let gpu = Gpu::open(0);
    let syncobj = Syncobj::new(&gpu);
    for _ in 0..3 {
        syncobj.signal();
        assert!(syncobj.is_signalled());
        syncobj.reset();
        refused(syncobj.__wait(Duration::ZERO, 0), Errno::EINVAL);
    }
}

fn wait_ends_with_the_fence() {
    let gpu = Gpu::open(0);
    let timeline = swsync::Timeline::new();
    let syncobj = Syncobj::new(&gpu);
    syncobj.import_sync_file(&timeline.fence(1));
    let soon = Duration::from_millis(10);
    refused(syncobj.__wait(soon, 0), Errno::ETIME);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| syncobj.__wait(PATIENCE, 0));
        timeline.advance(1);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    assert!(syncobj.is_signalled());
}

fn wait_for_submit() {
    let gpu = Gpu::open(0);
    let timeline = swsync::Timeline::new();
    let syncobj = Syncobj::new(&gpu);
    refused(syncobj.__wait(Duration::ZERO, FOR_SUBMIT), Errno::ETIME);
    refused(
        syncobj.__wait_point(5, Duration::ZERO, FOR_SUBMIT),
        Errno::ETIME,
    );
    thread::scope(|scope| {
        let waiter = scope.spawn(|| syncobj.__wait(PATIENCE, FOR_SUBMIT));
        syncobj.import_sync_file(&timeline.fence(1));
        timeline.advance(1);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
}

fn points_rise() {
    let gpu = Gpu::open(0);
    let syncobj = Syncobj::new(&gpu);
    assert_eq!(syncobj.point(), 0);
    for point in [1, 2, 7, 1 << 40] {
        syncobj.signal_point(point);
        assert_eq!(syncobj.point(), point);
        syncobj.wait_point(point);
        refused(
            syncobj.__wait_point(point + 1, Duration::ZERO, 0),
            Errno::EINVAL,
        );
    }
    // What comes later includes what was before.
    syncobj.wait_point(3);
}

fn transfer_between_kinds() {
    let gpu = Gpu::open(0);
    let software = swsync::Timeline::new();
    let [binary, timeline, other] = [Syncobj::new(&gpu), Syncobj::new(&gpu), Syncobj::new(&gpu)];
    refused(timeline.__transfer(1, &binary, 0), Errno::EINVAL);
    for value in 1..=2 {
        binary.import_sync_file(&software.fence(value));
        timeline.transfer(10 * u64::from(value), &binary, 0);
    }
    other.transfer(0, &timeline, 20);
    assert!(!other.is_signalled());
    software.advance(1);
    timeline.wait_point(10);
    assert_eq!(timeline.point(), 10);
    assert!(!other.is_signalled());
    software.advance(1);
    timeline.wait_point(20);
    other.wait();
}

fn sync_files() {
    let gpu = Gpu::open(0);
    let timeline = swsync::Timeline::new();
    let [from, to] = [Syncobj::new(&gpu), Syncobj::new(&gpu)];
    refused(from.__export_sync_file(), Errno::EINVAL);
    from.import_sync_file(&timeline.fence(1));
    to.import_sync_file(&from.export_sync_file());
    // The fence was taken, not the syncobj.
    from.signal();
    assert!(!to.is_signalled());
    timeline.advance(1);
    to.wait();
}

fn shared_between_files() {
    let gpu = Gpu::open(0);
    let other = gpu.reopen();
    let syncobj = Syncobj::new(&gpu);
    let shared = syncobj.share(&other);
    syncobj.signal();
    shared.wait();
    drop(syncobj);
    shared.reset();
    refused(shared.__wait(Duration::ZERO, 0), Errno::EINVAL);
}

fn bad_handles() {
    let gpu = Gpu::open(0);
    let other = gpu.reopen();
    let strangers = [Syncobj::new(&other), Syncobj::new(&other)];
    let closed = Syncobj::new(&gpu);
    let handles = [0, closed.handle, strangers[1].handle, u32::MAX];
    drop(closed);
    for handle in handles {
        let none = Syncobj::__at(&gpu, handle);
        refused(none.__wait(Duration::ZERO, 0), Errno::ENOENT);
        refused(none.__wait_point(1, Duration::ZERO, 0), Errno::ENOENT);
        refused(none.__export_sync_file(), Errno::ENOENT);
    }
}
