// SPDX-License-Identifier: GPL-2.0
//! Tests of peers that are given memory by user address: what can be registered, what
//! it costs, and what happens when the addresses come to show something else.

mod bounds;
mod gone;
mod plain;
mod refusals;
mod stress;
mod taken;

use bounds::*;
use gone::*;
use nix::errno::Errno;
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Rig, Wire};
use p2pguest::subtests;
use p2pguest::topology::Topology;
use plain::*;
use refusals::*;
use std::process::ExitCode;
use stress::*;
use taken::*;

const SUBTESTS: &[Subtest] = subtests![
    /// The pointers of two objects in VRAM, which no CPU has touched, are handed to NICs:
    /// the bytes go from one to the other, and through no memory where there is a route.
    transfer,
    /// The same in the other direction: a NIC reads from the far pointer.
    remote_read,
    /// An object in system memory is mapped where it is.
    object_in_system_memory,
    /// An object that was evicted comes back for its pointer, and is mapped once.
    evicted_object,
    /// Ordinary memory of the process.
    ordinary_memory,
    /// Ordinary memory, an object, and ordinary memory again, side by side.
    mixed_with_ordinary_memory,
    /// One range over mappings of two objects, of which one is in system memory.
    two_objects_side_by_side,
    /// A range that starts and ends in the middle of a mapping shows the right pages.
    part_of_a_mapping,
    /// A mapping of the middle of an object, once it was split and moved.
    split_and_moved_mapping,
    /// Mappings of dma-bufs, of an object and of a range of one.
    mapped_dma_bufs,
    /// Pages whose slots are apart, and in no order.
    scattered_slots,
    /// A page that a dma-buf's importer holds too has one slot.
    shares_slots_with_dma_buf,
    /// 64 KiB of an object of 200 MiB take 16 slots.
    window_takes_its_slots_only,
    /// Pages that no CPU has touched are mapped, and touched pages keep their slots.
    touched_or_not,
    /// What is mapped is counted, traced and shown.
    shown_to_users,
    /// Without a route: what is in VRAM is refused, and stays; what is not is mapped.
    no_route,
    /// Addresses that show nothing: EFAULT, and nothing is mapped.
    hole,
    /// A device's mapping whose driver does not do this: EOPNOTSUPP, and nothing is mapped.
    mapping_without_support,
    /// A mapping to read only is not registered for writing: EACCES.
    read_only_mapping,
    /// An object that peers may only read is not registered for writing: EACCES.
    read_only_object,
    /// An object that is not flagged, or no longer: EPERM.
    unflagged,
    /// The policy is asked at each mapping: EPERM.
    denied_by_policy,
    /// Without slots: a strict object is refused, another one falls back.
    without_slots,
    /// Refusals leave no slots, mappings and regions behind.
    refusals_leave_nothing,
    /// The mapping is removed during a transfer: the request ends as revoked.
    munmap_during_transfer,
    /// The mapping moves during a transfer: the request ends as revoked.
    mremap_during_transfer,
    /// Fork, and writes by parent and child, during transfers: each has its own bytes.
    fork_during_transfer,
    /// Memory is given up during transfers, which go on.
    dontneed_during_transfer,
    /// Objects move during transfers: no byte is lost.
    move_during_transfer,
    /// Others take the slots during transfers: no byte is lost.
    pressure_during_transfer,
    /// The flag is taken during a transfer: the request ends as revoked.
    unflag_during_transfer,
    /// The handle is closed during a transfer, which goes on: the mapping keeps the object.
    close_handle_during_transfer,
    /// The process ends during a transfer to its memory, by a NIC that others have open.
    exit_during_transfer,
    /// The process is killed during transfers.
    kill_during_transfer,
    /// The GPU is unbound during a transfer: the request ends.
    gpu_unbind_during_transfer,
    /// The NIC is unbound during a transfer.
    nic_unbind_during_transfer,
    /// A region is of addresses: what is mapped there later is used.
    addresses_are_what_is_registered,
    /// A reserved object is mapped again each time, however many want slots.
    reserved_is_always_mapped_again,
    /// Slots that were given back belong to others at once, and show theirs.
    given_back_slots_are_free,
    /// Eight threads register, transfer, unmap, move and fork at random.
    stress,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const PAGE: u64 = 4096;

/// A mapped object whose pointer a NIC was given.
struct User<'r> {
    // Fields are dropped in this order: the region goes first.
    region: Region<'r>,
    map: Mapping,
    bo: Bo<'r>,
}

/// A flagged object of GPU `index`, and its mapping.
#[track_caller]
fn mapped(rig: &Rig, index: usize, size: u64, placement: Placement) -> (Bo<'_>, Mapping) {
    let bo = rig.gpu[index].create(size, placement);
    bo.set_exportable(true);
    let map = bo.map();
    (bo, map)
}

/// An object of GPU `index` in VRAM that NIC `index` knows by its pointer; where there is no
/// route, in system memory.
#[track_caller]
fn user(rig: &Rig, index: usize, size: u64) -> User<'_> {
    let placement = match Topology::current().has_route() {
        true => Placement::Vram,
        false => Placement::System,
    };
    let (bo, map) = mapped(rig, index, size, placement);
    let region = rig.nic[index].register_map(&map, ACCESS_ALL);
    User { region, map, bo }
}

/// The rig, where devices reach each other's memory; skips elsewhere.
#[track_caller]
fn routed() -> Rig {
    igt::require(Topology::current().has_route(), "a peer-to-peer route");
    Rig::open()
}

/// Memory of this process that NIC `index` knows, with its region first.
#[track_caller]
fn memory(rig: &Rig, index: usize, size: u64) -> (Region<'_>, Mapping) {
    let map = Mapping::anonymous(size as usize);
    let region = rig.nic[index].register_map(&map, ACCESS_ALL);
    (region, map)
}

/// Writes a whole region to another one, and waits.
#[track_caller]
fn write(rig: &Rig, source: &Region<'_>, target: &Region<'_>) {
    let wire: Wire<'_> = rig.connect(4);
    wire.write(source, target);
}

/// Slots of the object that peers hold.
#[track_caller]
fn peer_slots(bo: &Bo<'_>) -> u64 {
    bo.info().peer_slots.into()
}

/// Asserts that nothing of the object was ever mapped for a peer, and nothing moved.
#[track_caller]
fn assert_untouched(bo: &Bo<'_>) {
    let info = bo.info();
    let found = (info.peer_maps, info.system_maps, info.fall_backs);
    assert_eq!(
        (found, info.peer_slots, info.invalidations),
        ((0, 0, 0), 0, 0)
    );
}

/// How often peers of a GPU were refused for a reason.
#[track_caller]
fn refusals(gpu: &Gpu, reason: &str) -> u64 {
    match Debugfs::default().refusals(gpu.pci()) {
        Ok(numbers) => *numbers.get(reason).expect("no such reason"),
        Err(error) => panic!("debugfs: {error}"),
    }
}

/// Asserts that the pointer is refused, and why; nobody is given anything.
#[track_caller]
fn assert_refused(rig: &Rig, map: &Mapping, access: u32, expected: Errno) {
    let before = rig.nic[0].query().regions;
    p2pguest::refused(rig.nic[0].__register_map(map, access), expected);
    assert_eq!(rig.nic[0].query().regions, before, "a region was left");
}

/// A pattern with a name.
const ONE: Pattern = Pattern(1);
