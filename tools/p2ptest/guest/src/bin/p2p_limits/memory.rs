// SPDX-License-Identifier: GPL-2.0
//! The `memory` cgroup.

use crate::{open, peer};
use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::cgroup::Cgroup;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt;
use p2pguest::importer::{Direction, Importer};
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::RESERVED;
use p2pguest::sys::uapi::*;

const MIB: u64 = 1 << 20;

/// Large beside what is charged in advance, and beside what this program touches.
const SIZE: u64 = 16 * MIB;

/// Makes something in a cgroup. Elsewhere, so that nothing else is charged, it is used.
fn made_in<R>(cgroup: &Cgroup, make: impl FnOnce() -> R) -> R {
    cgroup.enter();
    let made = make();
    cgroup.leave();
    made
}

/// Asserts that so many objects are charged. What a copy was made from is freed, and
/// what one CPU has charged in advance is given up, a moment later.
#[track_caller]
fn assert_charged(cgroup: &Cgroup, objects: u64) {
    let expected = objects * SIZE;
    let expected = expected.saturating_sub(Cgroup::SLACK)..expected + Cgroup::SLACK;
    let what = format!("{objects} objects are charged");
    wait_until(&what, || expected.contains(&cgroup.memory()));
}

/// Asserts that no limit has cost a process its life.
#[track_caller]
fn assert_nobody_was_killed(cgroup: &Cgroup) {
    let events = ["oom", "oom_kill"].map(|event| cgroup.memory_events(event));
    assert_eq!(events, [0, 0]);
}

#[track_caller]
fn placement(bo: &Bo<'_>) -> u32 {
    bo.info().placement
}

pub fn memory_is_charged_to_the_creator() {
    let gpu = Gpu::open(0);
    let cgroup = Cgroup::new();
    cgroup.enter();
    assert_charged(&cgroup, 0);
    let bo = gpu.create(SIZE, Placement::System);
    assert_charged(&cgroup, 1);
    wait_until("the kernel's memory", || {
        cgroup.memory_stat("kernel") >= SIZE
    });
    // An object in VRAM is no memory of the system.
    let other = gpu.create(SIZE, Placement::Vram);
    assert_charged(&cgroup, 1);
    other.move_to(Placement::System);
    assert_charged(&cgroup, 2);
    other.move_to(Placement::Vram);
    assert_charged(&cgroup, 1);
    // It stays with the cgroup, wherever its processes go.
    cgroup.leave();
    let root = gpu.create(SIZE, Placement::System);
    assert_charged(&cgroup, 1);
    drop(bo);
    assert_charged(&cgroup, 0);
    drop(root);
    wait_until("the kernel's memory", || {
        cgroup.memory_stat("kernel") < Cgroup::SLACK
    });
}

pub fn memory_limit_is_an_error() {
    let gpu = Gpu::open(0);
    let cgroup = Cgroup::new();
    let neighbour = igt::fork(|| {
        cgroup.enter();
        loop {
            std::thread::park();
        }
    });
    cgroup.set_memory_max(2 * SIZE + SIZE / 2);
    let first = made_in(&cgroup, || gpu.create(SIZE, Placement::System));
    first.fill(Pattern(1));
    let in_vram = made_in(&cgroup, || gpu.create(SIZE + MIB, Placement::Vram));
    for _ in 0..4 {
        let refused_one = || refused(gpu.__create(2 * SIZE, Placement::System), Errno::ENOMEM);
        made_in(&cgroup, refused_one);
        assert_charged(&cgroup, 1);
    }
    assert_ne!(cgroup.memory_events("max"), 0, "no limit was in the way");
    // What there is room for.
    let second = made_in(&cgroup, || gpu.create(SIZE, Placement::System));
    refused(in_vram.__move_to(Placement::System), Errno::ENOMEM);
    assert_eq!(placement(&in_vram), P2PGPU_PLACEMENT_VRAM);
    assert_charged(&cgroup, 2);
    // Others have no limit.
    drop(gpu.create(2 * SIZE, Placement::System));
    assert_charged(&cgroup, 2);
    drop(second);
    in_vram.move_to(Placement::System);

    first.assert_holds(Pattern(1));
    neighbour.assert_runs();
    neighbour.kill();
    assert_nobody_was_killed(&cgroup);
}

/// Has another process, with a file and a cgroup of its own, want so much VRAM, and
/// returns what it says when it has it, and that cgroup.
#[track_caller]
fn another_wants_vram(size: u64, has_it: impl FnOnce(&Cgroup)) {
    let cgroup = Cgroup::new();
    igt::fork(|| {
        cgroup.enter();
        let gpu = Gpu::open(0);
        let _bo = gpu.create(size, Placement::Vram);
        has_it(&cgroup);
    })
    .join();
}

pub fn eviction_is_charged_to_the_creator() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(2 * SIZE);
    let creator = Cgroup::new();
    let bos = [1, 2].map(|number| {
        let bo = made_in(&creator, || gpu.create_evictable(SIZE));
        bo.fill(Pattern(number));
        bo
    });
    assert_charged(&creator, 0);
    another_wants_vram(SIZE, |other| {
        assert_charged(&creator, 1);
        assert_charged(other, 0);
    });
    assert_eq!(placement(&bos[0]), P2PGPU_PLACEMENT_SYSTEM);
    another_wants_vram(2 * SIZE, |other| {
        assert_charged(&creator, 2);
        assert_charged(other, 0);
    });
    // Who uses them now, and has them come back, does not matter either.
    cgroup_of_another_uses(&bos);
    assert_charged(&creator, 0);
    for (number, bo) in (1..).zip(&bos) {
        assert_eq!(placement(bo), P2PGPU_PLACEMENT_VRAM);
        bo.assert_holds(Pattern(number));
    }
}

/// Has a process of another cgroup use objects.
#[track_caller]
fn cgroup_of_another_uses(bos: &[Bo<'_>]) {
    let cgroup = Cgroup::new();
    igt::fork(|| {
        cgroup.enter();
        for bo in bos {
            bo.checksum(0, SIZE);
        }
        assert_charged(&cgroup, 0);
    })
    .join();
}

pub fn eviction_obeys_the_creators_limit() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(2 * SIZE);
    let (creator, other) = (Cgroup::new(), Cgroup::new());
    creator.set_memory_max(SIZE / 2);
    let stays = made_in(&creator, || gpu.create_evictable(SIZE));
    stays.fill(Pattern(1));
    // Used later: it would leave after the first one.
    let leaves = made_in(&other, || gpu.create_evictable(SIZE));
    leaves.fill(Pattern(2));
    another_wants_vram(SIZE, |_| {
        assert_charged(&creator, 0);
        assert_charged(&other, 1);
    });
    assert_eq!(placement(&stays), P2PGPU_PLACEMENT_VRAM);
    assert_eq!(placement(&leaves), P2PGPU_PLACEMENT_SYSTEM);
    // Nobody else can leave.
    refused(gpu.__create(2 * SIZE, Placement::Vram), Errno::ENOSPC);
    assert_nobody_was_killed(&creator);
    stays.assert_holds(Pattern(1));
    // With a higher limit it can.
    creator.set_memory_max(2 * SIZE);
    drop(gpu.create(2 * SIZE, Placement::Vram));
    assert_charged(&creator, 1);
    stays.assert_holds(Pattern(1));
    leaves.assert_holds(Pattern(2));
}

pub fn move_is_charged_to_the_creator() {
    let gpu = Gpu::open(0);
    let (creator, mover) = (Cgroup::new(), Cgroup::new());
    let bo = made_in(&creator, || gpu.create(SIZE, Placement::Vram));
    bo.fill(Pattern(1));
    let move_to = |placement| made_in(&mover, || bo.move_to(placement));
    move_to(Placement::System);
    assert_charged(&creator, 1);
    assert_charged(&mover, 0);
    move_to(Placement::Vram);
    assert_charged(&creator, 0);

    move_to(Placement::System);
    drop(creator);
    // Nothing but the memory is left of the cgroup that has paid for it.
    bo.assert_holds(Pattern(1));
    for _ in 0..2 {
        move_to(Placement::Vram);
        move_to(Placement::System);
    }
    assert_charged(&mover, 0);
    bo.assert_holds(Pattern(1));
}

pub fn fall_back_is_charged_to_the_creator() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let (creator, mapper) = (Cgroup::new(), Cgroup::new());
    let bo = made_in(&creator, || gpu.create(SIZE / 2, Placement::Vram));
    bo.set_exportable(true);
    let fd = bo.export();
    // No slots are left for it.
    let slots = gpu.param(P2PGPU_PARAM_SLOTS_TOTAL) - bo.pages() / 2;
    let reserved = gpu.create(slots * gpu.page, Placement::Vram);
    reserved.set_exportable(true);
    reserved.set_peer(RESERVED);
    let importer = Importer::attach(&fd, peer(&rig));
    made_in(&mapper, || importer.map(Direction::Both));
    assert_eq!(placement(&bo), P2PGPU_PLACEMENT_SYSTEM);
    let pays = creator.memory();
    assert!(pays >= bo.size, "{pays} bytes are charged");
    assert_charged(&mapper, 0);
}
