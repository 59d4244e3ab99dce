// SPDX-License-Identifier: GPL-2.0
//! Tests of VRAM as a cache: who is evicted, who stays, and who comes back.

use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::{Attach, Direction, Importer};
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{RESERVED, Rig};
use p2pguest::submit::{Context, between, fill};
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::{refused, subtests};
use sha2::{Digest, Sha256};
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// Objects of four times the VRAM that there is are used, with every byte right.
    working_set_of_four_times_vram,
    /// The same by jobs that are queued faster than they run.
    working_set_of_jobs,
    /// The object that was not used for the longest time leaves first.
    coldest_leaves_first,
    /// Objects that may not be evicted, and those that somebody relies on, stay.
    others_stay,
    /// A pinned object stays, and may leave again when it is no longer pinned.
    pinned_stays,
    /// More than all that may leave would make room for: ENOSPC, and nobody leaves.
    what_can_never_fit_evicts_nobody,
    /// What the engine uses comes back, unless it was moved away on purpose.
    comes_back_when_used,
    /// CPU mappings show the bytes before, during and after an eviction.
    cpu_mapping_survives,
    /// A NIC that has registered an object is told, and maps it again in VRAM.
    registered_comes_back,
    /// Objects are evicted while NICs write into them.
    evict_during_transfers,
    /// GEM_MOVE into full VRAM makes room too.
    move_makes_room,
    /// What was another client's is cleared.
    evicted_memory_is_cleared,
    /// What is not needed leaves first, without a copy, and is zero then.
    unneeded_leaves_first,
    /// What is needed again in time has kept its bytes.
    unneeded_for_a_while,
    /// What is not needed stays where somebody relies on it.
    unneeded_stays_if_pinned,
    /// 32 processes use more VRAM than there is, at the same time.
    processes_share_vram,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

const MIB: u64 = 1 << 20;

fn is_in_vram(bo: &Bo<'_>) -> bool {
    bo.info().placement == P2PGPU_PLACEMENT_VRAM
}

fn digest(pattern: u64, size: u64) -> [u8; 32] {
    let size = usize::try_from(size).expect("a size in memory");
    Sha256::digest(Pattern(pattern).bytes(0, size)).into()
}

/// Small enough for a copy of it in memory.
const SIZE: u64 = 2 * MIB;

/// Objects with a pattern of their own.
fn objects(gpu: &Gpu, count: u64) -> Vec<Bo<'_>> {
    let made = (0..count).map(|number| {
        let bo = gpu.create_evictable(SIZE);
        bo.fill(Pattern(number));
        bo
    });
    made.collect()
}

fn working_set_of_four_times_vram() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(8 * SIZE);
    let set = objects(&gpu, 32);
    for round in 0..2 {
        for (number, bo) in (0..).zip(&set) {
            assert_eq!(
                bo.checksum(0, SIZE),
                digest(number, SIZE),
                "object {number}, round {round}"
            );
            assert!(is_in_vram(bo), "object {number} came back");
        }
    }
    let evictions = set.iter().map(|bo| bo.info().evictions).sum::<u32>();
    assert!(evictions >= 24 + 2 * 32 - 8, "{evictions} evictions");
}

fn working_set_of_jobs() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(8 * SIZE);
    let set: Vec<_> = (0..32).map(|_| gpu.create_evictable(SIZE)).collect();
    let contexts = [0, 1, 2].map(|_| Context::new(&gpu));
    let one = gpu.create(SIZE, Placement::System);
    contexts[0].run(&[fill(&one, 1, SIZE)]);
    const ROUNDS: u32 = 6;
    for round in 0..ROUNDS {
        for (number, bo) in set.iter().enumerate() {
            let context = &contexts[(number + round as usize) % contexts.len()];
            let add = between(P2PGPU_OP_ADD_U32, &one, bo, SIZE);
            // Each context takes so many jobs only.
            wait_until("there is room", || {
                context.__submit(&[add], &[], &[]) != Err(Errno::EBUSY)
            });
        }
    }
    let expected: [u8; 32] = Sha256::digest(ROUNDS.to_le_bytes().repeat(SIZE as usize / 4)).into();
    for (number, bo) in set.iter().enumerate() {
        assert_eq!(bo.checksum(0, SIZE), expected, "object {number}");
        assert_eq!(bo.info().losses, 0);
    }
    let states = contexts.each_ref().map(|context| context.query().state);
    assert_eq!(states, [P2PGPU_CONTEXT_OK; 3]);
    let evictions = set.iter().map(|bo| bo.info().evictions).sum::<u32>();
    println!("{evictions} evictions");
    assert!(evictions > 32, "{evictions} evictions");
}

fn coldest_leaves_first() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(4 * SIZE);
    let set = objects(&gpu, 4);
    for number in [1, 0, 3, 2] {
        set[number].checksum(0, SIZE);
    }
    let mut new = Vec::new();
    for number in [1, 0, 3, 2] {
        assert!(is_in_vram(&set[number]), "object {number} before its turn");
        new.push(gpu.create_evictable(SIZE));
        assert!(!is_in_vram(&set[number]), "object {number} left");
        assert_eq!(set[number].info().evictions, 1);
    }
}

fn others_stay() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(4 * SIZE);
    let plain = gpu.create(SIZE, Placement::Vram);
    let reserved = gpu.create_evictable(SIZE);
    reserved.set_peer(RESERVED);
    let strict = gpu.create_evictable(SIZE);
    strict.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    let last = gpu.create_evictable(SIZE);
    let _new = gpu.create(SIZE, Placement::Vram);
    assert!(!is_in_vram(&last));
    for (name, bo) in [
        ("plain", &plain),
        ("reserved", &reserved),
        ("strict", &strict),
    ] {
        refused(gpu.__create(SIZE, Placement::Vram).map(drop), Errno::ENOSPC);
        assert!(is_in_vram(bo), "{name} stays");
        assert_eq!(bo.info().evictions, 0, "{name}");
    }
    // They leave when nobody relies on them any more.
    for bo in [&reserved, &strict] {
        bo.set_peer(0);
    }
    let _more = gpu.create(2 * SIZE, Placement::Vram);
    assert!(!is_in_vram(&reserved) && !is_in_vram(&strict));
}

fn pinned_stays() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let _ballast = gpu.fill_all_but(SIZE);
    let bo = gpu.create_evictable(SIZE);
    bo.set_exportable(true);
    let fd = bo.export();
    let importer = Importer::attach(&fd, Attach::peer(rig.nic[0].pci()));
    importer.pin();
    if is_in_vram(&bo) {
        refused(gpu.__create(SIZE, Placement::Vram).map(drop), Errno::ENOSPC);
        assert!(is_in_vram(&bo));
    } else {
        // No route: it is pinned where the importer can use it.
        assert!(!Topology::current().has_route());
    }
    importer.unpin();
    let _new = gpu.create(SIZE, Placement::Vram);
    assert!(!is_in_vram(&bo));
}

fn what_can_never_fit_evicts_nobody() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(4 * SIZE);
    let set = objects(&gpu, 4);
    refused(
        gpu.__create(4 * SIZE + gpu.page, Placement::Vram).map(drop),
        Errno::ENOSPC,
    );
    for bo in &set {
        assert!(is_in_vram(bo));
        assert_eq!(bo.info().evictions, 0);
    }
}

fn comes_back_when_used() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(2 * SIZE);
    let set = objects(&gpu, 2);
    let new = gpu.create_evictable(2 * SIZE);
    assert!(!is_in_vram(&set[0]) && !is_in_vram(&set[1]));
    // One is to stay away, and there is room for both.
    set[1].move_to(Placement::System);
    new.close();
    for (number, bo) in (0..).zip(&set) {
        assert_eq!(bo.checksum(0, SIZE), digest(number, SIZE));
    }
    assert!(is_in_vram(&set[0]), "evicted");
    assert!(!is_in_vram(&set[1]), "moved");
    // Without room it is used where it is.
    let all = gpu.create(2 * SIZE, Placement::Vram);
    assert_eq!(set[0].checksum(0, SIZE), digest(0, SIZE));
    assert!(!is_in_vram(&set[0]));
    all.close();
    set[0].move_to(Placement::Vram);
    assert_eq!(set[0].checksum(0, SIZE), digest(0, SIZE));
}

fn cpu_mapping_survives() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(SIZE);
    let bo = gpu.create_evictable(SIZE);
    let map = bo.map();
    let step = usize::try_from(gpu.page).expect("a page in memory");
    let offsets = || (0..).step_by(step).take(64);
    for (value, offset) in (0..).zip(offsets()) {
        map.store(offset, value);
    }
    let new = gpu.create(SIZE, Placement::Vram);
    assert!(!is_in_vram(&bo));
    for (value, offset) in (0..).zip(offsets()) {
        assert_eq!(map.load(offset), value, "evicted");
        map.store(offset, value + 1000);
    }
    new.close();
    // There is room again, but CPUs do not bring it back.
    assert_eq!(map.load(0), 1000);
    assert!(!is_in_vram(&bo), "used by the CPU only");
    bo.checksum(0, SIZE);
    assert!(is_in_vram(&bo));
    for (value, offset) in (1000..).zip(offsets()) {
        assert_eq!(map.load(offset), value, "back");
    }
}

/// An object of GPU 1 that may be evicted, and its region of NIC 1.
fn evictable_sink(rig: &Rig, size: u64) -> (Bo<'_>, Region<'_>) {
    let sink = rig.gpu[1].create_evictable(size);
    sink.set_exportable(true);
    let region = rig.nic[1].register(&sink.export(), ACCESS_ALL, size);
    (sink, region)
}

fn registered_comes_back() {
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let size = rig.bulk_size();
    let (sink, region) = evictable_sink(&rig, size);
    let source = rig.register(0, size, Placement::Vram);
    let wire = rig.connect(4);
    let ballast = gpu.fill_all_but(0);
    for round in 0..3 {
        source.bo.fill(Pattern(round));
        wire.write(&source.region, &region);
        let has_route = Topology::current().has_route();
        assert_eq!(is_in_vram(&sink), has_route, "round {round}");
        assert_eq!(sink.checksum(0, size), digest(round, size));
        assert!(is_in_vram(&sink) || !has_route);
        if has_route {
            let before = sink.info().invalidations;
            gpu.create(size, Placement::Vram).close();
            assert!(!is_in_vram(&sink), "round {round}");
            assert!(sink.info().invalidations > before, "the NIC was told");
        }
    }
    ballast.close();
}

fn evict_during_transfers() {
    let rig = Rig::open();
    let gpu = &rig.gpu[1];
    let size = rig.bulk_size();
    let (sink, region) = evictable_sink(&rig, size);
    let source = rig.register(0, size, Placement::Vram);
    let wire = rig.connect(4);
    let _ballast = gpu.fill_all_but(0);
    for round in 0..4 {
        source.bo.fill(Pattern(round));
        wire.start_write(&source.region, &region);
        // While the bytes arrive; the NIC has it come back each time.
        for _ in 0..3 {
            gpu.__create(size, Placement::Vram).map(Bo::close).ok();
        }
        wire.near.expect(P2PNIC_STATUS_OK);
        assert_eq!(sink.checksum(0, size), digest(round, size), "round {round}");
    }
    assert_ne!(sink.info().evictions, 0);
}

fn move_makes_room() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(SIZE);
    let cold = objects(&gpu, 1);
    let bo = gpu.create(SIZE, Placement::System);
    bo.fill(Pattern(7));
    bo.move_to(Placement::Vram);
    assert!(is_in_vram(&bo) && !is_in_vram(&cold[0]));
    assert_eq!(bo.checksum(0, SIZE), digest(7, SIZE));
    // That one may not leave: there is no room for the other.
    refused(cold[0].__move_to(Placement::Vram), Errno::ENOSPC);
    assert_eq!(cold[0].checksum(0, SIZE), digest(0, SIZE));
}

fn evicted_memory_is_cleared() {
    let gpu = Gpu::open(0);
    let other = gpu.reopen();
    let _ballast = gpu.fill_all_but(4 * SIZE);
    let zeros: [u8; 32] = Sha256::digest(vec![0; 4096]).into();
    let _secrets = objects(&gpu, 4);
    let new = other.create_evictable(4 * SIZE);
    for page in 0..new.pages() {
        assert_eq!(new.checksum(page * 4096, 4096), zeros, "page {page}");
    }
}

/// Bytes that the device has written to system memory.
fn written(gpu: &Gpu) -> u64 {
    let counters = Debugfs::default().counters("p2pgpu", gpu.pci());
    counters.expect("debugfs")["dma_write_bytes"]
}

fn is_zero(bo: &Bo<'_>) -> bool {
    bo.download(0, 4096).iter().all(|byte| *byte == 0)
}

fn unneeded_leaves_first() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let _ballast = gpu.fill_all_but(4 * SIZE);
    let set = objects(gpu, 4);
    // It is not the coldest, and others look at it.
    let warm = &set[3];
    warm.set_exportable(true);
    let map = warm.map();
    assert_eq!(map.load(8), Pattern(3).word(1));
    let importer = Importer::attach(&warm.export(), Attach::peer(rig.nic[0].pci()));
    if Topology::current().has_route() {
        importer.map(Direction::Both);
    }
    assert!(warm.advise(P2PGPU_MADV_DONTNEED));
    assert!(warm.advise(P2PGPU_MADV_DONTNEED), "nothing has happened");
    let before = written(gpu);
    let new = gpu.create_evictable(SIZE);
    assert!(!is_in_vram(warm) && set[..3].iter().all(is_in_vram));
    // Fences are written there too.
    let written = written(gpu) - before;
    assert!(written < 4096, "{written} bytes were copied for it");
    assert_eq!((warm.info().evictions, warm.info().losses), (1, 0));
    assert_eq!((importer.info().mappings, map.load(8)), (0, 0));
    // It says so until it is needed again.
    assert!(!warm.advise(P2PGPU_MADV_DONTNEED));
    assert!(!warm.advise(P2PGPU_MADV_WILLNEED));
    assert!(warm.advise(P2PGPU_MADV_WILLNEED));
    assert!(is_zero(warm));
    // It is an object like any other.
    new.close();
    warm.fill(Pattern(9));
    assert!(is_in_vram(warm));
    let _new = gpu.create(4 * SIZE, Placement::Vram);
    assert_eq!(warm.checksum(0, SIZE), digest(9, SIZE));
    for (number, bo) in (0..3).zip(&set) {
        assert_eq!(bo.checksum(0, SIZE), digest(number, SIZE));
    }
}

fn unneeded_for_a_while() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(2 * SIZE);
    let set = objects(&gpu, 2);
    assert!(set[1].advise(P2PGPU_MADV_DONTNEED));
    assert!(set[1].advise(P2PGPU_MADV_WILLNEED));
    let _new = gpu.create_evictable(SIZE);
    assert!(!is_in_vram(&set[0]) && is_in_vram(&set[1]));
    // One that has left with its bytes before keeps them.
    assert!(set[0].advise(P2PGPU_MADV_DONTNEED));
    assert_eq!(set[0].checksum(0, SIZE), digest(0, SIZE));
    assert!(set[0].advise(P2PGPU_MADV_WILLNEED));
    assert_eq!(set[1].checksum(0, SIZE), digest(1, SIZE));
}

fn unneeded_stays_if_pinned() {
    let rig = Rig::open();
    igt::require(Topology::current().has_route(), "a peer-to-peer route");
    let gpu = &rig.gpu[0];
    let _ballast = gpu.fill_all_but(SIZE);
    let set = objects(gpu, 1);
    set[0].set_exportable(true);
    let importer = Importer::attach(&set[0].export(), Attach::peer(rig.nic[0].pci()));
    importer.pin();
    assert!(set[0].advise(P2PGPU_MADV_DONTNEED));
    refused(gpu.__create(SIZE, Placement::Vram).map(drop), Errno::ENOSPC);
    assert_eq!(set[0].checksum(0, SIZE), digest(0, SIZE));
    importer.unpin();
    gpu.create(SIZE, Placement::Vram).close();
    assert!(!set[0].advise(P2PGPU_MADV_WILLNEED));
}

const PROCESSES: u64 = 32;

/// Fills two objects in turns and looks at them again.
fn process(number: u64) {
    let gpu = Gpu::open(0);
    let size = 16 * gpu.page;
    let pair = [gpu.create_evictable(size), gpu.create_evictable(size)];
    for round in 0..6 {
        for (index, bo) in (0..).zip(&pair) {
            bo.fill(Pattern(number * 100 + round * 2 + index));
        }
        for (index, bo) in (0..).zip(&pair) {
            let expected = digest(number * 100 + round * 2 + index, size);
            assert_eq!(bo.checksum(0, size), expected, "process {number}");
        }
    }
}

fn processes_share_vram() {
    let gpu = Gpu::open(0);
    let _ballast = gpu.fill_all_but(PROCESSES / 2 * 16 * gpu.page);
    let all: Vec<_> = (0..PROCESSES)
        .map(|number| igt::fork(|| process(number)))
        .collect();
    for child in all {
        child.join();
    }
}
