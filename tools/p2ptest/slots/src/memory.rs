// SPDX-License-Identifier: GPL-2.0
//! Where the tables of the slots live on the host.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::slots::{Storage, lease};

/// Vectors.
#[derive(Clone)]
pub struct HostMemory;

impl Storage for HostMemory {
    type Error = &'static str;
    const TOO_MANY: Self::Error = "too many slots";
    type Mark = Mark;
    type Array<T: Copy> = Vec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<Vec<T>, Self::Error> {
        Ok(vec![value; len])
    }
}

/// An atomic number.
pub struct Mark(AtomicU32);

impl lease::Mark for Mark {
    fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    fn get(&self) -> u32 {
        self.0.load(SeqCst)
    }

    fn set(&self, value: u32) {
        self.0.store(value, SeqCst);
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.0.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }
}
