// SPDX-License-Identifier: GPL-2.0

//! What cgroups may have of a device, by the `dmem` controller: a region for VRAM, and one for the
//! aperture beside it.
//!
//! VRAM is charged when it is allocated, to whoever creates or moves the object. Slots are charged
//! when they are promised, to whoever reserves or pins the object: a promise keeps others from using
//! them. Slots without one can be taken back at any time, and are not charged.

use crate::{
    driver::{
        DrmDevice,
        Gpu, //
    },
    gem::{
        self,
        Object, //
    },
    refusal::{
        refuse,
        refuse_new,
        Reason, //
    }, //
};
use kernel::{
    cgroup::dmem::{
        Charge,
        Region, //
    },
    prelude::*,
    str::CString, //
};

/// The regions of a device.
pub(crate) struct Regions {
    vram: Region,
    aperture: Region,
}

impl Regions {
    /// Registers them for the device of this PCI address: so many bytes of VRAM, and of slots.
    pub(crate) fn new(address: &CStr, vram: u64, aperture: u64) -> Result<Self> {
        let address = address.to_str().map_err(|_| EINVAL)?;
        let region = |size, memory| {
            let name = CString::try_from_fmt(fmt!("drm/{address}/{memory}"))?;
            Region::new(size, &name)
        };
        Ok(Self {
            vram: region(vram, "vram")?,
            aperture: region(aperture, "aperture")?,
        })
    }
}

/// Charges so many bytes of VRAM for `obj`, or for an object that is to be made. `ENOSPC`: a limit
/// is in the way.
pub(crate) fn charge_vram(
    dev: &DrmDevice,
    gpu: &Gpu<'_>,
    obj: Option<&Object>,
    size: usize,
) -> Result<Charge> {
    let charged = gpu.cgroups.vram.try_charge(u64::try_from(size)?);
    charged.map_err(|error| match (error, obj) {
        (EAGAIN, Some(obj)) => refuse(obj, Reason::CgroupVram),
        (EAGAIN, None) => refuse_new(dev, Reason::CgroupVram),
        (error, _) => error,
    })
}

/// Charges the slots that are to be promised to the object. `ENOSPC`: a limit is in the way.
pub(crate) fn charge_slots(gpu: &Gpu<'_>, obj: &Object) -> Result<Charge> {
    let size = gem::slot_bytes(gem::page_count(obj)?);
    let charged = gpu.cgroups.aperture.try_charge(size);
    charged.map_err(|error| match error {
        EAGAIN => refuse(obj, Reason::CgroupAperture),
        error => error,
    })
}
