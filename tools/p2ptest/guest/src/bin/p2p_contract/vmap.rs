// SPDX-License-Identifier: GPL-2.0
//! The kernel reaches an exported object by its CPU: `vmap` of a dma-buf of ours.

use crate::{PAGE, Place, assert_place, device, place_of_peers, require_route};
use nix::errno::Errno;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Placement};
use p2pguest::importer::{Attach, Direction, Importer};
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::refused;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use std::os::fd::AsRawFd;
use std::ptr;

const SIZE: u64 = 8 * PAGE;

/// An importer without hardware, as those are who only want to look.
#[track_caller]
fn viewer(rig: &Rig, fd: &impl AsRawFd) -> Importer {
    Importer::attach(fd, Attach::peer(device(rig)).no_peer().software())
}

#[track_caller]
fn assert_views(importer: &Importer, pattern: Pattern) {
    let expected = pattern.bytes(0, SIZE as usize);
    assert_same(&importer.vread(0, SIZE as usize), &expected, "the mapping");
}

#[track_caller]
fn assert_movable(bo: &Bo<'_>) {
    assert_eq!(bo.info().pins, 0);
    bo.move_to(Placement::Vram);
    bo.move_to(Placement::System);
}

#[track_caller]
fn assert_immovable(bo: &Bo<'_>) {
    let info = bo.info();
    assert_eq!(info.placement, P2PGPU_PLACEMENT_SYSTEM);
    refused(bo.__move_to(Placement::Vram), Errno::EBUSY);
}

pub fn vmap_reads_and_writes() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let exported = rig.export(1, SIZE, placement);
        exported.bo.fill(Pattern(1));
        let viewer = viewer(&rig, &exported.fd);
        viewer.vmap();
        let info = exported.bo.info();
        let moved = u64::from(placement == Placement::Vram);
        assert_eq!((info.pins, info.fall_backs), (1, moved));
        assert_immovable(&exported.bo);
        assert_views(&viewer, Pattern(1));
        // Over the end of a page, and where no word begins.
        let (offset, bytes) = (PAGE - 3, Pattern(2).bytes(0, 2 * PAGE as usize));
        viewer.vwrite(offset, &bytes);
        let mut expected = Pattern(1).bytes(0, SIZE as usize);
        expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        let mut found = vec![0; SIZE as usize];
        exported.bo.map().read(0, &mut found);
        assert_same(&found, &expected, "the object");
        viewer.vunmap();
        exported.bo.move_to(Placement::Vram);
        exported.bo.map().read(0, &mut found);
        assert_same(&found, &expected, "the object in VRAM");
        assert_movable(&exported.bo);
    }
}

pub fn vmaps_of_several() {
    let rig = Rig::open();
    let exported = rig.export(1, SIZE, Placement::Vram);
    exported.bo.fill(Pattern(3));
    let window = exported.bo.export_range(2..5);
    let viewers = [&exported.fd, &exported.fd, &window].map(|fd| viewer(&rig, fd));
    for viewer in &viewers {
        viewer.vmap();
    }
    // The core has one mapping a dma-buf.
    assert_eq!(exported.bo.info().pins, 2);
    assert_views(&viewers[1], Pattern(3));
    let expected = Pattern(3).bytes(2 * PAGE, 3 * PAGE as usize);
    let found = viewers[2].vread(0, 3 * PAGE as usize);
    assert_same(&found, &expected, "the window");
    refused(viewers[2].__vread(3 * PAGE, &mut [0]), Errno::EINVAL);
    for viewer in &viewers {
        assert_immovable(&exported.bo);
        viewer.vunmap();
    }
    assert_movable(&exported.bo);
}

pub fn vmap_takes_from_peers() {
    require_route();
    let rig = Rig::open();
    let exported = rig.export(1, SIZE, Placement::Vram);
    exported.bo.fill(Pattern(4));
    let peer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    peer.map(Direction::Both);
    let viewer = viewer(&rig, &exported.fd);
    viewer.vmap();
    assert_eq!((peer.info().invalidations, peer.info().mappings), (1, 0));
    let index = peer.map(Direction::Both);
    assert_place(&rig, &peer, index, Place::Memory, SIZE);
    viewer.vunmap();
    exported.bo.move_to(Placement::Vram);
    let index = peer.map(Direction::Both);
    assert_place(&rig, &peer, index, place_of_peers(), SIZE);
    exported.bo.assert_holds(Pattern(4));
}

pub fn vmap_refusals() {
    let rig = Rig::open();
    let exported = rig.export(1, SIZE, Placement::Vram);
    let viewer = viewer(&rig, &exported.fd);
    let count = |reason: &str| {
        let numbers = Debugfs::default().refusals(rig.gpu[1].pci());
        numbers.expect("debugfs")[reason]
    };

    let before = count("no_route");
    let strict = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT;
    exported.bo.move_to(Placement::System);
    exported.bo.set_peer(strict);
    viewer.vmap();
    assert_immovable(&exported.bo);
    viewer.vunmap();
    exported.bo.move_to(Placement::Vram);
    refused(viewer.__vmap(), Errno::EXDEV);
    let info = exported.bo.info();
    assert_eq!((info.placement, info.pins), (P2PGPU_PLACEMENT_VRAM, 0));
    assert_eq!((info.refusals, count("no_route")), (1, before + 1));

    let before = count("not_flagged");
    exported.bo.set_peer(0);
    refused(viewer.__vmap(), Errno::EPERM);
    assert_eq!(count("not_flagged"), before + 1);
    exported.bo.set_exportable(true);
    viewer.vmap();
    // The flag cannot be taken from who is not told.
    refused(exported.bo.__set_peer(0), Errno::EBUSY);
}

pub fn vmap_of_pinned() {
    require_route();
    let rig = Rig::open();
    let exported = rig.export(1, SIZE, Placement::Vram);
    let peer = Importer::attach(&exported.fd, Attach::peer(device(&rig)));
    peer.pin();
    let viewer = viewer(&rig, &exported.fd);
    refused(viewer.__vmap(), Errno::EBUSY);
    assert_eq!(exported.bo.info().placement, P2PGPU_PLACEMENT_VRAM);
    peer.unpin();
    viewer.vmap();
    peer.pin();
    viewer.vunmap();
    assert_immovable(&exported.bo);
    peer.unpin();
    assert_movable(&exported.bo);
}

pub fn vmap_ends_with_its_importer() {
    let rig = Rig::open();
    let exported = rig.export(1, SIZE, Placement::Vram);
    for by_detach in [true, false] {
        let viewer = viewer(&rig, &exported.fd);
        viewer.vmap();
        assert_immovable(&exported.bo);
        if by_detach {
            viewer.detach();
        } else {
            drop(viewer);
        }
        assert_movable(&exported.bo);
    }
}

pub fn vmap_outlives_handle_and_device() {
    let rig = Rig::open();
    let pci = rig.gpu[1].pci();
    let exported = rig.export(1, SIZE, Placement::Vram);
    exported.bo.fill(Pattern(5));
    let viewers = [(); 2].map(|()| viewer(&rig, &exported.fd));
    viewers[0].vmap();
    drop(exported);
    assert_views(&viewers[0], Pattern(5));
    let unbound = Unbound::new("p2pgpu", pci);
    assert_views(&viewers[0], Pattern(5));
    viewers[0].vunmap();
    refused(viewers[1].__vmap(), Errno::ENODEV);
    drop(viewers);
    drop(rig);
    drop(unbound);
    wait_until("the GPU comes back", || gpu_is_there(pci));
}

pub fn bad_vmap_requests() {
    let rig = Rig::open();
    let alone = Importer::open();
    refused(alone.__vmap(), Errno::ENOTCONN);
    let exported = rig.export(1, SIZE, Placement::System);
    let viewer = viewer(&rig, &exported.fd);
    let mut byte = [0];
    refused(viewer.__vunmap(), Errno::EINVAL);
    refused(viewer.__vread(0, &mut byte), Errno::EINVAL);
    refused(viewer.__vwrite(0, &byte), Errno::EINVAL);
    viewer.vmap();
    refused(viewer.__vmap(), Errno::EBUSY);
    for offset in [SIZE, u64::MAX] {
        refused(viewer.__vread(offset, &mut byte), Errno::EINVAL);
        refused(viewer.__vwrite(offset, &byte), Errno::EINVAL);
    }
    let mut nowhere = p2p_importer_access {
        offset: 0,
        size: 1,
        data: 0,
    };
    for request in [P2P_IMPORTER_IOCTL_VREAD, P2P_IMPORTER_IOCTL_VWRITE] {
        // SAFETY: the structure is the one that the request is for; its bytes are
        // where this process has none, or the structure itself is.
        let results = unsafe {
            [
                viewer.__ioctl_raw(request, (&raw mut nowhere).cast()),
                viewer.__ioctl_raw(request, ptr::null_mut()),
            ]
        };
        assert_eq!(results, [Err(Errno::EFAULT); 2]);
    }
}
