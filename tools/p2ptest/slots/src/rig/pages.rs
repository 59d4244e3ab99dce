// SPDX-License-Identifier: GPL-2.0
//! Pages that come into slots and leave them.

use std::ops::Range;
use std::rc::Rc;

use super::{At, Held, NOWHERE, Peer, Rig, marks};
use crate::slots::lease::Lease;
use crate::slots::{Class, PageName, Released, Slot, SlotId, Took};

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    /// The hardware shows something else in the slot: nobody may be looking.
    pub(super) fn show(&mut self, slot: SlotId, page: Option<PageName>) {
        assert_eq!(self.state.slots.get(slot), Some(Slot::Taken));
        assert!(!self.is_used(slot), "slot {slot} is reused under a peer");
        assert!(!self.books.cpu.contains(&Some(slot)), "a CPU sees {slot}");
        self.books.shown[slot as usize] = page;
    }

    /// Whether a peer uses the slot.
    fn is_used(&self, slot: SlotId) -> bool {
        let uses = |peer: &Peer| peer.at == At::Mapped && peer.held.lease.slots().contains(&slot);
        self.books.peers.iter().any(uses)
    }

    /// Panics unless a peer that has just mapped finds its pages.
    pub(super) fn assert_sees_pages(&self, peer: usize) {
        let Peer {
            object,
            pages,
            held,
            ..
        } = &self.books.peers[peer];
        let class = self.books.objects[*object].class();
        let slots = held.lease.slots();
        assert_eq!(slots.len(), pages.len());
        for (&slot, page) in slots.iter().zip(pages.clone()) {
            let name = page as PageName;
            assert_eq!(self.books.shown[slot as usize], Some(name));
            assert_eq!(self.books.hints[page], slot, "page {page} has moved");
            let state = self.state.slots.get(slot);
            let right = matches!(state, Some(Slot::Peers { page, class: is, .. })
                if page == name && is == class);
            assert!(right, "slot {slot} is {state:?}");
        }
    }

    /// Zaps the page of an idle slot that was taken.
    fn took(&mut self, took: Took) -> SlotId {
        match took {
            Took::Free(slot) => slot,
            Took::Idle(slot, page) => {
                assert_eq!(self.books.shown[slot as usize], Some(page));
                self.books.cpu[page as usize] = None;
                slot
            }
        }
    }

    pub(super) fn fault(&mut self, page: usize, fails: bool) {
        let name = page as PageName;
        let mut slot = self.books.hints[page];
        if !self.state.slots.touch(slot, name) {
            let available = self.state.available(Class::Promised);
            let Some(took) = self.state.slots.take() else {
                assert_eq!(available, 0);
                return;
            };
            slot = self.took(took);
            self.show(slot, Some(name));
            if fails {
                self.state.slots.give_back(slot);
                return;
            }
            self.state.slots.install(slot, name);
            self.books.hints[page] = slot;
        }
        assert_eq!(self.books.shown[slot as usize], Some(name));
        self.books.cpu[page] = Some(slot);
    }

    /// Whether a peer can map the pages: then it has.
    pub(super) fn map(&mut self, object: usize, pages: Range<usize>, fails: bool) -> bool {
        self.take_lock();
        let mapped = self.recall(object, pages.clone()) || {
            self.state.settle();
            self.hold(object, pages, fails)
        };
        self.release_lock();
        mapped
    }

    /// Whether a peer is given what another gave back.
    pub(super) fn recall(&mut self, object: usize, pages: Range<usize>) -> bool {
        let class = self.books.objects[object].class();
        let first = pages.start as PageName;
        let Some(held) = self.state.recall(first, pages.len(), class).cloned() else {
            return false;
        };
        self.enter(object, pages, held);
        true
    }

    fn enter(&mut self, object: usize, pages: Range<usize>, held: Rc<Held>) {
        self.books.peers.push(Peer {
            object,
            pages,
            told: false,
            at: At::Mapped,
            held,
        });
        self.assert_sees_pages(self.books.peers.len() - 1);
    }

    fn hold(&mut self, object: usize, pages: Range<usize>, fails: bool) -> bool {
        let class = self.books.objects[object].class();
        let is_held = |rig: &Self, page: usize| {
            let slot = rig.state.slots.get(rig.books.hints[page]);
            matches!(slot, Some(Slot::Peers { page: shown, .. }) if shown == page as PageName)
        };
        let fresh = pages.clone().filter(|&page| !is_held(self, page)).count();
        if fresh as u32 > self.state.available(class) {
            return false;
        }
        // Those that are shown are held first: they are not taken for the others.
        let (held, missing): (Vec<usize>, Vec<usize>) = pages.clone().partition(|&page| {
            let slot = self.books.hints[page];
            self.state.slots.hold(slot, page as PageName, class)
        });
        let count = missing.len() as u32;
        let slots: Vec<_> = match self.state.slots.take_run(count) {
            Some(first) => (first..first + count).collect(),
            None => {
                let mut took = Vec::new();
                let found = self.state.slots.take_many(count, |slot| took.push(slot));
                assert_eq!(found, count, "there are enough");
                took.into_iter().map(|took| self.took(took)).collect()
            }
        };
        for (&slot, &page) in slots.iter().zip(&missing) {
            self.books.hints[page] = slot;
            self.show(slot, Some(page as PageName));
        }
        if fails {
            self.state.slots.give_back_many(slots);
            for page in held {
                self.unhold(self.books.hints[page]);
            }
            return false;
        }
        for (&slot, &page) in slots.iter().zip(&missing) {
            self.state.slots.install(slot, page as PageName);
            assert!(self.state.slots.hold(slot, page as PageName, class));
        }
        let slots = pages.clone().map(|page| self.books.hints[page]).collect();
        let (first, mark) = (pages.start, marks::count());
        let lease = Lease::new(first as PageName, class, slots);
        self.enter(object, pages, Rc::new(Held { lease, first, mark }));
        true
    }

    /// The pages of an object leave.
    pub(super) fn release(&mut self, object: usize) {
        let mut slots = Vec::new();
        for page in self.pages(object) {
            self.books.cpu[page] = None;
            let slot = std::mem::replace(&mut self.books.hints[page], NOWHERE);
            slots.push(slot);
            if self.state.slots.release(slot, page as PageName) == Released::Taken {
                self.show(slot, None);
            }
        }
        self.state.slots.give_back_many(slots);
    }
}
