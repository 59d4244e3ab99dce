// SPDX-License-Identifier: GPL-2.0
//! Tests of the NIC: regions, queue pairs, requests between two NICs, and the
//! completions of requests that are not allowed.

mod errors;
mod signals;

use errors::*;
use nix::errno::Errno;
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::nic::{ACCESS_ALL, Region, TIMEOUT};
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::{Exported, Rig, Wire, request, send_request};
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused, subtests};
use signals::*;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const SUBTESTS: &[Subtest] = subtests![
    /// Regions come and go; each has a key of its own.
    register_and_deregister,
    /// Registering until no region is left is refused with ENOSPC.
    regions_run_out,
    /// Queue pairs run out with ENOSPC, and come back.
    queue_pairs_run_out,
    /// A region is mapped when a request first needs it, and once.
    mapping_is_lazy,
    /// WRITE moves the bytes, between all placements.
    write_between_placements,
    /// READ moves the bytes, between all placements.
    read_between_placements,
    /// SEND moves the bytes, between all placements.
    send_between_placements,
    /// Odd sizes and offsets move these bytes and no others.
    odd_sizes_and_offsets,
    /// A request of no bytes completes.
    zero_length,
    /// A region is a part of its dma-buf, and no more.
    region_is_a_part,
    /// Data goes through BARs where the objects are in VRAM.
    bytes_go_through_bars,
    /// Requests complete in the order in which they were posted.
    completions_are_in_order,
    /// Many queue pairs move bytes at once, in both directions.
    many_queue_pairs,
    /// Ranges past a region's end complete with the error of that end.
    range_past_end,
    /// Keys that name nothing complete with the error of that end.
    unknown_keys,
    /// Rights that a region lacks are refused.
    rights_are_checked,
    /// A message longer than the receive entry is refused.
    message_too_long,
    /// What follows a failed request is flushed.
    flushed_after_error,
    /// A message waits for room at the other end.
    send_waits_for_receive,
    /// A request on a region that is gone completes with an error.
    region_after_deregistration,
    /// A region that its exporter will not map is revoked, at either end.
    revoked_by_exporter,
    /// A request waits until the exporter has slots.
    waits_for_slots,
    /// A region is deregistered that a request waits for.
    revoked_while_waiting,
    /// A region that could not be mapped for seconds is revoked.
    revoked_after_waiting,
    /// A full queue is refused with EAGAIN, and drains.
    queue_full_is_eagain,
    /// POLL waits as long as it is told, and not longer.
    poll_timeout,
    /// POLL returns several completions, as many as there is room for.
    poll_many,
    /// POLL wakes when a completion comes.
    poll_wakes,
    /// A signal that nobody handles does not end POLL.
    poll_outlasts_ignored_signals,
    /// A signal that is handled ends POLL with EINTR, and it says how long it has to wait.
    poll_ends_at_handled_signals,
    /// A signal that restarts system calls does not end POLL, nor make it wait longer.
    poll_outlasts_restarting_signals,
    /// Destroying a queue pair with requests that did not run.
    destroy_with_requests,
    /// Closing the file destroys what it made.
    file_close_destroys,
    /// A file cannot touch what another one made.
    files_are_apart,
    /// Its times are numbers, of bounded size.
    times_are_numbers,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const PAGE: u64 = 4096;

fn register_and_deregister() {
    let rig = Rig::open();
    let exported = rig.export(0, 4 * PAGE, Placement::Vram);
    let before = rig.nic[0].query().regions;
    let mut keys = BTreeSet::new();
    for _ in 0..10 {
        let regions: Vec<_> = (0..10)
            .map(|_| rig.nic[0].register(&exported.fd, ACCESS_ALL, 4 * PAGE))
            .collect();
        assert_eq!(rig.nic[0].query().regions, before + 10);
        for region in &regions {
            assert!(
                keys.insert(region.key),
                "key {:#x} was given before",
                region.key
            );
            let expected = p2pnic_region_info {
                key: region.key,
                ..Default::default()
            };
            assert_eq!(region.info(), expected, "a region that nothing used");
        }
        regions.into_iter().for_each(Region::deregister);
        assert_eq!(rig.nic[0].query().regions, before);
    }
}

fn regions_run_out() {
    let rig = Rig::open();
    let exported = rig.export(0, PAGE, Placement::Vram);
    let room = rig.nic[0].query();
    let mut regions = Vec::new();
    let errno = loop {
        match rig.nic[0].__register(exported.fd.as_raw_fd(), 0, 0, PAGE) {
            Ok(region) => regions.push(region),
            Err(errno) => break errno,
        }
    };
    assert_eq!(errno, Errno::ENOSPC, "after {} regions", regions.len());
    assert_eq!(regions.len() as u32, room.max_regions - room.regions);
    drop(regions.pop());
    rig.nic[0].register(&exported.fd, 0, PAGE);
}

fn queue_pairs_run_out() {
    let rig = Rig::open();
    let mut pairs = Vec::new();
    let errno = loop {
        match rig.nic[0].__create_qp(4, 4) {
            Ok(qp) => pairs.push(qp),
            Err(errno) => break errno,
        }
    };
    assert_eq!(errno, Errno::ENOSPC, "after {} queue pairs", pairs.len());
    assert_eq!(pairs.len() as u32, rig.nic[0].query().max_queue_pairs);
    let numbers: BTreeSet<_> = pairs.iter().map(|qp| qp.number).collect();
    assert_eq!(numbers.len(), pairs.len(), "numbers are given twice");
    drop(pairs.pop());
    rig.nic[0].create_qp(2048, 2048);
}

fn mapping_is_lazy() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = rig.connect(4);
    assert_eq!(source.bo.info().peer_maps + source.bo.info().system_maps, 0);
    for _ in 0..3 {
        wire.write(&source.region, &target.region);
        for end in [&source, &target] {
            let (region, info) = (end.region.info(), end.bo.info());
            assert_eq!((region.mapped, region.maps, region.last_error), (1, 1, 0));
            assert_eq!(region.segments, 1, "segments of one page");
            assert_eq!(info.peer_maps + info.system_maps, 1);
        }
    }
}

/// Runs something for objects in all placements at both ends.
fn in_all_placements(run: impl Fn(Placement, Placement)) {
    for near in Placement::ALL {
        for far in Placement::ALL {
            println!("from {near:?} to {far:?}");
            run(near, far);
        }
    }
}

fn write_between_placements() {
    let rig = Rig::open();
    in_all_placements(|near, far| {
        let size = rig.bulk_size();
        let (source, target) = (rig.register(0, size, near), rig.register(1, size, far));
        source.bo.fill(Pattern(1));
        rig.connect(4).write(&source.region, &target.region);
        target.bo.assert_holds(Pattern(1));
        source.bo.assert_holds(Pattern(1));
    });
}

fn read_between_placements() {
    let rig = Rig::open();
    in_all_placements(|near, far| {
        let size = rig.bulk_size();
        let (target, source) = (rig.register(0, size, near), rig.register(1, size, far));
        source.bo.fill(Pattern(2));
        let wire = rig.connect(4);
        let read = request(
            P2PNIC_OP_READ,
            (&target.region, 0),
            (&source.region, 0),
            size,
        );
        wire.near.post_send(p2pnic_post_send { id: 77, ..read });
        let done = wire.near.expect(P2PNIC_STATUS_OK);
        assert_eq!(
            (done.id, done.size, done.opcode),
            (77, size, P2PNIC_OP_READ)
        );
        target.bo.assert_holds(Pattern(2));
    });
}

fn send_between_placements() {
    let rig = Rig::open();
    in_all_placements(|near, far| {
        let size = rig.bulk_size();
        let (source, target) = (rig.register(0, size, near), rig.register(1, size, far));
        source.bo.fill(Pattern(3));
        let wire = rig.connect(4);
        must(
            wire.far.__post_recv(5, &target.region),
            format_args!("POST_RECV"),
        );
        wire.near.post_send(p2pnic_post_send {
            id: 6,
            ..send_request(&source.region, 0, size)
        });
        let received = wire.far.expect(P2PNIC_STATUS_OK);
        assert_eq!(
            (received.id, received.size, received.opcode),
            (5, size, P2PNIC_OP_RECV)
        );
        let sent = wire.near.expect(P2PNIC_STATUS_OK);
        assert_eq!((sent.id, sent.size, sent.opcode), (6, size, P2PNIC_OP_SEND));
        target.bo.assert_holds(Pattern(3));
    });
}

fn odd_sizes_and_offsets() {
    let rig = Rig::open();
    let size = 32 * PAGE;
    let (source, target) = (
        rig.register(0, size, Placement::Vram),
        rig.register(1, size, Placement::Vram),
    );
    let wire = rig.connect(4);
    source.bo.fill(Pattern(4));
    let ranges = [
        (0, 0, 1),
        (size - 1, size - 1, 1),
        (1, 2, 3),
        (4095, 1, 2),
        (7, 4093, 4099),
        (12345, 54321, 33333),
        (1, 0, size - 1),
    ];
    for (from, to, len) in ranges {
        for opcode in [P2PNIC_OP_WRITE, P2PNIC_OP_READ] {
            target.bo.fill(Pattern(5));
            let (local, remote) = match opcode {
                P2PNIC_OP_WRITE => ((&source.region, from), (&target.region, to)),
                _ => ((&target.region, to), (&source.region, from)),
            };
            // A READ is posted at the other end, which has the target.
            let qp = if opcode == P2PNIC_OP_WRITE {
                &wire.near
            } else {
                &wire.far
            };
            qp.post_send(request(opcode, local, remote, len));
            assert_eq!(qp.expect(P2PNIC_STATUS_OK).size, len);
            let mut expected = Pattern(5).bytes(0, size as usize);
            expected[to as usize..][..len as usize]
                .copy_from_slice(&Pattern(4).bytes(from, len as usize));
            let what = format!("opcode {opcode}, {len} bytes from {from} to {to}");
            assert_same(&target.bo.download(0, size as usize), &expected, &what);
        }
    }
}

fn zero_length() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = rig.connect(4);
    target.bo.fill(Pattern(6));
    for opcode in [P2PNIC_OP_WRITE, P2PNIC_OP_READ] {
        wire.near
            .post_send(request(opcode, (&source.region, 0), (&target.region, 0), 0));
        assert_eq!(wire.near.expect(P2PNIC_STATUS_OK).size, 0);
    }
    target.bo.assert_holds(Pattern(6));
}

fn region_is_a_part() {
    let rig = Rig::open();
    let Exported { bo, fd } = rig.export(1, 8 * PAGE, Placement::Vram);
    let source = rig.register(0, 2 * PAGE, Placement::Vram);
    source.bo.fill(Pattern(7));
    let part = rig.nic[1].__register(fd.as_raw_fd(), ACCESS_ALL, 3 * PAGE, 2 * PAGE);
    let part = must(part, format_args!("REG_REGION of a part"));
    let wire = rig.connect(4);
    wire.write(&source.region, &part);
    let found = bo.download(0, 8 * PAGE as usize);
    let mut expected = vec![0; 8 * PAGE as usize];
    expected[3 * PAGE as usize..5 * PAGE as usize]
        .copy_from_slice(&Pattern(7).bytes(0, 2 * PAGE as usize));
    assert_same(&found, &expected, "the object");
    wire.near.post_send(request(
        P2PNIC_OP_WRITE,
        (&source.region, 0),
        (&part, 1),
        2 * PAGE,
    ));
    wire.near.expect(P2PNIC_STATUS_REMOTE_ACCESS);
}

fn bytes_go_through_bars() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, 8 * PAGE, Placement::Vram),
        rig.register(1, 8 * PAGE, Placement::Vram),
    );
    let verdict = source.bo.query(rig.nic[0].pci()).verdict;
    igt::require(verdict == P2PGPU_PEER_YES, "a peer-to-peer route");
    let before = [rig.nic[0].query(), rig.nic[1].query()];
    rig.connect(4).write(&source.region, &target.region);
    let after = [rig.nic[0].query(), rig.nic[1].query()];
    assert_eq!(
        after[0].peer_read_bytes - before[0].peer_read_bytes,
        8 * PAGE
    );
    assert_eq!(
        after[1].peer_write_bytes - before[1].peer_write_bytes,
        8 * PAGE
    );
    assert_eq!(
        after[0].ram_read_bytes, before[0].ram_read_bytes,
        "guest memory was read"
    );
    assert_eq!(
        after[1].ram_write_bytes, before[1].ram_write_bytes,
        "guest memory was written"
    );
}

fn completions_are_in_order() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = rig.connect(64);
    for batch in 0..2 {
        for id in batch * 64..(batch + 1) * 64 {
            let size = id * 61 % PAGE;
            let write = request(
                P2PNIC_OP_WRITE,
                (&source.region, 0),
                (&target.region, 0),
                size,
            );
            wire.near.post_send(p2pnic_post_send { id, ..write });
        }
        for id in batch * 64..(batch + 1) * 64 {
            let done = wire.near.expect(P2PNIC_STATUS_OK);
            assert_eq!((done.id, done.size), (id, id * 61 % PAGE));
        }
    }
}

fn many_queue_pairs() {
    const SIZE: u64 = 2 * PAGE;
    let rig = Rig::open();
    let rig = &rig;
    thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || {
                let near = rig.register(0, SIZE, Placement::Vram);
                let far = rig.register(1, SIZE, Placement::Vram);
                let wire = rig.connect(4);
                for round in 0..8 {
                    let pattern = Pattern(seed << 32 | round);
                    if seed % 2 == 0 {
                        near.bo.fill(pattern);
                        wire.write(&near.region, &far.region);
                        far.bo.assert_holds(pattern);
                    } else {
                        far.bo.fill(pattern);
                        let (from, to) = (&far.region, &near.region);
                        wire.far
                            .post_send(request(P2PNIC_OP_WRITE, (from, 0), (to, 0), SIZE));
                        wire.far.expect(P2PNIC_STATUS_OK);
                        near.bo.assert_holds(pattern);
                    }
                }
            });
        }
    });
}

/// A wire whose far end has not connected, so that requests wait.
fn unconnected(rig: &Rig, entries: u32) -> Wire<'_> {
    let wire = Wire {
        near: rig.nic[0].create_qp(entries, entries),
        far: rig.nic[1].create_qp(entries, entries),
    };
    wire.near.connect(&wire.far);
    wire
}

fn queue_full_is_eagain() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let write = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), 64);
    for entries in [4, 16] {
        let wire = unconnected(&rig, entries);
        for id in 0..u64::from(entries) {
            wire.near.post_send(p2pnic_post_send { id, ..write });
            must(
                wire.near.__post_recv(id, &near.region),
                format_args!("POST_RECV"),
            );
        }
        refused(wire.near.__post_send(write), Errno::EAGAIN);
        refused(wire.near.__post_recv(0, &near.region), Errno::EAGAIN);
        refused(
            wire.near.__poll(1, Duration::from_millis(50)),
            Errno::ETIMEDOUT,
        );
        wire.far.connect(&wire.near);
        for id in 0..u64::from(entries) {
            assert_eq!(wire.near.expect(P2PNIC_STATUS_OK).id, id);
        }
        wire.near.post_send(write);
        wire.near.expect(P2PNIC_STATUS_OK);
    }
}

fn poll_timeout() {
    let rig = Rig::open();
    let wire = rig.connect(4);
    assert_eq!(wire.near.__poll(1, Duration::ZERO), Ok(vec![]));
    for limit in [1, 50, 200].map(Duration::from_millis) {
        let start = Instant::now();
        refused(wire.near.__poll(1, limit), Errno::ETIMEDOUT);
        let waited = start.elapsed();
        assert!(waited >= limit, "waited {waited:?} of {limit:?}");
        assert!(
            waited < limit + Duration::from_secs(60),
            "waited {waited:?} of {limit:?}"
        );
    }
}

fn poll_many() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = rig.connect(16);
    for id in 0..10 {
        let write = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), 8);
        wire.near.post_send(p2pnic_post_send { id, ..write });
    }
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let found = must(wire.near.__poll(3, TIMEOUT), format_args!("POLL"));
        assert!(
            (1..=3).contains(&found.len()),
            "{} completions",
            found.len()
        );
        seen.extend(found.iter().map(|done| done.id));
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    assert_eq!(wire.near.__poll(4096, Duration::ZERO), Ok(vec![]));
}

fn poll_wakes() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = rig.connect(4);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wire.near.wait().status);
        thread::sleep(Duration::from_millis(100));
        wire.start_write(&near.region, &far.region);
        assert_eq!(
            waiting.join().expect("the waiting thread"),
            P2PNIC_STATUS_OK
        );
    });
}

fn destroy_with_requests() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    far.bo.fill(Pattern(14));
    for _ in 0..10 {
        let wire = unconnected(&rig, 4);
        for _ in 0..4 {
            wire.start_write(&near.region, &far.region);
        }
        let number = wire.near.number;
        must(rig.nic[0].__destroy_qp(number), format_args!("DESTROY_QP"));
        refused(wire.near.__poll(1, Duration::ZERO), Errno::ENOENT);
    }
    far.bo.assert_holds(Pattern(14));
}

fn file_close_destroys() {
    let rig = Rig::open();
    let exported = rig.export(0, PAGE, Placement::Vram);
    let before = rig.nic[0].query().regions;
    let other = rig.nic[0].reopen();
    for _ in 0..20 {
        std::mem::forget(other.register(&exported.fd, ACCESS_ALL, PAGE));
        std::mem::forget(other.create_qp(4, 4));
    }
    assert_eq!(rig.nic[0].query().regions, before + 20);
    drop(other);
    assert_eq!(rig.nic[0].query().regions, before);
    assert_eq!(exported.bo.info().importers, 0);
}

fn files_are_apart() {
    let rig = Rig::open();
    let exported = rig.export(0, PAGE, Placement::Vram);
    let region = rig.nic[0].register(&exported.fd, ACCESS_ALL, PAGE);
    let qp = rig.nic[0].create_qp(4, 4);
    let other = rig.nic[0].reopen();
    refused(other.__deregister(region.key), Errno::ENOENT);
    refused(other.__destroy_qp(qp.number), Errno::ENOENT);
    let mut info = p2pnic_region_info {
        key: region.key,
        ..Default::default()
    };
    refused(other.__ioctl(&mut info), Errno::ENOENT);
    let mut connect = p2pnic_connect_qp {
        qp: qp.number,
        remote_qp: 0,
    };
    refused(other.__ioctl(&mut connect), Errno::ENOENT);
    let mut send = p2pnic_post_send {
        qp: qp.number,
        opcode: P2PNIC_OP_WRITE,
        local_key: region.key,
        ..Default::default()
    };
    refused(other.__ioctl(&mut send), Errno::ENOENT);
    region.info();
}
