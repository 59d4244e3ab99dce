// SPDX-License-Identifier: GPL-2.0
//! Every way in which CPUs, peers, pins, reservations and moves can share a small aperture: all
//! events in all situations that events lead to, breadth first, each situation once.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::rig::{Event, Rig};

/// The search: how large, and what was found.
struct Search {
    slots: usize,
    /// Pages of each object.
    sizes: &'static [usize],
    /// Mappings at a time.
    peers: usize,
    /// Whether a stale idea of where a page is tells situations apart.
    stale: bool,
}

impl Search {
    /// Searches all there is and returns the number of situations.
    ///
    /// # Panics
    ///
    /// When an event, or a situation, breaks a rule; with the events that lead there.
    fn run(&self) -> usize {
        let start = Rig::new(self.slots, self.sizes);
        let mut keys = HashSet::from([start.key(self.stale)]);
        // The situation before, and the event between, of each one by its number.
        let mut origins = vec![None];
        let mut todo = VecDeque::from([start]);
        let mut number = 0;
        while let Some(here) = todo.pop_front() {
            for event in here.events(self.peers) {
                // What panics is a rule that does not hold.
                let result = catch_unwind(AssertUnwindSafe(|| {
                    let mut next = here.clone();
                    next.apply(event);
                    next
                }));
                let next = result.unwrap_or_else(|_| self.fail(&origins, number, Some(event)));
                if keys.insert(next.key(self.stale)) {
                    origins.push(Some((number, event)));
                    todo.push_back(next);
                }
            }
            let result = catch_unwind(AssertUnwindSafe(|| {
                here.check();
                here.assert_promises_hold();
                here.assert_promises_can_be_had();
                here.assert_nothing_leaks();
            }));
            result.unwrap_or_else(|_| self.fail(&origins, number, None));
            number += 1;
        }
        keys.len()
    }

    fn fail(&self, origins: &[Option<(usize, Event)>], number: usize, last: Option<Event>) -> ! {
        let mut path = Vec::from_iter(last);
        let mut at = number;
        while let Some((before, event)) = origins[at] {
            path.push(event);
            at = before;
        }
        path.reverse();
        panic!(
            "{} slots, objects of {:?} pages: {path:#?}",
            self.slots, self.sizes
        );
    }
}

/// Says how many situations there are, so that the test's output has it.
fn search(slots: usize, sizes: &'static [usize], peers: usize, stale: bool) -> usize {
    let search = Search {
        slots,
        sizes,
        peers,
        stale,
    };
    let found = search.run();
    println!("{slots} slots, objects of {sizes:?} pages, {peers} mappings: {found} situations");
    found
}

// A search that misses events finds fewer situations.

#[test]
fn every_interleaving_on_one_or_two_slots() {
    assert_eq!(search(1, &[1, 1, 1], 2, true), 868);
    assert_eq!(search(2, &[2, 1], 2, true), 11864);
    assert_eq!(search(2, &[2, 1, 1], 2, false), 16382);
}

#[test]
fn every_interleaving_on_three_slots() {
    assert_eq!(search(3, &[2, 1, 1], 1, false), 216002);
}

#[test]
fn every_interleaving_on_four_slots() {
    assert_eq!(search(4, &[1, 1, 1], 1, false), 158432);
}
