// SPDX-License-Identifier: GPL-2.0

//! Peers: who may reach an object, and whether they could.

use crate::{
    cgroup,
    driver::{
        DrmDevice,
        Gpu, //
    },
    gem::{
        self,
        Object,
        Placement,
        State, //
    },
    migrate,
    policy::PciAddress,
    pressure,
    refusal::{
        refuse,
        Reason, //
    }, //
};
use kernel::{
    cgroup::dmem::Charge,
    pci::p2pdma::{
        Peer,
        Route, //
    },
    prelude::*,
    sync::aref::ARef,
    task::Task,
    uapi, //
};

/// All flags that userspace can set.
const KNOWN_FLAGS: u32 = uapi::P2PGPU_PEER_EXPORTABLE
    | uapi::P2PGPU_PEER_RESERVE
    | uapi::P2PGPU_PEER_STRICT
    | uapi::P2PGPU_PEER_READ_ONLY;

/// Sets the flags of an object; who reaches it by the old ones is told to let go.
///
/// On an error the flags and promises are as they were.
pub(crate) fn set_flags(gpu: &Gpu<'_>, obj: &Object, flags: u32) -> Result {
    let exportable = flags & uapi::P2PGPU_PEER_EXPORTABLE != 0;
    if flags & !KNOWN_FLAGS != 0 || (flags != 0 && !exportable) {
        return Err(EINVAL);
    }
    let guard = obj.resv().lock_interruptible()?;
    let (old, pinned, owner) = {
        let state = obj.state.lock();
        (state.peer_flags, state.pins != 0, state.owner.clone())
    };
    let (set, cleared) = (flags & !old, old & !flags);
    let tells = cleared != 0 || set & uapi::P2PGPU_PEER_READ_ONLY != 0;
    if tells && pinned {
        return Err(EBUSY);
    }

    let reserves = set & uapi::P2PGPU_PEER_RESERVE != 0;
    let owner = match set & uapi::P2PGPU_PEER_EXPORTABLE {
        0 => owner,
        _ => Some(ARef::from(current!().group_leader())),
    };
    if reserves {
        reserve(gpu, obj, &owner)?;
    }
    if tells {
        if let Err(error) = migrate::invalidate(obj, guard.held()) {
            if reserves {
                // Nobody pins it, as somebody who does is not told.
                give_up(obj, &owner)?;
            }
            return Err(error);
        }
    }
    if cleared & uapi::P2PGPU_PEER_RESERVE != 0 {
        // Nor here: nothing else promises it slots.
        unreserve(obj)?;
    }
    let mut state = obj.state.lock();
    state.peer_flags = flags;
    let old = core::mem::replace(&mut state.owner, owner);
    drop(state);
    drop(old);
    Ok(())
}

/// Promises slots to an object of `owner`, unless it is pinned and has the promise already. On an
/// error nothing has changed.
fn reserve(gpu: &Gpu<'_>, obj: &Object, owner: &Option<ARef<Task>>) -> Result {
    let (dev, slots) = (obj.dev(), gem::page_count(obj)?);
    let added = dev.reservations.add(owner.clone(), slots);
    added.map_err(|error| match error {
        ENOSPC => refuse(obj, Reason::ReserveLimit),
        error => error,
    })?;
    let pinned = obj.state.lock().is_pinned_in_vram();
    let promised = match pinned {
        true => Ok(()),
        false => cgroup::charge_slots(gpu, obj).and_then(|charge| promise(obj, charge)),
    };
    promised.inspect_err(|_| dev.reservations.remove(owner, slots))?;
    dev.reserved_count(obj, true);
    Ok(())
}

fn promise(obj: &Object, charge: Charge) -> Result {
    pressure::promise(obj, charge).map_err(|error| match error {
        ENOSPC => refuse(obj, Reason::Reservation),
        error => error,
    })
}

/// Takes the promise back from a reserved object that nobody pins.
pub(crate) fn unreserve(obj: &Object) -> Result {
    let owner = obj.state.lock().owner.clone();
    give_up(obj, &owner)
}

fn give_up(obj: &Object, owner: &Option<ARef<Task>>) -> Result {
    obj.dev().reserved_count(obj, false);
    obj.dev().reservations.remove(owner, gem::page_count(obj)?);
    pressure::unpromise(obj)
}

/// Answers a query; its input fields are set.
pub(crate) fn query(
    dev: &DrmDevice,
    gpu: &Gpu<'_>,
    obj: &Object,
    args: &mut uapi::drm_p2pgpu_peer_query,
) -> Result {
    let (bus, device, function) = (
        u8::try_from(args.pci_bus).map_err(|_| EINVAL)?,
        u8::try_from(args.pci_device).map_err(|_| EINVAL)?,
        u8::try_from(args.pci_function).map_err(|_| EINVAL)?,
    );
    let domain = u16::try_from(args.pci_domain).map_err(|_| ENXIO)?;
    let peer = Peer::find(domain, bus, device, function)?.ok_or(ENXIO)?;
    let route = gpu.provider.route(peer.device());
    let pci = PciAddress([domain, bus.into(), device.into(), function.into()]);
    let allowed = peer.with_driver_name(|driver| dev.policy.allows(Some(pci), || driver))?;

    let pages = gem::page_count(obj)?;
    let total = u32::try_from(dev.aperture.total())?;
    let guard = obj.resv().lock_interruptible()?;
    let (shown, held) = match obj.placement() {
        Placement::Vram(vram) => dev.aperture.usage(gem::named(obj, &vram)?)?,
        Placement::System(_) | Placement::Imported(_) => (0, 0),
    };
    let counts = dev.aperture.counts();
    let state = obj.state.lock();
    let promised = state.is_promised();
    let flagged = state.has_flag(uapi::P2PGPU_PEER_EXPORTABLE);
    drop(state);
    drop(guard);

    // The object's own slots are not to be had: it has them.
    let own_lent = if promised { 0 } else { held };
    let others_idle = counts.idle.saturating_sub(shown.saturating_sub(held));
    let others_lent = counts.lent.saturating_sub(own_lent);
    // What could be lent if all others that have slots lent let go.
    let lendable = [counts.promised, counts.draining, own_lent]
        .into_iter()
        .fold(total, u32::saturating_sub);

    args.flags = 0;
    args.slots_needed = pages.saturating_sub(shown);
    args.slots_free = counts.free;
    args.slots_reclaimable = others_idle.saturating_add(others_lent);
    args.slots_reserved = dev.reserved();
    args.slots_pinned = counts.promised.saturating_sub(dev.reserved());
    args.slots_total = total;
    args.route = match route {
        Route::None => uapi::P2PGPU_ROUTE_NONE,
        Route::Switch => uapi::P2PGPU_ROUTE_SWITCH,
        Route::HostBridge => uapi::P2PGPU_ROUTE_HOST_BRIDGE,
        Route::Iommu => uapi::P2PGPU_ROUTE_IOMMU,
    };
    args.verdict = if !flagged {
        uapi::P2PGPU_PEER_NOT_FLAGGED
    } else if !allowed {
        uapi::P2PGPU_PEER_DENIED
    } else if route == Route::None {
        uapi::P2PGPU_PEER_NO_ROUTE
    } else if dev.aperture.is_broken() {
        uapi::P2PGPU_PEER_NO_SLOTS
    } else if promised {
        args.flags |= uapi::P2PGPU_PEER_QUERY_HOLDS;
        uapi::P2PGPU_PEER_YES
    } else if pages > total {
        uapi::P2PGPU_PEER_TOO_LARGE
    } else if pages.saturating_sub(held) > lendable {
        uapi::P2PGPU_PEER_NO_SLOTS
    } else {
        uapi::P2PGPU_PEER_YES
    };
    Ok(())
}

/// Slots promised to the object.
pub(crate) fn promised_slots(obj: &Object, state: &State) -> Result<u32> {
    if state.is_promised() {
        gem::page_count(obj)
    } else {
        Ok(0)
    }
}
