// SPDX-License-Identifier: GPL-2.0
//! A few sequences of the fuzzer with seeds that do not change; `make fuzz` runs others.

use p2pguest::debugfs::Debugfs;
use p2pguest::fuzz::{Places, Plan};
use p2pguest::igt::{self, Subtest};
use p2pguest::subtests;
use std::process::ExitCode;

/// Sequences of a subtest.
const SEQUENCES: u64 = 4;
/// Steps of a sequence.
const STEPS: usize = 150;

const SUBTESTS: &[Subtest] = subtests![
    /// Sequences of calls end as the uapi's description allows, and leave nothing.
    sequences,
    /// So do sequences of two processes at once.
    sequences_at_once,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn run(processes: u64) {
    for number in 0..SEQUENCES {
        let plan = Plan {
            seed: 2019,
            number,
            len: STEPS,
            processes,
            without: Places::default(),
            trace: false,
        };
        if let Err(why) = plan.run(&Debugfs::default()) {
            panic!("sequence {number}: {why}");
        }
    }
}

fn sequences() {
    run(1);
}

fn sequences_at_once() {
    run(2);
}
