// SPDX-License-Identifier: GPL-2.0
//! What it costs to take and return 256 slots of an aperture of 4 GiB, by its fill.
//!
//! Scattered slots are taken from a random fill. Adjacent ones are taken from a hole of that size,
//! as a random fill leaves none.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

#[path = "../src/memory.rs"]
mod memory;
// In the kernel's own style; only a part of it is measured.
#[allow(dead_code)]
#[rustfmt::skip]
#[path = "../../../../drivers/gpu/drm/p2pgpu/slots.rs"]
mod slots;

use memory::HostMemory;
use slots::{SlotId, Slots, Took};

const TOTAL: u32 = 1 << 20;
const COUNT: u32 = 256;
/// Where the hole is.
const HOLE: u32 = TOTAL / 4 * 3;

/// Slots of which each is taken with a probability of `percent`, but for those of the hole.
fn filled(percent: u32, hole: bool) -> Slots<HostMemory> {
    let mut slots = Slots::new(TOTAL).expect("there is memory");
    let mut random = SmallRng::seed_from_u64(1);
    slots.take_many(TOTAL, |_| ());
    slots.give_back_many((0..TOTAL).filter(|id| {
        let free = random.random_range(0..100) >= percent;
        free || hole && (HOLE..HOLE + COUNT).contains(id)
    }));
    slots
}

fn scattered(slots: &mut Slots<HostMemory>, held: &mut Vec<SlotId>) {
    slots.take_many(COUNT, |took| match took {
        Took::Free(id) => held.push(id),
        Took::Idle(..) => unreachable!("no slot is idle"),
    });
    assert_eq!(held.len(), COUNT as usize);
    slots.give_back_many(black_box(&mut *held).drain(..));
}

fn contiguous(slots: &mut Slots<HostMemory>, held: &mut Vec<SlotId>) {
    let first = slots.take_run(COUNT).expect("there is a run");
    held.extend(first..first + COUNT);
    slots.give_back_many(black_box(&mut *held).drain(..));
}

fn take_and_return(c: &mut Criterion) {
    for (name, hole, work) in [
        ("scattered", false, scattered as fn(&mut _, &mut _)),
        ("contiguous", true, contiguous),
    ] {
        let mut group = c.benchmark_group(name);
        for percent in [0, 50, 95] {
            let mut slots = filled(percent, hole);
            let mut held = Vec::with_capacity(COUNT as usize);
            group.bench_function(BenchmarkId::from_parameter(percent), |b| {
                b.iter(|| work(&mut slots, &mut held));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = take_and_return
}
criterion_main!(benches);
