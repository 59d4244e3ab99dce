// SPDX-License-Identifier: GPL-2.0
//! Reservations: when they are granted, and that they are kept.

use crate::{assert_refused, hold, maps, open, registered};
use nix::errno::Errno;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Child};
use p2pguest::refused;
use p2pguest::rig::RESERVED;
use p2pguest::sys::uapi::*;
use std::io::{self, Read, Write};
use std::thread;

/// Slots of GPU 0 that are promised to reserved objects, and lent.
#[track_caller]
fn reserved_and_lent(gpu: &Gpu) -> (u64, u64) {
    (
        gpu.param(P2PGPU_PARAM_SLOTS_RESERVED),
        gpu.param(P2PGPU_PARAM_SLOTS_LENT),
    )
}

/// An exportable object of a part of the aperture.
fn flagged(gpu: &Gpu, pages: u64) -> Bo<'_> {
    let bo = gpu.create(pages * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    bo
}

pub fn reservation_is_accounted() {
    let gpu = Gpu::open(0);
    let bo = flagged(&gpu, 100);
    assert_eq!(bo.info().promised_slots, 0);
    for _ in 0..2 {
        bo.set_peer(RESERVED);
        assert_eq!(bo.info().promised_slots, 100);
        assert_eq!(reserved_and_lent(&gpu), (100, 0));
        assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_PINNED), 0);
        assert_eq!(
            gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE),
            gpu.slots - 100,
            "they are not available to others"
        );
    }
    bo.set_exportable(true);
    assert_eq!(bo.info().promised_slots, 0);
    assert_eq!(reserved_and_lent(&gpu), (0, 0));
    bo.set_peer(RESERVED);
    bo.set_peer(0);
    assert_eq!(reserved_and_lent(&gpu), (0, 0));
    bo.set_peer(RESERVED);
    drop(bo);
    assert_eq!(reserved_and_lent(&gpu), (0, 0), "the object is gone");
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), gpu.slots);
}

pub fn reservation_too_much() {
    let gpu = Gpu::open(0);
    let most = flagged(&gpu, gpu.slots - 10);
    most.set_peer(RESERVED);
    let (more, fits) = (flagged(&gpu, 11), flagged(&gpu, 10));
    let strict = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    refused(more.__set_peer(RESERVED | strict), Errno::ENOSPC);
    assert_eq!(more.info().peer_flags, P2PGPU_PEER_EXPORTABLE);
    assert_eq!(reserved_and_lent(&gpu), (gpu.slots - 10, 0));
    fits.set_peer(RESERVED);
    assert_eq!(reserved_and_lent(&gpu), (gpu.slots, 0));
    refused(more.__set_peer(RESERVED), Errno::ENOSPC);
    drop(most);
    more.set_peer(RESERVED);
    assert_eq!(reserved_and_lent(&gpu), (21, 0));
}

pub fn reservation_too_large() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(gpu.aperture() + gpu.page, placement);
        refused(bo.__set_peer(RESERVED), Errno::ENOSPC);
        assert_eq!(bo.info().peer_flags, 0);
    }
    assert_eq!(reserved_and_lent(&gpu), (0, 0));
    flagged(&gpu, gpu.slots).set_peer(RESERVED);
}

pub fn reservation_takes_lent_slots() {
    let rig = open();
    let gpu = &rig.gpu[0];
    // The second one is mapped at the very moment.
    let (cold, warm) = (
        registered(&rig, gpu.slots / 4),
        registered(&rig, gpu.slots / 2),
    );
    hold(&rig, &cold);
    hold(&rig, &warm);
    assert_eq!(reserved_and_lent(gpu), (0, gpu.slots / 4 * 3));
    let first = flagged(gpu, gpu.slots / 2);
    first.set_peer(RESERVED);
    assert_eq!(
        reserved_and_lent(gpu),
        (gpu.slots / 2, gpu.slots / 2),
        "the coldest was enough"
    );
    assert_eq!(cold.bo.info().invalidations, 1);
    assert_eq!(warm.bo.info().invalidations, 0);
    let second = flagged(gpu, gpu.slots / 2);
    second.set_peer(RESERVED);
    assert_eq!(reserved_and_lent(gpu), (gpu.slots, 0));
    assert_eq!(warm.bo.info().invalidations, 1);
}

pub fn promised_slots_are_not_lent() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let reserved = registered(&rig, gpu.slots / 4 * 3);
    reserved.bo.set_peer(RESERVED);
    let (small, large) = (
        registered(&rig, gpu.slots / 4),
        registered(&rig, gpu.slots / 4),
    );
    for round in 1..=3 {
        hold(&rig, &small);
        // There is room in the aperture, but it is promised.
        rig.touch(0, &large);
        hold(&rig, &reserved);
        let lent = gpu.param(P2PGPU_PARAM_SLOTS_LENT);
        assert!(lent <= gpu.slots / 4, "{lent} slots are lent");
        assert!(large.bo.info().fall_backs + small.bo.info().invalidations >= round);
        for held in [&reserved, &small, &large] {
            held.bo.move_to(Placement::System);
            held.bo.move_to(Placement::Vram);
        }
    }
}

pub fn cpu_slots_are_no_obstacle() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let touched = gpu.create(gpu.aperture(), Placement::Vram);
    let map = touched.map();
    let touch_all = || {
        for page in 0..gpu.slots {
            map.store((page * gpu.page) as usize, page);
        }
    };
    touch_all();
    assert_eq!(u64::from(touched.info().slots), gpu.slots);
    let held = registered(&rig, gpu.slots);
    held.bo.set_peer(RESERVED);
    assert_eq!(
        u64::from(touched.info().slots),
        gpu.slots,
        "a promise zaps nothing"
    );
    for _ in 0..2 {
        hold(&rig, &held);
        assert_eq!(touched.info().slots, 0);
        held.bo.move_to(Placement::System);
        held.bo.move_to(Placement::Vram);
        touch_all();
    }
    for page in 0..gpu.slots {
        assert_eq!(map.load((page * gpu.page) as usize), page);
    }
}

pub fn promise_comes_and_goes_while_held() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = registered(&rig, gpu.slots / 4 * 3);
    for _ in 0..3 {
        hold(&rig, &held);
        assert_eq!(reserved_and_lent(gpu), (0, held.bo.pages()));
        // Its own slots do not stand in the way.
        held.bo.set_peer(RESERVED);
        assert_eq!(reserved_and_lent(gpu), (held.bo.pages(), 0));
        assert_eq!(u64::from(held.bo.info().peer_slots), held.bo.pages());
        held.bo.set_exportable(true);
        assert_eq!(reserved_and_lent(gpu), (0, 0));
    }
    assert_eq!(held.bo.info().invalidations, 3);
}

pub fn reservation_outlasts_moves() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = rig.register(0, gpu.aperture() / 2, Placement::System);
    held.bo.set_peer(RESERVED);
    assert_eq!(reserved_and_lent(gpu), (gpu.slots / 2, 0));
    let other = registered(&rig, gpu.slots / 2 + 1);
    let strict = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    other.bo.set_peer(strict);
    assert_refused(&rig, &other, Errno::ENOSPC);
    drop(other.region);
    for _ in 0..3 {
        rig.touch(0, &held);
        assert_eq!(held.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
        held.bo.move_to(Placement::Vram);
        hold(&rig, &held);
        held.bo.move_to(Placement::System);
        assert_eq!(reserved_and_lent(gpu), (gpu.slots / 2, 0));
    }
    assert_eq!(maps(&held.bo), (3, 0));
}

pub fn query_says_what_holds() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = registered(&rig, gpu.slots / 2);
    let query = || held.bo.query(rig.nic[0].pci());
    assert_eq!((query().verdict, query().flags), (P2PGPU_PEER_YES, 0));
    held.bo.set_peer(RESERVED);
    let answer = query();
    assert_eq!(
        (answer.verdict, answer.flags),
        (P2PGPU_PEER_YES, P2PGPU_PEER_QUERY_HOLDS)
    );
    assert_eq!(u64::from(answer.slots_reserved), gpu.slots / 2);
    assert_eq!(answer.slots_pinned, 0);
    // Others take what they can, and are served from what is left.
    let other = registered(&rig, gpu.slots / 2);
    hold(&rig, &other);
    let answer = query();
    assert_eq!(answer.flags, P2PGPU_PEER_QUERY_HOLDS);
    assert_eq!(
        (answer.slots_free, answer.slots_reclaimable),
        (answer.slots_needed, answer.slots_needed)
    );
    hold(&rig, &held);
    assert_eq!(other.bo.info().invalidations, 0);
    held.bo.set_exportable(true);
    assert_eq!(query().flags, 0);
}

pub fn query_says_what_is_now() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let reserved = flagged(gpu, gpu.slots / 2);
    reserved.set_peer(RESERVED);
    for (pages, verdict) in [
        (gpu.slots / 2, P2PGPU_PEER_YES),
        (gpu.slots / 2 + 1, P2PGPU_PEER_NO_SLOTS),
        (gpu.slots + 1, P2PGPU_PEER_TOO_LARGE),
    ] {
        let held = registered(&rig, pages);
        let answer = held.bo.query(rig.nic[0].pci());
        assert_eq!((answer.verdict, answer.flags), (verdict, 0), "{pages}");
        rig.touch(0, &held);
        let mapped = u64::from(verdict == P2PGPU_PEER_YES);
        assert_eq!(maps(&held.bo), (mapped, 1 - mapped), "{pages}");
    }
}

pub fn reservations_race() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = registered(&rig, gpu.slots);
    for _ in 0..10 {
        // Slots that stand in the way of both.
        hold(&rig, &held);
        let (mut results, result) = io::pipe().expect("a pipe");
        let children: Vec<_> = (0..2)
            .map(|_| {
                igt::fork(|| {
                    let mine = gpu.reopen();
                    let bo = flagged(&mine, mine.slots / 2 + 1);
                    let byte = match bo.__set_peer(RESERVED) {
                        Ok(()) => b'y',
                        Err(Errno::ENOSPC) => b'n',
                        Err(_) => b'?',
                    };
                    (&result).write_all(&[byte]).expect("the pipe");
                    loop {
                        thread::park();
                    }
                })
            })
            .collect();
        let mut answers = [0; 2];
        results.read_exact(&mut answers).expect("both answers");
        answers.sort();
        assert_eq!(&answers, b"ny", "one of the two gets it");
        children.into_iter().for_each(Child::kill);
    }
}
