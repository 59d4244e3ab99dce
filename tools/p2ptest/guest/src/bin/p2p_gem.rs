// SPDX-License-Identifier: GPL-2.0
//! Tests of objects: creation, placement, VRAM, copies and checksums.

use nix::errno::Errno;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused, subtests};
use sha2::{Digest, Sha256};
use std::process::ExitCode;
use std::thread;

const SUBTESTS: &[Subtest] = subtests![
    /// Objects of many sizes can be created and closed in both placements.
    create_and_close,
    /// A new object's state is what was asked for.
    info_of_new_object,
    /// A new object is zero, also where it takes memory that another one left.
    new_object_is_zero,
    /// A handle means nothing in another open file.
    handles_are_per_file,
    /// Closing the file closes its objects.
    file_close_frees,
    /// VRAM_FREE falls by the size of each object, and comes back.
    vram_is_accounted,
    /// More than what is free is refused with ENOSPC; what is held stays.
    vram_full_is_enospc,
    /// An object fits free VRAM that is in many pieces.
    fragmented_vram_is_usable,
    /// More than VRAM can ever hold is refused with E2BIG.
    too_large_is_e2big,
    /// Copies between all placements, of odd sizes and offsets.
    copy_between_placements,
    /// Copies within one object.
    copy_within_object,
    /// Copies of objects larger than the aperture.
    copy_larger_than_aperture,
    /// Checksums agree with SHA-256 of the bytes, at odd ranges too.
    checksum_is_sha256,
    /// Moves keep the bytes.
    move_keeps_bytes,
    /// A move to where the object is does nothing.
    move_in_place_does_nothing,
    /// A move into full VRAM is refused with ENOSPC, and the bytes stay.
    move_into_full_vram_is_enospc,
    /// Threads that create, copy and close do not disturb each other.
    threads_create_and_copy,
    /// Threads that move one object leave its bytes alone.
    threads_move_one_object,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const MIB: u64 = 1 << 20;

fn create_and_close() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        for pages in [1, 2, 3, 7, 64, 511, 512, 513, 4096, 5000] {
            let bo = gpu.create(pages * gpu.page, placement);
            assert_ne!(bo.handle, 0);
            bo.close();
        }
    }
}

fn info_of_new_object() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(3 * gpu.page, placement);
        let expected = drm_p2pgpu_gem_info {
            handle: bo.handle,
            size: 3 * gpu.page,
            placement: placement as u32,
            ..Default::default()
        };
        assert_eq!(bo.info(), expected);
    }
}

fn new_object_is_zero() {
    let gpu = Gpu::open(0);
    let size = 4 * MIB;
    let zeros: [u8; 32] = Sha256::digest(vec![0; size as usize]).into();
    for placement in Placement::ALL {
        for round in 0..3 {
            let bo = gpu.create(size, placement);
            assert_eq!(bo.checksum(0, size), zeros, "{placement:?}, round {round}");
            bo.fill(Pattern(round));
        }
    }
}

fn handles_are_per_file() {
    let gpu = Gpu::open(0);
    let other = gpu.reopen();
    let bo = gpu.create(gpu.page, Placement::Vram);
    let mut info = drm_p2pgpu_gem_info {
        handle: bo.handle,
        ..Default::default()
    };
    refused(other.__ioctl(&mut info), Errno::ENOENT);
    refused(other.__close(bo.handle), Errno::EINVAL);
    bo.info();
}

fn file_close_frees() {
    let gpu = Gpu::open(0);
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let other = gpu.reopen();
    for _ in 0..50 {
        other.create(64 * gpu.page, Placement::Vram).into_handle();
        other.create(64 * gpu.page, Placement::System).into_handle();
    }
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free - 50 * 64 * gpu.page);
    drop(other);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), free);
}

fn vram_is_accounted() {
    let gpu = Gpu::open(0);
    let mut expected = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let start = expected;
    let mut held = Vec::new();
    for pages in [1, 3, 512, 700] {
        held.push(gpu.create(pages * gpu.page, Placement::Vram));
        expected -= pages * gpu.page;
        assert_eq!(
            gpu.param(P2PGPU_PARAM_VRAM_FREE),
            expected,
            "after {pages} pages"
        );
    }
    let system = gpu.create(MIB, Placement::System);
    assert_eq!(
        gpu.param(P2PGPU_PARAM_VRAM_FREE),
        expected,
        "a system object"
    );
    system.move_to(Placement::Vram);
    assert_eq!(
        gpu.param(P2PGPU_PARAM_VRAM_FREE),
        expected - MIB,
        "moved to VRAM"
    );
    system.move_to(Placement::System);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), expected, "moved back");
    drop(held);
    assert_eq!(gpu.param(P2PGPU_PARAM_VRAM_FREE), start, "all closed");
}

/// Creates objects of `size` until VRAM is full.
#[track_caller]
fn fill_vram(gpu: &Gpu, size: u64) -> Vec<Bo<'_>> {
    let mut held = Vec::new();
    loop {
        match gpu.__create(size, Placement::Vram) {
            Ok(bo) => held.push(bo),
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC, "after {} objects", held.len());
                return held;
            }
        }
    }
}

fn vram_full_is_enospc() {
    let gpu = Gpu::open(0);
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    let size = 8 * MIB;
    let held = fill_vram(&gpu, size);
    assert_eq!(
        held.len() as u64,
        free / size,
        "objects of {size:#x} in {free:#x} bytes"
    );
    held[0].fill(Pattern(1));
    refused(gpu.__create(size, Placement::Vram), Errno::ENOSPC);
    held[0].assert_holds(Pattern(1));
    let pages = fill_vram(&gpu, gpu.page);
    assert_eq!(
        gpu.param(P2PGPU_PARAM_VRAM_FREE),
        0,
        "after {} more pages",
        pages.len()
    );
}

fn fragmented_vram_is_usable() {
    let gpu = Gpu::open(0);
    let mut held = fill_vram(&gpu, MIB);
    let mut odd = false;
    held.retain(|_| {
        odd = !odd;
        odd
    });
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    assert!(free >= 16 * MIB, "{free:#x} bytes are free");
    let scattered = gpu.create(16 * MIB, Placement::Vram);
    scattered.fill(Pattern(2));
    scattered.assert_holds(Pattern(2));
}

fn too_large_is_e2big() {
    let gpu = Gpu::open(0);
    refused(
        gpu.__create(gpu.vram + gpu.page, Placement::Vram),
        Errno::E2BIG,
    );
    refused(gpu.__create(1 << 63, Placement::Vram), Errno::E2BIG);
    refused(
        gpu.__create((4 << 30) + gpu.page, Placement::System),
        Errno::E2BIG,
    );
    refused(gpu.__create(1 << 63, Placement::System), Errno::E2BIG);
}

fn copy_between_placements() {
    let gpu = Gpu::open(0);
    let size = 16 * gpu.page;
    for from in Placement::ALL {
        for to in Placement::ALL {
            let (src, dst) = (gpu.create(size, from), gpu.create(size, to));
            src.fill(Pattern(3));
            for (src_offset, dst_offset, len) in [
                (0, 0, size),
                (1, 0, 1),
                (4095, 4097, 8193),
                (3, 5, 4096),
                (8, 16, 64),
            ] {
                dst.fill(Pattern(4));
                let copy = drm_p2pgpu_gem_copy {
                    src_handle: src.handle,
                    dst_handle: dst.handle,
                    src_offset,
                    dst_offset,
                    size: len,
                };
                must(gpu.__copy(copy), format_args!("{copy:?}"));
                let mut expected = Pattern(4).bytes(0, size as usize);
                expected[dst_offset as usize..][..len as usize]
                    .copy_from_slice(&Pattern(3).bytes(src_offset, len as usize));
                let what = format!("{from:?} to {to:?}, {len} bytes from {src_offset}");
                assert_same(&dst.download(0, size as usize), &expected, &what);
            }
            src.assert_holds(Pattern(3));
        }
    }
}

fn copy_within_object() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(4 * gpu.page, placement);
        bo.fill(Pattern(5));
        let copy = drm_p2pgpu_gem_copy {
            src_handle: bo.handle,
            dst_handle: bo.handle,
            src_offset: 100,
            dst_offset: 8192,
            size: 5000,
        };
        must(gpu.__copy(copy), format_args!("{copy:?}"));
        let mut expected = Pattern(5).bytes(0, bo.size as usize);
        expected.copy_within(100..5100, 8192);
        assert_same(
            &bo.download(0, bo.size as usize),
            &expected,
            "after the copy",
        );
    }
}

fn copy_larger_than_aperture() {
    let gpu = Gpu::open(0);
    let size = 2 * gpu.aperture();
    let (src, dst) = (
        gpu.create(size, Placement::Vram),
        gpu.create(size, Placement::Vram),
    );
    src.fill(Pattern(6));
    must(
        src.__copy_to(&dst, size),
        format_args!("GEM_COPY of {size:#x} bytes"),
    );
    dst.assert_holds(Pattern(6));
    assert_eq!(dst.info().slots, 0, "the engine used the aperture");
}

fn checksum_is_sha256() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(MIB, placement);
        bo.fill(Pattern(7));
        for (offset, size) in [(0, MIB), (0, 1), (MIB - 1, 1), (4095, 4098), (12345, 54321)] {
            let expected: [u8; 32] = Sha256::digest(Pattern(7).bytes(offset, size as usize)).into();
            assert_eq!(
                bo.checksum(offset, size),
                expected,
                "{placement:?} {offset}+{size}"
            );
        }
    }
}

fn move_keeps_bytes() {
    let gpu = Gpu::open(0);
    for pages in [1, 3, 512, 1000] {
        let bo = gpu.create(pages * gpu.page, Placement::Vram);
        bo.fill(Pattern(pages));
        for placement in [Placement::System, Placement::Vram, Placement::System] {
            bo.move_to(placement);
            assert_eq!(bo.info().placement, placement as u32);
            bo.assert_holds(Pattern(pages));
        }
    }
}

fn move_in_place_does_nothing() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(gpu.page, placement);
        bo.fill(Pattern(8));
        let before = bo.info();
        bo.move_to(placement);
        assert_eq!(bo.info(), before);
        bo.assert_holds(Pattern(8));
    }
}

fn move_into_full_vram_is_enospc() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(MIB, Placement::System);
    bo.fill(Pattern(9));
    let held = fill_vram(&gpu, MIB);
    refused(bo.__move_to(Placement::Vram), Errno::ENOSPC);
    assert_eq!(bo.info().placement, P2PGPU_PLACEMENT_SYSTEM);
    bo.assert_holds(Pattern(9));
    drop(held);
    bo.move_to(Placement::Vram);
    bo.assert_holds(Pattern(9));
}

fn threads_create_and_copy() {
    let gpu = Gpu::open(0);
    let gpu = &gpu;
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for round in 0..25 {
                    let pattern = Pattern(seed << 32 | round);
                    let src = gpu.create(16 * gpu.page, Placement::Vram);
                    let dst = gpu.create(16 * gpu.page, Placement::ALL[round as usize % 2]);
                    src.fill(pattern);
                    must(src.__copy_to(&dst, src.size), format_args!("GEM_COPY"));
                    dst.assert_holds(pattern);
                }
            });
        }
    });
}

fn threads_move_one_object() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(64 * gpu.page, Placement::Vram);
    bo.fill(Pattern(10));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..20 {
                    bo.move_to(Placement::ALL[round % 2]);
                }
            });
        }
        for _ in 0..20 {
            bo.assert_holds(Pattern(10));
        }
    });
    bo.assert_holds(Pattern(10));
}
