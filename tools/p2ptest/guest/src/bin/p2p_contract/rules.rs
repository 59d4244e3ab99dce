// SPDX-License-Identifier: GPL-2.0
//! The rules, one by one.

use crate::{
    PAGE, Place, assert_place, assert_reads, device, place_of_peers, place_without_move,
    require_route,
};
use nix::errno::Errno;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::importer::{Answer, Attach, Direction, Importer, Kind};
use p2pguest::map::Mapping;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::Rig;
use p2pguest::stray::{self, Stray};
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How long a late importer takes: the exporter has long gone on by then, or waits.
const LATE_MS: u32 = 300;
/// Long enough for who does not wait to be through.
const MOMENT: Duration = Duration::from_millis(300);

/// Asserts that a thread does not end by itself, and that what it must not change stays so.
/// One that is slow to end goes unnoticed, but one that waits never fails here.
#[track_caller]
fn assert_waits<T>(thread: &ScopedJoinHandle<'_, T>, unchanged: impl Fn() -> bool) {
    let start = Instant::now();
    while start.elapsed() < MOMENT {
        assert!(!thread.is_finished(), "it did not wait");
        assert!(unchanged(), "it did not wait with everything");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn rule_1_pin_and_unpin() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    let pins = || exported.bo.info().pins;
    let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    refused(importer.__unpin(), Errno::EINVAL);
    for count in 1..=3 {
        importer.pin();
        assert_eq!(pins(), count);
    }
    importer.unpin();
    assert_eq!(pins(), 2);
    // What is left goes with the importer.
    drop(importer);
    assert_eq!(pins(), 0);
    exported.bo.move_to(Placement::System);
    exported.bo.move_to(Placement::Vram);
}

pub fn rule_1_release() {
    let rig = Rig::open();
    let free = || rig.gpu[1].param(P2PGPU_PARAM_VRAM_FREE);
    let before = free();
    let exported = rig.export(1, 64 * PAGE, Placement::Vram);
    let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    importer.map(Direction::Both);
    let (bo, fd) = (exported.bo, exported.fd);
    drop(bo);
    drop(fd);
    if place_of_peers() == Place::Aperture {
        assert_eq!(free(), before - 64 * PAGE, "the importer keeps it");
    }
    importer.detach();
    assert_eq!(free(), before);
}

pub fn rule_2_told_with_the_lock_held() {
    let rig = Rig::open();
    for answer in [Answer::Unmap, Answer::Keep] {
        let exported = rig.export(1, 4 * PAGE, place_without_move());
        let how = Attach::peer(device(&rig)).answer(answer, 0);
        let importer = Importer::attach(&exported.fd, how);
        let told = || (importer.info().invalidations, importer.info().unlocked);
        round_trip(&exported.bo);
        assert_eq!(told(), (0, 0), "without a mapping");
        for round in 1..=3 {
            importer.map(Direction::Both);
            exported.bo.move_to(elsewhere(&exported.bo));
            assert_eq!(told(), (round, 0), "after a move");
            exported.bo.move_to(elsewhere(&exported.bo));
            assert_eq!(told(), (round, 0), "it knows already");
            if answer == Answer::Keep {
                importer.unmap(0);
            }
            assert_eq!(importer.info().mappings, 0);
        }
    }
}

/// Where the object is not.
fn elsewhere(bo: &Bo<'_>) -> Placement {
    match bo.info().placement {
        P2PGPU_PLACEMENT_VRAM => Placement::System,
        _ => Placement::Vram,
    }
}

fn round_trip(bo: &Bo<'_>) {
    for _ in 0..2 {
        bo.move_to(elsewhere(bo));
    }
}

pub fn rule_2_locks_do_not_meet() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(2));
    let map = exported.bo.map();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let importers = [
            Attach::peer(device(&rig)),
            Attach::peer(rig.nic[0].pci()),
            Attach::peer(device(&rig)).kind(Kind::Static),
        ];
        let threads = importers.map(|how| {
            let (fd, stop) = (&exported.fd, &stop);
            scope.spawn(move || {
                let importer = Importer::attach(fd, how);
                loop {
                    importer.map(Direction::Both);
                    // It may be gone already.
                    let _ = importer.__unmap(0);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                assert_eq!(importer.info().unlocked, 0);
            })
        });
        for round in 0..30 {
            // A static importer may have it pinned just now.
            match exported.bo.__move_to(Placement::ALL[round % 2]) {
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(errno) => panic!("GEM_MOVE: {errno}"),
            }
            assert_eq!(map.load(0), Pattern(2).word(0));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("an importer's thread");
        }
    });
    exported.bo.assert_holds(Pattern(2));
    assert_eq!(exported.bo.info().pins, 0);
}

pub fn rule_3_map_decides_again() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    let how = Attach::peer(device(&rig));
    let importer = Importer::attach(&exported.fd, how);
    exported.bo.set_exportable(false);
    refused(Importer::__attach(&exported.fd, how), Errno::EPERM);
    refused(importer.__map(Direction::Both), Errno::EPERM);
    refused(importer.__pin(), Errno::EPERM);
    assert_eq!(exported.bo.info().importers, 1);
    exported.bo.set_exportable(true);

    // Attached before the moves, it gets each time what is right then.
    for placement in [Placement::Vram, Placement::System, Placement::Vram] {
        exported.bo.move_to(placement);
        let index = importer.map(Direction::Both);
        let place = match placement {
            Placement::Vram => place_of_peers(),
            Placement::System => Place::Memory,
        };
        assert_place(&rig, &importer, index, place, 4 * PAGE);
        importer.unmap(index);
    }
}

pub fn rule_4_static_gets_system_memory() {
    let rig = Rig::open();
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    let bo = &exported.bo;
    bo.fill(Pattern(4));
    let how = Attach::peer(device(&rig)).kind(Kind::Static);
    let importer = Importer::attach(&exported.fd, how);
    assert_eq!(importer.info().is_peer, 0);
    refused(importer.__pin(), Errno::EINVAL);
    assert_eq!(bo.info().placement, P2PGPU_PLACEMENT_VRAM, "attached only");

    let index = importer.map(Direction::ToDevice);
    let info = bo.info();
    assert_eq!(info.placement, P2PGPU_PLACEMENT_SYSTEM);
    assert_eq!((info.pins, info.system_maps, info.peer_maps), (1, 1, 0));
    assert_place(&rig, &importer, index, Place::Memory, 16 * PAGE);
    assert_reads(&importer, index, Pattern(4));
    refused(bo.__move_to(Placement::Vram), Errno::EBUSY);
    assert_reads(&importer, index, Pattern(4));
    importer.unmap(index);
    assert_eq!(bo.info().pins, 0);
    bo.move_to(Placement::Vram);
    bo.assert_holds(Pattern(4));
}

pub fn rule_5_deaf_importer_must_pin() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(5));
    for how in [
        Attach::peer(device(&rig)),
        Attach::peer(device(&rig)).no_peer(),
    ] {
        let importer = Importer::attach(&exported.fd, how.kind(Kind::Deaf));
        refused(importer.__map(Direction::Both), Errno::EOPNOTSUPP);
        assert_eq!(importer.info().mappings, 0);
        importer.pin();
        let index = importer.map(Direction::Both);
        assert_reads(&importer, index, Pattern(5));
        refused(exported.bo.__move_to(elsewhere(&exported.bo)), Errno::EBUSY);
        assert_reads(&importer, index, Pattern(5));
        importer.unmap(index);
        importer.unpin();
        refused(importer.__map(Direction::Both), Errno::EOPNOTSUPP);
        exported.bo.move_to(Placement::Vram);
    }
}

pub fn rule_6_pin_is_never_busy() {
    require_route();
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    let peer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    peer.pin();
    // These need it in system memory, where it cannot go now. The core warns of EBUSY.
    let no_peer = Attach::peer(device(&rig)).no_peer();
    let other = Importer::attach(&exported.fd, no_peer);
    refused(other.__pin(), Errno::ENOSPC);
    let old = Importer::attach(&exported.fd, no_peer.kind(Kind::Static));
    refused(old.__map(Direction::Both), Errno::ENOSPC);
    assert_eq!(exported.bo.info().pins, 1);
    peer.unpin();
    other.pin();
    old.map(Direction::Both);
    assert_eq!(exported.bo.info().pins, 2);
}

pub fn rule_6_pin_suits_all_who_are_attached() {
    require_route();
    let rig = Rig::open();
    let peer = Attach::peer(device(&rig));
    for (other, expected) in [
        (peer, P2PGPU_PLACEMENT_VRAM),
        (peer.no_peer(), P2PGPU_PLACEMENT_SYSTEM),
        (peer.kind(Kind::Static), P2PGPU_PLACEMENT_SYSTEM),
    ] {
        let exported = rig.export(1, 4 * PAGE, Placement::Vram);
        let placement = || exported.bo.info().placement;
        let importer = Importer::attach(&exported.fd, peer);
        let beside = Importer::attach(&exported.fd, other);
        importer.pin();
        assert_eq!(placement(), expected, "beside {other:?}");
        importer.unpin();
        beside.detach();
        exported.bo.move_to(Placement::Vram);
        importer.pin();
        assert_eq!(placement(), P2PGPU_PLACEMENT_VRAM, "alone");
        // Who comes when it is pinned does not change that.
        let _late = Importer::attach(&exported.fd, other);
        importer.pin();
        assert_eq!(placement(), P2PGPU_PLACEMENT_VRAM);
    }
}

pub fn rule_6_pin_ends_moves() {
    let rig = Rig::open();
    let size = rig.bulk_size();
    for round in 0..5 {
        let exported = rig.export(1, size, Placement::Vram);
        exported.bo.fill(Pattern(round));
        let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)).no_peer());
        importer.pin();
        assert_eq!(exported.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
        let index = importer.map(Direction::ToDevice);
        assert_reads(&importer, index, Pattern(round));
    }
}

pub fn rule_7_tables_are_fresh() {
    let rig = Rig::open();
    let exported = rig.export(1, 8 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(7));
    let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    for (count, direction) in (0..).zip(Direction::ALL) {
        assert_eq!(importer.map(direction), count);
        assert_place(&rig, &importer, count, place_of_peers(), 8 * PAGE);
    }
    let info = exported.bo.info();
    assert_eq!(info.peer_maps + info.system_maps, 3);
    // One goes, neither the oldest nor the newest; the others are as they were.
    let others = [importer.ranges(0), importer.ranges(2)];
    importer.unmap(1);
    assert_eq!([importer.ranges(0), importer.ranges(1)], others);
    // The other one is for writing only.
    assert_reads(&importer, 0, Pattern(7));
    importer.unmap(1);
    assert_eq!(importer.ranges(0), others[0]);
    assert_reads(&importer, 0, Pattern(7));
    if place_of_peers() == Place::Aperture {
        assert_eq!(exported.bo.info().peer_slots, 8, "the last one holds them");
    }
    importer.unmap(0);
    assert_eq!(exported.bo.info().peer_slots, 0);
    refused(importer.__unmap(0), Errno::ENOENT);
}

pub fn rule_8_nothing_is_reused_before_the_unmap() {
    require_route();
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(8));
    let how = Attach::peer(device(&rig)).answer(Answer::Keep, 0);
    let importer = Importer::attach(&exported.fd, how);
    let index = importer.map(Direction::Both);
    let ranges = importer.ranges(index);

    exported.bo.move_to(Placement::System);
    let available = || gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
    assert_eq!(available(), gpu.slots - 16);
    let draining = || gpu.param(P2PGPU_PARAM_SLOTS_DRAINING);
    assert_eq!(draining(), 16, "its slots drain");
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free - 16 * PAGE);
    // Somebody else takes every slot that can be had; whatever the importer still
    // writes harms nobody, and the device logs no fault.
    let other = gpu.create(gpu.aperture(), Placement::Vram);
    let map = other.map();
    for page in 0..other.pages() {
        map.store((page * PAGE) as usize, page);
    }
    for range in &ranges {
        assert!(matches!(
            stray::write(1, range.dma, &[0xff; 64]),
            Stray::Peer(_)
        ));
    }
    for page in 0..other.pages() {
        assert_eq!(map.load((page * PAGE) as usize), page, "page {page}");
    }
    exported.bo.assert_holds(Pattern(8));

    importer.unmap(index);
    assert_eq!((available(), draining()), (gpu.slots, 0));
    drop((map, other));
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free);
}

pub fn rule_8_moves_wait_for_accesses() {
    let rig = Rig::open();
    for round in 0..3 {
        let exported = rig.export(1, 4 * PAGE, Placement::Vram);
        let how = Attach::peer(device(&rig)).answer(Answer::UnmapLater, LATE_MS);
        let importer = Importer::attach(&exported.fd, how);
        importer.map(Direction::Both);
        importer.start_access();
        exported.bo.move_to(elsewhere(&exported.bo));
        assert_eq!(
            importer.info().accesses,
            1,
            "round {round}: one is under way"
        );
    }
}

pub fn rule_8_unmaps_wait_for_accesses() {
    require_route();
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    for moved in [false, true] {
        let exported = rig.export(1, 16 * PAGE, Placement::Vram);
        let keeps = Attach::peer(device(&rig)).answer(Answer::Keep, 0);
        let importer = Importer::attach(&exported.fd, keeps);
        importer.map(Direction::Both);
        if moved {
            exported.bo.move_to(Placement::System);
        }
        let state = match moved {
            false => P2PGPU_PARAM_SLOTS_LENT,
            true => P2PGPU_PARAM_SLOTS_DRAINING,
        };
        let slots = || gpu.param(state);
        assert_eq!(slots(), 16);
        // Its accesses outlast its mapping, as far as the exporter can tell.
        let busy = Importer::attach(&exported.fd, keeps);
        busy.start_access();
        thread::scope(|scope| {
            let unmap = scope.spawn(|| importer.unmap(0));
            assert_waits(&unmap, || slots() == 16);
            busy.detach();
            unmap.join().expect("the unmap's thread");
        });
        assert_eq!(slots(), 0);
    }
}

pub fn rule_8_all_are_told_before_any_is_waited_for() {
    require_route();
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    for round in 1..=3 {
        let exported = rig.export(1, 16 * PAGE, Placement::Vram);
        let obeys = Attach::peer(device(&rig)).answer(Answer::Unmap, 0);
        let first = Importer::attach(&exported.fd, obeys);
        first.map(Direction::Both);
        // Its access ends when it is told, after the first has been told and has unmapped.
        let second = Importer::attach(&exported.fd, obeys);
        second.map(Direction::Both);
        second.start_access();
        exported.bo.move_to(Placement::System);
        assert_eq!(second.info().accesses, 1, "round {round}");
        let available = gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
        assert_eq!(available, gpu.slots, "slots got lost in round {round}");
    }
}

pub fn rule_9_pinned_is_not_told() {
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(9));
    let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    importer.pin();
    let index = importer.map(Direction::Both);
    let ranges = importer.ranges(index);
    refused(exported.bo.__move_to(elsewhere(&exported.bo)), Errno::EBUSY);
    // Processors want all the slots.
    let other = gpu.create(gpu.aperture(), Placement::Vram);
    let map = other.map();
    for page in 0..other.pages() {
        map.load((page * PAGE) as usize);
    }
    assert_eq!(importer.info().invalidations, 0);
    assert_eq!(importer.ranges(index), ranges);
    assert_reads(&importer, index, Pattern(9));
    importer.unpin();
    exported.bo.move_to(elsewhere(&exported.bo));
    assert_eq!(importer.info().invalidations, 1, "not pinned any more");
}

pub fn rule_10_dma_buf_mappings_follow() {
    let rig = Rig::open();
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    let len = 16 * PAGE as usize;
    let by_fd = must(
        Mapping::__new(&exported.fd, 0, len),
        format_args!("mmap of the dma-buf"),
    );
    let by_handle = exported.bo.map();
    let mut expected = Pattern(10).bytes(0, len);
    by_fd.write(0, &expected);
    for round in 0..6 {
        round_trip_half(&exported.bo, round);
        let mut found = vec![0; len];
        by_fd.read(0, &mut found);
        assert_same(&found, &expected, &format!("by the dma-buf, round {round}"));
        let at = round * 8000;
        expected[at..at + 100].fill(round as u8);
        by_fd.write(at, &[round as u8; 100]);
        by_handle.read(0, &mut found);
        assert_same(&found, &expected, &format!("by the handle, round {round}"));
    }
    assert_eq!(exported.bo.download(0, len), expected);
}

fn round_trip_half(bo: &Bo<'_>, round: usize) {
    bo.move_to(Placement::ALL[round % 2]);
}

pub fn rule_10_self_import() {
    let rig = Rig::open();
    let exported = rig.export(1, PAGE, Placement::Vram);
    let again = rig.gpu[1].import(&exported.fd);
    assert_eq!(again.handle, exported.bo.handle);
    assert_eq!(exported.bo.info().importers, 0);
    // The two share one handle, which one of them closes.
    again.into_handle();
}

/// The GPU at this address, bound anew, works.
#[track_caller]
pub fn assert_comes_back(pci: PciAddress) {
    wait_until("the GPU comes back", || gpu_is_there(pci));
    let gpu = Gpu::open(1);
    assert_eq!(gpu.pci(), pci);
    let bo = gpu.create(4 * PAGE, Placement::Vram);
    bo.fill(Pattern(11));
    bo.assert_holds(Pattern(11));
}

pub fn rule_11_unbind_revokes() {
    let rig = Rig::open();
    let pci = rig.gpu[1].pci();
    let objects = [16, 4, 4].map(|pages| rig.export(1, pages * PAGE, Placement::Vram));
    let prompt = Attach::peer(device(&rig));
    let late = prompt.answer(Answer::UnmapLater, LATE_MS);
    let importers = [(0, prompt), (0, prompt), (1, late), (2, late.no_peer())];
    let importers = importers.map(|(object, how)| {
        let importer = Importer::attach(&objects[object].fd, how);
        importer.map(Direction::Both);
        importer
    });
    importers[1].pin();
    importers[2].start_access();

    let unbound = Unbound::new("p2pgpu", pci);
    for importer in &importers {
        let info = importer.info();
        assert_eq!(info.invalidations, 1, "{info:?}");
        assert_eq!(info.mappings, 0, "unbinding did not wait: {info:?}");
        refused(importer.__map(Direction::Both), Errno::ENODEV);
        refused(importer.__pin(), Errno::ENODEV);
    }
    assert_eq!(importers[2].info().accesses, 1);
    refused(Importer::__attach(&objects[0].fd, prompt), Errno::ENODEV);
    drop((importers, objects));
    drop(rig);
    drop(unbound);
    assert_comes_back(pci);
}

/// What an importer does not let go of at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// A mapping
    Mapping,
    /// An access, without a mapping
    Access,
}

pub fn rule_11_unbind_waits() {
    for kept in [Kept::Mapping, Kept::Access] {
        let rig = Rig::open();
        let pci = rig.gpu[1].pci();
        let exported = rig.export(1, 4 * PAGE, Placement::Vram);
        let keeps = Attach::peer(device(&rig)).answer(Answer::Keep, 0);
        let importer = Importer::attach(&exported.fd, keeps);
        match kept {
            Kept::Mapping => assert_eq!(importer.map(Direction::Both), 0),
            Kept::Access => importer.start_access(),
        }
        let unbound = thread::scope(|scope| {
            let unbind = scope.spawn(|| Unbound::new("p2pgpu", pci));
            // From now on nobody is given anything, though the device is there yet.
            wait_until("importers are refused", || {
                Importer::__attach(&exported.fd, keeps).is_err_and(|e| e == Errno::ENODEV)
            });
            refused(importer.__map(Direction::Both), Errno::ENODEV);
            assert_waits(&unbind, || gpu_is_there(pci));
            match kept {
                Kept::Mapping => importer.unmap(0),
                Kept::Access => importer.detach(),
            }
            unbind.join().expect("the thread that unbinds")
        });
        drop((importer, exported));
        drop(rig);
        drop(unbound);
        assert_comes_back(pci);
    }
}

pub fn rule_12_route_decides() {
    let rig = Rig::open();
    let devices = [rig.nic[0].pci(), rig.nic[1].pci(), rig.gpu[0].pci()];
    for device in devices {
        let exported = rig.export(1, 4 * PAGE, Placement::Vram);
        let promised = exported.bo.query(device).verdict == P2PGPU_PEER_YES;
        assert_eq!(promised, place_of_peers() == Place::Aperture, "{device}");
        let importer = Importer::attach(&exported.fd, Attach::peer(device));
        let index = importer.map(Direction::Both);
        let info = exported.bo.info();
        let maps = if promised { (1, 0) } else { (0, 1) };
        assert_eq!((info.peer_maps, info.system_maps), maps, "{device}");
        assert_place(&rig, &importer, index, place_of_peers(), 4 * PAGE);
    }
}
