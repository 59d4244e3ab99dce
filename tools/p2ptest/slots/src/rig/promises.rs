// SPDX-License-Identifier: GPL-2.0
//! Objects that are promised slots, and those that leave although they are.

use super::{Busy, By, Object, Rig};
use crate::slots::{Class, NoPromise, PageName, Slot, SlotId};

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    /// The slots that peers hold of an object, by the pages.
    fn held(&self, object: usize) -> Vec<(SlotId, PageName)> {
        self.slots_of(object)
            .into_iter()
            .filter(|&(slot, name)| {
                let slot = self.state.slots.get(slot);
                matches!(slot, Some(Slot::Peers { page, .. }) if page == name)
            })
            .collect()
    }

    /// The slots that may show the pages of an object.
    fn slots_of(&self, object: usize) -> Vec<(SlotId, PageName)> {
        self.pages(object)
            .map(|page| (self.books.hints[page], page as PageName))
            .collect()
    }

    /// Claims what will drain of an object that leaves, or ends its move.
    pub(super) fn claim_drain(&mut self, object: usize) {
        let claimed = self.locked(|rig| {
            let held = match rig.books.objects[object].class() {
                Class::Promised => rig.held(object).len() as u32,
                Class::Lent => 0,
            };
            (held == 0 || rig.state.claim_drain(held)).then_some(held)
        });
        self.books.objects[object].busy = claimed.map(Busy::Leaving);
    }

    pub(super) fn end_move(&mut self, object: usize) {
        self.locked(|rig| rig.unclaim_drain(object));
    }

    pub(super) fn unclaim_drain(&mut self, object: usize) {
        if let Some(Busy::Leaving(claimed)) = self.books.objects[object].busy.take() {
            self.state.unclaim(claimed);
        }
    }

    /// An object is to be promised slots: they are claimed, unless it has a promise.
    pub(super) fn ask(&mut self, object: usize, by: By) {
        if self.books.objects[object].class() == Class::Promised {
            self.set(object, by, true);
            return;
        }
        let pages = self.sizes[object] as u32;
        self.locked(|rig| rig.state.claim(pages));
        self.books.objects[object].busy = Some(Busy::Asking(by));
    }

    fn set(&mut self, object: usize, by: By, is: bool) {
        let Object {
            reserved, pinned, ..
        } = &mut self.books.objects[object];
        match by {
            By::Reserve => *reserved = is,
            By::Pin => *pinned = is,
        }
    }

    /// Tries to promise what is claimed. If it fails for good, nothing is asked for any more.
    pub(super) fn promise(&mut self, object: usize) {
        let pages = self.sizes[object] as u32;
        let promised = self.locked(|rig| {
            let expected = rig.expect_promise(object);
            let shown = rig.slots_of(object).into_iter();
            let promised = rig.state.promise(pages, shown);
            match expected {
                Err(NoPromise::InTheWay(_)) => {
                    assert!(matches!(promised, Err(NoPromise::InTheWay(_))));
                }
                _ => assert_eq!(promised, expected),
            }
            promised
        });
        let Some(Busy::Asking(by)) = self.books.objects[object].busy else {
            panic!("nobody asks");
        };
        match promised {
            Ok(()) => self.set(object, by, true),
            Err(NoPromise::InTheWay(_)) => return,
            Err(NoPromise::TooMuch) => {}
        }
        self.end_asking(object);
    }

    pub(super) fn end_asking(&mut self, object: usize) {
        let pages = self.sizes[object] as u32;
        self.locked(|rig| rig.state.unclaim(pages));
        self.books.objects[object].busy = None;
    }

    pub(super) fn unpromise(&mut self, object: usize, by: By) {
        let before = self.books.objects[object].class();
        self.set(object, by, false);
        if (before, self.books.objects[object].class()) == (Class::Promised, Class::Lent) {
            let pages = self.sizes[object] as u32;
            self.locked(|rig| {
                let shown = rig.slots_of(object).into_iter();
                rig.state.unpromise(pages, shown);
            });
        }
    }

    /// Pages of the promised objects.
    pub(super) fn promised(&self) -> usize {
        let objects = self.books.objects.iter().zip(self.sizes);
        objects
            .filter(|(object, _)| object.class() == Class::Promised)
            .map(|(_, pages)| pages)
            .sum()
    }

    /// What others claim than who asks for a promise: slots that will drain.
    fn claimed_to_drain(&self) -> usize {
        let objects = self.books.objects.iter();
        let claims = objects.filter_map(|object| match object.busy {
            Some(Busy::Leaving(claimed)) => Some(claimed as usize),
            _ => None,
        });
        claims.sum()
    }

    /// What the books say to a promise for an object that has none.
    fn expect_promise(&self, object: usize) -> Result<(), NoPromise> {
        let total = self.books.shown.len();
        let promised = self.promised() + self.sizes[object];
        if promised > total {
            return Err(NoPromise::TooMuch);
        }
        // What is held for peers, but for what is part of a promise.
        let in_part = |slot: SlotId| {
            self.books.shown[slot as usize]
                .map(|page| page as usize)
                .filter(|&page| self.books.hints[page] == slot)
                .map(|page| self.object_of(page))
                .is_some_and(|of| of == object || self.books.objects[of].class() == Class::Promised)
        };
        let live = self.live();
        let used = (0..total as SlotId)
            .filter(|slot| live.iter().any(|held| held.lease.slots().contains(slot)))
            .filter(|&slot| !in_part(slot))
            .count();
        match (promised + used + self.claimed_to_drain()).checked_sub(total) {
            None | Some(0) => Ok(()),
            Some(short) => Err(NoPromise::InTheWay(short as u32)),
        }
    }
}
