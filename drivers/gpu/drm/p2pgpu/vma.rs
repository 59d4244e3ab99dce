// SPDX-License-Identifier: GPL-2.0

//! Peers that are given objects by the user addresses of their mappings.
//!
//! They share slots with importers of dma-bufs, and follow the same rules: only flagged objects,
//! only devices that the policy allows, promises are kept, and who cannot have slots for want of
//! some gets the object in system memory, unless it is strict. A device that has no route to the
//! aperture is refused what is in VRAM (`EXDEV`): nothing is moved for it, nor mapped.
//!
//! Such peers are told to let go by removing the CPU mappings. They have stopped when that returns,
//! and give their slots back a moment later, from a work item.
//!
//! Locks: `mmap_lock` is held for reading when pages are mapped, and the object's reservation lock
//! is taken inside it, as by page faults. Giving back takes no more than the mutexes of the
//! aperture and of the object's state, so that who holds the reservation lock can wait for it.

use crate::{
    driver::Gpu,
    evict,
    gem::{
        Bo,
        Object,
        Placement,
        PlacementKind, //
    },
    mapping::{
        self,
        Mapping,
        Terms,
        View, //
    },
    policy::PciAddress,
    refusal::{
        refuse,
        Reason, //
    },
};
use core::ops::Range;
use kernel::{
    device,
    dma_buf::resv::Held,
    mm::p2p::exporter::{
        Addresses,
        Exporter,
        Request, //
    },
    pci::p2pdma::Route,
    prelude::*,
    uapi, //
};

/// What a mapping holds until its importer undoes it.
pub(crate) struct VmaMapping {
    mapping: Mapping,
    pages: Range<usize>,
}

impl Exporter for Bo {
    type Source = Object;
    type Mapping = VmaMapping;

    fn p2p_map<'a>(obj: &Object, request: Request<'a>) -> Result<(Addresses<'a>, VmaMapping)> {
        let (importer, pages) = (request.importer(), request.pages());
        mapping::with_live_gpu(obj, |gpu| {
            let guard = obj.resv().lock_interruptible()?;
            check(&Terms::of(obj), obj, &request)?;
            enter(obj, importer)?;
            let mapped = map(obj, gpu, request, guard.held());
            let (addresses, mapping) = mapped.inspect_err(|_| leave(obj, importer))?;
            let mut state = obj.state.lock();
            mapping::count(obj, &mut state, &mapping);
            state.vma_mappings += 1;
            drop(state);
            Ok((addresses, VmaMapping { mapping, pages }))
        })
    }

    fn p2p_unmap(obj: &Object, importer: &device::Device, mapped: VmaMapping) {
        let VmaMapping { mapping, pages } = mapped;
        let aperture = matches!(mapping, Mapping::Aperture { .. });
        View { obj, pages }.trace(importer, aperture).unmap();
        // The device has stopped: there are no accesses to wait for.
        mapping::end(obj, Ok(()), mapping);
        leave(obj, importer);
        // Last: who waits for this finds the slots given back.
        let mut state = obj.state.lock();
        state.vma_mappings = state.vma_mappings.saturating_sub(1);
    }
}

/// Whether the importer may have the object.
fn check(terms: &Terms, obj: &Object, request: &Request<'_>) -> Result {
    let pci = PciAddress::of_name(request.importer().name());
    terms.check_allowed(obj, pci, || request.driver_name())?;
    if terms.has_flag(uapi::P2PGPU_PEER_READ_ONLY) && request.is_write() {
        return Err(refuse(obj, Reason::ReadOnly));
    }
    Ok(())
}

/// The object has one more importer: it is found when slots are needed, or all are told to let go.
fn enter(obj: &Object, importer: &device::Device) -> Result {
    obj.importers.lock().add_device(importer)?;
    obj.dev()
        .attached(obj)
        .inspect_err(|_| obj.importers.lock().remove_device(importer))
}

fn leave(obj: &Object, importer: &device::Device) {
    obj.importers.lock().remove_device(importer);
    obj.dev().detached(obj);
}

/// Gives the importer slots, or system memory. Under the object's reservation lock.
///
/// `EAGAIN`: the object has moved. That has told the importer too, so that the core maps again
/// whatever becomes of this: what would be given now is not counted and not traced.
fn map<'a>(
    obj: &Object,
    gpu: &Gpu<'_>,
    request: Request<'a>,
    held: Held<'_>,
) -> Result<(Addresses<'a>, Mapping)> {
    let importer = request.importer();
    let view = View {
        obj,
        pages: request.pages(),
    };
    let has_route = gpu.provider.route(importer) != Route::None;
    let before = obj.placement().kind();
    if has_route {
        evict::bring_back(obj, gpu, held);
    }
    let terms = Terms::of(obj);
    if terms.placement.kind() != before {
        return Err(EAGAIN);
    }
    let strict = terms.has_flag(uapi::P2PGPU_PEER_STRICT);
    if let Placement::Vram(vram) = terms.placement {
        if !has_route {
            return Err(refuse(obj, Reason::NoRoute));
        }
        match view.hold_slots(gpu, &vram, terms.class, held) {
            Ok(lease) => {
                return match request.map_bar(&gpu.provider, lease.ranges()) {
                    Ok(addresses) => {
                        view.trace(importer, true).map();
                        Ok((addresses, Mapping::Aperture { lease, _vram: vram }))
                    }
                    Err(error) => {
                        mapping::unhold(obj, lease);
                        Err(error)
                    }
                };
            }
            Err(ENOSPC) => {}
            Err(error) => return Err(error),
        }
        if strict {
            return Err(refuse(obj, Reason::NoSlots));
        }
    }
    // What is there already may still be on its way.
    mapping::fall_back(obj, gpu, importer, held)?;
    let Placement::System(pages) = obj.placement() else {
        return Err(EINVAL);
    };
    if before == Some(PlacementKind::Vram) {
        return Err(EAGAIN);
    }
    let addresses = request.map_pages(pages, view.pages.clone())?;
    view.trace(importer, false).map();
    Ok((addresses, Mapping::System))
}
