// SPDX-License-Identifier: GPL-2.0

//! The dma-buf exporter: importers are given slots of the aperture, or system memory.
//!
//! An importer that can be a peer gets the object where it is. One that cannot, as it is static,
//! cannot use addresses without pages, or has no route to the aperture, gets it in system memory,
//! where it is migrated first; GEM_INFO counts how often that happened.

use crate::{
    aperture,
    driver::Gpu,
    gem::{
        self,
        Bo,
        Object,
        Placement,
        PlacementKind,
        State, //
    },
    migrate,
    slots::SlotId,
    vram::VramPages, //
};
use core::ops::DerefMut;
use kernel::{
    dma::DataDirection,
    dma_buf::{
        exporter::{
            Exporter,
            ImporterInfo,
            Table, //
        },
        resv::Held, //
    },
    pci::p2pdma::Route,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    uapi, //
};

/// What a mapping holds until its importer undoes it.
pub(crate) enum Mapping {
    /// Slots, and the pages that they show.
    Aperture {
        slots: KVVec<SlotId>,
        _vram: Arc<VramPages>,
    },
    /// Nothing: the pages stay with the table.
    System,
}

/// Whether the importer can be given slots.
fn is_peer(gpu: &Gpu<'_>, importer: &ImporterInfo<'_>) -> bool {
    importer.is_peer() && gpu.provider.route(importer.device()) != Route::None
}

/// Runs `f` with the hardware; `ENODEV` if the device is gone, or going.
fn with_live_gpu<R>(obj: &Object, f: impl FnOnce(&Gpu<'_>) -> Result<R>) -> Result<R> {
    if obj.dev().is_leaving() {
        return Err(ENODEV);
    }
    gem::with_gpu(obj, |gpu| f(gpu.ok_or(ENODEV)?))
}

fn check_flag(obj: &Object) -> Result {
    if obj.state.lock().peer_flags & uapi::P2PGPU_PEER_EXPORTABLE == 0 {
        return Err(EPERM);
    }
    Ok(())
}

impl Exporter for Bo {
    type Source = Object;
    /// Times that the importer pins the object.
    type Attachment = Atomic<u32>;
    type Mapping = Mapping;

    fn attach(obj: &Object, importer: &ImporterInfo<'_>) -> Result<Atomic<u32>> {
        with_live_gpu(obj, |_| check_flag(obj))?;
        {
            let mut importers = obj.importers.lock();
            importers.count = importers.count.checked_add(1).ok_or(EOVERFLOW)?;
            importers.dmabuf = Some(importer.dmabuf().into());
        }
        let attached = obj.dev().attached(obj);
        if attached.is_err() {
            detach(obj);
        }
        attached.map(|()| Atomic::new(0))
    }

    fn detach(obj: &Object, _pins: &Atomic<u32>) {
        obj.dev().detached(obj);
        detach(obj);
    }

    fn pin(
        obj: &Object,
        importer: &ImporterInfo<'_>,
        pins: &Atomic<u32>,
        held: Held<'_>,
    ) -> Result {
        with_live_gpu(obj, |gpu| {
            check_flag(obj)?;
            if !is_peer(gpu, importer) {
                // The core takes EBUSY for a bug of ours.
                migrate::migrate(obj, gpu, held, PlacementKind::System).map_err(|error| {
                    if error == EBUSY {
                        ENOSPC
                    } else {
                        error
                    }
                })?;
            }
            let mut state = obj.state.lock();
            state.pins = state.pins.checked_add(1).ok_or(ENOSPC)?;
            pins.fetch_add(1, Relaxed);
            Ok(())
        })
    }

    fn unpin(obj: &Object, pins: &Atomic<u32>, _held: Held<'_>) {
        pins.fetch_sub(1, Relaxed);
        let mut state = obj.state.lock();
        state.pins = state.pins.saturating_sub(1);
    }

    fn map<'a>(
        obj: &Object,
        importer: &'a ImporterInfo<'a>,
        pins: &Atomic<u32>,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<(Table<'a>, Mapping)> {
        with_live_gpu(obj, |gpu| {
            check_flag(obj)?;
            if pins.load(Relaxed) == 0 && !importer.can_be_invalidated() {
                // It could neither be told to let go nor does it hold the object in place.
                return Err(EOPNOTSUPP);
            }
            if !is_peer(gpu, importer) {
                migrate::migrate(obj, gpu, held, PlacementKind::System)?;
            }
            match obj.placement() {
                Placement::Vram(vram) => map_aperture(obj, gpu, importer, vram, held, dir),
                Placement::System(pages) => {
                    let table = importer.map_pages(pages, dir)?;
                    mapped(obj).system_maps += 1;
                    Ok((table, Mapping::System))
                }
            }
        })
    }

    fn unmap(obj: &Object, _pins: &Atomic<u32>, _held: Held<'_>, mapping: Mapping) {
        {
            let mut state = obj.state.lock();
            state.mappings = state.mappings.saturating_sub(1);
        }
        if let Mapping::Aperture { slots, .. } = &mapping {
            unhold(obj, slots);
        }
        obj.dev().mapping_count(-1);
    }
}

/// Counts a mapping that an importer is given.
fn mapped(obj: &Object) -> impl DerefMut<Target = State> + '_ {
    obj.dev().mapping_count(1);
    let mut state = obj.state.lock();
    state.mappings += 1;
    state
}

fn map_aperture<'a>(
    obj: &Object,
    gpu: &Gpu<'_>,
    importer: &'a ImporterInfo<'a>,
    vram: Arc<VramPages>,
    held: Held<'_>,
    dir: DataDirection,
) -> Result<(Table<'a>, Mapping)> {
    let dev = obj.dev();
    let slots = dev.aperture.map(dev, gpu, gem::names(obj)?, &vram)?;
    let table = aperture::ranges(gpu, &slots)
        .and_then(|ranges| importer.map_bar(&gpu.provider, &ranges, held, dir));
    match table {
        Ok(table) => {
            mapped(obj).peer_maps += 1;
            Ok((table, Mapping::Aperture { slots, _vram: vram }))
        }
        Err(error) => {
            unhold(obj, &slots);
            Err(error)
        }
    }
}

fn unhold(obj: &Object, slots: &[SlotId]) {
    let released = gem::with_gpu(obj, |gpu| obj.dev().aperture.unmap(gpu, slots));
    gem::report_lost_slots(released);
}

/// Forgets one importer, and the dma-buf with the last.
fn detach(obj: &Object) {
    let last: Option<ARef<_>> = {
        let mut importers = obj.importers.lock();
        importers.count = importers.count.saturating_sub(1);
        if importers.count == 0 {
            importers.dmabuf.take()
        } else {
            None
        }
    };
    drop(last);
}
