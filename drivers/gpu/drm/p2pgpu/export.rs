// SPDX-License-Identifier: GPL-2.0

//! The dma-buf exporter: importers are given slots of the aperture, or system memory.
//!
//! An importer that can be a peer gets the object where it is. One that cannot, as it is static,
//! cannot use addresses without pages, has no route to the aperture, or finds no slots, gets it in
//! system memory, where it is migrated first; GEM_INFO counts how often that happened. A strict
//! object stays where it is, and the importer is refused.

use crate::{
    aperture::{
        Kept,
        Lease, //
    },
    cgroup,
    driver::Gpu,
    evict,
    gem::{
        self,
        Bo,
        Object,
        Placement,
        PlacementKind, //
    },
    mapping::{
        self,
        count,
        end,
        end_given_back,
        fall_back,
        give_back,
        keep,
        unhold,
        with_live_gpu,
        Mapping,
        Terms,
        View, //
    },
    migrate,
    policy::PciAddress,
    pressure,
    refusal::{
        refuse,
        Reason, //
    },
    vram::VramPages, //
};
use core::ops::Range;
use kernel::{
    device,
    dma::DataDirection,
    dma_buf::{
        exporter::{
            Exporter,
            ImporterInfo,
            Table, //
        },
        pages::Pages,
        resv::{
            Held,
            Usage, //
        },
        DmaBuf, //
    },
    drm::gem::{
        managed::{
            self,
            Window, //
        },
        BaseObject, //
    },
    page::PAGE_SIZE,
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

fn busy_is_no_space(error: Error) -> Error {
    match error {
        EBUSY => ENOSPC,
        error => error,
    }
}

/// Whether the importer can be given slots.
fn is_peer(gpu: &Gpu<'_>, importer: &ImporterInfo<'_>) -> bool {
    importer.is_peer() && gpu.provider.route(importer.device()) != Route::None
}

/// Whether the importer may have the object, where it is or where it would be moved.
fn check(
    terms: &Terms,
    obj: &Object,
    gpu: &Gpu<'_>,
    importer: &ImporterInfo<'_>,
    pci: Option<PciAddress>,
) -> Result {
    terms.check_allowed(obj, pci, || importer.driver_name())?;
    let stays = terms.has_flag(uapi::P2PGPU_PEER_STRICT)
        && terms.placement.kind() == Some(PlacementKind::Vram);
    if stays && !is_peer(gpu, importer) {
        return Err(refuse(obj, Reason::NoRoute));
    }
    Ok(())
}

/// What is kept of an importer while it is attached.
pub(crate) struct Attachment {
    device: ARef<device::Device>,
    /// Where that is, if it is on the PCI bus.
    pci: Option<PciAddress>,
    /// Times that it pins the object.
    pins: Atomic<u32>,
    /// Names its dma-buf among those of the object.
    dmabuf: u64,
    /// It could be given slots when it came.
    is_peer: bool,
    /// It can be told that a mapping is taken back.
    hears: bool,
}

impl Attachment {
    /// Whether the importer can be given slots: the route is as it was, but the core may have taken
    /// the importer's leave to be a peer away.
    fn can_peer(&self, importer: &ImporterInfo<'_>) -> bool {
        self.is_peer && importer.is_peer()
    }

    /// Whether the importer may map: it can be told to let go, or holds the object in place.
    fn may_map(&self) -> bool {
        self.hears || self.pins.load(Relaxed) != 0
    }
}

impl<'a> View<'a> {
    fn whole(obj: &'a Object) -> Self {
        let pages = 0..obj.size() / PAGE_SIZE;
        Self { obj, pages }
    }

    fn window(window: &'a Window<Bo>) -> Self {
        Self {
            obj: window.obj(),
            pages: window.pages(),
        }
    }

    fn attach(&self, importer: &ImporterInfo<'_>) -> Result<Attachment> {
        let obj = self.obj;
        let device = importer.device();
        let pci = PciAddress::of_name(device.name());
        let is_peer = with_live_gpu(obj, |gpu| {
            check(&Terms::of(obj), obj, gpu, importer, pci)?;
            Ok(is_peer(gpu, importer))
        })?;
        let mut importers = obj.importers.lock();
        let dmabuf = importers.add(importer.dmabuf(), device, is_peer)?;
        drop(importers);
        let data = Attachment {
            device: device.into(),
            pci,
            pins: Atomic::new(0),
            dmabuf,
            is_peer,
            hears: importer.can_be_invalidated(),
        };
        let attached = obj.dev().attached(obj);
        if attached.is_err() {
            detach(obj, &data);
        }
        attached.map(|()| data)
    }

    fn pin(&self, importer: &ImporterInfo<'_>, data: &Attachment, held: Held<'_>) -> Result {
        let obj = self.obj;
        with_live_gpu(obj, |gpu| {
            let terms = Terms::of(obj);
            check(&terms, obj, gpu, importer, data.pci)?;
            let strict = terms.has_flag(uapi::P2PGPU_PEER_STRICT);
            let pins = obj.state.lock().pins;
            let count = pins.checked_add(1).ok_or(ENOSPC)?;
            // It is to be where all who are attached can use it, unless others hold it there.
            let shared = pins == 0 && !strict && obj.importers.lock().without_slots != 0;
            let peer = !shared && data.can_peer(importer);
            if peer {
                evict::bring_back(obj, gpu, held);
            }
            if !peer {
                // The core takes EBUSY for a bug of ours.
                fall_back(obj, gpu, importer.device(), held).map_err(busy_is_no_space)?;
            } else if obj.placement().kind() == Some(PlacementKind::Vram) {
                pin_slots(gpu, obj)?;
            }
            obj.state.lock().pins = count;
            data.pins.fetch_add(1, Relaxed);
            Ok(())
        })
    }

    fn map<'i>(
        &self,
        importer: &'i ImporterInfo<'i>,
        data: &Attachment,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<(Table<'i>, Mapping)> {
        let obj = self.obj;
        with_live_gpu(obj, |gpu| {
            let mut terms = Terms::of(obj);
            check(&terms, obj, gpu, importer, data.pci)?;
            if !data.may_map() {
                return Err(refuse(obj, Reason::Deaf));
            }
            let reads_only = terms.has_flag(uapi::P2PGPU_PEER_READ_ONLY);
            if reads_only && !matches!(dir, DataDirection::ToDevice) {
                return Err(refuse(obj, Reason::ReadOnly));
            }
            let peer = data.can_peer(importer);
            if peer && terms.is_away {
                evict::bring_back(obj, gpu, held);
                terms = Terms::of(obj);
            } else if peer {
                evict::used(obj);
            }
            let strict = terms.has_flag(uapi::P2PGPU_PEER_STRICT);
            match terms.placement {
                Placement::Vram(vram) if peer => {
                    match self.hold_slots(gpu, &vram, terms.class, held) {
                        Ok(lease) => {
                            let mapped = map_slots(obj, gpu, importer, (vram, lease), held, dir)?;
                            self.trace(importer.device(), true).map();
                            return Ok(mapped);
                        }
                        Err(ENOSPC) => {}
                        Err(error) => return Err(error),
                    }
                    if strict {
                        return Err(refuse(obj, Reason::NoSlots));
                    }
                }
                _ => {}
            }
            fall_back(obj, gpu, importer.device(), held)?;
            let Placement::System(pages) = obj.placement() else {
                return Err(EINVAL);
            };
            let table = importer.map_pages(pages, self.pages.clone(), dir)?;
            count(obj, &mut obj.state.lock(), &Mapping::System);
            self.trace(importer.device(), false).map();
            Ok((table, Mapping::System))
        })
    }

    /// As [`View::map`], for an importer that has given `kept` back, if it gets just that.
    fn map_again(
        &self,
        importer: &ImporterInfo<'_>,
        data: &Attachment,
        dir: DataDirection,
        kept: Kept,
    ) -> Option<Mapping> {
        let obj = self.obj;
        let dev = obj.dev();
        // Who closes the device tells all importers next, for which it waits for our lock.
        dev.check_open().ok()?;
        if !data.may_map()
            || !data.can_peer(importer)
            || !dev.policy.allows(data.pci, || importer.driver_name())
        {
            return None;
        }
        let reads = matches!(dir, DataDirection::ToDevice);
        let mapping = mapping::again(obj, kept, |flags| {
            flags & uapi::P2PGPU_PEER_EXPORTABLE != 0
                && (reads || flags & uapi::P2PGPU_PEER_READ_ONLY == 0)
        })?;
        self.trace(importer.device(), true).map();
        Some(mapping)
    }

    /// Undoes a mapping. Its slots may show something else when this returns: it waits for the
    /// accesses of importers, which may outlast their mappings.
    ///
    /// While importers are told, one that was told must not wait for those that were not: what it
    /// gives back then is kept until the accesses of all have ended.
    fn unmap(&self, data: &Attachment, held: Held<'_>, mapping: Mapping) -> Option<Kept> {
        let obj = self.obj;
        let aperture = matches!(mapping, Mapping::Aperture { .. });
        self.trace(&data.device, aperture).unmap();
        let idle = !aperture || held.is_idle(Usage::Bookkeep);
        let mut state = obj.state.lock();
        let mapping = match &mut state.given_back {
            Some(kept) if aperture => keep(kept, mapping)?,
            _ => mapping,
        };
        if idle {
            return give_back(obj, state, mapping);
        }
        drop(state);
        end(obj, migrate::wait_for_accesses(obj), mapping);
        None
    }

    /// Keeps the object in system memory, for the kernel's own accesses: slots are not side by side.
    /// It counts as a pin.
    fn vmap(&self, held: Held<'_>) -> Result<(Arc<Pages>, Range<usize>)> {
        let obj = self.obj;
        with_live_gpu(obj, |gpu| {
            let (strict, kind, pins) = {
                let state = obj.state.lock();
                if !state.has_flag(uapi::P2PGPU_PEER_EXPORTABLE) {
                    drop(state);
                    return Err(refuse(obj, Reason::NotFlagged));
                }
                (
                    state.has_flag(uapi::P2PGPU_PEER_STRICT),
                    state.placement.kind(),
                    state.pins,
                )
            };
            if strict && kind == Some(PlacementKind::Vram) {
                return Err(refuse(obj, Reason::NoRoute));
            }
            let pins = pins.checked_add(1).ok_or(ENOSPC)?;
            fall_back(obj, gpu, gpu.dev(), held)?;
            let Placement::System(pages) = obj.placement() else {
                return Err(EINVAL);
            };
            obj.state.lock().pins = pins;
            Ok((pages, self.pages.clone()))
        })
    }
}

/// Promises the slots of an object that is to be pinned in VRAM, unless it is already.
fn pin_slots(gpu: &Gpu<'_>, obj: &Object) -> Result {
    let (owner, pinned, promised) = {
        let state = obj.state.lock();
        let pinned = state.is_pinned_in_vram();
        (state.owner.clone(), pinned, state.is_promised())
    };
    if pinned {
        return Ok(());
    }
    let (pins, slots) = (&obj.dev().pins, gem::page_count(obj)?);
    pins.add(owner.clone(), slots)
        .map_err(|error| match error {
            ENOSPC => refuse(obj, Reason::PinLimit),
            error => error,
        })?;
    if promised {
        return Ok(());
    }
    let promised = cgroup::charge_slots(gpu, obj).and_then(|charge| {
        pressure::promise(obj, charge).map_err(|_| refuse(obj, Reason::NoSlots))
    });
    promised.inspect_err(|_| pins.remove(&owner, slots))
}

/// Undoes one pin.
fn unpin(obj: &Object) {
    let (pinned, lost, owner) = {
        let mut state = obj.state.lock();
        let (pinned, promised) = (state.is_pinned_in_vram(), state.is_promised());
        state.pins = state.pins.saturating_sub(1);
        (
            pinned && !state.is_pinned_in_vram(),
            promised && !state.is_promised(),
            state.owner.clone(),
        )
    };
    // These fail only for a size that no object has.
    if let (true, Ok(slots)) = (pinned, gem::page_count(obj)) {
        obj.dev().pins.remove(&owner, slots);
    }
    if lost {
        let _ = pressure::unpromise(obj);
    }
}

macro_rules! exporter {
    ($exporter:ty, $source:ty, $view:expr, $obj:expr) => {
        impl Exporter for $exporter {
            type Source = $source;
            type Attachment = Attachment;
            type Mapping = Mapping;
            type Kept = Kept;

            fn attach(source: &$source, importer: &ImporterInfo<'_>) -> Result<Attachment> {
                ($view)(source).attach(importer)
            }

            fn detach(source: &$source, data: &Attachment) {
                let obj: &Object = ($obj)(source);
                obj.dev().detached(obj);
                detach(obj, data);
            }

            fn pin(
                source: &$source,
                importer: &ImporterInfo<'_>,
                data: &Attachment,
                held: Held<'_>,
            ) -> Result {
                ($view)(source).pin(importer, data, held)
            }

            fn unpin(source: &$source, data: &Attachment, _held: Held<'_>) {
                data.pins.fetch_sub(1, Relaxed);
                unpin(($obj)(source));
            }

            fn vmap(source: &$source, held: Held<'_>) -> Result<(Arc<Pages>, Range<usize>)> {
                ($view)(source).vmap(held)
            }

            fn vunmap(source: &$source, _held: Held<'_>) {
                unpin(($obj)(source));
            }

            fn map<'a>(
                source: &$source,
                importer: &'a ImporterInfo<'a>,
                data: &Attachment,
                held: Held<'_>,
                dir: DataDirection,
            ) -> Result<(Table<'a>, Mapping)> {
                ($view)(source).map(importer, data, held, dir)
            }

            fn map_again(
                source: &$source,
                importer: &ImporterInfo<'_>,
                data: &Attachment,
                _held: Held<'_>,
                dir: DataDirection,
                kept: Kept,
            ) -> Option<Mapping> {
                ($view)(source).map_again(importer, data, dir, kept)
            }

            fn unmap(
                source: &$source,
                data: &Attachment,
                held: Held<'_>,
                mapping: Mapping,
            ) -> Option<Kept> {
                ($view)(source).unmap(data, held, mapping)
            }
        }
    };
}

exporter!(Bo, Object, View::whole, core::convert::identity);

/// Exports pages of an object.
pub(crate) struct BoWindow;

exporter!(BoWindow, Window<Bo>, View::window, Window::obj);

/// A dma-buf of the bytes `range` of the object, whole pages; `flags` are those of its file.
pub(crate) fn export_range(obj: &Object, range: Range<u64>, flags: i32) -> Result<ARef<DmaBuf>> {
    <Bo as managed::Backing>::export(obj)?;
    let page = u64::try_from(PAGE_SIZE)?;
    if !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) {
        return Err(EINVAL);
    }
    let pages = usize::try_from(range.start / page)?..usize::try_from(range.end / page)?;
    Window::export::<BoWindow>(obj, pages, flags)
}

/// Maps slots that are held for the importer, or lets go of them.
fn map_slots<'a>(
    obj: &Object,
    gpu: &Gpu<'_>,
    importer: &'a ImporterInfo<'a>,
    (vram, lease): (Arc<VramPages>, Lease),
    held: Held<'_>,
    dir: DataDirection,
) -> Result<(Table<'a>, Mapping)> {
    match importer.map_bar(&gpu.provider, lease.ranges(), held, dir) {
        Ok(table) => {
            let mapping = Mapping::Aperture { lease, _vram: vram };
            count(obj, &mut obj.state.lock(), &mapping);
            Ok((table, mapping))
        }
        Err(error) => {
            unhold(obj, lease);
            Err(error)
        }
    }
}

/// Forgets one importer, and its dma-buf with the last.
fn detach(obj: &Object, data: &Attachment) {
    let mut importers = obj.importers.lock();
    let last = importers.remove(data.dmabuf, &data.device, data.is_peer);
    let nobody = importers.count() == 0;
    drop(importers);
    drop(last);
    // Who told them may not find the object any more.
    if nobody && obj.state.lock().given_back.is_some() {
        end_given_back(obj, migrate::wait_for_accesses(obj));
    }
}
