// SPDX-License-Identifier: GPL-2.0
//! Tests of what keeps one client from taking the aperture, or VRAM, from all
//! others: limits of pins and of reservations, and the `dmem` cgroup; who pays for
//! system memory, by the `memory` cgroup; and of what pinned, strict and draining
//! objects are to those who want slots.

mod cgroup;
mod memory;
mod pins;
mod reservations;

use cgroup::*;
use memory::*;
use nix::errno::Errno;
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::Attach;
use p2pguest::rig::{Exported, Rig};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use pins::*;
use reservations::*;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// The controller knows VRAM and aperture of each GPU, and their sizes.
    cgroup_knows_both_memories,
    /// An object is made in VRAM, or moved there, only if the cgroup may have so much.
    cgroup_limits_vram,
    /// Slots are promised only if the cgroup may have so many; a promise is charged once.
    cgroup_limits_promises,
    /// Slots that can be taken back are not charged.
    cgroup_charges_no_lent_slots,
    /// What is charged stays with the cgroup that it was charged to, and goes with the object.
    cgroup_keeps_its_charges,
    /// An object outside VRAM is charged to its creator's cgroup, and no longer when it is freed.
    memory_is_charged_to_the_creator,
    /// What the cgroup may not have is ENOMEM: nothing is leaked, nobody is killed, others go on.
    memory_limit_is_an_error,
    /// An object that another process makes leave VRAM is charged to its creator.
    eviction_is_charged_to_the_creator,
    /// An object whose creator may not have the memory stays in VRAM, and another one leaves.
    eviction_obeys_the_creators_limit,
    /// Whoever moves an object, its creator pays; if the creator's cgroup is gone, the one above it.
    move_is_charged_to_the_creator,
    /// An object that an importer's lack of slots moves is charged to its creator.
    fall_back_is_charged_to_the_creator,
    /// A process reserves no more than it may; others still can.
    reservations_of_a_process,
    /// All together reserve no more than they may.
    reservations_of_all,
    /// A new limit changes nothing about what is reserved.
    reservations_outlast_limits,
    /// Importers pin no more of a process's objects than they may; those of others still can be.
    pins_of_a_process,
    /// All together pin no more than they may.
    pins_of_all,
    /// An object counts once, however many importers pin it, and for as long as one does.
    pins_count_once,
    /// A pinned object is promised its slots, and keeps them.
    pin_is_a_promise,
    /// A pinned object neither moves nor loses its flags.
    pinned_object_stays,
    /// A strict object is refused to who cannot be a peer, where another falls back.
    strict_refuses_who_is_no_peer,
    /// Slots that an importer has not unmapped are not used for others.
    draining_slots_are_not_used,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// The rig, where NIC 0 has a route to GPU 0; skips elsewhere.
#[track_caller]
fn open() -> Rig {
    let rig = Rig::open();
    let bo = rig.gpu[0].create(rig.gpu[0].page, Placement::Vram);
    let route = bo.query(rig.nic[0].pci()).route;
    igt::require(route != P2PGPU_ROUTE_NONE, "a peer-to-peer route");
    drop(bo);
    rig
}

/// An importer for NIC 0 that obeys.
fn peer(rig: &Rig) -> Attach {
    Attach::peer(rig.nic[0].pci())
}

/// An exported object of so many pages of GPU 0.
#[track_caller]
fn exported(rig: &Rig, pages: u64) -> Exported<'_> {
    rig.export(0, pages * rig.gpu[0].page, Placement::Vram)
}

/// An exportable object of so many pages.
#[track_caller]
fn flagged(gpu: &Gpu, pages: u64) -> Bo<'_> {
    let bo = gpu.create(pages * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    bo
}

/// Asserts that a call is refused with ENOSPC for this reason, and that once.
#[track_caller]
fn assert_refused<T>(gpu: &Gpu, reason: &str, call: impl FnOnce() -> Result<T, Errno>) {
    let count = || match Debugfs::default().refusals(gpu.pci()) {
        Ok(numbers) => *numbers.get(reason).expect("a reason"),
        Err(error) => panic!("debugfs: {error}"),
    };
    let before = count();
    p2pguest::refused(call(), Errno::ENOSPC);
    assert_eq!(count(), before + 1, "refused for {reason}");
}
