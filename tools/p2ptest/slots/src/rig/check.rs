// SPDX-License-Identifier: GPL-2.0
//! What holds in every situation.

use std::rc::Rc;

use super::{At, Busy, Event, Held, Peer, Rig, marks};
use crate::slots::lease::{ASIDE, GONE, HELD, KNOWN};
use crate::slots::{Class, Counts, Slot, SlotId};

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    /// Panics unless the slots agree with the books, all promises hold and can be had, and nothing
    /// leaks.
    pub fn check(&self) {
        self.clone().with_marks(|rig| {
            rig.check_leases();
            rig.check_slots();
            rig.check_quiet();
        });
        // What comes next settles first.
        if self.is_settled() && self.books.section.is_none() {
            self.assert_promises_hold();
            self.assert_promises_can_be_had();
            self.assert_nothing_leaks();
        }
    }

    /// The leases that hold slots.
    pub(super) fn live(&self) -> Vec<Rc<Held>> {
        let peers = self.books.peers.iter().map(|peer| &peer.held);
        let mut live: Vec<_> = peers.chain(self.state.known.iter()).cloned().collect();
        live.sort_by_key(|held| held.mark);
        live.dedup_by_key(|held| held.mark);
        live.retain(|held| marks::number(held.mark) != GONE);
        live
    }

    /// A lease that somebody has is that of one peer; the others can be found.
    fn check_leases(&self) {
        let known: Vec<_> = self.state.known.iter().map(|held| held.mark).collect();
        for (index, mark) in known.iter().enumerate() {
            assert!(!known[index + 1..].contains(mark), "known twice");
        }
        for held in self.live() {
            let of = |at: &[At]| {
                let peers = self.books.peers.iter();
                peers
                    .filter(|peer| peer.held.mark == held.mark && at.contains(&peer.at))
                    .count()
            };
            let owners = of(&[At::Mapped, At::Returning, At::Ending]);
            let mark = marks::number(held.mark);
            let is_known = known.contains(&held.mark);
            match mark {
                HELD => assert!(owners == 1 && !is_known, "held by {owners}"),
                KNOWN => assert!(owners == 1 && is_known, "known, held by {owners}"),
                ASIDE => assert!(owners == 0 && is_known, "aside, held by {owners}"),
                _ => panic!("no such mark"),
            }
        }
        for peer in &self.books.peers {
            let owns = matches!(peer.at, At::Mapped | At::Returning | At::Ending);
            assert!(!owns || self.mark(peer) != GONE, "a peer's slots are gone");
        }
    }

    fn check_quiet(&self) {
        if self.quiet.is() {
            assert!(self.state.may_be_quiet() && self.books.section.is_none());
        }
    }

    fn check_slots(&self) {
        let books = &self.books;
        let live = self.live();
        let mut has_slot = vec![false; books.hints.len()];
        let [mut free, mut idle, mut held, mut lent, mut draining] = [0; 5];
        for (slot, &shown) in (0..).zip(&books.shown) {
            let holds = |held: &&Rc<Held>| held.lease.slots().contains(&slot);
            let holders = live.iter().filter(holds).count() as u32;
            let page = match self.state.slots.get(slot).unwrap() {
                Slot::Taken => panic!("slot {slot} has leaked"),
                Slot::Free => {
                    assert_eq!(holders, 0);
                    free += 1;
                    continue;
                }
                Slot::Draining { peers } => {
                    assert!(peers == holders && holders != 0, "slot {slot}");
                    self.check_told(slot, &live);
                    draining += 1;
                    continue;
                }
                Slot::Idle { page, .. } => {
                    assert_eq!(holders, 0);
                    idle += 1;
                    page
                }
                Slot::Peers { page, peers, class } => {
                    assert!(peers == holders && holders != 0, "slot {slot}");
                    let object = self.object_of(page as usize);
                    assert_eq!(class, books.objects[object].class());
                    held += 1;
                    lent += u32::from(class == Class::Lent);
                    page
                }
            };
            assert_eq!(shown, Some(page));
            assert_eq!(books.hints[page as usize], slot);
            let twice = std::mem::replace(&mut has_slot[page as usize], true);
            assert!(!twice, "page {page} has two slots");
        }
        let promised = self.promised() as u32;
        let counts = Counts {
            free,
            idle,
            held,
            lent,
            draining,
            promised,
        };
        assert_eq!(self.state.slots.counts(), counts);
        let claims = |busy: Option<Busy>, pages: usize| match busy {
            Some(Busy::Leaving(count)) => count,
            Some(Busy::Asking(_)) => pages as u32,
            Some(Busy::Moving) | None => 0,
        };
        let objects = books.objects.iter().zip(self.sizes);
        let claimed = objects.map(|(object, &pages)| claims(object.busy, pages));
        assert_eq!(self.state.claimed(), claimed.sum::<u32>());
        assert!(promised + lent + draining <= books.shown.len() as u32);
        for (page, slot) in books.cpu.iter().enumerate() {
            if let Some(slot) = *slot {
                assert!(has_slot[page], "a CPU sees page {page} nowhere");
                assert_eq!(books.hints[page], slot);
            }
        }
    }

    /// Those who hold a slot that drains were told, and will let go.
    fn check_told(&self, slot: SlotId, live: &[Rc<Held>]) {
        for held in live {
            if held.lease.slots().contains(&slot) {
                let goes = |peer: &Peer| {
                    let has = peer.held.mark == held.mark && peer.at != At::Kept;
                    has && (peer.told || peer.at != At::Mapped)
                };
                assert!(
                    self.books.peers.iter().any(goes),
                    "nobody lets go of {slot}"
                );
            }
        }
    }

    /// Panics unless all promised objects can be mapped, one after the other, whoever else holds
    /// what he holds.
    fn assert_promises_hold(&self) {
        let mut rig = self.clone();
        for object in 0..self.sizes.len() {
            if self.books.objects[object].class() == Class::Promised {
                let (pages, fails) = (self.pages(object), false);
                let mapped = rig.with_marks(|rig| rig.map(object, pages, fails));
                assert!(mapped, "a promise is broken");
            }
        }
    }

    /// Panics unless a promise that fits beside the others is given once peers have let go of what
    /// is lent or drains, and nobody else claims anything.
    fn assert_promises_can_be_had(&self) {
        let mut rig = self.clone();
        for object in 0..self.sizes.len() {
            rig.let_go_of_lock(object);
        }
        let drains = |slot: &SlotId| {
            let slot = self.state.slots.get(*slot);
            matches!(slot, Some(Slot::Draining { .. }))
        };
        let promised = |peer: &Peer| {
            self.books.objects[peer.object].class() == Class::Promised
                && !peer.held.lease.slots().iter().any(drains)
        };
        rig.leave(|peer| !promised(peer));
        rig.with_marks(|rig| {
            for (object, &pages) in self.sizes.iter().enumerate() {
                if self.books.objects[object].class() == Class::Lent {
                    let fits = self.promised() + pages <= self.books.shown.len();
                    let given = rig.locked(|rig| rig.state.slots.promise(pages as u32));
                    assert_eq!(given.is_ok(), fits);
                    if fits {
                        rig.locked(|rig| rig.state.slots.unpromise(pages as u32));
                    }
                }
            }
        });
    }

    /// Ends what the holder of an object's lock does.
    fn let_go_of_lock(&mut self, object: usize) {
        match self.books.objects[object].busy {
            Some(Busy::Asking(_)) => self.apply(Event::GiveUp { object }),
            Some(Busy::Moving) => self.books.objects[object].busy = None,
            Some(Busy::Leaving(_)) => self.apply(Event::Move {
                object,
                fails: true,
            }),
            None => {}
        }
    }

    /// Peers do what they are about to do, unmap and leave.
    fn leave(&mut self, which: impl Fn(&Peer) -> bool) {
        while let Some(peer) = self.books.peers.iter().position(&which) {
            self.apply(match self.books.peers[peer].at {
                At::Mapped => Event::Unmap { peer },
                At::Kept => Event::Leave { peer },
                _ => Event::Step { peer },
            });
        }
    }

    /// Everybody leaves: everything must be free again.
    fn assert_nothing_leaks(&self) {
        let mut rig = self.clone();
        for object in 0..self.sizes.len() {
            rig.let_go_of_lock(object);
            // Who is about to map does.
            let takes = |peer: &Peer| peer.at == At::Taking;
            while let Some(peer) = rig.books.peers.iter().position(takes) {
                rig.apply(Event::Step { peer });
            }
        }
        for object in 0..self.sizes.len() {
            rig.invalidate(object);
            rig.apply(Event::Free { object });
        }
        rig.leave(|_| true);
        rig.with_marks(|rig| {
            rig.locked(|_| ());
            rig.check_slots();
            assert_eq!(rig.state.known.iter().count(), 0, "a lease is still known");
            assert!(rig.quiet.is(), "it is never quiet again");
            let free = rig.state.slots.counts().free;
            assert_eq!(free as usize, rig.state.slots.total());
        });
    }
}
