// SPDX-License-Identifier: GPL-2.0
//! Arguments that nobody should make.

use crate::*;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use p2pguest::addresses::Addresses;
use p2pguest::refused;
use std::fs;
use std::ptr::without_provenance;

pub fn bad_input() {
    let simple = Simple::open();
    let size = simple.pages() * PAGE;
    let bad = [
        // Empty, and not of whole pages.
        [0, 0, 0],
        [0, 1, 0],
        [1, PAGE, 0],
        [0, PAGE - 1, 0],
        [PAGE / 2, PAGE, 0],
        // Past the end.
        [0, size + PAGE, 0],
        [size, PAGE, 0],
        [size - PAGE, 2 * PAGE, 0],
        // Ends that no number holds.
        [PAGE, u64::MAX - PAGE + 1, 0],
        [u64::MAX - PAGE + 1, PAGE, 0],
        [u64::MAX - PAGE + 1, u64::MAX - PAGE + 1, 0],
        [0, 1 << 63, 0],
        // Unknown flags.
        [0, PAGE, 2],
        [0, PAGE, 1 << 32],
    ];
    for arg in bad {
        refused(simple.__export_raw(arg), Errno::EINVAL);
    }
    for size in [0, 1, PAGE - 1, PAGE + 1, u64::MAX] {
        refused(simple.__export_lazy(size), Errno::EINVAL);
    }
    // SAFETY: nothing is there.
    unsafe {
        let nowhere = without_provenance(8);
        refused(simple.__ioctl_raw(0x4018_5600, nowhere), Errno::EFAULT);
        refused(simple.__ioctl_raw(0x4008_5601, nowhere), Errno::EFAULT);
        refused(simple.__ioctl_raw(0x4008_5602, nowhere), Errno::ENOTTY);
        refused(simple.__ioctl_raw(0, nowhere), Errno::ENOTTY);
    }
    // There are no private copies of a BAR's pages, and none past its end.
    let fd = simple.export(0..4);
    let private = |flags| Mapping::__with_flags(&fd, 0, bytes(4), flags).map(drop);
    refused(private(MapFlags::MAP_PRIVATE), Errno::EINVAL);
    refused(Mapping::__new(&fd, 0, bytes(5)), Errno::EINVAL);
    refused(Mapping::__new(&fd, 2 * PAGE, bytes(3)), Errno::EINVAL);
    let private = Mapping::__with_flags(&simple, 0, bytes(1), MapFlags::MAP_PRIVATE);
    refused(private, Errno::EINVAL);
    drop(fd);
    simple.wait_free();
}

/// The BAR that the driver in C hands over; the right one when this is dropped.
pub struct BarNumber;

impl BarNumber {
    /// Of devices that are bound from now on.
    #[track_caller]
    pub fn set(&self, number: u32) {
        let path = "/sys/module/p2p_simple/parameters/bar";
        fs::write(path, number.to_string()).expect("the module's parameter");
    }
}

impl Drop for BarNumber {
    fn drop(&mut self) {
        self.set(2);
    }
}

pub fn only_memory_is_handed_over() {
    let simple = Simple::open();
    let unbound = simple.unbind();
    let bar = BarNumber;
    // Registers of less than a page; not there; no such number.
    for number in [0, 1, 3, 5, 6, u32::MAX] {
        bar.set(number);
        let bound = unbound.__bind().map_err(|error| error.raw_os_error());
        assert_eq!(bound, Err(Some(Errno::EINVAL as i32)), "BAR {number}");
    }
    drop((bar, unbound));
    Simple::open().map(1).store(0, 1);
}

pub fn bad_addresses() {
    let (simple, rig) = (Simple::open(), Rig::open());
    let map = simple.map(4);
    let good = Addresses::argument(rig.nic[1].pci(), &map, (0, 4), true);
    let importer = Importer::open();
    refused(Addresses::__info_of(&importer), Errno::ENOTCONN);
    for request in [
        P2P_IMPORTER_IOCTL_UNREGISTER,
        P2P_IMPORTER_IOCTL_MAP_REGION,
        P2P_IMPORTER_IOCTL_UNMAP_REGION,
    ] {
        // SAFETY: the request takes no argument.
        let done = unsafe { importer.__ioctl_raw(request, std::ptr::null_mut()) };
        refused(done, Errno::ENOTCONN);
    }
    type Arg = p2p_importer_register;
    let max = u64::from(P2P_IMPORTER_MAX_LENGTH);
    let bad = [
        (Arg { length: 0, ..good }, Errno::EINVAL),
        (Arg { length: 1, ..good }, Errno::EINVAL),
        (
            Arg {
                start: good.start + 1,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            Arg {
                length: max + PAGE,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            Arg {
                start: u64::MAX - PAGE + 1,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            Arg {
                start: 1 << 63,
                ..good
            },
            Errno::EINVAL,
        ),
        (Arg { flags: 2, ..good }, Errno::EINVAL),
        (Arg { pad: 1, ..good }, Errno::EINVAL),
        (
            Arg {
                pci_device: 32,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            Arg {
                pci_bus: 0xfe,
                ..good
            },
            Errno::ENXIO,
        ),
    ];
    for (arg, errno) in bad {
        refused(Addresses::__register_raw(&importer, arg), errno);
    }
    assert_eq!(Addresses::__register_raw(&importer, good), Ok(()));
    refused(Addresses::__register_raw(&importer, good), Errno::EISCONN);
    // A range may be registered that is not there; it is not mapped.
    let another = simple.map(4);
    let arg = Addresses::argument(rig.nic[1].pci(), &another, (0, 4), true);
    drop(another);
    let gone = Importer::open();
    assert_eq!(Addresses::__register_raw(&gone, arg), Ok(()));
    let gone = Addresses::of(gone);
    refused(gone.__map(), Errno::EFAULT);
    assert_eq!(gone.__unregister(), Ok(()));
    refused(gone.__unregister(), Errno::ENOTCONN);
}
