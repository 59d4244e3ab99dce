// SPDX-License-Identifier: GPL-2.0

//! The dma-buf exporter: importers are given slots of the aperture, or system memory.
//!
//! An importer that can be a peer gets the object where it is. One that cannot, as it is static,
//! cannot use addresses without pages, has no route to the aperture, or finds no slots, gets it in
//! system memory, where it is migrated first; GEM_INFO counts how often that happened. A strict
//! object stays where it is, and the importer is refused.

use crate::{
    aperture::{
        self,
        NotShown, //
    },
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
    pressure::{
        self,
        Patience,
        Told,
        Victims, //
    },
    refusal::{
        refuse,
        Reason, //
    },
    slots::{
        Class,
        SlotId, //
    },
    vram::VramPages, //
};
use core::ops::DerefMut;
use kernel::{
    device,
    dma::DataDirection,
    dma_buf::{
        exporter::{
            Exporter,
            ImporterInfo,
            Table, //
        },
        resv::Held,
        DmaBuf, //
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

/// What is kept of an importer while it is attached.
pub(crate) struct Attachment {
    device: ARef<device::Device>,
    /// Times that it pins the object.
    pins: Atomic<u32>,
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

/// Whether the importer may have the object, where it is or where it would be moved.
fn check(obj: &Object, gpu: &Gpu<'_>, importer: &ImporterInfo<'_>) -> Result {
    let (flagged, strict, kind) = {
        let state = obj.state.lock();
        (
            state.has_flag(uapi::P2PGPU_PEER_EXPORTABLE),
            state.has_flag(uapi::P2PGPU_PEER_STRICT),
            state.placement.kind(),
        )
    };
    if !flagged {
        return Err(refuse(obj, Reason::NotFlagged));
    }
    if strict && kind == PlacementKind::Vram && !is_peer(gpu, importer) {
        return Err(refuse(obj, Reason::NoRoute));
    }
    Ok(())
}

/// Moves the object to system memory, as an importer cannot be given slots.
fn fall_back(obj: &Object, gpu: &Gpu<'_>, held: Held<'_>) -> Result {
    if obj.placement().kind() == PlacementKind::System {
        return Ok(());
    }
    migrate::migrate(obj, gpu, held, PlacementKind::System)?;
    obj.state.lock().fall_backs += 1;
    obj.dev().activity.fall_backs.up();
    Ok(())
}

impl Exporter for Bo {
    type Source = Object;
    type Attachment = Attachment;
    type Mapping = Mapping;

    fn attach(obj: &Object, importer: &ImporterInfo<'_>) -> Result<Attachment> {
        with_live_gpu(obj, |gpu| check(obj, gpu, importer))?;
        {
            let mut importers = obj.importers.lock();
            importers
                .devices
                .push(importer.device().into(), GFP_KERNEL)?;
            importers.dmabuf = Some(importer.dmabuf().into());
        }
        if let Err(error) = obj.dev().attached(obj) {
            detach(obj, importer.device());
            return Err(error);
        }
        Ok(Attachment {
            device: importer.device().into(),
            pins: Atomic::new(0),
        })
    }

    fn detach(obj: &Object, attachment: &Attachment) {
        obj.dev().detached(obj);
        detach(obj, &attachment.device);
    }

    fn pin(
        obj: &Object,
        importer: &ImporterInfo<'_>,
        attachment: &Attachment,
        held: Held<'_>,
    ) -> Result {
        with_live_gpu(obj, |gpu| {
            check(obj, gpu, importer)?;
            let count = obj.state.lock().pins.checked_add(1).ok_or(ENOSPC)?;
            if !is_peer(gpu, importer) {
                // The core takes EBUSY for a bug of ours.
                fall_back(obj, gpu, held).map_err(busy_is_no_space)?;
            } else if obj.placement().kind() == PlacementKind::Vram {
                let promised = obj.state.lock().is_promised();
                if !promised {
                    pressure::promise(obj).map_err(|_| refuse(obj, Reason::NoSlots))?;
                }
            }
            obj.state.lock().pins = count;
            attachment.pins.fetch_add(1, Relaxed);
            Ok(())
        })
    }

    fn unpin(obj: &Object, attachment: &Attachment, _held: Held<'_>) {
        attachment.pins.fetch_sub(1, Relaxed);
        let lost = {
            let mut state = obj.state.lock();
            let promised = state.is_promised();
            state.pins = state.pins.saturating_sub(1);
            promised && !state.is_promised()
        };
        if lost {
            // It fails only for a size that no object has.
            let _ = pressure::unpromise(obj);
        }
    }

    fn map<'a>(
        obj: &Object,
        importer: &'a ImporterInfo<'a>,
        attachment: &Attachment,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<(Table<'a>, Mapping)> {
        with_live_gpu(obj, |gpu| {
            check(obj, gpu, importer)?;
            if attachment.pins.load(Relaxed) == 0 && !importer.can_be_invalidated() {
                // It could neither be told to let go nor does it hold the object in place.
                return Err(refuse(obj, Reason::Deaf));
            }
            let reads_only = obj.state.lock().has_flag(uapi::P2PGPU_PEER_READ_ONLY);
            if reads_only && !matches!(dir, DataDirection::ToDevice) {
                return Err(refuse(obj, Reason::ReadOnly));
            }
            match obj.placement() {
                Placement::Vram(vram) if is_peer(gpu, importer) => {
                    match hold_slots(obj, gpu, &vram) {
                        Ok(slots) => {
                            return map_slots(obj, gpu, importer, (vram, slots), held, dir)
                        }
                        Err(ENOSPC) => {}
                        Err(error) => return Err(error),
                    }
                    if obj.state.lock().has_flag(uapi::P2PGPU_PEER_STRICT) {
                        return Err(refuse(obj, Reason::NoSlots));
                    }
                }
                _ => {}
            }
            fall_back(obj, gpu, held)?;
            let Placement::System(pages) = obj.placement() else {
                return Err(EINVAL);
            };
            let table = importer.map_pages(pages, dir)?;
            mapped(obj).system_maps += 1;
            Ok((table, Mapping::System))
        })
    }

    fn unmap(obj: &Object, _: &Attachment, _held: Held<'_>, mapping: Mapping) {
        {
            let mut state = obj.state.lock();
            state.mappings = state.mappings.saturating_sub(1);
            if let Mapping::Aperture { .. } = &mapping {
                state.aperture_mappings = state.aperture_mappings.saturating_sub(1);
            }
        }
        if let Mapping::Aperture { slots, .. } = &mapping {
            unhold(obj, slots);
            obj.dev().activity.peer_unmaps.up();
        }
        obj.dev().mapping_count(-1);
    }
}

fn busy_is_no_space(error: Error) -> Error {
    match error {
        EBUSY => ENOSPC,
        error => error,
    }
}

/// Counts a mapping that an importer is given.
fn mapped(obj: &Object) -> impl DerefMut<Target = State> + '_ {
    obj.dev().mapping_count(1);
    let mut state = obj.state.lock();
    state.mappings += 1;
    state
}

/// Shows the object in slots, which a peer holds then. If need be others are told to let go.
///
/// `ENOSPC`: there are too few slots. An object that is promised slots always finds them.
fn hold_slots(obj: &Object, gpu: &Gpu<'_>, vram: &VramPages) -> Result<KVVec<SlotId>> {
    let class = match obj.state.lock().is_promised() {
        true => Class::Promised,
        false => Class::Lent,
    };
    let dev = obj.dev();
    let pages = gem::named(obj, vram)?;
    let mut victims = Victims::new(obj, None, Patience::Grace);
    loop {
        match dev.aperture.map(dev, gpu, pages, 0..vram.count(), class) {
            Ok(slots) => return Ok(slots),
            Err(NotShown::Failed(error)) => return Err(error),
            Err(NotShown::Lent) => {}
        }
        match victims.tell_next() {
            Told::One => {}
            Told::Nobody | Told::Wait(_) => return Err(ENOSPC),
        }
    }
}

/// Maps slots that are held for the importer, or lets go of them.
fn map_slots<'a>(
    obj: &Object,
    gpu: &Gpu<'_>,
    importer: &'a ImporterInfo<'a>,
    (vram, slots): (Arc<VramPages>, KVVec<SlotId>),
    held: Held<'_>,
    dir: DataDirection,
) -> Result<(Table<'a>, Mapping)> {
    let table = aperture::ranges(gpu, &slots)
        .and_then(|ranges| importer.map_bar(&gpu.provider, &ranges, held, dir));
    match table {
        Ok(table) => {
            let last_map = obj.dev().next_map();
            let mut state = mapped(obj);
            state.peer_maps += 1;
            state.aperture_mappings += 1;
            state.last_map = Some(last_map);
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

/// Forgets one importer, which is a device's, and the dma-buf with the last.
fn detach(obj: &Object, device: &device::Device) {
    let (gone, last) = {
        let mut importers = obj.importers.lock();
        let place = importers
            .devices
            .iter()
            .position(|other| core::ptr::eq(&**other, device));
        let gone = place.and_then(|index| importers.devices.remove(index).ok());
        let last: Option<ARef<DmaBuf>> = match importers.devices.is_empty() {
            true => importers.dmabuf.take(),
            false => None,
        };
        (gone, last)
    };
    drop((gone, last));
}
