// SPDX-License-Identifier: GPL-2.0

//! What importers are given, be it by a dma-buf or by user address: slots of the aperture, which
//! all peers of a page share, or system memory.

use crate::{
    aperture::{
        Kept,
        Lease,
        NotShown, //
    },
    driver::Gpu,
    evict,
    gem::{
        self,
        Object,
        Placement,
        PlacementKind,
        State, //
    },
    migrate::{
        self,
        Arrive, //
    },
    policy::PciAddress,
    pressure::{
        Patience,
        Told,
        Victims,
        CONTENTION,
        ROUNDS, //
    },
    refusal::{
        refuse,
        Reason, //
    },
    slots::Class,
    trace,
    vram::VramPages, //
};
use core::ops::Range;
use kernel::{
    device,
    dma_buf::resv::Held,
    prelude::*,
    sync::{
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc, //
    },
    time::delay::fsleep,
    uapi, //
};

/// What a mapping holds until its importer undoes it.
pub(crate) enum Mapping {
    /// Slots, and the pages that they show.
    Aperture { lease: Lease, _vram: Arc<VramPages> },
    /// Nothing: the pages stay with the table.
    System,
}

/// Runs `f` with the hardware; `ENODEV` if the device is gone, or going, and `EAGAIN` while it is
/// being reset.
pub(crate) fn with_live_gpu<R>(obj: &Object, f: impl FnOnce(&Gpu<'_>) -> Result<R>) -> Result<R> {
    obj.dev().check_open()?;
    gem::with_gpu(obj, |gpu| f(gpu.ok_or(ENODEV)?))
}

/// What decides whether, where and how importers are given an object, at one moment. It does not
/// change while the reservation lock is held.
pub(crate) struct Terms {
    flags: u32,
    pub(crate) placement: Placement,
    /// What slots of it count as.
    pub(crate) class: Class,
    /// It has left VRAM, or its bytes are still on their way: [`evict::bring_back`] comes first.
    pub(crate) is_away: bool,
}

impl Terms {
    pub(crate) fn of(obj: &Object) -> Self {
        let state = obj.state.lock();
        Self {
            flags: state.peer_flags,
            placement: state.placement.clone(),
            class: class(&state),
            is_away: is_away(&state),
        }
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the object's owner and the policy of the device let this importer have it. `driver`
    /// says the name of the importer's driver, and is called only if the policy asks for it.
    pub(crate) fn check_allowed<'a>(
        &self,
        obj: &Object,
        pci: Option<PciAddress>,
        driver: impl FnOnce() -> Option<&'a CStr>,
    ) -> Result {
        if !self.has_flag(uapi::P2PGPU_PEER_EXPORTABLE) {
            return Err(refuse(obj, Reason::NotFlagged));
        }
        if !obj.dev().policy.allows(pci, driver) {
            return Err(refuse(obj, Reason::Policy));
        }
        Ok(())
    }
}

/// What slots of an object count as.
fn class(state: &State) -> Class {
    match state.is_promised() {
        true => Class::Promised,
        false => Class::Lent,
    }
}

/// Whether the object has left VRAM, or its bytes are still on their way.
fn is_away(state: &State) -> bool {
    state.eviction.is_away || state.arrival.is_some()
}

/// Gives an importer once more what it has given back, if nobody has changed anything since and
/// `allowed` says of the object's flags that it may have it. This looks at the object once, and at
/// its slots not at all.
///
/// `None`: it has to ask as if for the first time.
pub(crate) fn again(
    obj: &Object,
    kept: Kept,
    allowed: impl FnOnce(u32) -> bool,
) -> Option<Mapping> {
    let dev = obj.dev();
    let mut state = obj.state.lock();
    if is_away(&state) || !allowed(state.peer_flags) {
        return None;
    }
    let Placement::Vram(vram) = &state.placement else {
        return None;
    };
    let vram = vram.clone();
    let lease = dev.aperture.take_again(kept, class(&state))?;
    let mapping = Mapping::Aperture { lease, _vram: vram };
    count(obj, &mut state, &mapping);
    drop(state);
    evict::used(obj);
    Some(mapping)
}

/// Moves the object to system memory, as `importer` cannot be given slots.
pub(crate) fn fall_back(
    obj: &Object,
    gpu: &Gpu<'_>,
    importer: &device::Device,
    held: Held<'_>,
) -> Result {
    if obj.placement().kind() == Some(PlacementKind::System) {
        return evict::arrive(obj, gpu);
    }
    migrate::migrate(obj, gpu, held, PlacementKind::System, Arrive::Now)?;
    obj.state.lock().fall_backs += 1;
    obj.dev().activity.fall_backs.up();
    trace::fall_back(obj, importer);
    Ok(())
}

/// Pages of an object that a peer is to be given, or has.
pub(crate) struct View<'a> {
    pub(crate) obj: &'a Object,
    pub(crate) pages: Range<usize>,
}

impl View<'_> {
    pub(crate) fn trace<'b>(
        &'b self,
        importer: &'b device::Device,
        aperture: bool,
    ) -> trace::Mapping<'b> {
        trace::Mapping {
            obj: self.obj,
            importer,
            pages: self.pages.clone(),
            aperture,
        }
    }

    /// Shows the pages in slots, which a peer holds then. If need be others are told to let go.
    ///
    /// `ENOSPC`: there are too few slots, or whoever could let go of some is being mapped or moved
    /// for long. An object that is promised slots always finds them.
    pub(crate) fn hold_slots(
        &self,
        gpu: &Gpu<'_>,
        vram: &VramPages,
        class: Class,
        held: Held<'_>,
    ) -> Result<Lease> {
        let obj = self.obj;
        let dev = obj.dev();
        let named = gem::named(obj, vram)?;
        // Windows of one object take each other's slots in turns, as they are used in turns.
        let own = (self.pages.len() != vram.count()).then_some(held);
        let mut patience = match own {
            Some(_) => WINDOW_PATIENCE,
            None => 0,
        };
        let mut victims = Victims::new(obj, own, Patience::Grace);
        let mut rounds = ROUNDS;
        let mut last = false;
        loop {
            match dev.aperture.map(dev, gpu, named, self.pages.clone(), class) {
                Ok(lease) => return Ok(lease),
                Err(NotShown::Failed(error)) => return Err(error),
                Err(NotShown::Lent) => {}
            }
            let time = match victims.tell_next() {
                Told::One => continue,
                // Somebody may just have let go.
                Told::Nobody if !last => {
                    last = true;
                    continue;
                }
                Told::Contended if rounds != 0 => {
                    rounds -= 1;
                    CONTENTION
                }
                Told::Wait(time) if patience != 0 => {
                    patience -= 1;
                    time
                }
                Told::Nobody | Told::Contended | Told::Wait(_) => return Err(ENOSPC),
            };
            fsleep(time);
            victims = Victims::new(obj, own, Patience::Grace);
        }
    }
}

/// Times that a window waits until the peers of others may be told to let go.
const WINDOW_PATIENCE: u32 = 4;

/// Keeps a mapping that was undone; returns it if there is no memory for that.
pub(crate) fn keep(kept: &mut KVec<Mapping>, mapping: Mapping) -> Option<Mapping> {
    if kept.reserve(1, GFP_KERNEL).is_err() {
        return Some(mapping);
    }
    // There is room.
    kept.push_within_capacity(mapping).err().map(|full| full.0)
}

/// Ends what importers have given back since they were told; `waited` says whether the accesses of
/// all have ended.
pub(crate) fn end_given_back(obj: &Object, waited: Result) {
    let kept = obj.state.lock().given_back.take();
    for mapping in kept.into_iter().flatten() {
        end(obj, waited, mapping);
    }
}

/// Ends a mapping. If accesses of importers go on, its slots, and the pages that they show, are
/// nobody's any more.
pub(crate) fn end(obj: &Object, waited: Result, mapping: Mapping) {
    if waited.is_err() {
        obj.dev().lose(mapping);
        return gem::report_lost_slots(waited);
    }
    give_back(obj, obj.state.lock(), mapping);
}

/// Lets go of what a mapping held, and counts it no more. What is returned of slots may be given to
/// their importer [`again`].
///
/// The object's count comes after the slots: who needs some takes it for certain that an object
/// without mappings has none to yield. That of the device comes last: who removes it waits for that.
#[inline]
pub(crate) fn give_back<'a>(
    obj: &'a Object,
    mut state: Guard<'a, State, MutexBackend>,
    mapping: Mapping,
) -> Option<Kept> {
    let dev = obj.dev();
    match mapping {
        Mapping::Aperture { lease, _vram } => {
            let kept = match dev.aperture.set_aside_quietly(lease) {
                Ok(kept) => Some(kept),
                Err(lease) => {
                    drop(state);
                    let kept = unhold(obj, lease);
                    state = obj.state.lock();
                    kept
                }
            };
            state.mappings = state.mappings.saturating_sub(1);
            state.aperture_mappings = state.aperture_mappings.saturating_sub(1);
            drop(state);
            dev.peer_unmapped();
            kept
        }
        Mapping::System => {
            state.mappings = state.mappings.saturating_sub(1);
            drop(state);
            dev.system_mapping_count(-1);
            None
        }
    }
}

/// Counts a mapping that an importer is given.
pub(crate) fn count(obj: &Object, state: &mut State, mapping: &Mapping) {
    state.mappings += 1;
    match mapping {
        Mapping::Aperture { .. } => {
            state.peer_maps += 1;
            state.aperture_mappings += 1;
            state.last_map = Some(obj.dev().peer_mapped());
        }
        Mapping::System => {
            state.system_maps += 1;
            obj.dev().system_mapping_count(1);
        }
    }
}

/// Lets go of slots.
pub(crate) fn unhold(obj: &Object, lease: Lease) -> Option<Kept> {
    let aperture = &obj.dev().aperture;
    match aperture.set_aside(lease) {
        Ok(kept) => Some(kept),
        Err(lease) => {
            let released = gem::with_gpu(obj, |gpu| aperture.unmap(gpu, &lease));
            gem::report_lost_slots(released);
            None
        }
    }
}
