// SPDX-License-Identifier: GPL-2.0
//! The marks of a rig: the numbers behind them are part of its situation.

use std::mem::swap;

use crate::memory::TABLE;

/// Runs `f` on the numbers of `table` instead of those of the thread.
pub fn with_table<R>(table: &mut Vec<u32>, f: impl FnOnce() -> R) -> R {
    TABLE.with_borrow_mut(|numbers| swap(numbers, table));
    let result = f();
    TABLE.with_borrow_mut(|numbers| swap(numbers, table));
    result
}

/// The number at a place.
pub fn number(place: usize) -> u32 {
    TABLE.with_borrow(|table| table[place])
}

/// How many numbers there are: the place of the next one.
pub fn count() -> usize {
    TABLE.with_borrow(Vec::len)
}
