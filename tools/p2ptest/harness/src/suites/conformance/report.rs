// SPDX-License-Identifier: GPL-2.0
//! `results.json` of `igt_runner`, and what it means here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::expected::Skip;
use crate::igt;
use crate::results::Verdict;

/// A run of `igt_runner`.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// By name: "igt@program@subtest".
    tests: BTreeMap<String, Told>,
}

/// What it tells of one test.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Told {
    /// "pass", "fail", "skip", "warn", "crash", "timeout", "incomplete", "notrun",
    /// "abort", or "dmesg-warn" and "dmesg-fail" if the kernel's log had something else
    /// to say.
    result: String,
    out: String,
    err: String,
    dmesg: String,
    #[serde(rename = "dmesg-warnings")]
    dmesg_warnings: String,
    time: Span,
    /// Output of earlier runs
    #[serde(skip)]
    before: Vec<String>,
}

/// Seconds since the test's start.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Span {
    start: f64,
    end: f64,
}

/// What is expected of a test.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// As of most.
    Pass,
    /// For this reason.
    Skip(&'static Skip),
    /// This result, by which `igt_runner` is seen to notice it.
    Report(&'static str),
}

impl Report {
    /// Reads the lines of `results.json`.
    ///
    /// # Errors
    ///
    /// When they are no such file.
    pub fn parse(lines: &[String]) -> Result<Self> {
        serde_json::from_str(&lines.join("\n")).context("results.json of igt_runner")
    }

    /// What it tells of a subtest.
    pub fn of(&self, program: &str, subtest: &str) -> Option<&Told> {
        // igt_runner writes names in lower case.
        let name = format!("igt@{program}@{subtest}").to_lowercase();
        self.tests.get(&name)
    }

    /// Takes what came of tests that were run again in the place of what came of them
    /// before, which stays in their output.
    pub fn replace(&mut self, again: Self) {
        for (name, mut told) in again.tests {
            if let Some(before) = self.tests.get(&name) {
                told.before = before.output();
                told.before
                    .push(format!("run again after \"{}\":", before.result));
            }
            self.tests.insert(name, told);
        }
    }
}

impl Told {
    /// How long the test took.
    pub fn time(&self) -> Duration {
        Duration::try_from_secs_f64(self.time.end - self.time.start).unwrap_or_default()
    }

    /// What the test wrote, and the kernel meanwhile.
    pub fn output(&self) -> Vec<String> {
        let parts = [&self.out, &self.err, &self.dmesg];
        let lines = parts.into_iter().flat_map(|part| part.lines());
        let before = self.before.iter().cloned();
        before.chain(lines.map(str::to_owned)).collect()
    }

    /// Whether the test itself says that it failed, or that one may have before it: what
    /// that one's threads write late is "warn" of this one.
    pub fn failed(&self) -> bool {
        matches!(self.result.as_str(), "fail" | "warn")
    }

    /// What that means.
    pub fn verdict(&self, wanted: Wanted) -> Verdict {
        match (self.result.as_str(), wanted) {
            (result, Wanted::Report(expected)) if result == expected => Verdict::Pass,
            (result, Wanted::Report(expected)) => Verdict::Fail(format!(
                "igt_runner reports \"{result}\", and should \"{expected}\""
            )),
            ("pass", Wanted::Pass) => Verdict::Pass,
            ("pass", Wanted::Skip(_)) => {
                Verdict::Fail("it passes: take it off the table of expected skips".into())
            }
            ("skip", Wanted::Pass) => {
                Verdict::Fail(format!("skipped, unexpectedly: {}", self.requirement()))
            }
            ("skip", Wanted::Skip(skip)) => match self.out.contains(skip.says) {
                true => Verdict::Skip(skip.why.into()),
                false => Verdict::Fail(format!(
                    "skipped for another reason than expected: {}",
                    self.requirement()
                )),
            },
            ("dmesg-warn" | "dmesg-fail", _) => Verdict::Fail(format!(
                "igt_runner reports \"{}\": {}",
                self.result,
                self.dmesg_warnings.trim_end()
            )),
            (result, _) => Verdict::Fail(format!("igt_runner reports \"{result}\"")),
        }
    }

    fn requirement(&self) -> String {
        let lines: Vec<_> = self.out.lines().map(str::to_owned).collect();
        igt::requirement(&lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As igt_runner 2.5 writes it, shortened.
    const RESULTS: &str = r#"{
    "__type__": "TestrunResult",
    "results_version": 10,
    "tests": {
        "igt@a@good": {
            "out": "Starting subtest: good\n",
            "result": "pass",
            "time": { "__type__": "TimeAttribute", "start": 0.5, "end": 1.75 },
            "err": "", "dmesg": "<6> [1.2] [IGT] a: executing\n"
        },
        "igt@a@warned": {
            "out": "", "result": "dmesg-warn", "err": "", "dmesg": "",
            "dmesg-warnings": "<4> [86.4] x: something\n"
        },
        "igt@a@skipped": {
            "out": "Test requirement not met in function x\nTest requirement: two heads\n",
            "result": "skip", "err": ""
        },
        "igt@a@gone": { "result": "notrun" }
    }
}"#;

    const HEADS: Skip = Skip {
        test: "a@skipped",
        says: "two heads",
        why: "it has none",
    };

    fn verdict(subtest: &str, wanted: Wanted) -> Verdict {
        let lines: Vec<_> = RESULTS.lines().map(str::to_owned).collect();
        let report = Report::parse(&lines).unwrap();
        report.of("a", subtest).unwrap().verdict(wanted)
    }

    fn fails(subtest: &str, wanted: Wanted) -> String {
        match verdict(subtest, wanted) {
            Verdict::Fail(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn results_are_read() {
        let lines: Vec<_> = RESULTS.lines().map(str::to_owned).collect();
        let report = Report::parse(&lines).unwrap();
        let good = report.of("a", "Good").unwrap();
        assert_eq!(good.time(), Duration::from_millis(1250));
        let output = ["Starting subtest: good", "<6> [1.2] [IGT] a: executing"];
        assert_eq!(good.output(), output);
        assert!(report.of("a", "no-such-one").is_none());
        assert!(Report::parse(&lines[..5]).is_err());
        assert!(Report::parse(&[]).is_err());
    }

    #[test]
    fn the_last_run_counts() {
        let report = |result: &str| {
            let text =
                format!(r#"{{"tests": {{"igt@a@b": {{"result": "{result}", "out": "o"}}}}}}"#);
            Report::parse(&[text]).unwrap()
        };
        let mut first = report("fail");
        assert!(first.of("a", "b").unwrap().failed());
        first.replace(report("pass"));
        let told = first.of("a", "b").unwrap();
        assert_eq!(told.verdict(Wanted::Pass), Verdict::Pass);
        assert_eq!(told.output(), ["o", "run again after \"fail\":", "o"]);
    }

    #[test]
    fn verdicts() {
        const ELSE: Skip = Skip {
            says: "three heads",
            ..HEADS
        };
        assert_eq!(verdict("good", Wanted::Pass), Verdict::Pass);
        assert!(fails("warned", Wanted::Pass).contains("x: something"));
        assert!(fails("gone", Wanted::Pass).contains("notrun"));
        assert!(fails("skipped", Wanted::Pass).contains("two heads"));
        let expected = Verdict::Skip("it has none".into());
        assert_eq!(verdict("skipped", Wanted::Skip(&HEADS)), expected);
        assert!(fails("skipped", Wanted::Skip(&ELSE)).contains("another reason"));
        assert!(fails("good", Wanted::Skip(&HEADS)).contains("take it off"));
        assert!(fails("gone", Wanted::Skip(&HEADS)).contains("notrun"));
    }

    #[test]
    fn what_igt_runner_is_to_notice() {
        assert_eq!(verdict("skipped", Wanted::Report("skip")), Verdict::Pass);
        assert!(fails("good", Wanted::Report("fail")).contains("should \"fail\""));
    }
}
