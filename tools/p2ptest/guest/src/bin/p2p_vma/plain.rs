// SPDX-License-Identifier: GPL-2.0
//! Memory of all kinds, registered by its address and transferred.

use crate::{ONE, PAGE, User, mapped, memory, peer_slots, routed, user, write};
use p2pguest::gpu::Placement;
use p2pguest::map::Mapping;
use p2pguest::must;
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Rig, request};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::trace::Trace;

pub fn transfer() {
    let rig = Rig::open();
    let size = 64 * PAGE;
    let (source, target) = (user(&rig, 0, size), user(&rig, 1, size));
    source.bo.fill(ONE);
    let before = rig.nic.each_ref().map(|nic| nic.query());
    write(&rig, &source.region, &target.region);
    target.bo.assert_holds(ONE);
    let after = rig.nic.each_ref().map(|nic| nic.query());
    let read = after[0].peer_read_bytes - before[0].peer_read_bytes;
    let written = after[1].peer_write_bytes - before[1].peer_write_bytes;
    let ram = after[0].ram_read_bytes - before[0].ram_read_bytes;
    match Topology::current().has_route() {
        true => assert_eq!((read, written, ram), (size, size, 0)),
        false => assert_eq!((read, written, ram), (0, 0, size)),
    }
    for end in [&source, &target] {
        let (info, region) = (end.bo.info(), end.region.info());
        assert_eq!(info.fall_backs, 0);
        assert_eq!(
            (region.mapped, region.maps, region.invalidations),
            (1, 1, 0)
        );
    }
    // What the CPU sees is the same.
    target.map.assert_holds(ONE);
}

pub fn remote_read() {
    let rig = Rig::open();
    let (local, remote) = (user(&rig, 0, 16 * PAGE), user(&rig, 1, 16 * PAGE));
    remote.bo.fill(ONE);
    let wire = rig.connect(4);
    let (to, from) = ((&local.region, 0), (&remote.region, 0));
    wire.near
        .post_send(request(P2PNIC_OP_READ, to, from, 16 * PAGE));
    wire.near.expect(P2PNIC_STATUS_OK);
    local.bo.assert_holds(ONE);
}

pub fn object_in_system_memory() {
    let rig = Rig::open();
    let (bo, map) = mapped(&rig, 0, 16 * PAGE, Placement::System);
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    let info = bo.info();
    assert_eq!(
        (info.system_maps, info.peer_maps, info.fall_backs),
        (1, 0, 0)
    );
    let (sink, bytes) = memory(&rig, 1, 16 * PAGE);
    map.fill(ONE);
    write(&rig, &region, &sink);
    bytes.assert_holds(ONE);
}

pub fn evicted_object() {
    let rig = routed();
    let gpu = &rig.gpu[0];
    let bo = gpu.create_evictable(16 * PAGE);
    bo.set_exportable(true);
    bo.fill(ONE);
    let map = bo.map();
    let ballast = gpu.create(gpu.param(P2PGPU_PARAM_VRAM_FREE) + bo.size, Placement::Vram);
    assert_eq!(bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
    ballast.close();
    let trace = Trace::start();
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    let info = bo.info();
    assert_eq!(info.placement, P2PGPU_PLACEMENT_VRAM);
    assert_eq!((info.peer_maps, info.system_maps), (1, 0));
    let events = trace.take();
    let count = |name| events.iter().filter(|event| event.name == name).count();
    assert_eq!((count("map"), count("unmap")), (1, 0));
    let (sink, bytes) = memory(&rig, 1, 16 * PAGE);
    write(&rig, &region, &sink);
    bytes.assert_holds(ONE);
}

pub fn ordinary_memory() {
    let rig = Rig::open();
    let ((source, from), (target, to)) = (memory(&rig, 0, 33 * PAGE), memory(&rig, 1, 33 * PAGE));
    assert_eq!(source.info().maps, 1);
    from.fill(ONE);
    write(&rig, &source, &target);
    to.assert_holds(ONE);
}

pub fn mixed_with_ordinary_memory() {
    let rig = routed();
    let (bo, _) = mapped(&rig, 0, 8 * PAGE, Placement::Vram);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let (head, rest) = Mapping::anonymous(16 * PAGE as usize).split(4 * PAGE as usize);
    let (middle, tail) = rest.split(8 * PAGE as usize);
    let middle = middle.replaced(&rig.gpu[0], offset);
    let mixed = rig.nic[0].__register_user(head.address().get(), ACCESS_ALL, 16 * PAGE);
    let mixed = must(mixed, format_args!("REG_USER of mixed memory"));
    assert_eq!(peer_slots(&bo), 8);

    // To it, and back from it.
    let (far, bytes) = memory(&rig, 1, 16 * PAGE);
    bytes.fill(ONE);
    let wire = rig.connect(4);
    wire.near
        .post_send(request(P2PNIC_OP_READ, (&mixed, 0), (&far, 0), 16 * PAGE));
    wire.near.expect(P2PNIC_STATUS_OK);
    let expected = ONE.bytes(0, 16 * PAGE as usize);
    for (part, at) in [(&head, 0), (&middle, 4), (&tail, 12)] {
        let start = at * PAGE as usize;
        let mut found = vec![0; part.len()];
        part.read(0, &mut found);
        assert!(found == expected[start..start + found.len()], "from {at}");
    }
    bytes.fill(Pattern(2));
    wire.write(&mixed, &far);
    bytes.assert_holds(ONE);
}

pub fn two_objects_side_by_side() {
    let rig = routed();
    let (first, _) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let (second, _) = mapped(&rig, 1, 4 * PAGE, Placement::System);
    let [one, two] = [&first, &second].map(|bo| must(bo.__mmap_offset(), format_args!("offset")));
    let (left, right) = Mapping::anonymous(8 * PAGE as usize).split(4 * PAGE as usize);
    let left = left.replaced(&rig.gpu[0], one);
    let right = right.replaced(&rig.gpu[1], two);
    let both = rig.nic[0].__register_user(left.address().get(), ACCESS_ALL, 8 * PAGE);
    let both = must(both, format_args!("REG_USER of two objects"));
    assert_eq!((first.info().peer_maps, second.info().system_maps), (1, 1));
    first.fill(Pattern(5));
    right.fill(Pattern(6));
    let (far, bytes) = memory(&rig, 1, 8 * PAGE);
    write(&rig, &both, &far);
    let mut found = vec![0; 8 * PAGE as usize];
    bytes.read(0, &mut found);
    assert!(found[..4 * PAGE as usize] == Pattern(5).bytes(0, 4 * PAGE as usize));
    assert!(found[4 * PAGE as usize..] == Pattern(6).bytes(0, 4 * PAGE as usize));
}

/// Asserts that what NIC 0 reads at an address are these pages of pattern [`ONE`].
#[track_caller]
fn assert_shows(rig: &Rig, address: usize, first: u64, count: u64) {
    let region = rig.nic[0].__register_user(address, 0, count * PAGE);
    let region = must(region, format_args!("REG_USER of {count} pages"));
    let (far, bytes) = memory(rig, 1, count * PAGE);
    write(rig, &region, &far);
    let mut found = vec![0; bytes.len()];
    bytes.read(0, &mut found);
    assert!(
        found == ONE.bytes(first * PAGE, bytes.len()),
        "page {first}"
    );
}

pub fn part_of_a_mapping() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 16 * PAGE, Placement::Vram);
    bo.fill(ONE);
    for (first, count) in [(0, 1), (3, 5), (15, 1), (7, 9)] {
        let address = map.address().get() + (first * PAGE) as usize;
        assert_shows(&rig, address, first, count);
        assert_eq!(peer_slots(&bo), 0, "a slot was kept");
    }
}

pub fn split_and_moved_mapping() {
    let rig = routed();
    let (bo, whole) = mapped(&rig, 0, 16 * PAGE, Placement::Vram);
    bo.fill(ONE);
    let (head, map) = whole.split(4 * PAGE as usize);
    drop(head);
    assert_shows(&rig, map.address().get(), 4, 8);
    // A hole in the middle splits it.
    let (left, rest) = map.split(2 * PAGE as usize);
    let (middle, right) = rest.split(PAGE as usize);
    drop(middle);
    assert_shows(&rig, left.address().get(), 4, 2);
    assert_shows(&rig, right.address().get(), 7, 5);
    let right = right.moved();
    assert_shows(&rig, right.address().get(), 7, 5);
    assert_shows(&rig, right.address().get() + 2 * PAGE as usize, 9, 1);
}

pub fn mapped_dma_bufs() {
    let rig = routed();
    let object = rig.export(0, 16 * PAGE, Placement::Vram);
    object.bo.fill(ONE);
    let whole = Mapping::__new(&object.fd, 0, 16 * PAGE as usize);
    let whole = must(whole, format_args!("mmap of a dma-buf"));
    assert_shows(&rig, whole.address().get() + PAGE as usize, 1, 14);
    let window = object.bo.export_range(5..9);
    let part = Mapping::__new(&window, PAGE, 3 * PAGE as usize);
    let part = must(part, format_args!("mmap of a dma-buf of a range"));
    assert_shows(&rig, part.address().get(), 6, 3);
}

pub fn scattered_slots() {
    let rig = routed();
    let pages = 48;
    let scattered = rig.scatter(0, pages);
    let bo = &scattered.object.bo;
    bo.fill(ONE);
    let map = bo.map();
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    assert_eq!(peer_slots(bo), pages);
    // Each has an address of its own, which behind an IOMMU may be next to that of another.
    let segments = u64::from(region.info().segments);
    match Topology::current() {
        Topology::Iommu => assert!((1..=pages).contains(&segments), "{segments} segments"),
        _ => assert_eq!(segments, pages),
    }
    let (far, bytes) = memory(&rig, 1, pages * PAGE);
    write(&rig, &region, &far);
    bytes.assert_holds(ONE);
    // And the other way.
    let target = user(&rig, 1, pages * PAGE);
    write(&rig, &region, &target.region);
    target.bo.assert_holds(ONE);
}

pub fn shares_slots_with_dma_buf() {
    let rig = routed();
    let gpu = &rig.gpu[0];
    let available = || gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
    let held = rig.register(0, 8 * PAGE, Placement::Vram);
    let map = held.bo.map();
    let before = available();
    rig.touch(0, &held);
    assert_eq!((peer_slots(&held.bo), available()), (8, before - 8));
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    // Another NIC, and a part of it.
    let address = map.address().get() + 2 * PAGE as usize;
    let part = rig.nic[1].__register_user(address, 0, 3 * PAGE);
    let part = must(part, format_args!("REG_USER of a part"));
    assert_eq!((peer_slots(&held.bo), available()), (8, before - 8));
    assert_eq!(held.bo.info().peer_maps, 3);
    // They are there as long as one of them is.
    held.region.deregister();
    assert_eq!(peer_slots(&held.bo), 8);
    region.deregister();
    assert_eq!(peer_slots(&held.bo), 3);
    part.deregister();
    assert_eq!((peer_slots(&held.bo), available()), (0, before));
}

pub fn window_takes_its_slots_only() {
    let rig = routed();
    let gpu = &rig.gpu[0];
    let size = (200 << 20).min(gpu.vram / 4 * 3);
    assert!(size > gpu.aperture(), "the aperture could hold all of it");
    let (bo, map) = mapped(&rig, 0, size, Placement::Vram);
    let before = gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
    let at = size / 2;
    bo.upload(at, &ONE.bytes(0, 64 << 10));
    let address = map.address().get() + at as usize;
    let window = rig.nic[0].__register_user(address, ACCESS_ALL, 64 << 10);
    let window = must(window, format_args!("REG_USER of 64 KiB"));
    let info = bo.info();
    assert_eq!((info.slots, info.peer_slots), (16, 16));
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), before - 16);
    let (far, bytes) = memory(&rig, 1, 64 << 10);
    write(&rig, &window, &far);
    bytes.assert_holds(ONE);
    assert_eq!(bo.info().slots, 16);
}

pub fn touched_or_not() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 64 * PAGE, Placement::Vram);
    map.store(40 * PAGE as usize, 7);
    let touched = bo.info().slots;
    assert!(touched != 0, "a CPU's page has a slot");
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    let info = bo.info();
    assert_eq!((info.slots, info.peer_slots), (64, 64));
    // The CPU goes on by the same slots, and without a fault.
    assert_eq!(map.load(40 * PAGE as usize), 7);
    let (far, bytes) = memory(&rig, 1, 64 * PAGE);
    write(&rig, &region, &far);
    assert_eq!(bytes.load(40 * PAGE as usize), 7);
    assert_eq!(bytes.load(0), 0);
}

pub fn shown_to_users() {
    let rig = routed();
    let trace = Trace::start();
    let User { region, map, bo } = user(&rig, 0, 4 * PAGE);
    bo.move_to(Placement::System);
    let info = bo.info();
    assert_eq!((info.peer_maps, info.invalidations), (1, 1));
    assert_eq!(info.importers, 0, "a mapping is not attached");
    let (far, _bytes) = memory(&rig, 1, 4 * PAGE);
    write(&rig, &region, &far);
    let info = bo.info();
    assert_eq!((info.system_maps, info.fall_backs), (1, 0));
    drop((region, map));
    let names: Vec<_> = trace.take().into_iter().map(|event| event.name).collect();
    let expected = ["map", "invalidate", "unmap", "migrate", "map", "unmap"];
    let mut rest = names.iter();
    for name in expected {
        let is = |found: &String| found.ends_with(name);
        assert!(rest.any(is), "no {name} in {names:?}");
    }
}
