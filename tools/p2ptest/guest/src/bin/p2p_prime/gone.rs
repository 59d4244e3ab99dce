// SPDX-License-Identifier: GPL-2.0
//! Devices and processes that go away while they import or export.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::dmabuf::Access;
use p2pguest::foreign::Exporter;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::igt::{self, Outcome};
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::Rig;
use p2pguest::shared::share;
use p2pguest::sys::uapi::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// The GPUs are back, and reach each other's objects.
#[track_caller]
fn assert_works() {
    wait_until("all GPUs are there", || {
        Gpu::nodes().is_ok_and(|nodes| nodes.len() == 2)
    });
    let rig = Rig::open();
    share(&rig, Pattern(3)).assert_copies(Pattern(3));
}

pub fn exporter_goes() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    let map = shared.there.map();
    shared.assert_copies(Pattern(1));
    let (copies, there) = (AtomicU64::new(0), &shared.there);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            loop {
                match there.__checksum(0, there.size) {
                    Ok(_) => copies.fetch_add(1, Ordering::Relaxed),
                    Err(errno) => break errno,
                };
            }
        });
        wait_until("copies are made", || copies.load(Ordering::Relaxed) > 2);
        let unbound = Unbound::new("p2pgpu", rig.gpu[0].pci());
        let ended = worker.join().expect("the worker");
        assert_eq!(ended, Errno::ENODEV);
        refused(there.__checksum(0, 8), Errno::ENODEV);
        drop(unbound);
    });
    let child = igt::fork(|| {
        map.load(0);
    });
    assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS));
    // The importer was not touched, and still has the handle.
    assert_eq!(there.info().size, there.size);
    let own = rig.gpu[1].create(4096, Placement::Vram);
    own.fill(Pattern(2));
    own.assert_holds(Pattern(2));
    wait_until("the GPU comes back", || gpu_is_there(rig.gpu[0].pci()));
    refused(there.__checksum(0, 8), Errno::ENODEV);
    assert_works();
}

pub fn importer_goes() {
    let rig = Rig::open();
    let shared = share(&rig, Pattern(1));
    shared.assert_copies(Pattern(1));
    let foreign = Exporter::Vgem.export(8192);
    foreign.map(0, 8192).store(0, 6);
    let imported = rig.gpu[1].import(&foreign);
    imported.checksum(0, 8192);
    let (map, foreign_map) = (shared.there.map(), imported.map());
    let (copies, there) = (AtomicU64::new(0), &shared.there);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while there.__checksum(0, there.size).is_ok() {
                copies.fetch_add(1, Ordering::Relaxed);
            }
        });
        wait_until("copies are made", || copies.load(Ordering::Relaxed) > 2);
        let unbound = Unbound::new("p2pgpu", rig.gpu[1].pci());
        assert!(worker.join().is_ok());
        let info = shared.here.bo.info();
        assert_eq!((info.importers, info.peer_slots), (0, 0));
        refused(there.__checksum(0, 8), Errno::ENODEV);
        refused(imported.__info(), Errno::ENODEV);
        refused(rig.gpu[1].__import(raw(&foreign)), Errno::ENODEV);
        // Mappings are the exporters'.
        assert_eq!(map.load(0), Pattern(2).word(0));
        assert_eq!(foreign_map.load(0), 6);
        drop(unbound);
    });
    // The exporter can do with it what it likes.
    shared.here.bo.move_to(Placement::System);
    shared.here.bo.assert_holds(Pattern(2));
    foreign.begin(Access::Both);
    foreign.end(Access::Both);
    assert_works();
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}

pub fn both_go() {
    for order in [[0, 1], [1, 0]] {
        let rig = Rig::open();
        let shared = share(&rig, Pattern(1));
        shared.assert_copies(Pattern(1));
        let unbound = order.map(|index| Unbound::new("p2pgpu", rig.gpu[index].pci()));
        refused(shared.there.__checksum(0, 8), Errno::ENODEV);
        refused(shared.here.bo.__info(), Errno::ENODEV);
        drop(unbound);
        assert_works();
    }
}

pub fn importer_is_killed() {
    let rig = Rig::open();
    let here = rig.export(0, 4 * rig.gpu[0].page, Placement::Vram);
    here.bo.fill(Pattern(1));
    let foreign = Exporter::Heap.export(4 << 12);
    for _ in 0..3 {
        let child = igt::fork(|| {
            let gpu = Gpu::open(1);
            let bos = [gpu.import(&here.fd), gpu.import(&foreign)];
            loop {
                let copied = bos[0].__copy_to(&bos[1], bos[0].size);
                assert_eq!(copied, Ok(()));
            }
        });
        let maps = || here.bo.info().peer_maps + here.bo.info().system_maps;
        let before = maps();
        wait_until("it copies", || {
            here.bo.info().importers == 1 && maps() > before
        });
        child.assert_runs();
        child.kill();
        wait_until("it has let go", || here.bo.info().importers == 0);
        assert_eq!(here.bo.info().peer_slots, 0);
    }
    here.bo.move_to(Placement::System);
    here.bo.assert_holds(Pattern(1));
    assert_eq!(here.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
}
