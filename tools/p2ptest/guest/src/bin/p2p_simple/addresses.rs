// SPDX-License-Identifier: GPL-2.0
//! Devices that are given user addresses at which pages of the BAR are mapped.

use crate::*;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use p2pguest::addresses::{Addresses, Info};
use p2pguest::binding::wait_until;
use p2pguest::importer::Direction;
use p2pguest::memory::{bars, lies_in, meets, ram};
use p2pguest::refused;
use p2pguest::stray::{self, Stray};
use std::num::NonZeroUsize;

/// What a device writes that a test lets write anywhere.
const MARK: [u8; 8] = *b"by addr\n";

/// Numbers of the BAR's pages, in the order of the addresses.
#[track_caller]
fn numbers(simple: &Simple, info: &Info) -> Vec<u64> {
    let physical = info.physical();
    physical.iter().map(|&p| page_number(simple, p)).collect()
}

pub fn addresses_are_of_the_bar() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(8);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 8), true);
    assert_eq!(addresses.info().pages.len(), 0, "registering maps nothing");
    assert_eq!(simple.used().len(), 0);
    let info = addresses.map();
    let mut pages = numbers(&simple, &info);
    // The CPU sees the same.
    (0..8).for_each(|page| map.store(bytes(page), 100 + page));
    let memory = simple.memory();
    for (at, &page) in (100..).zip(&pages) {
        assert_eq!(memory.load(bytes(page)), at);
    }
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), 8, "a page each: {info:x?}");
    assert_eq!(simple.used().into_iter().collect::<Vec<_>>(), pages);

    let all_bars = bars(simple.pci);
    for page in &info.pages {
        if Topology::current() == Topology::Iommu {
            assert!(!meets(&all_bars, page.dma, PAGE), "{page:x?} is no IOVA");
        } else {
            assert_eq!(page.dma, page.physical);
        }
    }
    // Mapping again is mapping once.
    assert_eq!(addresses.map().maps, 1);
    addresses.unmap();
    let info = addresses.info();
    assert_eq!((info.pages.len(), info.invalidations), (0, 1));
    let again = addresses.map();
    let mut found = numbers(&simple, &again);
    found.sort_unstable();
    assert_eq!((found, again.maps), (pages, 2));
}

pub fn window_takes_its_pages_only() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(simple.pages());
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (500, 16), true);
    addresses.map();
    assert_eq!(simple.used().len(), 16);
    // The same pages, where the window says.
    map.store(bytes(500), 77);
    let first = numbers(&simple, &addresses.info())[0];
    assert_eq!(simple.memory().load(bytes(first)), 77);
    assert_eq!(simple.used().len(), 16);
}

pub fn both_ways_lead_to_one_page() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let fd = simple.export_lazy(6);
    // Mapped from its second page on.
    let map = fd.map(PAGE, 5 * PAGE);
    map.store(bytes(2), 1);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (1, 4), true);
    let by_address = numbers(&simple, &addresses.map());
    assert_eq!(simple.used().len(), 4);

    let importer = Importer::attach(&fd, peer(&rig));
    let index = importer.map(Direction::Both);
    assert_eq!(simple.used().len(), 6);
    if Topology::current() == Topology::Iommu {
        // One range of addresses, which tells the first page only.
        map.store(bytes(1), 0x1234);
        assert_eq!(simple.memory().load(bytes(by_address[0])), 0x1234);
    } else {
        assert_eq!(pages_of(&simple, &importer, index)[2..6], by_address);
    }
    // An eager one is mapped by address too.
    let last = simple.pages() - 1;
    let eager = simple.export(last..last + 1);
    let eager_map = eager.map(0, PAGE);
    let addresses = Addresses::register(rig.nic[1].pci(), &eager_map, (0, 1), true);
    let found = numbers(&simple, &addresses.map());
    assert_eq!(found, [last]);
}

pub fn mixed_range_is_mapped_by_parts() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_ANONYMOUS;
    let zero = std::fs::File::open("/dev/null").expect("/dev/null");
    // The file does not matter: the mapping is anonymous.
    let all = Mapping::__with_flags(&zero, 0, bytes(8), flags).expect("memory");
    let (one, other) = (simple.export(20..22), simple.export(10..11));
    for (fd, page, pages) in [(&one, 2, 2), (&other, 4, 1)] {
        let at = NonZeroUsize::new(all.as_ptr().addr() + bytes(page));
        let len = NonZeroUsize::new(bytes(pages)).expect("not 0");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: it takes the place of pages of our own mapping.
        unsafe { mmap(at, len, prot, flags, fd, 0) }.expect("a mapping in place");
    }
    let addresses = Addresses::register(rig.nic[1].pci(), &all, (0, 8), true);
    let info = addresses.map();
    let physical = info.physical();
    assert_eq!(physical.len(), 8);
    let bar = simple.bar().start;
    let ours = [20, 21, 10].map(|page| bar + page * PAGE);
    assert_eq!(physical[2..5], ours);
    let memory = ram();
    for page in physical[..2].iter().chain(&physical[5..]) {
        assert!(lies_in(&memory, *page, PAGE), "{page:#x} is not in memory");
    }
    // Both ends of the borders.
    assert!(matches!(
        stray::write(1, info.pages[3].dma, &MARK),
        Stray::Peer(_)
    ));
    assert!(matches!(
        stray::write(1, info.pages[1].dma, &MARK),
        Stray::Ram(_)
    ));
    let mark = u64::from_ne_bytes(MARK);
    assert_eq!((all.load(bytes(3)), all.load(bytes(1))), (mark, mark));
}

pub fn nic_writes_by_address() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    // Pages of one that lie between those of another.
    let (map, between) = (simple.map(16), simple.map(16));
    for page in (0..16).rev().step_by(3) {
        map.store(bytes(page), 1);
        between.store(bytes(page), 1);
    }
    let region = rig.nic[1].register_map(&map, ACCESS_ALL);
    let source = rig.register(0, 16 * PAGE, Placement::System);
    source.bo.fill(Pattern(8));
    let before = rig.nic[1].query();
    rig.connect(4).write(&source.region, &region);
    let after = rig.nic[1].query();
    let written = after.peer_write_bytes - before.peer_write_bytes;
    assert_eq!(written, 16 * PAGE, "bytes written to BARs");
    assert_eq!(after.ram_write_bytes, before.ram_write_bytes);
    assert_pages(&map, 0, 16, Pattern(8));
    for page in (0..16).rev().step_by(3) {
        assert_eq!(between.load(bytes(page)), 1, "another's page {page}");
        assert_eq!(between.load(bytes(page) + 8), 0, "another's page {page}");
    }
    // The other way.
    let sink = rig.register(0, 16 * PAGE, Placement::System);
    let wire = rig.connect(4);
    wire.far.post_send(write_request(&region, &sink.region));
    wire.far.expect(P2PNIC_STATUS_OK);
    sink.bo.assert_holds(Pattern(8));
}

pub fn munmap_ends_requests() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(4);
    let region = rig.nic[1].register_map(&map, ACCESS_ALL);
    let source = rig.register(0, 4 * PAGE, Placement::System);
    let wire = rig.connect(4);
    wire.write(&source.region, &region);
    drop(map);
    simple.wait_free();
    wire.near.post_send(write_request(&source.region, &region));
    wire.near.expect(P2PNIC_STATUS_REVOKED);
    assert_eq!(region.info().last_error, Errno::EFAULT as u32);
}

pub fn device_writes_by_address() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(4);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 4), true);
    for (page, at) in (0..).zip(addresses.map().pages) {
        assert_eq!(map.load(bytes(page) + 80), 0);
        let written = stray::write(1, at.dma + 80, &MARK);
        assert_eq!(written, Stray::Peer(MARK.into()));
        assert_eq!(map.load(bytes(page) + 80), u64::from_ne_bytes(MARK));
        map.store(bytes(page) + 88, page);
        let read = stray::read(1, at.dma + 88, 8);
        assert_eq!(read, Stray::Peer(page.to_ne_bytes().into()));
    }
}

pub fn device_writes_by_read_only_address() {
    igt::require(Topology::current() == Topology::Iommu, "an IOMMU");
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(1);
    map.store(0, 55);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 1), false);
    let at = addresses.map().pages[0].dma;
    assert_eq!(
        stray::read(1, at, 8),
        Stray::Peer(55_u64.to_ne_bytes().into())
    );
    let written = stray::write(1, at, &MARK);
    assert!(matches!(written, Stray::Refused(_)), "{written:?}");
    assert_eq!(map.load(0), 55);
}

pub fn munmap_invalidates() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(4);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 4), true);
    let at = addresses.map().pages[0].dma;
    drop(map);
    let info = addresses.info();
    assert_eq!((info.pages.len(), info.invalidations), (0, 1));
    // The core unmaps a moment later, and lets go of the file.
    simple.wait_free();
    if Topology::current() == Topology::Iommu {
        let written = stray::write(1, at, &MARK);
        assert!(matches!(written, Stray::Refused(_)), "{written:?}");
    }
    refused(addresses.__map(), Errno::EFAULT);
}

pub fn addresses_of_a_full_bar() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let held = simple.export(0..simple.pages() - 3);
    let map = simple.map(4);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 4), true);
    refused(addresses.__map(), Errno::ENOSPC);
    assert_eq!(simple.used().len() as u64, simple.pages() - 3);
    let part = Addresses::register(rig.nic[1].pci(), &map, (1, 3), true);
    assert_eq!(part.map().pages.len(), 3);
    refused(addresses.__map(), Errno::ENOSPC);
    drop(held);
    wait_until("pages are free", || simple.used().len() == 3);
    assert_eq!(addresses.map().pages.len(), 4);
}

pub fn addresses_without_route() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(4);
    let addresses = Addresses::register(rig.nic[1].pci(), &map, (0, 4), true);
    if Topology::current().has_route() {
        return assert_eq!(addresses.map().pages.len(), 4);
    }
    refused(addresses.__map(), Errno::EXDEV);
    assert_eq!(addresses.info().maps, 0);
    assert_eq!(simple.used().len(), 0, "nothing was assigned");
    // The CPU does not care.
    map.store(0, 1);
    assert_eq!(map.load(0), 1);
}
