// SPDX-License-Identifier: GPL-2.0
//! Tests of jobs: what they do, what they wait for, and what becomes of those that hang.

use nix::errno::Errno;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::debugfs::Debugfs;
use p2pguest::dmabuf::{Access, DmaBuf, poll};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::setting::Setting;
use p2pguest::submit::{Context, Op, between, binary, copy, fill, gated, point};
use p2pguest::swsync;
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::process::ExitCode;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// A copy, in and between all kinds of memory, at odd offsets.
    copies,
    /// A fill of a part leaves the rest as it was.
    fills,
    /// A checksum, whose result is an object's.
    checksums,
    /// Sums of integers and of floating-point numbers.
    adds,
    /// Operations of a job, and jobs of a context, run in their order.
    in_order,
    /// A job waits for binary syncobjs and signals others.
    binary_syncobjs,
    /// The same for points of timelines.
    timeline_syncobjs,
    /// Jobs of two contexts on one object: who reads waits for who writes.
    implicit_sync_of_contexts,
    /// A job waits for the fences of a dma-buf, and its own is among them.
    implicit_sync_of_dma_bufs,
    /// An object is moved when the jobs that use it have ended.
    a_move_waits,
    /// A context that waits holds up no other.
    contexts_in_parallel,
    /// A handle that is closed does not take the memory from a job.
    closed_handles,
    /// Jobs of a file that is closed run.
    closed_files,
    /// No field takes what it must not.
    bad_input,
    /// There is an end to contexts and jobs.
    limits,
    /// A submission stores to one register.
    register_accesses,
    /// A job that hangs loses its context; others go on.
    stalled,
    /// So does one that fails.
    errored,
    /// Unbinding ends jobs that wait.
    unbound,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

#[track_caller]
fn filled(gpu: &Gpu, pages: u64, placement: Placement, seed: u64) -> Bo<'_> {
    let bo = gpu.create(pages * gpu.page, placement);
    bo.fill(Pattern(seed));
    bo
}

fn copies() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    for from in Placement::ALL {
        for to in Placement::ALL {
            let source = filled(&gpu, 5, from, 1);
            let target = filled(&gpu, 6, to, 2);
            let (at, to_at, size) = (4093, 7, 3 * gpu.page + 11);
            let op = Op {
                src_offset: at,
                dst_offset: to_at,
                ..copy(&source, &target, size)
            };
            context.run(&[op]);
            let mut expected = Pattern(2).bytes(0, target.size as usize);
            let bytes = source.download(at, size as usize);
            expected[to_at as usize..][..size as usize].copy_from_slice(&bytes);
            assert!(target.download(0, expected.len()) == expected);
        }
    }
}

fn fills() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    for placement in Placement::ALL {
        let bo = filled(&gpu, 3, placement, 3);
        let op = Op {
            dst_offset: 8,
            ..fill(&bo, 0x0102_0304, gpu.page + 4)
        };
        context.run(&[op]);
        let mut expected = Pattern(3).bytes(0, bo.size as usize);
        for word in expected[8..][..gpu.page as usize + 4].chunks_exact_mut(4) {
            word.copy_from_slice(&0x0102_0304_u32.to_le_bytes());
        }
        assert!(bo.download(0, expected.len()) == expected);
    }
}

fn checksums() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    for from in Placement::ALL {
        for to in Placement::ALL {
            let source = filled(&gpu, 3, from, 4);
            let target = gpu.create(2 * gpu.page, to);
            // Across a page's end.
            let at = gpu.page - 9;
            let op = |src_offset, dst_offset, size| Op {
                src_offset,
                dst_offset,
                ..between(P2PGPU_OP_CHECKSUM, &source, &target, size)
            };
            context.run(&[op(5, at, gpu.page), op(0, 0, 1)]);
            let bytes = source.download(0, source.size as usize);
            let expected = Sha256::digest(&bytes[5..][..gpu.page as usize]);
            assert_eq!(target.download(at, 32), expected.to_vec());
            assert_eq!(target.download(0, 32), Sha256::digest(&bytes[..1]).to_vec());
        }
    }
}

fn adds() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let count = gpu.page as usize / 2;
    for from in Placement::ALL {
        for to in Placement::ALL {
            let (a, b) = (gpu.create(2 * gpu.page, from), gpu.create(2 * gpu.page, to));
            let integers = |bo: &Bo<'_>, seed: u32| {
                let words = (0..count as u32).flat_map(|i| {
                    let word = (u32::MAX - 7).wrapping_mul(seed).wrapping_add(i * seed);
                    word.to_le_bytes()
                });
                let bytes: Vec<u8> = words.collect();
                bo.upload(0, &bytes);
                bytes
            };
            let (x, y) = (integers(&a, 1), integers(&b, 3));
            context.run(&[between(P2PGPU_OP_ADD_U32, &a, &b, a.size)]);
            let word = |bytes: &[u8], i: usize| bytes[4 * i..][..4].try_into().unwrap();
            let sums = b.download(0, b.size as usize);
            for i in 0..count {
                let sum =
                    u32::from_le_bytes(word(&x, i)).wrapping_add(u32::from_le_bytes(word(&y, i)));
                assert_eq!(u32::from_le_bytes(word(&sums, i)), sum);
            }
            let floats = |bo: &Bo<'_>, unit: f32| {
                let words = (0..count).flat_map(|i| (i as f32 * unit).to_le_bytes());
                bo.upload(0, &words.collect::<Vec<u8>>());
            };
            floats(&a, 0.5);
            floats(&b, -0.1);
            context.run(&[between(P2PGPU_OP_ADD_F32, &a, &b, a.size)]);
            let sums = b.download(0, b.size as usize);
            for i in 0..count {
                let sum = i as f32 * -0.1 + i as f32 * 0.5;
                assert_eq!(f32::from_le_bytes(word(&sums, i)).to_bits(), sum.to_bits());
            }
        }
    }
}

#[track_caller]
fn first_word(bo: &Bo<'_>) -> u32 {
    u32::from_le_bytes(bo.download(0, 4).try_into().unwrap())
}

fn in_order() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let [a, b] = [0, 1].map(|_| gpu.create(gpu.page, Placement::Vram));
    // Each doubles what is there.
    let double = [
        copy(&a, &b, a.size),
        between(P2PGPU_OP_ADD_U32, &b, &a, a.size),
    ];
    context.submit(&[fill(&a, 3, a.size)], &[], &[]);
    for _ in 0..10 {
        context.submit(&double, &[], &[]);
    }
    assert_eq!(first_word(&a), 3 << 10);
    wait_until("all jobs have ended", || context.query().jobs == 0);
    assert!(context.query().engine_ns > 0);
}

fn binary_syncobjs() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let timeline = swsync::Timeline::new();
    let bo = gpu.create(gpu.page, Placement::Vram);
    let [gates, dones] = [0, 1].map(|_| [0, 1].map(|_| Syncobj::new(&gpu)));
    gates[0].import_sync_file(&timeline.fence(1));
    gates[1].import_sync_file(&timeline.fence(2));
    let ins = [binary(&gates[0]), binary(&gates[1])];
    let outs = [binary(&dones[0]), binary(&dones[1])];
    context.submit(&[fill(&bo, 9, 4)], &ins, &outs);
    timeline.advance(1);
    refused(dones[0].__wait(Duration::from_millis(50), 0), Errno::ETIME);
    assert_eq!(context.query().jobs, 1);
    timeline.advance(1);
    dones[0].wait();
    dones[1].wait();
    assert_eq!(first_word(&bo), 9);
}

fn timeline_syncobjs() {
    let gpu = Gpu::open(0);
    let [first, second] = [0, 1].map(|_| Context::new(&gpu));
    let software = swsync::Timeline::new();
    let gate = Syncobj::new(&gpu);
    gate.import_sync_file(&software.fence(1));
    let timeline = Syncobj::new(&gpu);
    let [a, b] = [0, 1].map(|_| gpu.create(gpu.page, Placement::Vram));
    first.submit(&[fill(&a, 5, 4)], &[binary(&gate)], &[point(&timeline, 4)]);
    second.submit(
        &[fill(&b, 6, 4)],
        &[point(&timeline, 4)],
        &[point(&timeline, 9)],
    );
    refused(
        timeline.__wait_point(9, Duration::from_millis(50), 0),
        Errno::ETIME,
    );
    assert_eq!(timeline.point(), 0);
    software.advance(1);
    timeline.wait_point(4);
    timeline.wait_point(9);
    assert_eq!(timeline.point(), 9);
    assert_eq!([first_word(&a), first_word(&b)], [5, 6]);
}

fn implicit_sync_of_contexts() {
    let gpu = Gpu::open(0);
    let [writer, reader] = [0, 1].map(|_| Context::new(&gpu));
    let [a, b] = [0, 1].map(|_| gpu.create(gpu.page, Placement::Vram));
    let gate = gated(&gpu, &writer, &[fill(&a, 7, 4)]);
    let done = Syncobj::new(&gpu);
    reader.submit(&[copy(&a, &b, 4)], &[], &[binary(&done)]);
    refused(done.__wait(Duration::from_millis(50), 0), Errno::ETIME);
    gate.advance(1);
    done.wait();
    assert_eq!(first_word(&b), 7);
    // Who only reads waits for no reader; who writes does.
    let gate = gated(&gpu, &writer, &[copy(&a, &b, 4)]);
    let other = gpu.create(gpu.page, Placement::Vram);
    reader.run(&[copy(&a, &other, 4)]);
    reader.submit(&[fill(&a, 8, 4)], &[], &[binary(&done)]);
    refused(done.__wait(Duration::from_millis(50), 0), Errno::ETIME);
    gate.advance(1);
    done.wait();
    assert_eq!([first_word(&b), first_word(&a)], [7, 8]);
}

fn implicit_sync_of_dma_bufs() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.set_exportable(true);
    let dmabuf = DmaBuf(bo.export());
    let software = swsync::Timeline::new();
    dmabuf.import_sync_file(Access::Write, &software.fence(1));
    let done = Syncobj::new(&gpu);
    context.submit(&[fill(&bo, 4, 4)], &[], &[binary(&done)]);
    refused(done.__wait(Duration::from_millis(50), 0), Errno::ETIME);
    let readers = Syncobj::new(&gpu);
    readers.import_sync_file(&dmabuf.export_sync_file(Access::Read));
    assert!(!readers.is_signalled());
    software.advance(1);
    readers.wait();
    assert!(done.is_signalled());
    assert_eq!(first_word(&bo), 4);
}

fn a_move_waits() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    for placement in Placement::ALL {
        let bo = gpu.create(4 * gpu.page, placement);
        let gate = gated(&gpu, &context, &[fill(&bo, 0x55, bo.size)]);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| bo.__move_to(placement.other()));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!mover.is_finished());
            gate.advance(1);
            assert_eq!(mover.join().unwrap(), Ok(()));
        });
        assert_eq!(bo.info().placement, placement.other() as u32);
        assert!(
            bo.download(0, bo.size as usize)
                .chunks(4)
                .all(|w| w == [0x55, 0, 0, 0])
        );
    }
}

fn contexts_in_parallel() {
    let gpu = Gpu::open(0);
    let [waiting, running] = [0, 1].map(|_| Context::new(&gpu));
    let [a, b] = [0, 1].map(|_| gpu.create(gpu.page, Placement::Vram));
    let gate = gated(&gpu, &waiting, &[fill(&a, 1, 4)]);
    for value in 0..20 {
        running.run(&[fill(&b, value, 4)]);
    }
    assert_eq!(waiting.query().jobs, 1);
    gate.advance(1);
    assert_eq!([first_word(&a), first_word(&b)], [1, 19]);
}

fn closed_handles() {
    let gpu = Gpu::open(0);
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let context = Context::new(&gpu);
    let target = gpu.create(gpu.page, Placement::System);
    for placement in Placement::ALL {
        let source = filled(&gpu, 1, placement, 6);
        let gate = gated(&gpu, &context, &[copy(&source, &target, gpu.page)]);
        source.close();
        // Who takes the memory now would show.
        let other = filled(&gpu, 1, placement, 7);
        gate.advance(1);
        target.assert_holds(Pattern(6));
        drop(other);
    }
    wait_until("the memory is back", || {
        gpu.param(P2PGPU_PARAM_VRAM_FREE) == free
    });
}

fn closed_files() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.set_exportable(true);
    let gate = {
        let other = gpu.reopen();
        let theirs = other.import(&bo.export());
        let context = Context::new(&other);
        gated(&other, &context, &[fill(&theirs, 12, 4)])
    };
    gate.advance(1);
    assert_eq!(first_word(&bo), 12);
}

fn bad_input() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let [a, b] = [0, 1].map(|_| gpu.create(2 * gpu.page, Placement::Vram));
    let good = copy(&a, &b, 8);
    let syncobj = Syncobj::new(&gpu);
    let check = |change: &dyn Fn(&mut drm_p2pgpu_submit), errno| {
        let (ops, syncs) = ([good], [binary(&syncobj)]);
        let mut arg = context.argument(&ops, &[], &syncs);
        change(&mut arg);
        refused(gpu.__ioctl(&mut arg), errno);
    };
    check(&|arg| arg.context = 0, Errno::ENOENT);
    check(&|arg| arg.context = u32::MAX, Errno::ENOENT);
    check(&|arg| arg.flags = 1, Errno::EINVAL);
    check(&|arg| arg.pad = 1, Errno::EINVAL);
    check(&|arg| arg.op_count = 0, Errno::EINVAL);
    check(&|arg| arg.op_count = 65, Errno::EINVAL);
    check(&|arg| arg.ops = 16, Errno::EFAULT);
    check(&|arg| arg.ops = u64::MAX - 7, Errno::EFAULT);
    check(&|arg| arg.in_count = 65, Errno::EINVAL);
    check(&|arg| (arg.in_count, arg.in_) = (1, 16), Errno::EFAULT);
    check(&|arg| arg.out_count = 65, Errno::EINVAL);
    check(&|arg| arg.out = 16, Errno::EFAULT);

    let check = |op: Op, errno| refused(context.__submit(&[good, op], &[], &[]), errno);
    let add = between(P2PGPU_OP_ADD_U32, &a, &b, 8);
    let with = |change: &dyn Fn(&mut Op), mut op: Op| {
        change(&mut op);
        op
    };
    check(with(&|op| op.op = 0, good), Errno::EINVAL);
    check(with(&|op| op.op = 6, good), Errno::EINVAL);
    check(with(&|op| op.value = 1, good), Errno::EINVAL);
    check(with(&|op| op.src_handle = 0, good), Errno::ENOENT);
    check(with(&|op| op.dst_handle = u32::MAX, good), Errno::ENOENT);
    check(with(&|op| op.size = 0, good), Errno::EINVAL);
    check(with(&|op| op.size = a.size + 1, good), Errno::EINVAL);
    check(with(&|op| op.src_offset = u64::MAX, good), Errno::EINVAL);
    check(with(&|op| op.dst_offset = b.size - 7, good), Errno::EINVAL);
    let overlapping = |op: &mut Op| (op.dst_handle, op.dst_offset) = (op.src_handle, 4);
    check(with(&overlapping, good), Errno::EINVAL);
    check(with(&overlapping, add), Errno::EINVAL);
    check(with(&|op| op.size = 6, add), Errno::EINVAL);
    check(with(&|op| op.src_offset = 2, add), Errno::EINVAL);
    check(with(&|op| op.dst_offset = 1, add), Errno::EINVAL);
    let store = fill(&b, 1, 8);
    check(with(&|op| op.src_handle = a.handle, store), Errno::EINVAL);
    check(with(&|op| op.src_offset = 4, store), Errno::EINVAL);
    check(with(&|op| op.size = 7, store), Errno::EINVAL);
    let digest = Op {
        dst_offset: b.size - 31,
        ..between(P2PGPU_OP_CHECKSUM, &a, &b, 8)
    };
    check(digest, Errno::EINVAL);

    let sync = |sync| context.__submit(&[good], &[sync], &[]);
    refused(sync(binary(&syncobj)), Errno::EINVAL);
    refused(sync(point(&syncobj, 1)), Errno::EINVAL);
    let mut flagged = binary(&syncobj);
    flagged.flags = 1;
    refused(sync(flagged), Errno::EINVAL);
    refused(context.__submit(&[good], &[], &[flagged]), Errno::EINVAL);
    let none = drm_p2pgpu_sync::default();
    refused(sync(none), Errno::ENOENT);
    refused(context.__submit(&[good], &[], &[none]), Errno::ENOENT);

    let id = context.id;
    let mut create = drm_p2pgpu_context_create { flags: 1, id: 0 };
    refused(gpu.__ioctl(&mut create), Errno::EINVAL);
    for (id, pad, errno) in [(id, 1, Errno::EINVAL), (id + 1, 0, Errno::ENOENT)] {
        let mut destroy = drm_p2pgpu_context_destroy { id, pad };
        refused(gpu.__ioctl(&mut destroy), errno);
        let mut query = drm_p2pgpu_context_query {
            id,
            pad,
            ..Default::default()
        };
        refused(gpu.__ioctl(&mut query), errno);
    }
    // Another file's.
    let mut query = drm_p2pgpu_context_query {
        id,
        ..Default::default()
    };
    refused(gpu.reopen().__ioctl(&mut query), Errno::ENOENT);
    // Nothing of all that was queued, or put into the syncobj.
    assert_eq!(context.query().jobs, 0);
    refused(syncobj.__wait(Duration::ZERO, 0), Errno::EINVAL);
    context.run(&[good]);
}

fn limits() {
    let gpu = Gpu::open(0);
    let most = gpu.param(P2PGPU_PARAM_CONTEXTS_MAX);
    let contexts: Vec<_> = (0..most).map(|_| Context::new(&gpu)).collect();
    refused(Context::__new(&gpu).map(drop), Errno::ENOSPC);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let gate = gated(&gpu, &contexts[0], &[fill(&bo, 1, 4)]);
    for _ in 1..gpu.param(P2PGPU_PARAM_JOBS_MAX) {
        contexts[0].submit(&[fill(&bo, 1, 4)], &[], &[]);
    }
    let result = contexts[0].__submit(&[fill(&bo, 2, 4)], &[], &[]);
    refused(result, Errno::EBUSY);
    gate.advance(1);
    wait_until("all jobs have ended", || contexts[0].query().jobs == 0);
    let ops = vec![fill(&bo, 3, 4); gpu.param(P2PGPU_PARAM_OPS_MAX) as usize];
    contexts[0].run(&ops);
    drop(contexts);
    Context::new(&gpu).run(&[fill(&bo, 4, 4)]);
}

fn register_accesses() {
    let gpu = Gpu::open(0);
    let context = Context::new(&gpu);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let ops = [fill(&bo, 1, 4), fill(&bo, 2, 8)];
    context.run(&ops);
    let debugfs = Debugfs::default();
    let accesses = || {
        let counters = debugfs.counters("p2pgpu", gpu.pci()).unwrap();
        counters["reg_reads"] + counters["reg_writes"]
    };
    let before = accesses();
    const JOBS: u64 = 20;
    for _ in 0..JOBS {
        context.run(&ops);
    }
    let each = (accesses() - before).div_ceil(JOBS);
    println!("register accesses a submission: {each}");
    assert!(each <= 2, "{each}");
}

/// A fault that GPU 0 is to show in its engine; taken back when dropped.
struct Injected;

impl Injected {
    #[track_caller]
    fn new(what: &str) -> Self {
        host::control("gpu0", json!({"cmd": "inject", "what": what, "ring": 0}));
        Self
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        let _ = host::__control("gpu0", json!({"cmd": "clear"}));
    }
}

/// A context's job meets a fault: it is lost, with what is queued in it, and another one goes on.
#[track_caller]
fn is_lost(what: &str, state: u32) {
    let gpu = Gpu::open(0);
    let timeout = Setting::new(gpu.pci(), "job_timeout_ms");
    timeout.write("1000");
    let [bad, good] = [0, 1].map(|_| Context::new(&gpu));
    let [a, b] = [0, 1].map(|_| filled(&gpu, 1, Placement::Vram, 8));
    let done = [0, 1, 2].map(|_| Syncobj::new(&gpu));
    // Contexts take turns: the other one's job is queued, but not yet ready.
    let timeline = swsync::Timeline::new();
    let gates = [1, 2].map(|at| {
        let gate = Syncobj::new(&gpu);
        gate.import_sync_file(&timeline.fence(at));
        gate
    });
    let injected = Injected::new(what);
    let first = [binary(&gates[0])];
    bad.submit(&[fill(&a, 1, 4)], &first, &[binary(&done[0])]);
    bad.submit(&[fill(&a, 2, 4)], &[], &[binary(&done[1])]);
    let second = [binary(&gates[1])];
    good.submit(&[fill(&b, 3, 4)], &second, &[binary(&done[2])]);
    timeline.advance(1);
    assert_eq!(done[0].__wait(PATIENCE, 0), Ok(()));
    timeline.advance(1);
    for done in &done {
        assert_eq!(done.__wait(PATIENCE, 0), Ok(()));
    }
    drop(injected);
    assert_eq!(
        [bad.query().state, good.query().state],
        [state, P2PGPU_CONTEXT_OK]
    );
    assert_eq!(bad.query().jobs, 0);
    assert_eq!(first_word(&b), 3);
    refused(bad.__submit(&[fill(&a, 4, 4)], &[], &[]), Errno::ECANCELED);
    good.run(&[fill(&a, 5, 4)]);
    assert_eq!(first_word(&a), 5);
    Context::new(&gpu).run(&[fill(&a, 6, 4)]);
}

fn stalled() {
    is_lost("stall", P2PGPU_CONTEXT_TIMEOUT);
}

fn errored() {
    is_lost("error", P2PGPU_CONTEXT_ERROR);
}

fn unbound() {
    let gpu = Gpu::open(0);
    let pci = gpu.pci();
    let context = Context::new(&gpu);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let system = gpu.create(gpu.page, Placement::System);
    let timeline = swsync::Timeline::new();
    let [gate, done] = [0, 1].map(|_| Syncobj::new(&gpu));
    gate.import_sync_file(&timeline.fence(1));
    let outs = [binary(&done)];
    context.submit(&[copy(&system, &bo, 4)], &[binary(&gate)], &outs);
    context.submit(&[fill(&bo, 2, 4)], &[], &outs);
    // The file's own calls end with the device.
    let fence = done.export_sync_file();
    let unbound = Unbound::new("p2pgpu", pci);
    assert!(poll(&fence, Access::Read, 0));
    refused(
        context.__submit(&[fill(&bo, 3, 4)], &[], &[]),
        Errno::ENODEV,
    );
    timeline.advance(1);
    drop(unbound);
    wait_until("the GPU is back", || gpu_is_there(pci));
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    Context::new(&gpu).run(&[fill(&bo, 1, 4)]);
    assert_eq!(first_word(&bo), 1);
}
