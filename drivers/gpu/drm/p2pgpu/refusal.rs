// SPDX-License-Identifier: GPL-2.0

//! Refusals: why a peer does not get what it asks for, and how often that happened.

use crate::{
    driver::DrmDevice,
    gem::Object,
    trace, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

macro_rules! reasons {
    ($( $(#[$doc:meta])* $reason:ident, $name:literal, $errno:ident; )+) => {
        /// Why a peer is refused.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Reason {
            $( $(#[$doc])* $reason, )+
        }

        impl Reason {
            const ALL: &[Self] = &[$(Self::$reason),+];

            /// What debugfs and the trace call it.
            pub(crate) fn name(self) -> &'static CStr {
                match self { $(Self::$reason => $name,)+ }
            }

            /// What the importer gets.
            fn error(self) -> Error {
                match self { $(Self::$reason => $errno,)+ }
            }
        }
    };
}

reasons! {
    /// The object is not flagged exportable.
    NotFlagged, c"not_flagged", EPERM;
    /// The device's policy denies the importer.
    Policy, c"policy", EPERM;
    /// Peers may only read the object, and the importer would be able to write.
    ReadOnly, c"read_only", EACCES;
    /// The importer cannot be a peer, and the object is strict, or was named by a user address.
    NoRoute, c"no_route", EXDEV;
    /// The object is strict or is to be pinned, and there are too few slots.
    NoSlots, c"no_slots", ENOSPC;
    /// Importers pin as much as they may.
    PinLimit, c"pin_limit", ENOSPC;
    /// The process that reserves the object has as much reserved as it may.
    ReserveLimit, c"reserve_limit", ENOSPC;
    /// A cgroup has as much VRAM as it may.
    CgroupVram, c"cgroup_vram", ENOSPC;
    /// A cgroup has as many slots promised as it may.
    CgroupAperture, c"cgroup_aperture", ENOSPC;
    /// The slots for a reservation are promised to others.
    Reservation, c"reservation", ENOSPC;
    /// The importer neither pins nor can be told to let go.
    Deaf, c"deaf", EOPNOTSUPP;
}

/// How often each reason was given, on a device.
pub(crate) struct Refusals([Atomic<u64>; Reason::ALL.len()]);

impl Refusals {
    pub(crate) fn new() -> Self {
        Self([const { Atomic::new(0) }; Reason::ALL.len()])
    }

    fn count(&self, reason: Reason) {
        // CAST: The reasons are numbered from 0.
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Names of the reasons, and how often each was given.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static CStr, u64)> + '_ {
        let counts = self.0.iter().map(|counter| counter.load(Relaxed));
        Reason::ALL.iter().map(|reason| reason.name()).zip(counts)
    }
}

/// Counts and traces a refusal, and says how it ends.
pub(crate) fn refuse(obj: &Object, reason: Reason) -> Error {
    obj.state.lock().refusals += 1;
    count(obj.dev(), Some(obj), reason)
}

/// As [`refuse`], for an object that was to be made.
pub(crate) fn refuse_new(dev: &DrmDevice, reason: Reason) -> Error {
    count(dev, None, reason)
}

fn count(dev: &DrmDevice, obj: Option<&Object>, reason: Reason) -> Error {
    let error = reason.error();
    dev.refusals.count(reason);
    trace::refuse(dev, obj, reason, error);
    error
}
