// SPDX-License-Identifier: GPL-2.0
//! Coverage-guided fuzzing of the device models: the targets of `tools/p2ptest/fuzz`, as
//! `cargo fuzz` lays them out, built with the toolchain folder's compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::duration;
use crate::cargo;
use crate::context::Context;
use crate::step::Step;
use crate::variable;

/// The targets.
const TARGETS: [&str; 4] = ["vfio_user", "gpu", "nic", "wire"];

/// What makes the compiler count edges and compare operands, as libFuzzer wants it. No
/// sanitizer: the models have no unsafe code of their own.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg",
    "fuzzing",
];

/// One input may take so long, seconds: the server itself waits 30 for a DMA's answer.
const INPUT_LIMIT: u32 = 60;
/// What a target may take, MiB, whatever the input: its machine's memory, and the fuzzer's
/// own corpus.
const MEMORY_LIMIT: u32 = 1024;
/// Bytes of the longest input.
const LONGEST: u32 = 4096;

/// Runs each target, or the one that the user names; says whether nothing was found.
///
/// # Errors
///
/// When they cannot be built, or the user stops it.
pub fn run(ctx: &Context) -> Result<bool> {
    let wanted = variable::text("TARGET");
    let chosen: Vec<_> = TARGETS
        .into_iter()
        .filter(|target| wanted.as_deref().is_none_or(|wanted| wanted == *target))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "TARGET: expected one of {}",
        TARGETS.join(", ")
    );
    let seconds = duration()?.as_secs();
    let programs = cargo::fuzz_targets(ctx, &FLAGS.join(" "))?;
    let mut good = true;
    for target in chosen {
        let program = programs
            .iter()
            .find(|program| program.ends_with(target))
            .with_context(|| format!("the build made no {target}"))?;
        good &= run_one(ctx, target, program, seconds)?;
    }
    Ok(good)
}

fn run_one(ctx: &Context, target: &str, program: &Path, seconds: u64) -> Result<bool> {
    let folder: PathBuf = ctx.build().join("fuzz").join(target);
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus)?;
    let log = ctx.logs().join(format!("fuzz-{target}.log"));
    let mut command = Command::new(program);
    command
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", folder.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .arg(format!("-max_len={LONGEST}"))
        // The models log what a guest does wrong: here that is all it does.
        .env("RUST_LOG", "off");
    let step = Step {
        label: &format!("fuzzing {target}"),
        log: &log,
        expected: None,
        unit: "new paths",
    };
    match step.run(&mut command, |line| line.contains("\tNEW ")) {
        Ok(done) => {
            let last = done.output.lines().rev().find(|l| l.contains("cov: "));
            println!("{target}: {}", last.unwrap_or("no input was run").trim());
            Ok(true)
        }
        Err(error) => {
            crate::stop::check()?;
            println!(
                "{target}: {error:#}\n{target}: the input is in {}",
                folder.display()
            );
            Ok(false)
        }
    }
}
