// SPDX-License-Identifier: GPL-2.0

//! Migration: an object's bytes go from one placement to another.
//!
//! Importers and CPUs are told first, the copy engine moves the bytes, and the old memory is
//! freed when nobody can use it any more: an importer that unmaps late keeps the old VRAM pages
//! and their slots alive by the reference in its mapping. These slots drain. If the object is
//! promised slots, it is not moved where that would leave too few for all promises.

use crate::{
    access::{
        Purpose,
        View, //
    },
    driver::Gpu,
    engine,
    export,
    gem::{
        self,
        Object,
        Placement,
        PlacementKind, //
    },
    trace, //
};
use kernel::{
    dma_buf::resv::{
        Held,
        Resv,
        Usage, //
    },
    drm::gem::BaseObject,
    page::PAGE_SIZE,
    prelude::*,
    time::msecs_to_jiffies, //
};

/// Longest wait for accesses of importers that were told to let go.
const IMPORTERS_TIMEOUT_MS: u32 = 10_000;

/// Tells all importers to let go of their mappings. Under the object's reservation lock.
///
/// What they give back is kept until the caller, who waits for the accesses of all, calls
/// [`export::end_given_back`].
pub(crate) fn tell_importers(obj: &Object, held: Held<'_>) -> Result {
    let next = |id| obj.importers.lock().after(id);
    let mut dmabuf = next(0);
    if dmabuf.is_none() {
        return Ok(());
    }
    let mappings = {
        let mut state = obj.state.lock();
        if state.mappings != 0 {
            state.invalidations += 1;
            obj.dev().activity.invalidations.up();
        }
        state.given_back.get_or_insert_default();
        state.mappings
    };
    if mappings != 0 {
        trace::invalidate(obj, mappings);
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
    let waited = wait_for_accesses(held.resv());
    export::end_given_back(obj, waited);
    told.and(waited)
}

/// Waits until the accesses that importers have announced by fences are over. `EBUSY`: they do not
/// end.
pub(crate) fn wait_for_accesses(resv: &Resv) -> Result {
    resv.wait(Usage::Bookkeep, msecs_to_jiffies(IMPORTERS_TIMEOUT_MS))
        .map_err(|_| EBUSY)
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
) -> Result {
    if obj.placement().kind() == Some(target) {
        return Ok(());
    }
    let result = move_to(obj, gpu, held, target);
    trace::migrate(obj, target, result);
    result
}

/// As [`migrate`], for an object that is elsewhere.
fn move_to(obj: &Object, gpu: &Gpu<'_>, held: Held<'_>, target: PlacementKind) -> Result {
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

    {
        let all = 0..u64::try_from(size)?;
        let src = View::new(gpu, &old, held, Purpose::Read)?;
        let dst = View::new(gpu, &new, held, Purpose::Write)?;
        // Not earlier: importers that are told may add fences, and would use up the room.
        let mut room = held.reserve_fences(1)?;
        let job = engine::copy(
            gpu.dev(),
            &gpu.engine_ring,
            src.extents(all.clone()),
            dst.extents(all),
        )?;
        if let Some(fence) = job.fence() {
            // For those who look at the buffer without its lock.
            room.add(fence, Usage::Kernel)?;
        }
        job.wait()?;
    }

    obj.state.lock().placement = new;
    if let Placement::Vram(vram) = old {
        gem::release_slots(obj, &vram);
    }
    Ok(())
}
