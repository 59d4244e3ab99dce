// SPDX-License-Identifier: GPL-2.0
//! What CPUs and processes do with a dma-buf of ours.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::dmabuf::{Access, DmaBuf, poll};
use p2pguest::drm;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Outcome};
use p2pguest::map::Mapping;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::shared::Stalled;
use p2pguest::swsync::Timeline;
use p2pguest::{must, refused};
use std::thread;
use std::time::Duration;

/// Longer than a stalled engine is left alone.
const LIMIT_MS: i32 = 60_000;

/// An object of GPU 0 and its dma-buf.
#[track_caller]
fn exported(gpu: &Gpu, pages: u64) -> (Bo<'_>, DmaBuf) {
    let bo = gpu.create(pages * gpu.page, Placement::Vram);
    bo.set_exportable(true);
    let dmabuf = DmaBuf(bo.export());
    (bo, dmabuf)
}

#[track_caller]
fn read(map: &Mapping, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    map.read(offset, &mut bytes);
    bytes
}

pub fn dma_buf_mmap_over_moves() {
    let gpu = Gpu::open(0);
    let (bo, dmabuf) = exported(&gpu, 4);
    bo.fill(Pattern(1));
    let whole = dmabuf.map(0, bo.size);
    let part = dmabuf.map(gpu.page, 2 * gpu.page);
    let (page, size) = (gpu.page as usize, bo.size as usize);
    for step in 0..4 {
        assert_same(
            &read(&whole, 0, size),
            &Pattern(1 + step).bytes(0, size),
            "the dma-buf",
        );
        let expected = Pattern(1 + step).bytes(gpu.page, 2 * page);
        assert_same(&read(&part, 0, 2 * page), &expected, "a part of it");
        let placement = match step % 2 {
            0 => Placement::System,
            _ => Placement::Vram,
        };
        bo.move_to(placement);
        // What is written now is not seen by who still looks at the old place.
        bo.fill(Pattern(2 + step));
    }
    part.store(8, 77);
    bo.move_to(Placement::System);
    assert_eq!(bo.map().load(page + 8), 77);
    whole.store(16, 78);
    bo.move_to(Placement::Vram);
    assert_eq!(bo.download(16, 8), 78u64.to_le_bytes());
}

pub fn dma_buf_mmap_limits() {
    let gpu = Gpu::open(0);
    let (bo, dmabuf) = exported(&gpu, 4);
    let map = |offset: u64, pages: u64| {
        Mapping::__new(&dmabuf, offset * gpu.page, (pages * gpu.page) as usize)
    };
    refused(map(0, 5), Errno::EINVAL);
    refused(map(4, 1), Errno::EINVAL);
    must(map(3, 1), format_args!("mmap of the last page"));
    // An object whose flag is gone is not exported anew; what was, stays.
    bo.set_exportable(false);
    let map = must(map(0, 4), format_args!("mmap"));
    map.store(0, 3);
    assert_eq!(map.load(0), 3);
    bo.set_exportable(true);
    let read_only = must(
        drm::prime_handle_to_fd(&gpu, bo.handle, nix::libc::O_CLOEXEC),
        format_args!("export"),
    );
    // The object has one dma-buf, whose file the first export opened.
    assert_eq!(DmaBuf(read_only).inode(), dmabuf.inode());
    let fresh = gpu.create(gpu.page, Placement::Vram);
    fresh.set_exportable(true);
    let read_only = must(
        drm::prime_handle_to_fd(&gpu, fresh.handle, nix::libc::O_CLOEXEC),
        format_args!("export"),
    );
    let written = Mapping::__new(&read_only, 0, gpu.page as usize);
    refused(written, Errno::EACCES);
}

/// Runs `check` while the engine of GPU 0 copies from `src` to `dst`, and ends the
/// copy.
#[track_caller]
fn during_copy(src: &Bo<'_>, dst: &Bo<'_>, busy: impl Fn() -> bool, check: impl FnOnce(Stalled)) {
    let stalled = Stalled::new("gpu0");
    thread::scope(|scope| {
        let copy = scope.spawn(|| src.__copy_to(dst, src.size));
        wait_until("the copy is under way", busy);
        check(stalled);
        assert_eq!(copy.join().ok(), Some(Ok(())));
    });
}

pub fn dma_buf_poll() {
    let gpu = Gpu::open(0);
    let ((src, from), (dst, to)) = (exported(&gpu, 1), exported(&gpu, 1));
    for dmabuf in [&from, &to] {
        assert!(dmabuf.is_ready(Access::Read) && dmabuf.is_ready(Access::Write));
    }
    let busy = || !to.is_ready(Access::Read);
    during_copy(&src, &dst, busy, |stalled| {
        assert!(from.is_ready(Access::Read), "nobody writes the source");
        assert!(!from.is_ready(Access::Write), "the source is read");
        assert!(!to.is_ready(Access::Write), "the target is written");
        thread::scope(|scope| {
            let waits = [
                (&from, Access::Write),
                (&to, Access::Read),
                (&to, Access::Write),
            ]
            .map(|(dmabuf, access)| scope.spawn(move || dmabuf.wait_ready(access, LIMIT_MS)));
            thread::sleep(Duration::from_millis(10));
            drop(stalled);
            for wait in waits {
                assert_eq!(
                    wait.join().ok(),
                    Some(true),
                    "not ready when the copy was done"
                );
            }
        });
    });
    for dmabuf in [&from, &to] {
        assert!(dmabuf.is_ready(Access::Read) && dmabuf.is_ready(Access::Write));
    }
}

pub fn dma_buf_sync_waits() {
    let gpu = Gpu::open(0);
    let ((src, from), (dst, to)) = (exported(&gpu, 1), exported(&gpu, 1));
    src.fill(Pattern(5));
    let map = to.map(0, gpu.page);
    // The page is there: only the fence is waited for.
    assert_eq!(map.load(0), 0);
    let busy = || !to.is_ready(Access::Read);
    during_copy(&src, &dst, busy, |stalled| {
        // Who wants to read what is read need not wait.
        from.begin(Access::Read);
        from.end(Access::Read);
        thread::scope(|scope| {
            let reader = scope.spawn(|| to.load(&map, 8));
            let writer = scope.spawn(|| from.begin(Access::Write));
            thread::sleep(Duration::from_millis(20));
            assert!(!reader.is_finished(), "it did not wait for the copy");
            assert!(!writer.is_finished(), "it did not wait for the copy");
            drop(stalled);
            assert_eq!(reader.join().ok(), Some(Pattern(5).word(1)));
            assert!(writer.join().is_ok());
            from.end(Access::Write);
        });
    });
}

pub fn dma_buf_export_sync_file() {
    let gpu = Gpu::open(0);
    let ((src, from), (dst, to)) = (exported(&gpu, 1), exported(&gpu, 1));
    let idle = to.export_sync_file(Access::Both);
    assert!(poll(&idle, Access::Read, 0));
    let busy = || !to.is_ready(Access::Read);
    during_copy(&src, &dst, busy, |stalled| {
        let ready = from.export_sync_file(Access::Read);
        assert!(poll(&ready, Access::Read, 0), "nobody writes the source");
        let files = [
            from.export_sync_file(Access::Write),
            to.export_sync_file(Access::Read),
            to.export_sync_file(Access::Both),
        ];
        for file in &files {
            assert!(!poll(file, Access::Read, 0), "the copy is not done");
        }
        drop(stalled);
        for file in &files {
            assert!(poll(file, Access::Read, LIMIT_MS), "it does not signal");
        }
    });
}

pub fn dma_buf_import_sync_file() {
    let gpu = Gpu::open(0);
    let (bo, dmabuf) = exported(&gpu, 1);
    bo.fill(Pattern(6));
    let other = gpu.create(bo.size, Placement::Vram);
    let timeline = Timeline::new();

    // Somebody reads: it may be read, but not written, nor moved.
    dmabuf.import_sync_file(Access::Read, &timeline.fence(1));
    assert!(dmabuf.is_ready(Access::Read) && !dmabuf.is_ready(Access::Write));
    must(bo.__copy_to(&other, bo.size), format_args!("GEM_COPY"));
    other.assert_holds(Pattern(6));
    other.fill(Pattern(7));
    thread::scope(|scope| {
        let write = scope.spawn(|| other.__copy_to(&bo, bo.size));
        thread::sleep(Duration::from_millis(20));
        assert!(!write.is_finished(), "it was written while somebody reads");
        timeline.advance(1);
        assert_eq!(write.join().ok(), Some(Ok(())));
    });
    bo.assert_holds(Pattern(7));

    // Somebody writes.
    dmabuf.import_sync_file(Access::Write, &timeline.fence(2));
    thread::scope(|scope| {
        let read = scope.spawn(|| bo.__copy_to(&other, bo.size));
        let migration = scope.spawn(|| bo.__move_to(Placement::System));
        thread::sleep(Duration::from_millis(20));
        assert!(!read.is_finished(), "it was read while somebody writes");
        assert!(!migration.is_finished(), "it moved while somebody writes");
        timeline.advance(1);
        assert_eq!(read.join().ok(), Some(Ok(())));
        assert_eq!(migration.join().ok(), Some(Ok(())));
    });
    bo.assert_holds(Pattern(7));
}

pub fn dma_buf_when_gone() {
    let gpu = Gpu::open(0);
    let (bo, dmabuf) = exported(&gpu, 2);
    let map = dmabuf.map(0, bo.size);
    map.store(0, 1);
    let unbound = Unbound::new("p2pgpu", gpu.pci());
    for offset in [0, 4096] {
        let child = igt::fork(|| {
            map.load(offset);
        });
        assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS), "{offset}");
    }
    dmabuf.begin(Access::Both);
    dmabuf.end(Access::Both);
    assert!(dmabuf.is_ready(Access::Write));
    drop(unbound);
    wait_until("the GPU comes back", || gpu_is_there(gpu.pci()));
    let child = igt::fork(|| {
        map.load(0);
    });
    assert_eq!(child.outcome(), Outcome::Killed(Signal::SIGBUS));
}
