// SPDX-License-Identifier: GPL-2.0

//! What the administrator of a device sets: files in the sysfs folder of the PCI device.

use crate::{
    driver::{
        DrmDevice,
        DrmDriver, //
    },
    limits,
    patience,
    policy::PolicyFile,
    pressure::Grace, //
};
use core::{
    fmt::Write,
    marker::PhantomData,
    ops::RangeInclusive, //
};
use kernel::{
    device::{
        attribute::{
            Attribute,
            File, //
        },
        Bound,
        Device, //
    },
    drm::RegisteredRef,
    fmt,
    prelude::*,
    str::Formatter, //
};

/// A setting that is a number.
pub(crate) trait Number: Send + Sync {
    /// Name of its file.
    const NAME: &'static CStr;
    /// The numbers that it can be set to.
    const RANGE: RangeInclusive<u32> = 0..=u32::MAX;

    fn get(dev: &DrmDevice) -> u32;
    fn set(dev: &DrmDevice, number: u32);
}

/// A number as a file, in decimal.
struct NumberFile<N>(RegisteredRef<DrmDriver>, PhantomData<N>);

impl<N: Number> Attribute for NumberFile<N> {
    const NAME: &'static CStr = N::NAME;

    fn show(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let dev = self.0.registration_guard().ok_or(fmt::Error)?;
        writeln!(f, "{}", N::get(&dev))
    }

    fn store(&self, text: &str) -> Result {
        let dev = self.0.registration_guard().ok_or(ENODEV)?;
        let number = text.trim().parse().map_err(|_| EINVAL)?;
        if !N::RANGE.contains(&number) {
            return Err(EINVAL);
        }
        N::set(&dev, number);
        Ok(())
    }
}

type Made<'bound, T> = Pin<KBox<File<'bound, T>>>;

/// All files of a device, until this is dropped.
pub(crate) struct Settings<'bound> {
    _pin_limit: Made<'bound, NumberFile<limits::Pins>>,
    _pin_limit_process: Made<'bound, NumberFile<limits::PinsOfProcess>>,
    _reserve_limit: Made<'bound, NumberFile<limits::Reservations>>,
    _reserve_limit_process: Made<'bound, NumberFile<limits::ReservationsOfProcess>>,
    _peer_grace: Made<'bound, NumberFile<Grace>>,
    _copy_timeout: Made<'bound, NumberFile<patience::OfCopies>>,
    _flush_timeout: Made<'bound, NumberFile<patience::OfFlushes>>,
    _job_timeout: Made<'bound, NumberFile<patience::OfJobs>>,
    _reset_timeout: Made<'bound, NumberFile<patience::OfResets>>,
    _importer_timeout: Made<'bound, NumberFile<patience::OfImporters>>,
    _peer_policy: Made<'bound, PolicyFile>,
}

impl<'bound> Settings<'bound> {
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        drm: impl Fn() -> RegisteredRef<DrmDriver>,
    ) -> Result<Self> {
        Ok(Self {
            _pin_limit: number(dev, drm())?,
            _pin_limit_process: number(dev, drm())?,
            _reserve_limit: number(dev, drm())?,
            _reserve_limit_process: number(dev, drm())?,
            _peer_grace: number(dev, drm())?,
            _copy_timeout: number(dev, drm())?,
            _flush_timeout: number(dev, drm())?,
            _job_timeout: number(dev, drm())?,
            _reset_timeout: number(dev, drm())?,
            _importer_timeout: number(dev, drm())?,
            _peer_policy: File::new(dev, PolicyFile::new(drm()))?,
        })
    }
}

fn number<'bound, N: Number>(
    dev: &'bound Device<Bound>,
    drm: RegisteredRef<DrmDriver>,
) -> Result<Made<'bound, NumberFile<N>>> {
    File::new(dev, NumberFile(drm, PhantomData))
}
