// SPDX-License-Identifier: GPL-2.0
//! Tests of the route through an IOMMU: what addresses devices hold, that they
//! reach what they were given and nothing else, and no longer than they may.

use p2pguest::failnth::{FailNth, What};
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::{Attach, Direction, Importer};
use p2pguest::memory::{self, aperture};
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::{Exported, Registered, Rig};
use p2pguest::stray::{self, Log, Stray, refusal_line};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const SUBTESTS: &[Subtest] = subtests![
    /// All our devices are behind the IOMMU, with address spaces of their own.
    devices_are_translated,
    /// A NIC that holds an object in VRAM holds IOVAs: no address of a BAR or of memory.
    vram_is_held_by_iova,
    /// The same for an object in system memory.
    system_memory_is_held_by_iova,
    /// What a NIC holds is one range of addresses, however scattered the slots are.
    iovas_are_contiguous,
    /// A NIC reaches what it holds by its own addresses.
    held_addresses_work,
    /// A write to the address of a region that was deregistered is refused.
    write_after_deregistration_is_refused,
    /// A write to the address of an object that moved is refused.
    write_after_move_is_refused,
    /// A write to the address of an object that lost its flag is refused.
    write_after_unflag_is_refused,
    /// A read by an old address is refused too.
    read_after_deregistration_is_refused,
    /// An old address does not reach another object that got it anew at another NIC.
    address_of_another_nic_is_refused,
    /// The physical address of a page of the BAR is refused, exported or not.
    physical_address_is_refused,
    /// Of an object that peers may only read, a NIC can read by its addresses, and
    /// not write, whatever it tries: it is the IOMMU that refuses.
    read_only_is_enforced,
    /// What lies behind the end of what a NIC holds is refused.
    past_the_end_is_refused,
    /// A mapping that fails half-way gives back the addresses that it was to have.
    failed_mapping_gives_back_its_addresses,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const PAGE: u64 = 4096;
/// What a stray write would leave.
const MARK: [u8; 8] = *b"stray!!\n";

/// The devices; a machine without an IOMMU has nothing to test.
#[track_caller]
fn rig() -> Rig {
    igt::require(Topology::current() == Topology::Iommu, "an IOMMU");
    Rig::open()
}

/// An object of GPU 1 that NIC 1 has mapped, with bytes of a pattern.
#[track_caller]
fn held(rig: &Rig, pages: u64, placement: Placement) -> Registered<'_> {
    let held = rig.register(1, pages * PAGE, placement);
    let source = rig.register(0, pages * PAGE, Placement::System);
    source.bo.fill(Pattern(9));
    rig.connect(4).write(&source.region, &held.region);
    held.bo.assert_holds(Pattern(9));
    held
}

/// Asserts that an access of NIC 1 is refused.
#[track_caller]
fn assert_refused(write: bool, addr: u64) {
    let stray = match write {
        true => stray::write(1, addr, &MARK),
        false => stray::read(1, addr, MARK.len()),
    };
    assert!(matches!(stray, Stray::Refused(_)), "{addr:#x}: {stray:?}");
}

/// Asserts that an access of NIC 1 is refused, and that the kernel logs it. As it
/// does not log all, the access is made until one is.
#[track_caller]
fn assert_refused_and_logged(rig: &Rig, write: bool, addr: u64) {
    const LIMIT: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(20);
    let line = refusal_line(rig.nic[1].pci(), write, addr);
    let (mut log, start) = (Log::from_now(), Instant::now());
    loop {
        assert_refused(write, addr);
        for _ in 0..20 {
            if log.has(&line) {
                return;
            }
            thread::sleep(PAUSE);
        }
        assert!(start.elapsed() < LIMIT, "no line {line:?} in the log");
    }
}

fn devices_are_translated() {
    let rig = rig();
    let mut groups = Vec::new();
    let gpus = rig.gpu.iter().map(|gpu| gpu.pci());
    for device in gpus.chain(rig.nic.iter().map(|nic| nic.pci())) {
        let folder = format!("/sys/bus/pci/devices/{device}/iommu_group");
        let kind = fs::read_to_string(format!("{folder}/type")).expect("the group's type");
        // Not DMA-FQ either, which would leave old addresses in force for a while.
        assert_eq!(kind.trim(), "DMA", "{device}");
        groups.push(fs::read_link(folder).expect("the device's group"));
    }
    groups.sort();
    groups.dedup();
    assert_eq!(groups.len(), 4, "an address space for each: {groups:?}");
}

/// Asserts that no address that NIC 1 holds means anything without the IOMMU.
#[track_caller]
fn assert_iovas(rig: &Rig, held: &Registered<'_>) {
    let segments = stray::segments(1, held.region.key);
    let size: u64 = segments.iter().map(|(_, len)| len).sum();
    assert_eq!(size, held.region.size, "{segments:x?}");
    let bars: Vec<_> = rig
        .gpu
        .iter()
        .flat_map(|gpu| memory::bars(gpu.pci()))
        .collect();
    let ram = memory::ram();
    for &(start, len) in &segments {
        assert!(!memory::meets(&bars, start, len), "{start:#x} is in a BAR");
        assert!(!memory::meets(&ram, start, len), "{start:#x} is in memory");
    }
}

fn vram_is_held_by_iova() {
    let rig = rig();
    for pages in [1, 16, 300] {
        let held = held(&rig, pages, Placement::Vram);
        assert_eq!(held.bo.info().peer_maps, 1);
        assert_iovas(&rig, &held);
    }
}

fn system_memory_is_held_by_iova() {
    let rig = rig();
    for pages in [1, 16, 300] {
        let held = held(&rig, pages, Placement::System);
        assert_eq!(held.bo.info().system_maps, 1);
        assert_iovas(&rig, &held);
    }
}

fn iovas_are_contiguous() {
    let rig = rig();
    let scattered = rig.scatter(1, 1000);
    let object = &scattered.object;
    let region = rig.nic[1].register(&object.fd, ACCESS_ALL, object.bo.size);
    rig.touch_region(1, &region);
    assert_eq!(object.bo.info().peer_maps, 1);
    let segments = stray::segments(1, region.key);
    assert_eq!(segments.len(), 1, "{segments:x?}");
    assert_eq!(segments[0].1, object.bo.size);
}

fn held_addresses_work() {
    let rig = rig();
    let held = held(&rig, 4, Placement::Vram);
    let (start, _) = stray::segments(1, held.region.key)[0];
    assert_eq!(
        stray::write(1, start + 100, &MARK),
        Stray::Peer(MARK.into())
    );
    let mut expected = Pattern(9).bytes(0, 4 * PAGE as usize);
    expected[100..108].copy_from_slice(&MARK);
    let found = held.bo.download(0, expected.len());
    assert_same(&found, &expected, "the object");
    assert_eq!(
        stray::read(1, start + 96, 8),
        Stray::Peer(expected[96..104].into())
    );
}

/// Takes away what NIC 1 holds, in a way of the test's, and asserts that the
/// addresses are dead and the object unharmed. Returns the first address.
#[track_caller]
fn assert_dead_after(rig: &Rig, write: bool, end: impl Fn(Registered<'_>)) -> u64 {
    let held = held(rig, 8, Placement::Vram);
    let (start, len) = stray::segments(1, held.region.key)[0];
    let fd = held.fd.try_clone().expect("another descriptor");
    // Keeps the object, whatever becomes of this one.
    let gpu = rig.gpu[1].reopen();
    let bo = gpu.import(&fd);
    end(held);
    assert_refused(write, start);
    assert_refused(write, start + len - 8);
    bo.assert_holds(Pattern(9));
    start
}

fn write_after_deregistration_is_refused() {
    let rig = rig();
    let address = assert_dead_after(&rig, true, |held| {
        held.region.deregister();
        assert_eq!(held.bo.info().placement, P2PGPU_PLACEMENT_VRAM);
    });
    assert_refused_and_logged(&rig, true, address);
}

fn read_after_deregistration_is_refused() {
    let rig = rig();
    let address = assert_dead_after(&rig, false, |held| held.region.deregister());
    assert_refused_and_logged(&rig, false, address);
}

fn write_after_move_is_refused() {
    let rig = rig();
    let address = assert_dead_after(&rig, true, |held| {
        held.bo.move_to(Placement::System);
        held.bo.move_to(Placement::Vram);
        assert_eq!(held.region.info().mapped, 0);
        assert_eq!(
            stray::segments(1, held.region.key),
            [],
            "the NIC forgot them"
        );
    });
    assert_refused_and_logged(&rig, true, address);
}

fn write_after_unflag_is_refused() {
    let rig = rig();
    assert_dead_after(&rig, true, |held| held.bo.set_exportable(false));
}

fn read_only_is_enforced() {
    let rig = rig();
    for placement in [Placement::Vram, Placement::System] {
        let Exported { bo, fd } = rig.export(1, 4 * PAGE, placement);
        bo.fill(Pattern(9));
        bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
        let region = rig.nic[1].register(&fd, P2PNIC_ACCESS_REMOTE_READ, bo.size);
        rig.touch_region(1, &region);
        let (start, _) = stray::segments(1, region.key)[0];
        let expected = bo.download(0, 8);
        let read = stray::read(1, start, 8);
        match placement {
            Placement::Vram => assert_eq!(read, Stray::Peer(expected)),
            Placement::System => assert_eq!(read, Stray::Ram(expected)),
        }
        // The machine knows the address as one to read, so that nothing is logged.
        assert_refused(true, start);
        assert_refused(true, start + 4 * PAGE - 8);
        bo.assert_holds(Pattern(9));
    }
}

fn address_of_another_nic_is_refused() {
    let rig = rig();
    // NIC 0 holds the object; its addresses mean nothing to NIC 1.
    let exported = rig.export(1, 4 * PAGE, Placement::Vram);
    exported.bo.fill(Pattern(9));
    let region = rig.nic[0].register(&exported.fd, ACCESS_ALL, exported.bo.size);
    rig.touch_region(0, &region);
    let (start, _) = stray::segments(0, region.key)[0];
    assert_refused(true, start);
    assert_eq!(
        stray::read(0, start, 8),
        Stray::Peer(Pattern(9).bytes(0, 8))
    );
    exported.bo.assert_holds(Pattern(9));
}

fn physical_address_is_refused() {
    let rig = rig();
    let held = held(&rig, 4, Placement::Vram);
    let bar = aperture(rig.gpu[1].pci());
    // The first slots are in use by the object, or were; the last never are.
    let map = held.bo.map();
    map.load(0);
    assert_refused(true, bar.start);
    assert_refused(true, bar.end - PAGE);
    assert_refused(false, bar.start);
    held.bo.assert_holds(Pattern(9));
}

fn past_the_end_is_refused() {
    let rig = rig();
    // Addresses are handed out by powers of two: nobody has the fourth page.
    let held = held(&rig, 3, Placement::Vram);
    let (start, len) = stray::segments(1, held.region.key)[0];
    assert_refused(true, start + len);
    assert_refused(false, start + len);
    held.bo.assert_holds(Pattern(9));
}

fn failed_mapping_gives_back_its_addresses() {
    let rig = rig();
    let failures = FailNth::open(What::Allocations);
    // Addresses of so many pages are not kept in a cache: the topmost that are free are
    // handed out.
    let exported = rig.export(1, 64 * PAGE, Placement::Vram);
    let importer = Importer::attach(&exported.fd, Attach::peer(rig.nic[1].pci()));
    let address = || {
        let index = importer.map(Direction::Both);
        let address = importer.ranges(index)[0].dma;
        importer.unmap(index);
        address
    };
    // One place below 4 GiB, and one above: the kernel leaves the former for good when an
    // allocation there fails. Addresses that are lost make it others, each time.
    let places = RefCell::new(BTreeSet::from([address()]));
    let tried = failures.exhaust(
        || (),
        |()| importer.__map(Direction::Both),
        |(), mapped| {
            if let Ok((index, _)) = mapped {
                importer.unmap(*index);
            }
            let mut places = places.borrow_mut();
            places.insert(address());
            assert!(places.len() <= 2, "others are in use: {places:x?}");
        },
    );
    assert!(tried.refused > 0);
}
