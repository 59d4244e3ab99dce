// SPDX-License-Identifier: GPL-2.0

//! Which slot shows which page: a map and its inverse, without memory or locks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Stands for "not installed"; no VRAM has that many pages.
const EMPTY: u32 = u32::MAX;

/// The slot that already shows the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias(pub u32);

/// The translations in force. A page has at most one slot, and a slot at most one page.
#[derive(Debug)]
pub struct Tlb {
    pages: Vec<u32>,
    slots: HashMap<u32, u32>,
}

impl Tlb {
    /// `slots` empty slots.
    pub fn new(slots: u32) -> Self {
        Self {
            pages: vec![EMPTY; slots as usize],
            slots: HashMap::new(),
        }
    }

    /// The page that a slot shows; none for a slot that does not exist.
    pub fn page(&self, slot: u32) -> Option<u32> {
        self.pages
            .get(slot as usize)
            .copied()
            .filter(|page| *page != EMPTY)
    }

    /// The slot that shows a page.
    pub fn slot(&self, page: u32) -> Option<u32> {
        self.slots.get(&page).copied()
    }

    /// Number of slots that are installed.
    pub fn installed(&self) -> usize {
        self.slots.len()
    }

    /// Lets an empty slot show a page, unless another slot does.
    pub fn install(&mut self, slot: u32, page: u32) -> Result<(), Alias> {
        match self.slots.entry(page) {
            Entry::Occupied(other) => Err(Alias(*other.get())),
            Entry::Vacant(vacant) => {
                if let Some(place) = self.pages.get_mut(slot as usize) {
                    debug_assert_eq!(*place, EMPTY, "slot {slot} is installed");
                    *place = page;
                    vacant.insert(slot);
                }
                Ok(())
            }
        }
    }

    /// Empties a slot; says what it showed.
    pub fn remove(&mut self, slot: u32) -> Option<u32> {
        let page = self.page(slot)?;
        self.pages[slot as usize] = EMPTY;
        self.slots.remove(&page);
        Some(page)
    }

    /// The installed slots with their pages, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..)
            .zip(self.pages.iter().copied())
            .filter(|(_, page)| *page != EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_shown_once() {
        let mut tlb = Tlb::new(4);
        assert_eq!(tlb.install(0, 7), Ok(()));
        assert_eq!(tlb.install(1, 7), Err(Alias(0)));
        assert_eq!(
            (tlb.page(0), tlb.page(1), tlb.slot(7)),
            (Some(7), None, Some(0))
        );
        assert_eq!(tlb.remove(0), Some(7));
        assert_eq!(tlb.install(1, 7), Ok(()));
        assert_eq!(tlb.iter().collect::<Vec<_>>(), [(1, 7)]);
    }

    #[test]
    fn slots_that_do_not_exist_are_empty() {
        let mut tlb = Tlb::new(4);
        assert_eq!(tlb.install(4, 1), Ok(()));
        assert_eq!(
            (tlb.page(4), tlb.remove(u32::MAX), tlb.installed()),
            (None, None, 0)
        );
    }
}
