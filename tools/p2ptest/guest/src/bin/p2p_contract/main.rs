// SPDX-License-Identifier: GPL-2.0
//! Tests of what an exporter owes its importers, with importers of every kind:
//! the rules of dma-buf, one by one, and then what importers may do to it.

mod kept;
mod kinds;
mod rules;
mod vmap;

use p2pguest::drm::PciAddress;
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::Importer;
use p2pguest::memory::{aperture, lies_in, ram};
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::Rig;
use p2pguest::stray::{self, Stray};
use p2pguest::subtests;
use p2pguest::topology::Topology;
use std::process::ExitCode;

use kept::*;
use kinds::*;
use rules::*;
use vmap::*;

const SUBTESTS: &[Subtest] = subtests![
    /// Rule 1: pin and unpin come together, and go with their importer.
    rule_1_pin_and_unpin,
    /// Rule 1: releasing the dma-buf frees the object.
    rule_1_release,
    /// Rule 2: importers are told with the lock held, and once for a mapping.
    rule_2_told_with_the_lock_held,
    /// Rule 2: mapping, unmapping and moving at once do not lock each other up.
    rule_2_locks_do_not_meet,
    /// Rule 3: attaching may be refused, and mapping decides again.
    rule_3_map_decides_again,
    /// Rule 4: a static importer gets system memory, pinned while it is mapped.
    rule_4_static_gets_system_memory,
    /// Rule 5: who can be neither told nor pins gets no mapping.
    rule_5_deaf_importer_must_pin,
    /// Rule 6: a pin that cannot be had is refused with ENOSPC, never EBUSY.
    rule_6_pin_is_never_busy,
    /// Rule 6: an object is pinned where all who are attached can use it.
    rule_6_pin_suits_all_who_are_attached,
    /// Rule 6: a pin returns when the move that it needs is done.
    rule_6_pin_ends_moves,
    /// Rule 7: each map gives a new table, page aligned, that lives by itself.
    rule_7_tables_are_fresh,
    /// Rule 8: slots and pages are not used anew before the importer unmaps.
    rule_8_nothing_is_reused_before_the_unmap,
    /// Rule 8: a move waits for the accesses that are under way.
    rule_8_moves_wait_for_accesses,
    /// Rule 8: slots are not given back before the accesses of importers are over.
    rule_8_unmaps_wait_for_accesses,
    /// Who unmaps when it is told does not wait for those who are told after it.
    rule_8_all_are_told_before_any_is_waited_for,
    /// Rule 9: a pinned importer is not told, whatever is asked of the exporter.
    rule_9_pinned_is_not_told,
    /// Rule 10: mappings of the dma-buf are zapped when it moves.
    rule_10_dma_buf_mappings_follow,
    /// Rule 10: importing the own dma-buf gives the own object.
    rule_10_self_import,
    /// Rule 11: unbinding revokes all peers, and ends when they have let go.
    rule_11_unbind_revokes,
    /// Rule 11: unbinding waits for mappings, and for accesses, that are kept.
    rule_11_unbind_waits,
    /// Rule 12: each device gets what its route to the BAR allows.
    rule_12_route_decides,
    /// An importer that unmaps long after it was told, from elsewhere.
    unmap_from_work,
    /// An importer that keeps its mapping can map anew before it unmaps.
    map_again_before_unmap,
    /// An importer that maps again at once gets the new place, each time.
    remap_in_the_race_window,
    /// An importer whose process dies while it is mapped leaves nothing behind.
    dies_while_mapped,
    /// The same for some that are pinned.
    dies_while_pinned,
    /// The same for one that has an access under way.
    dies_while_busy,
    /// Importers that only read, or only write.
    directions,
    /// An importer without peer-to-peer gets system memory, and can be told.
    without_peer_to_peer,
    /// A device without hardware has no route.
    software_device,
    /// Importers of all kinds at one object.
    all_kinds_at_once,
    /// Mapping and unmapping ten thousand times leaves no memory behind.
    unmap_frees_the_scatterlist,
    /// What is mapped again is what it was, and counts as a mapping.
    kept_comes_back,
    /// The same in each direction, and while there are others.
    kept_in_each_direction,
    /// The flags of the moment decide, not those of the first time.
    kept_obeys_the_flags,
    /// So does the policy.
    kept_obeys_the_policy,
    /// An object that moves away leaves no VRAM behind for who unmapped it.
    kept_keeps_no_vram,
    /// Slots that were given back are anybody's.
    kept_keeps_no_slots,
    /// Importers of one object, one after the other and at once.
    kept_by_several,
    /// More mappings than are kept.
    kept_of_many,
    /// Who cannot be told maps again only while it pins.
    kept_while_pinned,
    /// Nothing is mapped again when the device is gone.
    kept_ends_with_the_device,
    /// The kernel's CPU reads and writes an object that is exported, which stays in system memory.
    vmap_reads_and_writes,
    /// Mappings of one dma-buf are one, and each dma-buf of an object keeps it in place.
    vmaps_of_several,
    /// Peers are told when the kernel maps, and get system memory until it no longer does.
    vmap_takes_from_peers,
    /// A mapping of a strict object is refused with EXDEV, of one that is not flagged with EPERM.
    vmap_refusals,
    /// A mapping of what is pinned in VRAM is refused with EBUSY.
    vmap_of_pinned,
    /// The object can be moved when who mapped it has gone.
    vmap_ends_with_its_importer,
    /// A mapping can be read when the handle is closed, and when the device is gone.
    vmap_outlives_handle_and_device,
    /// The test importer refuses malformed requests.
    bad_requests,
    /// The same for those of the kernel's mapping.
    bad_vmap_requests,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// Bytes of a page, and of a slot.
pub const PAGE: u64 = 4096;

/// Where the importers of these tests reach an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the aperture
    Aperture,
    /// In system memory
    Memory,
}

/// Where a peer reaches an object in VRAM.
#[track_caller]
pub fn place_of_peers() -> Place {
    match Topology::current().has_route() {
        true => Place::Aperture,
        false => Place::Memory,
    }
}

/// A placement in which peers map an object without a move.
#[track_caller]
pub fn place_without_move() -> Placement {
    match place_of_peers() {
        Place::Aperture => Placement::Vram,
        Place::Memory => Placement::System,
    }
}

/// Skips where there is no route between devices.
#[track_caller]
pub fn require_route() {
    igt::require(Topology::current().has_route(), "a peer-to-peer route");
}

/// NIC 1, for which most importers here import.
pub fn device(rig: &Rig) -> PciAddress {
    rig.nic[1].pci()
}

/// Asserts that a mapping covers `size` bytes of whole pages in `place`.
#[track_caller]
pub fn assert_place(rig: &Rig, importer: &Importer, index: u32, place: Place, size: u64) {
    let ranges = importer.ranges(index);
    let expected = match place {
        Place::Aperture => vec![aperture(rig.gpu[1].pci())],
        Place::Memory => ram(),
    };
    for range in &ranges {
        assert_eq!((range.dma % PAGE, range.size % PAGE), (0, 0), "{range:x?}");
        // Only the first page of a range behind an IOMMU says where it is.
        assert!(
            lies_in(&expected, range.physical, PAGE),
            "not in {place:?}: {range:x?}"
        );
    }
    let sum: u64 = ranges.iter().map(|range| range.size).sum();
    assert_eq!(sum, size, "bytes that are mapped");
}

/// Ranges that are read of a mapping: each takes a question to the host.
const READ_RANGES: usize = 4;

/// Asserts what NIC 1 reads at the start of the first and the last ranges of a mapping.
#[track_caller]
pub fn assert_reads(importer: &Importer, index: u32, pattern: Pattern) {
    let ranges = importer.ranges(index);
    let mut offset = 0;
    for (number, range) in ranges.iter().enumerate() {
        if number < READ_RANGES || number + READ_RANGES >= ranges.len() {
            let expected = pattern.bytes(offset, 64);
            match stray::read(1, range.dma, expected.len()) {
                Stray::Ram(found) | Stray::Peer(found) => {
                    assert_same(&found, &expected, &format!("bytes from {offset:#x}"));
                }
                Stray::Refused(why) => panic!("{range:x?} cannot be read: {why}"),
            }
        }
        offset += range.size;
    }
}
