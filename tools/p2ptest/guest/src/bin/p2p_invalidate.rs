// SPDX-License-Identifier: GPL-2.0
//! Tests of invalidation: objects that move, lose their flag or their owner
//! while NICs hold them, at rest and in the middle of transfers.

use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::flight::{SlowAccesses, moved};
use p2pguest::gpu::{Bo, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::nic::{ACCESS_ALL, TIMEOUT};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Registered, Rig, Wire, request};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::{refused, subtests};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SUBTESTS: &[Subtest] = subtests![
    /// A mapped object moves: the NIC lets go, and maps again when it needs to.
    move_while_registered,
    /// An object that nothing has mapped yet moves without an invalidation.
    move_before_first_mapping,
    /// Peer slots are free once the object left VRAM.
    move_frees_slots,
    /// The destination moves during transfers, and no byte is lost.
    move_destination_during_transfer,
    /// The source moves during transfers, and no byte is wrong.
    move_source_during_transfer,
    /// Both ends move during transfers.
    move_both_during_transfer,
    /// The destination moves during reads by the other NIC.
    move_during_remote_read,
    /// One object moves a hundred times while registered.
    repeated_moves,
    /// Two NICs hold one object; a move invalidates both.
    two_importers,
    /// Several regions of one object all come back after a move.
    regions_of_one_object,
    /// A CPU mapping shows the bytes after each move.
    cpu_mapping_follows_moves,
    /// CPU stores during moves are not lost.
    cpu_stores_during_moves,
    /// CPU faults do not take slots from peers, nor peers' bytes.
    cpu_pressure_during_transfer,
    /// Slots that the object got after a move show the right pages.
    other_object_takes_the_slots,
    /// The flag is taken during a transfer: it stops, and the region is revoked.
    unflag_during_transfer,
    /// A region is deregistered during a transfer.
    deregister_during_transfer,
    /// Handle and dma-buf are closed during a transfer, which goes on.
    close_object_during_transfer,
    /// The NIC's file is closed during a transfer.
    close_nic_during_transfer,
    /// The process is killed during a transfer.
    kill_during_transfer,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// A source at GPU 0 and NIC 0, a destination at GPU 1 and NIC 1.
struct Pair<'r> {
    rig: &'r Rig,
    source: Registered<'r>,
    target: Registered<'r>,
    wire: Wire<'r>,
}

impl<'r> Pair<'r> {
    #[track_caller]
    fn new(rig: &'r Rig, size: u64) -> Self {
        Self {
            rig,
            source: rig.register(0, size, Placement::Vram),
            target: rig.register(1, size, Placement::Vram),
            wire: rig.connect(4),
        }
    }

    /// Fills the source with a pattern and the destination with another.
    #[track_caller]
    fn prepare(&self, pattern: Pattern) {
        self.source.bo.fill(pattern);
        self.target.bo.fill(Pattern(!pattern.0));
    }

    #[track_caller]
    fn write(&self) {
        self.wire.write(&self.source.region, &self.target.region);
    }

    #[track_caller]
    fn write_and_verify(&self, pattern: Pattern) {
        self.prepare(pattern);
        self.write();
        self.target.bo.assert_holds(pattern);
    }
}

/// Rounds of a test that wants to meet a transfer in flight.
const MAX_ROUNDS: u64 = 200;
/// Transfers in flight that such a test must meet.
const MEETINGS: u64 = 3;
/// Rounds where there is no peer-to-peer route.
const ROUNDS_WITHOUT_ROUTE: u64 = 10;

/// Transfers again and again, doing something meanwhile, when NIC `end` has begun with
/// its part, until enough invalidations met a transfer in flight; verifies each round's
/// bytes.
#[track_caller]
fn disturb(
    pair: &Pair<'_>,
    end: usize,
    start: impl Fn(),
    disturbance: impl Fn() + Sync,
    verify: impl Fn(Pattern),
) {
    let before = pair.rig.busy_invalidations();
    // A transfer through system memory is over before it can be met.
    let (rounds, meetings) = match Topology::current().has_route() {
        true => (MAX_ROUNDS, MEETINGS),
        false => (ROUNDS_WITHOUT_ROUTE, 0),
    };
    for round in 0..rounds {
        pair.prepare(Pattern(round));
        let slow = SlowAccesses::new();
        let nic = &pair.rig.nic[end];
        let idle = moved(nic);
        start();
        wait_until("the transfer begins", || moved(nic) != idle);
        disturbance();
        drop(slow);
        pair.wire.near.expect(P2PNIC_STATUS_OK);
        verify(Pattern(round));
        if meetings != 0 && pair.rig.busy_invalidations() - before >= meetings {
            return;
        }
    }
    let met = pair.rig.busy_invalidations() - before;
    assert!(
        met >= meetings,
        "only {met} invalidations met a transfer in {rounds} rounds"
    );
}

/// Waits until a region has addresses: its transfer has begun.
#[track_caller]
fn wait_mapped(registered: &Registered<'_>) {
    let start = Instant::now();
    while registered.region.info().mapped == 0 {
        assert!(start.elapsed() < TIMEOUT, "the region was never mapped");
        thread::yield_now();
    }
}

/// There and back.
#[track_caller]
fn round_trip(bo: &Bo<'_>) {
    bo.move_to(Placement::System);
    bo.move_to(Placement::Vram);
}

fn move_while_registered() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 4 * 4096);
    pair.write_and_verify(Pattern(1));
    // Without a route each transfer brings the object to system memory.
    let steps = match Topology::current().has_route() {
        true => [Placement::System, Placement::Vram].repeat(2),
        false => vec![Placement::Vram; 4],
    };
    for (count, placement) in (1..).zip(steps) {
        let before = rig.nic[1].query();
        pair.target.bo.move_to(placement);
        let (info, region) = (pair.target.bo.info(), pair.target.region.info());
        assert_eq!(info.invalidations, count, "invalidations of the object");
        assert_eq!(
            (region.invalidations, region.mapped),
            (count, 0),
            "the region"
        );
        assert_eq!(info.importers, 1, "the importer stays attached");
        pair.write_and_verify(Pattern(count + 1));
        let (region, after) = (pair.target.region.info(), rig.nic[1].query());
        assert_eq!((region.maps, region.mapped), (count + 1, 1), "mapped again");
        let ram = after.ram_write_bytes - before.ram_write_bytes;
        let peer = after.peer_write_bytes - before.peer_write_bytes;
        match placement {
            Placement::System => assert_eq!((peer, ram), (0, 4 * 4096)),
            // Without a route there is but one way: checked in p2p_export.
            Placement::Vram => assert_eq!(peer + ram, 4 * 4096),
        }
    }
}

fn move_before_first_mapping() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 4096);
    pair.target.bo.move_to(Placement::System);
    assert_eq!(pair.target.bo.info().invalidations, 0, "nothing was mapped");
    assert_eq!(pair.target.region.info().maps, 0);
    pair.write_and_verify(Pattern(1));
    assert_eq!(pair.target.bo.info().system_maps, 1);
}

fn move_frees_slots() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 64 * 4096);
    pair.write_and_verify(Pattern(1));
    igt::require(pair.target.bo.info().peer_maps == 1, "a peer-to-peer route");
    assert_eq!(pair.target.bo.info().peer_slots, 64);
    pair.target.bo.move_to(Placement::System);
    let info = pair.target.bo.info();
    assert_eq!((info.slots, info.peer_slots), (0, 0));
    assert_eq!(
        rig.gpu[1].param(P2PGPU_PARAM_SLOTS_AVAILABLE),
        rig.gpu[1].slots
    );
}

fn move_destination_during_transfer() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, rig.bulk_size());
    disturb(
        &pair,
        1,
        || {
            pair.wire
                .start_write(&pair.source.region, &pair.target.region)
        },
        || round_trip(&pair.target.bo),
        |pattern| pair.target.bo.assert_holds(pattern),
    );
}

fn move_source_during_transfer() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, rig.bulk_size());
    disturb(
        &pair,
        0,
        || {
            pair.wire
                .start_write(&pair.source.region, &pair.target.region)
        },
        || round_trip(&pair.source.bo),
        |pattern| {
            pair.target.bo.assert_holds(pattern);
            pair.source.bo.assert_holds(pattern);
        },
    );
}

fn move_both_during_transfer() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, rig.bulk_size());
    disturb(
        &pair,
        1,
        || {
            pair.wire
                .start_write(&pair.source.region, &pair.target.region)
        },
        || {
            thread::scope(|scope| {
                scope.spawn(|| round_trip(&pair.source.bo));
                round_trip(&pair.target.bo);
            });
        },
        |pattern| pair.target.bo.assert_holds(pattern),
    );
}

fn move_during_remote_read() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, rig.bulk_size());
    // NIC 0 reads what NIC 1 holds: the roles of the objects are swapped.
    let read = || {
        let (local, remote) = (&pair.source.region, &pair.target.region);
        pair.wire
            .near
            .post_send(request(P2PNIC_OP_READ, (local, 0), (remote, 0), local.size));
    };
    disturb(
        &pair,
        1,
        read,
        || round_trip(&pair.target.bo),
        |pattern| {
            pair.source.bo.assert_holds(Pattern(!pattern.0));
            pair.target.bo.assert_holds(Pattern(!pattern.0));
        },
    );
}

fn repeated_moves() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 4096);
    pair.prepare(Pattern(1));
    for _ in 0..50 {
        pair.write();
        round_trip(&pair.target.bo);
    }
    pair.target.bo.assert_holds(Pattern(1));
    let info = pair.target.bo.info();
    assert_eq!(info.invalidations, 50, "one each time that it was mapped");
    assert_eq!(info.peer_maps + info.system_maps, 50);
}

fn two_importers() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 8 * 4096);
    // NIC 0 holds the destination too, and reads it back from there.
    let second = rig.nic[0].register(&pair.target.fd, ACCESS_ALL, pair.target.bo.size);
    let copy = rig.register(1, pair.target.bo.size, Placement::System);
    pair.write_and_verify(Pattern(1));
    pair.wire.write(&second, &copy.region);
    copy.bo.assert_holds(Pattern(1));
    assert_eq!(pair.target.bo.info().importers, 2);
    for round in 1..=4 {
        round_trip(&pair.target.bo);
        assert_eq!(
            (second.info().invalidations, second.info().mapped),
            (round, 0)
        );
        let first = pair.target.region.info();
        assert_eq!((first.invalidations, first.mapped), (round, 0));
        pair.write_and_verify(Pattern(round + 1));
        pair.wire.write(&second, &copy.region);
        copy.bo.assert_holds(Pattern(round + 1));
    }
}

fn regions_of_one_object() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, 4 * 4096);
    let whole = rig.export(1, 16 * 4096, Placement::Vram);
    let parts: Vec<_> = (0..4)
        .map(|part| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&whole.fd);
            let part = rig.nic[1].__register(fd, ACCESS_ALL, part * 4 * 4096, 4 * 4096);
            p2pguest::must(part, format_args!("REG_REGION of a part"))
        })
        .collect();
    for round in 0..3 {
        for (seed, part) in (0..).zip(&parts) {
            pair.source.bo.fill(Pattern(round << 8 | seed));
            pair.wire.write(&pair.source.region, part);
        }
        for seed in 0..4 {
            let found = whole.bo.download(seed * 4 * 4096, 4 * 4096);
            assert_eq!(
                found,
                Pattern(round << 8 | seed).bytes(0, 4 * 4096),
                "part {seed}"
            );
        }
        round_trip(&whole.bo);
    }
}

fn cpu_mapping_follows_moves() {
    let rig = Rig::open();
    let bo = rig.gpu[0].create(16 * 4096, Placement::Vram);
    let map = bo.map();
    let mut expected = Pattern(1).bytes(0, 16 * 4096);
    map.write(0, &expected);
    for round in 0..10 {
        bo.move_to(Placement::ALL[round % 2]);
        let mut found = vec![0; expected.len()];
        map.read(0, &mut found);
        p2pguest::pattern::assert_same(&found, &expected, &format!("round {round}"));
        let mark = [round as u8; 100];
        expected[round * 5000..][..100].copy_from_slice(&mark);
        map.write(round * 5000, &mark);
    }
    assert_eq!(bo.download(0, expected.len()), expected);
}

fn cpu_stores_during_moves() {
    let rig = Rig::open();
    let bo = rig.gpu[0].create(16 * 4096, Placement::Vram);
    let map = bo.map();
    let stop = AtomicBool::new(false);
    let progress = AtomicU64::new(0);
    let stored = thread::scope(|scope| {
        let storing = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                progress.store(count, Ordering::Relaxed);
                let at = (count % 16) as usize * 4096;
                // A lost store shows as an old number in the same word.
                if count >= 16 {
                    assert_eq!(map.load(at), count - 16, "a store was lost");
                }
                map.store(at, count);
                count += 1;
            }
            count
        });
        let mut moves = 0;
        // Until each word was stored again, after the object had moved.
        while moves < 30 || (progress.load(Ordering::Relaxed) < 64 && !storing.is_finished()) {
            round_trip(&bo);
            moves += 1;
        }
        stop.store(true, Ordering::Relaxed);
        storing.join().expect("the storing thread")
    });
    for count in stored - 16..stored {
        let word = bo.download(count % 16 * 4096, 8);
        assert_eq!(word, count.to_ne_bytes());
    }
}

fn cpu_pressure_during_transfer() {
    let rig = Rig::open();
    let pair = Pair::new(&rig, rig.bulk_size());
    let gpu = &rig.gpu[1];
    let large = gpu.create(gpu.aperture(), Placement::Vram);
    let map = large.map();
    pair.prepare(Pattern(1));
    pair.wire
        .start_write(&pair.source.region, &pair.target.region);
    for page in 0..large.pages() {
        map.store((page * gpu.page) as usize, page);
    }
    pair.wire.near.expect(P2PNIC_STATUS_OK);
    pair.target.bo.assert_holds(Pattern(1));
    for page in 0..large.pages() {
        assert_eq!(map.load((page * gpu.page) as usize), page);
    }
    assert_eq!(
        pair.target.bo.info().invalidations,
        0,
        "CPU faults took a peer's slots"
    );
}

fn other_object_takes_the_slots() {
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let pair = Pair::new(&rig, gpu.bulk_size());
    // The other object needs all slots but those of a third, which stays out of the way.
    let pages = pair.target.bo.pages() + 256;
    let _held = rig.hold_slots(1, gpu.slots - pages);
    let other = gpu.create(pages * gpu.page, Placement::Vram);
    let map = other.map();
    for round in 0..2 {
        pair.write_and_verify(Pattern(round));
        pair.target.bo.move_to(Placement::System);
        for page in 0..other.pages() {
            map.store((page * gpu.page) as usize, page << 8 | round);
        }
        pair.target.bo.move_to(Placement::Vram);
        pair.write_and_verify(Pattern(round + 100));
        for page in 0..other.pages() {
            let found = map.load((page * gpu.page) as usize);
            assert_eq!(found, page << 8 | round, "page {page} in round {round}");
        }
    }
}

fn unflag_during_transfer() {
    let rig = Rig::open();
    for _ in 0..MAX_ROUNDS {
        let pair = Pair::new(&rig, rig.bulk_size());
        pair.prepare(Pattern(1));
        let _slow = SlowAccesses::new();
        pair.wire
            .start_write(&pair.source.region, &pair.target.region);
        wait_mapped(&pair.target);
        pair.target.bo.set_exportable(false);
        // No access is in flight any more: what is there now stays.
        let now = pair.target.bo.checksum(0, pair.target.bo.size);
        assert_eq!(
            pair.target.bo.info().peer_slots,
            0,
            "a peer still holds slots"
        );
        assert_eq!(pair.target.region.info().mapped, 0);
        let done = pair.wire.near.wait();
        assert_eq!(
            pair.target.bo.checksum(0, pair.target.bo.size),
            now,
            "a write came late"
        );
        match done.status {
            // It was through already: another round.
            P2PNIC_STATUS_OK => continue,
            P2PNIC_STATUS_REVOKED => {
                assert!(done.size < pair.source.region.size, "{done:?}");
                let region = pair.target.region.info();
                assert_eq!(
                    (region.mapped, region.last_error),
                    (0, Errno::EPERM as u32),
                    "the region"
                );
                let wire = rig.connect(4);
                wire.start_write(&pair.source.region, &pair.target.region);
                wire.near.expect(P2PNIC_STATUS_REMOTE_ACCESS);
                return;
            }
            _ => panic!("{done:?}"),
        }
    }
    panic!("no transfer was met in {MAX_ROUNDS} rounds");
}

/// How a transfer may end whose region went away.
#[track_caller]
fn assert_ended(pair_wire: &Wire<'_>) {
    let done = pair_wire.near.wait();
    let ends = [
        P2PNIC_STATUS_OK,
        P2PNIC_STATUS_REVOKED,
        P2PNIC_STATUS_REMOTE_ACCESS,
    ];
    assert!(ends.contains(&done.status), "{done:?}");
}

fn deregister_during_transfer() {
    let rig = Rig::open();
    for _ in 0..3 {
        let Pair {
            source,
            target,
            wire,
            ..
        } = Pair::new(&rig, rig.bulk_size());
        wire.start_write(&source.region, &target.region);
        wait_mapped(&target);
        target.region.deregister();
        // Nothing is in flight any more: what is there now stays.
        assert_eq!(target.bo.info().peer_slots, 0);
        let now = target.bo.checksum(0, target.bo.size);
        assert_ended(&wire);
        assert_eq!(
            target.bo.checksum(0, target.bo.size),
            now,
            "a write came late"
        );
    }
}

fn close_object_during_transfer() {
    let rig = Rig::open();
    let Pair {
        source,
        target,
        wire,
        ..
    } = Pair::new(&rig, rig.bulk_size());
    source.bo.fill(Pattern(1));
    wire.start_write(&source.region, &target.region);
    wait_mapped(&target);
    let Registered { region, fd, bo } = source;
    drop((fd, bo));
    wire.near.expect(P2PNIC_STATUS_OK);
    target.bo.assert_holds(Pattern(1));
    region.deregister();
}

fn close_nic_during_transfer() {
    let rig = Rig::open();
    let exported = rig.export(1, rig.bulk_size(), Placement::Vram);
    let source = rig.register(0, rig.bulk_size(), Placement::Vram);
    for _ in 0..3 {
        let far_nic = rig.nic[1].reopen();
        let key = {
            let region = far_nic.register(&exported.fd, ACCESS_ALL, exported.bo.size);
            let key = region.key;
            std::mem::forget(region);
            key
        };
        let far = far_nic.create_qp(4, 4);
        let near = rig.nic[0].create_qp(4, 4);
        near.connect(&far);
        far.connect(&near);
        near.post_send(p2pnic_post_send {
            opcode: P2PNIC_OP_WRITE,
            local_key: source.region.key,
            remote_key: key,
            size: source.region.size,
            ..Default::default()
        });
        thread::sleep(Duration::from_millis(2));
        std::mem::forget(far);
        drop(far_nic);
        assert_eq!(
            exported.bo.info().importers,
            0,
            "the file's region is still attached"
        );
        let now = exported.bo.checksum(0, exported.bo.size);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(
            exported.bo.checksum(0, exported.bo.size),
            now,
            "a write came late"
        );
    }
}

fn kill_during_transfer() {
    // Only the child opens the devices: it is killed with all it has.
    for delay in [0, 10, 50] {
        let child = igt::fork(|| {
            let rig = Rig::open();
            let pair = Pair::new(&rig, rig.bulk_size());
            loop {
                pair.wire
                    .start_write(&pair.source.region, &pair.target.region);
                round_trip(&pair.target.bo);
                pair.wire.near.expect(P2PNIC_STATUS_OK);
            }
        });
        thread::sleep(Duration::from_millis(100 + delay));
        child.kill();
    }
    // The devices work as before; leaks show in the resources.
    let rig = Rig::open();
    Pair::new(&rig, 4096).write_and_verify(Pattern(1));
    refused(rig.nic[0].__deregister(0xffff_ffff), Errno::ENOENT);
}
