// SPDX-License-Identifier: GPL-2.0
//! Runs one sequence of the fuzzer; `make fuzz` starts it in a guest, again and again, and
//! judges what the kernel's log and the devices say.

use clap::Parser;
use p2pguest::debugfs::Debugfs;
use p2pguest::fuzz::{Places, Plan};
use std::process::ExitCode;

/// The sequence failed.
const EXIT_FAIL: u8 = 98;

#[derive(Debug, Parser)]
struct Options {
    /// What the steps are made of
    #[arg(long)]
    seed: u64,
    /// Which of the seed's sequences
    #[arg(long)]
    sequence: u64,
    /// Steps of a sequence
    #[arg(long)]
    steps: usize,
    /// Processes, each with steps of its own
    #[arg(long)]
    processes: u64,
    /// Steps to leave out, as 1,4-7
    #[arg(long, default_value = "")]
    without: Places,
    /// Print each step before it is done
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let plan = Plan {
        seed: options.seed,
        number: options.sequence,
        len: options.steps,
        processes: options.processes,
        without: options.without,
        trace: options.trace,
    };
    match plan.run(&Debugfs::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("failed: {why}");
            ExitCode::from(EXIT_FAIL)
        }
    }
}
