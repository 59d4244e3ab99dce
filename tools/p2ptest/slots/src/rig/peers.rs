// SPDX-License-Identifier: GPL-2.0
//! What peers do with their leases, without the lock and under it, and the lock itself.
//!
//! Without the lock a peer looks at marks, and changes them. Who holds the lock changes slots as
//! one step, as nobody else looks at them: but not as the same step as what he does to marks. The
//! leases that are known are settled in one step: each of them, and what becomes of its slots,
//! depends on its own mark only.

use super::{At, Books, Busy, Event, Locked, Peer, Rig, Section, marks};
use crate::slots::Released;
use crate::slots::lease::{ASIDE, KNOWN};

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    /// What peers can do without the lock, or to take it.
    pub(super) fn peers_events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let Books { peers, section, .. } = &self.books;
        for (peer, Peer { at, object, .. }) in peers.iter().enumerate() {
            match at {
                At::Mapped => events.push(Event::Unmap { peer }),
                At::Kept => {
                    events.push(Event::Leave { peer });
                    if !self.is_locked(*object) {
                        events.push(Event::MapAgain { peer });
                    }
                }
                At::LaidAside | At::NotQuiet | At::Taking => events.push(Event::Step { peer }),
                At::Returning | At::Ending if section.is_none() => {
                    events.push(Event::Step { peer });
                }
                At::Returning | At::Ending => {}
            }
        }
        // What is done under the lock is taken apart if somebody can do without it.
        let known = |peer: &Peer| matches!(self.marks[peer.held.mark], KNOWN | ASIDE);
        if self.limits.steps && section.is_none() && peers.iter().any(known) {
            events.push(Event::Locked(Locked::Take));
        }
        events
    }

    /// What who holds the lock can do next.
    pub(super) fn locked_events(&self, section: Section) -> Vec<Event> {
        let mut events = vec![Locked::Release];
        let at = |at: At| {
            let peers = self.books.peers.iter().enumerate();
            let there = peers.filter(move |(_, peer)| peer.at == at);
            there.map(|(peer, _)| Locked::Step { peer })
        };
        let objects = 0..self.sizes.len();
        match section {
            Section::Taken => {
                events.push(Locked::Settle);
                events.extend(at(At::Returning));
                let free = objects.filter(|&object| !self.is_locked(object));
                if self.books.peers.len() < self.limits.peers {
                    events.extend(free.flat_map(|object| {
                        let windows = self.windows(object).into_iter();
                        windows.map(move |(first, count)| Locked::Recall {
                            object,
                            first,
                            count,
                        })
                    }));
                }
            }
            Section::Settled => {
                events.extend(at(At::Ending));
                for object in objects {
                    if let Some(Busy::Leaving(_)) = self.books.objects[object].busy {
                        events.push(Locked::Move { object });
                    } else if !self.is_locked(object) {
                        events.extend(self.pages(object).map(|page| Locked::Fault { page }));
                    }
                }
            }
            Section::Done => {}
        }
        events.into_iter().map(Event::Locked).collect()
    }

    /// As the driver's own lock: takes it, settles, does `f` and releases it.
    pub(super) fn locked<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.take_lock();
        self.state.settle();
        let result = f(self);
        self.release_lock();
        result
    }

    pub(super) fn take_lock(&mut self) {
        assert_eq!(self.books.section, None, "somebody holds the lock");
        self.quiet.end();
    }

    pub(super) fn release_lock(&mut self) {
        if self.state.may_be_quiet() {
            self.quiet.begin();
        }
    }

    pub(super) fn locked_step(&mut self, step: Locked) {
        self.books.section = Some(Section::Done);
        match step {
            Locked::Take => {
                self.books.section = None;
                self.take_lock();
                self.books.section = Some(Section::Taken);
            }
            Locked::Settle => {
                self.state.settle();
                self.books.section = Some(Section::Settled);
            }
            Locked::Recall {
                object,
                first,
                count,
            } => {
                self.recall(object, first..first + count);
            }
            Locked::Fault { page } => self.fault(page, false),
            Locked::Move { object } => {
                self.release(object);
                self.unclaim_drain(object);
            }
            Locked::Step { peer } if self.books.peers[peer].at == At::Returning => {
                self.set_aside(peer);
            }
            Locked::Step { peer } => self.end(peer),
            Locked::Release => {
                self.release_lock();
                self.books.section = None;
            }
        }
    }

    /// A peer unmaps: a step of it, or all.
    pub(super) fn unmap(&mut self, peer: usize) {
        let Peer { at, told, held, .. } = &mut self.books.peers[peer];
        if self.limits.steps {
            *at = match held.lease.lay_aside() {
                true => At::LaidAside,
                false => At::Returning,
            };
        } else if held.lease.give_back(&self.quiet) {
            (*at, *told) = (At::Kept, false);
        } else {
            *at = At::Returning;
            self.step(peer);
            if self.books.peers[peer].at == At::Ending {
                self.step(peer);
            }
        }
    }

    /// A peer maps again what it gave back, or does not come again: a step of it, or all.
    pub(super) fn map_again(&mut self, peer: usize) {
        let class = self.books.objects[self.books.peers[peer].object].class();
        let Peer { at, held, .. } = &mut self.books.peers[peer];
        let same = held.lease.class() == class;
        if self.limits.steps && same && self.quiet.is() {
            *at = At::Taking;
        } else if !self.limits.steps && same && held.lease.take(&self.quiet) {
            *at = At::Mapped;
            self.assert_sees_pages(peer);
        } else {
            self.books.peers.remove(peer);
        }
    }

    pub(super) fn step(&mut self, peer: usize) {
        let Peer { at, held, told, .. } = &mut self.books.peers[peer];
        match *at {
            At::LaidAside if self.quiet.is() => (*at, *told) = (At::Kept, false),
            At::LaidAside => *at = At::NotQuiet,
            At::NotQuiet if held.lease.pick_up() => *at = At::Returning,
            // Its slots were let go of, or somebody else has it.
            At::NotQuiet => (*at, *told) = (At::Kept, false),
            At::Taking if held.lease.pick_up() => {
                *at = At::Mapped;
                self.assert_sees_pages(peer);
            }
            At::Taking => {
                self.books.peers.remove(peer);
            }
            At::Returning => {
                self.take_lock();
                self.set_aside(peer);
                self.release_lock();
            }
            At::Ending => self.locked(|rig| rig.end(peer)),
            At::Mapped | At::Kept => panic!("no step of it"),
        }
    }

    fn set_aside(&mut self, peer: usize) {
        let set = self.state.set_aside(&self.books.peers[peer].held);
        let Peer { at, told, .. } = &mut self.books.peers[peer];
        (*at, *told) = match set {
            true => (At::Kept, false),
            false => (At::Ending, *told),
        };
    }

    fn end(&mut self, peer: usize) {
        let Peer { held, .. } = self.books.peers.remove(peer);
        let mut drained = Vec::new();
        held.lease
            .end(&mut self.state.slots, |slot| drained.push(slot));
        for slot in drained {
            self.show(slot, None);
        }
        self.state
            .slots
            .give_back_many(held.lease.slots().iter().copied());
    }

    /// What the mark of a peer's lease says.
    pub(super) fn mark(&self, peer: &Peer) -> u32 {
        marks::number(peer.held.mark)
    }

    /// Lets go of a slot at once, as nobody was given it.
    pub(super) fn unhold(&mut self, slot: u32) {
        assert_eq!(self.state.slots.unhold(slot), Released::Kept);
    }
}
