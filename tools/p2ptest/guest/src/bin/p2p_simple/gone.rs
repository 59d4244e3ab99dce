// SPDX-License-Identifier: GPL-2.0
//! The device goes, with CPUs and devices that use its BAR.

use crate::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use p2pguest::addresses::Addresses;
use p2pguest::binding::wait_until;
use p2pguest::igt::Child;
use p2pguest::importer::{Answer, Direction};
use p2pguest::refused;
use p2pguest::stray::{self, Stray};
use std::fs;
use std::os::fd::AsRawFd;

pub fn unbind_revokes() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let has_route = Topology::current().has_route();
    let (range, lazy) = (simple.export(0..4), simple.export_lazy(4));
    let (range_map, lazy_map) = (range.map(0, 4 * PAGE), lazy.map(0, 4 * PAGE));
    range_map.store(0, 1);
    lazy_map.store(0, 1);
    let mapped = has_route.then(|| {
        let importers = [&range, &lazy].map(|fd| {
            let importer = Importer::attach(fd, peer(&rig));
            importer.map(Direction::Both);
            importer
        });
        let addresses = Addresses::register(rig.nic[1].pci(), &lazy_map, (0, 4), true);
        let at = addresses.map().pages[0].dma;
        (importers, addresses, at)
    });

    let unbound = simple.unbind();
    for map in [&range_map, &lazy_map] {
        // Where there was a page, and where none was.
        assert_sigbus(map, 0);
        assert_sigbus(map, bytes(3));
        // A page that is refused does not bring those around it back either.
        for page in 0..4 {
            refused(map.__probe(bytes(page)), Errno::EFAULT);
        }
    }
    if let Some((importers, addresses, at)) = mapped {
        for importer in &importers {
            let info = importer.info();
            assert_eq!(
                (info.invalidations, info.unlocked, info.mappings),
                (1, 0, 0)
            );
            refused(importer.__map(Direction::Both), Errno::ENODEV);
        }
        let info = addresses.info();
        assert_eq!((info.pages.len(), info.invalidations), (0, 1));
        refused(addresses.__map(), Errno::ENODEV);
        if Topology::current() == Topology::Iommu {
            let written = stray::write(1, at, &[1; 8]);
            assert!(matches!(written, Stray::Refused(_)), "{written:?}");
        }
    }
    let attached = Importer::__attach(&range, peer(&rig)).map(drop);
    refused(attached, Errno::ENODEV);
    let registered = rig.nic[1].__register(lazy.as_raw_fd(), ACCESS_ALL, 0, 4 * PAGE);
    refused(registered.map(drop), Errno::ENODEV);
    refused(Mapping::__new(&lazy, 0, bytes(4)), Errno::ENODEV);
    refused(simple.__export(8..9), Errno::ENODEV);
    refused(simple.__export_lazy(PAGE), Errno::ENODEV);
    refused(Mapping::__new(&simple, 0, bytes(1)), Errno::ENODEV);

    // Nothing comes back to what was revoked.
    drop(unbound);
    let again = Simple::open();
    let fresh = again.map(4);
    fresh.store(0, 2);
    assert_sigbus(&lazy_map, 0);
    refused(simple.__export(8..9), Errno::ENODEV);
}

pub fn unbind_ends_requests() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let (fd, map) = (simple.export(0..16), simple.map(16));
    let by_dma_buf = rig.nic[1].register(&fd, ACCESS_ALL, 16 * PAGE);
    let by_address = rig.nic[1].register_map(&map, ACCESS_ALL);
    let regions = [by_dma_buf, by_address];
    let source = rig.register(0, 16 * PAGE, Placement::System);
    source.bo.fill(Pattern(6));
    let wire = rig.connect(4);
    for region in &regions {
        wire.write(&source.region, region);
        assert_eq!(region.info().mapped, 1);
    }

    let unbound = simple.unbind();
    for region in &regions {
        let info = region.info();
        assert_eq!((info.mapped, info.invalidations), (0, 1));
        // A request that fails ends its queue pair.
        let wire = rig.connect(4);
        wire.near.post_send(write_request(&source.region, region));
        wire.near.expect(P2PNIC_STATUS_REVOKED);
        assert_eq!(region.info().last_error, Errno::ENODEV as u32);
    }
    // Others go on.
    let sink = rig.register(1, 16 * PAGE, Placement::System);
    rig.connect(4).write(&source.region, &sink.region);
    sink.bo.assert_holds(Pattern(6));
    drop(unbound);
}

pub fn unbind_waits() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let how = peer(&rig).answer(Answer::UnmapLater, 700);
    let importer = Importer::attach(&simple.export(0..4), how);
    importer.map(Direction::Both);
    let unbound = simple.unbind();
    let info = importer.info();
    assert_eq!((info.late_unmaps, info.mappings), (1, 0));
    drop(unbound);
}

/// How long revocation waits for importers, in milliseconds, as it was when this is dropped.
struct Patience(String);

impl Patience {
    const FILE: &str = "/sys/module/p2p_bar/parameters/importer_timeout_ms";

    #[track_caller]
    fn set(millis: u32) -> Self {
        let before = fs::read_to_string(Self::FILE).expect("a module's parameter");
        fs::write(Self::FILE, millis.to_string()).expect("a number");
        Self(before)
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        fs::write(Self::FILE, &self.0).expect("what was there before");
    }
}

/// Leaves the process as one that has passed.
extern "C" fn pass(_signal: i32) {
    // SAFETY: ends the process; handlers of signals may.
    unsafe { libc::_exit(0) }
}

pub fn unbind_holds_up_nobody_for_good() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let fd = simple.export_lazy(4);
    let map = fd.map(0, 4 * PAGE);
    // Revoking the dma-buf takes so long, under its reservation lock.
    let how = peer(&rig).answer(Answer::UnmapLater, 5000);
    let importer = Importer::attach(&fd, how);
    importer.map(Direction::Both);
    importer.start_access();

    // The child's end leaves the device without a driver.
    let unbinding = igt::fork(|| std::mem::forget(simple.unbind()));
    wait_until("the importer is told", || {
        importer.info().invalidations == 1
    });
    let touch = || {
        map.load(0);
    };
    let register = || Addresses::register(rig.nic[1].pci(), &map, (0, 4), true);
    let waiting = [
        igt::fork(touch),
        igt::fork(|| {
            let _ = register().__map();
        }),
        igt::fork(|| drop(Importer::__attach(&fd, peer(&rig)))),
    ];
    let handles = SigAction::new(SigHandler::Handler(pass), SaFlags::empty(), SigSet::empty());
    let handling = igt::fork(|| {
        // SAFETY: the handler does nothing but end the process.
        unsafe { sigaction(Signal::SIGUSR1, &handles) }.expect("a handler");
        touch();
    });
    waiting.iter().for_each(Child::wait_asleep);
    handling.wait_asleep();
    for child in waiting {
        child.send(Signal::SIGKILL);
        assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGKILL));
    }
    handling.send(Signal::SIGUSR1);
    assert_eq!(handling.outcome(), Outcome::Passed);
    unbinding.assert_runs();
    assert_eq!(importer.info().late_unmaps, 0, "too slow to tell");
    unbinding.join();
    assert_sigbus(&map, 0);
    simple.driver.take();
}

pub fn unbind_does_not_hang() {
    require_route();
    let (simple, rig) = (Simple::open(), Rig::open());
    let how = peer(&rig).answer(Answer::Keep, 0);
    let importer = Importer::attach(&simple.export_lazy(4), how);
    let index = importer.map(Direction::Both);
    let patience = Patience::set(1000);
    let unbound = simple.unbind();
    drop(patience);
    assert_eq!(importer.info().mappings, 1);
    // Others would be given pages that it still has.
    let bound = unbound.__bind().map_err(|error| error.raw_os_error());
    assert_eq!(bound, Err(Some(Errno::EBUSY as i32)));
    importer.unmap(index);
    assert!(unbound.__bind().is_ok(), "the device is not bound again");
    Simple::open().map(1).store(0, 1);
}

pub fn bound_again() {
    for _ in 0..10 {
        let simple = Simple::open();
        let (map, kept) = (simple.map(4), simple.export(100..200));
        map.store(0, 1);
        drop(simple.unbind());
        // With what was revoked still there.
        let again = Simple::open();
        assert_eq!(again.used().len(), 0);
        assert_sigbus(&map, 0);
        drop(kept);
        // Of the other binding: it frees nothing here.
        let held = again.export(100..200);
        drop((map, simple));
        refused(again.__export(150..151), Errno::EBUSY);
        drop(held);
    }
    let simple = Simple::open();
    let map = simple.map(simple.pages());
    (0..simple.pages()).for_each(|page| map.store(bytes(page), page));
    (0..simple.pages()).for_each(|page| assert_eq!(map.load(bytes(page)), page));
}
