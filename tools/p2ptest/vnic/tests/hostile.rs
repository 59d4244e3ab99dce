// SPDX-License-Identifier: GPL-2.0

//! A guest that writes anything anywhere, and resets at any moment. The device must neither panic
//! nor hang: afterwards it still works.

mod common;

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[derive(Clone, Debug)]
enum Step {
    Store(u64, u64, bool),
    Command(u32, u32, u32, Vec<u64>),
    Bell(u32, u64, u32),
    Request([u64; 7]),
    Memory(u64, u8),
    Reset,
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

fn play(h: &mut Host, step: Step) {
    match step {
        Step::Store(offset, value, true) => h.write64(offset, value),
        Step::Store(offset, value, false) => h.write32(offset, value as u32),
        Step::Command(op, index, arg32, mut args) => {
            // Half of the commands are nearly right.
            if index % 2 == 0 && op == regs::QP_CREATE {
                args = vec![0x10_0000, 0x11_0000, 0x12_0000];
                h.begin(op, index, 0x02_0202, &args);
            } else {
                h.begin(op, index, arg32, &args);
            }
        }
        Step::Bell(qp, field, value) => h.doorbell(qp, field, value),
        Step::Request(words) => {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut entry = [0; 64];
            entry[..56].copy_from_slice(&bytes);
            entry[0] %= 5;
            entry[1..4].fill(0);
            h.memory
                .put(0x10_0000 + 64 * u64::from(entry[8] % 4), &entry);
            h.doorbell(0, regs::SEND_TAIL, u32::from(entry[9] % 8));
        }
        Step::Memory(at, seed) => h.memory.put(at, &pattern(seed, 64)),
        Step::Reset => h.write32(regs::CONTROL, regs::CONTROL_RESET),
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
}
