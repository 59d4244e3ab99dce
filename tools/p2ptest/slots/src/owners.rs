// SPDX-License-Identifier: GPL-2.0
//! Every way in which CPUs, peers and migrations can share a small aperture.
//!
//! [`Rig`] makes the calls that the driver's aperture makes for each event, with hardware that may
//! fail, and keeps books of its own: what each slot shows, who may still use it, what CPUs map. It
//! panics where somebody would see a page that is not his.

use std::collections::{HashSet, VecDeque};

use crate::slots::{Class, PageName, Released, Slot, SlotId, Slots, Took};

/// The objects, each with the names of its pages.
const OBJECTS: [&[PageName]; 2] = [&[0, 1], &[2]];
const PAGES: usize = 3;

/// What can happen; the aperture's lock makes each one step.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A CPU touches a page.
    Fault { page: usize, fails: bool },
    /// A peer maps an object.
    Map { object: usize, fails: bool },
    /// The peer that holds this mapping lets go of it.
    Unmap { mapping: usize },
    /// An object's pages leave; it comes back with new ones at the next fault or map.
    Release { object: usize },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Books {
    /// Where each page was seen last.
    hints: [SlotId; PAGES],
    /// The page that the hardware shows in each slot.
    shown: Vec<Option<PageName>>,
    /// The slot that CPUs map each page by.
    cpu: [Option<SlotId>; PAGES],
    /// The slots that each peer mapping was given.
    mappings: Vec<Vec<SlotId>>,
    /// Where the search for a run starts.
    cursor: SlotId,
}

struct Rig {
    slots: Slots<Vec<Slot>>,
    books: Books,
}

impl Rig {
    fn new(count: usize) -> Self {
        Self {
            slots: Slots::new(vec![Slot::Taken; count]).unwrap(),
            books: Books {
                hints: [SlotId::MAX; PAGES],
                shown: vec![None; count],
                cpu: [None; PAGES],
                mappings: Vec::new(),
                cursor: 0,
            },
        }
    }

    fn after(count: usize, events: &[Event]) -> Self {
        let mut rig = Self::new(count);
        for &event in events {
            rig.apply(event);
        }
        rig
    }

    /// How many peer mappings use the slot.
    fn users(&self, slot: SlotId) -> usize {
        let held = |mapping: &&Vec<SlotId>| mapping.contains(&slot);
        self.books.mappings.iter().filter(held).count()
    }

    /// The hardware shows something else in the slot: nobody may be looking.
    fn show(&mut self, slot: SlotId, page: Option<PageName>) {
        assert_eq!(self.slots.get(slot), Some(Slot::Taken));
        assert_eq!(self.users(slot), 0, "slot {slot} is reused under a peer");
        assert!(!self.books.cpu.contains(&Some(slot)), "a CPU sees {slot}");
        self.books.shown[slot as usize] = page;
    }

    fn take(&mut self) -> Option<SlotId> {
        Some(match self.slots.take()? {
            Took::Free(slot) => slot,
            Took::Idle(slot, page) => {
                assert_eq!(self.books.shown[slot as usize], Some(page));
                self.books.cpu[page as usize] = None;
                slot
            }
        })
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Fault { page, fails } => self.fault(page, fails),
            Event::Map { object, fails } => self.map(OBJECTS[object], fails),
            Event::Unmap { mapping } => self.unmap(mapping),
            Event::Release { object } => self.release(OBJECTS[object]),
        }
    }

    fn fault(&mut self, page: usize, fails: bool) {
        let name = page as PageName;
        let mut slot = self.books.hints[page];
        if !self.slots.touch(slot, name) {
            let available = self.slots.available(Class::Lent);
            let Some(taken) = self.take() else {
                assert_eq!(available, 0);
                return;
            };
            slot = taken;
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

    fn map(&mut self, pages: &[PageName], fails: bool) {
        let hint = |rig: &Self, page: PageName| rig.books.hints[page as usize];
        let (held, missing): (Vec<_>, Vec<_>) = pages
            .iter()
            .copied()
            .partition(|&page| self.slots.hold(hint(self, page), page, Class::Lent));
        let enough = missing.len() <= self.slots.available(Class::Lent) as usize;
        if enough {
            let count = missing.len() as u32;
            let run = self.slots.take_run(count);
            if let Some(first) = run {
                self.books.cursor = (first + count) % self.books.shown.len() as u32;
            }
            for (index, &page) in (0..).zip(&missing) {
                let slot = match run {
                    Some(first) => first + index,
                    None => self.take().expect("there are enough"),
                };
                self.books.hints[page as usize] = slot;
                self.show(slot, Some(page));
            }
        }
        if fails || !enough {
            if enough {
                for &page in &missing {
                    self.slots.give_back(hint(self, page));
                }
            }
            for &page in &held {
                assert_eq!(self.slots.unhold(hint(self, page)), Released::Kept);
            }
            return;
        }
        for &page in &missing {
            self.slots.install(hint(self, page), page);
            assert!(self.slots.hold(hint(self, page), page, Class::Lent));
        }
        let mapping: Vec<_> = pages.iter().map(|&page| hint(self, page)).collect();
        for (&slot, &page) in mapping.iter().zip(pages) {
            assert_eq!(self.books.shown[slot as usize], Some(page));
        }
        self.books.mappings.push(mapping);
    }

    fn unmap(&mut self, mapping: usize) {
        let held = self.books.mappings.remove(mapping);
        for &slot in &held {
            if self.slots.unhold(slot) == Released::Taken {
                self.show(slot, None);
            }
        }
        for slot in held {
            self.slots.give_back(slot);
        }
    }

    fn release(&mut self, pages: &[PageName]) {
        for &page in pages {
            self.books.cpu[page as usize] = None;
            let slot = self.books.hints[page as usize];
            if self.slots.release(slot, page) == Released::Taken {
                self.show(slot, None);
            }
        }
        for &page in pages {
            self.slots.give_back(self.books.hints[page as usize]);
            self.books.hints[page as usize] = SlotId::MAX;
        }
    }

    /// Panics unless the slots agree with the books.
    fn check(&self) {
        let mut pages = HashSet::new();
        let mut counts = [0; 4];
        for (slot, &shown) in (0..).zip(&self.books.shown) {
            let users = self.users(slot);
            let state = self.slots.get(slot).unwrap();
            let (page, kind) = match state {
                Slot::Taken => panic!("slot {slot} has leaked"),
                Slot::Free { .. } => (None, 0),
                Slot::Idle { page, .. } => (Some(page), 1),
                Slot::Peers { page, peers, .. } => {
                    assert_eq!(peers as usize, users);
                    (Some(page), 2)
                }
                Slot::Draining { peers } => {
                    assert_eq!(peers as usize, users);
                    (None, 3)
                }
            };
            counts[kind] += 1;
            assert_eq!(users != 0, kind >= 2, "slot {slot}: {state:?}");
            if let Some(page) = page {
                assert!(pages.insert(page), "page {page} has two slots");
                assert_eq!(shown, Some(page));
                assert_eq!(self.books.hints[page as usize], slot);
            }
        }
        let found = self.slots.counts();
        assert_eq!(counts, [found.free, found.idle, found.held, found.draining]);
        for (page, slot) in self.books.cpu.iter().enumerate() {
            if let Some(slot) = *slot {
                assert!(pages.contains(&(page as PageName)));
                assert_eq!(self.books.shown[slot as usize], Some(page as PageName));
            }
        }
    }

    /// Everybody leaves: everything must be free again.
    fn assert_nothing_leaks(mut self) {
        for object in 0..OBJECTS.len() {
            self.apply(Event::Release { object });
        }
        while !self.books.mappings.is_empty() {
            self.apply(Event::Unmap { mapping: 0 });
        }
        self.check();
        assert_eq!(self.slots.counts().free as usize, self.slots.total());
    }

    /// What tells two situations apart. What a free slot shows does not matter.
    fn key(&self) -> (Vec<[u32; 4]>, Books) {
        let slot = |id| match self.slots.get(id).unwrap() {
            Slot::Free { prev, next } => [0, 0, prev, next],
            Slot::Taken => [1, 0, 0, 0],
            Slot::Idle { page, prev, next } => [2, page, prev, next],
            Slot::Peers { page, peers, .. } => [3, page, peers, 0],
            Slot::Draining { peers } => [4, 0, peers, 0],
        };
        let ids = 0..self.books.shown.len() as SlotId;
        let mut books = self.books.clone();
        for id in ids.clone() {
            if let Some(Slot::Free { .. }) = self.slots.get(id) {
                books.shown[id as usize] = None;
            }
        }
        (ids.map(slot).collect(), books)
    }
}

/// Tries every event in every state that events lead to, with at most `peers` mappings at a time
/// and sequences of at most `length` events, and returns the number of states.
fn search(count: usize, peers: usize, length: usize) -> usize {
    let mut todo = VecDeque::from([Vec::new()]);
    let mut keys = HashSet::new();
    while let Some(path) = todo.pop_front() {
        let here = Rig::after(count, &path);
        let mut events = Vec::new();
        for fails in [false, true] {
            events.extend((0..PAGES).map(|page| Event::Fault { page, fails }));
            if here.books.mappings.len() < peers {
                events.extend((0..OBJECTS.len()).map(|object| Event::Map { object, fails }));
            }
        }
        events.extend((0..here.books.mappings.len()).map(|mapping| Event::Unmap { mapping }));
        events.extend((0..OBJECTS.len()).map(|object| Event::Release { object }));
        for event in events {
            let path: Vec<_> = path.iter().copied().chain([event]).collect();
            let rig = Rig::after(count, &path);
            rig.check();
            if keys.insert(rig.key()) {
                rig.assert_nothing_leaks();
                if path.len() < length {
                    todo.push_back(path);
                }
            }
        }
    }
    keys.len()
}

#[test]
fn every_interleaving_on_small_apertures() {
    let states = [
        search(1, 2, usize::MAX),
        search(2, 2, usize::MAX),
        search(3, 1, usize::MAX),
        search(3, 2, 7),
        search(4, 2, 6),
    ];
    // A search that misses events finds fewer states.
    assert_eq!(states, [48, 1268, 6912, 8128, 15431]);
}
