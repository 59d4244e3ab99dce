// SPDX-License-Identifier: GPL-2.0
//! What a device says of itself between any two steps.

use super::{Machine, Wrong, ioctl};
use crate::fuzz::generate::{FILES, FileId};
use crate::fuzz::table::Driver;
use crate::sys::uapi::*;
use std::os::fd::AsRawFd;

impl Machine {
    /// What must hold between any two steps.
    ///
    /// # Errors
    ///
    /// What does not.
    pub fn check(&self) -> Result<(), Wrong> {
        for id in (0..FILES.len()).map(FileId) {
            if FILES[id.0].0 == Driver::Gpu {
                self.check_gpu(id)?;
            }
        }
        Ok(())
    }

    fn check_gpu(&self, id: FileId) -> Result<(), Wrong> {
        let param = |param: u32| {
            let mut argument = drm_p2pgpu_getparam {
                param: param.into(),
                value: 0,
            };
            let fd = self.file(id).as_raw_fd();
            // SAFETY: the structure is the one that the request is for.
            unsafe { ioctl(fd, DRM_IOCTL_P2PGPU_GETPARAM, (&raw mut argument).cast()) }
                .map_err(|errno| Wrong(format!("GETPARAM {param}: {errno}")))?;
            Ok(argument.value)
        };
        let total = param(P2PGPU_PARAM_SLOTS_TOTAL)?;
        let reserved = param(P2PGPU_PARAM_SLOTS_RESERVED)?;
        let pinned = param(P2PGPU_PARAM_SLOTS_PINNED)?;
        let free = param(P2PGPU_PARAM_VRAM_FREE)?;
        for (name, number, limit) in [
            ("available", param(P2PGPU_PARAM_SLOTS_AVAILABLE)?, total),
            ("lent", param(P2PGPU_PARAM_SLOTS_LENT)?, total),
            ("draining", param(P2PGPU_PARAM_SLOTS_DRAINING)?, total),
            ("promised", reserved + pinned, total),
            ("free VRAM", free, param(P2PGPU_PARAM_VRAM_SIZE)?),
        ] {
            if number > limit {
                return Err(Wrong(format!("{name}: {number} of {limit}")));
            }
        }
        Ok(())
    }
}
