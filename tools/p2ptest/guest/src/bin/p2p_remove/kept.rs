// SPDX-License-Identifier: GPL-2.0
//! Importers that do not let go when the device goes.

use crate::assert_works;
use nix::errno::Errno;
use p2pguest::binding::{Unbound, Unloaded};
use p2pguest::drm::PciAddress;
use p2pguest::gpu::Placement;
use p2pguest::host;
use p2pguest::igt;
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::pattern::Pattern;
use p2pguest::rig::Rig;
use p2pguest::stray::{self, Log, Stray};
use p2pguest::sys::uapi::*;
use std::fs;

/// Has GPU 0 wait only so long for importers, until it is bound again.
#[track_caller]
fn be_impatient(pci: PciAddress) {
    let path = pci.sysfs().join("importer_timeout_ms");
    fs::write(path, "1000").expect("a file in sysfs");
}

pub fn importer_never_unmaps() {
    let rig = Rig::open();
    let (gpu, pci) = (&rig.gpu[0], rig.gpu[0].pci());
    let exported = rig.export(0, 8 * gpu.page, Placement::Vram);
    exported.bo.fill(Pattern(12));
    let keeps = Attach::peer(rig.nic[0].pci()).answer(Answer::Keep, 0);
    let importer = Importer::attach(&exported.fd, keeps);
    let index = importer.map(Direction::Both);
    let ranges = importer.ranges(index);
    // Nobody else's bytes are at its addresses, whatever becomes of the device.
    let assert_kept = || {
        for (range, offset) in ranges.iter().scan(0, |at, range| {
            let offset = *at;
            *at += range.size;
            Some((range, offset))
        }) {
            let found = stray::read(0, range.dma, 64);
            assert_eq!(found, Stray::Peer(Pattern(12).bytes(offset, 64)));
        }
    };
    assert_kept();

    be_impatient(pci);
    let mut log = Log::from_now();
    let unbound = Unbound::new("p2pgpu", pci);
    assert!(log.has("importers do not let go of 1 mappings"), "silence");
    assert_eq!(importer.info().mappings, 1);
    assert_kept();

    let refusal = unbound.__bind().map_err(|e| e.raw_os_error());
    assert_eq!(refusal, Err(Some(Errno::EBUSY as i32)));
    assert!(log.has("importers keep 1 mappings of an earlier binding"));
    assert_kept();

    importer.unmap(index);
    drop((importer, exported));
    drop(rig);
    drop(unbound);
    assert_works();
}

pub fn access_never_ends() {
    // The slots are not the same afterwards.
    host::retire_guest();
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    igt::expect_gone(gpu.pci());
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let exported = rig.export(0, 8 * gpu.page, Placement::Vram);
    let keeps = Attach::peer(rig.nic[0].pci()).answer(Answer::Keep, 0);
    let importer = Importer::attach(&exported.fd, keeps);
    let busy = Importer::attach(&exported.fd, keeps);
    importer.map(Direction::Both);
    busy.start_access();
    be_impatient(gpu.pci());

    // The kernel's log tells of lost slots once, perhaps long ago.
    importer.unmap(0);
    // Whenever it accesses them, they are nobody else's.
    drop((importer, busy, exported));
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), gpu.slots - 8);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free - 8 * gpu.page);
    let bo = gpu.create(gpu.aperture(), Placement::Vram);
    let map = bo.map();
    for page in 0..bo.pages() {
        map.store((page * gpu.page) as usize, page);
    }
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), gpu.slots - 8);

    let unbound = Unbound::new("p2pgpu", gpu.pci());
    let refusal = unbound.__bind().map_err(|e| e.raw_os_error());
    assert_eq!(refusal, Err(Some(Errno::EBUSY as i32)));

    // The next driver does not know of them.
    drop((map, bo));
    drop(rig);
    drop(Unloaded::new("p2pgpu"));
    drop(unbound);
    assert_works();
}
