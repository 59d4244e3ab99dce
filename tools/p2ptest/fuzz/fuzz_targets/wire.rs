// SPDX-License-Identifier: GPL-2.0

//! Another end of the wire that means harm. The device may hang up, and must then do as it is told.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use p2p_fuzz::{bytes, number};
use vnic::regs;

#[path = "../../vnic/tests/common/mod.rs"]
mod common;

use common::At;
use common::step::{Frame, held, lie};

fn next(u: &mut Unstructured<'_>, numbers: &mut u32) -> Result<Frame> {
    let mut n = || number(u, &[32768, 65536, 100_000]);
    let places = [n()?, n()?, n()?];
    let [from, to, word, key] = [n()? as u32, n()? as u32, n()? as u32, n()? as u32];
    let odd = u8::arbitrary(u)?;
    let kind = match odd {
        250.. => u32::arbitrary(u)?,
        _ => 2 + u32::from(odd) % 6,
    };
    let truth = u8::arbitrary(u)?;
    // Numbers must rise: else hardly a message is looked at any further.
    let number = *numbers;
    if (4..7).contains(&kind) {
        *numbers = numbers.wrapping_add(1);
    }
    let honest = |bit: u8, lie: u32, truth_is: u32| match truth >> bit & 1 {
        0 => truth_is,
        _ => lie,
    };
    let data = match truth >> 6 & 1 {
        0 => bytes(u, 64)?,
        _ => vec![0x5a; usize::from(u16::arbitrary(u)?) % 33_000],
    };
    let claimed = match odd {
        0..8 => Some(u32::arbitrary(u)?),
        _ => None,
    };
    Ok(Frame {
        kind,
        claimed,
        words: [
            honest(0, from, 0) * u32::from(truth & 0x81 == 0x81),
            honest(1, to, 0) * u32::from(truth & 0x82 == 0x82),
            number,
            word % 3,
            honest(2, key, 1),
        ],
        places: match truth >> 5 & 1 {
            0 => [places[0] % 100_000, data.len() as u64, 0],
            _ => places,
        },
        data,
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let flags: u8 = input.arbitrary().unwrap_or(0);
    let mut frames = Vec::new();
    let mut numbers = 0;
    while !input.is_empty() && frames.len() < 200 {
        let Ok(frame) = next(&mut input, &mut numbers) else {
            break;
        };
        frames.push(frame);
    }
    let (mut h, wire) = held();
    if flags & 1 != 0 {
        h.post_recv(0, 1, At(1, 0), 50_000);
    }
    if flags & 2 != 0 {
        h.post(0, regs::WRITE, 7, At(2, 0), At(1, 0), 70_000);
    }
    if flags & 4 != 0 {
        h.post(0, regs::READ, 8, At(2, 0), At(1, 0), 70_000);
    }
    lie(wire, &frames, flags & 8 != 0);
    h.reset();
    h.region(1, regs::LOCAL_WRITE, 4096);
});
