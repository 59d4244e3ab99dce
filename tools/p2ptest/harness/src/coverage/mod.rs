// SPDX-License-Identifier: GPL-2.0
//! `make coverage`: the lines of models, harness, slots and tools that the host's tests
//! reach, those of drivers and abstractions that the tests in guests reach, and those
//! that they never do.

pub mod counters;
mod guest;
mod host;
mod llvm;
mod report;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use crate::content::write_atomic;
use crate::context::Context;
use crate::select::Filter;
use crate::suites::host::PREFIX;
use crate::test;

/// Builds what counts its lines, runs the chosen tests of it, and reports. Says whether
/// all passed.
///
/// # Errors
///
/// When something cannot be built, or the user stops the run.
pub fn run(ctx: &Context, filter: &Filter) -> Result<bool> {
    let folder = ctx.build().join("coverage");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut good = true;
    let mut reports = BTreeMap::new();
    let ran = test::run(ctx, filter)?;
    if let Some(counters) = &ran.counters {
        good &= ran.counts().good();
        let reached = guest::read(ctx, counters, &folder.join("guest"))?;
        reports.insert("guest", reached.report());
    }
    // All of them or none: they take no longer to run than to build.
    if filter.may_take(PREFIX) {
        let (reached, passed) = host::run(ctx, &folder.join("host"))?;
        good &= passed;
        reports.insert("host", reached.report());
    }

    let (mut tables, mut unreached) = (String::new(), String::new());
    for (what, report) in &reports {
        let _ = writeln!(tables, "Reached by the {what}'s tests:\n{}", report.table());
        unreached.push_str(&report.unreached(&ctx.top));
    }
    print!("{tables}");
    let results = ctx.results();
    write_atomic(&results.join("coverage.txt"), tables.as_bytes())?;
    write_atomic(
        &results.join("coverage.json"),
        &serde_json::to_vec(&reports)?,
    )?;
    let list = results.join("unreached.txt");
    write_atomic(&list, unreached.as_bytes())?;
    println!("never reached: {}", list.display());
    Ok(good)
}
