// SPDX-License-Identifier: GPL-2.0
//! What jobs and evictions take, and how long peers are without an object that moves.
//!
//! ```text
//! topic=submission case=in-turn accesses=1.00 ns=81234,80211,...
//! topic=eviction case=copy bytes=1048576 ns=...
//! topic=evictions case=copy bytes=1048576 ns=...
//! topic=move case=remapped bytes=4096 importers=4 ns=...
//! ```

use anyhow::{Context as _, Result, ensure};
use p2pguest::debugfs::Debugfs;
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::submit::{Context, binary, fill};
use p2pguest::swsync;
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use std::thread;
use std::time::{Duration, Instant};

/// Rounds of each kind.
const ROUNDS: usize = 15;
/// Of evictions there are more: what takes turns with the host's other work takes much longer now
/// and then.
const EVICTIONS: usize = 41;
/// Submissions in a round.
const JOBS: u64 = 12;
/// Sizes of objects that are evicted, bytes.
const EVICTED: [u64; 4] = [64 << 10, 1 << 20, 4 << 20, ALL_EVICTED];
/// What many are evicted for at once, bytes.
const ALL_EVICTED: u64 = 16 << 20;
/// Memory that is touched at once, bytes.
const TOUCHED: u64 = 16 << 20;
/// Sizes of what is moved, pages, and numbers of importers that map it again.
const MOVED: [u64; 5] = [1, 16, 64, 256, 1024];
const IMPORTERS: [usize; 4] = [1, 2, 4, 8];

fn ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn tell(what: &str, times: &[u64]) {
    let list: Vec<_> = times.iter().map(u64::to_string).collect();
    println!("{what} ns={}", list.join(","));
}

/// Measures all, on one GPU; `nic` is who maps its objects.
pub fn run(gpu: &Gpu, nic: PciAddress) -> Result<()> {
    submissions(gpu)?;
    touch_memory(gpu)?;
    for bytes in EVICTED {
        evictions(gpu, "eviction", bytes, 1, gpu.page)?;
        let count = ALL_EVICTED / bytes;
        evictions(gpu, "evictions", bytes, count, ALL_EVICTED)?;
    }
    for pages in MOVED {
        for importers in IMPORTERS {
            moves(gpu, nic, pages, importers)?;
        }
    }
    Ok(())
}

/// How jobs are submitted.
#[derive(Clone, Copy)]
enum Case {
    /// Each when the one before has ended
    InTurn,
    /// All at once, in one context
    Queued,
    /// Ready all at once, each in a context of its own
    Batched,
}

impl Case {
    const ALL: [Self; 3] = [Self::InTurn, Self::Queued, Self::Batched];

    fn name(self) -> &'static str {
        match self {
            Self::InTurn => "in-turn",
            Self::Queued => "queued",
            Self::Batched => "batched",
        }
    }
}

fn submissions(gpu: &Gpu) -> Result<()> {
    let contexts = (0..JOBS)
        .map(|_| Context::__new(gpu))
        .collect::<Result<Vec<_>, _>>()?;
    let bos = (0..JOBS)
        .map(|_| gpu.__create(gpu.page, Placement::Vram))
        .collect::<Result<Vec<_>, _>>()?;
    let debugfs = Debugfs::default();
    let accesses = || -> Result<u64> {
        let counters = debugfs.counters("p2pgpu", gpu.pci())?;
        Ok(counters["reg_reads"] + counters["reg_writes"])
    };
    let first = accesses()?;
    let asking = accesses()? - first;
    let mut times = Case::ALL.map(|_| Vec::new());
    let mut counted = Case::ALL.map(|_| 0);
    for _ in 0..ROUNDS {
        for (index, case) in Case::ALL.into_iter().enumerate() {
            let before = accesses()?;
            times[index].push(round(gpu, case, &contexts, &bos)? / JOBS);
            counted[index] += accesses()? - before - asking;
        }
    }
    for (index, case) in Case::ALL.into_iter().enumerate() {
        let each = counted[index] as f64 / (ROUNDS as u64 * JOBS) as f64;
        let what = format!("topic=submission case={} accesses={each:.2}", case.name());
        tell(&what, &times[index]);
    }
    Ok(())
}

/// The nanoseconds of [`JOBS`] jobs, from the first submission, or from when they may run,
/// to the end of the last.
fn round(gpu: &Gpu, case: Case, contexts: &[Context<'_>], bos: &[Bo<'_>]) -> Result<u64> {
    let wait = |done: &Syncobj<'_>| done.__wait(PATIENCE, 0).context("SYNCOBJ_WAIT");
    let dones = bos
        .iter()
        .map(|_| Syncobj::__new(gpu, 0))
        .collect::<Result<Vec<_>, _>>()?;
    let timeline = swsync::Timeline::new();
    let gate = Syncobj::__new(gpu, 0)?;
    gate.import_sync_file(&timeline.fence(1));
    let ins = [binary(&gate)];
    let mut start = Instant::now();
    for (index, (bo, done)) in bos.iter().zip(&dones).enumerate() {
        let (context, ins) = match case {
            Case::InTurn | Case::Queued => (&contexts[0], &ins[..0]),
            Case::Batched => (&contexts[index], &ins[..]),
        };
        context
            .__submit(&[fill(bo, 1, 4)], ins, &[binary(done)])
            .context("SUBMIT")?;
        if matches!(case, Case::InTurn) {
            wait(done)?;
        }
    }
    if matches!(case, Case::Batched) {
        start = Instant::now();
        timeline.advance(1);
    }
    for done in &dones {
        wait(done)?;
    }
    Ok(ns(start))
}

/// Has the GPU write all system memory that is free. Guest and device are given it page by page
/// at their first touch, which takes about as long as copying to it and depends on what of it was
/// used before.
fn touch_memory(gpu: &Gpu) -> Result<()> {
    let from = gpu.__create(TOUCHED, Placement::Vram)?;
    let mut touched = Vec::new();
    while let Ok(to) = gpu.__create(TOUCHED, Placement::System) {
        from.__copy_to(&to, TOUCHED)?;
        touched.push(to);
    }
    ensure!(!touched.is_empty(), "no system memory");
    Ok(())
}

/// Objects are evicted by one of `room` bytes, which waits for that, as it is cleared behind them.
/// Beside it, such an object is made where there is room: what evictions take *alone* is the
/// difference. The same bytes are copied to system memory, and moved there, each time when they
/// have just come back to VRAM.
fn evictions(gpu: &Gpu, topic: &str, bytes: u64, count: u64, room: u64) -> Result<()> {
    let (mut cold, mut to) = (Vec::new(), Vec::new());
    for _ in 0..count {
        cold.push(gpu.__create_evictable(bytes)?);
        to.push(gpu.__create(bytes, Placement::System)?);
    }
    let free = gpu.__param(P2PGPU_PARAM_VRAM_FREE)?;
    let _ballast = gpu.__create(free, Placement::Vram)?;
    let mut times: [(&str, Vec<u64>); 5] =
        ["eviction", "create", "alone", "copy", "move"].map(|case| (case, Vec::new()));
    for round in 0..=EVICTIONS {
        let start = Instant::now();
        let new = gpu.__create(room, Placement::Vram)?;
        let evicted = ns(start);
        for bo in &cold {
            let placement = bo.__info()?.placement;
            ensure!(placement == P2PGPU_PLACEMENT_SYSTEM, "one was not evicted");
        }
        new.close();
        let start = Instant::now();
        let new = gpu.__create(room, Placement::Vram)?;
        let created = ns(start);
        new.close();
        for bo in &cold {
            // It comes back.
            bo.__checksum(0, gpu.page)?;
        }
        let start = Instant::now();
        for (bo, to) in cold.iter().zip(&to) {
            bo.__copy_to(to, bytes)?;
        }
        let copied = ns(start);
        let start = Instant::now();
        for bo in &cold {
            bo.__move_to(Placement::System)?;
        }
        let moved = ns(start);
        for bo in &cold {
            bo.__move_to(Placement::Vram)?;
        }
        if round > 0 {
            let alone = evicted.saturating_sub(created);
            let round = [evicted, created, alone, copied, moved];
            for ((_, all), one) in times.iter_mut().zip(round) {
                all.push(one);
            }
        }
    }
    for (case, times) in &times {
        tell(&format!("topic={topic} case={case} bytes={bytes}"), times);
    }
    Ok(())
}

/// From when the first importer is told that an object moves until the last has mapped it again.
fn moves(gpu: &Gpu, nic: PciAddress, pages: u64, count: usize) -> Result<()> {
    let bytes = pages * gpu.page;
    let bo = gpu.__create(bytes, Placement::Vram)?;
    bo.__set_peer(P2PGPU_PEER_EXPORTABLE)?;
    let fd = bo.__export()?;
    let mut importers = Vec::new();
    for _ in 0..count {
        let how = Attach::peer(nic).answer(Answer::Remap, 0);
        let importer = Importer::__attach(&fd, how)?;
        importer.__map(Direction::Both)?;
        importers.push(importer);
    }
    let mut times = Vec::new();
    let mut remaps = 0;
    for _ in 0..ROUNDS {
        for placement in [Placement::System, Placement::Vram] {
            bo.__move_to(placement)?;
            remaps += 1;
            let mut last = 0;
            for importer in &importers {
                let start = Instant::now();
                while importer.__info()?.remaps < remaps {
                    ensure!(start.elapsed() < Duration::from_secs(20), "no new mapping");
                    thread::sleep(Duration::from_millis(1));
                }
                last = last.max(importer.__info()?.remap_ns);
            }
            if placement == Placement::Vram {
                times.push(last);
            }
        }
    }
    let what = format!("topic=move case=remapped bytes={bytes} importers={count}");
    tell(&what, &times);
    Ok(())
}
