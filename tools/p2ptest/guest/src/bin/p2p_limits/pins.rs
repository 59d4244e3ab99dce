// SPDX-License-Identifier: GPL-2.0
//! Pinned objects: their limits, and what they are promised; importers that are
//! no peers, or let go late.

use crate::{assert_refused, exported, open, peer};
use nix::errno::Errno;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::igt;
use p2pguest::importer::{Answer, Direction, Importer};
use p2pguest::refused;
use p2pguest::rig::{Exported, RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;

/// A limit of GPU 0, set to so many slots.
#[track_caller]
fn limit(gpu: &Gpu, name: &str, slots: u64) -> Setting {
    let limit = Setting::new(gpu.pci(), name);
    limit.write(&slots.to_string());
    limit
}

/// Exported objects of these sizes, each with an importer.
#[track_caller]
fn imported<const N: usize>(rig: &Rig, sizes: [u64; N]) -> [(Importer, Exported<'_>); N] {
    sizes.map(|pages| {
        let exported = exported(rig, pages);
        (Importer::attach(&exported.fd, peer(rig)), exported)
    })
}

#[track_caller]
fn pinned(gpu: &Gpu) -> u64 {
    gpu.param(P2PGPU_PARAM_SLOTS_PINNED)
}

pub fn pins_of_a_process() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _limit = limit(gpu, "pin_limit_process", 10);
    let [six, five, four] = imported(&rig, [6, 5, 4]);
    six.0.pin();
    assert_refused(gpu, "pin_limit", || five.0.__pin());
    assert_eq!((five.1.bo.info().pins, pinned(gpu)), (0, 6));
    four.0.pin();
    assert_eq!(pinned(gpu), 10);
    igt::fork(|| {
        // Objects of its own, though of the same file.
        let [ten] = imported(&rig, [10]);
        ten.0.pin();
        assert_eq!(pinned(gpu), 20);
        ten.0.detach();
        ten.1.bo.close();
    })
    .join();
    six.0.unpin();
    five.0.pin();
    assert_eq!(pinned(gpu), 9);
}

pub fn pins_of_all() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _limit = limit(gpu, "pin_limit", 10);
    let [six] = imported(&rig, [6]);
    six.0.pin();
    igt::fork(|| {
        let [five, four] = imported(&rig, [5, 4]);
        assert_refused(gpu, "pin_limit", || five.0.__pin());
        four.0.pin();
        assert_eq!(pinned(gpu), 10);
        for (importer, Exported { bo, .. }) in [five, four] {
            importer.detach();
            bo.close();
        }
    })
    .join();
    six.0.detach();
    let [ten] = imported(&rig, [10]);
    ten.0.pin();
    assert_eq!(pinned(gpu), 10);
}

pub fn pins_count_once() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _limit = limit(gpu, "pin_limit_process", 10);
    let [(first, held)] = imported(&rig, [6]);
    let second = Importer::attach(&held.fd, peer(&rig));
    first.pin();
    first.pin();
    second.pin();
    assert_eq!((held.bo.info().pins, pinned(gpu)), (3, 6));
    let [five] = imported(&rig, [5]);
    for importer in [&first, &first] {
        importer.unpin();
        assert_refused(gpu, "pin_limit", || five.0.__pin());
    }
    assert_eq!(pinned(gpu), 6);
    second.unpin();
    assert_eq!(pinned(gpu), 0);
    five.0.pin();
    assert_eq!(pinned(gpu), 5);
}

pub fn pin_is_a_promise() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let half = gpu.slots / 2;
    let [(importer, held), other] = imported(&rig, [half, half + 1]);
    assert_eq!(held.bo.query(rig.nic[0].pci()).flags, 0);
    importer.pin();
    let answer = held.bo.query(rig.nic[0].pci());
    assert_eq!(
        (answer.verdict, answer.flags),
        (P2PGPU_PEER_YES, P2PGPU_PEER_QUERY_HOLDS)
    );
    assert_eq!((u64::from(answer.slots_pinned), pinned(gpu)), (half, half));
    assert_eq!(u64::from(held.bo.info().promised_slots), half);
    // Not mapped yet, the slots are kept; and mapped, too.
    for _ in 0..2 {
        other.0.map(Direction::Both);
        let info = other.1.bo.info();
        assert_eq!(info.placement, P2PGPU_PLACEMENT_SYSTEM, "it fell back");
        other.0.unmap(0);
        other.1.bo.move_to(Placement::Vram);
        assert_refused(gpu, "reservation", || other.1.bo.__set_peer(RESERVED));
        importer.map(Direction::Both);
        let info = held.bo.info();
        assert_eq!((u64::from(info.peer_slots), info.invalidations), (half, 0));
    }
    importer.unmap(0);
    importer.unmap(0);
    importer.unpin();
    other.0.map(Direction::Both);
    assert_eq!(u64::from(other.1.bo.info().peer_slots), half + 1);
}

pub fn pinned_object_stays() {
    let rig = open();
    let [(importer, held)] = imported(&rig, [4]);
    importer.pin();
    refused(held.bo.__move_to(Placement::System), Errno::EBUSY);
    refused(held.bo.__set_peer(0), Errno::EBUSY);
    let read_only = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY;
    refused(held.bo.__set_peer(read_only), Errno::EBUSY);
    let info = held.bo.info();
    assert_eq!(
        (info.placement, info.peer_flags),
        (P2PGPU_PLACEMENT_VRAM, P2PGPU_PEER_EXPORTABLE)
    );
    importer.unpin();
    held.bo.set_peer(read_only);
    held.bo.move_to(Placement::System);
    // In system memory it needs no slots.
    let _limit = limit(&rig.gpu[0], "pin_limit", 0);
    importer.pin();
    assert_eq!(pinned(&rig.gpu[0]), 0);
    refused(held.bo.__move_to(Placement::Vram), Errno::EBUSY);
}

pub fn strict_refuses_who_is_no_peer() {
    let rig = open();
    let [(importer, held)] = imported(&rig, [4]);
    let strict = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    let other = Importer::attach(&held.fd, peer(&rig).no_peer());
    held.bo.set_peer(strict);
    refused(
        Importer::__attach(&held.fd, peer(&rig).software()),
        Errno::EXDEV,
    );
    refused(other.__map(Direction::ToDevice), Errno::EXDEV);
    refused(other.__pin(), Errno::EXDEV);
    let info = held.bo.info();
    assert_eq!(
        (info.placement, info.refusals, info.fall_backs),
        (P2PGPU_PLACEMENT_VRAM, 3, 0)
    );
    importer.map(Direction::Both);
    assert_eq!(held.bo.info().peer_slots, 4);
    held.bo.set_exportable(true);
    other.map(Direction::ToDevice);
    let info = held.bo.info();
    assert_eq!(
        (info.placement, info.fall_backs),
        (P2PGPU_PLACEMENT_SYSTEM, 1)
    );
}

pub fn draining_slots_are_not_used() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let quarter = gpu.slots / 4;
    let draining = || gpu.param(P2PGPU_PARAM_SLOTS_DRAINING);
    let held = exported(&rig, quarter);
    let late = Importer::attach(&held.fd, peer(&rig).answer(Answer::Keep, 0));
    late.map(Direction::Both);
    held.bo.move_to(Placement::System);
    assert_eq!(draining(), quarter);
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), gpu.slots - quarter);
    // Neither lent nor promised, also when the object has come back.
    let [(importer, large)] = imported(&rig, [gpu.slots - quarter + 1]);
    for _ in 0..2 {
        refused(large.bo.__set_peer(RESERVED), Errno::EBUSY);
        importer.map(Direction::Both);
        assert_eq!(large.bo.info().peer_slots, 0);
        importer.unmap(0);
        large.bo.move_to(Placement::Vram);
        held.bo.move_to(Placement::Vram);
    }
    let mapped = Importer::attach(&held.fd, peer(&rig));
    mapped.map(Direction::Both);
    assert_eq!(draining(), quarter, "its new pages have other slots");
    drop(mapped);
    late.unmap(0);
    assert_eq!(draining(), 0);
    importer.map(Direction::Both);
    assert_eq!(u64::from(large.bo.info().peer_slots), large.bo.pages());
}
