// SPDX-License-Identifier: GPL-2.0
//! Where the tables of the slots live on the host.

use std::cell::RefCell;

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

/// An atomic number: a place in the [`TABLE`] of the thread.
pub struct Mark(usize);

thread_local! {
    /// The numbers, in the order of their making: who searches all situations keeps those of each.
    pub static TABLE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Mark {
    fn with<R>(&self, f: impl FnOnce(&mut u32) -> R) -> R {
        TABLE.with_borrow_mut(|table| f(&mut table[self.0]))
    }
}

impl lease::Mark for Mark {
    fn new(value: u32) -> Self {
        TABLE.with_borrow_mut(|table| {
            table.push(value);
            Self(table.len() - 1)
        })
    }

    fn get(&self) -> u32 {
        self.with(|number| *number)
    }

    fn set(&self, value: u32) {
        self.with(|number| *number = value);
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.with(|number| {
            let is_from = *number == from;
            if is_from {
                *number = to;
            }
            is_from
        })
    }
}
