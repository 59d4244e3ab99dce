// SPDX-License-Identifier: GPL-2.0
//! Bad arguments of the GPU's ioctls, one function an ioctl.

use crate::{WRONG, nowhere};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::close;
use p2pguest::drm::{self, PRIME_FLAGS};
use p2pguest::gpu::{Argument, Gpu, Placement};
use p2pguest::map::Mapping;
use p2pguest::pattern::Pattern;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Asserts that each argument is refused so.
#[track_caller]
fn all_refused<T: Argument + std::fmt::Debug>(
    gpu: &Gpu,
    errno: Errno,
    arguments: impl IntoIterator<Item = T>,
) {
    for mut argument in arguments {
        let shown = format!("{argument:?}");
        assert_eq!(gpu.__ioctl(&mut argument), Err(errno), "{shown}");
    }
}

pub fn bad_getparam() {
    let gpu = Gpu::open(0);
    let wrong = [19, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX];
    let arguments = wrong.map(|param| drm_p2pgpu_getparam { param, value: 0 });
    all_refused(&gpu, Errno::EINVAL, arguments);
}

fn create(size: u64, placement: Placement) -> drm_p2pgpu_gem_create {
    drm_p2pgpu_gem_create {
        size,
        placement: placement as u32,
        ..Default::default()
    }
}

pub fn bad_create_size() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let malformed = [0, 1, 4095, 4097, (1 << 63) + 1, u64::MAX];
        all_refused(
            &gpu,
            Errno::EINVAL,
            malformed.map(|size| create(size, placement)),
        );
        let too_large = [1 << 63, 1 << 40, 4096_u64.wrapping_neg(), (4 << 30) + 4096];
        all_refused(
            &gpu,
            Errno::E2BIG,
            too_large.map(|size| create(size, placement)),
        );
    }
    all_refused(
        &gpu,
        Errno::E2BIG,
        [create(gpu.vram + 4096, Placement::Vram)],
    );
}

pub fn bad_create_fields() {
    let gpu = Gpu::open(0);
    let good = create(4096, Placement::Vram);
    let bad = [
        drm_p2pgpu_gem_create {
            placement: 2,
            ..good
        },
        drm_p2pgpu_gem_create {
            placement: u32::MAX,
            ..good
        },
        drm_p2pgpu_gem_create { flags: 2, ..good },
        drm_p2pgpu_gem_create {
            flags: P2PGPU_CREATE_EVICTABLE,
            ..create(4096, Placement::System)
        },
        drm_p2pgpu_gem_create {
            flags: 1 << 31,
            ..good
        },
        drm_p2pgpu_gem_create { pad: 1, ..good },
    ];
    all_refused(&gpu, Errno::EINVAL, bad);
}

pub fn bad_mmap_offset() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4096, Placement::Vram);
    let with = |handle, pad| drm_p2pgpu_gem_mmap_offset {
        handle,
        pad,
        ..Default::default()
    };
    all_refused(&gpu, Errno::ENOENT, WRONG.map(|handle| with(handle, 0)));
    all_refused(
        &gpu,
        Errno::EINVAL,
        [with(bo.handle, 1), with(bo.handle, u32::MAX)],
    );
}

pub fn bad_mmap_range() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4 * 4096, Placement::Vram);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    refused(Mapping::__new(&gpu, offset, 5 * 4096), Errno::EINVAL);
    refused(Mapping::__new(&gpu, offset + 1, 4096), Errno::EINVAL);
    refused(Mapping::__new(&gpu, 0, 4096), Errno::EINVAL);
    // Another open file of the device may not map what it has no handle of.
    refused(Mapping::__new(&gpu.reopen(), offset, 4096), Errno::EACCES);
    let handle = bo.handle;
    bo.close();
    let mut gone = drm_p2pgpu_gem_mmap_offset {
        handle,
        ..Default::default()
    };
    refused(gpu.__ioctl(&mut gone), Errno::ENOENT);
    refused(Mapping::__new(&gpu, offset, 4096), Errno::EINVAL);
}

pub fn bad_info() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4096, Placement::Vram);
    let with = |handle, pad| drm_p2pgpu_gem_info {
        handle,
        pad,
        ..Default::default()
    };
    all_refused(&gpu, Errno::ENOENT, WRONG.map(|handle| with(handle, 0)));
    all_refused(
        &gpu,
        Errno::EINVAL,
        [with(bo.handle, 1), with(bo.handle, 1 << 31)],
    );
}

pub fn bad_set_peer() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4096, Placement::Vram);
    let with = |handle, flags| drm_p2pgpu_gem_set_peer { handle, flags };
    all_refused(&gpu, Errno::ENOENT, WRONG.map(|handle| with(handle, 0)));
    all_refused(
        &gpu,
        Errno::EINVAL,
        // Unknown flags, and known ones that need the first.
        [1 << 4, 1 << 31, u32::MAX, 1 << 1, 1 << 2, 1 << 3].map(|flags| with(bo.handle, flags)),
    );
    assert_eq!(bo.info().peer_flags, 0, "a refused call set a flag");
}

pub fn bad_query() {
    let gpu = Gpu::open(0);
    for handle in WRONG {
        refused(gpu.__query(handle, gpu.pci()), Errno::ENOENT);
    }
}

pub fn bad_move() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4096, Placement::Vram);
    let good = drm_p2pgpu_gem_move {
        handle: bo.handle,
        ..Default::default()
    };
    let wrong = WRONG.map(|handle| drm_p2pgpu_gem_move { handle, ..good });
    all_refused(&gpu, Errno::ENOENT, wrong);
    let bad = [
        drm_p2pgpu_gem_move {
            placement: 2,
            ..good
        },
        drm_p2pgpu_gem_move {
            placement: u32::MAX,
            ..good
        },
        drm_p2pgpu_gem_move { flags: 1, ..good },
        drm_p2pgpu_gem_move {
            flags: 1 << 31,
            ..good
        },
        drm_p2pgpu_gem_move { pad: 1, ..good },
    ];
    all_refused(&gpu, Errno::EINVAL, bad);
    assert_eq!(
        bo.info().placement,
        P2PGPU_PLACEMENT_VRAM,
        "a refused call moved the object"
    );
}

pub fn bad_advice() {
    let gpu = Gpu::open(0);
    let bo = gpu.create_evictable(4096);
    let good = drm_p2pgpu_gem_madvise {
        handle: bo.handle,
        advice: P2PGPU_MADV_DONTNEED,
        ..Default::default()
    };
    let wrong = WRONG.map(|handle| drm_p2pgpu_gem_madvise { handle, ..good });
    all_refused(&gpu, Errno::ENOENT, wrong);
    let [plain, system] =
        [Placement::Vram, Placement::System].map(|placement| gpu.create(4096, placement));
    let bad = [
        drm_p2pgpu_gem_madvise { advice: 2, ..good },
        drm_p2pgpu_gem_madvise {
            advice: u32::MAX,
            ..good
        },
        drm_p2pgpu_gem_madvise { pad: 1, ..good },
        // These stay where they are.
        drm_p2pgpu_gem_madvise {
            handle: plain.handle,
            ..good
        },
        drm_p2pgpu_gem_madvise {
            handle: system.handle,
            advice: P2PGPU_MADV_WILLNEED,
            ..good
        },
    ];
    all_refused(&gpu, Errno::EINVAL, bad);
}

pub fn bad_copy_handle() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8192, Placement::Vram);
    let good = drm_p2pgpu_gem_copy {
        src_handle: bo.handle,
        dst_handle: bo.handle,
        dst_offset: 4096,
        size: 4096,
        ..Default::default()
    };
    must(gpu.__copy(good), format_args!("the copy without a mistake"));
    for handle in WRONG {
        refused(
            gpu.__copy(drm_p2pgpu_gem_copy {
                src_handle: handle,
                ..good
            }),
            Errno::ENOENT,
        );
        refused(
            gpu.__copy(drm_p2pgpu_gem_copy {
                dst_handle: handle,
                ..good
            }),
            Errno::ENOENT,
        );
    }
}

pub fn bad_copy_range() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let (src, dst) = (gpu.create(8192, placement), gpu.create(4096, placement));
        dst.fill(Pattern(1));
        let with = |src_offset, dst_offset, size| drm_p2pgpu_gem_copy {
            src_handle: src.handle,
            dst_handle: dst.handle,
            src_offset,
            dst_offset,
            size,
        };
        let bad = [
            with(0, 0, 0),
            with(0, 0, 4097),
            with(8192, 0, 1),
            with(8191, 0, 2),
            with(0, 4096, 1),
            with(0, 1, 4096),
            with(0, 0, 1 << 63),
            with(0, 0, u64::MAX),
            with(u64::MAX, 0, 1),
            with(u64::MAX, 0, 2),
            with(0, u64::MAX, 2),
            with(1 << 63, 1 << 63, 1 << 63),
        ];
        all_refused(&gpu, Errno::EINVAL, bad);
        dst.assert_holds(Pattern(1));
        let within = |src_offset, dst_offset, size| drm_p2pgpu_gem_copy {
            dst_handle: src.handle,
            ..with(src_offset, dst_offset, size)
        };
        let overlapping = [
            within(0, 0, 1),
            within(0, 4095, 4096),
            within(4095, 0, 4096),
        ];
        all_refused(&gpu, Errno::EINVAL, overlapping);
        must(
            gpu.__copy(within(0, 4096, 4096)),
            format_args!("ranges that touch"),
        );
    }
}

pub fn bad_checksum() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8192, Placement::Vram);
    let good = drm_p2pgpu_gem_checksum {
        handle: bo.handle,
        size: 1,
        ..Default::default()
    };
    let wrong = WRONG.map(|handle| drm_p2pgpu_gem_checksum { handle, ..good });
    all_refused(&gpu, Errno::ENOENT, wrong);
    let with = |offset, size| drm_p2pgpu_gem_checksum {
        offset,
        size,
        ..good
    };
    let bad = [
        drm_p2pgpu_gem_checksum { pad: 1, ..good },
        with(0, 0),
        with(0, 8193),
        with(8192, 1),
        with(1, 8192),
        with(0, 1 << 63),
        with(u64::MAX, 1),
        with(u64::MAX, 2),
        with(1 << 63, 1 << 63),
    ];
    all_refused(&gpu, Errno::EINVAL, bad);
}

pub fn bad_export() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(4096, Placement::Vram);
    bo.set_exportable(true);
    for handle in WRONG {
        refused(
            drm::prime_handle_to_fd(&gpu, handle, PRIME_FLAGS),
            Errno::ENOENT,
        );
    }
    for flags in [libc::O_APPEND, libc::O_TRUNC, -1] {
        refused(
            drm::prime_handle_to_fd(&gpu, bo.handle, flags),
            Errno::EINVAL,
        );
    }
}

/// A descriptor that was open a moment ago.
pub fn closed_fd() -> i32 {
    let fd = File::open("/dev/null").expect("/dev/null").into_raw_fd();
    must(close(fd), format_args!("close"));
    fd
}

pub fn bad_import() {
    let gpu = Gpu::open(0);
    for fd in [-1, i32::MIN, i32::MAX, closed_fd()] {
        refused(gpu.__import(fd), Errno::EBADF);
    }
    let null = File::open("/dev/null").expect("/dev/null");
    refused(gpu.__import(null.as_raw_fd()), Errno::EINVAL);
    let (reader, _writer) = must(nix::unistd::pipe(), format_args!("pipe"));
    refused(gpu.__import(reader.as_raw_fd()), Errno::EINVAL);
    let node = gpu.node().open().expect("the render node");
    refused(gpu.__import(node.as_raw_fd()), Errno::EINVAL);
}

pub fn bad_close() {
    let gpu = Gpu::open(0);
    let handle = gpu.create(4096, Placement::Vram).into_handle();
    must(gpu.__close(handle), format_args!("GEM_CLOSE"));
    refused(gpu.__close(handle), Errno::EINVAL);
    for handle in WRONG {
        refused(gpu.__close(handle), Errno::EINVAL);
    }
}

pub fn bad_gpu_pointer() {
    let gpu = Gpu::open(0);
    let requests = [
        DRM_IOCTL_P2PGPU_GETPARAM,
        DRM_IOCTL_P2PGPU_GEM_CREATE,
        DRM_IOCTL_P2PGPU_GEM_MMAP_OFFSET,
        DRM_IOCTL_P2PGPU_GEM_INFO,
        DRM_IOCTL_P2PGPU_GEM_SET_PEER,
        DRM_IOCTL_P2PGPU_PEER_QUERY,
        DRM_IOCTL_P2PGPU_GEM_MOVE,
        DRM_IOCTL_P2PGPU_GEM_COPY,
        DRM_IOCTL_P2PGPU_GEM_CHECKSUM,
        DRM_IOCTL_P2PGPU_GEM_EXPORT_RANGE,
        DRM_IOCTL_P2PGPU_CONTEXT_CREATE,
        DRM_IOCTL_P2PGPU_CONTEXT_DESTROY,
        DRM_IOCTL_P2PGPU_CONTEXT_QUERY,
        DRM_IOCTL_P2PGPU_SUBMIT,
        DRM_IOCTL_P2PGPU_GEM_MADVISE,
    ];
    for request in requests {
        // SAFETY: this process has no memory there.
        let result = unsafe { drm::ioctl(&gpu, request, nowhere()) };
        assert_eq!(result, Err(Errno::EFAULT), "ioctl {request:#x}");
    }
}

pub fn bad_gpu_ioctl() {
    let gpu = Gpu::open(0);
    // The numbers after the last one, and another type.
    for number in [0x4f, 0x5f, 0x9f] {
        let request = (DRM_IOCTL_P2PGPU_GETPARAM & !0xff) | number;
        // SAFETY: there is no such ioctl, and no memory there.
        let result = unsafe { drm::ioctl(&gpu, request, nowhere()) };
        assert_eq!(result, Err(Errno::EINVAL), "ioctl {request:#x}");
    }
    let request = (DRM_IOCTL_P2PGPU_GETPARAM & !0xff00) | 0x2000;
    // SAFETY: as above.
    let result = unsafe { drm::ioctl(&gpu, request, nowhere()) };
    assert_eq!(result, Err(Errno::ENOTTY), "an ioctl of another type");
}

pub fn bad_gpu_file() {
    let gpu = Gpu::open(0);
    let file = gpu.node().open().expect("the render node");
    let fd = file.into_raw_fd();
    must(close(fd), format_args!("close"));
    let mut argument = drm_p2pgpu_getparam::default();
    // SAFETY: the file is closed, so that nothing is accessed.
    let result = unsafe { libc::ioctl(fd, DRM_IOCTL_P2PGPU_GETPARAM.into(), &raw mut argument) };
    assert_eq!((result, Errno::last()), (-1, Errno::EBADF));
}
