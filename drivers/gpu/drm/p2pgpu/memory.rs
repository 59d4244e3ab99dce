// SPDX-License-Identifier: GPL-2.0

//! Where the tables of the slots live in the kernel.

use crate::slots::Storage;
use kernel::prelude::*;

/// Memory that need not be contiguous.
pub(crate) struct KernelMemory;

impl Storage for KernelMemory {
    type Error = Error;
    const TOO_MANY: Error = EINVAL;
    type Array<T: Copy> = KVVec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<KVVec<T>> {
        Ok(KVVec::from_elem(value, len, GFP_KERNEL)?)
    }
}
