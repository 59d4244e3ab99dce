// SPDX-License-Identifier: GPL-2.0
//! `make test REPEAT=n`: the chosen tests again and again. A test that does not always
//! pass is broken, or what it tests is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::content::{Key, read_optional, write_atomic};
use crate::context::Context;
use crate::kernel::overlay::is_leftover;
use crate::results::Counts;
use crate::select::Filter;
use crate::stop;
use crate::test::{self, Ran};

/// Runs of the same tests in a row. It is kept after each run: one that was stopped can go on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Series {
    /// What runs: [`key`].
    key: String,
    runs: Vec<Run>,
}

impl Series {
    /// The series in a file, to go on with it.
    fn stopped(file: &Path, key: &str) -> Result<Self> {
        let json = read_optional(file)?;
        let json = json.context("RESUME=1: no series was stopped here")?;
        let series: Self =
            serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))?;
        ensure!(
            series.key == key,
            "RESUME=1: the series that was stopped ran something else: start a new one"
        );
        Ok(series)
    }

    fn good(&self, wanted: u32) -> bool {
        self.runs.len() >= wanted as usize && self.runs.iter().all(|run| run.counts.good())
    }
}

/// What runs: all files of the checkout, and which of its tests are chosen.
fn key(ctx: &Context, filter: &Filter) -> Result<String> {
    let mut key = Key::default();
    let build = ctx.build();
    let files = WalkDir::new(&ctx.top).min_depth(1).sort_by_file_name();
    let is_source = |path: &Path| path != build && !is_leftover(path);
    for entry in files
        .into_iter()
        .filter_entry(|entry| is_source(entry.path()))
    {
        let entry = entry?;
        if entry.file_type().is_file() {
            let path = entry.path();
            let name = path.strip_prefix(&ctx.top).unwrap_or(path);
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            key.add(name.as_os_str().as_encoded_bytes()).add(bytes);
        }
    }
    key.add(format!("{filter:?} {:?} {:?}", ctx.only, ctx.cycles));
    Ok(key.hex())
}

/// What came of one of the runs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
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
/// As for [`test::run`]; not when the user stops, who is told of the runs until then. When a
/// series is to go on, and there is none, or it is of something else.
pub fn run(ctx: &Context, filter: &Filter) -> Result<bool> {
    let folder = ctx.results();
    let file = folder.join("runs.json");
    let key = key(ctx, filter)?;
    let mut series = if ctx.resume {
        let series = Series::stopped(&file, &key)?;
        println!("{}", table(&series.runs));
        series
    } else {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        Series {
            key,
            runs: Vec::new(),
        }
    };
    for number in (1..=ctx.repeat).skip(series.runs.len()) {
        let ctx = ctx.clone().with_run(number);
        let start = Instant::now();
        let ran = test::run(&ctx, filter)?;
        if stop::wanted() {
            break;
        }
        series.runs.push(Run::new(&ran, start.elapsed()));
        println!("{}", table(&series.runs));
        write_atomic(&file, &serde_json::to_vec_pretty(&series)?)?;
    }
    Ok(series.good(ctx.repeat))
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

    fn run(failed: &[&str]) -> Run {
        Run {
            counts: Counts {
                passed: 10 - failed.len(),
                failed: failed.len(),
                skipped: 1,
            },
            seconds: 90,
            failed: failed.iter().map(|&id| id.to_owned()).collect(),
        }
    }

    #[test]
    fn what_does_not_always_pass_is_named() {
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

    #[test]
    fn a_series_goes_on_if_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs.json");
        let refused = |key| Series::stopped(&file, key).unwrap_err().to_string();
        assert!(refused("a").contains("no series"));
        let series = Series {
            key: "a".into(),
            runs: vec![run(&[]), run(&[])],
        };
        fs::write(&file, serde_json::to_vec(&series).unwrap()).unwrap();
        assert!(refused("b").contains("something else"));
        assert_eq!(Series::stopped(&file, "a").unwrap(), series);
        assert!(series.good(2) && !series.good(3));
    }

    #[test]
    fn a_failure_spoils_the_series() {
        let runs = vec![run(&[]), run(&["g@b"])];
        let key = String::new();
        assert!(!Series { key, runs }.good(2));
    }
}
