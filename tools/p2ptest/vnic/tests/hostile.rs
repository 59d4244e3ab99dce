// SPDX-License-Identifier: GPL-2.0

//! A guest that writes anything anywhere, and resets at any moment; another end of the wire that
//! says anything. The device must neither panic nor hang: afterwards it still works.

mod common;

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::step::{Frame, Step, held, lie, play};
use common::{At, Host, RAM_BYTES, pattern};
use proptest::prelude::*;
use vnic::regs;

const ALL: u32 = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;

/// Panics of any thread: one of the device's would not fail a test by itself.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            next(info);
        }));
    });
}

/// A number that is often near something that matters.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..80,
        any::<u64>(),
        (0..RAM_BYTES / 4096).prop_map(|page| page * 4096),
        (0u32..64).prop_map(|bit| 1u64 << bit),
        (0u64..4).prop_map(|back| u64::MAX - back),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![(0u64..0x50).prop_map(|x| x & !3), 0u64..0x1_0000];
    prop_oneof![
        2 => (offset, number(), any::<bool>()).prop_map(|(o, v, wide)| Step::Store(o, v, wide)),
        8 => (0u32..9, number(), number(), prop::collection::vec(number(), 0..7))
            .prop_map(|(op, index, arg, args)| Step::Command(op, index as u32, arg as u32, args)),
        4 => (0u32..4, 0u64..4, number()).prop_map(|(qp, f, v)| Step::Bell(qp, f * 4, v as u32)),
        8 => prop::array::uniform7(number()).prop_map(Step::Request),
        2 => (0..RAM_BYTES - 64, any::<u8>()).prop_map(|(at, seed)| Step::Memory(at, seed)),
        1 => Just(Step::Reset),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let pair = || prop_oneof![9 => Just(0u32), 1 => any::<u32>()];
    (
        prop_oneof![20 => 2u32..8, 1 => any::<u32>()],
        prop_oneof![9 => Just(None), 1 => (0u32..100_000).prop_map(Some), 1 => any::<u32>().prop_map(Some)],
        (pair(), pair(), 0u32..8, prop_oneof![0u32..3, any::<u32>()], prop_oneof![0u32..4, any::<u32>()]),
        prop::array::uniform3(prop_oneof![3 => Just(0u64), 3 => 0u64..200_000, 1 => number()]),
        prop_oneof![Just(0), 1usize..100, Just(32768), Just(32769)],
    )
        .prop_map(|(kind, claimed, (from, to, number, word, key), places, len)| Frame {
            kind,
            claimed,
            words: [from, to, number, word, key],
            places,
            data: pattern(5, len),
        })
}

/// Requests that a device which knows nothing better answers: the next number, each time.
fn honest(frames: &mut [Frame]) {
    let requests = frames.iter_mut().filter(|f| (4..7).contains(&f.kind));
    for (frame, number) in requests.zip(0..) {
        frame.words[2] = number;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn anything_goes_and_the_device_lives(steps in prop::collection::vec(step(), 1..120)) {
        count_panics();
        let mut h = Host::new(true);
        h.region(0, ALL, 65536);
        for qp in [0, 1] {
            h.create_qp(qp, 2);
        }
        h.connect(0, 1);
        h.connect(1, 0);
        for step in steps {
            play(&mut h, step);
        }
        h.reset();
        let (src, dst) = (h.region(1, ALL, 70_000), h.region(2, ALL, 70_000));
        let data = pattern(9, 70_000);
        h.memory.put(src, &data);
        for qp in [0, 1] {
            h.create_qp(qp, 2);
        }
        h.connect(0, 1);
        h.connect(1, 0);
        h.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 70_000);
        prop_assert_eq!(h.poll(0).status, 0);
        prop_assert!(h.memory.get(dst, 70_000) == data);
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn whatever_comes_by_the_wire_the_device_lives(
        mut frames in prop::collection::vec(frame(), 1..60),
        requests in prop::collection::vec(prop::array::uniform7(number()), 0..6),
        ordered in any::<bool>(),
        deaf in any::<bool>(),
    ) {
        count_panics();
        if ordered {
            honest(&mut frames);
        }
        let (mut h, wire) = held();
        h.post_recv(0, 1, At(1, 0), 50_000);
        for request in requests {
            h.post(0, 1 + request[0] as u32 % 3, 7, At(2, request[1] % 1000), At(1, request[2] % 1000), request[3] % 100_000);
        }
        lie(wire, &frames, deaf);
        h.reset();
        let mut other = Host::new(false);
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        h.until("wire down", |h| h.read32(regs::STATUS) & regs::STATUS_LINK_UP == 0);
        h.nic.attach(left).unwrap();
        other.nic.attach(right).unwrap();
        for host in [&mut h, &mut other] {
            host.create_qp(0, 4);
            host.connect(0, 0);
        }
        let (src, dst) = (h.region(1, ALL, 70_000), other.region(2, ALL, 70_000));
        let data = pattern(9, 70_000);
        h.memory.put(src, &data);
        h.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 70_000);
        prop_assert_eq!(h.poll(0).status, 0);
        prop_assert!(other.memory.get(dst, 70_000) == data);
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    }
}
