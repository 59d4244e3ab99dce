// SPDX-License-Identifier: GPL-2.0
//! Every way in which CPUs, peers, pins, reservations and moves can share a small aperture: all
//! events in all situations that events lead to, breadth first, each situation once.
//!
//! What peers do to their leases without the lock, and what is done under it meanwhile, is searched
//! step by step in the smallest apertures, and as one step in the others.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::rig::{Event, Limits, Rig, Scratch};

/// The search: how large, and what was found.
struct Search {
    slots: usize,
    /// Pages of each object.
    sizes: &'static [usize],
    limits: Limits,
    /// Whether a stale idea of where a page is tells situations apart.
    stale: bool,
}

impl Search {
    /// Searches all there is and returns the number of situations.
    ///
    /// # Panics
    ///
    /// When an event, or a situation, breaks a rule; with the events that lead there.
    fn run<const KNOWN_MAX: usize>(&self) -> usize {
        let start = Rig::<KNOWN_MAX>::new(self.slots, self.sizes, self.limits);
        let mut scratch = Scratch::default();
        let first: Box<[u8]> = start.key(self.stale, &mut scratch).into();
        let mut keys = HashSet::from([first]);
        // The situation before, and the event between, of each one by its number.
        let mut origins = vec![None];
        let mut todo = VecDeque::from([start]);
        let mut number = 0;
        while let Some(here) = todo.pop_front() {
            for event in here.events() {
                // What panics is a rule that does not hold.
                let result = catch_unwind(AssertUnwindSafe(|| {
                    let mut next = here.clone();
                    next.apply(event);
                    next
                }));
                let next = result.unwrap_or_else(|_| self.fail(&origins, number, Some(event)));
                let key = next.key(self.stale, &mut scratch);
                // Most events lead to where others have led.
                if !keys.contains(key) {
                    keys.insert(key.into());
                    origins.push(Some((number, event)));
                    todo.push_back(next);
                }
            }
            let result = catch_unwind(AssertUnwindSafe(|| {
                here.check();
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

/// Whole objects; what a peer does to its lease is one step.
const WHOLE: Limits = Limits {
    peers: 2,
    steps: false,
    windows: false,
    claims: false,
};

/// One peer at a time.
const ALONE: Limits = Limits { peers: 1, ..WHOLE };

/// What peers do without the lock is searched step by step, and so is what is done under it.
const STEPS: Limits = Limits {
    steps: true,
    ..WHOLE
};

/// Says how many situations there are, so that the test's output has it.
fn search<const KNOWN_MAX: usize>(
    slots: usize,
    sizes: &'static [usize],
    limits: Limits,
    stale: bool,
) -> usize {
    let search = Search {
        slots,
        sizes,
        limits,
        stale,
    };
    let found = search.run::<KNOWN_MAX>();
    println!(
        "{slots} slots, objects of {sizes:?} pages, {limits:?}, {KNOWN_MAX}: {found} situations"
    );
    found
}

// A search that misses events finds fewer situations.

#[test]
fn every_interleaving_on_one_slot() {
    assert_eq!(search::<2>(1, &[1, 1, 1], WHOLE, true), 18470);
    let claims = Limits {
        claims: true,
        ..ALONE
    };
    assert_eq!(search::<1>(1, &[1, 1, 1], claims, true), 9288);
}

#[test]
fn every_interleaving_on_two_slots() {
    assert_eq!(search::<2>(2, &[2, 1], WHOLE, true), 189880);
    assert_eq!(search::<1>(2, &[2, 1, 1], WHOLE, false), 168752);
}

#[test]
fn every_interleaving_on_three_slots() {
    assert_eq!(search::<1>(3, &[2, 1, 1], ALONE, false), 921752);
}

#[test]
fn every_interleaving_on_four_slots() {
    assert_eq!(search::<1>(4, &[1, 1, 1], ALONE, false), 1_010_662);
}

#[test]
fn every_step_of_two_peers() {
    // The fewer are known, the more often one has to make room.
    assert_eq!(search::<2>(1, &[1, 1], STEPS, false), 169444);
    assert_eq!(search::<1>(1, &[1, 1], STEPS, false), 98188);
}

#[test]
fn every_step_of_two_peers_of_an_object() {
    assert_eq!(search::<1>(2, &[2], STEPS, false), 72714);
}

#[test]
fn every_step_of_one_peer() {
    let claims = Limits {
        peers: 1,
        claims: true,
        ..STEPS
    };
    assert_eq!(search::<1>(1, &[1, 1, 1], claims, false), 26939);
    let windows = Limits {
        peers: 1,
        windows: true,
        ..STEPS
    };
    assert_eq!(search::<1>(2, &[2, 1], windows, false), 164012);
}

#[test]
fn every_interleaving_of_windows() {
    let windows = Limits {
        windows: true,
        ..WHOLE
    };
    assert_eq!(search::<1>(2, &[2], windows, false), 20484);
}
