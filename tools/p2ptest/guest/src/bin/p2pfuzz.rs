// SPDX-License-Identifier: GPL-2.0
//! Runs one sequence of the fuzzer; `make fuzz` starts it in a guest, again and again, and
//! judges what the kernel's log and the devices say.

use clap::Parser;
use p2p_init::Sequence;
use p2pguest::debugfs::Debugfs;
use p2pguest::fuzz::points::{News, Points};
use p2pguest::fuzz::{Places, Plan};
use p2pguest::kcov::Kcov;
use std::path::PathBuf;
use std::process::ExitCode;

/// The sequence failed.
const EXIT_FAIL: u8 = 98;

#[derive(Debug, Parser)]
struct Options {
    /// What the steps are made of
    #[arg(long)]
    seed: u64,
    /// Which of the seed's sequences, as 12 or 12@40+57
    #[arg(long)]
    sequence: Sequence,
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
    /// Where to keep which points of the drivers' code have been reached, if the kernel
    /// tells
    #[arg(long)]
    points: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("failed: {why}");
            ExitCode::from(EXIT_FAIL)
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let plan = Plan {
        seed: options.seed,
        sequence: options.sequence,
        len: options.steps,
        processes: options.processes,
        without: options.without,
        trace: options.trace,
    };
    let Some(path) = options.points.filter(|_| Kcov::exists()) else {
        return plan.run(&Debugfs::default(), None).map(drop);
    };
    let failed = |error| format!("{}: {error}", path.display());
    let mut reached = Points::load(&path).map_err(failed)?;
    let News { points, steps } = plan.run(&Debugfs::default(), Some(&mut reached))?;
    reached.save(&path).map_err(failed)?;
    let all = reached.len();
    println!("{points} of {all} points are new, the last by step {steps}");
    Ok(())
}
