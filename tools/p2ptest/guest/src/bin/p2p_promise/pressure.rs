// SPDX-License-Identifier: GPL-2.0
//! More is wanted than there are slots: who yields, and that all get on.

use crate::{hold, maps, open, registered};
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::igt;
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::map::Mapping;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{RESERVED, Registered, Rig, request};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Longer than peers are left alone after they mapped.
const OLD: Duration = Duration::from_millis(40);

/// Objects of a quarter of the aperture that NIC 0 holds, mapped in this order.
#[track_caller]
fn quarters<const N: usize>(rig: &Rig) -> [Registered<'_>; N] {
    std::array::from_fn(|_| {
        let held = registered(rig, rig.gpu[0].slots / 4);
        hold(rig, &held);
        held
    })
}

/// How often each was invalidated.
fn invalidations<const N: usize>(objects: &[Registered<'_>; N]) -> [u64; N] {
    objects.each_ref().map(|held| held.bo.info().invalidations)
}

pub fn coldest_yields_first() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held: [_; 4] = quarters(&rig);
    // The first one is mapped anew, by another NIC: it is the warmest now.
    let again = rig.nic[1].register(&held[0].fd, P2PNIC_ACCESS_REMOTE_READ, held[0].bo.size);
    let sink = rig.register(0, gpu.page, Placement::System);
    let wire = rig.connect(4);
    wire.far.post_send(request(
        P2PNIC_OP_WRITE,
        (&again, 0),
        (&sink.region, 0),
        gpu.page,
    ));
    wire.far.expect(P2PNIC_STATUS_OK);
    assert_eq!(held[0].bo.info().peer_maps, 2);
    thread::sleep(OLD);

    let one = registered(&rig, gpu.slots / 4);
    hold(&rig, &one);
    assert_eq!(invalidations(&held), [0, 1, 0, 0]);
    thread::sleep(OLD);
    let two = registered(&rig, gpu.slots / 2);
    hold(&rig, &two);
    assert_eq!(invalidations(&held), [0, 1, 1, 1]);
    // Who is reserved is not asked, however cold.
    held[0].bo.set_peer(RESERVED);
    thread::sleep(OLD);
    let most = registered(&rig, gpu.slots / 4 * 3);
    hold(&rig, &most);
    assert_eq!(invalidations(&held), [0, 1, 1, 1]);
    assert_eq!(one.bo.info().invalidations, 1);
    assert_eq!(two.bo.info().invalidations, 1);
}

pub fn hopeless_takes_nothing() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let [reserved, lent]: [_; 2] = quarters(&rig);
    reserved.bo.set_peer(RESERVED);
    thread::sleep(OLD);
    let large = registered(&rig, gpu.slots / 4 * 3 + 1);
    rig.touch(0, &large);
    assert_eq!(maps(&large.bo), (0, 1));
    assert_eq!(lent.bo.info().invalidations, 0);
    let fits = registered(&rig, gpu.slots / 4 * 3);
    hold(&rig, &fits);
    assert_eq!(lent.bo.info().invalidations, 1);
}

pub fn no_ping_pong() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _squeeze = rig.hold_slots(0, gpu.slots - 4);
    let objects = [registered(&rig, 3), registered(&rig, 3)];
    let sink = rig.register(1, gpu.page, Placement::System);
    let wire = rig.connect(4);
    let use_in_turn = || {
        for held in &objects {
            let (local, remote) = ((&held.region, 0), (&sink.region, 0));
            wire.near
                .post_send(request(P2PNIC_OP_WRITE, local, remote, gpu.page));
            wire.near.expect(P2PNIC_STATUS_OK);
        }
    };
    let fall_backs = || objects.each_ref().map(|held| held.bo.info().fall_backs);
    let grace = Setting::new(gpu.pci(), "peer_grace_ms");

    // Nobody is left alone: they take each other's slots.
    grace.write("0");
    (0..3).for_each(|_| use_in_turn());
    assert_eq!(fall_backs(), [0, 0]);
    assert_eq!(invalidations(&objects), [3, 2]);

    // The second gives in, as soon as it wants slots that the first has just got.
    grace.write("60000");
    (0..10).for_each(|_| use_in_turn());
    let holds = objects.each_ref().map(|held| held.bo.info().peer_slots);
    assert_eq!((fall_backs(), holds), ([1, 0], [0, 3]));
    assert_eq!(invalidations(&objects), [3, 2]);
}

pub fn contended_slots_are_waited_for() {
    /// How long an access goes on after its importer was told to let go.
    const ACCESS_MS: u32 = 20;
    let rig = open();
    let gpu = &rig.gpu[0];
    let grace = Setting::new(gpu.pci(), "peer_grace_ms");
    grace.write("0");
    let yields = rig.export(0, (gpu.slots - 4) * gpu.page, Placement::Vram);
    let wants = registered(&rig, 8);
    for round in 1..=10 {
        let how = Attach::peer(rig.nic[1].pci());
        let importer = Importer::attach(&yields.fd, how);
        importer.map(Direction::Both);
        // The slots of all are kept until its access has ended.
        let busy = Importer::attach(
            &yields.bo.export_range(0..1),
            how.answer(Answer::UnmapLater, ACCESS_MS),
        );
        busy.map(Direction::Both);
        busy.start_access();
        thread::scope(|scope| {
            // Clearing a flag takes mappings back, under the lock.
            scope.spawn(|| {
                yields
                    .bo
                    .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
                yields.bo.set_exportable(true);
            });
            while busy.info().invalidations == 0 {
                thread::yield_now();
            }
            rig.touch(0, &wants);
        });
        assert_eq!(maps(&wants.bo), (round, 0));
        drop((importer, busy));
        wants
            .bo
            .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
        wants.bo.set_exportable(true);
    }
}

pub fn cpu_takes_lent_slots() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = registered(&rig, gpu.slots);
    held.bo.fill(Pattern(1));
    let bo = gpu.create(gpu.page, Placement::Vram);
    let map = bo.map();
    for round in 1..=3 {
        hold(&rig, &held);
        // At once: the access waits until the peer may be asked.
        map.store(0, round);
        assert_eq!(map.load(0), round);
        let info = held.bo.info();
        assert_eq!((info.invalidations, info.peer_slots), (round, 0));
    }
    held.bo.assert_holds(Pattern(1));
}

/// Slots that tests of many processes leave to all of them together.
const FEW: u64 = 512;

/// Offset of the word that a page is marked with.
fn spot(gpu: &Gpu, page: u64) -> usize {
    (page * gpu.page + page % 512 * 8) as usize
}

/// Stores a word in each page, and sees whether it stays.
fn mark_and_verify(gpu: &Gpu, map: &Mapping, pages: u64, pattern: Pattern) {
    for page in 0..pages {
        map.store(spot(gpu, page), pattern.word(page));
    }
    for page in 0..pages {
        assert_eq!(
            map.load(spot(gpu, page)),
            pattern.word(page),
            "word in page {page}"
        );
    }
}

/// Maps the object for NIC 0 and takes it back, many times; it is never refused.
fn promise_is_kept(rig: &Rig, held: &Registered<'_>, rounds: u64) {
    let before = held.bo.info();
    for _ in 0..rounds {
        hold(rig, held);
        let answer = held.bo.query(rig.nic[0].pci());
        assert_eq!(
            (answer.verdict, answer.flags),
            (P2PGPU_PEER_YES, P2PGPU_PEER_QUERY_HOLDS)
        );
        held.bo.move_to(Placement::System);
        held.bo.move_to(Placement::Vram);
    }
    let info = held.bo.info();
    assert_eq!(info.peer_maps, before.peer_maps + rounds);
    assert_eq!(info.invalidations, before.invalidations + rounds);
    assert_eq!(
        (info.fall_backs, info.refusals, info.system_maps),
        (0, 0, 0)
    );
}

pub fn promise_under_pressure() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _squeeze = rig.hold_slots(0, gpu.slots - FEW);
    let promised = registered(&rig, FEW / 2);
    promised.bo.set_peer(RESERVED);
    promised.bo.fill(Pattern(7));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A CPU that wants all slots, and two objects whose peers want the rest of them.
        scope.spawn(|| {
            let bo = gpu.create(2 * FEW * gpu.page, Placement::Vram);
            let map = bo.map();
            while !stop.load(Ordering::Relaxed) {
                mark_and_verify(gpu, &map, bo.pages(), Pattern(8));
            }
        });
        scope.spawn(|| {
            let others = [registered(&rig, FEW / 2), registered(&rig, FEW / 4)];
            while !stop.load(Ordering::Relaxed) {
                for held in &others {
                    rig.touch(0, held);
                    held.bo.move_to(Placement::Vram);
                }
            }
        });
        promise_is_kept(&rig, &promised, 50);
        stop.store(true, Ordering::Relaxed);
    });
    promised.bo.assert_holds(Pattern(7));
}

/// Processes, and the pages of each: twenty times [`FEW`] in all.
const PROCESSES: u64 = 64;
const PAGES: u64 = 20 * FEW / PROCESSES;

/// What each of the processes does: its bytes are stored by the CPU, read by the engine, and, in
/// every fourth, by a NIC.
fn process(number: u64) {
    let pattern = Pattern(100 + number);
    let gpu = Gpu::open(0);
    let bo = gpu.create(PAGES * gpu.page, Placement::Vram);
    let map = bo.map();
    mark_and_verify(&gpu, &map, PAGES, pattern);
    if number.is_multiple_of(4) {
        let rig = Rig::open();
        let source = registered(&rig, PAGES);
        let target = rig.register(1, source.bo.size, Placement::System);
        source.bo.fill(pattern);
        rig.connect(4).write(&source.region, &target.region);
        target.bo.assert_holds(pattern);
    }
    let bytes = bo.download(0, bo.size as usize);
    for page in 0..PAGES {
        let word = &bytes[spot(&gpu, page)..][..8];
        assert_eq!(word, pattern.word(page).to_ne_bytes(), "page {page}");
    }
}

pub fn processes_under_pressure() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let _squeeze = rig.hold_slots(0, gpu.slots - FEW);
    let promised = registered(&rig, FEW / 4);
    promised.bo.set_peer(RESERVED);
    promised.bo.fill(Pattern(7));
    let children: Vec<_> = (0..PROCESSES)
        .map(|number| igt::fork(|| process(number)))
        .collect();
    promise_is_kept(&rig, &promised, 50);
    for child in children {
        child.join();
    }
    promised.bo.assert_holds(Pattern(7));
}
