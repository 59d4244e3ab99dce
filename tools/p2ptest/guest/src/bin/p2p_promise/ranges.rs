// SPDX-License-Identifier: GPL-2.0
//! Ranges of objects, exported as dma-bufs of their own.

use crate::{open, registered};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::{Whence, lseek};
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::map::Mapping;
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use std::os::fd::AsRawFd;

const FLAGS: u32 = P2PGPU_EXPORT_CLOEXEC | P2PGPU_EXPORT_RDWR;

pub fn range_bad() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8 * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    for (offset, size) in [
        (0, 0),
        (gpu.page, 0),
        (1, gpu.page),
        (0, gpu.page - 1),
        (gpu.page / 2, gpu.page),
        (0, 9 * gpu.page),
        (8 * gpu.page, gpu.page),
        (7 * gpu.page, 2 * gpu.page),
        (u64::MAX - gpu.page + 1, gpu.page),
        (gpu.page, u64::MAX - gpu.page + 1),
    ] {
        refused(bo.__export_range(offset, size, FLAGS), Errno::EINVAL);
    }
    for flags in [1, 4, 1 << 31, FLAGS | 1] {
        refused(bo.__export_range(0, gpu.page, flags), Errno::EINVAL);
    }
    let mut padded = drm_p2pgpu_gem_export_range {
        handle: bo.handle,
        size: gpu.page,
        pad: 1,
        ..Default::default()
    };
    refused(gpu.__ioctl(&mut padded), Errno::EINVAL);
    let mut absent = drm_p2pgpu_gem_export_range {
        handle: bo.handle + 1,
        size: gpu.page,
        ..Default::default()
    };
    refused(gpu.__ioctl(&mut absent), Errno::ENOENT);
}

pub fn range_unflagged_is_refused() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(2 * gpu.page, Placement::Vram);
    refused(bo.__export_range(0, gpu.page, FLAGS), Errno::EPERM);
}

pub fn range_shows_its_bytes() {
    let rig = open();
    let gpu = &rig.gpu[0];
    for placement in Placement::ALL {
        let bo = gpu.create(16 * gpu.page, placement);
        bo.set_exportable(true);
        bo.fill(Pattern(1));
        let fd = bo.export_range(5..9);
        let flags = must(fcntl(&fd, FcntlArg::F_GETFD), format_args!("F_GETFD"));
        assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        let len = 4 * gpu.page as usize;
        let size = must(lseek(&fd, 0, Whence::SeekEnd), format_args!("lseek"));
        assert_eq!(size, len as i64);
        let expected = Pattern(1).bytes(5 * gpu.page, len);

        let map = must(Mapping::__new(&fd, 0, len), format_args!("mmap"));
        let mut found = vec![0; len];
        map.read(0, &mut found);
        assert_same(&found, &expected, "through a mapping");
        refused(Mapping::__new(&fd, gpu.page, len).map(drop), Errno::EINVAL);
        let last = must(
            Mapping::__new(&fd, 3 * gpu.page, len / 4),
            format_args!("mmap of the last page"),
        );
        let mut found = vec![0; len / 4];
        last.read(0, &mut found);
        assert_same(&found, &expected[3 * len / 4..], "the last page");

        let region = rig.nic[0].register(&fd, ACCESS_ALL, len as u64);
        let past_end = rig.nic[0].__register(fd.as_raw_fd(), ACCESS_ALL, 0, len as u64 + 4096);
        refused(past_end, Errno::EINVAL);
        let target = rig.register(1, len as u64, Placement::Vram);
        rig.connect(4).write(&region, &target.region);
        assert_same(&target.bo.download(0, len), &expected, "what the NIC read");
        let info = bo.info();
        let slots = if placement == Placement::Vram { 4 } else { 0 };
        assert_eq!((info.peer_slots, info.importers), (slots, 1));

        // The mapping follows the object, and so does the NIC.
        bo.move_to(placement.other());
        assert_eq!(region.info().mapped, 0, "the move invalidated the range");
        map.store(0, 7);
        assert_eq!(bo.download(5 * gpu.page, 8), 7u64.to_le_bytes());
        rig.connect(4).write(&region, &target.region);
        assert_eq!(target.bo.download(0, 8), 7u64.to_le_bytes());
    }
}

pub fn ranges_share_slots() {
    let rig = open();
    let whole = registered(&rig, 16);
    let fds = [0..8, 4..12].map(|pages| whole.bo.export_range(pages));
    let ranges = fds
        .each_ref()
        .map(|fd| rig.nic[0].register(fd, ACCESS_ALL, 8 * rig.gpu[0].page));
    let target = rig.register(1, 8 * rig.gpu[0].page, Placement::Vram);
    whole.bo.fill(Pattern(1));
    assert_eq!(whole.bo.info().importers, 3);
    for round in 1..=2 {
        for (range, slots) in ranges.iter().zip([8, 12]) {
            rig.connect(4).write(range, &target.region);
            let info = whole.bo.info();
            assert_eq!((info.slots, info.peer_slots), (slots, slots));
        }
        rig.touch(0, &whole);
        assert_eq!(whole.bo.info().peer_slots, 16);
        whole
            .bo
            .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
        whole.bo.set_exportable(true);
        assert_eq!(whole.bo.info().peer_slots, 0);
        let regions = [&ranges[0], &ranges[1], &whole.region];
        let invalidations = regions.map(|region| region.info().invalidations);
        assert_eq!(invalidations, [round; 3]);
        assert_eq!(whole.bo.info().invalidations, round);
        whole.bo.move_to(Placement::System);
        whole.bo.move_to(Placement::Vram);
    }
    drop(ranges);
    assert_eq!(whole.bo.info().importers, 1);
}

pub fn windows_of_large_object() {
    let rig = open();
    let gpu = &rig.gpu[0];
    // Leaves slots for one window, and a bit.
    let window = 32;
    let _held = rig.hold_slots(0, gpu.slots - window - window / 2);
    let bo = gpu.create(4 * window * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    bo.fill(Pattern(3));
    let target = rig.register(1, window * gpu.page, Placement::Vram);
    let windows = [0, 1, 2, 3].map(|index| {
        let fd = bo.export_range(index * window..(index + 1) * window);
        rig.nic[0].register(&fd, ACCESS_ALL, window * gpu.page)
    });
    for _ in 0..2 {
        for (index, region) in windows.iter().enumerate() {
            rig.connect(4).write(region, &target.region);
            let len = target.bo.size as usize;
            let expected = Pattern(3).bytes(index as u64 * target.bo.size, len);
            assert_same(&target.bo.download(0, len), &expected, "window");
        }
    }
    let info = bo.info();
    assert_eq!((info.peer_maps, info.fall_backs), (8, 0));
    assert_eq!(info.invalidations, 7);
}

pub fn range_outlives_handle() {
    let rig = open();
    let gpu = rig.gpu[0].reopen();
    let bo = gpu.create(8 * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    bo.fill(Pattern(4));
    let fd = bo.export_range(2..4);
    refused(gpu.__import(fd.as_raw_fd()), Errno::EINVAL);
    let region = rig.nic[0].register(&fd, ACCESS_ALL, 2 * gpu.page);
    bo.close();
    drop(gpu);
    drop(fd);
    let target = rig.register(1, region.size, Placement::Vram);
    rig.connect(4).write(&region, &target.region);
    let expected = Pattern(4).bytes(2 * rig.gpu[0].page, region.size as usize);
    let found = target.bo.download(0, expected.len());
    assert_same(&found, &expected, "what the NIC read");
}
