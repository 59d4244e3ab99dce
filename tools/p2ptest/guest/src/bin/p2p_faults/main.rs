// SPDX-License-Identifier: GPL-2.0
//! Tests of what the drivers do when a device fails: the host makes it fail.
//! Who uses it is told, nothing is lost or leaked, and the next call works;
//! but an aperture whose slots are not known any more waits for a rebind.

mod resets;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, nics, wait_until};
use p2pguest::debugfs::Debugfs;
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Outcome, Subtest};
use p2pguest::nic::TIMEOUT;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Rig, request};
use p2pguest::setting::Setting;
use p2pguest::signals::{Blocked, send};
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use resets::*;
use serde_json::{Value, json};
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// The host refuses what is not for guests, and goes on.
    host_refuses_strange_requests,
    /// A command whose interrupt is lost is seen to be done all the same.
    lost_interrupt,
    /// A command that comes late is waited for.
    late_command,
    /// A copy that fails is an error; the next one works.
    errored_copy,
    /// An object that cannot be cleared is not made, and leaves nothing behind.
    errored_create,
    /// An object whose move fails stays where it is, with its bytes.
    errored_move,
    /// A copy that never ends is given up; the next one works.
    stalled_copy,
    /// An object whose move never ends stays where it is, with its bytes.
    stalled_move,
    /// A signal that nobody handles does not end a call that waits for an object.
    stalled_move_and_ignored_signals,
    /// A flush that fails once is tried again.
    errored_flush,
    /// A flush that never ends is given up, and tried again.
    stalled_flush,
    /// When a flush fails twice the aperture is broken until the device is bound again.
    errored_flushes_break_the_aperture,
    /// When a flush never ends, twice, nobody waits for another one.
    stalled_flushes_break_the_aperture,
    /// A NIC whose interrupts are lost finishes its work.
    nic_lost_interrupts,
    /// A DMA that the NIC cannot do is a status of the request.
    nic_dma_error,
    /// A NIC that does not let go is stopped: its exporter goes on, and the NIC when it is bound again.
    nic_that_does_not_let_go,
    /// A region is mapped though its event's interrupt is lost and nobody polls.
    nic_lost_event_unpolled,
    /// A region whose mapping takes its time holds up no other.
    nic_slow_region_delays_no_other,
    /// A page of user memory that takes its time does not hold up unbinding.
    nic_unbind_waits_for_no_user_memory,
    /// A GPU whose reset never ends: whoever needs it gets EIO, and it can be unbound. It is not
    /// bound again before the reset ends.
    gpu_that_does_not_come_back,
    /// A GPU whose reset never ends works again after one that does, and objects have their bytes.
    gpu_that_comes_back_by_another_reset,
    /// A NIC whose reset never ends is gone for its files, and for exporters; it can be unbound.
    nic_that_does_not_come_back,
    /// A NIC whose reset never ends works again after one that does, with the same files.
    nic_that_comes_back_by_another_reset,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// The rings of a GPU, as the model numbers them.
const ENGINE: u32 = 0;
const APERTURE: u32 = 1;

/// What the driver grants GPU 0 for a copy and for a flush, in milliseconds.
const TIMEOUTS: [&str; 2] = ["copy_timeout_ms", "flush_timeout_ms"];
/// Soon over, but longer than any command takes.
const SHORT: &str = "2000";
/// Longer than any test takes.
const LONG: &str = "600000";

/// Changes what GPU 0 is granted for the commands of a ring.
#[track_caller]
fn grant(gpu: &Gpu, ring: u32, time: &str) -> Setting {
    let setting = Setting::new(gpu.pci(), TIMEOUTS[ring as usize]);
    setting.write(time);
    setting
}

/// Faults that GPU 0 is to show; those that are left are taken back when dropped.
struct Injected;

impl Injected {
    #[track_caller]
    fn new(what: &str, ring: u32, more: Value) -> Self {
        let mut rule = json!({"cmd": "inject", "what": what, "ring": ring});
        if let (Some(rule), Value::Object(more)) = (rule.as_object_mut(), more) {
            rule.extend(more);
        }
        host::control("gpu0", rule);
        Self
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // What stays shows in the tests that follow.
        let _ = host::__control("gpu0", json!({"cmd": "clear"}));
    }
}

fn host_refuses_strange_requests() {
    host::require();
    for command in [
        json!({"execute": "quit"}),
        json!({"execute": "device_del", "arguments": {"id": "port0"}}),
        json!({"execute": "device_add", "arguments": {"driver": "edu"}}),
        json!({"execute": "query-pci", "arguments": {}}),
    ] {
        assert!(host::__qmp(command.clone()).is_err(), "{command}");
    }
    let long = "x".repeat(8192);
    let faults = json!({"cmd": "faults"});
    assert!(host::__control("gpu7", faults.clone()).is_err());
    assert!(host::__control("gpu0", json!({"cmd": long})).is_err());
    assert_eq!(host::control("gpu0", faults)["count"], 0);
    let status = host::qmp(json!({"execute": "query-status"}));
    assert_eq!(status["status"], "running");
}

/// Copies and slots of GPU 0 work.
#[track_caller]
fn assert_works(gpu: &Gpu) {
    let bo = gpu.create(2 * gpu.page, Placement::Vram);
    let pattern = Pattern(11);
    bo.fill(pattern);
    assert_eq!(bo.map().load(8), pattern.word(1));
    bo.assert_holds(pattern);
}

fn lost_interrupt() {
    let gpu = Gpu::open(0);
    for ring in [ENGINE, APERTURE] {
        let _injected = Injected::new("drop-interrupt", ring, json!({"count": 2}));
        assert_works(&gpu);
    }
}

fn late_command() {
    let gpu = Gpu::open(0);
    for ring in [ENGINE, APERTURE] {
        let _injected = Injected::new("delay", ring, json!({"ms": 400, "count": 2}));
        assert_works(&gpu);
    }
}

/// Two objects of GPU 0 hold different bytes; a copy between them meets the
/// fault and ends with EIO, and the next one works.
#[track_caller]
fn copy_fails_once(what: &str) {
    let gpu = Gpu::open(0);
    let size = gpu.page;
    let (from, to) = (
        gpu.create(size, Placement::Vram),
        gpu.create(size, Placement::Vram),
    );
    from.fill(Pattern(1));
    to.fill(Pattern(2));
    let short = grant(&gpu, ENGINE, SHORT);
    let injected = Injected::new(what, ENGINE, json!({}));
    refused(from.__copy_to(&to, size), Errno::EIO);
    drop((injected, short));
    assert_eq!(from.__copy_to(&to, size), Ok(()));
    to.assert_holds(Pattern(1));
}

fn errored_copy() {
    copy_fails_once("error");
}

fn stalled_copy() {
    copy_fails_once("stall");
}

fn errored_create() {
    let gpu = Gpu::open(0);
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let _injected = Injected::new("error", ENGINE, json!({}));
    refused(gpu.__create(1 << 20, Placement::Vram), Errno::EIO);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free);
    assert_works(&gpu);
}

/// A move meets the fault, in both directions; the object is as before, and the next one works.
#[track_caller]
fn move_fails_once(what: &str) {
    let gpu = Gpu::open(0);
    for from in Placement::ALL {
        let bo = gpu.create(4 * gpu.page, from);
        bo.fill(Pattern(3));
        let map = bo.map();
        assert_eq!(map.load(0), Pattern(3).word(0));
        let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
        let short = grant(&gpu, ENGINE, SHORT);
        let injected = Injected::new(what, ENGINE, json!({}));
        refused(bo.__move_to(from.other()), Errno::EIO);
        drop((injected, short));
        assert_eq!(bo.info().placement, from as u32);
        assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free);
        assert_eq!(map.load(8), Pattern(3).word(1));
        bo.move_to(from.other());
        assert_eq!(map.load(16), Pattern(3).word(2));
        bo.assert_holds(Pattern(3));
    }
}

fn errored_move() {
    move_fails_once("error");
}

fn stalled_move() {
    move_fails_once("stall");
}

fn stalled_move_and_ignored_signals() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    let mut info = drm_p2pgpu_gem_info {
        handle: bo.handle,
        ..Default::default()
    };
    let _short = grant(&gpu, ENGINE, SHORT);
    let _injected = Injected::new("stall", ENGINE, json!({}));
    let before = register_writes();
    thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let _blocked = Blocked::new();
            refused(bo.__move_to(Placement::System), Errno::EIO);
        });
        wait_until("the object moves", || register_writes() > before);
        let asking = scope.spawn(|| {
            // Not drmIoctl, which would try again at EINTR.
            // SAFETY: the structure is the one that the request is for.
            Errno::result(unsafe {
                let request = DRM_IOCTL_P2PGPU_GEM_INFO.into();
                libc::ioctl(gpu.as_fd().as_raw_fd(), request, &raw mut info)
            })
        });
        let _blocked = Blocked::new();
        (0..20).for_each(|_| send());
        assert_eq!(asking.join().expect("the thread that asks"), Ok(0));
        moving.join().expect("the thread that moves");
    });
}

/// A flush for a CPU, and one for a peer, meet the fault; nobody notices.
#[track_caller]
fn flush_fails_once(what: &str) {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let _short = grant(gpu, APERTURE, SHORT);
    {
        let _injected = Injected::new(what, APERTURE, json!({}));
        assert_works(gpu);
        assert_works(gpu);
    }
    let size = 4 * gpu.page;
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::System);
    source.bo.fill(Pattern(12));
    let _injected = Injected::new(what, APERTURE, json!({}));
    rig.connect(4).write(&source.region, &target.region);
    target.bo.assert_holds(Pattern(12));
}

fn errored_flush() {
    flush_fails_once("error");
}

fn stalled_flush() {
    flush_fails_once("stall");
}

/// Stores that the driver has made to registers of GPU 0: each flush makes one.
#[track_caller]
fn register_writes() -> u64 {
    let counters = host::control("gpu0", json!({"cmd": "counters"}));
    let writes = &counters["counters"]["REG_WRITES"];
    writes.as_u64().expect("the counter REG_WRITES")
}

/// Whether a GPU can no longer change its slots.
fn is_broken(pci: PciAddress) -> bool {
    let resources = Debugfs::default().resources("p2pgpu", pci);
    resources.is_ok_and(|found| found.get("aperture_broken") == Some(&1))
}

/// A GPU whose aperture a test breaks; bound again when dropped if it still is, so
/// that a test that fails in between does not fail those after it.
struct Breaks(PciAddress);

impl Drop for Breaks {
    fn drop(&mut self) {
        if is_broken(self.0)
            && let Err(error) = Unbound::__new("p2pgpu", self.0)
        {
            println!("{} stays broken: {error}", self.0);
        }
    }
}

/// Two flushes fail; then nothing goes through slots, and nobody tries, until
/// the device is bound again.
#[track_caller]
fn flushes_break_the_aperture(what: &str) {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let size = 4 * gpu.page;
    let shown = gpu.create(size, Placement::Vram);
    shown.fill(Pattern(4));
    let map = shown.map();
    assert_eq!(map.load(0), Pattern(4).word(0));
    let bo = gpu.create(size, Placement::Vram);
    bo.fill(Pattern(5));
    let other = bo.map();

    let breaks = Breaks(gpu.pci());
    let short = grant(gpu, APERTURE, SHORT);
    let injected = Injected::new(what, APERTURE, json!({"count": 2}));
    let load = || {
        other.load(0);
    };
    let touch = || igt::fork(load).outcome();
    assert_eq!(touch(), Outcome::Killed(Signal::SIGBUS));
    drop((injected, short));
    assert!(is_broken(gpu.pci()));

    let writes = register_writes();
    for _ in 0..10 {
        assert_eq!(touch(), Outcome::Killed(Signal::SIGBUS));
    }
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), 0);
    bo.set_exportable(true);
    let verdict = bo.query(rig.nic[0].pci()).verdict;
    assert_eq!(verdict, P2PGPU_PEER_NO_SLOTS);
    let fd = bo.export();
    assert_eq!(register_writes(), writes, "the broken aperture was used");

    // A NIC is refused, and says so.
    let region = rig.nic[0].register(&fd, 0, size);
    let sink = rig.register(1, size, Placement::System);
    let wire = rig.connect(4);
    wire.start_write(&region, &sink.region);
    wire.near.expect(P2PNIC_STATUS_REVOKED);
    assert_eq!(region.info().last_error, Errno::EIO as u32);

    // The engine needs no slots: the bytes are safe.
    bo.assert_holds(Pattern(5));
    bo.move_to(Placement::System);
    assert_eq!(other.load(0), Pattern(5).word(0));
    shown.move_to(Placement::System);
    assert_eq!(map.load(8), Pattern(4).word(1));

    let pci = gpu.pci();
    drop((map, other, region, fd, bo, shown));
    drop(breaks);
    wait_until("the GPU comes back", || gpu_is_there(pci));
    assert_works(&Gpu::open(0));
}

fn errored_flushes_break_the_aperture() {
    flushes_break_the_aperture("error");
}

fn stalled_flushes_break_the_aperture() {
    flushes_break_the_aperture("stall");
}

/// NIC 0 is to show a fault this many times.
#[track_caller]
fn nic_shows(what: &str, count: u32) {
    host::control(
        "nic0",
        json!({"cmd": "inject", "what": what, "count": count}),
    );
}

fn nic_lost_interrupts() {
    let rig = Rig::open();
    let size = 4 * rig.gpu[0].page;
    // All of them: answers, completions, and events.
    nic_shows("drop-interrupt", 1000);
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::Vram);
    source.bo.fill(Pattern(6));
    let wire = rig.connect(4);
    wire.write(&source.region, &target.region);
    source.bo.move_to(Placement::System);
    source.bo.move_to(Placement::Vram);
    wire.write(&source.region, &target.region);
    nic_shows("drop-interrupt", 0);
    target.bo.assert_holds(Pattern(6));
}

fn nic_dma_error() {
    let rig = Rig::open();
    let size = 4 * rig.gpu[0].page;
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::Vram);
    source.bo.fill(Pattern(7));
    nic_shows("dma-error", 1);
    let wire = rig.connect(4);
    wire.start_write(&source.region, &target.region);
    wire.near.expect(P2PNIC_STATUS_DMA_ERROR);
    let all = (&source.region, 0);
    let again = request(P2PNIC_OP_WRITE, all, (&target.region, 0), size);
    wire.near.post_send(again);
    wire.near.expect(P2PNIC_STATUS_FLUSHED);
    drop(wire);
    rig.connect(4).write(&source.region, &target.region);
    target.bo.assert_holds(Pattern(7));
}

/// A NIC that is bound again when this is dropped.
struct BoundAgain(PciAddress);

impl Drop for BoundAgain {
    fn drop(&mut self) {
        let count = nics();
        drop(Unbound::new("p2pnic", self.0));
        wait_until("the NIC comes back", || nics() == count);
    }
}

fn nic_that_does_not_let_go() {
    let rig = Rig::open();
    let nic = &rig.nic[0];
    let stopped = BoundAgain(nic.pci());
    let size = 4 * rig.gpu[0].page;
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::System);
    source.bo.fill(Pattern(9));
    let wire = rig.connect(4);
    let slow = json!({"cmd": "inject", "what": "delay-chunk", "count": 1, "micros": 5_000_000});
    host::control("nic0", slow);
    wire.start_write(&source.region, &target.region);
    wait_until("a DMA is in flight", || {
        let regions = host::control("nic0", json!({"cmd": "regions"}));
        let regions = regions.as_array().expect("regions");
        regions.iter().any(|region| region["in_flight"] != 0)
    });
    let timeout = Setting::new(nic.pci(), "answer_timeout_ms");
    timeout.write("500");
    // The NIC is stopped, and the exporter has its object back.
    source.bo.move_to(Placement::System);
    drop(timeout);
    assert_eq!(source.bo.info().peer_slots, 0);
    source.bo.assert_holds(Pattern(9));
    refused(wire.near.__poll(1, TIMEOUT), Errno::EIO);
    refused(nic.__create_qp(4, 4).map(drop), Errno::EIO);
    let fd = source.fd.as_raw_fd();
    refused(nic.__register(fd, 0, 0, size).map(drop), Errno::EIO);
    drop((wire, source, target));

    drop(stopped);
    Rig::open().assert_works();
}

fn nic_lost_event_unpolled() {
    let rig = Rig::open();
    let size = 4 * rig.gpu[0].page;
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::Vram);
    source.bo.fill(Pattern(8));
    let wire = rig.connect(4);
    nic_shows("drop-interrupt", 1000);
    wire.start_write(&source.region, &target.region);
    wait_until("the region is mapped", || source.region.info().maps == 1);
    nic_shows("drop-interrupt", 0);
    wire.near.expect(P2PNIC_STATUS_OK);
    target.bo.assert_holds(Pattern(8));
}

fn nic_slow_region_delays_no_other() {
    let rig = Rig::open();
    let size = 4 * rig.gpu[0].page;
    let slow = rig.register(0, size, Placement::Vram);
    let quick = rig.export(1, size, Placement::System);
    let quick_region = rig.nic[0].register(&quick.fd, 0, size);
    let sinks = [(); 2].map(|()| rig.register(1, size, Placement::System));
    let wires = [(); 2].map(|()| rig.connect(4));

    let parked = || rig.nic[0].query().parked;
    let before = parked();
    let _long = grant(&rig.gpu[0], APERTURE, LONG);
    let injected = Injected::new("stall", APERTURE, json!({"count": 2}));
    wires[0].start_write(&slow.region, &sinks[0].region);
    wait_until("the slow region is needed", || parked() > before);
    wires[1].start_write(&quick_region, &sinks[1].region);
    wires[1].near.expect(P2PNIC_STATUS_OK);
    let none = wires[0]
        .near
        .__poll(1, Duration::ZERO)
        .map(|found| found.len());
    assert_eq!(none, Ok(0), "the slow region was not slow");
    drop(injected);
    wires[0].near.expect(P2PNIC_STATUS_OK);
}

fn nic_unbind_waits_for_no_user_memory() {
    let rig = Rig::open();
    let (gpu, nic) = (&rig.gpu[0], &rig.nic[0]);
    let source = rig.register(0, gpu.page, Placement::System);
    let target = rig.register(1, gpu.page, Placement::System);
    let wire = rig.connect(4);
    wire.write(&source.region, &target.region);
    wire.start_write(&source.region, &target.region);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let map = bo.map();

    let _long = grant(gpu, APERTURE, LONG);
    let injected = Injected::new("stall", APERTURE, json!({}));
    let before = register_writes();
    let mut arg = p2pnic_poll {
        qp: wire.near.number,
        capacity: 1,
        timeout_ns: u64::MAX,
        completions: map.as_ptr() as u64,
        ..Default::default()
    };
    let (done, pci, count) = (AtomicBool::new(false), nic.pci(), nics());
    thread::scope(|scope| {
        let poll = scope.spawn(|| {
            // SAFETY: the mapping has room for a completion.
            let end = unsafe { nic.__ioctl_raw(P2PNIC_IOCTL_POLL, (&raw mut arg).cast()) };
            done.store(true, Ordering::SeqCst);
            end
        });
        wait_until("the page is wanted", || register_writes() > before);
        let unbound = Unbound::new("p2pnic", pci);
        assert!(!done.load(Ordering::SeqCst), "the page was there at once");
        drop(injected);
        let end = poll.join().expect("the thread that polls");
        assert_eq!(end, Err(Errno::ENODEV));
        drop(unbound);
    });
    wait_until("the NIC comes back", || nics() == count);
}
