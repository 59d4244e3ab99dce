// SPDX-License-Identifier: GPL-2.0
//! What an importer has undone and maps again: the exporter may have kept it ready,
//! which must make no difference but to the time that it takes.

use crate::rules::assert_comes_back;
use crate::{PAGE, Place, assert_place, assert_reads, device, place_of_peers, require_route};
use nix::errno::Errno;
use p2pguest::binding::Unbound;
use p2pguest::gpu::Placement;
use p2pguest::importer::{Attach, Direction, Importer, Kind};
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::{Exported, RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;

/// An exported object of GPU 1 with a pattern, and an importer of it that has mapped and
/// unmapped it.
#[track_caller]
fn kept(rig: &Rig, pages: u64, pattern: Pattern) -> (Exported<'_>, Importer) {
    let exported = rig.export(1, pages * PAGE, Placement::Vram);
    exported.bo.fill(pattern);
    let importer = Importer::attach(&exported.fd, Attach::peer(device(rig)));
    once(&importer, pattern);
    (exported, importer)
}

/// Maps, reads and unmaps.
#[track_caller]
fn once(importer: &Importer, pattern: Pattern) {
    let index = importer.map(Direction::Both);
    assert_reads(importer, index, pattern);
    importer.unmap(index);
}

pub fn kept_comes_back() {
    let rig = Rig::open();
    let (exported, importer) = kept(&rig, 8, Pattern(1));
    let ranges = |index| {
        let ranges = importer.ranges(index);
        ranges
            .iter()
            .map(|r| (r.physical, r.size))
            .collect::<Vec<_>>()
    };
    let first = importer.map(Direction::Both);
    let (before, info) = (ranges(first), exported.bo.info());
    let held = match place_of_peers() {
        Place::Aperture => 8,
        Place::Memory => 0,
    };
    importer.unmap(first);
    for round in 1..=3 {
        let index = importer.map(Direction::Both);
        assert_eq!(ranges(index), before);
        assert_place(&rig, &importer, index, place_of_peers(), 8 * PAGE);
        let now = exported.bo.info();
        assert_eq!(now.peer_slots, held);
        assert_eq!(
            now.peer_maps + now.system_maps,
            info.peer_maps + info.system_maps + round
        );
        importer.unmap(index);
        assert_eq!(exported.bo.info().peer_slots, 0);
    }
}

pub fn kept_in_each_direction() {
    let rig = Rig::open();
    let (_exported, importer) = kept(&rig, 4, Pattern(2));
    for direction in Direction::ALL.into_iter().chain(Direction::ALL) {
        let reads = |index| match direction {
            // Behind an IOMMU it cannot.
            Direction::FromDevice => {}
            Direction::Both | Direction::ToDevice => assert_reads(&importer, index, Pattern(2)),
        };
        let index = importer.map(direction);
        reads(index);
        // Another one while the first is there, and then the one that was given back.
        importer.map(direction);
        importer.unmap(index);
        importer.map(direction);
        for left in [1, 0] {
            reads(left);
            importer.unmap(left);
        }
    }
}

pub fn kept_obeys_the_flags() {
    let rig = Rig::open();
    let (exported, importer) = kept(&rig, 4, Pattern(3));
    let bo = &exported.bo;
    bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    refused(importer.__map(Direction::Both), Errno::EACCES);
    refused(importer.__map(Direction::FromDevice), Errno::EACCES);
    let index = importer.map(Direction::ToDevice);
    assert_reads(&importer, index, Pattern(3));
    importer.unmap(index);
    bo.set_peer(0);
    refused(importer.__map(Direction::ToDevice), Errno::EPERM);
    bo.set_exportable(true);
    once(&importer, Pattern(3));
}

pub fn kept_obeys_the_policy() {
    let rig = Rig::open();
    let (_exported, importer) = kept(&rig, 4, Pattern(4));
    let policy = Setting::new(rig.gpu[1].pci(), "peer_policy");
    policy.write(&format!("deny pci {}", device(&rig)));
    refused(importer.__map(Direction::Both), Errno::EPERM);
    policy.write("default allow");
    once(&importer, Pattern(4));
}

pub fn kept_keeps_no_vram() {
    let rig = Rig::open();
    require_route();
    let free = || rig.gpu[1].param(P2PGPU_PARAM_VRAM_FREE);
    let (exported, importer) = kept(&rig, 64, Pattern(5));
    let there = free();
    exported.bo.move_to(Placement::System);
    assert_eq!(free(), there + 64 * PAGE);
    let index = importer.map(Direction::Both);
    assert_place(&rig, &importer, index, Place::Memory, 64 * PAGE);
    assert_reads(&importer, index, Pattern(5));
    importer.unmap(index);
    exported.bo.move_to(Placement::Vram);
    assert_eq!(free(), there);
    once(&importer, Pattern(5));
}

pub fn kept_keeps_no_slots() {
    let rig = Rig::open();
    require_route();
    let (exported, importer) = kept(&rig, 64, Pattern(6));
    let slots = rig.gpu[1].aperture() / PAGE;
    let answer = exported.bo.query(device(&rig));
    assert_eq!(answer.slots_reserved + answer.slots_pinned, 0);
    assert_eq!(
        u64::from(answer.slots_free + answer.slots_reclaimable) + 64,
        slots,
        "all but the object's own"
    );
    {
        let (_all, peer) = kept(&rig, slots, Pattern(7));
        let index = peer.map(Direction::Both);
        assert_place(&rig, &peer, index, Place::Aperture, slots * PAGE);
        assert_reads(&peer, index, Pattern(7));
        // A promise takes them from who holds them, and from who has just given them back.
        exported.bo.set_peer(RESERVED);
        once(&importer, Pattern(6));
    }
    exported.bo.set_exportable(true);
    once(&importer, Pattern(6));
}

pub fn kept_by_several() {
    let rig = Rig::open();
    let (exported, first) = kept(&rig, 8, Pattern(8));
    let second = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    once(&second, Pattern(8));
    // Both have had the same: whoever comes first has it, the other another.
    for _ in 0..3 {
        let indices = [&first, &second].map(|importer| importer.map(Direction::Both));
        for (importer, index) in [&first, &second].into_iter().zip(indices) {
            assert_place(&rig, importer, index, place_of_peers(), 8 * PAGE);
            importer.unmap(index);
            once(importer, Pattern(8));
        }
    }
    let index = second.map(Direction::Both);
    drop(first);
    exported.bo.move_to(Placement::System);
    assert_eq!(
        second.info().invalidations,
        u32::from(place_of_peers() == Place::Aperture)
    );
    let _ = second.__unmap(index);
    once(&second, Pattern(8));
}

/// More than are kept at a time.
const MANY: u32 = 24;

pub fn kept_of_many() {
    let rig = Rig::open();
    let all: Vec<_> = (0..MANY)
        .map(|n| kept(&rig, 4, Pattern(n.into())))
        .collect();
    for _ in 0..3 {
        for (n, (_, importer)) in (0..).zip(&all) {
            once(importer, Pattern(n));
        }
        let held: Vec<_> = all.iter().map(|(_, i)| i.map(Direction::Both)).collect();
        for (n, ((_, importer), index)) in (0..).zip(all.iter().zip(held)) {
            assert_reads(importer, index, Pattern(n));
            importer.unmap(index);
        }
    }
    for (n, (exported, importer)) in (0..).zip(&all) {
        exported.bo.move_to(Placement::System);
        exported.bo.move_to(Placement::Vram);
        once(importer, Pattern(n));
    }
}

pub fn kept_while_pinned() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(9));
    let deaf = Importer::attach(&exported.fd, Attach::peer(device(&rig)).kind(Kind::Deaf));
    refused(deaf.__map(Direction::Both), Errno::EOPNOTSUPP);
    deaf.pin();
    once(&deaf, Pattern(9));
    once(&deaf, Pattern(9));
    deaf.unpin();
    refused(deaf.__map(Direction::Both), Errno::EOPNOTSUPP);
    deaf.pin();
    once(&deaf, Pattern(9));
}

pub fn kept_ends_with_the_device() {
    let rig = Rig::open();
    let (exported, importer) = kept(&rig, 4, Pattern(10));
    let pci = rig.gpu[1].pci();
    let unbound = Unbound::new("p2pgpu", pci);
    refused(importer.__map(Direction::Both), Errno::ENODEV);
    drop((importer, exported));
    drop(rig);
    drop(unbound);
    assert_comes_back(pci);
}
