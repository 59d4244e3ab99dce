// SPDX-License-Identifier: GPL-2.0
//! What cannot be registered by its address, and why.

use crate::{
    ONE, PAGE, assert_refused, assert_untouched, mapped, memory, peer_slots, refusals, routed,
    write,
};
use nix::errno::Errno;
use p2pguest::foreign::Exporter;
use p2pguest::gpu::Placement;
use p2pguest::igt;
use p2pguest::map::Mapping;
use p2pguest::must;
use p2pguest::nic::ACCESS_ALL;
use p2pguest::refused;
use p2pguest::rig::{RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::trace::Trace;

pub fn no_route() {
    igt::require(!Topology::current().has_route(), "devices without a route");
    let rig = Rig::open();
    let (bo, map) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let before = refusals(&rig.gpu[0], "no_route");
    for flags in [
        P2PGPU_PEER_EXPORTABLE,
        P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT,
    ] {
        bo.set_peer(flags);
        assert_refused(&rig, &map, ACCESS_ALL, Errno::EXDEV);
        assert_untouched(&bo);
        assert_eq!(bo.info().placement, P2PGPU_PLACEMENT_VRAM, "it was moved");
    }
    assert_eq!(refusals(&rig.gpu[0], "no_route"), before + 2);
    // With ordinary memory around it, nothing of that is kept either.
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let (left, right) = Mapping::anonymous(8 * PAGE as usize).split(4 * PAGE as usize);
    let right = right.replaced(&rig.gpu[0], offset);
    let both = rig.nic[0].__register_user(left.address().get(), ACCESS_ALL, 8 * PAGE);
    refused(both, Errno::EXDEV);
    drop((left, right));
    bo.move_to(Placement::System);
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    map.fill(ONE);
    let (far, bytes) = memory(&rig, 1, 4 * PAGE);
    write(&rig, &region, &far);
    bytes.assert_holds(ONE);
}

pub fn hole() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let start = map.address().get();
    let (left, rest) = map.split(PAGE as usize);
    let (middle, right) = rest.split(PAGE as usize);
    drop(middle);
    let across = rig.nic[0].__register_user(start, ACCESS_ALL, 4 * PAGE);
    refused(across, Errno::EFAULT);
    assert_untouched(&bo);
    // At both ends of it all is well.
    for part in [&left, &right] {
        rig.nic[0].register_map(part, ACCESS_ALL).deregister();
    }
    drop((left, right));
    refused(rig.nic[0].__register_user(start, 0, PAGE), Errno::EFAULT);
    // Page 0 is nobody's.
    refused(rig.nic[0].__register_user(0, 0, PAGE), Errno::EFAULT);
}

pub fn mapping_without_support() {
    let rig = routed();
    let foreign = Exporter::Vgem.export(4 * PAGE);
    let theirs = must(
        Mapping::__new(&foreign, 0, 4 * PAGE as usize),
        format_args!("mmap of vgem's dma-buf"),
    );
    assert_refused(&rig, &theirs, ACCESS_ALL, Errno::EOPNOTSUPP);
    assert_refused(&rig, &theirs, 0, Errno::EOPNOTSUPP);
    // Behind an object of ours.
    let (bo, _) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let (left, right) = Mapping::anonymous(8 * PAGE as usize).split(4 * PAGE as usize);
    let left = left.replaced(&rig.gpu[0], offset);
    let right = right.replaced(&foreign, 0);
    let both = rig.nic[0].__register_user(left.address().get(), ACCESS_ALL, 8 * PAGE);
    refused(both, Errno::EOPNOTSUPP);
    assert_untouched(&bo);
    drop(right);
}

pub fn read_only_mapping() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    bo.fill(ONE);
    map.set_writable(false);
    for access in [P2PNIC_ACCESS_LOCAL_WRITE, P2PNIC_ACCESS_REMOTE_WRITE] {
        assert_refused(&rig, &map, access, Errno::EACCES);
    }
    assert_untouched(&bo);
    let source = rig.nic[0].register_map(&map, P2PNIC_ACCESS_REMOTE_READ);
    let (far, bytes) = memory(&rig, 1, 4 * PAGE);
    write(&rig, &source, &far);
    bytes.assert_holds(ONE);
    // Ordinary memory follows the same rule.
    let memory = Mapping::anonymous(PAGE as usize);
    memory.set_writable(false);
    assert_refused(&rig, &memory, ACCESS_ALL, Errno::EACCES);
}

pub fn read_only_object() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    bo.fill(ONE);
    bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    let before = refusals(&rig.gpu[0], "read_only");
    assert_refused(&rig, &map, ACCESS_ALL, Errno::EACCES);
    assert_untouched(&bo);
    assert_eq!(refusals(&rig.gpu[0], "read_only"), before + 1);
    let source = rig.nic[0].register_map(&map, 0);
    let (far, bytes) = memory(&rig, 1, 4 * PAGE);
    write(&rig, &source, &far);
    bytes.assert_holds(ONE);
}

pub fn unflagged() {
    let rig = routed();
    let bo = rig.gpu[0].create(4 * PAGE, Placement::Vram);
    let map = bo.map();
    let trace = Trace::start();
    let before = refusals(&rig.gpu[0], "not_flagged");
    assert_refused(&rig, &map, ACCESS_ALL, Errno::EPERM);
    assert_untouched(&bo);
    assert_eq!(refusals(&rig.gpu[0], "not_flagged"), before + 1);
    assert_eq!(bo.info().refusals, 1);
    let seen = trace.take();
    let refusal = seen.iter().find(|event| event.name.ends_with("refuse"));
    let reason = refusal.map(|event| event.field("reason"));
    assert_eq!(reason, Some("not_flagged"));
    bo.set_exportable(true);
    rig.nic[0].register_map(&map, ACCESS_ALL).deregister();
    bo.set_exportable(false);
    assert_refused(&rig, &map, ACCESS_ALL, Errno::EPERM);
    // In system memory too.
    bo.move_to(Placement::System);
    assert_refused(&rig, &map, ACCESS_ALL, Errno::EPERM);
}

pub fn denied_by_policy() {
    let rig = routed();
    let (bo, map) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let policy = Setting::new(rig.gpu[0].pci(), "peer_policy");
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    assert_eq!(peer_slots(&bo), 4);
    policy.write(&format!("deny pci {}", rig.nic[0].pci()));
    // Who has it lets go.
    assert_eq!((peer_slots(&bo), region.info().mapped), (0, 0));
    let before = refusals(&rig.gpu[0], "policy");
    assert_refused(&rig, &map, ACCESS_ALL, Errno::EPERM);
    assert_eq!(refusals(&rig.gpu[0], "policy"), before + 1);
    rig.nic[1].register_map(&map, 0).deregister();
    policy.write("deny driver p2pnic");
    refused(rig.nic[1].__register_map(&map, 0), Errno::EPERM);
    policy.write("default allow");
    rig.nic[0].register_map(&map, ACCESS_ALL).deregister();
    let (far, _bytes) = memory(&rig, 1, 4 * PAGE);
    write(&rig, &region, &far);
    assert_eq!(region.info().maps, 2);
}

pub fn without_slots() {
    let rig = routed();
    let gpu = &rig.gpu[0];
    let _held = rig.hold_slots(0, gpu.slots - 4);
    let (bo, map) = mapped(&rig, 0, 8 * PAGE, Placement::Vram);
    bo.fill(ONE);
    bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    let before = refusals(gpu, "no_slots");
    assert_refused(&rig, &map, ACCESS_ALL, Errno::ENOSPC);
    assert_untouched(&bo);
    assert_eq!(refusals(gpu, "no_slots"), before + 1);
    // A part that fits is mapped.
    let part = rig.nic[0].__register_user(map.address().get(), ACCESS_ALL, 4 * PAGE);
    must(part, format_args!("REG_USER of four pages")).deregister();
    bo.set_peer(P2PGPU_PEER_EXPORTABLE);
    let region = rig.nic[0].register_map(&map, ACCESS_ALL);
    let info = bo.info();
    assert_eq!((info.fall_backs, info.system_maps), (1, 1));
    assert_eq!(info.placement, P2PGPU_PLACEMENT_SYSTEM);
    let (far, bytes) = memory(&rig, 1, 8 * PAGE);
    write(&rig, &region, &far);
    bytes.assert_holds(ONE);
}

pub fn refusals_leave_nothing() {
    let rig = routed();
    let gpu = &rig.gpu[0];
    let available = || gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE);
    let before = available();
    let (good, _) = mapped(&rig, 0, 4 * PAGE, Placement::Vram);
    let bad = gpu.create(4 * PAGE, Placement::Vram);
    good.set_peer(RESERVED);
    let reserved = available();
    let [one, two] = [&good, &bad].map(|bo| must(bo.__mmap_offset(), format_args!("offset")));
    let (left, right) = Mapping::anonymous(8 * PAGE as usize).split(4 * PAGE as usize);
    let left = left.replaced(gpu, one);
    let right = right.replaced(gpu, two);
    for _ in 0..20 {
        let both = rig.nic[0].__register_user(left.address().get(), ACCESS_ALL, 8 * PAGE);
        refused(both, Errno::EPERM);
        assert_eq!((peer_slots(&good), peer_slots(&bad)), (0, 0));
    }
    assert_eq!((available(), bad.info().refusals), (reserved, 20));
    drop((left, right, good, bad));
    assert_eq!(available(), before);
    assert_eq!(rig.nic[0].query().regions, 0);
}
