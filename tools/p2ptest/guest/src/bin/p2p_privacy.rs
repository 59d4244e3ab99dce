// SPDX-License-Identifier: GPL-2.0
//! Tests that one client never sees another's bytes: by CPU, by engine, or by peer, in
//! memory that is fresh to it.

use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Exported, Rig};
use p2pguest::submit::{Context, copy};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use sha2::{Digest, Sha256};
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// VRAM that another client had, all of it.
    recycled_vram,
    /// VRAM that an object of another client was evicted from, or that it died in.
    vram_of_the_evicted,
    /// System pages that another client had.
    recycled_system_pages,
    /// Slots that showed another client's pages.
    recycled_slots,
    /// What the two clients do at the same time.
    at_the_same_time,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// What the other client's objects hold.
const SECRET: Pattern = Pattern(0x5ec2e7);
const MIB: u64 = 1 << 20;

/// Objects of a client that hold the secret, of so many bytes together.
fn secrets(gpu: &Gpu, placement: Placement, all: u64, each: u64) -> Vec<Bo<'_>> {
    let made = (0..all / each).map(|_| {
        let bo = gpu.create(each, placement);
        bo.fill(SECRET);
        bo
    });
    made.collect()
}

/// The object holds zeros, as the engine sees it.
#[track_caller]
fn engine_sees_nothing(bo: &Bo<'_>) {
    let zeros = vec![0; usize::try_from(bo.size).expect("fits")];
    let expected: [u8; 32] = Sha256::digest(&zeros).into();
    assert_eq!(bo.checksum(0, bo.size), expected, "by the engine");
    // And as a job sees it, that is queued as soon as the object is there.
    let gpu = bo.gpu();
    let sink = gpu.create(gpu.page, Placement::System);
    Context::new(gpu).run(&[copy(bo, &sink, gpu.page)]);
    assert!(sink.download(0, 4096).iter().all(|byte| *byte == 0));
}

/// As CPUs see it, by the object's mapping and by that of its dma-buf.
#[track_caller]
fn cpu_sees_nothing(bo: &Bo<'_>, pages: u64) {
    let map = bo.map();
    for page in 0..bo.pages().min(pages) {
        let at = usize::try_from(page * bo.gpu().page).expect("fits");
        for word in (0..4096).step_by(512) {
            assert_eq!(map.load(at + word), 0, "page {page}, by the CPU");
        }
    }
}

/// As a NIC sees it, that reads it.
#[track_caller]
fn peer_sees_nothing(rig: &Rig, bo: &Bo<'_>) {
    bo.set_exportable(true);
    let size = bo.size.min(rig.bulk_size());
    let region = rig.nic[0].register(&bo.export(), 0, size);
    let target = rig.register(1, size, Placement::System);
    target.bo.fill(Pattern(1));
    rig.connect(4).write(&region, &target.region);
    let found = target.bo.download(0, usize::try_from(size).expect("fits"));
    assert!(found.iter().all(|byte| *byte == 0), "by a peer");
}

/// Nobody sees anything. Who looks first must not matter: each does at an object of its own.
#[track_caller]
fn nobody_sees_anything(rig: &Rig, client: &Gpu, placement: Placement, all: u64) {
    let third = all / 3 / client.page * client.page;
    let [one, two, three] = [0, 1, 2].map(|_| client.create(third, placement));
    engine_sees_nothing(&one);
    cpu_sees_nothing(&two, 2048);
    peer_sees_nothing(rig, &three);
    for bo in [&one, &two, &three] {
        engine_sees_nothing(bo);
        cpu_sees_nothing(bo, 64);
    }
}

fn recycled_vram() {
    let rig = Rig::open();
    let (owner, client) = (&rig.gpu[0], rig.gpu[0].reopen());
    // Most of it stays taken: what is left is sure to be had again.
    let left = 24 * MIB;
    let _ballast = owner.fill_all_but(left);
    for each in [4096, MIB] {
        let count = if each == MIB { left } else { 4 * MIB };
        drop(secrets(owner, Placement::Vram, count, each));
        nobody_sees_anything(&rig, &client, Placement::Vram, left);
    }
}

fn vram_of_the_evicted() {
    let rig = Rig::open();
    let (owner, client) = (&rig.gpu[0], rig.gpu[0].reopen());
    let left = 6 * MIB;
    let _ballast = owner.fill_all_but(left);
    let secret = owner.create_evictable(left);
    for _ in 0..2 {
        // Brings it back.
        secret.fill(SECRET);
        assert_eq!(secret.info().placement, P2PGPU_PLACEMENT_VRAM);
        nobody_sees_anything(&rig, &client, Placement::Vram, left);
        assert_ne!(secret.info().evictions, 0);
    }
    secret.assert_holds(SECRET);
    secret.close();
    nobody_sees_anything(&rig, &client, Placement::Vram, left);
}

fn recycled_system_pages() {
    let rig = Rig::open();
    let (owner, client) = (&rig.gpu[0], rig.gpu[0].reopen());
    let all = 12 * MIB;
    for _ in 0..2 {
        drop(secrets(owner, Placement::System, all, MIB));
        nobody_sees_anything(&rig, &client, Placement::System, all);
    }
    // Those that an object leaves behind when it moves to VRAM.
    for bo in secrets(owner, Placement::System, all, MIB) {
        bo.move_to(Placement::Vram);
    }
    nobody_sees_anything(&rig, &client, Placement::System, all);
}

fn recycled_slots() {
    let rig = Rig::open();
    let (owner, client) = (&rig.gpu[0], rig.gpu[0].reopen());
    // All slots show the secret, by CPU mappings that stay.
    let secret = owner.create(owner.aperture(), Placement::Vram);
    secret.fill(SECRET);
    let map = secret.map();
    for page in 0..secret.pages() {
        map.load(usize::try_from(page * owner.page).expect("fits"));
    }
    let size = 64 * client.page;
    let fresh = || client.create(size, Placement::Vram);
    cpu_sees_nothing(&fresh(), 64);
    peer_sees_nothing(&rig, &fresh());
    // And after the owner has gone.
    drop(map);
    secret.close();
    cpu_sees_nothing(&fresh(), 64);
    peer_sees_nothing(&rig, &fresh());
    // By a dma-buf's own mapping, too.
    let bo = fresh();
    bo.set_exportable(true);
    let Exported { bo, fd } = Exported {
        fd: bo.export(),
        bo,
    };
    let len = usize::try_from(bo.size).expect("fits");
    let map = p2pguest::map::Mapping::__new(&fd, 0, len).expect("mmap of a dma-buf");
    assert!((0..len).step_by(4096).all(|at| map.load(at) == 0));
}

fn at_the_same_time() {
    const ROUNDS: u64 = 12;
    let gpu = Gpu::open(0);
    let size = 64 * gpu.page;
    // Too little for both: each evicts the other, or finds no room.
    let _ballast = gpu.fill_all_but(2 * size);
    let owner = igt::fork(|| {
        let gpu = Gpu::open(0);
        for _ in 0..ROUNDS {
            let Ok(bo) = gpu.__create_evictable(size) else {
                continue;
            };
            bo.fill(SECRET);
            bo.assert_holds(SECRET);
        }
    });
    let client = gpu.reopen();
    for _ in 0..ROUNDS {
        let bo = match client.__create_evictable(size) {
            Ok(bo) => bo,
            Err(_) => client.create(size, Placement::System),
        };
        cpu_sees_nothing(&bo, 64);
        engine_sees_nothing(&bo);
    }
    owner.join();
}
