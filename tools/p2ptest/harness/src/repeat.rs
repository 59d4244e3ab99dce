// SPDX-License-Identifier: GPL-2.0
//! `make test REPEAT=n`: the chosen tests again and again. A test that does not always
//! pass is broken, or what it tests is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::content::write_atomic;
use crate::context::Context;
use crate::results::Counts;
use crate::select::Filter;
use crate::stop;
use crate::test::{self, Ran};

/// What came of one of the runs.
#[derive(Debug, Serialize)]
struct Run {
    counts: Counts,
    seconds: u64,
    /// The ids of those that failed.
    failed: Vec<String>,
}

impl Run {
    fn new(ran: &Ran, time: Duration) -> Self {
        let failed = ran.outcomes.iter().filter(|o| o.verdict.is_bad());
        Self {
            counts: ran.counts(),
            seconds: time.as_secs(),
            failed: failed.map(|o| o.id.clone()).collect(),
        }
    }
}

/// Runs the chosen tests as often as the user wants. The results of each run are in a
/// folder of their own; a table of all is printed after each, and kept. Tells whether
/// all passed.
///
/// # Errors
///
/// As for [`test::run`]; not when the user stops, who is told of the runs until then.
pub fn run(ctx: &Context, filter: &Filter) -> Result<bool> {
    let folder = ctx.results();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut runs = Vec::new();
    for number in 1..=ctx.repeat {
        let ctx = ctx.clone().with_run(number);
        let start = Instant::now();
        let ran = test::run(&ctx, filter)?;
        if stop::wanted() {
            break;
        }
        runs.push(Run::new(&ran, start.elapsed()));
        println!("{}", table(&runs));
        let json = serde_json::to_vec_pretty(&runs)?;
        write_atomic(&folder.join("runs.json"), &json)?;
    }
    Ok(runs.len() == ctx.repeat as usize && runs.iter().all(|run| run.counts.good()))
}

/// The runs for people: a line each, then one for each test that does not always pass.
fn table(runs: &[Run]) -> String {
    let mut text = String::from("run  passed  failed  skipped  minutes\n");
    let mut failures: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, run) in (1..).zip(runs) {
        let Counts {
            passed,
            failed,
            skipped,
        } = run.counts;
        let minutes = run.seconds as f64 / 60.0;
        let _ = writeln!(
            text,
            "{number:3}  {passed:6}  {failed:6}  {skipped:7}  {minutes:7.1}"
        );
        for id in &run.failed {
            failures.entry(id).or_default().push(number);
        }
    }
    for (id, numbers) in failures {
        let list: Vec<_> = numbers.iter().map(usize::to_string).collect();
        let _ = writeln!(
            text,
            "failed in {} of {}: {id}",
            list.join(", "),
            runs.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_always_pass_is_named() {
        let run = |failed: &[&str]| Run {
            counts: Counts {
                passed: 10 - failed.len(),
                failed: failed.len(),
                skipped: 1,
            },
            seconds: 90,
            failed: failed.iter().map(|&id| id.to_owned()).collect(),
        };
        let runs = [run(&[]), run(&["g@b", "g@a"]), run(&["g@b"])];
        let expected = "\
run  passed  failed  skipped  minutes
  1      10       0        1      1.5
  2       8       2        1      1.5
  3       9       1        1      1.5
failed in 2 of 3: g@a
failed in 2, 3 of 3: g@b
";
        assert_eq!(table(&runs), expected);
    }
}
