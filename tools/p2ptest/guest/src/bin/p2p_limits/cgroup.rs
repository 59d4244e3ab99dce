// SPDX-License-Identifier: GPL-2.0
//! The `dmem` cgroup.

use crate::{assert_refused, exported, flagged, open, peer};
use p2pguest::cgroup::{Cgroup, Memory};
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::importer::{Direction, Importer};
use p2pguest::rig::RESERVED;
use p2pguest::sys::uapi::*;

/// Pages of a memory of a GPU that are charged to a cgroup.
#[track_caller]
fn charged(cgroup: &Cgroup, gpu: &Gpu, memory: Memory) -> u64 {
    let bytes = cgroup.current(gpu.pci(), memory);
    assert_eq!(bytes % gpu.page, 0);
    bytes / gpu.page
}

/// A cgroup for this process, with a limit in pages.
#[track_caller]
fn limited(gpu: &Gpu, memory: Memory, pages: u64) -> Cgroup {
    let cgroup = Cgroup::new();
    cgroup.set_max(gpu.pci(), memory, pages * gpu.page);
    cgroup.enter();
    assert_eq!(charged(&cgroup, gpu, memory), 0);
    cgroup
}

pub fn cgroup_knows_both_memories() {
    let cgroup = Cgroup::new();
    for index in 0..2 {
        let gpu = Gpu::open(index);
        let capacity = |memory| cgroup.capacity(gpu.pci(), memory);
        let vram = gpu.param(P2PGPU_PARAM_VRAM_SIZE);
        assert_eq!(capacity(Memory::Vram), Some(vram));
        assert_eq!(capacity(Memory::Aperture), Some(gpu.aperture()));
    }
}

pub fn cgroup_limits_vram() {
    let gpu = Gpu::open(0);
    let cgroup = limited(&gpu, Memory::Vram, 8);
    let charged = || charged(&cgroup, &gpu, Memory::Vram);
    let first = gpu.create(5 * gpu.page, Placement::Vram);
    assert_eq!(charged(), 5);
    assert_refused(&gpu, "cgroup_vram", || {
        gpu.__create(4 * gpu.page, Placement::Vram)
    });
    let second = gpu.create(4 * gpu.page, Placement::System);
    assert_refused(&gpu, "cgroup_vram", || second.__move_to(Placement::Vram));
    let info = second.info();
    assert_eq!(
        (info.placement, info.refusals),
        (P2PGPU_PLACEMENT_SYSTEM, 1)
    );
    assert_eq!(charged(), 5);
    let third = gpu.create(3 * gpu.page, Placement::Vram);
    assert_eq!(charged(), 8);
    first.move_to(Placement::System);
    assert_eq!(charged(), 3);
    second.move_to(Placement::Vram);
    assert_eq!(charged(), 7);
    drop((first, second, third));
    assert_eq!(charged(), 0);
}

pub fn cgroup_limits_promises() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let cgroup = limited(gpu, Memory::Aperture, 8);
    let charged = || charged(&cgroup, gpu, Memory::Aperture);
    let (five, four) = (exported(&rig, 5), exported(&rig, 4));
    let importers = [&five, &four].map(|held| Importer::attach(&held.fd, peer(&rig)));
    five.bo.set_peer(RESERVED);
    assert_eq!(charged(), 5);
    assert_refused(gpu, "cgroup_aperture", || four.bo.__set_peer(RESERVED));
    assert_refused(gpu, "cgroup_aperture", || importers[1].__pin());
    let info = four.bo.info();
    assert_eq!(
        (info.peer_flags, info.pins, info.refusals),
        (P2PGPU_PEER_EXPORTABLE, 0, 2)
    );
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_PINNED), 0);
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_RESERVED), 5);
    // Pinned too, it has the same slots.
    importers[0].pin();
    assert_eq!(charged(), 5);
    importers[0].unpin();
    assert_eq!(charged(), 5);
    five.bo.set_exportable(true);
    assert_eq!(charged(), 0);
    importers[1].pin();
    assert_eq!(charged(), 4);
    four.bo.set_peer(RESERVED);
    assert_eq!(charged(), 4);
    importers[1].unpin();
    assert_eq!(charged(), 4);
    drop(importers);
    drop(four);
    assert_eq!(charged(), 0);
}

pub fn cgroup_charges_no_lent_slots() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let cgroup = limited(gpu, Memory::Aperture, 8);
    let touched = gpu.create(16 * gpu.page, Placement::Vram);
    touched.map().store(0, 1);
    let lent = exported(&rig, 16);
    let importer = Importer::attach(&lent.fd, peer(&rig));
    importer.map(Direction::Both);
    assert_ne!(touched.info().slots, 0);
    assert_eq!(lent.bo.info().peer_slots, 16);
    assert_eq!(charged(&cgroup, gpu, Memory::Aperture), 0);
}

pub fn cgroup_keeps_its_charges() {
    let gpu = Gpu::open(0);
    let cgroup = limited(&gpu, Memory::Aperture, 8);
    let bo = flagged(&gpu, 6);
    bo.set_peer(RESERVED);
    cgroup.leave();
    let other = flagged(&gpu, 20);
    other.set_peer(RESERVED);
    assert_eq!(charged(&cgroup, &gpu, Memory::Aperture), 6);
    assert_eq!(charged(&cgroup, &gpu, Memory::Vram), 6);
    drop(bo);
    assert_eq!(charged(&cgroup, &gpu, Memory::Aperture), 0);
    assert_eq!(charged(&cgroup, &gpu, Memory::Vram), 0);
}
