// SPDX-License-Identifier: GPL-2.0
//! A few sequences of the fuzzer with seeds that do not change; `make fuzz` runs others.

use p2p_init::Sequence;
use p2pguest::debugfs::Debugfs;
use p2pguest::fuzz::points::Points;
use p2pguest::fuzz::{Places, Plan};
use p2pguest::igt::{self, Subtest};
use p2pguest::kcov::Kcov;
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
    /// What a sequence reaches is told, and is nothing new when it runs again.
    reached_points,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn plan(sequence: Sequence, processes: u64) -> Plan {
    Plan {
        seed: 2019,
        sequence,
        len: STEPS,
        processes,
        without: Places::default(),
        trace: false,
    }
}

fn run(processes: u64) {
    for number in 0..SEQUENCES {
        let plan = plan(Sequence::new(number), processes);
        if let Err(why) = plan.run(&Debugfs::default(), None) {
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

fn reached_points() {
    igt::require(
        Kcov::exists(),
        "needs a kernel with KCOV, as the debug kernel (DEBUG=1)",
    );
    let mut reached = Points::default();
    let mut run = |sequence: Sequence| {
        let news = plan(sequence, 1).run(&Debugfs::default(), Some(&mut reached));
        let news = news.unwrap_or_else(|why| panic!("{why}"));
        println!("{news:?}");
        news
    };
    let first = run(Sequence::new(1));
    assert!(first.points > 200, "hardly anything is reached");
    assert!(
        (1..=STEPS).contains(&first.steps),
        "no step reached the last of them"
    );
    // What depends on the moment is little.
    let again = run(Sequence::new(1));
    assert!(again.points < first.points / 10, "the same is called new");
    run(Sequence::new(1).continued(first.steps / 2, 2));
}
