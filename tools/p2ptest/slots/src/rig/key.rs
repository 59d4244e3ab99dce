// SPDX-License-Identifier: GPL-2.0
//! What tells two situations apart.

use std::rc::Rc;

use super::{Busy, By, Held, NOWHERE, Peer, Rig, Section};
use crate::slots::lease::GONE;
use crate::slots::{Class, PageName, Slot, SlotId};

/// More pages than any search has.
const MAX_PAGES: usize = 8;
/// More peers than any search has.
const MAX_PEERS: usize = 4;

/// An order of the objects in which sizes are as before: new places of objects and of pages.
pub(super) struct Order {
    objects: Vec<usize>,
    pages: Vec<usize>,
}

/// All orders of objects of such sizes.
pub(super) fn orders(sizes: &[usize]) -> Vec<Order> {
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

/// Memory that is used again from key to key.
#[derive(Default)]
pub struct Scratch {
    least: Vec<u8>,
    other: Vec<u8>,
}

/// A byte for a number that is small, or stands for "none".
fn byte(number: u32) -> u8 {
    number.min(u8::MAX.into()) as u8
}

impl<const KNOWN_MAX: usize> Rig<KNOWN_MAX> {
    /// What tells two situations apart, in few bytes: the states of the slots, the leases, and the
    /// books. What a free or draining slot shows does not matter, nor where a page was seen that is
    /// no longer there, if `stale` is not asked for. Objects of the same size can change places: the
    /// least key of all orders stands for them all.
    pub fn key<'s>(&self, stale: bool, scratch: &'s mut Scratch) -> &'s [u8] {
        let Scratch { least, other } = scratch;
        for (index, order) in self.orders.iter().enumerate() {
            other.clear();
            self.key_of(order, stale, other);
            if index == 0 || other < least {
                std::mem::swap(least, other);
            }
        }
        least
    }

    /// The key with the objects in another order.
    fn key_of(&self, order: &Order, stale: bool, key: &mut Vec<u8>) {
        let books = &self.books;
        let there = self.key_of_slots(order, key);
        let mut pages = [[0; 2]; MAX_PAGES];
        for (page, &hint) in books.hints.iter().enumerate() {
            let hint = match there[page] || stale {
                true => byte(hint),
                false => byte(NOWHERE),
            };
            pages[order.pages[page]] = [hint, byte(books.cpu[page].unwrap_or(NOWHERE))];
        }
        key.extend(pages[..books.hints.len()].as_flattened());
        let mut objects = [[0; 2]; MAX_PAGES];
        for (index, object) in books.objects.iter().enumerate() {
            let bits = u8::from(object.reserved) * 2 + u8::from(object.pinned);
            let busy = match object.busy {
                None => 0,
                Some(Busy::Moving) => 1,
                Some(Busy::Asking(By::Pin)) => 2,
                Some(Busy::Asking(By::Reserve)) => 3,
                Some(Busy::Leaving(count)) => 4 + byte(count),
            };
            objects[order.objects[index]] = [bits, busy];
        }
        key.extend(objects[..books.objects.len()].as_flattened());
        key.push(match books.section {
            None => 0,
            Some(Section::Taken) => 1,
            Some(Section::Settled) => 2,
            Some(Section::Done) => 3,
        });
        key.push(self.marks[0] as u8);
        self.key_of_leases(order, key);
    }

    /// The states of the slots, and which pages are in them.
    fn key_of_slots(&self, order: &Order, key: &mut Vec<u8>) -> [bool; MAX_PAGES] {
        let page_byte = |page: PageName| order.pages[page as usize] as u8;
        let mut there = [false; MAX_PAGES];
        for slot in 0..self.books.shown.len() as SlotId {
            match self.state.slots.get(slot).unwrap() {
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
        there
    }

    /// The known leases in their order, and the peers with theirs.
    fn key_of_leases(&self, order: &Order, key: &mut Vec<u8>) {
        let add = |held: &Rc<Held>, first: usize, key: &mut Vec<u8>| {
            let mark = self.marks[held.mark] as u8;
            let class = u8::from(held.lease.class() == Class::Promised);
            key.extend([8, mark, first as u8, class]);
            key.extend(held.lease.slots().iter().map(|&slot| byte(slot)));
        };
        for held in self.state.known.iter() {
            match self.marks[held.mark] {
                // It is forgotten at the next look.
                GONE => key.push(9),
                _ => add(held, order.pages[held.first], key),
            }
        }
        key.push(10);
        // Sorted, by insertion: where each of them starts, and the last one ends.
        let mut bounds = [key.len(); MAX_PEERS + 1];
        for (index, peer) in self.books.peers.iter().enumerate() {
            let Peer {
                object,
                pages,
                told,
                at,
                held,
            } = peer;
            let first = order.pages[pages.start] as u8;
            key.extend([order.objects[*object] as u8, first, pages.len() as u8]);
            key.extend([u8::from(*told), *at as u8]);
            let mut known = self.state.known.iter();
            match known.position(|known| known.mark == held.mark) {
                Some(place) => key.push(12 + place as u8),
                None => add(held, first.into(), key),
            }
            bounds[index + 1] = key.len();
            for at in (1..=index).rev() {
                let [start, middle, end] = [bounds[at - 1], bounds[at], bounds[at + 1]];
                if key[start..middle] <= key[middle..end] {
                    break;
                }
                key[start..end].rotate_left(middle - start);
                bounds[at] = start + (end - middle);
            }
        }
    }
}
