// SPDX-License-Identifier: GPL-2.0
//! The slots against the model, call by call: random calls, and every sequence of calls on small
//! apertures. The calls are any, also those that no driver would make.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use crate::memory::HostMemory;
use crate::model::{Call, Model, State};
use crate::slots::{Class, NoPromise, Released, Slots, Took};

fn slots(count: u32) -> Slots<HostMemory> {
    Slots::new(count).unwrap()
}

/// A number below `count`, just past it, or absurd.
fn number(count: u32) -> impl Strategy<Value = u32> {
    prop_oneof![12 => 0..count.max(1), 1 => count..count + 2, 1 => Just(u32::MAX)]
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Lent), Just(Class::Promised)]
}

fn call(count: u32) -> impl Strategy<Value = Call> {
    let slot = || number(count);
    let page = || number(4);
    prop_oneof![
        4 => Just(Call::Take),
        2 => number(4).prop_map(Call::TakeRun),
        4 => (slot(), page()).prop_map(|(id, page)| Call::Install(id, page)),
        3 => slot().prop_map(Call::GiveBack),
        1 => [slot(), slot(), slot()].prop_map(Call::GiveBackMany),
        1 => number(4).prop_map(Call::TakeMany),
        4 => (slot(), page(), class()).prop_map(|(id, page, class)| Call::Hold(id, page, class)),
        3 => slot().prop_map(Call::Unhold),
        2 => (slot(), page()).prop_map(|(id, page)| Call::Release(id, page)),
        1 => (slot(), page()).prop_map(|(id, page)| Call::Touch(id, page)),
        1 => Just(Call::Forget),
        1 => number(count).prop_map(Call::Promise),
        1 => number(count).prop_map(Call::Unpromise),
        1 => (slot(), page(), class())
            .prop_map(|(id, page, class)| Call::Reclass(id, page, class)),
    ]
}

proptest! {
    #[test]
    fn random_calls(
        (count, calls) in (0u32..10).prop_flat_map(|count| {
            (Just(count), proptest::collection::vec(call(count), 0..300))
        })
    ) {
        let (mut real, mut model) = (slots(count), Model::new(count));
        model.assert_same(&real);
        for call in calls {
            prop_assert_eq!(call.real(&mut real), model.call(call), "{:?}", call);
            model.assert_same(&real);
        }
    }
}

/// All calls with arguments up to one past the ends.
fn all_calls(count: u32, pages: u32) -> Vec<Call> {
    let mut calls = vec![Call::Take];
    for number in 0..=count + 1 {
        calls.extend(
            [
                Call::TakeRun,
                Call::TakeMany,
                Call::Promise,
                Call::Unpromise,
            ]
            .map(|call| call(number)),
        );
    }
    for id in 0..=count {
        calls.extend([Call::GiveBack(id), Call::Unhold(id)]);
        // The others of three slots, downwards, and one twice.
        calls.push(Call::GiveBackMany([id + 1, id.wrapping_sub(1), id + 1]));
        for page in 0..pages {
            calls.extend([
                Call::Install(id, page),
                Call::Hold(id, page, Class::Lent),
                Call::Hold(id, page, Class::Promised),
                Call::Reclass(id, page, Class::Lent),
                Call::Reclass(id, page, Class::Promised),
                Call::Release(id, page),
                Call::Touch(id, page),
            ]);
        }
    }
    calls
}

/// Makes every call in every state that calls lead to, with at most two peers on a slot.
fn search(count: u32, pages: u32) -> usize {
    let calls = all_calls(count, pages);
    let mut seen = HashSet::from([Model::new(count)]);
    // States to look at, each with the calls that lead there: breadth first keeps these few.
    let mut todo = VecDeque::from([(Model::new(count), Vec::new())]);
    while let Some((before, path)) = todo.pop_front() {
        for &call in &calls {
            let mut real = slots(count);
            for earlier in &path {
                Call::real(*earlier, &mut real);
            }
            let mut model = before.clone();
            let answer = call.real(&mut real);
            assert_eq!(answer, model.call(call), "{path:?} {call:?}");
            model.assert_same(&real);
            let many = |state: &State| match *state {
                State::Peers(_, peers, _) | State::Draining(peers) => peers > 2,
                _ => false,
            };
            if !model.states.iter().any(many) && seen.insert(model.clone()) {
                let path = path.iter().copied().chain([call]).collect();
                todo.push_back((model, path));
            }
        }
    }
    seen.len()
}

#[test]
fn every_sequence_on_small_apertures() {
    let states = [(0, 1), (1, 2), (2, 2), (3, 1)].map(|(count, pages)| search(count, pages));
    // A search that misses calls finds fewer states.
    assert_eq!(states, [1, 28, 600, 3032]);
}

#[test]
fn the_coldest_goes_first_and_a_touch_warms() {
    let mut slots = slots(3);
    for page in 0..3 {
        assert_eq!(slots.take(), Some(Took::Free(page)));
        slots.install(page, page);
    }
    assert!(slots.touch(0, 0));
    assert!(!slots.touch(1, 0));
    assert_eq!(slots.take(), Some(Took::Idle(1, 1)));
    assert_eq!(slots.take(), Some(Took::Idle(2, 2)));
    assert_eq!(slots.take(), Some(Took::Idle(0, 0)));
    assert_eq!(slots.take(), None);
}

#[test]
fn what_the_device_forgot_is_free_unless_peers_hold_it() {
    let mut slots = slots(4);
    for id in 0..3 {
        assert_eq!(slots.take(), Some(Took::Free(id)));
    }
    slots.install(0, 5);
    slots.install(1, 6);
    assert!(slots.hold(1, 6, Class::Lent));
    slots.forget();
    // Nothing is shown, and the one that a peer holds is not had before it lets go.
    assert!(!slots.touch(0, 5) && !slots.hold(1, 6, Class::Lent));
    assert_eq!((slots.counts().free, slots.counts().draining), (3, 1));
    assert_eq!(slots.take_run(4), None);
    assert_eq!(slots.unhold(1), Released::Taken);
    slots.give_back(1);
    assert_eq!(slots.counts().free, 4);
}

#[test]
fn a_slot_drains_until_its_last_peer_goes() {
    let mut slots = slots(1);
    assert_eq!(slots.take(), Some(Took::Free(0)));
    slots.install(0, 5);
    assert!(slots.hold(0, 5, Class::Lent) && slots.hold(0, 5, Class::Lent));
    assert_eq!(slots.release(0, 5), Released::Kept);
    assert!(!slots.hold(0, 5, Class::Lent));
    assert_eq!(slots.unhold(0), Released::Kept);
    assert_eq!(slots.take(), None);
    slots.give_back(0);
    assert_eq!(slots.counts().draining, 1);
    assert_eq!(slots.unhold(0), Released::Taken);
    assert_eq!(slots.take(), None);
    slots.give_back(0);
    assert_eq!(slots.take(), Some(Took::Free(0)));
}

#[test]
fn the_lowest_run_is_taken() {
    let mut slots = slots(8);
    assert_eq!(slots.take_run(3), Some(0));
    assert_eq!(slots.take_run(3), Some(3));
    assert_eq!(slots.take_run(3), None);
    (0..3).for_each(|id| slots.give_back(id));
    assert_eq!(slots.take_run(2), Some(0));
    assert_eq!(slots.take_run(2), Some(6));
    slots.give_back_many([7, 0]);
    // Slots 7 and 0 are not adjacent, nor 0 and 2.
    assert_eq!(slots.take_run(2), None);
    assert_eq!(slots.take_run(1), Some(0));
}

/// A slot that shows page `page` and is held.
fn held(slots: &mut Slots<HostMemory>, page: u32, class: Class) -> u32 {
    let Some(Took::Free(id)) = slots.take() else {
        panic!("no slot is free");
    };
    slots.install(id, page);
    assert!(slots.hold(id, page, class));
    id
}

#[test]
fn promised_slots_are_not_lent() {
    let mut slots = slots(4);
    assert_eq!(slots.promise(5), Err(NoPromise::TooMuch));
    assert_eq!(slots.promise(3), Ok(()));
    assert_eq!(slots.promise(2), Err(NoPromise::TooMuch));
    assert!(slots.may_lend(1) && !slots.may_lend(2));
    held(&mut slots, 0, Class::Lent);
    assert_eq!(slots.available(Class::Lent), 0);
    assert_eq!(slots.available(Class::Promised), 3);
    assert_eq!(slots.take(), Some(Took::Free(1)));
    slots.install(1, 1);
    assert!(!slots.hold(1, 1, Class::Lent));
    assert!(slots.hold(1, 1, Class::Promised));
}

#[test]
fn lent_and_draining_slots_are_in_the_way_of_a_promise() {
    let mut slots = slots(3);
    let first = held(&mut slots, 0, Class::Lent);
    let second = held(&mut slots, 1, Class::Lent);
    assert_eq!(slots.promise(3), Err(NoPromise::InTheWay(2)));
    slots.unhold(first);
    assert_eq!(slots.promise(3), Err(NoPromise::InTheWay(1)));
    slots.release(second, 1);
    assert_eq!(slots.promise(3), Err(NoPromise::InTheWay(1)));
    slots.unhold(second);
    assert_eq!(slots.promise(3), Ok(()));
    assert!(!slots.may_drain(1));
}

#[test]
fn an_object_that_is_held_gains_and_loses_its_promise() {
    let mut slots = slots(2);
    let ids = [0, 1].map(|page| held(&mut slots, page, Class::Lent));
    let reclass = |slots: &mut Slots<_>, class| {
        (0..)
            .zip(ids)
            .for_each(|(page, id)| slots.reclass(id, page, class));
    };
    reclass(&mut slots, Class::Promised);
    assert_eq!(slots.promise(2), Ok(()));
    assert!(!slots.may_lend(1) && !slots.may_drain(1));
    slots.unpromise(2);
    reclass(&mut slots, Class::Lent);
    assert_eq!(slots.counts().lent, 2);
    assert_eq!(slots.promise(1), Err(NoPromise::InTheWay(1)));
}
