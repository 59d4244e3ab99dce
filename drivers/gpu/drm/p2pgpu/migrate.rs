// SPDX-License-Identifier: GPL-2.0

//! Migration: an object's bytes go from one placement to another.
//!
//! Importers and CPUs are told first, the copy engine moves the bytes, and the old memory is
//! freed when nobody can use it any more. Who moves an object waits for the copy, or leaves that to
//! those who use the object next; VRAM is given away at once even so, as what its new owner does
//! first is a copy too, or a clear, and these run in their order.
//!
//! As for importers: an importer that unmaps late keeps the old VRAM pages
//! and their slots alive by the reference in its mapping. These slots drain. If the object is
//! promised slots, it is not moved where that would leave too few for all promises.

use crate::{
    access::View,
    driver::Gpu,
    engine::{
        self,
        Plan, //
    },
    evict::{
        self,
        Arrival, //
    },
    gem::{
        self,
        Object,
        Placement,
        PlacementKind, //
    },
    mapping,
    trace, //
};
use kernel::{
    dma::DataDirection,
    dma_buf::{
        pages::SharedMapping,
        resv::{
            Held,
            Usage, //
        }, //
    },
    drm::gem::BaseObject,
    io::poll::read_poll_timeout,
    page::PAGE_SIZE,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta, //
    }, //
};

/// Times that a copy is tried again for which nobody waits.
const RETRIES: u32 = 2;

/// Longest wait for importers that have user addresses.
const UNMAPS_TIMEOUT_MS: i64 = 100;

/// Tells all importers to let go of their mappings. Under the object's reservation lock.
///
/// What they give back is kept until the caller, who waits for the accesses of all, calls
/// [`mapping::end_given_back`].
pub(crate) fn tell_importers(obj: &Object, held: Held<'_>) -> Result {
    let next = |id| obj.importers.lock().after(id);
    let mut dmabuf = next(0);
    let (mappings, vma_mappings) = {
        let mut state = obj.state.lock();
        if dmabuf.is_none() && state.vma_mappings == 0 {
            return Ok(());
        }
        if state.mappings != 0 {
            state.invalidations += 1;
            obj.dev().activity.invalidations.up();
        }
        state.given_back.get_or_insert_default();
        (state.mappings, state.vma_mappings)
    };
    if mappings != 0 {
        trace::invalidate(obj, mappings);
    }
    if vma_mappings != 0 {
        // Who has user addresses is told by their notifiers.
        obj.zap(0..obj.size() / PAGE_SIZE)?;
    }
    // Who attaches meanwhile cannot map: that takes the lock.
    while let Some((id, one)) = dmabuf {
        one.invalidate(held)?;
        dmabuf = next(id);
    }
    Ok(())
}

/// Takes back all mappings of importers. Under the object's reservation lock.
///
/// On return no access of an importer that was told is in flight. `EBUSY`: one does not let go.
pub(crate) fn invalidate(obj: &Object, held: Held<'_>) -> Result {
    let told = tell_importers(obj, held);
    let waited = wait_for_accesses(obj);
    mapping::end_given_back(obj, waited);
    wait_for_unmaps(obj);
    told.and(waited)
}

/// Gives importers that have user addresses a moment to give back what they mapped: they do so from
/// work items. What they keep for longer drains, as does what other importers keep.
fn wait_for_unmaps(obj: &Object) {
    // A work item may wait for who maps other pages of the object, who waits for our lock.
    let _ = read_poll_timeout(
        || Ok(obj.state.lock().vma_mappings),
        |&mappings| mappings == 0,
        Delta::from_micros(20),
        Delta::from_millis(UNMAPS_TIMEOUT_MS),
    );
}

/// Waits until the accesses that importers have announced by fences are over. `EBUSY`: they do not
/// end.
pub(crate) fn wait_for_accesses(obj: &Object) -> Result {
    let most = obj.dev().patience.importers_ms();
    obj.resv()
        .wait(Usage::Bookkeep, msecs_to_jiffies(most))
        .map_err(|_| EBUSY)
}

/// Who waits for the bytes of an object that is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrive {
    /// Who moves it.
    Now,
    /// Who uses it next.
    Later,
    /// Nobody: they are dropped, and the object is zero. For an object that leaves VRAM.
    Never,
}

/// Moves the object to `target`. Under its reservation lock.
///
/// `EBUSY`: an importer pins it or does not let go, or has not unmapped slots without which the
/// promises could not be kept. `ENOSPC`, `ENOMEM`: there is no room. `EIO`: the engine failed. On an
/// error the object is where it was, though its mappings may be gone.
pub(crate) fn migrate(
    obj: &Object,
    gpu: &Gpu<'_>,
    held: Held<'_>,
    target: PlacementKind,
    arrive: Arrive,
) -> Result {
    evict::arrive(obj, gpu)?;
    if obj.placement().kind() == Some(target) {
        return Ok(());
    }
    let result = move_to(obj, gpu, held, target, arrive);
    trace::migrate(obj, target, result);
    result
}

/// As [`migrate`], for an object that is elsewhere.
fn move_to(
    obj: &Object,
    gpu: &Gpu<'_>,
    held: Held<'_>,
    target: PlacementKind,
    arrive: Arrive,
) -> Result {
    let (old, promised) = {
        let state = obj.state.lock();
        if state.pins != 0 {
            return Err(EBUSY);
        }
        (state.placement.clone(), state.is_promised())
    };
    let size = obj.size();
    let new = Placement::alloc(obj.dev(), gpu, Some(obj), target, size)?;

    invalidate(obj, held)?;
    // What an importer has not unmapped by now drains, on top of what is promised to the object.
    let _drain = match &old {
        Placement::Vram(vram) if promised => {
            Some(obj.dev().aperture.claim_drain(gem::named(obj, vram)?)?)
        }
        _ => None,
    };
    obj.zap(0..size / PAGE_SIZE)?;

    let arrival = match (arrive, &new) {
        (Arrive::Never, Placement::System(pages)) => {
            pages.clear();
            None
        }
        _ => copy(obj, gpu, held, (&old, &new), arrive)?,
    };
    {
        let mut state = obj.state.lock();
        state.placement = new;
        state.arrival = arrival;
    }
    if let Placement::Vram(vram) = obj.placement() {
        vram.placed();
    }
    if let Placement::Vram(vram) = old {
        gem::release_slots(obj, &vram);
    }
    Ok(())
}

/// Copies the object's bytes from one placement to another, and waits for that, or returns what to
/// wait for.
fn copy(
    obj: &Object,
    gpu: &Gpu<'_>,
    held: Held<'_>,
    (old, new): (&Placement, &Placement),
    arrive: Arrive,
) -> Result<Option<Arrival>> {
    let (pages, vram, dir) = match (old, new) {
        (Placement::Vram(vram), Placement::System(pages)) => {
            (pages, vram, DataDirection::FromDevice)
        }
        (Placement::System(pages), Placement::Vram(vram)) => (pages, vram, DataDirection::ToDevice),
        _ => return Err(EINVAL),
    };
    let map = SharedMapping::new(pages.clone(), gpu.bound(), dir)?;
    let table = View::Table(map.table());
    let vram = View::Vram(vram);
    let (src, dst) = match new.kind() {
        Some(PlacementKind::System) => (&vram, &table),
        _ => (&table, &vram),
    };
    let all = 0..u64::try_from(obj.size())?;
    let plan = Plan::copy(gpu, src.extents(all.clone()), dst.extents(all))?;
    let mut maps = KVec::with_capacity(1, GFP_KERNEL)?;
    maps.push(map, GFP_KERNEL)?;
    // Not earlier: importers that are told may add fences, and would use up the room.
    let mut room = held.reserve_fences(1)?;
    let (arriving, retries) = match arrive {
        Arrive::Later => (Some(obj.into()), RETRIES),
        Arrive::Now | Arrive::Never => (None, 0),
    };
    let fence = plan.queue(gpu, maps, arriving, retries)?;
    // For those who look at the buffer without its lock, or when it is given back.
    room.add(&fence, Usage::Kernel)?;
    if arrive == Arrive::Later {
        return Ok(Some(Arrival::new(fence, old)));
    }
    engine::wait(gpu, &fence)?;
    Ok(None)
}
