// SPDX-License-Identifier: GPL-2.0
//! A small driver: the calls that the GPU driver's aperture makes for each event.
//!
//! [`Rig`] has hardware that may fail, and keeps books of its own: what each slot shows, who may
//! still use it, what CPUs map. It panics where somebody would see a page that is not his, or where
//! a promise would be broken.

mod check;
mod key;
mod marks;
mod pages;
mod peers;
mod promises;

use std::ops::Range;
use std::rc::Rc;

use crate::memory::HostMemory;
use crate::slots::lease::{GONE, KNOWN, Lease, Leased, Quiet};
use crate::slots::state::State;
use crate::slots::{Class, PageName, SlotId};
use key::Order;
pub use key::Scratch;

/// No slot known.
const NOWHERE: SlotId = SlotId::MAX;

/// What can happen.
///
/// The aperture's lock makes what it guards one step, but for what peers do without it, and
/// for [`Event::Locked`]. A move, and a promise, are several: what befalls other objects comes
/// between.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Somebody looks at the slots, under the lock.
    Look,
    /// A CPU touches a page.
    Fault { page: usize, fails: bool },
    /// A peer maps pages of an object, which it has not given back before.
    Map {
        object: usize,
        first: usize,
        count: usize,
        fails: bool,
    },
    /// A peer maps again what it has given back, if it gets just that.
    MapAgain { peer: usize },
    /// A peer lets go of its mapping: told or not, soon or late.
    Unmap { peer: usize },
    /// A peer that has given back a mapping does not come again.
    Leave { peer: usize },
    /// The next step of a peer that does without the lock, or that takes it next.
    Step { peer: usize },
    /// The peers of an object are told to let go: under pressure, or as a flag is cleared.
    Invalidate { object: usize },
    /// A move of an object starts: its lock is taken, its peers are told.
    Tell { object: usize },
    /// The fences of those who were told have signalled: slots that will drain are claimed. If the
    /// promises forbid that the move is over.
    Claim { object: usize },
    /// The pages leave, or something else went wrong and they stay. The object comes back with new
    /// pages at the next fault or map.
    Move { object: usize, fails: bool },
    /// A peer pins an object, or its owner reserves it: slots are claimed, under its lock.
    Ask { object: usize, by: By },
    /// A promise is tried.
    Promise { object: usize },
    /// Who asked for a promise does so no longer.
    GiveUp { object: usize },
    /// An object is pinned, or reserved, no more.
    Unpromise { object: usize, by: By },
    /// The object ends; another of its size takes its place. Its peers were told.
    Free { object: usize },
    /// A step of who holds the lock.
    Locked(Locked),
}

/// Why an object is promised slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Reserve,
    Pin,
}

/// What who holds the lock does, a step at a time.
#[derive(Clone, Copy, Debug)]
pub enum Locked {
    /// The lock is taken: it is not quiet any more.
    Take,
    /// What is set aside lets go.
    Settle,
    /// A peer is given what another gave back.
    Recall {
        object: usize,
        first: usize,
        count: usize,
    },
    /// A CPU touches a page.
    Fault { page: usize },
    /// The pages of an object leave: the last step of a move.
    Move { object: usize },
    /// A peer sets its lease aside, or lets go of its slots.
    Step { peer: usize },
    /// The lock is released.
    Release,
}

/// How far the one is who holds the lock and does a step at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Taken,
    Settled,
    Done,
}

/// What the driver knows of an object.
#[derive(Clone, Copy, Default)]
struct Object {
    reserved: bool,
    pinned: bool,
    /// Its lock is held, by one who does this.
    busy: Option<Busy>,
}

/// Why the lock of an object is held for longer than a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    /// It is moved.
    Moving,
    /// It is moved, and so many slots are claimed, which will drain.
    Leaving(u32),
    /// It is to be promised slots.
    Asking(By),
}

impl Object {
    fn class(self) -> Class {
        match self.reserved || self.pinned {
            true => Class::Promised,
            false => Class::Lent,
        }
    }
}

/// A lease, the page that it is of first, and the place of its mark.
struct Held {
    lease: Lease<HostMemory>,
    first: usize,
    mark: usize,
}

impl Leased<HostMemory> for Rc<Held> {
    fn lease(&self) -> &Lease<HostMemory> {
        &self.lease
    }
}

/// What a peer does with its lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum At {
    /// It uses the slots.
    Mapped,
    /// It has laid the lease aside, and looks next whether the lock is quiet.
    LaidAside,
    /// It was not: the lease is picked up next.
    NotQuiet,
    /// The lease is to be set aside under the lock.
    Returning,
    /// Its slots are to be let go of under the lock.
    Ending,
    /// It has given the lease back.
    Kept,
    /// It wants the lease again, and has seen that the lock is quiet.
    Taking,
}

/// A peer of an object.
#[derive(Clone)]
struct Peer {
    object: usize,
    pages: Range<usize>,
    told: bool,
    at: At,
    held: Rc<Held>,
}

/// The books: with the states of the slots, all that tells two situations apart.
#[derive(Clone)]
struct Books {
    objects: Vec<Object>,
    /// Where each page was seen last.
    hints: Vec<SlotId>,
    /// The page that the hardware shows in each slot.
    shown: Vec<Option<PageName>>,
    /// The slot that CPUs map each page by.
    cpu: Vec<Option<SlotId>>,
    peers: Vec<Peer>,
    section: Option<Section>,
}

/// How finely, and how much, is searched.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Peers at a time, those included that have given back what they may have again.
    pub peers: usize,
    /// Whether what peers do without the lock, and who holds it, comes step by step.
    pub steps: bool,
    /// Whether parts of objects are mapped too.
    pub windows: bool,
    /// Whether claims, of promises and of moves, are steps of their own even if nothing is in their
    /// way.
    pub claims: bool,
}

/// A driver that knows at most `KNOWN_MAX` leases.
#[derive(Clone)]
pub struct Rig<const KNOWN_MAX: usize> {
    /// Pages of each object. Pages are named in order.
    sizes: &'static [usize],
    limits: Limits,
    /// The orders of the objects that make no difference.
    orders: Rc<[Order]>,
    state: State<HostMemory, Rc<Held>, KNOWN_MAX>,
    quiet: Rc<Quiet<HostMemory>>,
    /// The numbers of all marks.
    marks: Vec<u32>,
    books: Books,
}

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    pub fn new(count: usize, sizes: &'static [usize], limits: Limits) -> Self {
        let pages = sizes.iter().sum();
        let mut marks = Vec::new();
        let quiet = marks::with_table(&mut marks, Quiet::new);
        let mut rig = Self {
            sizes,
            limits,
            orders: key::orders(sizes).into(),
            state: State::new(count as u32).unwrap(),
            quiet: Rc::new(quiet),
            marks,
            books: Books {
                objects: vec![Object::default(); sizes.len()],
                hints: vec![NOWHERE; pages],
                shown: vec![None; count],
                cpu: vec![None; pages],
                peers: Vec::new(),
                section: None,
            },
        };
        rig.with_marks(|rig| rig.locked(|_| ()));
        rig
    }

    /// Runs `f` with the marks of this rig.
    fn with_marks<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let mut marks = std::mem::take(&mut self.marks);
        let result = marks::with_table(&mut marks, || f(self));
        self.marks = marks;
        result
    }

    /// The pages of an object.
    fn pages(&self, object: usize) -> Range<usize> {
        let first: usize = self.sizes[..object].iter().sum();
        first..first + self.sizes[object]
    }

    fn object_of(&self, page: usize) -> usize {
        (0..self.sizes.len())
            .find(|&object| self.pages(object).contains(&page))
            .unwrap()
    }

    /// The pages of an object that peers map: all, or any part.
    fn windows(&self, object: usize) -> Vec<(usize, usize)> {
        let size = self.sizes[object];
        let all = self.pages(object).start;
        match self.limits.windows {
            false => vec![(all, size)],
            true => (0..size)
                .flat_map(|first| (1..=size - first).map(move |count| (all + first, count)))
                .collect(),
        }
    }

    /// Whether somebody has the object's lock for longer than a step.
    fn is_locked(&self, object: usize) -> bool {
        let takes = |peer: &Peer| peer.object == object && peer.at == At::Taking;
        self.books.objects[object].busy.is_some() || self.books.peers.iter().any(takes)
    }

    /// The events that can happen now.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.peers_events();
        for object in (0..self.sizes.len()).filter(|&object| !self.is_locked(object)) {
            let told = |peer: &Peer| peer.told || peer.at != At::Mapped;
            let mut peers = self.books.peers.iter().filter(|p| p.object == object);
            if !peers.all(told) {
                events.push(Event::Invalidate { object });
            }
        }
        match self.books.section {
            Some(section) => events.extend(self.locked_events(section)),
            None => events.extend(self.unlocked_events()),
        }
        events
    }

    /// The events that take the lock.
    fn unlocked_events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.is_settled() {
            // What else takes the lock does this first, and so comes after it.
            events.push(Event::Look);
            for object in (0..self.sizes.len()).filter(|&object| !self.is_locked(object)) {
                events.push(Event::Tell { object });
                events.extend(self.maps(object, false));
            }
            return events;
        }
        let books = &self.books;
        for (object, state) in books.objects.iter().enumerate() {
            let fails = [false, true];
            match state.busy {
                Some(Busy::Moving) => {
                    let fails = true;
                    events.extend([Event::Claim { object }, Event::Move { object, fails }]);
                }
                Some(Busy::Leaving(_)) => {
                    events.extend(fails.map(|fails| Event::Move { object, fails }));
                }
                Some(Busy::Asking(_)) => {
                    events.extend([Event::Promise { object }, Event::GiveUp { object }]);
                }
                None => {}
            }
            if self.is_locked(object) {
                continue;
            }
            for fails in fails {
                events.extend(self.pages(object).map(|page| Event::Fault { page, fails }));
                events.extend(self.maps(object, fails));
            }
            events.push(Event::Tell { object });
            for (is, by) in [(state.reserved, By::Reserve), (state.pinned, By::Pin)] {
                if is {
                    events.push(Event::Unpromise { object, by });
                } else if !self.is_asking() {
                    events.push(Event::Ask { object, by });
                }
            }
            let gone = |peer: &Peer| peer.told || peer.at == At::Kept;
            if books.peers.iter().filter(|p| p.object == object).all(gone) {
                events.push(Event::Free { object });
            }
        }
        events
    }

    /// How peers can map an object.
    fn maps(&self, object: usize, fails: bool) -> Vec<Event> {
        let windows = match self.books.peers.len() < self.limits.peers {
            true => self.windows(object),
            false => Vec::new(),
        };
        let map = |(first, count)| Event::Map {
            object,
            first,
            count,
            fails,
        };
        windows.into_iter().map(map).collect()
    }

    /// Whether no lease is aside, or gone and still known.
    fn is_settled(&self) -> bool {
        let mut known = self.state.known.iter();
        known.all(|held| self.marks[held.mark] == KNOWN)
    }

    /// Whether somebody asks for a promise: one at a time.
    fn is_asking(&self) -> bool {
        let asks = |object: &Object| matches!(object.busy, Some(Busy::Asking(_)));
        self.books.objects.iter().any(asks)
    }

    pub fn apply(&mut self, event: Event) {
        self.with_marks(|rig| rig.happen(event));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fault { page, fails } => self.locked(|rig| rig.fault(page, fails)),
            Event::Look => self.locked(|_| ()),
            Event::Map {
                object,
                first,
                count,
                fails,
            } => {
                let mapped = self.map(object, first..first + count, fails);
                let promised = self.books.objects[object].class() == Class::Promised;
                assert!(mapped || fails || !promised, "a promise is broken");
            }
            Event::MapAgain { peer } => self.map_again(peer),
            Event::Unmap { peer } => self.unmap(peer),
            Event::Leave { peer } => {
                self.books.peers.remove(peer);
            }
            Event::Step { peer } => self.step(peer),
            Event::Invalidate { object } => self.invalidate(object),
            Event::Tell { object } => {
                if !self.books.objects[object].pinned {
                    self.invalidate(object);
                    self.books.objects[object].busy = Some(Busy::Moving);
                }
            }
            Event::Claim { object } => {
                self.claim_drain(object);
                let claims_nothing = self.books.objects[object].busy == Some(Busy::Leaving(0));
                if !self.limits.claims && claims_nothing {
                    self.locked(|rig| rig.release(object));
                    self.end_move(object);
                }
            }
            Event::Move { object, fails } => {
                if !fails {
                    self.locked(|rig| rig.release(object));
                }
                self.end_move(object);
            }
            Event::Ask { object, by } => {
                self.ask(object, by);
                if !self.limits.claims && self.books.objects[object].busy.is_some() {
                    self.promise(object);
                }
            }
            Event::Promise { object } => self.promise(object),
            Event::GiveUp { object } => self.end_asking(object),
            Event::Unpromise { object, by } => self.unpromise(object, by),
            Event::Free { object } => {
                for by in [By::Reserve, By::Pin] {
                    self.unpromise(object, by);
                }
                self.locked(|rig| rig.release(object));
            }
            Event::Locked(step) => self.locked_step(step),
        }
        // Nobody has again what is gone.
        let mut peers = std::mem::take(&mut self.books.peers);
        peers.retain(|peer| peer.at != At::Kept || self.mark(peer) != GONE);
        self.books.peers = peers;
        // Their order tells nothing.
        let key = |peer: &Peer| (peer.object, peer.at, peer.held.mark);
        self.books.peers.sort_by_key(key);
    }

    fn invalidate(&mut self, object: usize) {
        for peer in &mut self.books.peers {
            peer.told |= peer.object == object && peer.at != At::Kept;
        }
    }
}
