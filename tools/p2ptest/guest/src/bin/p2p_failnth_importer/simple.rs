// SPDX-License-Identifier: GPL-2.0
//! What the helper for simple devices does, in the caller's context.

use nix::errno::Errno;
use p2pguest::addresses::Addresses;
use p2pguest::failnth::{PAGE, exhaust};
use p2pguest::importer::{Attach, Direction, Importer};
use p2pguest::map::Mapping;
use p2pguest::nic::Nic;
use p2pguest::simple::Simple;
use std::ptr;

const PAGES: u64 = 4;

pub fn simple_export() {
    let simple = Simple::open();
    exhaust("EXPORT", || (), |()| simple.__export(0..PAGES));
    let size = PAGES * PAGE;
    exhaust("EXPORT_LAZY", || (), |()| simple.__export_lazy(size));
    simple.wait_free();
}

pub fn simple_mmap() {
    let simple = Simple::open();
    exhaust(
        "mmap of the file",
        || (),
        |()| {
            let map = Mapping::__new(&simple, 0, PAGE as usize)?;
            map.store(0, 1);
            Ok(())
        },
    );
    simple.wait_free();
}

pub fn simple_map() {
    let (simple, nic) = (Simple::open(), Nic::open(0));
    let importer = || Importer::attach(&simple.export_lazy(PAGES), Attach::peer(nic.pci()));
    exhaust("MAP", importer, |importer| importer.__map(Direction::Both));
    let mapped = || simple.map(PAGES);
    let opened = || (mapped(), Importer::open());
    exhaust("REGISTER", opened, |(map, importer)| {
        let argument = Addresses::argument(nic.pci(), map, (0, 4), true);
        Addresses::__register_raw(importer, argument)
    });
    let registered = || {
        let map = mapped();
        (Addresses::register(nic.pci(), &map, (0, 4), true), map)
    };
    exhaust("MAP_REGION", registered, |(addresses, _)| addresses.__map());
    let ask = |importer: &Importer| Addresses::__info_of(importer);
    let given = || {
        let (importer, map) = (Importer::open(), mapped());
        let argument = Addresses::argument(nic.pci(), &map, (0, 4), true);
        assert_eq!(Addresses::__register_raw(&importer, argument), Ok(()));
        let request = p2pguest::sys::uapi::P2P_IMPORTER_IOCTL_MAP_REGION;
        // SAFETY: the request takes no argument.
        let done: Result<(), Errno> = unsafe { importer.__ioctl_raw(request, ptr::null_mut()) };
        assert_eq!(done, Ok(()));
        (importer, map)
    };
    exhaust("REGION", given, |(importer, _)| ask(importer));
    simple.wait_free();
}
