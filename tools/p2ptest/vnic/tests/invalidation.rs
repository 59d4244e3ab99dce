// SPDX-License-Identifier: GPL-2.0

//! Regions that turn invalid: parking, resuming, draining, revoking, at both ends of the wire.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{At, Host, PEER, pattern};
use vnic::{Counter, regs};

const ALL: u32 = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;
const LEN: usize = 500_000;

/// Long enough for the NIC to do what it must not do.
fn a_while() {
    sleep(Duration::from_millis(30));
}

#[test]
fn requests_park_at_each_end_and_resume() {
    for opcode in [regs::WRITE, regs::READ] {
        let (mut a, mut b) = Host::paired();
        a.create_region(1, ALL, LEN as u64);
        b.create_region(2, ALL, LEN as u64);
        let (here, there) = (a.alloc(LEN as u64), b.alloc(LEN as u64));
        let data = pattern(opcode as u8, LEN);
        if opcode == regs::WRITE {
            a.memory.put(here, &data);
        } else {
            b.memory.put(there, &data);
        }
        a.post(0, opcode, 1, At(1, 64), At(2, 64), 300_000);
        let (first, second) = if opcode == regs::WRITE {
            (&mut a, 1)
        } else {
            (&mut b, 2)
        };
        assert_eq!(first.event(true), (second, 64));
        assert_eq!(first.counter(Counter::Parked), 1);
        assert_eq!(a.map(1, &[(here, LEN as u64)]), 0);
        if opcode == regs::WRITE {
            assert_eq!(b.event(true), (2, 64));
        }
        assert_eq!(a.try_poll(0), None);
        assert_eq!(b.map(2, &[(there, LEN as u64)]), 0);
        assert_eq!(a.poll(0).status, 0);
        assert_eq!(a.memory.get(here + 64, 300_000), data[64..300_064]);
        assert_eq!(b.memory.get(there + 64, 300_000), data[64..300_064]);
        for host in [&a, &b] {
            assert_eq!(
                host.counter(Counter::Parked),
                host.counter(Counter::Resumed)
            );
            assert_eq!(host.counter(Counter::Parked), host.counter(Counter::Events));
        }
    }
}

#[test]
fn a_send_parks_at_its_receiver() {
    let (mut a, mut b) = Host::paired();
    let src = a.region(1, ALL, 4096);
    a.memory.put(src, &pattern(8, 4096));
    b.create_region(2, ALL, 4096);
    b.post_recv(0, 2, At(2, 0), 4096);
    a.post(0, regs::SEND, 1, At(1, 0), At(0, 0), 4096);
    assert_eq!(b.event(true), (2, 0));
    let dst = b.alloc(4096);
    assert_eq!(b.map(2, &[(dst, 4096)]), 0);
    assert_eq!(b.poll(0).status, 0);
    assert_eq!(b.memory.get(dst, 4096), pattern(8, 4096));
}

#[test]
fn invalidate_waits_for_the_dma_and_nothing_touches_the_old_addresses_after() {
    for (opcode, at_requester) in [
        (regs::WRITE, true),
        (regs::WRITE, false),
        (regs::READ, true),
        (regs::READ, false),
    ] {
        let (mut a, mut b) = Host::paired();
        let here = a.region(1, ALL, LEN as u64);
        let there = b.region(2, ALL, LEN as u64);
        let data = pattern(42, LEN);
        let (src, from) = if opcode == regs::WRITE {
            (&a, here)
        } else {
            (&b, there)
        };
        src.memory.put(from, &data);
        let (key, old) = if at_requester { (1, here) } else { (2, there) };
        let memory = if at_requester {
            a.memory.clone()
        } else {
            b.memory.clone()
        };
        // The third chunk waits on the bus.
        let gate = old + 3 * regs::CHUNK as u64;
        memory.set_gate(Some((gate, gate + 4096)));
        a.post(0, opcode, 1, At(1, 0), At(2, 0), LEN as u64);
        memory.wait_for_gate();
        let (moved, new) = {
            let host = if at_requester { &mut a } else { &mut b };
            host.begin(regs::MR_INVALIDATE, key, 0, &[]);
            a_while();
            assert!(!host.is_answered(), "answered while a DMA is in flight");
            memory.set_gate(None);
            assert_eq!(host.answer(), 0);
            memory.forbid(Some((old, old + LEN as u64)));
            let (parked, offset) = host.event(true);
            assert_eq!(parked, key);
            assert!(offset >= 4 * regs::CHUNK as u64, "parked at {offset}");
            assert_eq!(host.counter(Counter::Invalidations), 1);
            assert_eq!(host.counter(Counter::InvalidationsBusy), 1);
            a_while();
            assert_eq!(memory.violations(), 0);
            // The pages move, with what they hold.
            let new = host.alloc(LEN as u64);
            memory.put(new, &memory.get(old, LEN));
            memory.put(old, &vec![0xee; LEN]);
            assert_eq!(host.map(key, &[(new, LEN as u64)]), 0);
            (offset, new)
        };
        assert_eq!(a.poll(0).status, 0);
        assert!(moved < LEN as u64);
        let (here, there) = if at_requester {
            (new, there)
        } else {
            (here, new)
        };
        assert!(a.memory.get(here, LEN) == data && b.memory.get(there, LEN) == data);
        assert_eq!(
            memory.violations(),
            0,
            "a DMA to addresses that were taken away"
        );
    }
}

#[test]
fn invalidate_pushes_peer_writes_home() {
    let (mut a, mut b) = Host::paired();
    let src = a.region(1, ALL, LEN as u64);
    let data = pattern(3, LEN);
    a.memory.put(src, &data);
    b.region_at(2, ALL, PEER, LEN as u64);
    let gate = PEER + 4 * regs::CHUNK as u64;
    b.memory.set_gate(Some((gate, gate + 1)));
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), LEN as u64);
    b.memory.wait_for_gate();
    b.begin(regs::MR_INVALIDATE, 2, 0, &[]);
    a_while();
    b.memory.set_gate(None);
    assert_eq!(b.answer(), 0);
    let n = 5 * regs::CHUNK;
    assert!(
        b.memory.get(PEER, n) == data[..n],
        "posted bytes did not land"
    );
    b.memory.forbid(Some((PEER, PEER + LEN as u64)));
    // The rest goes to RAM: the old peer address must not be read back for it.
    let new = b.alloc(LEN as u64);
    assert_eq!(b.map(2, &[(new, LEN as u64)]), 0);
    assert_eq!(a.poll(0).status, 0);
    assert!(b.memory.get(new + n as u64, LEN - n) == data[n..]);
    assert_eq!(b.memory.violations(), 0);
}

#[test]
fn busy_means_a_dma_or_an_unfinished_request() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, 0);
    // Idle at both ends.
    assert_eq!(a.command(regs::MR_INVALIDATE, 1, 0, &[]), 0);
    assert_eq!(b.command(regs::MR_INVALIDATE, 2, 0, &[]), 0);
    // Invalid already: does not count.
    assert_eq!(b.command(regs::MR_INVALIDATE, 2, 0, &[]), 0);
    for host in [&a, &b] {
        assert_eq!(host.counter(Counter::Invalidations), 1);
        assert_eq!(host.counter(Counter::InvalidationsBusy), 0);
    }
    // A request that waits for the other end keeps this end's region busy without any DMA.
    let at = a.alloc(4096);
    assert_eq!(a.map(1, &[(at, 4096)]), 0);
    a.post(0, regs::WRITE, 2, At(1, 0), At(2, 0), 64);
    assert_eq!(b.event(true), (2, 0));
    assert_eq!(a.command(regs::MR_INVALIDATE, 1, 0, &[]), 0);
    assert_eq!(a.counter(Counter::InvalidationsBusy), 1);
}

#[test]
fn one_event_for_a_region_until_it_is_mapped() {
    let (mut a, mut b) = Host::wired();
    for qp in 0..3 {
        for host in [&mut a, &mut b] {
            host.create_qp(qp, 4);
            host.connect(qp, qp);
        }
    }
    a.region(1, ALL, 4096);
    b.create_region(2, ALL, 4096);
    for qp in 0..3 {
        a.post(qp, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    }
    b.until("parking", |h| h.counter(Counter::Parked) == 3);
    assert_eq!(b.event(true), (2, 0));
    a_while();
    assert_eq!(b.try_event(), None);
    let at = b.alloc(4096);
    assert_eq!(b.map(2, &[(at, 4096)]), 0);
    for qp in 0..3 {
        assert_eq!(a.poll(qp).status, 0);
    }
    assert_eq!(b.counter(Counter::Resumed), 3);
    assert_eq!(b.command(regs::MR_INVALIDATE, 2, 0, &[]), 0);
    a.post(0, regs::WRITE, 2, At(1, 0), At(2, 128), 64);
    assert_eq!(b.event(true), (2, 128));
}

#[test]
fn parking_holds_up_one_queue_pair_only() {
    let (mut a, mut b) = Host::wired();
    for qp in 0..2 {
        for host in [&mut a, &mut b] {
            host.create_qp(qp, 4);
            host.connect(qp, qp);
        }
    }
    a.region(1, ALL, LEN as u64);
    b.create_region(2, ALL, LEN as u64);
    b.region(3, ALL, LEN as u64);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), LEN as u64);
    a.post(0, regs::WRITE, 2, At(1, 0), At(3, 0), 8);
    b.event(true);
    for id in 0..30 {
        a.post(1, regs::WRITE, id, At(1, 0), At(3, 0), LEN as u64);
        assert_eq!(a.poll(1).status, 0);
        b.post(1, regs::READ, id, At(3, 0), At(1, 0), LEN as u64);
        assert_eq!(b.poll(1).status, 0);
    }
    assert_eq!(a.try_poll(0), None, "what follows a parked request waits");
    let at = b.alloc(LEN as u64);
    assert_eq!(b.map(2, &[(at, LEN as u64)]), 0);
    assert_eq!(a.poll(0).id, 1);
    assert_eq!(a.poll(0).id, 2);
}

#[test]
fn destroying_a_region_revokes_what_is_parked_on_it() {
    // At the other end.
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.create_region(2, ALL, 4096);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    b.event(true);
    assert_eq!(b.command(regs::MR_DESTROY, 2, 0, &[]), 0);
    assert_eq!(a.poll(0).status, regs::REVOKED);
    // At this end, and a new region with the same key does not take its place.
    let (mut a, mut b) = Host::paired();
    a.create_region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    a.post(0, regs::READ, 1, At(1, 0), At(2, 0), 64);
    a.event(true);
    assert_eq!(a.command(regs::MR_DESTROY, 1, 0, &[]), 0);
    a.region(1, ALL, 4096);
    assert_eq!(a.poll(0).status, regs::REVOKED);
    // In a receive entry.
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.create_region(2, ALL, 4096);
    b.post_recv(0, 7, At(2, 0), 4096);
    a.post(0, regs::SEND, 1, At(1, 0), At(0, 0), 64);
    b.event(true);
    assert_eq!(b.command(regs::MR_DESTROY, 2, 0, &[]), 0);
    assert_eq!(a.poll(0).status, regs::REVOKED);
    assert_eq!(
        (b.poll(0).status, b.counter(Counter::Resumed)),
        (regs::REVOKED, 0)
    );
}

#[test]
fn destroy_waits_for_the_dma_too() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, LEN as u64);
    let there = b.region(2, ALL, LEN as u64);
    b.memory.set_gate(Some((there, there + 1)));
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), LEN as u64);
    b.memory.wait_for_gate();
    b.begin(regs::MR_DESTROY, 2, 0, &[]);
    a_while();
    assert!(!b.is_answered());
    b.memory.set_gate(None);
    assert_eq!(b.answer(), 0);
    b.memory.forbid(Some((there, there + LEN as u64)));
    assert_eq!(a.poll(0).status, regs::REVOKED);
    a_while();
    assert_eq!(b.memory.violations(), 0);
    assert_eq!(b.command(regs::MR_INVALIDATE, 2, 0, &[]), regs::BAD_INDEX);
}

#[test]
fn events_without_room_are_kept() {
    let mut h = Host::new(true);
    let regions = 20u32;
    h.region(100, ALL, 4096);
    for i in 0..regions {
        h.create_qp(2 * i, 2);
        h.create_qp(2 * i + 1, 2);
        h.connect(2 * i, 2 * i + 1);
        h.connect(2 * i + 1, 2 * i);
        h.create_region(i, ALL, 4096);
        h.post(2 * i, regs::WRITE, 1, At(100, 0), At(i, 0), 64);
    }
    h.until("parking", |h| {
        h.counter(Counter::Parked) == u64::from(regions)
    });
    let room = 1 << common::EVENT_LOG2;
    h.until("events", |h| h.counter(Counter::Events) == room);
    a_while();
    assert_eq!(h.counter(Counter::Events), room);
    let mut keys: Vec<u32> = (0..regions).map(|_| h.event(true).0).collect();
    keys.sort_unstable();
    assert_eq!(keys, (0..regions).collect::<Vec<_>>());
}
