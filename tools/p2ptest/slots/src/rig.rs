// SPDX-License-Identifier: GPL-2.0
//! A small driver: the calls that the GPU driver's aperture makes for each event.
//!
//! [`Rig`] has hardware that may fail, and keeps books of its own: what each slot shows, who may
//! still use it, what CPUs map. It panics where somebody would see a page that is not his, or where
//! a promise would be broken.

use std::ops::Range;
use std::rc::Rc;

use crate::memory::HostMemory;
use crate::slots::{Class, NoPromise, PageName, Released, Slot, SlotId, Slots, Took};

/// No slot known.
pub const NOWHERE: SlotId = SlotId::MAX;

/// What can happen. The aperture's lock makes each one step, but for a move: its importers are told
/// first, and what befalls other objects comes between.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A CPU touches a page.
    Fault {
        page: usize,
        fails: bool,
    },
    /// A peer maps an object.
    Map {
        object: usize,
        fails: bool,
    },
    /// The peer that holds this mapping lets go of it: told or not, soon or late.
    Unmap {
        mapping: usize,
    },
    /// The peers of an object are told to let go: under pressure, or as a flag is cleared.
    Invalidate {
        object: usize,
    },
    /// A move of an object starts: its lock is taken, its peers are told.
    Tell {
        object: usize,
    },
    /// The fences of those who were told have signalled: the pages leave, or something else went
    /// wrong and they stay. The object comes back with new pages at the next fault or map.
    Move {
        object: usize,
        fails: bool,
    },
    /// A peer pins an object.
    Pin {
        object: usize,
    },
    Unpin {
        object: usize,
    },
    Reserve {
        object: usize,
    },
    Unreserve {
        object: usize,
    },
    /// The object ends; another of its size takes its place. Its peers were told.
    Free {
        object: usize,
    },
}

/// What the driver knows of an object.
#[derive(Clone, Copy, Default)]
struct Object {
    reserved: bool,
    pinned: bool,
    /// The lock is held by one who moves it.
    moving: bool,
}

impl Object {
    fn class(self) -> Class {
        match self.reserved || self.pinned {
            true => Class::Promised,
            false => Class::Lent,
        }
    }
}

/// What a peer was given.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mapping {
    object: usize,
    told: bool,
    slots: Vec<SlotId>,
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
    mappings: Vec<Mapping>,
}

#[derive(Clone)]
pub struct Rig {
    /// Pages of each object. Pages are named in order.
    sizes: &'static [usize],
    /// The orders of the objects that make no difference.
    orders: Rc<[Order]>,
    slots: Slots<HostMemory>,
    books: Books,
}

impl Rig {
    pub fn new(count: usize, sizes: &'static [usize]) -> Self {
        let pages = sizes.iter().sum();
        Self {
            sizes,
            orders: orders(sizes).into(),
            slots: Slots::new(count as u32).unwrap(),
            books: Books {
                objects: vec![Object::default(); sizes.len()],
                hints: vec![NOWHERE; pages],
                shown: vec![None; count],
                cpu: vec![None; pages],
                mappings: Vec::new(),
            },
        }
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

    /// The events that can happen now, with at most `peers` mappings at a time.
    pub fn events(&self, peers: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let books = &self.books;
        let of = |object| books.mappings.iter().filter(move |m| m.object == object);
        for (object, state) in books.objects.iter().enumerate() {
            if state.moving {
                // Its lock is held.
                events.extend([false, true].map(|fails| Event::Move { object, fails }));
                continue;
            }
            for fails in [false, true] {
                events.extend(self.pages(object).map(|page| Event::Fault { page, fails }));
                if books.mappings.len() < peers {
                    events.push(Event::Map { object, fails });
                }
            }
            if of(object).any(|mapping| !mapping.told) {
                events.push(Event::Invalidate { object });
            }
            events.push(Event::Tell { object });
            events.push(match state.pinned {
                true => Event::Unpin { object },
                false => Event::Pin { object },
            });
            events.push(match state.reserved {
                true => Event::Unreserve { object },
                false => Event::Reserve { object },
            });
            if of(object).all(|mapping| mapping.told) {
                events.push(Event::Free { object });
            }
        }
        events.extend((0..books.mappings.len()).map(|mapping| Event::Unmap { mapping }));
        events
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Fault { page, fails } => self.fault(page, fails),
            Event::Map { object, fails } => {
                let mapped = self.map(object, fails);
                let promised = self.books.objects[object].class() == Class::Promised;
                assert!(mapped || fails || !promised, "a promise is broken");
            }
            Event::Unmap { mapping } => self.unmap(mapping),
            Event::Invalidate { object } => self.invalidate(object),
            Event::Tell { object } => {
                if !self.books.objects[object].pinned {
                    self.invalidate(object);
                    self.books.objects[object].moving = true;
                }
            }
            Event::Move { object, fails } => {
                self.books.objects[object].moving = false;
                if !fails && self.may_leave(object) {
                    self.release(object);
                }
            }
            Event::Pin { object } => self.change(object, |state| state.pinned = true),
            Event::Unpin { object } => self.change(object, |state| state.pinned = false),
            Event::Reserve { object } => self.change(object, |state| state.reserved = true),
            Event::Unreserve { object } => self.change(object, |state| state.reserved = false),
            Event::Free { object } => {
                self.change(object, |state| *state = Object::default());
                self.release(object);
            }
        }
    }

    /// The hardware shows something else in the slot: nobody may be looking.
    fn show(&mut self, slot: SlotId, page: Option<PageName>) {
        assert_eq!(self.slots.get(slot), Some(Slot::Taken));
        assert_eq!(self.users(slot), 0, "slot {slot} is reused under a peer");
        assert!(!self.books.cpu.contains(&Some(slot)), "a CPU sees {slot}");
        self.books.shown[slot as usize] = page;
    }

    /// How many peer mappings use the slot.
    fn users(&self, slot: SlotId) -> usize {
        let held = |mapping: &&Mapping| mapping.slots.contains(&slot);
        self.books.mappings.iter().filter(held).count()
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

    fn fault(&mut self, page: usize, fails: bool) {
        let name = page as PageName;
        let mut slot = self.books.hints[page];
        if !self.slots.touch(slot, name) {
            let available = self.slots.available(Class::Promised);
            let Some(took) = self.slots.take() else {
                assert_eq!(available, 0);
                return;
            };
            slot = self.took(took);
            self.show(slot, Some(name));
            if fails {
                self.slots.give_back(slot);
                return;
            }
            self.slots.install(slot, name);
            self.books.hints[page] = slot;
        }
        assert_eq!(self.books.shown[slot as usize], Some(name));
        self.books.cpu[page] = Some(slot);
    }

    /// Whether a peer can map the object: then it has.
    fn map(&mut self, object: usize, fails: bool) -> bool {
        let class = self.books.objects[object].class();
        let pages = self.pages(object);
        let (held, missing): (Vec<usize>, Vec<usize>) = pages.clone().partition(|&page| {
            let slot = self.books.hints[page];
            self.slots.hold(slot, page as PageName, class)
        });
        let count = missing.len() as u32;
        let enough = count <= self.slots.available(class);
        let mut slots = Vec::new();
        if enough {
            match self.slots.take_run(count) {
                Some(first) => slots.extend(first..first + count),
                None => {
                    let mut took = Vec::new();
                    let found = self.slots.take_many(count, |slot| took.push(slot));
                    assert_eq!(found, count, "there are enough");
                    slots.extend(took.into_iter().map(|took| self.took(took)));
                }
            }
            for (&slot, &page) in slots.iter().zip(&missing) {
                self.books.hints[page] = slot;
                self.show(slot, Some(page as PageName));
            }
        }
        if fails || !enough {
            self.slots.give_back_many(slots);
            for page in held {
                assert_eq!(self.slots.unhold(self.books.hints[page]), Released::Kept);
            }
            return false;
        }
        for (&slot, &page) in slots.iter().zip(&missing) {
            self.slots.install(slot, page as PageName);
            assert!(self.slots.hold(slot, page as PageName, class));
        }
        let slots: Vec<_> = pages.clone().map(|page| self.books.hints[page]).collect();
        for (&slot, page) in slots.iter().zip(pages) {
            assert_eq!(self.books.shown[slot as usize], Some(page as PageName));
        }
        let told = false;
        let mapping = Mapping {
            object,
            told,
            slots,
        };
        self.books.mappings.push(mapping);
        // Their order tells nothing.
        self.books.mappings.sort();
        true
    }

    fn unmap(&mut self, mapping: usize) {
        let Mapping { slots, .. } = self.books.mappings.remove(mapping);
        for &slot in &slots {
            if self.slots.unhold(slot) == Released::Taken {
                self.show(slot, None);
            }
        }
        self.slots.give_back_many(slots);
    }

    fn invalidate(&mut self, object: usize) {
        for mapping in &mut self.books.mappings {
            mapping.told |= mapping.object == object;
        }
        self.books.mappings.sort();
    }

    /// Whether the slots of an object may drain, which peers still hold.
    fn may_leave(&self, object: usize) -> bool {
        let held = self.held(object).len() as u32;
        let promised = self.books.objects[object].class() == Class::Promised;
        !promised || self.slots.may_drain(held)
    }

    /// The pages of an object that peers hold slots of.
    fn held(&self, object: usize) -> Vec<usize> {
        let held = |&page: &usize| {
            let name = page as PageName;
            let slot = self.slots.get(self.books.hints[page]);
            matches!(slot, Some(Slot::Peers { page, .. }) if page == name)
        };
        self.pages(object).filter(held).collect()
    }

    fn release(&mut self, object: usize) {
        let mut slots = Vec::new();
        for page in self.pages(object) {
            self.books.cpu[page] = None;
            let slot = std::mem::replace(&mut self.books.hints[page], NOWHERE);
            slots.push(slot);
            if self.slots.release(slot, page as PageName) == Released::Taken {
                self.show(slot, None);
            }
        }
        self.slots.give_back_many(slots);
    }

    /// Changes what an object is promised, or nothing if that does not fit.
    fn change(&mut self, object: usize, change: fn(&mut Object)) {
        let before = self.books.objects[object];
        let mut after = before;
        change(&mut after);
        let pages = self.sizes[object] as u32;
        match (before.class(), after.class()) {
            (Class::Lent, Class::Promised) => {
                let expected = self.expect_promise(object);
                self.reclass(object, Class::Promised);
                let promised = self.slots.promise(pages);
                assert_eq!(promised, expected);
                if promised.is_err() {
                    self.reclass(object, Class::Lent);
                    return;
                }
            }
            (Class::Promised, Class::Lent) => {
                self.slots.unpromise(pages);
                self.reclass(object, Class::Lent);
            }
            _ => {}
        }
        self.books.objects[object] = after;
    }

    fn reclass(&mut self, object: usize, class: Class) {
        for page in self.held(object) {
            let slot = self.books.hints[page];
            self.slots.reclass(slot, page as PageName, class);
        }
    }

    /// Pages of the promised objects.
    fn promised(&self) -> usize {
        let objects = self.books.objects.iter().zip(self.sizes);
        objects
            .filter(|(object, _)| object.class() == Class::Promised)
            .map(|(_, pages)| pages)
            .sum()
    }

    /// What the books say to a promise for an object that has none.
    fn expect_promise(&self, object: usize) -> Result<(), NoPromise> {
        let total = self.books.shown.len();
        let promised = self.promised() + self.sizes[object];
        if promised > total {
            return Err(NoPromise::TooMuch);
        }
        // What peers use, but for what is part of a promise.
        let in_part = |slot: SlotId| {
            self.books.shown[slot as usize]
                .map(|page| page as usize)
                .filter(|&page| self.books.hints[page] == slot)
                .map(|page| self.object_of(page))
                .is_some_and(|of| of == object || self.books.objects[of].class() == Class::Promised)
        };
        let used = (0..total as SlotId)
            .filter(|&slot| self.users(slot) != 0 && !in_part(slot))
            .count();
        match (promised + used).checked_sub(total) {
            None | Some(0) => Ok(()),
            Some(short) => Err(NoPromise::InTheWay(short as u32)),
        }
    }

    /// Panics unless the slots agree with the books, and the promise holds.
    pub fn check(&self) {
        let books = &self.books;
        let mut has_slot = vec![false; books.hints.len()];
        let [mut free, mut idle, mut held, mut lent, mut draining] = [0; 5];
        for (slot, &shown) in (0..).zip(&books.shown) {
            let users = self.users(slot) as u32;
            let page = match self.slots.get(slot).unwrap() {
                Slot::Taken => panic!("slot {slot} has leaked"),
                Slot::Free => {
                    assert_eq!(users, 0);
                    free += 1;
                    continue;
                }
                Slot::Draining { peers } => {
                    assert!(peers == users && users != 0, "slot {slot}");
                    let told = books.mappings.iter().filter(|mapping| mapping.told);
                    let told = told.filter(|mapping| mapping.slots.contains(&slot));
                    assert_eq!(told.count(), users as usize, "a peer was not told");
                    draining += 1;
                    continue;
                }
                Slot::Idle { page, .. } => {
                    assert_eq!(users, 0);
                    idle += 1;
                    page
                }
                Slot::Peers { page, peers, class } => {
                    assert!(peers == users && users != 0, "slot {slot}");
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
        let counts = self.slots.counts();
        assert_eq!(
            [free, idle, held, lent, draining, self.promised() as u32],
            [
                counts.free,
                counts.idle,
                counts.held,
                counts.lent,
                counts.draining,
                counts.promised
            ]
        );
        assert!(self.promised() as u32 + lent + draining <= books.shown.len() as u32);
        for (page, slot) in books.cpu.iter().enumerate() {
            if let Some(slot) = *slot {
                assert!(has_slot[page], "a CPU sees page {page} nowhere");
                assert_eq!(books.hints[page], slot);
            }
        }
    }

    /// Panics unless all promised objects can be mapped, one after the other, whoever else holds
    /// what he holds.
    pub fn assert_promises_hold(&self) {
        let mut rig = self.clone();
        for object in 0..self.sizes.len() {
            if self.books.objects[object].class() == Class::Promised {
                assert!(rig.map(object, false), "a promise is broken");
            }
        }
    }

    /// Panics unless a promise that fits beside the others is given once peers have let go of what
    /// is lent or drains.
    pub fn assert_promises_can_be_had(&self) {
        let mut rig = self.clone();
        let promised = |mapping: &Mapping| {
            let drains =
                |&slot: &SlotId| matches!(self.slots.get(slot), Some(Slot::Draining { .. }));
            self.books.objects[mapping.object].class() == Class::Promised
                && !mapping.slots.iter().any(drains)
        };
        while let Some(mapping) = rig.books.mappings.iter().position(|m| !promised(m)) {
            rig.unmap(mapping);
        }
        for (object, &pages) in self.sizes.iter().enumerate() {
            if self.books.objects[object].class() == Class::Lent {
                let fits = self.promised() + pages <= self.books.shown.len();
                assert_eq!(rig.slots.promise(pages as u32).is_ok(), fits);
                if fits {
                    rig.slots.unpromise(pages as u32);
                }
            }
        }
    }

    /// Everybody leaves: everything must be free again.
    pub fn assert_nothing_leaks(&self) {
        let mut rig = self.clone();
        for object in 0..self.sizes.len() {
            rig.books.objects[object].moving = false;
            rig.invalidate(object);
            rig.apply(Event::Free { object });
        }
        while !rig.books.mappings.is_empty() {
            rig.apply(Event::Unmap { mapping: 0 });
        }
        rig.check();
        let free = rig.slots.counts().free;
        let counts = crate::slots::Counts {
            free,
            ..Default::default()
        };
        assert_eq!(free as usize, rig.slots.total());
        assert_eq!(rig.slots.counts(), counts);
    }

    /// What tells two situations apart, in few bytes: the states of the slots, and the books. What
    /// a free or draining slot shows does not matter, nor where a page was seen that is no longer
    /// there, if `stale` is not asked for. Objects of the same size can change places: the least
    /// key of all orders stands for them all.
    pub fn key(&self, stale: bool) -> Box<[u8]> {
        let keys = self.orders.iter().map(|order| self.key_of(order, stale));
        keys.min().unwrap().into()
    }

    /// The key with the objects in another order.
    fn key_of(&self, order: &Order, stale: bool) -> Vec<u8> {
        let books = &self.books;
        // Absurd numbers stand for "none": all others are small.
        let byte = |number: u32| number.min(u8::MAX.into()) as u8;
        let page_byte = |page: PageName| order.pages[page as usize] as u8;
        let mut key = Vec::with_capacity(64);
        let mut there = [false; MAX_PAGES];
        for slot in 0..books.shown.len() as SlotId {
            match self.slots.get(slot).unwrap() {
                Slot::Free => key.push(0),
                Slot::Taken => key.push(1),
                Slot::Idle { page, prev, next } => {
                    there[page as usize] = true;
                    key.extend([2, page_byte(page), byte(prev), byte(next)]);
                }
                Slot::Peers { page, peers, class } => {
                    there[page as usize] = true;
                    let kind = 3 + u8::from(class == Class::Promised);
                    key.extend([kind, page_byte(page), byte(peers)]);
                }
                Slot::Draining { peers } => key.extend([5, byte(peers)]),
            }
        }
        let mut pages = [[0; 2]; MAX_PAGES];
        for (page, &hint) in books.hints.iter().enumerate() {
            let hint = match there[page] || stale {
                true => byte(hint),
                false => byte(NOWHERE),
            };
            pages[order.pages[page]] = [hint, byte(books.cpu[page].unwrap_or(NOWHERE))];
        }
        key.extend(pages[..books.hints.len()].as_flattened());
        let mut objects = [0; MAX_PAGES];
        for (index, object) in books.objects.iter().enumerate() {
            let bits = [object.reserved, object.pinned, object.moving];
            let bits = bits.into_iter().fold(0, |all, bit| 2 * all + u8::from(bit));
            objects[order.objects[index]] = bits;
        }
        key.extend(&objects[..books.objects.len()]);
        let mut mappings: Vec<_> = books.mappings.iter().collect();
        mappings.sort_by_key(|mapping| (order.objects[mapping.object], *mapping));
        for mapping in mappings {
            key.extend([order.objects[mapping.object] as u8, u8::from(mapping.told)]);
            key.extend(mapping.slots.iter().map(|&slot| byte(slot)));
        }
        key
    }
}

/// An order of the objects in which sizes are as before: new places of objects and of pages.
struct Order {
    objects: Vec<usize>,
    pages: Vec<usize>,
}

/// More pages than any search has.
const MAX_PAGES: usize = 8;

/// All orders of objects of such sizes.
fn orders(sizes: &[usize]) -> Vec<Order> {
    let count = sizes.len();
    let mut places: Vec<Vec<usize>> = vec![Vec::new()];
    for size in sizes {
        let longer = |place: &Vec<usize>| {
            let rest = (0..count).filter(|&to| sizes[to] == *size && !place.contains(&to));
            let longer = rest.map(|to| place.iter().copied().chain([to]).collect());
            longer.collect::<Vec<_>>()
        };
        places = places.iter().flat_map(longer).collect();
    }
    let first = |object: usize| sizes[..object].iter().sum::<usize>();
    let order = |objects: Vec<usize>| {
        let pages = objects.iter().zip(sizes);
        let pages = pages.flat_map(|(&to, &size)| first(to)..first(to) + size);
        let pages = pages.collect();
        Order { objects, pages }
    };
    places.into_iter().map(order).collect()
}
