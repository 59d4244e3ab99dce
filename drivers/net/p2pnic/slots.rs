// SPDX-License-Identifier: GPL-2.0

//! A table of numbered things that the device keeps too: regions and queue pairs.

use kernel::{
    prelude::*,
    sync::Arc, //
};

enum Content<T> {
    Free,
    /// The number is taken; what it names is being made.
    Reserved,
    Used(Arc<T>),
}

struct Slot<T> {
    content: Content<T>,
    /// Tells what the slot holds from what it held before; 0 only before the first use.
    generation: u8,
}

/// A number taken in the table.
#[derive(Clone, Copy)]
pub(crate) struct Reserved {
    /// Place in the table.
    pub(crate) index: usize,
    /// Never 0.
    pub(crate) generation: u8,
}

/// A fixed number of slots.
pub(crate) struct Slots<T> {
    slots: KVVec<Slot<T>>,
    /// Where [`Self::reserve_rested`] looks first.
    next: usize,
    used: u32,
}

impl<T> Slots<T> {
    /// A table of `count` slots.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut slots = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            slots.push(
                Slot {
                    content: Content::Free,
                    generation: 0,
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Self {
            slots,
            next: 0,
            used: 0,
        })
    }

    /// Number of slots.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of slots in use.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Takes the lowest free number. `ENOSPC`: there is none.
    pub(crate) fn reserve_lowest(&mut self) -> Result<Reserved> {
        self.reserve_from(0)
    }

    /// Takes a free number that was not in use lately. `ENOSPC`: there is none.
    pub(crate) fn reserve_rested(&mut self) -> Result<Reserved> {
        let reserved = self.reserve_from(self.next)?;
        self.next = reserved.index.wrapping_add(1);
        Ok(reserved)
    }

    fn reserve_from(&mut self, start: usize) -> Result<Reserved> {
        let start = start.min(self.slots.len());
        let (before, from) = self.slots.split_at_mut_checked(start).ok_or(EINVAL)?;
        for (index, slot) in Iterator::chain((start..).zip(from), (0..).zip(before)) {
            if matches!(slot.content, Content::Free) {
                slot.content = Content::Reserved;
                slot.generation = slot.generation.checked_add(1).unwrap_or(1);
                let generation = slot.generation;
                return Ok(Reserved { index, generation });
            }
        }
        Err(ENOSPC)
    }

    /// Puts `value` into the slot of a reserved number.
    pub(crate) fn fill(&mut self, index: usize, value: Arc<T>) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.content = Content::Used(value);
            self.used += 1;
        }
    }

    /// What the slot holds.
    pub(crate) fn get(&self, index: usize) -> Option<&Arc<T>> {
        match &self.slots.get(index)?.content {
            Content::Used(value) => Some(value),
            Content::Free | Content::Reserved => None,
        }
    }

    /// Takes one value that `wanted` picks; its number stays reserved until [`Self::free`].
    ///
    /// The device must have forgotten a number before it is free again.
    pub(crate) fn take(&mut self, wanted: impl Fn(&T) -> bool) -> Option<(usize, Arc<T>)> {
        let index = self
            .slots
            .iter()
            .position(|slot| matches!(&slot.content, Content::Used(value) if wanted(value)))?;
        Some((index, self.take_at(index)?))
    }

    /// As [`Self::take`], by number.
    pub(crate) fn take_at(&mut self, index: usize) -> Option<Arc<T>> {
        let slot = self.slots.get_mut(index)?;
        if !matches!(slot.content, Content::Used(_)) {
            return None;
        }
        match core::mem::replace(&mut slot.content, Content::Reserved) {
            Content::Used(value) => {
                self.used -= 1;
                Some(value)
            }
            Content::Free | Content::Reserved => None,
        }
    }

    /// Gives a reserved number back.
    pub(crate) fn free(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.content = Content::Free;
        }
    }
}
