// SPDX-License-Identifier: GPL-2.0
//! What the addresses show is taken away, moved or replaced during transfers.

use crate::{ONE, PAGE, User, mapped, memory, peer_slots, routed, user};
use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::flight::{SlowAccesses, moved};
use p2pguest::gpu::{Bo, Placement};
use p2pguest::igt;
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Rig, Wire};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;

/// Rounds of a test that wants to meet a transfer in flight.
const MAX_ROUNDS: u64 = 200;
/// Transfers in flight that such a test must meet.
const MEETINGS: u64 = 3;
/// A size of ordinary memory that takes as many accesses as are slow.
pub const BULK: u64 = 512 << 10;

/// Starts a write to a region of NIC 1, and does something once it has begun.
#[track_caller]
pub fn during_write<R>(
    rig: &Rig,
    wire: &Wire<'_>,
    (source, target): (&Region<'_>, &Region<'_>),
    disturb: impl FnOnce() -> R,
) -> R {
    let slow = SlowAccesses::new();
    let idle = moved(&rig.nic[1]);
    wire.start_write(source, target);
    wait_until("the transfer begins", || moved(&rig.nic[1]) != idle);
    let result = disturb();
    drop(slow);
    result
}

/// Writes to a target again and again, doing something meanwhile, until enough invalidations
/// met a transfer in flight; looks at the target after each.
#[track_caller]
fn survive(
    rig: &Rig,
    target: &Region<'_>,
    mut disturb: impl FnMut(u64),
    mut verify: impl FnMut(Pattern),
) {
    let (source, bytes) = memory(rig, 0, target.size);
    let wire = rig.connect(4);
    let busy = || rig.nic[1].query().invalidations_busy;
    let before = busy();
    for round in 1..=MAX_ROUNDS {
        bytes.fill(Pattern(round));
        during_write(rig, &wire, (&source, target), || disturb(round));
        wire.near.expect(P2PNIC_STATUS_OK);
        verify(Pattern(round));
        if busy() - before >= MEETINGS {
            return;
        }
    }
    panic!("only {} invalidations met a transfer", busy() - before);
}

/// Writes to a target, taking something away from under it, until that met a transfer, which ends
/// as revoked for this reason. What is left is looked at then.
#[track_caller]
fn revoke<'r, T, R>(
    rig: &'r Rig,
    target: impl Fn() -> (Region<'r>, T),
    take: impl Fn(T) -> R,
    reason: Errno,
    verify: impl Fn(R),
) {
    for _ in 0..MAX_ROUNDS {
        let (region, thing) = target();
        let (source, bytes) = memory(rig, 0, region.size);
        bytes.fill(ONE);
        let wire = rig.connect(4);
        let rest = during_write(rig, &wire, (&source, &region), || take(thing));
        let done = wire.near.wait();
        match done.status {
            // It was through already: another round.
            P2PNIC_STATUS_OK => continue,
            P2PNIC_STATUS_REVOKED => {}
            _ => panic!("{done:?}"),
        }
        assert!(done.size < region.size, "{done:?}");
        let info = region.info();
        assert_eq!((info.mapped, info.last_error), (0, reason as u32));
        // It is for good.
        let wire = rig.connect(4);
        wire.start_write(&source, &region);
        wire.near.expect(P2PNIC_STATUS_REMOTE_ACCESS);
        return verify(rest);
    }
    panic!("no transfer was met in {MAX_ROUNDS} rounds");
}

/// A target at GPU 1, and the rest of it.
#[track_caller]
fn target(rig: &Rig) -> (Region<'_>, (Mapping, Bo<'_>)) {
    let User { region, map, bo } = user(rig, 1, rig.bulk_size());
    (region, (map, bo))
}

pub fn munmap_during_transfer() {
    let rig = Rig::open();
    let unmap = |(map, bo)| {
        drop(map);
        bo
    };
    revoke(
        &rig,
        || target(&rig),
        unmap,
        Errno::EFAULT,
        |bo| {
            wait_until("the slots are given back", || peer_slots(&bo) == 0);
            // No access is in flight any more: what is there now stays.
            let now = bo.checksum(0, bo.size);
            assert_eq!(bo.checksum(0, bo.size), now, "a write came late");
        },
    );
    revoke(&rig, || memory(&rig, 1, BULK), drop, Errno::EFAULT, drop);
    // One page of it is enough.
    let part = |map: Mapping| map.split(PAGE as usize).1;
    revoke(&rig, || memory(&rig, 1, BULK), part, Errno::EFAULT, drop);
}

pub fn mremap_during_transfer() {
    let rig = Rig::open();
    let away = |(map, bo): (Mapping, _)| (map.moved(), bo);
    revoke(
        &rig,
        || target(&rig),
        away,
        Errno::EFAULT,
        |(map, bo)| {
            // The object is where it was, and is seen there.
            let mut found = vec![0; PAGE as usize];
            map.read(0, &mut found);
            assert!(found == bo.download(0, PAGE as usize));
            rig.nic[1].register_map(&map, ACCESS_ALL).deregister();
        },
    );
    let away = |map: Mapping| map.moved();
    revoke(&rig, || memory(&rig, 1, BULK), away, Errno::EFAULT, drop);
}

pub fn fork_during_transfer() {
    let rig = Rig::open();
    let (region, map) = memory(&rig, 1, BULK);
    let children = std::cell::RefCell::new(Vec::new());
    let fork = |round: u64| {
        let own = Pattern(1 << 32 | round);
        children.borrow_mut().push(igt::fork(|| {
            // The child has the bytes of the moment; what it stores is its own.
            map.fill(own);
            for _ in 0..20 {
                map.assert_holds(own);
            }
        }));
    };
    survive(&rig, &region, fork, |pattern| {
        map.assert_holds(pattern);
        children
            .borrow_mut()
            .drain(..)
            .for_each(|child| child.join());
        // The CPU's stores are seen by the NIC, and the other way round.
        map.store(0, 99);
        map.assert_holds_from(8, pattern);
    });
}

pub fn dontneed_during_transfer() {
    let rig = Rig::open();
    let (region, map) = memory(&rig, 1, BULK);
    let discard = |_| map.discard();
    survive(&rig, &region, discard, |pattern| {
        // A page was written before it was given up, or after.
        for start in (0..BULK).step_by(PAGE as usize) {
            let mut page = vec![0; PAGE as usize];
            map.read(start as usize, &mut page);
            let holds = page == pattern.bytes(start, page.len());
            assert!(holds || page.iter().all(|&byte| byte == 0), "{start:#x}");
        }
    });
    let (source, bytes) = memory(&rig, 0, BULK);
    bytes.fill(ONE);
    rig.connect(4).write(&source, &region);
    map.assert_holds(ONE);
    // An object's bytes cannot be given up by its mapping.
    let (_bo, map) = mapped(&rig, 0, PAGE, Placement::System);
    p2pguest::refused(map.__discard(), Errno::EINVAL);
}

pub fn move_during_transfer() {
    let rig = routed();
    let User { region, map, bo } = user(&rig, 1, rig.bulk_size());
    let there_and_back = |_| {
        bo.move_to(Placement::System);
        bo.move_to(Placement::Vram);
    };
    survive(&rig, &region, there_and_back, |pattern| {
        bo.assert_holds(pattern);
    });
    assert_eq!(bo.info().fall_backs, 0);
    drop(map);
}

pub fn pressure_during_transfer() {
    let rig = routed();
    let gpu = &rig.gpu[1];
    let _grace = {
        let grace = Setting::new(gpu.pci(), "peer_grace_ms");
        grace.write("0");
        grace
    };
    let size = rig.bulk_size();
    let _squeeze = rig.hold_slots(1, gpu.slots - size / PAGE);
    let User { region, map, bo } = user(&rig, 1, size);
    // Another pointer, and a dma-buf, want the same slots in turns.
    let (other, theirs) = mapped(&rig, 1, size, Placement::Vram);
    let by_dma_buf = rig.register(1, size, Placement::Vram);
    let press = |round: u64| match round % 2 {
        0 => rig.touch(1, &by_dma_buf),
        _ => rig.nic[1].register_map(&theirs, ACCESS_ALL).deregister(),
    };
    survive(&rig, &region, press, |pattern| {
        bo.assert_holds(pattern);
        // Who finds the lock of another one taken does not wait for it, and falls back.
        for fallen in [&bo, &other, &by_dma_buf.bo] {
            fallen.move_to(Placement::Vram);
        }
    });
    assert!(bo.info().invalidations != 0);
    drop((map, other));
}

/// Takes the flag, and the checksum of what is there then.
#[track_caller]
fn unflag<'r>((map, bo): (Mapping, Bo<'r>)) -> ((Mapping, Bo<'r>), [u8; 32]) {
    bo.set_exportable(false);
    // No access is in flight any more: what is there now stays.
    let now = bo.checksum(0, bo.size);
    assert_eq!(peer_slots(&bo), 0, "a peer still holds slots");
    ((map, bo), now)
}

pub fn unflag_during_transfer() {
    let rig = Rig::open();
    revoke(
        &rig,
        || target(&rig),
        unflag,
        Errno::EPERM,
        |(object, now)| {
            let (_map, bo) = object;
            assert_eq!(bo.checksum(0, bo.size), now, "a write came late");
        },
    );
}

pub fn close_handle_during_transfer() {
    let rig = Rig::open();
    let User { region, map, bo } = user(&rig, 1, rig.bulk_size());
    let (source, bytes) = memory(&rig, 0, region.size);
    bytes.fill(ONE);
    let wire = rig.connect(4);
    during_write(&rig, &wire, (&source, &region), || drop(bo));
    wire.near.expect(P2PNIC_STATUS_OK);
    map.assert_holds(ONE);
}
