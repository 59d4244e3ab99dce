// SPDX-License-Identifier: GPL-2.0
//! Dma-bufs of ranges that are fixed when they are exported.

use crate::*;
use nix::errno::Errno;
use p2pguest::binding::Unbound;
use p2pguest::drm::PciAddress;
use p2pguest::importer::{Direction, Kind};
use p2pguest::nic::Nic;
use p2pguest::refused;
use std::os::fd::AsRawFd;
use std::{fs, io};

pub fn range_shows_the_bar() {
    let simple = Simple::open();
    let memory = simple.memory();
    write_pages(&memory, 0, 16, Pattern(1));
    let map = simple.export(4..12).map(0, 8 * PAGE);
    let mut found = vec![0; bytes(8)];
    map.read(0, &mut found);
    let expected = Pattern(1).bytes(4 * PAGE, bytes(8));
    assert_same(&found, &expected, "the range");
    // The mapping keeps what the descriptor was of.
    write_pages(&map, 0, 8, Pattern(2));
    assert_pages(&memory, 4, 8, Pattern(2));
    assert_eq!(memory.load(bytes(12)), Pattern(1).word(12 * PAGE / 8));
}

pub fn nic_writes_into_a_range() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let memory = simple.memory();
    write_pages(&memory, 0, 32, Pattern(1));
    nic_writes(&rig, &simple.export(8..24), 16, Pattern(7));
    assert_pages(&memory, 8, 16, Pattern(7));
    assert_pages(&memory, 0, 8, Pattern(1));
    assert_eq!(memory.load(bytes(24)), Pattern(1).word(24 * PAGE / 8));
}

pub fn nic_reads_from_a_range() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    write_pages(&simple.memory(), 3, 4, Pattern(3));
    let sink = rig.register(1, 4 * PAGE, Placement::System);
    let region = rig.nic[0].register(&simple.export(3..7), ACCESS_ALL, 4 * PAGE);
    rig.connect(4).write(&region, &sink.region);
    sink.bo.assert_holds(Pattern(3));
}

pub fn range_is_one_piece() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let importer = Importer::attach(&simple.export(100..400), peer(&rig));
    let ranges = importer.ranges(importer.map(Direction::Both));
    assert_eq!(ranges.len(), 1, "{ranges:x?}");
    assert_eq!(ranges[0].size, 300 * PAGE);
    assert_eq!(page_number(&simple, ranges[0].physical), 100);
    let translated = ranges[0].dma != ranges[0].physical;
    assert_eq!(translated, Topology::current() == Topology::Iommu);
}

/// A device that the driver in C has instead of its own one, until this is dropped.
struct Borrowed(PciAddress);

impl Borrowed {
    #[track_caller]
    fn new(pci: PciAddress) -> Self {
        let borrowed = Self(pci);
        let bound = borrowed
            .__override(Driver::C.name())
            .and_then(|()| borrowed.__tell("bind"));
        bound.expect("the driver takes the device");
        borrowed
    }

    fn __override(&self, driver: &str) -> io::Result<()> {
        fs::write(self.0.sysfs().join("driver_override"), driver)
    }

    fn __tell(&self, file: &str) -> io::Result<()> {
        let folder = format!("/sys/bus/pci/drivers/{}", Driver::C.name());
        fs::write(format!("{folder}/{file}"), self.0.to_string())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let given_back = self.__tell("unbind").and_then(|()| self.__override("\n"));
        // Who waits for the device afterwards says that it is not there.
        if let Err(error) = given_back {
            println!("{} is not given back: {error}", self.0);
        }
    }
}

pub fn registers_are_shown() {
    // A register of 64 bits of a NIC: where its mailbox is.
    const MAILBOX_ADDR: usize = 0x20;

    let pci = Nic::open(1).pci();
    // There is one file, for one device.
    let _simple = Simple::open().unbind();
    let _nic = Unbound::new("p2pnic", pci);
    let bar = BarNumber;
    bar.set(0);
    let _borrowed = Borrowed::new(pci);
    let nic = Simple::of(Driver::C, pci);
    let fd = nic.export(0..1);
    let map = fd.map(0, PAGE);
    for address in [0x12_3400, 0x56_7800] {
        map.store(MAILBOX_ADDR, address);
        assert_eq!(map.load(MAILBOX_ADDR), address);
    }
    refused(nic.__export(0..1), Errno::EBUSY);
    refused(nic.__export(15..17), Errno::EINVAL);
    drop((nic.export(1..16), fd));
    assert_eq!(map.load(MAILBOX_ADDR), 0x56_7800);
}

pub fn ranges_do_not_overlap() {
    let simple = Simple::open();
    let held = simple.export(10..20);
    for pages in [9..11, 10..20, 12..13, 19..30, 0..simple.pages()] {
        refused(simple.__export(pages), Errno::EBUSY);
    }
    let neighbours = (simple.export(0..10), simple.export(20..21));
    // A second descriptor, or a mapping, keeps it.
    let map = held.map(0, PAGE);
    drop(held);
    refused(simple.__export(12..13), Errno::EBUSY);
    drop(map);
    drop(neighbours);
    simple.wait_free();
}

pub fn read_only_range() {
    let (simple, rig) = (Simple::open(), Rig::open());
    write_pages(&simple.memory(), 0, 4, Pattern(4));
    let fd = simple.export_read_only(0..4);
    refused(Mapping::__new(&fd, 0, bytes(4)), Errno::EACCES);
    let map = Mapping::__read_only(&fd, bytes(4)).expect("a mapping to read");
    assert_pages(&map, 0, 4, Pattern(4));
    let child = igt::fork(|| map.store(0, 0));
    assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGSEGV));
    if !Topology::current().has_route() {
        return;
    }

    let importer = Importer::attach(&fd, peer(&rig));
    refused(importer.__map(Direction::Both), Errno::EACCES);
    refused(importer.__map(Direction::FromDevice), Errno::EACCES);
    importer.map(Direction::ToDevice);

    // A NIC that asks for no more than to read is served.
    let sink = rig.register(1, 4 * PAGE, Placement::System);
    let region = rig.nic[0].register(&fd, 0, 4 * PAGE);
    rig.connect(4).write(&region, &sink.region);
    sink.bo.assert_holds(Pattern(4));
    drop(region);
    let region = rig.nic[0].register(&fd, ACCESS_ALL, 4 * PAGE);
    let wire = rig.connect(4);
    wire.near.post_send(write_request(&region, &sink.region));
    wire.near.expect(P2PNIC_STATUS_REVOKED);
    assert_eq!(region.info().last_error, Errno::EACCES as u32);
}

pub fn importers_without_route() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let lazy = simple.export_lazy(4);
    let attach = |how| Importer::__attach(&lazy, how).map(drop);
    let kind = |kind| attach(peer(&rig).kind(kind));
    refused(kind(Kind::Static), Errno::EXDEV);
    refused(attach(peer(&rig).no_peer()), Errno::EXDEV);
    refused(attach(peer(&rig).software()), Errno::EXDEV);
    let with_route = match Topology::current().has_route() {
        true => Ok(()),
        false => Err(Errno::EXDEV),
    };
    assert_eq!(attach(peer(&rig)), with_route);
    // It could never be told.
    let deaf = with_route.and(Err(Errno::EOPNOTSUPP));
    assert_eq!(kind(Kind::Deaf), deaf);
    let registered = rig.nic[1].__register(lazy.0.as_raw_fd(), ACCESS_ALL, 0, 4 * PAGE);
    assert_eq!(registered.map(drop), with_route);
    assert_eq!(simple.used().len(), 0, "nobody has mapped anything");
}
