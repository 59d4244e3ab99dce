// SPDX-License-Identifier: GPL-2.0
//! Flags of an object, and what strict and read-only mean to its peers.

use crate::{assert_refused, hold, maps, open, refusals, registered};
use nix::errno::Errno;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::{RESERVED, Registered, Rig};
use p2pguest::sys::uapi::*;

/// The flags that need `P2PGPU_PEER_EXPORTABLE`.
const OTHERS: [u32; 3] = [
    P2PGPU_PEER_RESERVE,
    P2PGPU_PEER_STRICT,
    P2PGPU_PEER_READ_ONLY,
];

pub fn bad_flags() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.set_exportable(true);
    for flag in OTHERS {
        refused(bo.__set_peer(flag), Errno::EINVAL);
    }
    for bit in 4..32 {
        let flags = P2PGPU_PEER_EXPORTABLE | 1 << bit;
        refused(bo.__set_peer(flags), Errno::EINVAL);
    }
    assert_eq!(bo.info().peer_flags, P2PGPU_PEER_EXPORTABLE);
}

pub fn flags_are_kept() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(gpu.page, placement);
        for flags in (1..16).step_by(2) {
            bo.set_peer(flags);
            assert_eq!(bo.info().peer_flags, flags);
            bo.move_to(placement.other());
            assert_eq!(bo.info().peer_flags, flags, "after a move");
            bo.move_to(placement);
        }
        bo.set_peer(0);
        assert_eq!(bo.info().peer_flags, 0);
    }
}

pub fn clearing_a_flag_invalidates() {
    let rig = open();
    let held = registered(&rig, 4);
    // The region only reads: it can be mapped by all rules.
    held.region.deregister();
    let region = rig.nic[0].register(&held.fd, P2PNIC_ACCESS_REMOTE_READ, held.bo.size);
    let held = Registered {
        region,
        fd: held.fd,
        bo: held.bo,
    };
    let mut expected = 0;
    for flag in OTHERS {
        hold(&rig, &held);
        held.bo.set_peer(P2PGPU_PEER_EXPORTABLE | flag);
        expected += u64::from(flag == P2PGPU_PEER_READ_ONLY);
        assert_eq!(held.bo.info().invalidations, expected, "{flag:#x} was set");
        hold(&rig, &held);
        held.bo.set_peer(P2PGPU_PEER_EXPORTABLE);
        expected += 1;
        let info = held.bo.info();
        assert_eq!(
            (info.invalidations, info.peer_slots),
            (expected, 0),
            "{flag:#x} was cleared"
        );
    }
}

pub fn read_only_refuses_writers() {
    let rig = open();
    let held = registered(&rig, 4);
    hold(&rig, &held);
    held.bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    assert_eq!(held.region.info().mapped, 0, "the writer was told");
    let before = refusals(&rig.gpu[0], "read_only");
    assert_refused(&rig, &held, Errno::EACCES);
    assert_eq!(held.bo.info().refusals, 1);
    assert_eq!(refusals(&rig.gpu[0], "read_only"), before + 1);
    // In system memory, too.
    held.bo.move_to(Placement::System);
    let Registered { region, fd, bo } = held;
    region.deregister();
    let region = rig.nic[0].register(&fd, ACCESS_ALL, bo.size);
    let again = Registered { region, fd, bo };
    assert_refused(&rig, &again, Errno::EACCES);
}

pub fn read_only_serves_readers() {
    let rig = open();
    let exported = rig.export(0, 4 * rig.gpu[0].page, Placement::Vram);
    exported
        .bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    exported.bo.fill(Pattern(1));
    let reader = rig.nic[0].register(&exported.fd, P2PNIC_ACCESS_REMOTE_READ, exported.bo.size);
    let target = rig.register(1, exported.bo.size, Placement::Vram);
    rig.connect(4).write(&reader, &target.region);
    target.bo.assert_holds(Pattern(1));
    assert_eq!(maps(&exported.bo), (1, 0));
}

/// Promises all slots of GPU 0 to an object that nobody maps.
#[track_caller]
pub fn reserve_all(rig: &Rig) -> p2pguest::gpu::Bo<'_> {
    let gpu = &rig.gpu[0];
    let bo = gpu.create(gpu.aperture(), Placement::Vram);
    bo.set_peer(RESERVED);
    bo
}

pub fn strict_never_falls_back() {
    let rig = open();
    let all = reserve_all(&rig);
    let (strict, other) = (registered(&rig, 4), registered(&rig, 4));
    strict
        .bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    rig.touch(0, &other);
    assert_eq!(maps(&other.bo), (0, 1));
    assert_eq!(other.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
    assert_refused(&rig, &strict, Errno::ENOSPC);
    assert_eq!(maps(&strict.bo), (0, 0));
    assert_eq!(strict.bo.info().placement, P2PGPU_PLACEMENT_VRAM);
    // It gets slots when there are some, and falls back when it may.
    all.set_peer(0);
    rig.touch(0, &strict);
    assert_eq!(maps(&strict.bo), (1, 0));
    all.set_peer(RESERVED);
    strict.bo.set_exportable(true);
    rig.touch(0, &strict);
    assert_eq!(maps(&strict.bo), (1, 1));
}

pub fn strict_where_it_is() {
    let rig = open();
    let _all = reserve_all(&rig);
    let held = registered(&rig, 4);
    held.bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    held.bo.move_to(Placement::System);
    rig.touch(0, &held);
    let info = held.bo.info();
    assert_eq!(
        (info.system_maps, info.fall_backs, info.refusals),
        (1, 0, 0)
    );
}

pub fn refusals_are_counted() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let counts = || {
        let reasons = ["not_flagged", "read_only", "no_slots", "reservation"];
        reasons.map(|reason| refusals(gpu, reason))
    };
    let mut expected = counts();
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    refused(bo.__export(), Errno::EPERM);
    expected[0] += 1;
    assert_eq!(counts(), expected);
    assert_eq!(bo.info().refusals, 1);

    let all = reserve_all(&rig);
    refused(bo.__set_peer(RESERVED), Errno::ENOSPC);
    expected[3] += 1;
    assert_eq!(counts(), expected);
    assert_eq!(bo.info().refusals, 2);

    let strict = registered(&rig, 4);
    strict
        .bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    assert_refused(&rig, &strict, Errno::ENOSPC);
    drop(strict.region);
    // The NIC may have tried more than once.
    let tries = strict.bo.info().refusals;
    assert!(tries >= 1);
    expected[2] += tries;
    assert_eq!(counts(), expected);
    assert_eq!(all.info().refusals, 0);
}
