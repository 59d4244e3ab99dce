// SPDX-License-Identifier: GPL-2.0
//! Tests of the peer flag, PRIME export and import, and the query that tells
//! in advance whether a peer can map an object.

use nix::errno::Errno;
use nix::sys::stat::fstat;
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::{RESERVED, Registered, Rig, request};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::{must, refused, subtests};
use std::fs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// Export of an object without the flag is refused with EPERM.
    unflagged_is_refused,
    /// The flag is shown, can be set twice, and can be taken back.
    flag_is_kept,
    /// Export after the flag was taken back is refused with EPERM.
    unflagged_again_is_refused,
    /// Import by the exporting file gives the same handle.
    self_import_same_handle,
    /// Import by another file gives the same object.
    import_in_other_file,
    /// Every export of an object is the same dma-buf.
    exports_are_one_dma_buf,
    /// The dma-buf keeps the object when the handle and the file are closed.
    dma_buf_outlives_file,
    /// Importers are counted.
    importers_are_counted,
    /// A NIC cannot register an object that lost its flag.
    unflagged_cannot_be_registered,
    /// A region whose object loses the flag is revoked, until it is registered anew.
    unflagged_cannot_be_mapped_again,
    /// The query says NOT_FLAGGED.
    query_not_flagged,
    /// The query says YES, and the slots that are missing.
    query_yes_and_slots,
    /// Slots that the CPU's mappings use already are not missing.
    query_counts_cpu_slots,
    /// The query says NO_SLOTS where too many are promised, not where they are lent.
    query_no_slots,
    /// The query says TOO_LARGE for more pages than there are slots.
    query_too_large,
    /// An object of exactly the aperture's size fits.
    query_whole_aperture,
    /// The query of a device that is not there is refused with ENXIO.
    query_no_such_device,
    /// The query of a malformed address is refused with EINVAL.
    query_malformed_address,
    /// For all devices on the bus, the verdict agrees with the route.
    query_all_devices,
    /// What the query promised, the mapping keeps.
    query_agrees_with_mapping,
    /// The query tells the route that the machine has.
    query_route_of_the_topology,
    /// A peer gets the aperture where there is a route, else system memory, which
    /// is counted; the bytes are right either way.
    peer_gets_what_the_route_allows,
    /// Objects in 1, 2 and 1000 ranges of the aperture, and in every second slot,
    /// map on every route, and the bytes are right.
    scattered_objects_map,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn unflagged_is_refused() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        refused(gpu.create(gpu.page, placement).__export(), Errno::EPERM);
    }
}

fn flag_is_kept() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    assert_eq!(bo.info().peer_flags, 0);
    for _ in 0..2 {
        bo.set_exportable(true);
        assert_eq!(bo.info().peer_flags, P2PGPU_PEER_EXPORTABLE);
    }
    bo.move_to(Placement::System);
    assert_eq!(bo.info().peer_flags, P2PGPU_PEER_EXPORTABLE, "after a move");
    for _ in 0..2 {
        bo.set_exportable(false);
        assert_eq!(bo.info().peer_flags, 0);
    }
}

fn unflagged_again_is_refused() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.set_exportable(true);
    drop(bo.export());
    bo.set_exportable(false);
    refused(bo.__export(), Errno::EPERM);
    bo.set_exportable(true);
    bo.export();
}

fn self_import_same_handle() {
    let rig = Rig::open();
    let exported = rig.export(0, rig.gpu[0].page, Placement::Vram);
    let imported = rig.gpu[0].import(&exported.fd);
    assert_eq!(imported.handle, exported.bo.handle);
    assert_eq!(
        exported.bo.info().importers,
        0,
        "a self-import is no importer"
    );
    // The two share one handle, which one of them closes.
    imported.into_handle();
}

fn import_in_other_file() {
    let rig = Rig::open();
    let exported = rig.export(0, 4 * rig.gpu[0].page, Placement::Vram);
    let other = rig.gpu[0].reopen();
    let imported = other.import(&exported.fd);
    assert_eq!(imported.size, exported.bo.size);
    exported.bo.fill(Pattern(1));
    imported.assert_holds(Pattern(1));
    imported.move_to(Placement::System);
    assert_eq!(exported.bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
    exported.bo.map().store(0, 7);
    assert_eq!(imported.map().load(0), 7);
}

fn exports_are_one_dma_buf() {
    let rig = Rig::open();
    let exported = rig.export(0, rig.gpu[0].page, Placement::Vram);
    let again = exported.bo.export();
    let from_import = rig.gpu[0].reopen().import(&exported.fd).export();
    let inode = |fd| must(fstat(fd), format_args!("fstat")).st_ino;
    assert_eq!(inode(&again), inode(&exported.fd));
    assert_eq!(inode(&from_import), inode(&exported.fd));
}

fn dma_buf_outlives_file() {
    let rig = Rig::open();
    let free = rig.gpu[0].param(P2PGPU_PARAM_VRAM_FREE);
    let other = rig.gpu[0].reopen();
    let bo = other.create(16 * rig.gpu[0].page, Placement::Vram);
    bo.fill(Pattern(2));
    bo.set_exportable(true);
    let fd = bo.export();
    drop(bo);
    drop(other);
    let imported = rig.gpu[0].import(&fd);
    drop(fd);
    imported.assert_holds(Pattern(2));
    assert_eq!(
        rig.gpu[0].param(P2PGPU_PARAM_VRAM_FREE),
        free - imported.size
    );
    drop(imported);
    assert_eq!(rig.gpu[0].param(P2PGPU_PARAM_VRAM_FREE), free);
}

fn importers_are_counted() {
    let rig = Rig::open();
    let exported = rig.export(0, rig.gpu[0].page, Placement::Vram);
    let importers = || exported.bo.info().importers;
    assert_eq!(importers(), 0);
    let first = rig.nic[0].register(&exported.fd, ACCESS_ALL, exported.bo.size);
    assert_eq!(importers(), 1);
    let second = rig.nic[1].register(&exported.fd, ACCESS_ALL, exported.bo.size);
    assert_eq!(importers(), 2);
    first.deregister();
    assert_eq!(importers(), 1);
    second.deregister();
    assert_eq!(importers(), 0);
    assert_eq!(exported.bo.info().pins, 0);
}

fn unflagged_cannot_be_registered() {
    let rig = Rig::open();
    let exported = rig.export(0, rig.gpu[0].page, Placement::Vram);
    exported.bo.set_exportable(false);
    let fd = exported.fd.as_raw_fd();
    refused(
        rig.nic[0].__register(fd, ACCESS_ALL, 0, exported.bo.size),
        Errno::EPERM,
    );
    assert_eq!(exported.bo.info().importers, 0);
}

fn unflagged_cannot_be_mapped_again() {
    let rig = Rig::open();
    let source = rig.register(0, rig.gpu[0].page, Placement::Vram);
    let target = rig.register(1, rig.gpu[1].page, Placement::Vram);
    let wire = rig.connect(4);
    source.bo.fill(Pattern(3));
    wire.write(&source.region, &target.region);
    target.bo.assert_holds(Pattern(3));

    source.bo.set_exportable(false);
    let info = source.bo.info();
    assert_eq!(
        (info.peer_slots, info.invalidations),
        (0, 1),
        "after the flag was taken"
    );
    assert_eq!(source.region.info().mapped, 0);
    source.bo.fill(Pattern(4));
    wire.start_write(&source.region, &target.region);
    assert_eq!(wire.near.expect(P2PNIC_STATUS_REVOKED).size, 0);
    let revoked = |when| {
        let region = source.region.info();
        assert_eq!(
            (region.mapped, region.last_error),
            (0, Errno::EPERM as u32),
            "{when}"
        );
    };
    revoked("after the flag was taken");

    // The flag does not bring the region back, but lets the object be registered anew.
    source.bo.set_exportable(true);
    let wire = rig.connect(4);
    wire.start_write(&source.region, &target.region);
    wire.near.expect(P2PNIC_STATUS_LOCAL_ACCESS);
    revoked("after the flag came back");
    target.bo.assert_holds(Pattern(3));
    let anew = rig.nic[0].register(&source.fd, ACCESS_ALL, source.bo.size);
    rig.connect(4).write(&anew, &target.region);
    target.bo.assert_holds(Pattern(4));
}

/// An unmapped and flagged object of GPU 0.
fn flagged(gpu: &Gpu, pages: u64) -> Bo<'_> {
    let bo = gpu.create(pages * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    bo
}

/// Asserts the parts of an answer.
#[track_caller]
fn assert_answer(bo: &Bo<'_>, rig: &Rig, verdict: u32, needed: u64, [free, other]: [u64; 2]) {
    for nic in &rig.nic {
        let answer = bo.query(nic.pci());
        assert_eq!(answer.verdict, verdict, "{answer:?}");
        assert_eq!(u64::from(answer.slots_needed), needed, "{answer:?}");
        assert_eq!(u64::from(answer.slots_free), free, "{answer:?}");
        assert_eq!(u64::from(answer.slots_reclaimable), other, "{answer:?}");
        assert_eq!(
            u64::from(answer.slots_total),
            rig.gpu[0].slots,
            "{answer:?}"
        );
    }
}

/// Skips where the machine has no route from NIC to GPU.
#[track_caller]
fn require_route(rig: &Rig) {
    let answer = flagged(&rig.gpu[0], 1).query(rig.nic[0].pci());
    igt::require(answer.route != P2PGPU_ROUTE_NONE, "a peer-to-peer route");
}

fn query_not_flagged() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    assert_answer(&bo, &rig, P2PGPU_PEER_NOT_FLAGGED, 4, [gpu.slots, 0]);
}

fn query_yes_and_slots() {
    let rig = Rig::open();
    require_route(&rig);
    let gpu = &rig.gpu[0];
    let bo = flagged(gpu, 100);
    assert_answer(&bo, &rig, P2PGPU_PEER_YES, 100, [gpu.slots, 0]);
    bo.move_to(Placement::System);
    assert_answer(&bo, &rig, P2PGPU_PEER_YES, 100, [gpu.slots, 0]);
}

fn query_counts_cpu_slots() {
    let rig = Rig::open();
    require_route(&rig);
    let gpu = &rig.gpu[0];
    let bo = flagged(gpu, 100);
    let map = bo.map();
    for page in 0..10 {
        map.load(page * 4096);
    }
    assert_eq!(bo.info().slots, 16);
    assert_answer(&bo, &rig, P2PGPU_PEER_YES, 84, [gpu.slots - 16, 0]);
    let other = flagged(gpu, 4);
    assert_answer(&other, &rig, P2PGPU_PEER_YES, 4, [gpu.slots - 16, 16]);
}

/// Makes NIC 0 map an object of GPU 0, by reading a page of it.
fn peer_maps(rig: &Rig, held: &Registered<'_>) {
    let target = rig.register(1, rig.gpu[1].page, Placement::System);
    let wire = rig.connect(4);
    let write = request(
        P2PNIC_OP_WRITE,
        (&held.region, 0),
        (&target.region, 0),
        rig.gpu[1].page,
    );
    wire.near.post_send(write);
    wire.near.expect(P2PNIC_STATUS_OK);
}

fn query_no_slots() {
    let rig = Rig::open();
    require_route(&rig);
    let gpu = &rig.gpu[0];
    let (half, quarter) = (gpu.slots / 2, gpu.slots / 4);
    let held = rig.register(0, gpu.aperture() / 4 * 3, Placement::Vram);
    let (large, small) = (flagged(gpu, half), flagged(gpu, quarter));
    assert_answer(&large, &rig, P2PGPU_PEER_YES, half, [gpu.slots, 0]);
    peer_maps(&rig, &held);
    // Its slots are lent: they can be had.
    let lent = [quarter, gpu.slots - quarter];
    assert_answer(&large, &rig, P2PGPU_PEER_YES, half, lent);
    assert_answer(&held.bo, &rig, P2PGPU_PEER_YES, 0, [quarter, 0]);
    held.bo.set_peer(RESERVED);
    let free = [quarter, 0];
    assert_answer(&large, &rig, P2PGPU_PEER_NO_SLOTS, half, free);
    assert_answer(&small, &rig, P2PGPU_PEER_YES, quarter, free);
    assert_answer(&held.bo, &rig, P2PGPU_PEER_YES, 0, free);
    held.region.deregister();
    // The slots stay promised.
    let answer = [quarter, gpu.slots - quarter];
    assert_answer(&large, &rig, P2PGPU_PEER_NO_SLOTS, half, answer);
    held.bo.set_exportable(true);
    assert_answer(&large, &rig, P2PGPU_PEER_YES, half, answer);
}

fn query_too_large() {
    let rig = Rig::open();
    require_route(&rig);
    let gpu = &rig.gpu[0];
    let bo = flagged(gpu, gpu.slots + 1);
    let answer = [gpu.slots, 0];
    assert_answer(&bo, &rig, P2PGPU_PEER_TOO_LARGE, gpu.slots + 1, answer);
}

fn query_whole_aperture() {
    let rig = Rig::open();
    require_route(&rig);
    let gpu = &rig.gpu[0];
    let held = rig.register(0, gpu.aperture(), Placement::Vram);
    assert_answer(&held.bo, &rig, P2PGPU_PEER_YES, gpu.slots, [gpu.slots, 0]);
    peer_maps(&rig, &held);
    assert_answer(&held.bo, &rig, P2PGPU_PEER_YES, 0, [0, 0]);
    assert_eq!(u64::from(held.bo.info().peer_slots), gpu.slots);
}

fn query_no_such_device() {
    let gpu = Gpu::open(0);
    let bo = flagged(&gpu, 1);
    let there = gpu.pci();
    let absent = [
        PciAddress {
            bus: 0xff,
            device: 0x1f,
            function: 7,
            ..there
        },
        PciAddress {
            domain: 0x1234,
            ..there
        },
        PciAddress {
            domain: u32::MAX,
            ..there
        },
        PciAddress {
            function: 7,
            ..there
        },
    ];
    for address in absent {
        refused(gpu.__query(bo.handle, address), Errno::ENXIO);
    }
}

fn query_malformed_address() {
    let rig = Rig::open();
    let bo = flagged(&rig.gpu[0], 1);
    let there = rig.nic[0].pci();
    let malformed = [
        PciAddress { bus: 256, ..there },
        PciAddress {
            bus: u32::MAX,
            ..there
        },
        PciAddress {
            device: 32,
            ..there
        },
        PciAddress {
            device: u32::MAX,
            ..there
        },
        PciAddress {
            function: 8,
            ..there
        },
        PciAddress {
            function: 1 << 31,
            ..there
        },
        // What a careless shift makes of the NIC's own address.
        PciAddress {
            bus: 0,
            device: there.device | (there.bus | 1) << 5,
            ..there
        },
        PciAddress {
            bus: there.bus | 1 << 8,
            ..there
        },
    ];
    for address in malformed {
        refused(rig.gpu[0].__query(bo.handle, address), Errno::EINVAL);
    }
}

fn query_all_devices() {
    let rig = Rig::open();
    let bo = flagged(&rig.gpu[0], 1);
    let mut seen = 0;
    for entry in fs::read_dir("/sys/bus/pci/devices").expect("the PCI bus") {
        let name = entry.expect("an entry of the PCI bus").file_name();
        let Ok(address) = name.to_string_lossy().parse::<PciAddress>() else {
            continue;
        };
        let answer = bo.query(address);
        let expected = match answer.route {
            P2PGPU_ROUTE_NONE => P2PGPU_PEER_NO_ROUTE,
            P2PGPU_ROUTE_SWITCH | P2PGPU_ROUTE_HOST_BRIDGE | P2PGPU_ROUTE_IOMMU => P2PGPU_PEER_YES,
            other => panic!("{address}: no such route: {other}"),
        };
        assert_eq!(answer.verdict, expected, "{address}: {answer:?}");
        seen += 1;
    }
    assert!(seen >= 4, "only {seen} devices on the bus");
    let routes = rig.nic.each_ref().map(|nic| bo.query(nic.pci()).route);
    assert_eq!(routes[0], routes[1], "the two NICs are alike");
}

fn query_agrees_with_mapping() {
    let rig = Rig::open();
    let held = rig.register(0, 16 * rig.gpu[0].page, Placement::Vram);
    let verdict = held.bo.query(rig.nic[0].pci()).verdict;
    let before = rig.nic[0].query();
    peer_maps(&rig, &held);
    let (info, after) = (held.bo.info(), rig.nic[0].query());
    if verdict == P2PGPU_PEER_YES {
        assert_eq!(
            (info.peer_maps, info.system_maps, info.peer_slots),
            (1, 0, 16)
        );
        assert_eq!(after.peer_read_bytes - before.peer_read_bytes, 4096);
        assert_eq!(after.ram_read_bytes, before.ram_read_bytes);
    } else {
        assert_eq!(
            (info.peer_maps, info.system_maps, info.peer_slots),
            (0, 1, 0)
        );
        assert_eq!(after.peer_read_bytes, before.peer_read_bytes);
        assert_eq!(after.ram_read_bytes - before.ram_read_bytes, 4096);
    }
}

fn query_route_of_the_topology() {
    let rig = Rig::open();
    let topology = Topology::current();
    for gpu in &rig.gpu {
        let bo = flagged(gpu, 1);
        let peers = rig.nic.iter().map(|nic| nic.pci());
        let others = rig.gpu.iter().map(Gpu::pci).filter(|pci| *pci != gpu.pci());
        for peer in peers.chain(others) {
            let answer = bo.query(peer);
            assert_eq!(answer.route, topology.route(), "{peer} in {topology:?}");
        }
    }
}

fn peer_gets_what_the_route_allows() {
    let rig = Rig::open();
    let size = rig.bulk_size();
    let (source, target) = (
        rig.register(0, size, Placement::Vram),
        rig.register(1, size, Placement::Vram),
    );
    source.bo.fill(Pattern(5));
    let before = rig.nic.each_ref().map(|nic| nic.query());
    rig.connect(4).write(&source.region, &target.region);
    let after = rig.nic.each_ref().map(|nic| nic.query());
    target.bo.assert_holds(Pattern(5));
    let route = Topology::current().has_route();
    for end in [&source, &target] {
        let info = end.bo.info();
        let (maps, placement) = match route {
            true => ((1, 0), P2PGPU_PLACEMENT_VRAM),
            false => ((0, 1), P2PGPU_PLACEMENT_SYSTEM),
        };
        assert_eq!((info.peer_maps, info.system_maps), maps);
        assert_eq!(info.placement, placement);
    }
    let moved = [
        after[0].peer_read_bytes - before[0].peer_read_bytes,
        after[1].peer_write_bytes - before[1].peer_write_bytes,
        after[0].ram_read_bytes - before[0].ram_read_bytes,
        after[1].ram_write_bytes - before[1].ram_write_bytes,
    ];
    let (peer, ram) = if route { (size, 0) } else { (0, size) };
    assert_eq!(
        moved,
        [peer, peer, ram, ram],
        "bytes through BARs, and of memory"
    );
}

fn scattered_objects_map() {
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    for ranges in [1, 2, 1000, gpu.slots / 2] {
        println!("{ranges} ranges");
        let scattered = rig.scatter(1, ranges);
        let bo = &scattered.object.bo;
        let region = rig.nic[1].register(&scattered.object.fd, ACCESS_ALL, bo.size);
        rig.touch_region(1, &region);
        let (info, segments) = (bo.info(), u64::from(region.info().segments));
        match Topology::current() {
            Topology::Switch | Topology::Bridge => assert_eq!(segments, ranges, "of the BAR"),
            Topology::Iommu => assert_eq!(segments, 1, "of IOVAs"),
            Topology::None => assert_eq!((info.peer_maps, info.system_maps), (0, 1)),
        }
        if Topology::current().has_route() {
            assert_eq!((info.peer_maps, info.system_maps), (1, 0));
            assert_eq!(u64::from(info.peer_slots), ranges);
        }
        // A page each at the start, in the middle and at the end.
        let source = rig.register(0, gpu.page, Placement::System);
        let wire = rig.connect(4);
        for (seed, page) in [0, ranges / 2, ranges - 1].into_iter().enumerate() {
            let pattern = Pattern(1000 + seed as u64);
            source.bo.fill(pattern);
            let at = page * gpu.page;
            wire.near.post_send(request(
                P2PNIC_OP_WRITE,
                (&source.region, 0),
                (&region, at),
                gpu.page,
            ));
            wire.near.expect(P2PNIC_STATUS_OK);
            let found = bo.download(at, gpu.page as usize);
            let expected = pattern.bytes(0, gpu.page as usize);
            assert_same(&found, &expected, &format!("page {page} of {ranges}"));
        }
    }
}
