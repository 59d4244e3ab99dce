// SPDX-License-Identifier: GPL-2.0
//! Everything at once: threads that register, transfer, unmap, move and fork at random.

use crate::{ONE, PAGE, memory};
use nix::errno::Errno;
use p2pguest::gpu::{Bo, Placement};
use p2pguest::igt;
use p2pguest::map::Mapping;
use p2pguest::must;
use p2pguest::nic::{ACCESS_ALL, Region};
use p2pguest::pattern::Pattern;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: u64 = 8;
/// Pages of what is registered.
const PAGES: u64 = 16;

/// For how long: three of the user's CYCLES are a second.
fn time() -> Duration {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Duration::from_secs(p2p_init::cycles(&line).unwrap_or(12).into()) / 3
}

/// What a pointer leads to.
enum Kind<'r> {
    Object(Bo<'r>),
    Memory,
}

struct Dice {
    pattern: Pattern,
    thrown: u64,
}

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.thrown += 1;
        self.pattern.word(self.thrown) % limit
    }
}

/// Refusals that pass: others have what is wanted.
const PASSING: [Errno; 5] = [
    Errno::ENOSPC,
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::EINTR,
    Errno::ENOMEM,
];

fn register<'r>(rig: &'r Rig, map: &Mapping) -> Option<Region<'r>> {
    match rig.nic[1].__register_map(map, ACCESS_ALL) {
        Ok(region) => Some(region),
        Err(errno) => {
            assert!(PASSING.contains(&errno), "REG_USER: {errno}");
            None
        }
    }
}

/// Registers something, transfers to it, and lets something happen meanwhile. Returns whether the
/// bytes arrived.
fn round(rig: &Rig, dice: &mut Dice) -> bool {
    let (gpu, size) = (&rig.gpu[1], PAGES * PAGE);
    let placement = match Topology::current().has_route() {
        true => Placement::Vram,
        false => Placement::System,
    };
    let map = Mapping::anonymous(size as usize);
    let (kind, map) = match dice.below(3) {
        0 => (Kind::Memory, map),
        _ => {
            let bo = gpu.create(size, placement);
            bo.set_exportable(true);
            let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
            (Kind::Object(bo), map.replaced(gpu, offset))
        }
    };
    let Some(target) = register(rig, &map) else {
        return false;
    };
    let (source, bytes) = memory(rig, 0, size);
    let pattern = Pattern(dice.below(1 << 32));
    bytes.fill(pattern);
    let wire = rig.connect(4);
    wire.start_write(&source, &target);
    let mut map = Some(map);
    // What may be missing of the bytes, and what the transfer may end as.
    let mut whole = true;
    let mut target = Some(target);
    match (dice.below(7), &kind) {
        (0, _) => {
            map = None;
            whole = false;
        }
        (1, Kind::Object(bo)) if Topology::current().has_route() => {
            // Promises, and slots that drain, may be in the way.
            for to in [placement.other(), placement] {
                if let Err(errno) = bo.__move_to(to) {
                    assert!(PASSING.contains(&errno), "GEM_MOVE: {errno}");
                }
            }
        }
        (1 | 2, Kind::Memory) => {
            if let Some(map) = &map {
                // Other threads may hold any lock: the child takes none.
                let child = igt::fork(|| {
                    for page in 0..PAGES {
                        map.store((page * PAGE) as usize, page);
                    }
                });
                child.join();
            }
        }
        (3, Kind::Memory) => {
            map.as_ref().into_iter().for_each(Mapping::discard);
            whole = false;
        }
        (3, Kind::Object(bo)) => {
            let _ = bo.__set_peer(0);
            whole = false;
        }
        (4, _) => {
            map = map.map(Mapping::moved);
            whole = false;
        }
        (5, _) => {
            target = None;
            whole = false;
        }
        _ => {}
    }
    let done = wire.near.wait();
    let ends = [
        P2PNIC_STATUS_OK,
        P2PNIC_STATUS_REVOKED,
        P2PNIC_STATUS_REMOTE_ACCESS,
    ];
    assert!(ends.contains(&done.status), "{done:?}");
    if whole {
        assert_eq!(
            done.status,
            P2PNIC_STATUS_OK,
            "{:?}",
            target.map(|t| t.info())
        );
        let map = map.expect("whatever is whole is mapped");
        map.assert_holds(pattern);
        if let Kind::Object(bo) = &kind {
            bo.assert_holds(pattern);
        }
    }
    done.status == P2PNIC_STATUS_OK
}

pub fn stress() {
    let rig = Rig::open();
    let end = Instant::now() + time();
    let [rounds, arrived] = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (rig, rounds, arrived) = (&rig, &rounds, &arrived);
            scope.spawn(move || {
                let mut dice = Dice {
                    pattern: Pattern(ONE.0 + number),
                    thrown: 0,
                };
                while Instant::now() < end {
                    rounds.fetch_add(1, Ordering::Relaxed);
                    arrived.fetch_add(round(rig, &mut dice).into(), Ordering::Relaxed);
                }
            });
        }
    });
    println!("{rounds:?} rounds, of which {arrived:?} transfers worked");
    assert!(arrived.into_inner() != 0, "nothing arrived");
    // Slots, regions and faults are looked at when the test is over.
}
