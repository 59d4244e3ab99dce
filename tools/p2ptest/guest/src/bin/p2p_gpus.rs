// SPDX-License-Identifier: GPL-2.0
//! Tests of objects of one GPU that another one imports: a GPU as a peer, in all
//! topologies.

use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::dmabuf::{Access, DmaBuf};
use p2pguest::gpu::{Bo, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{RESERVED, Rig};
use p2pguest::shared::{PAGES, Stalled, share};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::{must, refused, subtests};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// The engine reads VRAM of another GPU, through its aperture where there is a
    /// route.
    source,
    /// The engine writes VRAM of another GPU.
    target,
    /// An object that its GPU moves is found where it is.
    moves,
    /// An object that its GPU moves all the time is copied right.
    moves_during_copies,
    /// The exporter waits for a copy that is under way before it moves.
    moves_under_a_copy,
    /// A peer may read what is read-only, and not write it.
    read_only,
    /// An object that lost its flag is not copied any more.
    unflagged,
    /// Two ranges of one object are imported, and copied to each other.
    ranges,
    /// An imported object comes home as what it is.
    there_and_back,
    /// The slots of an import can be had by others.
    slots_are_lent,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// The importer was given slots where there is a route, else the object was moved.
#[track_caller]
fn assert_where(here: &Bo<'_>) {
    let info = here.info();
    assert_eq!(info.importers, 1);
    let expected = match Topology::current().has_route() {
        true => (P2PGPU_PLACEMENT_VRAM, PAGES as u32, 0),
        false => (P2PGPU_PLACEMENT_SYSTEM, 0, 1),
    };
    let found = (info.placement, info.peer_slots, info.fall_backs);
    assert_eq!(found, expected, "placement, slots, times that it fell back");
}

fn source() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    assert_eq!(shared.here.bo.info().importers, 1);
    assert_eq!(shared.here.bo.info().peer_maps, 0, "nobody has touched it");
    let local = rig.gpu[1].create(shared.there.size, Placement::Vram);
    must(
        shared.there.__copy_to(&local, local.size),
        format_args!("GEM_COPY"),
    );
    local.assert_holds(Pattern(1));
    assert_where(&shared.here.bo);
    // Copying again needs no other mapping.
    let maps = |bo: &Bo<'_>| bo.info().peer_maps + bo.info().system_maps;
    let before = maps(&shared.here.bo);
    assert_eq!(
        shared.there.checksum(0, local.size),
        local.checksum(0, local.size)
    );
    assert_eq!(maps(&shared.here.bo), before);
    drop(shared.there);
    let info = shared.here.bo.info();
    assert_eq!((info.importers, info.peer_slots), (0, 0));
}

fn target() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    shared.assert_copies(Pattern(1));
    assert_where(&shared.here.bo);
    // CPUs see the same, from both sides.
    let (here, there) = (shared.here.bo.map(), shared.there.map());
    assert_eq!(here.load(8), Pattern(2).word(1));
    there.store(8, 5);
    assert_eq!(here.load(8), 5);
}

fn moves() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    let map = shared.there.map();
    for step in 0..6 {
        shared.assert_copies(Pattern(1 + step));
        assert_eq!(map.load(16), Pattern(2 + step).word(2));
        let placement = match step % 2 {
            0 => Placement::System,
            _ => Placement::Vram,
        };
        shared.here.bo.move_to(placement);
        assert_eq!(shared.here.bo.info().peer_slots, 0, "it has let go");
        assert_eq!(map.load(24), Pattern(2 + step).word(3));
    }
    assert!(shared.here.bo.info().invalidations > 0);
}

fn moves_during_copies() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    let stop = AtomicBool::new(false);
    let (here, there) = (&shared.here.bo, &shared.there);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let local = rig.gpu[1].create(there.size, Placement::Vram);
            let expected = here.checksum(0, here.size);
            while !stop.load(Ordering::Relaxed) {
                let copied = there.__copy_to(&local, local.size);
                must(copied, format_args!("GEM_COPY"));
                assert_eq!(local.checksum(0, local.size), expected);
                assert_eq!(there.checksum(0, there.size), expected);
            }
        });
        let moved: Result<(), Errno> = (0..8)
            .try_for_each(|step| here.__move_to([Placement::System, Placement::Vram][step % 2]));
        // Before anything can fail: the scope waits for the worker.
        stop.store(true, Ordering::Relaxed);
        assert!(worker.join().is_ok());
        must(moved, format_args!("GEM_MOVE"));
    });
    here.assert_holds(Pattern(1));
}

fn moves_under_a_copy() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    let dmabuf = DmaBuf(shared.here.bo.export());
    let local = rig.gpu[1].create(shared.there.size, Placement::Vram);
    local.fill(Pattern(2));
    // It is mapped before, which may have moved it already.
    shared.there.checksum(0, 8);
    let target = match Topology::current().has_route() {
        true => Placement::System,
        false => Placement::Vram,
    };
    let stalled = Stalled::new("gpu1");
    thread::scope(|scope| {
        let copy = scope.spawn(|| local.__copy_to(&shared.there, local.size));
        wait_until("the copy is under way", || !dmabuf.is_ready(Access::Read));
        let migration = scope.spawn(|| shared.here.bo.__move_to(target));
        thread::sleep(Duration::from_millis(20));
        assert!(!copy.is_finished(), "the engine did not stall");
        assert!(
            !migration.is_finished(),
            "it moved under the engine's hands"
        );
        drop(stalled);
        assert_eq!(copy.join().ok(), Some(Ok(())));
        assert_eq!(migration.join().ok(), Some(Ok(())));
    });
    shared.here.bo.assert_holds(Pattern(2));
    assert_eq!(shared.here.bo.info().placement, target as u32);
}

fn read_only() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    shared
        .here
        .bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    let local = rig.gpu[1].create(shared.there.size, Placement::Vram);
    for _ in 0..2 {
        must(
            shared.there.__copy_to(&local, local.size),
            format_args!("GEM_COPY from what is read-only"),
        );
        local.assert_holds(Pattern(1));
        let written = local.__copy_to(&shared.there, local.size);
        refused(written, Errno::EACCES);
    }
    shared.here.bo.set_peer(P2PGPU_PEER_EXPORTABLE);
    shared.assert_copies(Pattern(1));
}

fn unflagged() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    shared.assert_copies(Pattern(1));
    shared.here.bo.set_exportable(false);
    refused(shared.there.__checksum(0, 8), Errno::EPERM);
    refused(
        rig.gpu[1].reopen().__import(shared.here.fd.as_raw_fd()),
        Errno::EPERM,
    );
    shared.here.bo.set_exportable(true);
    shared.assert_copies(Pattern(2));

    // One that is strict is not moved for the sake of a GPU without a route.
    let strict = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    shared.here.bo.set_peer(strict);
    shared.here.bo.move_to(Placement::Vram);
    let read = shared.there.__checksum(0, 8);
    match Topology::current().has_route() {
        true => assert!(read.is_ok(), "{read:?}"),
        false => refused(read, Errno::EXDEV),
    }
}

fn ranges() {
    let rig = Rig::open();
    let here = rig.export(0, PAGES * rig.gpu[0].page, Placement::Vram);
    here.bo.fill(Pattern(1));
    let half = PAGES / 2;
    let size = half * rig.gpu[0].page;
    let import = |pages| rig.gpu[1].import(&here.bo.export_range(pages));
    let (first, second) = (import(0..half), import(half..PAGES));
    assert_eq!((first.size, second.size), (size, size));
    assert_eq!(second.checksum(0, size), here.bo.checksum(size, size));
    // Both have one reservation lock.
    must(second.__copy_to(&first, size), format_args!("GEM_COPY"));
    assert_eq!(here.bo.checksum(0, size), here.bo.checksum(size, size));
    assert_eq!(second.map().load(0), Pattern(1).word(size / 8));
    // Of its own device, a range is no object.
    let own = here.bo.export_range(0..1);
    refused(rig.gpu[0].__import(own.as_raw_fd()), Errno::EINVAL);
}

fn there_and_back() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    let handed_on = shared.there.export();
    let home = rig.gpu[0].import(&handed_on);
    assert_eq!(home.handle, shared.here.bo.handle);
    home.into_handle();
    assert_eq!(shared.here.bo.info().importers, 1);
}

fn slots_are_lent() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    shared.assert_copies(Pattern(1));
    // A promise of all other slots leaves none to lend.
    let gpu = &rig.gpu[0];
    let all = gpu.create(gpu.aperture(), Placement::Vram);
    all.set_peer(RESERVED);
    assert_eq!(shared.here.bo.info().peer_slots, 0);
    // The object falls back to system memory.
    shared.assert_copies(Pattern(2));
    assert_eq!(shared.here.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
}
