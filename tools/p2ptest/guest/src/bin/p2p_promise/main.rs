// SPDX-License-Identifier: GPL-2.0
//! Tests of what applications can rely on: reservations and their queries, what
//! strict and read-only objects are spared, who yields slots under pressure, and
//! what that costs the device.

mod flags;
mod policy;
mod pressure;
mod price;
mod ranges;
mod reserve;

use flags::*;
use nix::errno::Errno;
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::nic::TIMEOUT;
use p2pguest::rig::{Registered, Rig, Wire};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use policy::*;
use pressure::*;
use price::*;
use ranges::*;
use reserve::*;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const SUBTESTS: &[Subtest] = subtests![
    /// Unknown flags, and flags of an object that is not exportable, are refused.
    bad_flags,
    /// Every combination of flags is kept, and shown.
    flags_are_kept,
    /// Clearing any flag invalidates, and so does making an object read-only.
    clearing_a_flag_invalidates,
    /// A region that may write cannot be mapped where peers may only read.
    read_only_refuses_writers,
    /// A region that only reads can.
    read_only_serves_readers,
    /// A strict object stays in VRAM where others fall back, and says why.
    strict_never_falls_back,
    /// A strict object that userspace put in system memory is mapped there.
    strict_where_it_is,
    /// Each refusal is counted, for the object and by reason.
    refusals_are_counted,
    /// What is promised is shown, and given back with the flag or the object.
    reservation_is_accounted,
    /// A reservation that does not fit is refused, and changes nothing.
    reservation_too_much,
    /// An object larger than the aperture cannot be reserved.
    reservation_too_large,
    /// Slots lent a moment ago are taken back for a reservation.
    reservation_takes_lent_slots,
    /// Slots that are promised are not lent, used or not.
    promised_slots_are_not_lent,
    /// What CPUs use is no obstacle to a promise, nor to keeping it.
    cpu_slots_are_no_obstacle,
    /// An object that peers hold gains and loses its promise where it is.
    promise_comes_and_goes_while_held,
    /// A reserved object in system memory has its slots when it comes back.
    reservation_outlasts_moves,
    /// The query's YES holds with a promise, and says so.
    query_says_what_holds,
    /// The query's YES without a promise is what a mapping finds.
    query_says_what_is_now,
    /// Two processes that reserve at once get what fits, and no more.
    reservations_race,
    /// The object that was mapped longest ago yields, and no other.
    coldest_yields_first,
    /// An object that needs more than can be had takes nothing from others.
    hopeless_takes_nothing,
    /// Two objects that do not fit together do not take turns.
    no_ping_pong,
    /// A mapping waits for an object that is just letting go; it does not fall back.
    contended_slots_are_waited_for,
    /// A CPU's touch takes lent slots.
    cpu_takes_lent_slots,
    /// A reserved object is mapped for its NIC again and again while others fight for slots.
    promise_under_pressure,
    /// 64 processes touch 20 times the slots that there are, and no byte is wrong.
    processes_under_pressure,
    /// Ranges that are not of whole pages of the object, and unknown flags, are refused.
    range_bad,
    /// A range of an object without the flag is not exported.
    range_unflagged_is_refused,
    /// A dma-buf of a range has its size and shows its bytes, to CPUs and to a NIC.
    range_shows_its_bytes,
    /// Importers of ranges and of the whole share slots, and are invalidated together.
    ranges_share_slots,
    /// An object larger than the aperture is transferred window by window.
    windows_of_large_object,
    /// A dma-buf of a range keeps the object, and is no object itself.
    range_outlives_handle,
    /// The policy is shown as it was understood.
    policy_is_read_back,
    /// A malformed policy is refused, and changes nothing.
    policy_malformed,
    /// The first rule that fits decides, for the query and for attaching.
    policy_decides,
    /// New rules hold for who is attached already.
    policy_takes_effect_at_once,
    /// The limits of pins are numbers of slots.
    limits_are_numbers,
    /// GETPARAM tells the limits of pins and reservations, and of sizes.
    limits_can_be_asked_for,
    /// A sequential walk costs one register access for sixteen pages.
    sequential_walk,
    /// A sequential walk costs that also where each page takes another's slot.
    sequential_walk_under_pressure,
    /// A random walk costs at most one register access a page.
    random_walk,
    /// Mapping and invalidating cost at most three register accesses, whatever the size.
    mapping_any_size,
    /// Unmapping costs none, and three where the pages have moved away meanwhile.
    unmapping_any_size,
    /// Mapping what is still shown costs none.
    mapping_again_is_free,
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

/// An object of so many pages at GPU 0, which NIC 0 registered.
#[track_caller]
fn registered(rig: &Rig, pages: u64) -> Registered<'_> {
    rig.register(0, pages * rig.gpu[0].page, Placement::Vram)
}

/// Mappings of an object: through the aperture, and after a fall-back.
#[track_caller]
fn maps(bo: &Bo<'_>) -> (u64, u64) {
    let info = bo.info();
    (info.peer_maps, info.fall_backs)
}

/// Makes NIC 0 map an object of GPU 0 through the aperture.
#[track_caller]
fn hold(rig: &Rig, held: &Registered<'_>) {
    rig.touch(0, held);
    let info = held.bo.info();
    assert_eq!(
        (u64::from(info.peer_slots), info.fall_backs),
        (held.bo.pages(), 0),
        "all pages through the aperture"
    );
}

/// Lets NIC 0 try to map a region, and waits for the error that it gets.
#[track_caller]
fn assert_refused(rig: &Rig, held: &Registered<'_>, expected: Errno) {
    let sink = rig.register(1, rig.gpu[1].page, Placement::System);
    let wire: Wire<'_> = rig.connect(4);
    wire.near.post_send(p2pguest::rig::request(
        P2PNIC_OP_WRITE,
        (&held.region, 0),
        (&sink.region, 0),
        rig.gpu[0].page,
    ));
    let start = Instant::now();
    while held.region.info().last_error == 0 {
        assert!(start.elapsed() < TIMEOUT, "it was not refused");
        thread::sleep(Duration::from_millis(1));
    }
    let info = held.region.info();
    assert_eq!(
        (info.mapped, info.last_error),
        (0, expected as u32),
        "how the newest attempt ended"
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
