// SPDX-License-Identifier: GPL-2.0
//! Tests of our dma-bufs with parts of the kernel that are not ours: what
//! userspace can do with any dma-buf, and vgem as an importer.

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;
use p2pguest::dmabuf::{
    __export_sync_file, __sync, END, READ, SoftwareTimeline, WRITE, export_sync_file,
    import_sync_file, poll, sync,
};
use p2pguest::drm;
use p2pguest::gpu::{Bo, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::map::Mapping;
use p2pguest::nic::TIMEOUT;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused, subtests};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// The dma-buf can be mapped, and shows the object, wherever it is.
    mmap_shows_the_object,
    /// A mapping of the dma-buf keeps the object when all else is closed.
    mmap_outlives_the_handle,
    /// Brackets of CPU access, and malformed ones.
    sync_brackets,
    /// A bracket of CPU access waits for fences of the device.
    sync_waits_for_fences,
    /// An idle dma-buf is ready to be read and written.
    poll_when_idle,
    /// poll waits for a fence that somebody put on the dma-buf.
    poll_waits_for_a_fence,
    /// The sync file of a dma-buf signals with the fences that are on it.
    export_sync_file_signals,
    /// Malformed requests of sync files are refused.
    bad_sync_files,
    /// A fence of userspace on the dma-buf does not keep the object from moving for ever.
    move_with_a_foreign_fence,
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

fn mmap_shows_the_object() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let exported = rig.export(0, SIZE as u64, placement);
        exported.bo.fill(Pattern(1));
        let map = map_fd(&exported.fd);
        assert_map_holds(&map, Pattern(1));
        map.write(0, &Pattern(2).bytes(0, SIZE));
        exported.bo.assert_holds(Pattern(2));
        for round in 0..4 {
            exported.bo.move_to(Placement::ALL[round % 2]);
            assert_map_holds(&map, Pattern(2));
        }
        refused(Mapping::__new(&exported.fd, 0, SIZE + 4096), Errno::EINVAL);
        refused(Mapping::__new(&exported.fd, 4096, SIZE), Errno::EINVAL);
    }
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
    for access in [READ, WRITE, READ | WRITE] {
        sync(&exported.fd, access);
        map.store(0, access.into());
        exported.bo.move_to(Placement::System);
        assert_eq!(map.load(0), u64::from(access));
        exported.bo.move_to(Placement::Vram);
        sync(&exported.fd, access | END);
    }
    for bad in [0, END, 1 << 3, READ | 1 << 31] {
        refused(__sync(&exported.fd, bad), Errno::EINVAL);
    }
}

fn sync_waits_for_fences() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let timeline = SoftwareTimeline::new();
    import_sync_file(&exported.fd, WRITE, &timeline.fence(1));
    thread::scope(|scope| {
        let bracket = scope.spawn(|| {
            sync(&exported.fd, READ);
            // Over once the fence has signalled, not earlier.
            let ready = poll(&exported.fd, libc::POLLIN, Duration::ZERO);
            sync(&exported.fd, READ | END);
            ready
        });
        assert_waits(&bracket);
        timeline.advance();
        let ready = bracket.join().expect("the bracket's thread");
        assert_eq!(ready, libc::POLLIN, "it began before the fence signalled");
    });
}

/// Asserts that a thread does not end, given some time in which it could.
#[track_caller]
fn assert_waits<T>(thread: &thread::ScopedJoinHandle<'_, T>) {
    thread::sleep(Duration::from_millis(50));
    assert!(!thread.is_finished(), "it did not wait");
}

fn poll_when_idle() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let both = libc::POLLIN | libc::POLLOUT;
    for placement in [Placement::Vram, Placement::System, Placement::Vram] {
        exported.bo.move_to(placement);
        assert_eq!(poll(&exported.fd, both, TIMEOUT), both, "{placement:?}");
    }
}

fn poll_waits_for_a_fence() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let (read, write) = (libc::POLLIN, libc::POLLOUT);
    let now = |events| poll(&exported.fd, events, Duration::ZERO);
    let timeline = SoftwareTimeline::new();
    // Who reads holds up writers only; who writes holds up all.
    import_sync_file(&exported.fd, READ, &timeline.fence(1));
    assert_eq!((now(read), now(write)), (read, 0));
    import_sync_file(&exported.fd, WRITE, &timeline.fence(2));
    assert_eq!((now(read), now(write)), (0, 0));
    timeline.advance();
    assert_eq!((now(read), now(write)), (0, 0));
    timeline.advance();
    assert_eq!(poll(&exported.fd, read, TIMEOUT), read);
    assert_eq!(poll(&exported.fd, write, TIMEOUT), write);
}

fn export_sync_file_signals() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    let signalled = |file: &_| poll(file, libc::POLLIN, Duration::ZERO) == libc::POLLIN;
    assert!(
        signalled(&export_sync_file(&exported.fd, READ | WRITE)),
        "idle"
    );
    let timeline = SoftwareTimeline::new();
    import_sync_file(&exported.fd, READ, &timeline.fence(1));
    let for_reader = export_sync_file(&exported.fd, READ);
    let for_writer = export_sync_file(&exported.fd, WRITE);
    assert!(signalled(&for_reader), "a reader does not wait for readers");
    assert!(!signalled(&for_writer));
    timeline.advance();
    assert_eq!(poll(&for_writer, libc::POLLIN, TIMEOUT), libc::POLLIN);
    exported.bo.move_to(Placement::System);
    assert!(signalled(&export_sync_file(&exported.fd, WRITE)), "moved");
}

fn bad_sync_files() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    for bad in [0, END, 1 << 3] {
        let result = __export_sync_file(&exported.fd, bad);
        refused(result, Errno::EINVAL);
    }
}

fn move_with_a_foreign_fence() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE as u64, Placement::Vram);
    exported.bo.fill(Pattern(4));
    // Somebody is attached, so that the exporter waits for accesses.
    let how = Attach::peer(rig.nic[0].pci()).answer(Answer::Unmap, 0);
    let importer = Importer::attach(&exported.fd, how);
    importer.map(Direction::Both);
    let timeline = SoftwareTimeline::new();
    import_sync_file(&exported.fd, WRITE, &timeline.fence(1));
    thread::scope(|scope| {
        let moving = scope.spawn(|| exported.bo.__move_to(elsewhere(&exported.bo)));
        assert_waits(&moving);
        timeline.advance();
        assert_eq!(moving.join().expect("the move's thread"), Ok(()));
    });
    exported.bo.assert_holds(Pattern(4));
}

fn elsewhere(bo: &Bo<'_>) -> Placement {
    match bo.info().placement {
        P2PGPU_PLACEMENT_VRAM => Placement::System,
        _ => Placement::Vram,
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
    let (read, write) = (libc::POLLIN, libc::POLLOUT);
    let now = |events| poll(&exported.fd, events, Duration::ZERO);
    let vgem = Vgem::import(&exported.fd);
    for (flags, reader) in [(0, read), (FENCE_WRITE, 0)] {
        let fence = vgem.attach_fence(flags);
        assert_eq!((now(read), now(write)), (reader, 0), "flags {flags}");
        vgem.signal_fence(fence);
        assert_eq!(poll(&exported.fd, write, TIMEOUT), write);
        assert_eq!(now(read), read);
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
