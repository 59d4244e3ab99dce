// SPDX-License-Identifier: GPL-2.0
//! Tests of many jobs at once: several in the engine's ring, the driver's own copies among
//! them, and what becomes of all when one hangs.

mod evictions;

use evictions::*;
use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::debugfs::Debugfs;
use p2pguest::dmabuf::{Access, DmaBuf, outcome};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Rig, request};
use p2pguest::setting::Setting;
use p2pguest::submit::{Context, binary, copy, fill, gated};
use p2pguest::swsync;
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use serde_json::json;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// The fence of a job that is lost says why, as do those behind it.
    errors_in_fences,
    /// A job on a device that is off the bus ends with ENODEV.
    error_off_the_bus,
    /// Copies, checksums, moves and new objects behind a job that hangs are as if it had not.
    copies_behind_a_hang,
    /// Jobs behind those that hang, time and again, run.
    jobs_behind_many_hangs,
    /// Jobs that become ready together cost less than one register access each.
    batches,
    /// After a hang objects, slots and peers' mappings are as they were.
    memory_survives_a_hang,
    /// A CPU that asks for access, or polls, waits for the jobs that write.
    cpu_readers_wait,
    /// A NIC's request waits for jobs that write what it reads, and for all if it writes.
    nic_waits_for_jobs,
    /// A job that comes after a NIC's request finds its bytes.
    job_after_a_request,
    /// An eviction, and a coming back, are not waited for by who submits.
    evictions_are_queued,
    /// A peer that maps an object waits for its bytes.
    peers_wait_for_bytes,
    /// So does one that has its addresses.
    addresses_wait_for_bytes,
    /// An eviction that the engine hangs at is done again.
    eviction_is_tried_again,
    /// Bytes that are lost in an eviction are counted; who has nothing to do with it goes on.
    lost_in_an_eviction,
    /// An object that does not get back to VRAM is where it was, and the job that wanted it fails.
    lost_on_the_way_back,
    /// The GPU is unbound while an eviction is queued, and CPUs and peers wait for the bytes.
    unbound_during_an_eviction,
    /// It is pulled out then.
    pulled_out_during_an_eviction,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// Faults that GPU 0 is to show in its engine; taken back when dropped.
struct Injected;

impl Injected {
    #[track_caller]
    fn new(what: &str, count: u32) -> Self {
        let rule = json!({"cmd": "inject", "what": what, "ring": 0, "count": count});
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

/// Soon over, but longer than any job takes.
const SHORT: &str = "1500";

/// What GPU 0 grants a job, or a copy of its own, until this is dropped.
#[track_caller]
fn grant(gpu: &Gpu, what: &str) -> Setting {
    let setting = Setting::new(gpu.pci(), what);
    setting.write(SHORT);
    setting
}

#[track_caller]
fn filled(gpu: &Gpu, seed: u64) -> Bo<'_> {
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.fill(Pattern(seed));
    bo
}

#[track_caller]
fn first_word(bo: &Bo<'_>) -> u32 {
    u32::from_le_bytes(bo.download(0, 4).try_into().unwrap())
}

#[track_caller]
fn ends(syncobj: &Syncobj<'_>) -> Result<(), Errno> {
    assert_eq!(syncobj.__wait(PATIENCE, 0), Ok(()));
    outcome(&syncobj.export_sync_file()).expect("it has ended")
}

fn errors_in_fences() {
    let gpu = Gpu::open(0);
    let _short = grant(&gpu, "job_timeout_ms");
    let bo = gpu.create(gpu.page, Placement::Vram);
    for (what, errno) in [("stall", Errno::ETIME), ("error", Errno::EIO)] {
        let context = Context::new(&gpu);
        let done = [0, 1, 2].map(|_| Syncobj::new(&gpu));
        let _injected = Injected::new(what, 1);
        // All are queued before the first fails.
        let timeline = swsync::Timeline::new();
        let gate = Syncobj::new(&gpu);
        gate.import_sync_file(&timeline.fence(1));
        for done in &done {
            context.submit(&[fill(&bo, 1, 4)], &[binary(&gate)], &[binary(done)]);
        }
        timeline.advance(1);
        assert_eq!(ends(&done[0]), Err(errno), "{what}");
        assert_eq!(ends(&done[1]), Err(Errno::ECANCELED), "{what}");
        assert_eq!(ends(&done[2]), Err(Errno::ECANCELED), "{what}");
    }
    let (context, done) = (Context::new(&gpu), Syncobj::new(&gpu));
    context.submit(&[fill(&bo, 2, 4)], &[], &[binary(&done)]);
    assert_eq!(ends(&done), Ok(()));
}

fn error_off_the_bus() {
    host::retire_guest();
    let gpu = Gpu::open(0);
    igt::expect_gone(gpu.pci());
    let context = Context::new(&gpu);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let done = [0, 1].map(|_| Syncobj::new(&gpu));
    let gate = gated(&gpu, &context, &[fill(&bo, 1, 4)]);
    for done in &done {
        context.submit(&[fill(&bo, 2, 4)], &[], &[binary(done)]);
    }
    let other = Context::new(&gpu);
    let last = Syncobj::new(&gpu);
    host::control("gpu0", json!({"cmd": "remove"}));
    other.submit(&[fill(&bo, 3, 4)], &[], &[binary(&last)]);
    gate.advance(1);
    for done in &done {
        assert_eq!(ends(done), Err(Errno::ECANCELED));
    }
    assert_eq!(ends(&last), Err(Errno::ENODEV));
    assert_eq!(context.query().state, P2PGPU_CONTEXT_ERROR);
    refused(bo.__checksum(0, 4), Errno::ENODEV);
    // Unbinding does not wait for what cannot end.
    let path = gpu.pci().sysfs().join("remove");
    fs::write(&path, "1").expect("a file in sysfs");
    wait_until("the device is gone", || !gpu.pci().sysfs().exists());
}

/// A job that hangs is in the ring. Its context is lost when `behind` returns.
#[track_caller]
fn behind_a_hang(gpu: &Gpu, behind: impl FnOnce()) {
    let _short = grant(gpu, "job_timeout_ms");
    let (context, done) = (Context::new(gpu), Syncobj::new(gpu));
    let bo = gpu.create(gpu.page, Placement::Vram);
    let injected = Injected::new("stall", 1);
    context.submit(&[fill(&bo, 1, 4)], &[], &[binary(&done)]);
    behind();
    assert_eq!(ends(&done), Err(Errno::ETIME));
    drop(injected);
    assert_eq!(context.query().state, P2PGPU_CONTEXT_TIMEOUT);
}

fn copies_behind_a_hang() {
    let gpu = Gpu::open(0);
    let (from, to) = (filled(&gpu, 1), filled(&gpu, 2));
    behind_a_hang(&gpu, || assert_eq!(from.__copy_to(&to, to.size), Ok(())));
    to.assert_holds(Pattern(1));
    for placement in [Placement::System, Placement::Vram] {
        behind_a_hang(&gpu, || assert_eq!(from.__move_to(placement), Ok(())));
        from.assert_holds(Pattern(1));
    }
    behind_a_hang(&gpu, || {
        let new = gpu.create(gpu.page, Placement::Vram);
        assert_eq!(new.download(0, 64), [0; 64]);
    });
    behind_a_hang(&gpu, || {
        from.checksum(0, from.size);
    });
}

fn jobs_behind_many_hangs() {
    let gpu = Gpu::open(0);
    let good = Context::new(&gpu);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let timeout = Setting::new(gpu.pci(), "job_timeout_ms");
    timeout.write("400");
    let bad: Vec<_> = (0..5).map(|_| Context::new(&gpu)).collect();
    let victim = gpu.create(gpu.page, Placement::Vram);
    for context in &bad {
        let injected = Injected::new("stall", 1);
        let done = [0, 1].map(|_| Syncobj::new(&gpu));
        context.submit(&[fill(&victim, 1, 4)], &[], &[binary(&done[0])]);
        good.submit(&[fill(&bo, 2, 4)], &[], &[binary(&done[1])]);
        assert_eq!(ends(&done[0]), Err(Errno::ETIME));
        assert_eq!(ends(&done[1]), Ok(()));
        drop(injected);
    }
    assert_eq!(good.query().state, P2PGPU_CONTEXT_OK);
    assert_eq!(first_word(&bo), 2);
}

fn batches() {
    let gpu = Gpu::open(0);
    const JOBS: usize = 12;
    let contexts: Vec<_> = (0..JOBS).map(|_| Context::new(&gpu)).collect();
    let bos: Vec<_> = (0..JOBS)
        .map(|_| gpu.create(gpu.page, Placement::Vram))
        .collect();
    let debugfs = Debugfs::default();
    let accesses = || {
        let counters = debugfs.counters("p2pgpu", gpu.pci()).unwrap();
        counters["reg_reads"] + counters["reg_writes"]
    };
    // What it costs to ask.
    let first = accesses();
    let asking = accesses() - first;
    let timeline = swsync::Timeline::new();
    let gate = Syncobj::new(&gpu);
    gate.import_sync_file(&timeline.fence(1));
    let dones: Vec<_> = contexts
        .iter()
        .zip(&bos)
        .map(|(context, bo)| {
            let done = Syncobj::new(&gpu);
            context.submit(&[fill(bo, 7, 4)], &[binary(&gate)], &[binary(&done)]);
            done
        })
        .collect();
    let before = accesses();
    timeline.advance(1);
    for done in &dones {
        done.wait();
    }
    let all = accesses() - before - asking;
    println!("register accesses of {JOBS} jobs in a batch: {all}");
    assert!(all < JOBS as u64, "{all}");
    for bo in &bos {
        assert_eq!(first_word(bo), 7);
    }
}

fn memory_survives_a_hang() {
    let rig = Rig::open();
    let (gpu, size) = (&rig.gpu[0], 8 * rig.gpu[0].page);
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::System);
    source.bo.fill(Pattern(5));
    let wire = rig.connect(4);
    wire.write(&source.region, &target.region);
    let map = source.bo.map();
    assert_eq!(map.load(8), Pattern(5).word(1));
    let state = || {
        let (info, region) = (source.bo.info(), source.region.info());
        let slots = (info.slots, info.peer_slots, info.invalidations, info.losses);
        (slots, region.maps, region.invalidations, region.mapped)
    };
    let before = state();
    behind_a_hang(gpu, || {});
    assert_eq!(state(), before);
    assert_eq!(map.load(16), Pattern(5).word(2));
    // By the same mapping.
    target.bo.fill(Pattern(6));
    wire.write(&source.region, &target.region);
    assert_eq!(state(), before);
    target.bo.assert_holds(Pattern(5));
    source.bo.assert_holds(Pattern(5));
}

fn cpu_readers_wait() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let (source, bo) = (filled(&gpu, 3), filled(&gpu, 4));
    for bo in [&source, &bo] {
        bo.set_exportable(true);
    }
    let [from, to] = [&source, &bo].map(|bo| DmaBuf(bo.export()));
    let map = to.map(0, gpu.page);
    assert_eq!(map.load(0), Pattern(4).word(0));
    let gate = gated(&gpu, &context, &[copy(&source, &bo, gpu.page)]);
    assert!(from.is_ready(Access::Read) && !from.is_ready(Access::Write));
    assert!(!to.is_ready(Access::Read) && !to.is_ready(Access::Write));
    // Who reads what is read only does not wait.
    from.begin(Access::Read);
    from.end(Access::Read);
    thread::scope(|scope| {
        let reader = scope.spawn(|| to.load(&map, 8));
        let polled = scope.spawn(|| to.wait_ready(Access::Read, 60_000));
        let writer = scope.spawn(|| from.begin(Access::Write));
        thread::sleep(Duration::from_millis(50));
        assert!(!reader.is_finished() && !polled.is_finished() && !writer.is_finished());
        gate.advance(1);
        assert_eq!(reader.join().ok(), Some(Pattern(3).word(1)));
        assert_eq!(polled.join().ok(), Some(true));
        assert!(writer.join().is_ok());
        from.end(Access::Write);
    });
}

fn nic_waits_for_jobs() {
    let rig = Rig::open();
    let (gpu, size) = (&rig.gpu[0], 4 * rig.gpu[0].page);
    let context = Context::new(gpu);
    let fresh = gpu.create(size, Placement::System);
    fresh.fill(Pattern(2));
    let near = rig.register(0, size, Placement::Vram);
    let far = rig.register(1, size, Placement::System);
    let wire = rig.connect(4);
    let sink = gpu.create(size, Placement::System);
    // The job writes what the NIC reads; then it reads what the NIC writes.
    for (opcode, op) in [
        (P2PNIC_OP_WRITE, copy(&fresh, &near.bo, size)),
        (P2PNIC_OP_READ, copy(&near.bo, &sink, size)),
    ] {
        near.bo.fill(Pattern(1));
        far.bo.fill(Pattern(3));
        let gate = gated(gpu, &context, &[op]);
        let post = request(opcode, (&near.region, 0), (&far.region, 0), size);
        thread::scope(|scope| {
            let posted = scope.spawn(|| wire.near.__post_send(post));
            thread::sleep(Duration::from_millis(50));
            assert!(!posted.is_finished(), "it did not wait");
            gate.advance(1);
            assert_eq!(posted.join().ok(), Some(Ok(())));
        });
        wire.near.expect(P2PNIC_STATUS_OK);
        if opcode == P2PNIC_OP_WRITE {
            far.bo.assert_holds(Pattern(2));
        } else {
            near.bo.assert_holds(Pattern(3));
            sink.assert_holds(Pattern(1));
        }
    }
    // Who only reads does not wait for who reads.
    let gate = gated(gpu, &context, &[copy(&near.bo, &sink, size)]);
    wire.write(&near.region, &far.region);
    gate.advance(1);
    // Room for a message is written.
    let gate = gated(gpu, &context, &[copy(&near.bo, &sink, size)]);
    thread::scope(|scope| {
        let posted = scope.spawn(|| wire.near.__post_recv(1, &near.region));
        thread::sleep(Duration::from_millis(50));
        assert!(!posted.is_finished(), "it did not wait");
        gate.advance(1);
        assert_eq!(posted.join().ok(), Some(Ok(())));
    });
}

fn job_after_a_request() {
    let rig = Rig::open();
    let (gpu, size) = (&rig.gpu[1], 4 * rig.gpu[1].page);
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::Vram);
    let context = Context::new(gpu);
    let sink = gpu.create(size, Placement::System);
    let wire = rig.connect(4);
    for round in 0..5 {
        source.bo.fill(Pattern(round));
        wire.write(&source.region, &target.region);
        context.run(&[copy(&target.bo, &sink, size)]);
        sink.assert_holds(Pattern(round));
    }
}
