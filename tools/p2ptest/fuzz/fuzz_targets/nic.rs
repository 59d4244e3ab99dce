// SPDX-License-Identifier: GPL-2.0

//! A guest that means harm drives the NIC, whose wire leads back to itself. A reset must bring the
//! device back, whatever it was.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use p2p_fuzz::number;
use vnic::regs;

#[path = "../../vnic/tests/common/mod.rs"]
mod common;

use common::step::{Step, play};
use common::{At, Host, PEER, PEER_BYTES, RAM_BYTES, pattern};

const ALL: u32 = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;

/// Where something lies in the machine's memory; queues of the guest's own are at the last three.
const PLACES: [u64; 7] = [
    RAM_BYTES,
    PEER,
    PEER + PEER_BYTES,
    65536,
    0x10_0000,
    0x11_0000,
    0x12_0000,
];

fn next(u: &mut Unstructured<'_>) -> Result<Step> {
    let mut n = || number(u, &PLACES);
    let [a, b, c, d, e, f, g] = [n()?, n()?, n()?, n()?, n()?, n()?, n()?];
    Ok(match u8::arbitrary(u)? % 8 {
        0 => Step::Store((a % 0x50) & !3, b, c % 2 == 0),
        1 => Step::Store(a % 0x1_0000, b, c % 2 == 0),
        2 | 3 => Step::Command((a % 9) as u32, b as u32, c as u32, vec![d, e, f, g]),
        4 => Step::Bell((a % 4) as u32, (b % 4) * 4, c as u32),
        5 => Step::Request([a, b, c, d, e, f, g]),
        6 => Step::Memory(a % (RAM_BYTES - 64), b as u8),
        _ => Step::Reset,
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let mut h = Host::new(true);
    h.region(0, ALL, 65536);
    for qp in [0, 1] {
        h.create_qp(qp, 2);
    }
    h.connect(0, 1);
    h.connect(1, 0);
    while !input.is_empty() {
        let Ok(step) = next(&mut input) else { break };
        play(&mut h, step);
    }
    h.reset();
    let (src, dst) = (h.region(1, ALL, 4096), h.region(2, ALL, 4096));
    let data = pattern(9, 4096);
    h.memory.put(src, &data);
    for qp in [0, 1] {
        h.create_qp(qp, 2);
    }
    h.connect(0, 1);
    h.connect(1, 0);
    h.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 4096);
    assert_eq!(h.poll(0).status, 0);
    assert!(h.memory.get(dst, 4096) == data);
});
