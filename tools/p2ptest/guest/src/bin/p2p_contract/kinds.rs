// SPDX-License-Identifier: GPL-2.0
//! What importers may do: unmap late, map anew, die, only read or only write.

use crate::{
    PAGE, Place, assert_place, assert_reads, device, place_of_peers, place_without_move,
    require_route,
};
use nix::errno::Errno;
use p2pguest::gpu::Placement;
use p2pguest::igt;
use p2pguest::importer::{Answer, Attach, Direction, Importer, Kind};
use p2pguest::nic::TIMEOUT;
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::Rig;
use p2pguest::stray::{self, Stray};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at what somebody else does.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits for what an importer does by itself.
#[track_caller]
fn wait_until(what: &str, importer: &Importer, done: impl Fn(&p2p_importer_info) -> bool) {
    let start = Instant::now();
    while !done(&importer.info()) {
        assert!(start.elapsed() < TIMEOUT, "{what}: {:?}", importer.info());
        thread::sleep(PAUSE);
    }
}

pub fn unmap_from_work() {
    require_route();
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(1));
    let how = Attach::peer(device(&rig)).answer(Answer::UnmapLater, 300);
    let importer = Importer::attach(&exported.fd, how);
    importer.map(Direction::Both);
    exported.bo.move_to(Placement::System);
    exported.bo.move_to(Placement::Vram);
    exported.bo.assert_holds(Pattern(1));
    wait_until("the unmap", &importer, |info| info.late_unmaps == 1);
    let info = importer.info();
    assert_eq!((info.invalidations, info.mappings), (1, 0));
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), gpu.slots);
    exported.bo.assert_holds(Pattern(1));
}

pub fn map_again_before_unmap() {
    require_route();
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let exported = rig.export(1, 8 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(2));
    let how = Attach::peer(device(&rig)).answer(Answer::Keep, 0);
    let importer = Importer::attach(&exported.fd, how);
    importer.map(Direction::Both);
    exported.bo.move_to(Placement::System);
    assert_eq!(importer.map(Direction::Both), 1);
    assert_place(&rig, &importer, 1, Place::Memory, 8 * PAGE);
    exported.bo.move_to(Placement::Vram);
    assert_eq!(importer.map(Direction::Both), 2);
    assert_place(&rig, &importer, 2, Place::Aperture, 8 * PAGE);
    assert_reads(&importer, 2, Pattern(2));
    assert_eq!(importer.info().invalidations, 2);
    // Old slots drain, new ones are held.
    let available = || gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
    assert_eq!(available(), gpu.slots - 16);
    importer.unmap(0);
    assert_eq!(available(), gpu.slots - 8);
    importer.unmap(0);
    assert_reads(&importer, 0, Pattern(2));
    importer.unmap(0);
    assert_eq!(available(), gpu.slots);
}

pub fn remap_in_the_race_window() {
    let rig = Rig::open();
    let exported = rig.export(1, 8 * PAGE, place_without_move());
    exported.bo.fill(Pattern(3));
    let how = Attach::peer(device(&rig)).answer(Answer::Remap, 0);
    let importer = Importer::attach(&exported.fd, how);
    importer.map(Direction::Both);
    // Its work may be slow to run: it is to meet a few moves.
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 20 || importer.info().remaps < 3 {
        assert!(start.elapsed() < TIMEOUT, "it does not map again");
        // Out of VRAM and back; in `none` the importer itself moves it out again at once.
        for placement in Placement::ALL {
            exported.bo.move_to(placement);
        }
        rounds += 1;
    }
    wait_until("the last remap", &importer, |info| {
        info.late_unmaps == info.invalidations
    });
    let info = importer.info();
    assert_eq!((info.remap_error, info.unlocked), (0, 0));
    assert_eq!(info.remaps, info.late_unmaps);
    assert_eq!(info.mappings, 1);
    assert_place(&rig, &importer, 0, place_of_peers(), 8 * PAGE);
    assert_reads(&importer, 0, Pattern(3));
    exported.bo.assert_holds(Pattern(3));
}

/// Runs importers in a process that is killed when all of them are there.
#[track_caller]
fn kill_importers(rig: &Rig, fd: &impl AsRawFd, count: u32, start: impl Fn(usize) -> Importer) {
    let bo = rig.gpu[1].import(fd);
    let child = igt::fork(|| {
        let _importers: Vec<_> = (0..count as usize).map(start).collect();
        loop {
            thread::park();
        }
    });
    let begun = Instant::now();
    while bo.info().importers < count || bo.info().peer_maps + bo.info().system_maps == 0 {
        assert!(begun.elapsed() < TIMEOUT, "the child does not attach");
        thread::sleep(PAUSE);
    }
    child.kill();
    // The handle is the caller's object's.
    bo.into_handle();
}

#[track_caller]
fn await_no_importers(exported: &p2pguest::rig::Exported<'_>) {
    let begun = Instant::now();
    while exported.bo.info().importers != 0 {
        assert!(begun.elapsed() < TIMEOUT, "an importer is left");
        thread::sleep(PAUSE);
    }
    let info = exported.bo.info();
    assert_eq!((info.pins, info.peer_slots), (0, 0));
}

pub fn dies_while_mapped() {
    let rig = Rig::open();
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(4));
    for answer in [Answer::Unmap, Answer::Keep] {
        kill_importers(&rig, &exported.fd, 2, |_| {
            let how = Attach::peer(device(&rig)).answer(answer, 0);
            let importer = Importer::attach(&exported.fd, how);
            importer.map(Direction::Both);
            importer
        });
        await_no_importers(&exported);
        exported.bo.move_to(Placement::System);
        exported.bo.move_to(Placement::Vram);
        exported.bo.assert_holds(Pattern(4));
    }
}

/// Kills importers of an object that do what `hold` does, and asserts that they leave it
/// to others.
#[track_caller]
fn assert_nothing_stays(count: u32, hold: impl Fn(usize, &Importer)) {
    let rig = Rig::open();
    let exported = rig.export(1, 16 * PAGE, place_without_move());
    exported.bo.fill(Pattern(5));
    kill_importers(&rig, &exported.fd, count, |number| {
        let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
        hold(number, &importer);
        importer
    });
    await_no_importers(&exported);
    exported.bo.move_to(Placement::System);
    exported.bo.move_to(Placement::Vram);
    exported.bo.assert_holds(Pattern(5));
}

pub fn dies_while_pinned() {
    assert_nothing_stays(3, |number, importer| {
        if number != 1 {
            importer.pin();
        }
        importer.map(Direction::Both);
    });
}

pub fn dies_while_busy() {
    // One: others could not unmap before its access is over.
    assert_nothing_stays(1, |_, importer| {
        importer.start_access();
        importer.map(Direction::Both);
    });
}

pub fn directions() {
    let rig = Rig::open();
    let translated = Topology::current() == Topology::Iommu;
    for placement in Placement::ALL {
        let exported = rig.export(1, 4 * PAGE, placement);
        let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
        exported.bo.fill(Pattern(6));
        let index = importer.map(Direction::ToDevice);
        assert_reads(&importer, index, Pattern(6));
        importer.unmap(index);
        exported.bo.assert_holds(Pattern(6));

        let index = importer.map(Direction::FromDevice);
        let start = importer.ranges(index)[0].dma;
        if translated {
            // What it writes could not be read back either: see held_addresses_work.
            let place = match placement {
                Placement::Vram => Place::Aperture,
                Placement::System => Place::Memory,
            };
            assert_place(&rig, &importer, index, place, 4 * PAGE);
        } else {
            let bytes = Pattern(7).bytes(0, 64);
            assert!(!matches!(stray::write(1, start, &bytes), Stray::Refused(_)));
            assert_eq!(exported.bo.download(0, 64), bytes);
        }
        importer.unmap(index);
    }
}

pub fn without_peer_to_peer() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(8));
    let importer = Importer::attach(&exported.fd, Attach::peer(device(&rig)).no_peer());
    assert_eq!(importer.info().is_peer, 0);
    for round in 1..=3 {
        let index = importer.map(Direction::Both);
        assert_place(&rig, &importer, index, Place::Memory, 4 * PAGE);
        assert_reads(&importer, index, Pattern(8));
        let info = exported.bo.info();
        assert_eq!((info.system_maps, info.peer_maps), (round, 0));
        exported.bo.move_to(Placement::Vram);
        assert_eq!(u64::from(importer.info().invalidations), round);
        assert_eq!(importer.info().mappings, 0);
    }
}

pub fn software_device() {
    let rig = Rig::open();
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    for kind in [Kind::Dynamic, Kind::Static] {
        exported.bo.move_to(Placement::Vram);
        let how = Attach::peer(device(&rig)).software().kind(kind);
        let importer = Importer::attach(&exported.fd, how);
        let index = importer.map(Direction::Both);
        assert_eq!(exported.bo.info().peer_maps, 0);
        assert_place(&rig, &importer, index, Place::Memory, 4 * PAGE);
    }
}

pub fn all_kinds_at_once() {
    let rig = Rig::open();
    let exported = rig.export(1, 16 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(9));
    let peer = Attach::peer(device(&rig));
    let told = [
        peer,
        peer.answer(Answer::Keep, 0),
        peer.answer(Answer::UnmapLater, 50),
        peer.answer(Answer::Remap, 0),
        Attach::peer(rig.nic[0].pci()),
        peer.no_peer(),
    ]
    .map(|how| Importer::attach(&exported.fd, how));
    for importer in &told {
        importer.map(Direction::Both);
    }
    // The last one needs system memory: the others were told, and may map anew.
    assert_eq!(exported.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
    let old = Importer::attach(&exported.fd, peer.kind(Kind::Static));
    let index = old.map(Direction::ToDevice);
    assert_reads(&old, index, Pattern(9));
    refused(exported.bo.__move_to(Placement::Vram), Errno::EBUSY);
    old.unmap(index);
    exported.bo.move_to(Placement::Vram);
    exported.bo.assert_holds(Pattern(9));
    assert_eq!(exported.bo.info().importers, 7);
    for importer in &told {
        assert_eq!(importer.info().unlocked, 0);
    }
}

/// Slab memory that cannot be reclaimed, bytes.
fn slab() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find(|line| line.starts_with("SUnreclaim:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    number.expect("SUnreclaim of /proc/meminfo") * 1024
}

/// Whether the kernel looks for memory that nobody refers to.
fn kmemleak_looks() -> bool {
    Path::new("/sys/kernel/debug/kmemleak").exists()
}

pub fn unmap_frees_the_scatterlist() {
    const RANGES: u64 = 64;
    const CYCLES: u32 = 10_000;
    /// What a list of so many entries takes at least: a `struct scatterlist` each.
    const LIST: u64 = RANGES * 32;
    require_route();
    let rig = Rig::open();
    let scattered = rig.scatter(1, RANGES);
    let importer = Importer::attach(&scattered.object.fd, Attach::peer(device(&rig)));
    // Behind an IOMMU the list has one entry, which is too little to be seen.
    let (index, ranges) = p2pguest::must(importer.__map(Direction::Both), format_args!("MAP"));
    igt::require(
        u64::from(ranges) > RANGES / 2,
        "a list with an entry for each range, or nearly so",
    );
    importer.unmap(index);
    importer.cycle(Direction::Both, 100);
    if kmemleak_looks() {
        // It sees a single one, when the group has ended. Here a cycle may take long: each
        // range is a mapping that the DMA API's debugging keeps.
        return;
    }
    let before = slab();
    importer.cycle(Direction::Both, CYCLES);
    let grown = slab().saturating_sub(before);
    assert!(
        grown < LIST * u64::from(CYCLES) / 4,
        "{grown} bytes of slab are gone after {CYCLES} cycles"
    );
}

pub fn bad_requests() {
    let rig = Rig::open();
    let exported = rig.export(1, PAGE, Placement::Vram);
    let pci = device(&rig);
    let good = p2p_importer_attach {
        fd: exported.fd.as_raw_fd(),
        kind: P2P_IMPORTER_DYNAMIC,
        answer: P2P_IMPORTER_UNMAP,
        flags: P2P_IMPORTER_PEER2PEER,
        pci_domain: pci.domain,
        pci_bus: pci.bus,
        pci_device: pci.device,
        pci_function: pci.function,
        ..Default::default()
    };
    let importer = Importer::open();
    refused(importer.__detach(), Errno::ENOTCONN);
    refused(importer.__pin(), Errno::ENOTCONN);
    refused(importer.__map(Direction::Both), Errno::ENOTCONN);
    refused(importer.__info(), Errno::ENOTCONN);
    let bad = [
        (p2p_importer_attach { fd: -1, ..good }, Errno::EBADF),
        (p2p_importer_attach { kind: 3, ..good }, Errno::EINVAL),
        (p2p_importer_attach { answer: 4, ..good }, Errno::EINVAL),
        (p2p_importer_attach { flags: 4, ..good }, Errno::EINVAL),
        (p2p_importer_attach { pad: 1, ..good }, Errno::EINVAL),
        (
            p2p_importer_attach {
                delay_ms: 1,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            p2p_importer_attach {
                answer: P2P_IMPORTER_REMAP,
                delay_ms: P2P_IMPORTER_MAX_DELAY_MS + 1,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            p2p_importer_attach {
                kind: P2P_IMPORTER_STATIC,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            p2p_importer_attach {
                flags: P2P_IMPORTER_SOFTWARE,
                pci_bus: 1,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            p2p_importer_attach {
                pci_device: 32,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            p2p_importer_attach {
                pci_bus: 0xfe,
                ..good
            },
            Errno::ENXIO,
        ),
    ];
    for (arg, errno) in bad {
        refused(importer.__attach_raw(arg), errno);
    }
    let not_a_dma_buf = fs::File::open("/dev/null").expect("/dev/null");
    let fd = not_a_dma_buf.as_raw_fd();
    refused(
        importer.__attach_raw(p2p_importer_attach { fd, ..good }),
        Errno::EINVAL,
    );
    assert_eq!(exported.bo.info().importers, 0);
    assert_eq!(importer.__attach_raw(good), Ok(()));
    refused(importer.__attach_raw(good), Errno::EISCONN);
    refused(importer.__ranges(0), Errno::ENOENT);
    refused(importer.__unmap(0), Errno::ENOENT);
    // SAFETY: Nothing is at these addresses, and no such request takes an argument.
    unsafe {
        let nowhere = std::ptr::without_provenance_mut(8);
        refused(
            importer.__ioctl_raw(P2P_IMPORTER_IOCTL_MAP, nowhere),
            Errno::EFAULT,
        );
        refused(importer.__ioctl_raw(0x4900, nowhere), Errno::ENOTTY);
    }
    importer.detach();
    assert_eq!(exported.bo.info().importers, 0);
}
