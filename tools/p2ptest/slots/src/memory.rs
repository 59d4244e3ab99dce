// SPDX-License-Identifier: GPL-2.0
//! Where the tables of the slots live on the host.

use std::cell::RefCell;
use std::mem::swap;

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

/// An atomic number: a place in the table of the thread, so that who searches all situations can
/// keep the numbers of each.
pub struct Mark(usize);

thread_local! {
    static TABLE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Mark {
    fn with<R>(&self, f: impl FnOnce(&mut u32) -> R) -> R {
        TABLE.with_borrow_mut(|table| f(&mut table[self.0]))
    }

    /// Runs `f` on the numbers of `table` instead of those of the thread.
    #[allow(dead_code, reason = "benchmarks have no use for it")]
    pub fn with_table<R>(table: &mut Vec<u32>, f: impl FnOnce() -> R) -> R {
        TABLE.with_borrow_mut(|numbers| swap(numbers, table));
        let result = f();
        TABLE.with_borrow_mut(|numbers| swap(numbers, table));
        result
    }

    /// The number at a place.
    #[allow(dead_code, reason = "benchmarks have no use for it")]
    pub fn number(place: usize) -> u32 {
        TABLE.with_borrow(|table| table[place])
    }

    /// How many numbers there are: the place of the next one.
    #[allow(dead_code, reason = "benchmarks have no use for it")]
    pub fn count() -> usize {
        TABLE.with_borrow(Vec::len)
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
