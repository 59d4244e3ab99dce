// SPDX-License-Identifier: GPL-2.0
//! Processes and devices that go while NICs have addresses of theirs.

use crate::taken::{BULK, during_write};
use crate::{ONE, PAGE, User, mapped, memory, peer_slots, routed, user, write};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, nics, wait_until};
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Outcome};
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::refused;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use std::thread;
use std::time::Duration;

/// A file whose first word parent and child share.
#[track_caller]
fn mailbox() -> Mapping {
    let file = nix::sys::memfd::memfd_create(c"mailbox", nix::sys::memfd::MFdFlags::empty());
    let file = p2pguest::must(file, format_args!("memfd_create"));
    p2pguest::must(
        nix::unistd::ftruncate(&file, 4096),
        format_args!("ftruncate"),
    );
    p2pguest::must(
        Mapping::__new(&file, 0, 4096),
        format_args!("mmap of a memfd"),
    )
}

pub fn exit_during_transfer() {
    let rig = Rig::open();
    let size = BULK;
    let (bo, _) = mapped(&rig, 1, size, Placement::System);
    if Topology::current().has_route() {
        bo.move_to(Placement::Vram);
    }
    let (source, bytes) = memory(&rig, 0, size);
    bytes.fill(ONE);
    for of_object in [true, false] {
        let mut met = false;
        for _ in 0..50 {
            let key = mailbox();
            let child = igt::fork(|| {
                let map = match of_object {
                    true => bo.map(),
                    false => Mapping::anonymous(size as usize),
                };
                let region = rig.nic[1].register_map(&map, ACCESS_ALL);
                key.store(0, region.key.into());
                loop {
                    thread::sleep(Duration::from_secs(1));
                }
            });
            wait_until("the child has registered", || key.load(0) != 0);
            // The region is the open file's, which is the parent's too.
            let region = Region::of(&rig.nic[1], key.load(0) as u32, size);
            let wire = rig.connect(4);
            during_write(&rig, &wire, (&source, &region), || child.kill());
            let done = wire.near.wait();
            if done.status == P2PNIC_STATUS_OK {
                continue;
            }
            assert_eq!(done.status, P2PNIC_STATUS_REVOKED, "{done:?}");
            let info = region.info();
            let gone = [Errno::ESRCH as u32, Errno::EFAULT as u32];
            assert!(gone.contains(&info.last_error), "{info:?}");
            wait_until("the slots are given back", || peer_slots(&bo) == 0);
            met = true;
            break;
        }
        assert!(met, "no transfer was met");
    }
}

pub fn kill_during_transfer() {
    // Only the child opens the devices: it is killed with all it has.
    for delay in [0, 10, 50] {
        let child = igt::fork(|| {
            let rig = Rig::open();
            let size = rig.bulk_size();
            let (source, target) = (user(&rig, 0, size), user(&rig, 1, size));
            let wire = rig.connect(4);
            loop {
                wire.write(&source.region, &target.region);
            }
        });
        thread::sleep(Duration::from_millis(100 + delay));
        child.kill();
    }
    // The devices work as before; leaks show in the resources.
    assert_works();
}

#[track_caller]
fn assert_works() {
    wait_until("all NICs are there", || nics() == 2);
    let rig = Rig::open();
    rig.wait_for_wire();
    let (source, target) = (user(&rig, 0, 8 * PAGE), user(&rig, 1, 8 * PAGE));
    source.bo.fill(ONE);
    write(&rig, &source.region, &target.region);
    target.bo.assert_holds(ONE);
}

pub fn gpu_unbind_during_transfer() {
    let rig = routed();
    let User { region, map, bo } = user(&rig, 1, rig.bulk_size());
    let (source, bytes) = memory(&rig, 0, region.size);
    bytes.fill(ONE);
    let wire = rig.connect(4);
    let pci = rig.gpu[1].pci();
    let unbound = during_write(&rig, &wire, (&source, &region), || {
        Unbound::new("p2pgpu", pci)
    });
    let done = wire.near.wait();
    let ends = [P2PNIC_STATUS_OK, P2PNIC_STATUS_REVOKED];
    assert!(ends.contains(&done.status), "{done:?}");
    // The pointer leads nowhere, for NICs and for CPUs.
    refused(rig.nic[1].__register_map(&map, 0), Errno::ENODEV);
    let child = igt::fork(|| {
        map.load(0);
    });
    assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS));
    assert_eq!(region.info().mapped, 0);
    drop(unbound);
    wait_until("the GPU comes back", || gpu_is_there(pci));
    // The mapping is one of the GPU that was.
    refused(rig.nic[1].__register_map(&map, 0), Errno::ENODEV);
    drop((region, map, bo));
    assert_works();
}

pub fn nic_unbind_during_transfer() {
    let rig = routed();
    let User { region, map, bo } = user(&rig, 1, rig.bulk_size());
    let (source, bytes) = memory(&rig, 0, region.size);
    bytes.fill(ONE);
    let wire = rig.connect(4);
    let pci = rig.nic[1].pci();
    let unbound = during_write(&rig, &wire, (&source, &region), || {
        Unbound::new("p2pnic", pci)
    });
    // The object is nobody's, and can go where it likes.
    assert_eq!(peer_slots(&bo), 0);
    bo.move_to(Placement::System);
    bo.move_to(Placement::Vram);
    refused(rig.nic[1].__register_map(&map, 0), Errno::ENODEV);
    let done = wire.near.wait();
    let ends = [P2PNIC_STATUS_OK, P2PNIC_STATUS_LINK_DOWN];
    assert!(ends.contains(&done.status), "{done:?}");
    drop(unbound);
    wait_until("the NIC comes back", || nics() == 2);
    refused(region.__info(), Errno::ENODEV);
    drop((region, map, bo));
    assert_works();
}
