// SPDX-License-Identifier: GPL-2.0
//! What a registration promises, and what it does not.

use crate::{ONE, PAGE, User, mapped, memory, peer_slots, routed, user, write};
use p2pguest::binding::wait_until;
use p2pguest::gpu::Placement;
use p2pguest::map::Mapping;
use p2pguest::must;
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::Pattern;
use p2pguest::rig::RESERVED;
use p2pguest::setting::Setting;

pub fn addresses_are_what_is_registered() {
    let rig = routed();
    let (first, _) = mapped(&rig, 1, 8 * PAGE, Placement::Vram);
    let (second, _) = mapped(&rig, 1, 8 * PAGE, Placement::Vram);
    let [one, two] = [&first, &second].map(|bo| must(bo.__mmap_offset(), format_args!("offset")));
    let map = Mapping::anonymous(8 * PAGE as usize).replaced(&rig.gpu[1], one);
    let region = rig.nic[1].register_map(&map, ACCESS_ALL);
    let (source, bytes) = memory(&rig, 0, 8 * PAGE);
    let wire = rig.connect(4);
    bytes.fill(ONE);
    wire.write(&source, &region);
    let map = map.replaced(&rig.gpu[1], two);
    assert_eq!(region.info().mapped, 0, "it was not told");
    bytes.fill(Pattern(2));
    wire.write(&source, &region);
    first.assert_holds(ONE);
    second.assert_holds(Pattern(2));
    assert_eq!((peer_slots(&first), peer_slots(&second)), (0, 8));
    let info = region.info();
    assert_eq!((info.maps, info.invalidations), (2, 1));
    drop(map);
}

pub fn reserved_is_always_mapped_again() {
    let rig = routed();
    let gpu = &rig.gpu[1];
    let pages = 64;
    let (bo, map) = mapped(&rig, 1, pages * PAGE, Placement::Vram);
    bo.set_peer(RESERVED);
    let region = rig.nic[1].register_map(&map, ACCESS_ALL);
    // Others take whatever can be had, whenever it can.
    let others = rig.register(1, (gpu.slots - pages) * PAGE, Placement::Vram);
    let hungry = gpu.create(gpu.aperture(), Placement::Vram);
    let cpu = hungry.map();
    let (source, bytes) = memory(&rig, 0, pages * PAGE);
    let wire = rig.connect(4);
    for round in 1..=20 {
        rig.touch(1, &others);
        for page in (0..gpu.slots).step_by(16) {
            cpu.store((page * PAGE) as usize, page);
        }
        bytes.fill(Pattern(round));
        wire.write(&source, &region);
        bo.assert_holds(Pattern(round));
        bo.move_to(Placement::System);
        bo.move_to(Placement::Vram);
        let info = bo.info();
        assert_eq!((info.peer_maps, info.fall_backs), (round, 0));
        assert_eq!(info.invalidations, round);
    }
    assert_eq!(region.info().last_error, 0);
}

pub fn given_back_slots_are_free() {
    let rig = routed();
    let gpu = &rig.gpu[1];
    let grace = Setting::new(gpu.pci(), "peer_grace_ms");
    grace.write("60000");
    let pages = 8;
    let _squeeze = rig.hold_slots(1, gpu.slots - pages);
    let User { region, map, bo } = user(&rig, 1, pages * PAGE);
    let (source, bytes) = memory(&rig, 0, pages * PAGE);
    bytes.fill(ONE);
    write(&rig, &source, &region);
    for round in 1..=5 {
        // Nobody asks for the old addresses, but they are gone, and so are the slots.
        bo.move_to(Placement::System);
        assert_eq!(peer_slots(&bo), 0);
        let other = user(&rig, 1, pages * PAGE);
        let info = other.bo.info();
        assert_eq!(
            (info.peer_maps, info.fall_backs),
            (1, 0),
            "in round {round}"
        );
        bytes.fill(Pattern(round + 1));
        write(&rig, &source, &other.region);
        other.bo.assert_holds(Pattern(round + 1));
        bo.assert_holds(ONE);
        drop(other);
        bo.move_to(Placement::Vram);
        bo.assert_holds(ONE);
        bytes.fill(ONE);
        write(&rig, &source, &region);
        assert_eq!(bo.info().fall_backs, 0);
    }
    drop(map);
    wait_until("the slots are given back", || peer_slots(&bo) == 0);
}
