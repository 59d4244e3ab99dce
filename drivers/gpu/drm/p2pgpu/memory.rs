// SPDX-License-Identifier: GPL-2.0

//! Where the tables of the slots live in the kernel.

use crate::slots::{
    lease,
    Storage, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    }, //
};

/// Memory that need not be contiguous.
pub(crate) struct KernelMemory;

impl Storage for KernelMemory {
    type Error = Error;
    const TOO_MANY: Error = EINVAL;
    type Mark = Mark;
    type Array<T: Copy> = KVVec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<KVVec<T>> {
        Ok(KVVec::from_elem(value, len, GFP_KERNEL)?)
    }
}

/// An atomic number.
pub(crate) struct Mark(Atomic<u32>);

impl lease::Mark for Mark {
    fn new(value: u32) -> Self {
        Self(Atomic::new(value))
    }

    fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    fn set(&self, value: u32) {
        self.0.xchg(value, Full);
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.0.cmpxchg(from, to, Full).is_ok()
    }
}
