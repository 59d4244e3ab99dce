// SPDX-License-Identifier: GPL-2.0
//! Subtests of each outcome, to test how programs tell of them.

use p2pguest::igt::{self, Subtest};
use p2pguest::subtests;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// Passes.
    good,
    /// Is skipped.
    not_here,
    /// Fails.
    bad,
    /// Ends the program.
    deadly,
    /// Passes, and would come after the end.
    good_too,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn good() {
    println!("what good says");
}

fn not_here() {
    igt::skip("there is none here");
}

fn bad() {
    assert_eq!(1 + 1, 3, "arithmetic");
}

fn deadly() {
    std::process::abort();
}

fn good_too() {}
