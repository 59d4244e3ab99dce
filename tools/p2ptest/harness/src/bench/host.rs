// SPDX-License-Identifier: GPL-2.0
//! The slots on the host, by criterion.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Figure;
use crate::context::Context;
use crate::lock;
use crate::step::Step;

/// What criterion keeps of a benchmark: how often it ran in each round, and how long it took.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Runs the benchmarks of the slots' crate.
pub fn measure(ctx: &Context) -> Result<Vec<Figure>> {
    let _lock = lock::take(&ctx.cache.join("cargo.lock"), "builds programs")?;
    let folder = ctx.build().join("criterion");
    // What an earlier run left must not be taken for this one's.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut command = Command::new("cargo");
    command
        .args(["bench", "--package", "p2p-slots", "--bench", "slots"])
        .env("CARGO_TERM_COLOR", "never")
        .env("CRITERION_HOME", &folder)
        .current_dir(ctx.workspace());
    let log = ctx.logs().join("bench-host.log");
    let step = Step {
        label: "benchmarks on the host",
        log: &log,
        expected: None,
        unit: "benchmarks",
    };
    step.run(&mut command, |line| line.ends_with(": Analyzing"))?;
    let mut figures = Vec::new();
    for layout in ["scattered", "contiguous"] {
        for fill in [0, 50, 95] {
            let path = folder.join(format!("{layout}/{fill}/new/sample.json"));
            figures.push(read(&path, layout, fill)?);
        }
    }
    Ok(figures)
}

fn read(path: &Path, layout: &str, fill: u32) -> Result<Figure> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let sample: Sample = serde_json::from_slice(&text)?;
    let times = sample.times.iter().zip(&sample.iters);
    let times = times.map(|(time, iterations)| time / iterations).collect();
    Figure::new("host", "slots", layout, fill, times).context("criterion measured nothing")
}
