// SPDX-License-Identifier: GPL-2.0
//! Tests of the helper for simple devices, with a stock one: its BAR is exported by
//! range and by page, to CPUs and to other devices, by dma-buf and by address. The
//! device has a driver in Rust and one in C, which are tested alike.

mod addresses;
mod gone;
mod input;
mod lazy;
mod ranges;

use nix::sys::signal::Signal;
use p2pguest::dmabuf::DmaBuf;
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Outcome, Subtest};
use p2pguest::importer::{Attach, Importer};
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::{Rig, request};
use p2pguest::simple::{Driver, PAGE, Simple};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use std::process::ExitCode;

use addresses::*;
use gone::*;
use input::*;
use lazy::*;
use ranges::*;

const SUBTESTS: &[Subtest] = subtests![
    /// A dma-buf of a range shows the bytes that the BAR has there.
    range_shows_the_bar,
    /// A NIC writes into a range: its bytes are there, and nowhere else.
    nic_writes_into_a_range,
    /// A NIC reads from a range.
    nic_reads_from_a_range,
    /// What an importer gets is the range, in one piece.
    range_is_one_piece,
    /// A page belongs to one dma-buf; when that ends it is free.
    ranges_do_not_overlap,
    /// What is exported to read only is not written, by the CPU or a device.
    read_only_range,
    /// Who has no route, or no use for such memory, is told when it attaches.
    importers_without_route,
    /// A lazy page is assigned when the CPU touches it, and no other one is.
    lazy_page_at_the_first_touch,
    /// Lazy pages are assigned when a device maps them, and the CPU sees the same ones.
    lazy_pages_at_the_first_map,
    /// A touch maps the pages around it that are there, and has none assigned.
    touch_maps_pages_around,
    /// They hold zeros, whatever others have left there.
    lazy_pages_are_cleared,
    /// A NIC writes into lazy pages that are scattered over the BAR.
    nic_writes_into_scattered_pages,
    /// No page is free: a map is refused, a touch raises SIGBUS, until one is.
    bar_is_full,
    /// What can never fit is refused at once.
    larger_than_the_bar,
    /// What was mapped by the driver's file ends with the mapping.
    mapping_of_the_file_ends,
    /// A child process sees the same pages.
    fork_shares_the_pages,
    /// A device is given addresses: pages of the BAR, one each.
    addresses_are_of_the_bar,
    /// Only the pages that were asked for are assigned.
    window_takes_its_pages_only,
    /// The two ways to a page lead to the same one.
    both_ways_lead_to_one_page,
    /// A range of several mappings, and of ordinary memory, is mapped by its parts.
    mixed_range_is_mapped_by_parts,
    /// A NIC registers addresses, and writes and reads by them.
    nic_writes_by_address,
    /// Requests of a NIC end when the addresses show nothing any more.
    munmap_ends_requests,
    /// A device writes by the addresses that it was given.
    device_writes_by_address,
    /// By what it may only read it does not write.
    device_writes_by_read_only_address,
    /// munmap takes the addresses back, and the pages are free.
    munmap_invalidates,
    /// No page is free: the addresses are refused as a whole.
    addresses_of_a_full_bar,
    /// A device without a route gets no addresses, and no page is assigned.
    addresses_without_route,
    /// Unbinding revokes what CPUs and devices have, and ends what can be asked for.
    unbind_revokes,
    /// Requests of a NIC end when the device goes; the rest of the NIC goes on.
    unbind_ends_requests,
    /// Unbinding waits for an importer that lets go late.
    unbind_waits,
    /// Who waits for a page, or for addresses, while it does can be interrupted and killed.
    unbind_holds_up_nobody_for_good,
    /// It does not wait for ever; the device is bound again when all was let go.
    unbind_does_not_hang,
    /// The device comes back with all of its pages free.
    bound_again,
    /// Malformed arguments.
    bad_input,
    /// Malformed arguments of the test importer of addresses.
    bad_addresses,
];

/// The driver in Rust hands over BAR 2 and no other.
const C_SUBTESTS: &[Subtest] = subtests![
    /// A BAR that is none, or not of whole pages of memory, is not handed over.
    only_memory_is_handed_over,
    /// Registers of a device of another kind are shown, page by page.
    registers_are_shown,
];

/// All of them for the driver in Rust, and once more for that in C.
fn main() -> ExitCode {
    let rust = SUBTESTS.iter();
    let rust = rust.map(|test| test.of("", || Driver::Rust.take()));
    let c = SUBTESTS.iter().chain(C_SUBTESTS);
    let c = c.map(|test| test.of("c-", || Driver::C.take()));
    igt::main(&rust.chain(c).collect::<Vec<_>>())
}

/// Skips the subtest where no device reaches another's BAR.
#[track_caller]
fn require_route() {
    igt::require(Topology::current().has_route(), "a route between devices");
}

/// Bytes of so many pages.
fn bytes(pages: u64) -> usize {
    usize::try_from(pages * PAGE).expect("fits")
}

/// Asserts that memory, from a page on, holds so many pages of a pattern.
#[track_caller]
fn assert_pages(map: &Mapping, page: u64, pages: u64, pattern: Pattern) {
    let mut found = vec![0; bytes(pages)];
    map.read(bytes(page), &mut found);
    assert_same(&found, &pattern.bytes(0, found.len()), "the pages");
}

/// Writes so many pages of a pattern.
fn write_pages(map: &Mapping, page: u64, pages: u64, pattern: Pattern) {
    map.write(bytes(page), &pattern.bytes(0, bytes(pages)));
}

/// An access of the CPU to this byte raises SIGBUS.
#[track_caller]
fn assert_sigbus(map: &Mapping, offset: usize) {
    let child = igt::fork(|| {
        map.load(offset);
    });
    assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS));
}

/// A well-behaved importer on behalf of NIC 1.
fn peer(rig: &Rig) -> Attach {
    Attach::peer(rig.nic[1].pci())
}

/// Numbers of the BAR's pages that an importer has, in order.
#[track_caller]
fn pages_of(simple: &Simple, importer: &Importer, index: u32) -> Vec<u64> {
    let mut pages = Vec::new();
    for range in importer.ranges(index) {
        // Behind an IOMMU a range is one of addresses, and not of memory.
        let adjacent = Topology::current() != Topology::Iommu;
        assert!(adjacent || range.size == PAGE, "{range:?}");
        let first = page_number(simple, range.physical);
        pages.extend(first..first + range.size / PAGE);
    }
    pages
}

/// The number of the BAR's page at a physical address.
#[track_caller]
fn page_number(simple: &Simple, physical: u64) -> u64 {
    let bar = simple.bar();
    assert!(bar.contains(&physical), "{physical:#x} is not in {bar:x?}");
    (physical - bar.start) / PAGE
}

/// Has a NIC write so many pages of a pattern into a dma-buf, by peer-to-peer.
#[track_caller]
fn nic_writes(rig: &Rig, to: &DmaBuf, pages: u64, pattern: Pattern) {
    let source = rig.register(0, pages * PAGE, Placement::System);
    source.bo.fill(pattern);
    let region = rig.nic[1].register(to, ACCESS_ALL, pages * PAGE);
    let before = rig.nic[1].query();
    rig.connect(4).write(&source.region, &region);
    let after = rig.nic[1].query();
    let written = after.peer_write_bytes - before.peer_write_bytes;
    assert_eq!(written, pages * PAGE, "bytes written to BARs");
    assert_eq!(after.ram_write_bytes, before.ram_write_bytes);
}

/// A request of a NIC to write a whole region into another one.
fn write_request(local: &Region<'_>, remote: &Region<'_>) -> p2pnic_post_send {
    request(P2PNIC_OP_WRITE, (local, 0), (remote, 0), local.size)
}
