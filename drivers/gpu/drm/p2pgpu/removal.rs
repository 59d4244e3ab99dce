// SPDX-License-Identifier: GPL-2.0

//! Going away, for good or for a reset: taking back what importers have, and the devices that an
//! importer does not let go.
//!
//! What an importer maps are addresses of the BAR. If it keeps them for longer than unbinding
//! waits, the object's memory stays as it is, and the device must not be bound again: another
//! object would be shown at these addresses.

use crate::{
    driver::{
        DrmDevice,
        DrmDriver, //
    },
    mapping,
    migrate, //
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    dma_buf::resv::Usage,
    drm::{
        gem::managed,
        RegisteredRef, //
    },
    io::poll::read_poll_timeout,
    pci,
    prelude::*,
    sync::aref::ARef,
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

kernel::sync::global_lock! {
    // SAFETY: `Root::new` initializes it before a device can be probed.
    unsafe(uninit) static DEVICES: Mutex<KVec<ARef<DrmDevice>>> = KVec::new();
}

/// The devices of the module: those that are bound, and those that importers have not let go.
pub(crate) struct Root;

impl Root {
    /// # Safety
    ///
    /// Called once, before the driver is registered.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: The caller promises that this is the first use.
        unsafe { DEVICES.init() };
        Self
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The static is not dropped with the module. Nobody has a mapping: each dma-buf keeps the
        // module loaded.
        let devices = core::mem::replace(&mut *DEVICES.lock(), KVec::new());
        drop(devices);
    }
}

fn is_at(dev: &DrmDevice, pdev: &pci::Device<Bound>) -> bool {
    let parent: &pci::Device = dev.as_ref();
    parent.as_ref().name() == pdev.as_ref().name()
}

/// Before anything is done to a device that is being bound. `EBUSY`: importers still hold addresses
/// of an earlier binding.
pub(crate) fn check(pdev: &pci::Device<Bound>) -> Result {
    let devices = DEVICES.lock();
    for dev in devices.iter().filter(|dev| is_at(dev, pdev)) {
        let kept = dev.mappings();
        if kept != 0 {
            dev_err!(
                pdev,
                "importers keep {} mappings of an earlier binding\n",
                kept
            );
            return Err(EBUSY);
        }
    }
    Ok(())
}

/// Keeps a device from being bound again while importers hold mappings of it.
pub(crate) struct Entry(ARef<DrmDevice>);

impl Entry {
    /// Of a device that [`check`] lets be bound.
    pub(crate) fn new(pdev: &pci::Device<Bound>, dev: &DrmDevice) -> Result<Self> {
        let mut devices = DEVICES.lock();
        while let Some(index) = devices.iter().position(|other| is_at(other, pdev)) {
            devices.remove(index)?;
        }
        devices.push(dev.into(), GFP_KERNEL)?;
        Ok(Self(dev.into()))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut devices = DEVICES.lock();
        let known = devices
            .iter()
            .position(|dev| core::ptr::eq(&**dev, &*self.0));
        if self.0.mappings() == 0 {
            let removed = known.and_then(|index| devices.remove(index).ok());
            drop(devices);
            drop(removed);
        }
    }
}

/// Before the device is unbound: takes back what importers have, while the hardware still answers.
pub(crate) fn unbind(pdev: &pci::Device<Bound>, drm: &RegisteredRef<DrmDriver>) {
    drm.leave();
    // Jobs first: importers wait for their fences.
    if let Some(dev) = drm.registration_guard() {
        dev.registration_data_with(|gpu| gpu.scheduler.leave(gpu));
    }
    take_back(pdev, drm);
}

/// Before a reset, which takes all translations and rings from the device but not its memory: nobody
/// uses it on return.
pub(crate) fn before_reset(pdev: &pci::Device<Bound>, drm: &RegisteredRef<DrmDriver>) {
    let Some(dev) = drm.registration_guard() else {
        return;
    };
    dev.reset_begins();
    take_back(pdev, &dev);
    dev.aperture.suspend();
    // Those of objects in system memory come back at once.
    let all: &DrmDevice = &dev;
    managed::zap_offsets(all, 0..u64::MAX);
    dev.registration_data_with(|gpu| {
        gpu.engine_ring.suspend();
        gpu.aperture_ring.suspend();
    });
}

/// After a reset: all goes on, as objects have kept their bytes.
pub(crate) fn after_reset(pdev: &pci::Device<Core<'_>>, drm: &RegisteredRef<DrmDriver>) {
    let Some(dev) = drm.registration_guard() else {
        return;
    };
    pdev.set_master();
    let started = dev.registration_data_with(|gpu| gpu.start_again(&dev));
    if let Err(error) = started {
        dev.registration_data_with(|gpu| gpu.give_up(&dev.aperture));
        dev_err!(pdev, "does not come back from a reset: {:?}\n", error);
    }
    dev.reset_ends(started.is_ok());
}

/// Takes back what importers have. Waits for those that do not let go at once, but not for ever.
fn take_back(pdev: &pci::Device<Bound>, dev: &DrmDevice) {
    let start = Instant::<Monotonic>::now();
    // All are told before any is waited for.
    dev.for_each_attached_unlocked(|obj| {
        let guard = obj.resv().lock();
        if let Err(error) = migrate::tell_importers(obj, guard.held()) {
            dev_err!(pdev, "importers cannot be told: {:?}\n", error);
        }
    });
    let most = dev.patience.importers_ms();
    let left = || {
        let waited = u32::try_from(start.elapsed().as_millis()).unwrap_or(most);
        most.saturating_sub(waited)
    };
    dev.for_each_attached_unlocked(|obj| {
        // Who does not signal in time is counted below, as long as it does not unmap.
        let waited = obj
            .resv()
            .wait(Usage::Bookkeep, msecs_to_jiffies(left().max(1)));
        mapping::end_given_back(obj, waited);
    });
    let unmapped = read_poll_timeout(
        || Ok(dev.mappings()),
        |&mappings| mappings == 0,
        Delta::from_millis(1),
        Delta::from_millis(left().into()),
    );
    if unmapped.is_err() {
        dev_err!(
            pdev,
            "importers do not let go of {} mappings: their memory stays, and a device that goes is not bound again before they do\n",
            dev.mappings()
        );
    }
}
