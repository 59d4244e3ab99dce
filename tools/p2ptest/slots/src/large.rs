// SPDX-License-Identifier: GPL-2.0
//! Apertures of many slots: the tree over the bitmap, and what the tables cost.

use proptest::prelude::*;

use crate::memory::HostMemory;
use crate::slots::{MAX_SLOTS, Slot, Slots, Storage, Took};

/// Slots that need four levels of the tree, with a last word and last nodes that are not full.
const MANY: u32 = 64 * 8 * 8 * 8 + 64 * 3 + 5;

#[derive(Clone, Copy, Debug)]
enum Call {
    Take(u32),
    Run(u32),
    /// Returns taken slots: `count`, each `step` after the one before, from `first` on.
    Return {
        first: u32,
        step: u32,
        count: u32,
        one_by_one: bool,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let count = || prop_oneof![1u32..4, 1u32..200, 1..MANY];
    prop_oneof![
        count().prop_map(Call::Take),
        count().prop_map(Call::Run),
        (0..MANY, 1u32..700, count(), any::<bool>()).prop_map(
            |(first, step, count, one_by_one)| Call::Return {
                first,
                step,
                count,
                one_by_one
            }
        ),
    ]
}

/// The longest run of free slots, and the lowest place of a run of `count`.
fn runs(free: &[bool], count: u32) -> (u32, Option<u32>) {
    let (mut longest, mut len, mut place) = (0, 0, None);
    for (id, &free) in (0u32..).zip(free) {
        len = if free { len + 1 } else { 0 };
        longest = longest.max(len);
        if len == count && place.is_none() {
            place = Some(id + 1 - count);
        }
    }
    (longest, place)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_tree_knows_all_runs(calls in proptest::collection::vec(call(), 1..60)) {
        let mut slots = Slots::<HostMemory>::new(MANY).unwrap();
        let mut free = vec![true; MANY as usize];
        for call in calls {
            match call {
                Call::Take(count) => {
                    let lowest = (0..MANY).filter(|&id| free[id as usize]);
                    let expected: Vec<_> = lowest.take(count as usize).collect();
                    let mut found = Vec::new();
                    let number = slots.take_many(count, |took| match took {
                        Took::Free(id) => found.push(id),
                        Took::Idle(..) => panic!("no slot is idle"),
                    });
                    prop_assert_eq!(number as usize, expected.len());
                    prop_assert_eq!(&found, &expected);
                    for id in found {
                        free[id as usize] = false;
                    }
                }
                Call::Run(count) => {
                    let expected = runs(&free, count).1;
                    prop_assert_eq!(slots.take_run(count), expected);
                    if let Some(first) = expected {
                        free[first as usize..(first + count) as usize].fill(false);
                    }
                }
                Call::Return { first, step, count, one_by_one } => {
                    let ids = (first..MANY).step_by(step as usize).take(count as usize);
                    for id in ids.clone() {
                        free[id as usize] = true;
                    }
                    match one_by_one {
                        true => ids.for_each(|id| slots.give_back(id)),
                        false => slots.give_back_many(ids),
                    }
                }
            }
            prop_assert_eq!(slots.counts().free as usize, free.iter().filter(|&&free| free).count());
            // One more than the longest run is nowhere; the longest itself is where it is.
            let longest = runs(&free, 0).0;
            prop_assert_eq!(slots.take_run(longest + 1), None);
            let place = slots.take_run(longest);
            prop_assert_eq!(place, runs(&free, longest.max(1)).1);
            slots.give_back_many(place.into_iter().flat_map(|first| first..first + longest));
            for id in (0..MANY).step_by(61) {
                prop_assert_eq!(slots.get(id) == Some(Slot::Free), free[id as usize]);
            }
        }
    }
}

/// Counts what it gives.
#[derive(Clone)]
struct CountedMemory;

thread_local! {
    static GIVEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    static LEFT: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

impl Storage for CountedMemory {
    type Mark = crate::memory::Mark;
    type Error = &'static str;
    const TOO_MANY: Self::Error = "too many slots";
    type Array<T: Copy> = Vec<T>;

    fn filled<T: Copy>(value: T, len: usize) -> Result<Vec<T>, Self::Error> {
        let left = LEFT.get().checked_sub(1).ok_or("no memory")?;
        LEFT.set(left);
        GIVEN.set(GIVEN.get() + len * size_of::<T>());
        Ok(vec![value; len])
    }
}

#[test]
fn at_most_sixteen_bytes_a_slot() {
    for total in [1 << 12, 1 << 20, (1 << 20) + 1] {
        GIVEN.set(0);
        Slots::<CountedMemory>::new(total).unwrap();
        let bytes = GIVEN.get() + size_of::<Slots<CountedMemory>>();
        println!(
            "{total} slots: {:.3} bytes a slot",
            bytes as f64 / f64::from(total)
        );
        assert!(
            bytes <= 16 * total as usize,
            "{bytes} bytes for {total} slots"
        );
    }
}

#[test]
fn no_memory_and_too_many_slots_are_errors() {
    for left in 0..4 {
        LEFT.set(left);
        assert_eq!(Slots::<CountedMemory>::new(1000).err(), Some("no memory"));
    }
    LEFT.set(4);
    assert!(Slots::<CountedMemory>::new(1000).is_ok());
    let too_many = Slots::<HostMemory>::new(MAX_SLOTS + 1);
    assert_eq!(too_many.err(), Some("too many slots"));
}
