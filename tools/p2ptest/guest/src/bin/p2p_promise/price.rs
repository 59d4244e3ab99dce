// SPDX-License-Identifier: GPL-2.0
//! What operations cost the device: register accesses, each of which leaves the guest.

use crate::{hold, open, registered};
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::map::Mapping;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Exported, Rig};
use p2pguest::sys::uapi::*;

/// Register accesses of a GPU so far, with those that it takes to ask. Not those that are made
/// because this machine is too slow to answer in time.
#[track_caller]
fn accesses(gpu: &Gpu) -> u64 {
    let debugfs = Debugfs::default();
    let counted = || {
        let late = debugfs.activity(gpu.pci())?["late_answers"];
        let counters = debugfs.counters("p2pgpu", gpu.pci())?;
        Ok::<_, std::io::Error>(counters["reg_reads"] + counters["reg_writes"] - late)
    };
    match counted() {
        Ok(count) => count,
        Err(error) => panic!("debugfs: {error}"),
    }
}

/// Register accesses that `run` makes the driver of a GPU do.
#[track_caller]
fn price(gpu: &Gpu, run: impl FnOnce()) -> u64 {
    let first = accesses(gpu);
    let asking = accesses(gpu) - first;
    let before = accesses(gpu);
    run();
    accesses(gpu) - before - asking
}

fn walk(gpu: &Gpu, map: &Mapping, pages: impl Iterator<Item = u64>) {
    for page in pages {
        map.store((page * gpu.page) as usize, page);
    }
}

/// Pages of the objects that are walked over.
const PAGES: u64 = 512;

pub fn sequential_walk() {
    let gpu = Gpu::open(0);
    for start in [0, 5] {
        let bo = gpu.create(PAGES * gpu.page, Placement::Vram);
        let map = bo.map();
        let first = price(&gpu, || walk(&gpu, &map, start..PAGES));
        assert!((1..=PAGES / 16).contains(&first), "{first} accesses");
        assert_eq!(price(&gpu, || walk(&gpu, &map, start..PAGES)), 0);
    }
}

/// Leaves GPU 0 half as many slots as the objects have pages.
#[track_caller]
fn squeeze(rig: &Rig) -> p2pguest::rig::Registered<'_> {
    rig.hold_slots(0, rig.gpu[0].slots - PAGES / 2)
}

pub fn sequential_walk_under_pressure() {
    let rig = open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let bo = gpu.create(PAGES * gpu.page, Placement::Vram);
    let map = bo.map();
    for round in 0..3 {
        let price = price(gpu, || walk(gpu, &map, 0..PAGES));
        assert!(
            (1..=PAGES / 16).contains(&price),
            "{price} accesses in round {round}"
        );
    }
}

pub fn random_walk() {
    let rig = open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let bo = gpu.create(PAGES * gpu.page, Placement::Vram);
    let map = bo.map();
    let steps = 2 * PAGES;
    let pages = (0..steps).map(|step| Pattern(3).word(step) % PAGES);
    let price = price(gpu, || walk(gpu, &map, pages));
    assert!((1..=steps).contains(&price), "{price} accesses");
}

pub fn mapping_any_size() {
    let rig = open();
    let gpu = &rig.gpu[0];
    // Slots that CPUs use in an order of their own, so that what is mapped is scattered.
    let used = gpu.create(gpu.aperture(), Placement::Vram);
    let map = used.map();
    for pages in [1, 7, 100, gpu.slots / 2] {
        walk(gpu, &map, (0..gpu.slots).step_by(3));
        let held = registered(&rig, pages);
        let price_of_map = price(gpu, || hold(&rig, &held));
        assert!(
            (1..=3).contains(&price_of_map),
            "mapping {pages} pages: {price_of_map} accesses"
        );
        let price_of_end = price(gpu, || {
            held.bo.set_peer(0);
        });
        assert_eq!(held.bo.info().peer_slots, 0);
        assert!(
            price_of_end <= 3,
            "invalidating {pages} pages: {price_of_end} accesses"
        );
    }
}

pub fn unmapping_any_size() {
    let rig = open();
    let gpu = &rig.gpu[0];
    for pages in [1, 7, 100, gpu.slots / 2] {
        let Exported { bo, fd } = rig.export(0, pages * gpu.page, Placement::Vram);
        let late = Attach::peer(rig.nic[0].pci()).answer(Answer::Keep, 0);
        let importer = Importer::attach(&fd, late);
        importer.map(Direction::Both);
        for _ in 0..2 {
            assert_eq!(price(gpu, || importer.unmap(0)), 0, "unmapping {pages}");
            let again = price(gpu, || {
                importer.map(Direction::Both);
            });
            assert_eq!(again, 0, "mapping {pages} again");
        }
        // Only now its slots show nothing any more.
        bo.move_to(Placement::System);
        let price = price(gpu, || importer.unmap(0));
        assert!((1..=3).contains(&price), "letting go of {pages}: {price}");
    }
}

pub fn mapping_again_is_free() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let held = registered(&rig, 100);
    let both = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    held.bo.set_peer(both);
    hold(&rig, &held);
    for _ in 0..3 {
        // Clearing a flag takes the mapping back.
        let price = price(gpu, || {
            held.bo.set_exportable(true);
            assert_eq!(held.bo.info().peer_slots, 0);
            held.bo.set_peer(both);
            hold(&rig, &held);
        });
        assert_eq!(price, 0);
    }
    assert_eq!(held.bo.info().peer_maps, 4);
}
