// SPDX-License-Identifier: GPL-2.0
//! Where the tables of the slots live on the host.

use crate::slots::Storage;

/// Vectors.
#[derive(Clone)]
pub struct HostMemory;

impl Storage for HostMemory {
    type Error = &'static str;
    const TOO_MANY: Self::Error = "too many slots";
    type Array<T: Copy> = Vec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<Vec<T>, Self::Error> {
        Ok(vec![value; len])
    }
}
