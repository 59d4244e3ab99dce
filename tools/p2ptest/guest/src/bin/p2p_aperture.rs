// SPDX-License-Identifier: GPL-2.0
//! Tests of CPU mappings: page faults, and slots of the aperture that are taken
//! back and given again, with the bytes intact.

use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use nix::sys::signal::Signal;
use nix::unistd::Whence;
use nix::unistd::{lseek, write};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Outcome, Subtest};
use p2pguest::map::Mapping;
use p2pguest::pattern::{Pattern, assert_same};
use p2pguest::rig::{Registered, Rig};
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused, subtests};
use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const SUBTESTS: &[Subtest] = subtests![
    /// What the CPU stores in a mapping is what the engine reads, and back.
    cpu_and_engine_agree,
    /// Pages take a slot each when they, or one of the sixteen around, are first touched.
    group_by_group,
    /// The slots come back when the mapping and the object are gone.
    slots_come_back,
    /// Two mappings of a page share its slot and its bytes.
    two_mappings_share_slots,
    /// A mapping outlives the handle.
    mapping_outlives_handle,
    /// An object larger than the aperture, page after page.
    larger_than_aperture,
    /// More objects than there are slots for, in turns.
    more_objects_than_aperture,
    /// Random accesses to more pages than there are slots.
    random_access_under_reclaim,
    /// Threads fault different pages, more than there are slots.
    threads_fault,
    /// Threads fault the same pages.
    threads_fault_same_pages,
    /// Processes fault in mappings of their own, more pages than there are slots.
    processes_fault,
    /// A child process uses the mapping that it inherited.
    forked_mapping_works,
    /// Mappings come and go while others fault.
    map_and_unmap_under_faults,
    /// Mappings of the dma-buf show the object's bytes.
    mmap_of_dma_buf,
    /// A part of an object can be mapped and unmapped.
    partial_unmap,
    /// System calls read and write through a mapping.
    syscalls_use_mapping,
    /// A private mapping is refused.
    private_mapping_is_refused,
    /// Objects in system memory take no slots.
    system_objects_take_no_slots,
    /// SIGBUS where peers hold all slots; the page is there when they let go.
    sigbus_when_peers_hold_all,
    /// Peers are served slots that only CPU mappings use.
    cpu_slots_yield_to_peers,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// Offset in the mapping of the word that tests use in a page: not the same in
/// all pages.
fn spot(gpu: &Gpu, page: u64) -> usize {
    (page * gpu.page + page % 512 * 8) as usize
}

/// Stores a word of the pattern in each page.
#[track_caller]
fn mark(gpu: &Gpu, map: &Mapping, pages: impl IntoIterator<Item = u64>, pattern: Pattern) {
    for page in pages {
        map.store(spot(gpu, page), pattern.word(page));
    }
}

/// Asserts that each page has its word.
#[track_caller]
fn assert_marked(gpu: &Gpu, map: &Mapping, pages: impl IntoIterator<Item = u64>, pattern: Pattern) {
    for page in pages {
        let found = map.load(spot(gpu, page));
        assert_eq!(found, pattern.word(page), "word in page {page}");
    }
}

/// Pages that tests of reclaim have slots for: fewer than the aperture has, as
/// each fault that takes a slot from another page costs an emulated machine a
/// millisecond.
const FEW: u64 = 512;

/// Leaves GPU 0 [`FEW`] slots for CPU mappings until the result is dropped.
#[track_caller]
fn squeeze(rig: &Rig) -> Registered<'_> {
    let held = rig.hold_slots(0, rig.gpu[0].slots - FEW);
    igt::require(held.bo.info().peer_maps == 1, "a peer-to-peer route");
    held
}

fn cpu_and_engine_agree() {
    let gpu = Gpu::open(0);
    let len = 3 * gpu.page as usize;
    for placement in Placement::ALL {
        let bo = gpu.create(len as u64, placement);
        let map = bo.map();
        map.write(0, &Pattern(1).bytes(0, len));
        bo.assert_holds(Pattern(1));
        bo.fill(Pattern(2));
        let mut found = vec![0; len];
        map.read(0, &mut found);
        assert_same(&found, &Pattern(2).bytes(0, len), "through the mapping");
        map.write(4093, b"odd bytes");
        assert_eq!(bo.download(4093, 9), b"odd bytes");
    }
}

fn group_by_group() {
    let gpu = Gpu::open(0);
    // The last group is not whole.
    let bo = gpu.create(70 * gpu.page, Placement::Vram);
    let map = bo.map();
    assert_eq!(bo.info().slots, 0, "slots before any access");
    for (page, slots) in [(5, 16), (15, 16), (40, 32), (32, 32), (69, 38), (64, 38)] {
        for _ in 0..2 {
            map.store(spot(&gpu, page), 1);
            assert_eq!(bo.info().slots, slots, "after page {page} was touched");
        }
    }
    assert_eq!(bo.info().peer_slots, 0);
}

fn slots_come_back() {
    let gpu = Gpu::open(0);
    for _ in 0..2 {
        let bo = gpu.create(gpu.aperture(), Placement::Vram);
        let map = bo.map();
        mark(&gpu, &map, 0..gpu.slots, Pattern(3));
        assert_eq!(u64::from(bo.info().slots), gpu.slots);
        assert_eq!(
            gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE),
            gpu.slots,
            "the CPU's slots count"
        );
    }
}

fn two_mappings_share_slots() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8 * gpu.page, Placement::Vram);
    let (first, second) = (bo.map(), bo.map());
    mark(&gpu, &first, 0..8, Pattern(4));
    assert_marked(&gpu, &second, 0..8, Pattern(4));
    mark(&gpu, &second, 0..8, Pattern(5));
    assert_marked(&gpu, &first, 0..8, Pattern(5));
    assert_eq!(bo.info().slots, 8);
}

fn mapping_outlives_handle() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8 * gpu.page, Placement::Vram);
    let map = bo.map();
    mark(&gpu, &map, 0..4, Pattern(6));
    bo.close();
    mark(&gpu, &map, 4..8, Pattern(6));
    assert_marked(&gpu, &map, 0..8, Pattern(6));
}

fn larger_than_aperture() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.aperture() + gpu.aperture() / 8, Placement::Vram);
    let map = bo.map();
    mark(&gpu, &map, 0..bo.pages(), Pattern(7));
    assert!(
        u64::from(bo.info().slots) <= gpu.slots,
        "more slots than there are"
    );
    assert_marked(&gpu, &map, 0..bo.pages(), Pattern(7));
    assert_engine_sees_marks(&bo, Pattern(7));
}

/// Asserts by the copy engine that the marks, and nothing else, are there.
#[track_caller]
fn assert_engine_sees_marks(bo: &Bo<'_>, pattern: Pattern) {
    let gpu = bo.gpu();
    let group = 512;
    for first in (0..bo.pages()).step_by(group) {
        let pages = (bo.pages() - first).min(group as u64);
        let mut expected = vec![0; (pages * gpu.page) as usize];
        for page in first..first + pages {
            let at = spot(gpu, page) - (first * gpu.page) as usize;
            expected[at..at + 8].copy_from_slice(&pattern.word(page).to_ne_bytes());
        }
        let found = bo.download(first * gpu.page, expected.len());
        assert_same(&found, &expected, &format!("pages from {first}"));
    }
}

fn more_objects_than_aperture() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let pages = FEW / 8;
    let objects: Vec<_> = (0..12)
        .map(|_| gpu.create(pages * gpu.page, Placement::Vram))
        .map(|bo| (bo.map(), bo))
        .collect();
    for (seed, (map, _)) in (0..).zip(&objects) {
        mark(gpu, map, 0..pages, Pattern(seed));
    }
    for (seed, (map, bo)) in (0..).zip(&objects) {
        assert_marked(gpu, map, 0..pages, Pattern(seed));
        assert_engine_sees_marks(bo, Pattern(seed));
    }
}

fn random_access_under_reclaim() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let bo = gpu.create((FEW + FEW / 2) * gpu.page, Placement::Vram);
    let map = bo.map();
    let mut expected = vec![0; bo.pages() as usize];
    for step in 0..4_000 {
        let random = Pattern(8).word(step);
        let page = random % bo.pages();
        let known = &mut expected[page as usize];
        if random >> 63 == 0 {
            *known = random;
            map.store(spot(gpu, page), random);
        } else {
            assert_eq!(
                map.load(spot(gpu, page)),
                *known,
                "page {page} at step {step}"
            );
        }
    }
    for (page, known) in (0..).zip(&expected) {
        assert_eq!(map.load(spot(gpu, page)), *known, "page {page} at the end");
    }
}

fn threads_fault() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let bo = gpu.create((FEW + FEW / 2) * gpu.page, Placement::Vram);
    let map = bo.map();
    let threads = 8;
    thread::scope(|scope| {
        for first in 0..threads {
            let (map, pages) = (&map, bo.pages());
            scope.spawn(move || {
                let mine = || (first..pages).step_by(threads as usize);
                mark(gpu, map, mine(), Pattern(9));
                assert_marked(gpu, map, mine(), Pattern(9));
            });
        }
    });
    assert_engine_sees_marks(&bo, Pattern(9));
}

fn threads_fault_same_pages() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(256 * gpu.page, Placement::Vram);
    let map = bo.map();
    thread::scope(|scope| {
        for thread in 0..8 {
            let (gpu, map) = (&gpu, &map);
            scope.spawn(move || {
                for page in 0..256 {
                    map.store((page * gpu.page) as usize + thread * 8, page);
                }
            });
        }
    });
    for page in 0..256 {
        for thread in 0..8 {
            assert_eq!(
                map.load((page * gpu.page) as usize + thread * 8),
                page,
                "thread {thread}"
            );
        }
    }
    assert_eq!(bo.info().slots, 256);
}

fn processes_fault() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let children: Vec<_> = (0..4)
        .map(|seed| {
            igt::fork(|| {
                let mine = gpu.reopen();
                let bo = mine.create(FEW / 2 * gpu.page, Placement::Vram);
                let map = bo.map();
                mark(&mine, &map, 0..bo.pages(), Pattern(seed));
                assert_marked(&mine, &map, 0..bo.pages(), Pattern(seed));
                assert_engine_sees_marks(&bo, Pattern(seed));
            })
        })
        .collect();
    for child in children {
        child.join();
    }
}

fn forked_mapping_works() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(16 * gpu.page, Placement::Vram);
    let map = bo.map();
    mark(&gpu, &map, 0..8, Pattern(10));
    igt::fork(|| {
        assert_marked(&gpu, &map, 0..8, Pattern(10));
        mark(&gpu, &map, 8..16, Pattern(10));
    })
    .join();
    assert_marked(&gpu, &map, 0..16, Pattern(10));
}

fn map_and_unmap_under_faults() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], squeeze(&rig));
    let busy = gpu.create(FEW * gpu.page, Placement::Vram);
    let map = busy.map();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40 {
                let bo = gpu.create(32 * gpu.page, Placement::Vram);
                let short = bo.map();
                mark(gpu, &short, 0..32, Pattern(round));
                assert_marked(gpu, &short, 0..32, Pattern(round));
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            mark(gpu, &map, 0..busy.pages(), Pattern(11));
            assert_marked(gpu, &map, 0..busy.pages(), Pattern(11));
        }
    });
}

fn mmap_of_dma_buf() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let exported = rig.export(0, 8 * rig.gpu[0].page, placement);
        let len = exported.bo.size as usize;
        let size = must(
            lseek(&exported.fd, 0, Whence::SeekEnd),
            format_args!("lseek"),
        );
        assert_eq!(size, len as i64, "size of the dma-buf");
        let through_fd = must(Mapping::__new(&exported.fd, 0, len), format_args!("mmap"));
        let through_node = exported.bo.map();
        mark(&rig.gpu[0], &through_fd, 0..8, Pattern(12));
        assert_marked(&rig.gpu[0], &through_node, 0..8, Pattern(12));
        assert_engine_sees_marks(&exported.bo, Pattern(12));
        if placement == Placement::Vram {
            assert_eq!(exported.bo.info().slots, 8, "slots of the two mappings");
        }
        exported.bo.move_to(placement.other());
        assert_marked(&rig.gpu[0], &through_fd, 0..8, Pattern(12));
        refused(Mapping::__new(&exported.fd, 0, len + 4096), Errno::EINVAL);
    }
}

fn partial_unmap() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8 * gpu.page, Placement::Vram);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let half = must(
        Mapping::__new(&gpu, offset, 4 * gpu.page as usize),
        format_args!("mmap"),
    );
    let whole = bo.map();
    mark(&gpu, &whole, 0..8, Pattern(13));
    assert_marked(&gpu, &half, 0..4, Pattern(13));
    drop(half);
    assert_marked(&gpu, &whole, 0..8, Pattern(13));
}

fn syscalls_use_mapping() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(2 * gpu.page, Placement::Vram);
    let map = bo.map();
    let len = bo.size as usize;
    // SAFETY: the mapping is this long, and nothing else uses it meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.as_ptr().cast::<u8>(), len) };
    let mut random = File::open("/dev/urandom").expect("/dev/urandom");
    random.read_exact(bytes).expect("read into the mapping");
    let (reader, writer) = must(nix::unistd::pipe(), format_args!("pipe"));
    assert_eq!(write(&writer, bytes), Ok(len), "write from the mapping");
    let mut copy = vec![0; len];
    File::from(reader)
        .read_exact(&mut copy)
        .expect("read from the pipe");
    assert_same(&bo.download(0, len), &copy, "what the engine sees");
    assert!(
        copy.iter().any(|&byte| byte != 0),
        "/dev/urandom gave zeros"
    );
}

fn private_mapping_is_refused() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let private = Mapping::__with_flags(&gpu, offset, gpu.page as usize, MapFlags::MAP_PRIVATE);
    refused(private, Errno::EINVAL);
}

fn system_objects_take_no_slots() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(2 * gpu.aperture(), Placement::System);
    let map = bo.map();
    mark(&gpu, &map, 0..bo.pages(), Pattern(14));
    assert_marked(&gpu, &map, 0..bo.pages(), Pattern(14));
    assert_eq!(bo.info().slots, 0);
    assert_engine_sees_marks(&bo, Pattern(14));
}

/// Makes NIC 0 hold all slots of GPU 0, does something, and lets go.
fn while_peer_holds_all(rig: &Rig, run: impl FnOnce()) {
    let all = rig.hold_slots(0, rig.gpu[0].slots);
    igt::require(all.bo.info().peer_maps == 1, "a peer-to-peer route");
    assert_eq!(
        u64::from(all.bo.info().peer_slots),
        rig.gpu[0].slots,
        "slots of the peer"
    );
    assert_eq!(rig.gpu[0].param(P2PGPU_PARAM_SLOTS_AVAILABLE), 0);
    run();
    all.region.deregister();
}

fn sigbus_when_peers_hold_all() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let bo = gpu.create(2 * gpu.page, Placement::Vram);
    let map = bo.map();
    map.store(0, 42);
    while_peer_holds_all(&rig, || {
        assert_eq!(bo.info().slots, 0, "the CPU's slot was not taken");
        for offset in [0, gpu.page as usize] {
            let child = igt::fork(|| {
                map.load(offset);
            });
            assert_eq!(
                child.outcome(),
                Outcome::Killed(Signal::SIGBUS),
                "load at {offset:#x}"
            );
        }
    });
    assert_eq!(map.load(0), 42, "the page when the peer let go");
}

fn cpu_slots_yield_to_peers() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let bo = gpu.create(gpu.aperture(), Placement::Vram);
    let map = bo.map();
    mark(gpu, &map, 0..bo.pages(), Pattern(15));
    assert_eq!(u64::from(bo.info().slots), gpu.slots);
    while_peer_holds_all(&rig, || assert_eq!(bo.info().slots, 0));
    assert_marked(gpu, &map, 0..bo.pages(), Pattern(15));
}
