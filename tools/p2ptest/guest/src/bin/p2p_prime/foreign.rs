// SPDX-License-Identifier: GPL-2.0
//! Dma-bufs of vgem, of udmabuf and of a dma-heap.

use nix::errno::Errno;
use p2pguest::dmabuf::{Access, DmaBuf, poll};
use p2pguest::foreign::Exporter;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::map::Mapping;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::swsync::Timeline;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use sha2::{Digest, Sha256};
use std::os::fd::AsRawFd;
use std::thread;

const SIZE: u64 = 12 << 12;

/// A foreign dma-buf that holds a pattern.
#[track_caller]
fn filled(exporter: Exporter, pattern: Pattern) -> DmaBuf {
    let dmabuf = exporter.export(SIZE);
    // udmabuf maps its pages for the kind of access that comes first, whatever comes later:
    // debugging of the DMA API complains of others.
    dmabuf.begin(Access::Both);
    dmabuf
        .map(0, SIZE)
        .write(0, &pattern.bytes(0, SIZE as usize));
    dmabuf.end(Access::Both);
    dmabuf
}

#[track_caller]
fn assert_holds(dmabuf: &DmaBuf, expected: &[u8], what: &str) {
    let mut found = vec![0; expected.len()];
    dmabuf.begin(Access::Read);
    dmabuf.map(0, SIZE).read(0, &mut found);
    dmabuf.end(Access::Read);
    assert_same(&found, expected, what);
}

/// `GEM_COPY` of `size` bytes.
#[track_caller]
fn copy(from: (&Bo<'_>, u64), to: (&Bo<'_>, u64), size: u64) {
    let arg = drm_p2pgpu_gem_copy {
        src_handle: from.0.handle,
        dst_handle: to.0.handle,
        src_offset: from.1,
        dst_offset: to.1,
        size,
    };
    must(from.0.gpu().__copy(arg), format_args!("GEM_COPY"));
}

pub fn foreign_cpu_access() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = filled(exporter, Pattern(1));
        let bo = gpu.import(&dmabuf);
        assert_eq!(bo.size, SIZE, "{exporter:?}");
        let map = bo.map();
        let theirs = dmabuf.map(0, SIZE);
        let mut bytes = vec![0; SIZE as usize];
        map.read(0, &mut bytes);
        assert_same(&bytes, &Pattern(1).bytes(0, SIZE as usize), "the import");
        map.store(4096, 7);
        assert_eq!(theirs.load(4096), 7, "{exporter:?}");
        theirs.store(8192, 8);
        assert_eq!(map.load(8192), 8, "{exporter:?}");
        // The mapping is the exporter's: it stays when the object goes.
        drop(bo);
        map.store(0, 9);
        assert_eq!(theirs.load(0), 9, "{exporter:?}");
    }
}

pub fn foreign_cpu_access_past_the_end() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = exporter.export(SIZE);
        let bo = gpu.import(&dmabuf);
        let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
        let map = |offset, size: u64| Mapping::__new(&gpu, offset, size as usize);
        refused(map(offset, SIZE + gpu.page), Errno::EINVAL);
        refused(map(offset + SIZE, gpu.page), Errno::EINVAL);
        must(map(offset, gpu.page), format_args!("mmap of a page"));
    }
}

pub fn foreign_source() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = filled(exporter, Pattern(2));
        let bo = gpu.import(&dmabuf);
        let bytes = Pattern(2).bytes(0, SIZE as usize);
        for (offset, size) in [(0, SIZE), (4096, 4096), (100, 5000), (SIZE - 8, 8)] {
            let expected: [u8; 32] =
                Sha256::digest(&bytes[offset as usize..(offset + size) as usize]).into();
            assert_eq!(bo.checksum(offset, size), expected, "{exporter:?} {offset}");
        }
        for placement in Placement::ALL {
            let target = gpu.create(SIZE, placement);
            copy((&bo, 0), (&target, 0), SIZE);
            target.assert_holds(Pattern(2));
        }
        let past = bo.__checksum(SIZE - 8, 16);
        refused(past, Errno::EINVAL);
    }
}

pub fn foreign_target() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = filled(exporter, Pattern(3));
        let bo = gpu.import(&dmabuf);
        let source = gpu.create(SIZE, Placement::Vram);
        source.fill(Pattern(4));
        let mut expected = Pattern(3).bytes(0, SIZE as usize);
        copy((&source, 4096), (&bo, 5000), 6000);
        expected[5000..11000].copy_from_slice(&Pattern(4).bytes(4096, 6000));
        assert_holds(&dmabuf, &expected, "a part");
        copy((&source, 0), (&bo, 0), SIZE);
        let expected = Pattern(4).bytes(0, SIZE as usize);
        assert_holds(&dmabuf, &expected, "the whole");
    }
}

pub fn foreign_to_foreign() {
    let gpu = Gpu::open(0);
    for (from, to) in [
        (Exporter::Vgem, Exporter::Heap),
        (Exporter::Heap, Exporter::Udmabuf),
        (Exporter::Udmabuf, Exporter::Vgem),
    ] {
        let source = filled(from, Pattern(5));
        let target = filled(to, Pattern(6));
        copy((&gpu.import(&source), 0), (&gpu.import(&target), 0), SIZE);
        let expected = Pattern(5).bytes(0, SIZE as usize);
        assert_holds(&target, &expected, "the target");
        assert_holds(&source, &expected, "the source");
    }
}

pub fn foreign_read_then_written() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = filled(exporter, Pattern(7));
        let bo = gpu.import(&dmabuf);
        let half = SIZE / 2;
        let before = bo.checksum(0, half);
        // Within one object: it is read and written at a time.
        copy((&bo, 0), (&bo, half), half);
        assert_eq!(bo.checksum(half, half), before, "{exporter:?}");
        assert_eq!(bo.checksum(0, half), before, "{exporter:?}");
        let overlap = drm_p2pgpu_gem_copy {
            src_handle: bo.handle,
            dst_handle: bo.handle,
            src_offset: 0,
            dst_offset: half - 1,
            size: half,
        };
        refused(gpu.__copy(overlap), Errno::EINVAL);
    }
}

pub fn bad_import() {
    let gpu = Gpu::open(0);
    refused(gpu.__import(-1), Errno::EBADF);
    let open = || {
        let file = gpu.node().open().map_err(|_| Errno::ENODEV);
        must(file, format_args!("a file"))
    };
    let closed = open().as_raw_fd();
    refused(gpu.__import(closed), Errno::EBADF);
    let file = open();
    refused(gpu.__import(file.as_raw_fd()), Errno::EINVAL);
}

pub fn import_twice() {
    let gpu = Gpu::open(0);
    let dmabuf = filled(Exporter::Heap, Pattern(8));
    let first = gpu.import(&dmabuf);
    let second = gpu.import(&dmabuf);
    assert_eq!(first.handle, second.handle);
    second.into_handle();

    let other = gpu.reopen();
    let third = other.import(&dmabuf);
    first.close();
    assert_eq!(third.size, SIZE);
    third.assert_holds(Pattern(8));
    // The handle is free for another import.
    gpu.import(&dmabuf).assert_holds(Pattern(8));
}

pub fn import_is_handed_on() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let dmabuf = exporter.export(SIZE);
        let bo = gpu.import(&dmabuf);
        let again = DmaBuf(bo.export());
        assert_eq!(again.inode(), dmabuf.inode(), "{exporter:?}");
        let other = gpu.reopen();
        let there = other.import(&again);
        assert_eq!(DmaBuf(there.export()).inode(), dmabuf.inode());
    }
}

pub fn import_keeps_the_dma_buf() {
    let gpu = Gpu::open(0);
    for exporter in Exporter::ALL {
        let bo = gpu.import(&filled(exporter, Pattern(9)));
        bo.assert_holds(Pattern(9));
        assert_eq!(bo.map().load(0), Pattern(9).word(0), "{exporter:?}");
    }
}

pub fn import_cannot_be_managed() {
    let gpu = Gpu::open(0);
    let dmabuf = filled(Exporter::Vgem, Pattern(10));
    let bo = gpu.import(&dmabuf);
    for flags in [0, P2PGPU_PEER_EXPORTABLE] {
        refused(bo.__set_peer(flags), Errno::EOPNOTSUPP);
    }
    for placement in Placement::ALL {
        refused(bo.__move_to(placement), Errno::EOPNOTSUPP);
    }
    let range = bo.__export_range(0, gpu.page, P2PGPU_EXPORT_CLOEXEC);
    refused(range, Errno::EOPNOTSUPP);
    let query = gpu.__query(bo.handle, gpu.pci());
    refused(query, Errno::EOPNOTSUPP);

    // Nothing can be placed where imports are.
    let own = gpu.create(gpu.page, Placement::Vram);
    refused(
        gpu.__ioctl(&mut drm_p2pgpu_gem_move {
            handle: own.handle,
            placement: P2PGPU_PLACEMENT_IMPORTED,
            ..Default::default()
        }),
        Errno::EINVAL,
    );
    refused(
        gpu.__ioctl(&mut drm_p2pgpu_gem_create {
            size: gpu.page,
            placement: P2PGPU_PLACEMENT_IMPORTED,
            ..Default::default()
        }),
        Errno::EINVAL,
    );
    bo.assert_holds(Pattern(10));
}

pub fn import_info() {
    let gpu = Gpu::open(0);
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let dmabuf = filled(Exporter::Udmabuf, Pattern(11));
    let bo = gpu.import(&dmabuf);
    bo.assert_holds(Pattern(11));
    let expected = drm_p2pgpu_gem_info {
        handle: bo.handle,
        size: SIZE,
        placement: P2PGPU_PLACEMENT_IMPORTED,
        ..Default::default()
    };
    assert_eq!(bo.info(), expected);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free);
}

pub fn import_is_copied_after_fences() {
    let gpu = Gpu::open(0);
    for (exporter, access) in [
        (Exporter::Vgem, Access::Write),
        (Exporter::Heap, Access::Read),
    ] {
        let dmabuf = filled(exporter, Pattern(12));
        let bo = gpu.import(&dmabuf);
        let other = gpu.create(SIZE, Placement::Vram);
        let timeline = Timeline::new();
        let fence = timeline.fence(1);
        dmabuf.import_sync_file(access, &fence);
        thread::scope(|scope| {
            // Who reads waits for those who write, and who writes for all.
            let worker = scope.spawn(|| match access {
                Access::Write => copy((&bo, 0), (&other, 0), SIZE),
                _ => copy((&other, 0), (&bo, 0), SIZE),
            });
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(!worker.is_finished(), "{exporter:?}: it did not wait");
            assert!(!poll(&fence, Access::Read, 0));
            timeline.advance(1);
            assert!(worker.join().is_ok(), "{exporter:?}");
        });
    }
}
