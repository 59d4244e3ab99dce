// SPDX-License-Identifier: GPL-2.0
//! Tests of what the GPU's driver tells administrators: trace events, and the
//! fdinfo of open files.

mod events;
mod fdinfo;

use events::*;
use fdinfo::*;
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::Attach;
use p2pguest::rig::{RESERVED, Rig};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// There is an event for each thing that the driver tells.
    events_that_there_are,
    /// A mapping of an object, of either placement, and of a window is told when it comes and goes.
    mappings_are_told,
    /// A move is told, with what it takes back; so is one that is refused.
    moves_are_told,
    /// A fall-back is told, with the importer that is the reason.
    fall_backs_are_told,
    /// Who has to let go under pressure is told, and for whom.
    pressure_is_told,
    /// Each refusal is told, with its reason and errno.
    refusals_are_told,
    /// A submission is told, with its context, commands and what it waits for.
    submissions_are_told,
    /// An eviction is told, with the size, and then the move.
    evictions_are_told,
    /// An open file shows driver, device and a number of its own.
    fdinfo_names_the_client,
    /// It shows how much memory of which kind its objects have.
    fdinfo_counts_memory,
    /// It shows how much VRAM its objects would leave without a copy.
    fdinfo_counts_what_can_be_purged,
    /// It shows what its objects have of the aperture: promised, shown, and held by peers.
    fdinfo_counts_slots,
    /// What an importer uses at this moment is active.
    fdinfo_tells_what_is_active,
    /// It shows fall-backs, invalidations and refusals.
    fdinfo_counts_events,
    /// It shows the time that the engine has spent on the jobs of the file, and of no other.
    fdinfo_counts_engine_time,
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

/// Promises all slots of GPU 0 to an object that nobody maps.
#[track_caller]
fn reserve_all(rig: &Rig) -> p2pguest::gpu::Bo<'_> {
    let bo = rig.gpu[0].create(rig.gpu[0].aperture(), Placement::Vram);
    bo.set_peer(RESERVED);
    bo
}
