// SPDX-License-Identifier: GPL-2.0

//! Measures the slots of an aperture against drm_mm and the GPU buddy allocator, once, when the
//! module is loaded.
//!
//! Each of them has 4 GiB in pages, of which some are in use: the same, at random, for all three.
//! In each round each of them takes and returns [`COUNT`] pages, one after the other. A line of the
//! kernel log for each has the times of all rounds:
//!
//! ```text
//! p2pgpu_bench: fill=95 layout=scattered who=slots ns=2310,2290,...
//! ```
//!
//! Pages side by side are taken from a hole of that size, as a random fill leaves none.

use core::ffi::c_ulong;
use kernel::{
    fmt,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

#[path = "../memory.rs"]
mod memory;
#[allow(dead_code, reason = "only what takes and returns slots is measured")]
#[path = "../slots.rs"]
mod slots;

mod rival;

use memory::KernelMemory;
use rival::{
    Kind,
    Rival, //
};
use slots::{
    SlotId,
    Slots,
    Took, //
};

/// Pages of the space.
const PAGES: u32 = 1 << 20;

/// Pages to take.
const COUNT: u32 = 256;

/// Where the hole for pages side by side is.
const HOLE: u32 = PAGES / 4 * 3;

/// How much of the space is in use, percent.
const FILLS: [u32; 3] = [0, 50, 95];

/// Rounds that count, after [`WARM_UP`] others.
const ROUNDS: usize = 51;
const WARM_UP: usize = 3;

/// Who is measured: the buddy allocator is asked for all pages at once, and page by page.
const NAMES: [&str; 4] = ["slots", "drm_mm", "gpu_buddy", "gpu_buddy_4k"];

/// The bits of a word of the C bitmaps.
const BITS: u32 = c_ulong::BITS;

module! {
    type: Bench,
    name: "p2pgpu_bench",
    authors: ["The p2pgpu developers"],
    description: "Benchmark of p2pgpu's aperture slots",
    license: "GPL",
}

struct Bench;

impl kernel::Module for Bench {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        for layout in [Layout::Scattered, Layout::Contiguous] {
            for fill in FILLS {
                measure(layout, fill)?;
            }
        }
        Ok(Self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Scattered,
    Contiguous,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::Scattered => "scattered",
            Self::Contiguous => "contiguous",
        }
    }
}

/// Pages in use: each with a probability of `percent`, by a generator that always starts the same.
fn used(layout: Layout, percent: u32) -> Result<KVVec<c_ulong>> {
    let mut words = KVVec::from_elem(0, usize::try_from(PAGES / BITS)?, GFP_KERNEL)?;
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let hole = HOLE / BITS..(HOLE + COUNT) / BITS;
    for (index, word) in (0u32..).zip(words.iter_mut()) {
        for bit in 0..BITS {
            // Marsaglia's xorshift.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if (random >> 32) % 100 < u64::from(percent) {
                *word |= 1 << bit;
            }
        }
        if layout == Layout::Contiguous && hole.contains(&index) {
            *word = 0;
        }
    }
    Ok(words)
}

/// The slots, those in `used` taken.
fn fill_slots(used: &[c_ulong]) -> Result<Slots<KernelMemory>> {
    let mut slots = Slots::new(PAGES)?;
    slots.take_many(PAGES, |_| ());
    let free = (0u32..)
        .zip(used)
        .flat_map(|(index, &word)| (0..BITS).map(move |bit| (index * BITS + bit, word >> bit)))
        .filter_map(|(id, bits)| (bits & 1 == 0).then_some(id));
    slots.give_back_many(free);
    Ok(slots)
}

/// Takes and returns slots as the driver does: their numbers are kept meanwhile.
fn round(slots: &mut Slots<KernelMemory>, layout: Layout, held: &mut KVVec<SlotId>) -> Result {
    match layout {
        Layout::Scattered => {
            slots.take_many(COUNT, |took| {
                if let Took::Free(id) = took {
                    // There is room for all: what is missing is found below.
                    let _ = held.push_within_capacity(id);
                }
            });
        }
        Layout::Contiguous => {
            let first = slots.take_run(COUNT).ok_or(ENOSPC)?;
            for id in first..first + COUNT {
                held.push_within_capacity(id).map_err(|_| ENOMEM)?;
            }
        }
    }
    if held.len() != usize::try_from(COUNT)? {
        return Err(ENOSPC);
    }
    slots.give_back_many(held.iter().copied());
    held.clear();
    Ok(())
}

fn measure(layout: Layout, fill: u32) -> Result {
    let used = used(layout, fill)?;
    let mut slots = fill_slots(&used)?;
    let mm = Rival::new(Kind::DrmMm, &used, COUNT)?;
    let buddy = Rival::new(Kind::Buddy, &used, COUNT)?;
    let buddy_pages = Rival::new(Kind::BuddyPages, &used, COUNT)?;
    let contiguous = layout == Layout::Contiguous;

    let mut held = KVVec::with_capacity(usize::try_from(COUNT)?, GFP_KERNEL)?;
    let mut times = [const { KVec::new() }; 4];
    for number in 0..WARM_UP + ROUNDS {
        let found = [
            time(|| round(&mut slots, layout, &mut held))?,
            time(|| mm.round(contiguous))?,
            time(|| buddy.round(contiguous))?,
            time(|| buddy_pages.round(contiguous))?,
        ];
        if number >= WARM_UP {
            for (times, time) in times.iter_mut().zip(found) {
                times.push(time, GFP_KERNEL)?;
            }
        }
    }
    for (who, times) in NAMES.iter().zip(&times) {
        pr_info!(
            "fill={fill} layout={} who={who} ns={}\n",
            layout.name(),
            List(times)
        );
    }
    Ok(())
}

/// How long it takes, nanoseconds.
fn time(work: impl FnOnce() -> Result) -> Result<i64> {
    let start = Instant::<Monotonic>::now();
    work()?;
    Ok(start.elapsed().as_nanos())
}

/// Numbers with commas between.
struct List<'a>(&'a [i64]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{number}")?;
        }
        Ok(())
    }
}
