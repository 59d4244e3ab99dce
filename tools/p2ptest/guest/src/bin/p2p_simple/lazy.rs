// SPDX-License-Identifier: GPL-2.0
//! Dma-bufs whose pages are assigned when they are needed.

use crate::*;
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use p2pguest::binding::wait_until;
use p2pguest::importer::Direction;
use p2pguest::refused;

/// Puts a mark into all of the BAR that nobody has cleared.
fn soil(simple: &Simple) {
    let memory = simple.memory();
    (0..simple.pages()).for_each(|page| memory.store(bytes(page), 0x50_11_ed));
}

pub fn lazy_page_at_the_first_touch() {
    let simple = Simple::open();
    let map = simple.export_lazy(16).map(0, 16 * PAGE);
    assert_eq!(simple.used().len(), 0, "before it is touched");
    // A load is a touch as well.
    assert_eq!(map.load(bytes(5)), 0);
    let used: Vec<_> = simple.used().into_iter().collect();
    assert_eq!(used.len(), 1, "one page: {used:?}");
    map.store(bytes(5), 0x1234);
    assert_eq!(simple.memory().load(bytes(used[0])), 0x1234);
    map.store(bytes(9), 1);
    assert_eq!(simple.used().len(), 2);
    // Where there is one, another touch takes none.
    map.store(bytes(5) + 8, 1);
    assert_eq!(simple.used().len(), 2);
}

pub fn lazy_pages_at_the_first_map() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let fd = simple.export_lazy(8);
    let importer = Importer::attach(&fd, peer(&rig));
    assert_eq!(simple.used().len(), 0, "attaching takes nothing");
    let index = importer.map(Direction::Both);
    let ranges = importer.ranges(index);
    assert_eq!(ranges.iter().map(|range| range.size).sum::<u64>(), 8 * PAGE);
    let used = simple.used();
    assert_eq!(used.len(), 8);
    let first = page_number(&simple, ranges[0].physical);
    assert!(used.contains(&first));

    let map = fd.map(0, 8 * PAGE);
    map.store(0, 0x5678);
    assert_eq!(simple.memory().load(bytes(first)), 0x5678);
    assert_eq!(simple.used(), used, "the CPU took others");
    // They stay the dma-buf's when the device lets go.
    importer.unmap(index);
    assert_eq!(simple.used(), used);
}

/// Page faults of this thread that took no I/O, while it runs something.
fn faults(f: impl FnOnce()) -> i64 {
    let so_far = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage");
        usage.minor_page_faults()
    };
    let before = so_far();
    f();
    so_far() - before
}

pub fn touch_maps_pages_around() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let touch = |map: &Mapping| (0..256).for_each(|page| map.store(bytes(page), page));
    // One for each group of 16, and some of the test's own.
    let range = simple.export(0..256);
    let map = range.map(0, 256 * PAGE);
    let count = faults(|| touch(&map));
    println!("{count} faults in a range");
    assert!((16..32).contains(&count), "{count} faults");
    assert_eq!(map.load(bytes(255)), 255);

    let fd = simple.export_lazy(256);
    let map = fd.map(0, 256 * PAGE);
    // None is assigned but those that are touched.
    for page in [0, 17, 19, 31, 255] {
        map.store(bytes(page), 1);
    }
    assert_eq!(simple.used().len(), 256 + 5);
    let count = faults(|| touch(&map));
    println!("{count} faults in pages to come");
    assert!(count >= 251, "{count} faults");
    // Another mapping of what is there.
    let again = fd.map(0, 256 * PAGE);
    let count = faults(|| touch(&again));
    assert!((16..32).contains(&count), "{count} faults");
    (0..256).for_each(|page| assert_eq!(map.load(bytes(page)), page));

    // Parts of a group, at the ends of a mapping.
    let part = fd.map(13 * PAGE, 6 * PAGE);
    let sum = || (0..6).map(|page| part.load(bytes(page))).sum::<u64>();
    let count = faults(|| assert_eq!(sum(), (13..19).sum::<u64>()));
    assert!((2..6).contains(&count), "{count} faults");
    drop((range, part));
    if Topology::current().has_route() {
        let fd = simple.export_lazy(256);
        let map = fd.map(0, 256 * PAGE);
        let importer = Importer::attach(&fd, peer(&rig));
        importer.map(Direction::Both);
        let count = faults(|| touch(&map));
        assert!((16..32).contains(&count), "{count} faults");
    }
}

pub fn lazy_pages_are_cleared() {
    let (simple, rig) = (Simple::open(), Rig::open());
    soil(&simple);
    let map = simple.map(4);
    (0..4).for_each(|page| assert_eq!(map.load(bytes(page)), 0, "page {page}"));
    drop(map);
    if Topology::current().has_route() {
        soil(&simple);
        let fd = simple.export_lazy(300);
        let importer = Importer::attach(&fd, peer(&rig));
        importer.map(Direction::Both);
        let map = fd.map(0, 300 * PAGE);
        (0..300).for_each(|page| assert_eq!(map.load(bytes(page)), 0, "page {page}"));
    }
}

pub fn nic_writes_into_scattered_pages() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let (fd, other) = (simple.export_lazy(12), simple.export_lazy(12));
    let (map, between) = (fd.map(0, 12 * PAGE), other.map(0, 12 * PAGE));
    // Backwards, with another's page after each.
    for page in (0..12).rev() {
        map.store(bytes(page), 1);
        between.store(bytes(page), 1);
    }
    nic_writes(&rig, &fd, 12, Pattern(5));
    assert_pages(&map, 0, 12, Pattern(5));
    for page in 0..12 {
        assert_eq!(between.load(bytes(page)), 1, "another's page {page}");
        assert_eq!(between.load(bytes(page) + 8), 0, "another's page {page}");
    }
}

pub fn bar_is_full() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let held = simple.export(0..simple.pages() - 4);
    let fd = simple.export_lazy(5);
    let map = fd.map(0, 5 * PAGE);
    if Topology::current().has_route() {
        let importer = Importer::attach(&fd, peer(&rig));
        refused(importer.__map(Direction::Both), Errno::ENOSPC);
        // All or none.
        assert_eq!(simple.used().len() as u64, simple.pages() - 4);
    }
    (0..4).for_each(|page| map.store(bytes(page), page));
    assert_sigbus(&map, bytes(4));
    let another = simple.map(1);
    assert_sigbus(&another, 0);
    // What has a page has it.
    (0..4).for_each(|page| assert_eq!(map.load(bytes(page)), page));

    drop(held);
    let pages = || simple.used().len();
    wait_until("pages are free", || pages() == 4);
    map.store(bytes(4), 4);
    another.store(0, 1);
    if Topology::current().has_route() {
        let importer = Importer::attach(&fd, peer(&rig));
        importer.map(Direction::Both);
    }
    assert_eq!(pages(), 6);
}

pub fn larger_than_the_bar() {
    let simple = Simple::open();
    let size = simple.pages() * PAGE;
    refused(simple.__export_lazy(size + PAGE), Errno::ENOSPC);
    refused(simple.__export_lazy(1 << 62), Errno::ENOSPC);
    let len = usize::try_from(size + PAGE).expect("fits");
    refused(Mapping::__new(&simple, 0, len), Errno::ENOSPC);
    assert!(simple.__export_lazy(size).is_ok());
    // Nobody has taken a page: two of them can be there.
    let both = (simple.map(simple.pages()), simple.map(simple.pages()));
    both.0.store(0, 1);
    both.1.store(0, 2);
    assert_eq!(both.0.load(0), 1);
}

pub fn mapping_of_the_file_ends() {
    let simple = Simple::open();
    let (one, other) = (simple.map(3), simple.map(3));
    write_pages(&one, 0, 3, Pattern(1));
    write_pages(&other, 0, 3, Pattern(2));
    assert_pages(&one, 0, 3, Pattern(1));
    assert_eq!(simple.used().len(), 6);
    drop(one);
    wait_until("its pages are free", || simple.used().len() == 3);
    assert_pages(&other, 0, 3, Pattern(2));
    drop(other);
    simple.wait_free();
}

pub fn fork_shares_the_pages() {
    let simple = Simple::open();
    let map = simple.map(2);
    map.store(0, 1);
    igt::fork(|| {
        assert_eq!(map.load(0), 1);
        map.store(0, 2);
        // One that the parent has not touched.
        map.store(bytes(1), 3);
    })
    .join();
    assert_eq!((map.load(0), map.load(bytes(1))), (2, 3));
    assert_eq!(simple.used().len(), 2);
}
