// SPDX-License-Identifier: GPL-2.0
//! The fdinfo of open files.

use crate::{open, peer, reserve_all};
use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::importer::{Direction, Importer};
use p2pguest::refused;
use p2pguest::rig::RESERVED;
use p2pguest::submit::{Context, fill};
use p2pguest::sys::uapi::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// What the kernel shows of a file.
struct FdInfo(BTreeMap<String, String>);

impl FdInfo {
    #[track_caller]
    fn of(gpu: &Gpu) -> Self {
        let path = format!("/proc/self/fdinfo/{}", gpu.as_fd().as_raw_fd());
        let text = fs::read_to_string(path).expect("fdinfo");
        let lines = text.lines().map(|line| {
            let (key, value) = line.split_once(':').expect("a key and a value");
            (key.to_owned(), value.trim().to_owned())
        });
        Self(lines.collect())
    }

    #[track_caller]
    fn text(&self, key: &str) -> &str {
        match self.0.get(key) {
            Some(value) => value,
            None => panic!("no key {key}: {:?}", self.0),
        }
    }

    /// A number, in bytes if it has a unit.
    #[track_caller]
    fn number(&self, key: &str) -> u64 {
        let text = self.text(key);
        let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
        let factor = match unit {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            _ => panic!("{key}: an unknown unit: {text:?}"),
        };
        factor * number.parse::<u64>().expect("a number")
    }

    /// Pages: total, shared, resident and active, in a kind of memory.
    #[track_caller]
    fn pages(&self, region: &str, page: u64) -> [u64; 4] {
        ["total", "shared", "resident", "active"].map(|what| {
            let bytes = self.number(&format!("drm-{what}-{region}"));
            assert_eq!(bytes % page, 0, "whole pages");
            bytes / page
        })
    }
}

/// What GPU's file shows: pages in VRAM, in system memory, and in the aperture.
#[track_caller]
fn assert_pages(gpu: &Gpu, vram: [u64; 4], memory: [u64; 4], aperture: [u64; 4]) {
    let info = FdInfo::of(gpu);
    let found = ["vram", "memory", "aperture"].map(|region| info.pages(region, gpu.page));
    assert_eq!(found, [vram, memory, aperture]);
}

const NONE: [u64; 4] = [0; 4];

pub fn fdinfo_names_the_client() {
    let gpu = Gpu::open(0);
    let (info, other) = (FdInfo::of(&gpu), FdInfo::of(&gpu.reopen()));
    for info in [&info, &other] {
        assert_eq!(info.text("drm-driver"), "p2pgpu");
        assert_eq!(info.text("drm-pdev"), gpu.pci().to_string());
    }
    assert_ne!(info.number("drm-client-id"), other.number("drm-client-id"));
}

pub fn fdinfo_counts_memory() {
    let gpu = Gpu::open(0);
    assert_pages(&gpu, NONE, NONE, NONE);
    let vram = gpu.create(5 * gpu.page, Placement::Vram);
    let system = gpu.create(3 * gpu.page, Placement::System);
    assert_pages(&gpu, [5, 0, 5, 0], [3, 0, 3, 0], NONE);
    system.move_to(Placement::Vram);
    assert_pages(&gpu, [8, 0, 8, 0], NONE, NONE);
    vram.move_to(Placement::System);
    assert_pages(&gpu, [3, 0, 3, 0], [5, 0, 5, 0], NONE);
    // What is exported is shared.
    vram.set_exportable(true);
    let fd = vram.export();
    assert_pages(&gpu, [3, 0, 3, 0], [5, 5, 5, 0], NONE);
    let other = gpu.reopen();
    assert_pages(&other, NONE, NONE, NONE);
    let imported = other.import(&fd);
    assert_pages(&other, NONE, [5, 5, 5, 0], NONE);
    drop(imported);
    assert_pages(&other, NONE, NONE, NONE);
    drop((vram, system));
    assert_pages(&gpu, NONE, NONE, NONE);
}

pub fn fdinfo_counts_what_can_be_purged() {
    let gpu = Gpu::open(0);
    let purgeable = |region| {
        let (info, key) = (FdInfo::of(&gpu), format!("drm-purgeable-{region}"));
        info.0
            .contains_key(&key)
            .then(|| info.number(&key) / gpu.page)
    };
    let bo = gpu.create_evictable(5 * gpu.page);
    let _other = gpu.create_evictable(3 * gpu.page);
    assert_eq!(purgeable("vram"), Some(0));
    // System memory is not what it makes room in.
    assert_eq!((purgeable("memory"), purgeable("aperture")), (None, None));
    bo.advise(P2PGPU_MADV_DONTNEED);
    assert_eq!(purgeable("vram"), Some(5));
    // What others rely on stays.
    bo.set_peer(RESERVED);
    assert_eq!(purgeable("vram"), Some(0));
    bo.set_peer(0);
    assert_eq!(purgeable("vram"), Some(5));
    let ballast = gpu.create(
        gpu.param(P2PGPU_PARAM_VRAM_FREE) + gpu.page,
        Placement::Vram,
    );
    assert_eq!(purgeable("vram"), Some(0));
    drop(ballast);
    bo.checksum(0, bo.size);
    assert_eq!(purgeable("vram"), Some(5));
    bo.advise(P2PGPU_MADV_WILLNEED);
    assert_eq!(purgeable("vram"), Some(0));
}

pub fn fdinfo_counts_slots() {
    let rig = open();
    let gpu = rig.gpu[0].reopen();
    let bo = gpu.create(64 * gpu.page, Placement::Vram);
    let in_vram = [64, 0, 64, 0];
    bo.map().store(0, 1);
    let shown = u64::from(bo.info().slots);
    assert!((1..64).contains(&shown));
    assert_pages(&gpu, in_vram, NONE, [shown, 0, shown, 0]);
    bo.set_peer(RESERVED);
    assert_pages(&gpu, in_vram, NONE, [64, 0, shown, 0]);
    let fd = bo.export_range(0..2);
    let importer = Importer::attach(&fd, peer(&rig));
    importer.map(Direction::Both);
    assert_pages(&gpu, in_vram, NONE, [64, 0, shown, 2]);
    bo.set_exportable(true);
    assert_eq!(
        importer.info().mappings,
        0,
        "the promise is gone, and so are peers"
    );
    assert_pages(&gpu, in_vram, NONE, [shown, 0, shown, 0]);
    bo.move_to(Placement::System);
    assert_pages(&gpu, NONE, in_vram, NONE);
}

pub fn fdinfo_tells_what_is_active() {
    let rig = open();
    let gpu = rig.gpu[0].reopen();
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    let fd = bo.export();
    let importer = Importer::attach(&fd, peer(&rig));
    importer.map(Direction::Both);
    assert_pages(&gpu, [4, 4, 4, 0], NONE, [4, 4, 4, 4]);
    importer.start_access();
    assert_pages(&gpu, [4, 4, 4, 4], NONE, [4, 4, 4, 4]);
    // It ends the access, and unmaps.
    bo.set_peer(0);
    assert_pages(&gpu, [4, 4, 4, 0], NONE, [4, 4, 4, 0]);
}

pub fn fdinfo_counts_events() {
    let rig = open();
    let gpu = rig.gpu[0].reopen();
    let counts = |gpu: &Gpu| {
        let info = FdInfo::of(gpu);
        ["invalidations", "fall-backs", "refusals"]
            .map(|name| info.number(&format!("p2pgpu-{name}")))
    };
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    refused(bo.__export(), Errno::EPERM);
    assert_eq!(counts(&gpu), [0, 0, 1]);
    bo.set_exportable(true);
    let fd = bo.export();
    let importer = Importer::attach(&fd, peer(&rig));
    importer.map(Direction::Both);
    bo.move_to(Placement::System);
    bo.move_to(Placement::Vram);
    assert_eq!(counts(&gpu), [1, 0, 1]);
    let _all = reserve_all(&rig);
    importer.map(Direction::Both);
    assert_eq!(counts(&gpu), [1, 1, 1]);
    assert_eq!(counts(&rig.gpu[0]), [0, 0, 0], "another file");
}

pub fn fdinfo_counts_engine_time() {
    let gpu = Gpu::open(0);
    let other = gpu.reopen();
    let time = |gpu: &Gpu| {
        let info = FdInfo::of(gpu);
        let text = info.text("drm-engine-copy");
        let number = text.strip_suffix(" ns").expect("nanoseconds");
        number.parse::<u64>().expect("a number")
    };
    assert_eq!([time(&gpu), time(&other)], [0, 0]);
    let bo = gpu.create(64 * gpu.page, Placement::Vram);
    let mut last = 0;
    let contexts = [0, 1].map(|_| Context::new(&gpu));
    for context in &contexts {
        context.run(&[fill(&bo, 1, bo.size)]);
        wait_until("the job has ended", || context.query().jobs == 0);
        let now = time(&gpu);
        assert!(now > last, "{now} after {last}");
        last = now;
    }
    // That of all contexts, also of those that are gone.
    let sum = contexts.iter().map(|c| c.query().engine_ns).sum::<u64>();
    assert_eq!(time(&gpu), sum);
    drop(contexts);
    assert_eq!([time(&gpu), time(&other)], [sum, 0]);
}
