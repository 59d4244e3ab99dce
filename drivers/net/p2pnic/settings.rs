// SPDX-License-Identifier: GPL-2.0

//! What the administrator of a NIC sets: files in the sysfs folder of the PCI device.

use crate::nic::Nic;
use core::{
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
    fmt::{
        self,
        Write, //
    },
    prelude::*,
    str::Formatter,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Delta, //
};

/// A time that can be set.
pub(crate) struct Time(Atomic<u32>);

impl Time {
    /// Longest, in milliseconds.
    const MOST: u32 = 600_000;

    pub(crate) const fn from_millis(millis: u32) -> Self {
        Self(Atomic::new(millis))
    }

    pub(crate) fn get(&self) -> Delta {
        Delta::from_millis(self.0.load(Relaxed).into())
    }
}

/// Which time a file is for.
trait Setting: Send + Sync {
    const NAME: &'static CStr;
    /// In milliseconds.
    const RANGE: RangeInclusive<u32>;

    fn time(nic: &Nic) -> &Time;
}

/// How long a failure to map a region that could pass is taken for such a one.
struct MapTimeout;

impl Setting for MapTimeout {
    const NAME: &'static CStr = c"map_timeout_ms";
    const RANGE: RangeInclusive<u32> = 0..=Time::MOST;

    fn time(nic: &Nic) -> &Time {
        &nic.map_timeout
    }
}

/// How long the device may take to answer a command of the mailbox.
struct AnswerTimeout;

impl Setting for AnswerTimeout {
    const NAME: &'static CStr = c"answer_timeout_ms";
    const RANGE: RangeInclusive<u32> = 1..=Time::MOST;

    fn time(nic: &Nic) -> &Time {
        &nic.mailbox.answer_timeout
    }
}

/// How long the device may take for a reset. The device that is bound anew has the default.
struct ResetTimeout;

impl Setting for ResetTimeout {
    const NAME: &'static CStr = c"reset_timeout_ms";
    const RANGE: RangeInclusive<u32> = 1..=Time::MOST;

    fn time(nic: &Nic) -> &Time {
        &nic.mailbox.reset_timeout
    }
}

/// A time as a file, in milliseconds.
struct TimeFile<S>(Arc<Nic>, PhantomData<S>);

impl<S: Setting> Attribute for TimeFile<S> {
    const NAME: &'static CStr = S::NAME;

    fn show(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", S::time(&self.0).0.load(Relaxed))
    }

    fn store(&self, text: &str) -> Result {
        let number = text.trim().parse().map_err(|_| EINVAL)?;
        if !S::RANGE.contains(&number) {
            return Err(EINVAL);
        }
        S::time(&self.0).0.store(number, Relaxed);
        Ok(())
    }
}

type Made<'bound, S> = Pin<KBox<File<'bound, TimeFile<S>>>>;

/// All files of a NIC, until this is dropped.
pub(crate) struct Settings<'bound> {
    _map_timeout: Made<'bound, MapTimeout>,
    _answer_timeout: Made<'bound, AnswerTimeout>,
    _reset_timeout: Made<'bound, ResetTimeout>,
}

impl<'bound> Settings<'bound> {
    pub(crate) fn new(dev: &'bound Device<Bound>, nic: &Arc<Nic>) -> Result<Self> {
        Ok(Self {
            _map_timeout: File::new(dev, TimeFile(nic.clone(), PhantomData))?,
            _answer_timeout: File::new(dev, TimeFile(nic.clone(), PhantomData))?,
            _reset_timeout: File::new(dev, TimeFile(nic.clone(), PhantomData))?,
        })
    }
}
