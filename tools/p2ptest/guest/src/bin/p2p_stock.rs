// SPDX-License-Identifier: GPL-2.0
//! Tests of our dma-bufs with parts of the kernel that are not ours: what
//! userspace can do with any dma-buf, and vgem as an importer.

use nix::errno::Errno;
use nix::sys::stat::fstat;
use p2pguest::dmabuf::{Access, DmaBuf};
use p2pguest::drm;
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::map::Mapping;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::Rig;
use p2pguest::sys::linux::*;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused, subtests};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// A mapping of the dma-buf keeps the object when all else is closed.
    mmap_outlives_the_handle,
    /// Brackets of CPU access, and malformed ones.
    sync_brackets,
    /// Malformed requests of sync files are refused.
    bad_sync_files,
    /// vgem imports the dma-buf: each of its files is an importer, and exports it as what it is.
    vgem_imports,
    /// vgem is static, but does not map: the object moves, and mappings follow.
    vgem_does_not_hold_up_moves,
    /// Fences that vgem puts on the object are the dma-buf's.
    vgem_fences_are_waited_for,
    /// vgem keeps the object when our handle and file are closed.
    vgem_outlives_the_handle,
    /// vgem and a peer at the same object.
    vgem_beside_a_peer,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const PAGE: u64 = 4096;
const SIZE: usize = 16 * PAGE as usize;

/// Longest wait for a fence that has been signalled.
const PATIENCE_MS: i32 = 60_000;

/// The file of a dma-buf, once more.
#[track_caller]
fn dmabuf(fd: &OwnedFd) -> DmaBuf {
    DmaBuf(fd.try_clone().expect("another file descriptor"))
}

#[track_caller]
fn map_fd(fd: &impl std::os::fd::AsFd) -> Mapping {
    must(
        Mapping::__new(fd, 0, SIZE),
        format_args!("mmap of a dma-buf"),
    )
}

#[track_caller]
fn assert_map_holds(map: &Mapping, pattern: Pattern) {
    let mut found = vec![0; SIZE];
    map.read(0, &mut found);
    assert_same(&found, &pattern.bytes(0, SIZE), "the mapping");
}

fn mmap_outlives_the_handle() {
    let rig = Rig::open();
    let free = || rig.gpu[0].param(P2PGPU_PARAM_VRAM_FREE);
    let before = free();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    exported.bo.fill(Pattern(3));
    let map = map_fd(&exported.fd);
    drop(exported);
    assert_map_holds(&map, Pattern(3));
    assert_eq!(free(), before - SIZE as u64);
    drop(map);
    assert_eq!(free(), before);
}

fn sync_brackets() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let map = map_fd(&exported.fd);
    let dmabuf = dmabuf(&exported.fd);
    for access in [Access::Read, Access::Write, Access::Both] {
        let number = access as u64;
        dmabuf.begin(access);
        map.store(0, number);
        exported.bo.move_to(Placement::System);
        assert_eq!(map.load(0), number);
        exported.bo.move_to(Placement::Vram);
        dmabuf.end(access);
    }
    for bad in [0, DMA_BUF_SYNC_END, 1 << 3, DMA_BUF_SYNC_READ | 1 << 31] {
        refused(dmabuf.__sync(bad), Errno::EINVAL);
    }
}

fn bad_sync_files() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    for bad in [0, DMA_BUF_SYNC_END, 1 << 3] {
        let result = dmabuf(&exported.fd).__export_sync_file(bad);
        refused(result, Errno::EINVAL);
    }
}

/// `struct drm_vgem_fence_attach`
#[derive(Default)]
#[repr(C)]
struct FenceAttach {
    handle: u32,
    flags: u32,
    out_fence: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_signal`
#[repr(C)]
struct FenceSignal {
    fence: u32,
    flags: u32,
}

/// `VGEM_FENCE_WRITE`
const FENCE_WRITE: u32 = 1;

mod raw {
    use super::{FenceAttach, FenceSignal};
    nix::ioctl_readwrite!(fence_attach, b'd', 0x41, FenceAttach);
    nix::ioctl_write_ptr!(fence_signal, b'd', 0x42, FenceSignal);
}

/// An open file of vgem, and an object in it; closed when dropped.
struct Vgem {
    file: File,
    handle: u32,
}

impl Vgem {
    /// Opens vgem and imports a dma-buf there.
    #[track_caller]
    fn import(fd: &impl AsRawFd) -> Self {
        let file = open_vgem();
        let handle = must(
            drm::prime_fd_to_handle(&file, fd.as_raw_fd()),
            format_args!("PRIME import by vgem"),
        );
        Self { file, handle }
    }

    /// Exports what it imported.
    #[track_caller]
    fn export(&self) -> OwnedFd {
        must(
            drm::prime_handle_to_fd(&self.file, self.handle, drm::PRIME_FLAGS),
            format_args!("PRIME export by vgem"),
        )
    }

    /// Puts a fence on the object, for writers or readers.
    #[track_caller]
    fn attach_fence(&self, flags: u32) -> u32 {
        let mut arg = FenceAttach {
            handle: self.handle,
            flags,
            ..Default::default()
        };
        // SAFETY: the structure is the one that the request is for.
        let attached = unsafe { raw::fence_attach(self.file.as_raw_fd(), &mut arg) };
        must(attached, format_args!("VGEM_FENCE_ATTACH"));
        arg.out_fence
    }

    #[track_caller]
    fn signal_fence(&self, fence: u32) {
        let arg = FenceSignal { fence, flags: 0 };
        // SAFETY: the structure is the one that the request is for.
        let signalled = unsafe { raw::fence_signal(self.file.as_raw_fd(), &arg) };
        must(signalled, format_args!("VGEM_FENCE_SIGNAL"));
    }
}

impl Drop for Vgem {
    fn drop(&mut self) {
        // An object that stays shows as an importer of ours.
        let _ = drm::close_handle(&self.file, self.handle);
    }
}

#[track_caller]
fn open_vgem() -> File {
    for entry in fs::read_dir("/dev/dri").expect("/dev/dri") {
        let path = entry.expect("an entry of /dev/dri").path();
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            continue;
        };
        if drm::version(&file).is_ok_and(|version| version.name == "vgem") {
            return file;
        }
    }
    panic!("there is no vgem");
}

fn inode(fd: &OwnedFd) -> u64 {
    must(fstat(fd), format_args!("fstat")).st_ino
}

fn vgem_imports() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let info = || exported.bo.info();
    let vgem = Vgem::import(&exported.fd);
    assert_eq!((info().importers, info().pins), (1, 0));
    let again = drm::prime_fd_to_handle(&vgem.file, exported.fd.as_raw_fd());
    assert_eq!(again, Ok(vgem.handle), "the same object");
    assert_eq!(
        inode(&vgem.export()),
        inode(&exported.fd),
        "the same dma-buf"
    );
    let other = Vgem::import(&exported.fd);
    assert_eq!(info().importers, 2, "each open file is one");
    drop(vgem);
    drop(other);
    assert_eq!(info().importers, 0);
    exported.bo.set_exportable(false);
    let refusal = drm::prime_fd_to_handle(&open_vgem(), exported.fd.as_raw_fd());
    refused(refusal, Errno::EPERM);
}

fn vgem_does_not_hold_up_moves() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    exported.bo.fill(Pattern(7));
    let vgem = Vgem::import(&exported.fd);
    let map = map_fd(&vgem.export());
    for round in 0..6 {
        exported.bo.move_to(Placement::ALL[round % 2]);
        assert_map_holds(&map, Pattern(7));
    }
}

fn vgem_fences_are_waited_for() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let dmabuf = dmabuf(&exported.fd);
    let now = || [Access::Read, Access::Write].map(|access| dmabuf.is_ready(access));
    let vgem = Vgem::import(&exported.fd);
    for (flags, reader) in [(0, true), (FENCE_WRITE, false)] {
        let fence = vgem.attach_fence(flags);
        assert_eq!(now(), [reader, false], "flags {flags}");
        vgem.signal_fence(fence);
        assert!(dmabuf.wait_ready(Access::Write, PATIENCE_MS));
        assert_eq!(now(), [true, true]);
    }
}

fn vgem_outlives_the_handle() {
    let rig = Rig::open();
    let free = || rig.gpu[0].param(P2PGPU_PARAM_VRAM_FREE);
    let before = free();
    let vgem = {
        let exported = rig.export(0, SIZE as u64, Placement::Vram);
        exported.bo.fill(Pattern(8));
        Vgem::import(&exported.fd)
    };
    assert_eq!(free(), before - SIZE as u64);
    rig.gpu[0].import(&vgem.export()).assert_holds(Pattern(8));
    drop(vgem);
    assert_eq!(free(), before);
}

fn vgem_beside_a_peer() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, SIZE as u64, Placement::Vram),
        rig.register(1, SIZE as u64, Placement::Vram),
    );
    let vgem = Vgem::import(&target.fd);
    let map = map_fd(&vgem.export());
    let wire = rig.connect(4);
    for round in 0..4 {
        source.bo.fill(Pattern(round));
        wire.write(&source.region, &target.region);
        assert_map_holds(&map, Pattern(round));
        target.bo.move_to(Placement::System);
        assert_map_holds(&map, Pattern(round));
        target.bo.move_to(Placement::Vram);
    }
    assert_eq!(target.bo.info().importers, 2);
}
