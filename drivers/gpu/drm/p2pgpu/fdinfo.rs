// SPDX-License-Identifier: GPL-2.0

//! What an open file shows in its fdinfo: the memory of the objects that it has handles to, and what
//! became of their peers.
//!
//! Only what is in VRAM can be purged: it is what makes room there.
//!
//! An object counts in `drm-…-vram` or `drm-…-memory`, where it is; one of another exporter in
//! neither. `drm-…-aperture` is no memory
//! beside these: it counts the slots that show pages of the objects, or are promised to them.

use crate::{
    driver::DrmDevice,
    evict,
    file::File,
    gem::{
        self,
        Object,
        Placement, //
    },
    peer, //
};
use kernel::{
    dma_buf::resv::Usage,
    drm::{
        self,
        fdinfo::{
            self,
            MemoryStats,
            Printer, //
        },
        gem::BaseObject, //
    },
    prelude::*,
    sync::atomic::Relaxed, //
};

/// The sums over the objects of a file.
#[derive(Default)]
struct Sums {
    vram: MemoryStats,
    memory: MemoryStats,
    aperture: MemoryStats,
    purgeable: u64,
    invalidations: u64,
    fall_backs: u64,
    refusals: u64,
}

impl Sums {
    fn add(&mut self, dev: &DrmDevice, obj: &Object) -> Result {
        let (size, shared) = (u64::try_from(obj.size())?, fdinfo::is_shared(obj));
        let busy = !obj.resv().is_idle(Usage::Bookkeep);
        let placement = obj.placement();
        let (shown, held) = match &placement {
            Placement::Vram(vram) => dev.aperture.usage(gem::named(obj, vram)?)?,
            Placement::System(_) | Placement::Imported(_) => (0, 0),
        };
        let (promised, purgeable) = {
            let state = obj.state.lock();
            self.invalidations += state.invalidations;
            self.fall_backs += state.fall_backs;
            self.refusals += state.refusals;
            let purgeable = !busy && evict::is_purgeable(&state);
            (peer::promised_slots(obj, &state)?, purgeable)
        };
        if purgeable {
            self.purgeable += size;
        }
        let stats = match &placement {
            Placement::Vram(_) => &mut self.vram,
            Placement::System(_) => &mut self.memory,
            // Its exporter's to show.
            Placement::Imported(_) => return Ok(()),
        };
        count(stats, shared, size, size, if busy { size } else { 0 });
        let [all, shown, held] = [promised.max(shown), shown, held].map(gem::slot_bytes);
        count(&mut self.aperture, shared, all, shown, held);
        Ok(())
    }
}

fn count(stats: &mut MemoryStats, shared: bool, size: u64, resident: u64, active: u64) {
    match shared {
        true => stats.shared += size,
        false => stats.private += size,
    }
    stats.resident += resident;
    stats.active += active;
}

/// Shows the file.
pub(crate) fn show(dev: &DrmDevice, file: &drm::File<File>, printer: &Printer) {
    let mut sums = Sums::default();
    file.for_each_object(|obj| {
        // It fails only for a size that no object has.
        let _ = sums.add(dev, obj);
    });
    sums.vram.purgeable = Some(sums.purgeable);
    printer.memory(c"vram", &sums.vram);
    printer.memory(c"memory", &sums.memory);
    printer.memory(c"aperture", &sums.aperture);
    let engine_ns = file.inner().engine_ns.load(Relaxed);
    printer.print(fmt!("drm-engine-copy:\t{engine_ns} ns\n"));
    for (name, number) in [
        ("invalidations", sums.invalidations),
        ("fall-backs", sums.fall_backs),
        ("refusals", sums.refusals),
    ] {
        printer.print(fmt!("p2pgpu-{name}:\t{number}\n"));
    }
}
