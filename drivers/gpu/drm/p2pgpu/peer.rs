// SPDX-License-Identifier: GPL-2.0

//! Peers: who may reach an object, and whether they could now.

use crate::{
    driver::{
        DrmDevice,
        Gpu, //
    },
    gem::{
        self,
        Object,
        Placement, //
    },
    migrate,
    regs::SLOT_SHIFT, //
};
use kernel::{
    drm::gem::BaseObject,
    pci::p2pdma::Route,
    prelude::*,
    uapi, //
};

/// All flags that userspace can set.
const KNOWN_FLAGS: u32 = uapi::P2PGPU_PEER_EXPORTABLE;

/// Sets the flags of an object; who is no longer allowed to reach it is told to let go.
pub(crate) fn set_flags(obj: &Object, flags: u32) -> Result {
    if flags & !KNOWN_FLAGS != 0 {
        return Err(EINVAL);
    }
    let guard = obj.resv().lock_interruptible()?;
    let cleared = {
        let mut state = obj.state.lock();
        let cleared = state.peer_flags & !flags;
        state.peer_flags = flags;
        cleared
    };
    if cleared & uapi::P2PGPU_PEER_EXPORTABLE != 0 {
        migrate::invalidate(obj, guard.held())?;
    }
    Ok(())
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
    let route = gpu
        .provider
        .route_to(domain, bus, device, function)?
        .ok_or(ENXIO)?;

    let pages = u32::try_from(obj.size() >> SLOT_SHIFT)?;
    let total = u32::try_from(dev.aperture.total())?;
    let guard = obj.resv().lock_interruptible()?;
    // A page that a slot shows needs none, and if no peer holds the slot it is also one that can
    // be had: it must not count twice.
    let (shown, held) = match obj.placement() {
        Placement::Vram(vram) => dev.aperture.usage(gem::names(obj)?, &vram)?,
        Placement::System(_) => (0, 0),
    };
    let flags = obj.state.lock().peer_flags;
    drop(guard);
    let available = dev.aperture.available();
    let others = available.saturating_sub(shown.saturating_sub(held));

    args.slots_needed = pages.saturating_sub(shown);
    args.slots_available = available;
    args.slots_total = total;
    args.route = match route {
        Route::None => uapi::P2PGPU_ROUTE_NONE,
        Route::Switch => uapi::P2PGPU_ROUTE_SWITCH,
        Route::HostBridge => uapi::P2PGPU_ROUTE_HOST_BRIDGE,
    };
    args.verdict = if flags & uapi::P2PGPU_PEER_EXPORTABLE == 0 {
        uapi::P2PGPU_PEER_NOT_FLAGGED
    } else if route == Route::None {
        uapi::P2PGPU_PEER_NO_ROUTE
    } else if pages > total {
        uapi::P2PGPU_PEER_TOO_LARGE
    } else if args.slots_needed > others {
        uapi::P2PGPU_PEER_NO_SLOTS
    } else {
        uapi::P2PGPU_PEER_YES
    };
    Ok(())
}
