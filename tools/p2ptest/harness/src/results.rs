// SPDX-License-Identifier: GPL-2.0
//! What came of each test: KTAP on stdout as it happens, JUnit and JSON at the end,
//! and the last line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::{Deserialize, Serialize};

use crate::content::write_atomic;

/// Lines of a failed test's output that KTAP shows; the reports have all.
const SHOWN: usize = 60;

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "reason")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not hold here, for this reason.
    Skip(String),
    /// It failed.
    Fail(String),
    /// The guest, or the process that ran it, died.
    Crash(String),
}

impl Verdict {
    /// Whether the test failed, in whatever way.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Fail(_) | Self::Crash(_))
    }
}

/// One test's result.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// "group@test".
    pub id: String,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Seconds.
    pub seconds: f64,
    /// What it wrote, and what was found wrong meanwhile.
    pub output: Vec<String>,
    /// The command that started its guest, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Outcome {
    /// A result without output.
    pub fn new(id: impl Into<String>, verdict: Verdict, time: Duration) -> Self {
        Self {
            id: id.into(),
            verdict,
            seconds: time.as_secs_f64(),
            output: Vec::new(),
            command: None,
        }
    }

    /// The same with output.
    pub fn output(mut self, output: Vec<String>) -> Self {
        self.output = output;
        self
    }

    /// The same with its guest's command.
    pub fn command(mut self, command: &str) -> Self {
        self.command = Some(command.to_owned());
        self
    }
}

/// Collects results, also of tests that run at the same time, and prints them.
pub struct Results<W>(Mutex<Collected<W>>);

struct Collected<W> {
    out: W,
    planned: BTreeSet<String>,
    outcomes: Vec<Outcome>,
    /// The guest's command that was printed last.
    shown: Option<String>,
}

/// How many passed, failed and were skipped. A crash is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed or crashed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl<W: Write> Results<W> {
    /// Prints the plan: these tests and no others will have a result.
    ///
    /// # Errors
    ///
    /// When printing fails.
    pub fn new(mut out: W, planned: impl IntoIterator<Item = String>) -> Result<Self> {
        let planned: BTreeSet<_> = planned.into_iter().collect();
        writeln!(out, "KTAP version 1\n1..{}", planned.len())?;
        out.flush()?;
        Ok(Self(Mutex::new(Collected {
            out,
            planned,
            outcomes: Vec::new(),
            shown: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Collected<W>> {
        // Whoever panicked has printed less than it wanted, no more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a test is planned and has no result yet.
    pub fn wants(&self, id: &str) -> bool {
        self.lock().planned.contains(id)
    }

    /// Takes and prints one result. One that was not planned is no news, nor is a second
    /// one, but for a failure of what had not failed in another guest: that is the result.
    ///
    /// # Errors
    ///
    /// When printing fails.
    pub fn add(&self, outcome: Outcome) -> Result<()> {
        self.lock().add(outcome)
    }

    /// Ends: what was planned and has no result failed. Writes the reports into
    /// `folder` and prints the last line.
    ///
    /// # Errors
    ///
    /// When a report cannot be written.
    pub fn finish(self, folder: &Path, why_missing: &str) -> Result<Vec<Outcome>> {
        let mut collected = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        collected.finish(folder, why_missing)?;
        Ok(collected.outcomes)
    }
}

impl<W: Write> Collected<W> {
    fn add(&mut self, outcome: Outcome) -> Result<()> {
        if self.planned.remove(&outcome.id) {
            self.print(self.outcomes.len() + 1, &outcome)?;
            self.outcomes.push(outcome);
        } else if outcome.verdict.is_bad() {
            let not_bad = |old: &Outcome| old.id == outcome.id && !old.verdict.is_bad();
            if let Some(at) = self.outcomes.iter().position(not_bad) {
                writeln!(self.out, "# the same again, in another guest:")?;
                self.print(at + 1, &outcome)?;
                self.outcomes[at] = outcome;
            }
        }
        Ok(())
    }

    fn print(&mut self, number: usize, outcome: &Outcome) -> Result<()> {
        let (id, seconds) = (&outcome.id, outcome.seconds);
        match &outcome.verdict {
            Verdict::Pass => writeln!(self.out, "ok {number} {id} # time={seconds:.3}s")?,
            Verdict::Skip(why) => writeln!(self.out, "ok {number} {id} # SKIP {}", one_line(why))?,
            Verdict::Fail(why) | Verdict::Crash(why) => {
                let skipped = outcome.output.len().saturating_sub(SHOWN);
                if skipped > 0 {
                    writeln!(self.out, "# ... {skipped} lines before, see build/results")?;
                }
                for line in &outcome.output[skipped..] {
                    writeln!(self.out, "# {line}")?;
                }
                if matches!(outcome.verdict, Verdict::Crash(_)) {
                    writeln!(self.out, "# CRASH")?;
                }
                for line in why.lines() {
                    writeln!(self.out, "# {line}")?;
                }
                if let Some(command) = &outcome.command {
                    if self.shown.as_ref() == Some(command) {
                        writeln!(self.out, "# guest: the same as above")?;
                    } else {
                        writeln!(self.out, "# guest: {command}")?;
                        self.shown = Some(command.clone());
                    }
                }
                writeln!(self.out, "not ok {number} {id} # time={seconds:.3}s")?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn finish(&mut self, folder: &Path, why_missing: &str) -> Result<()> {
        for id in std::mem::take(&mut self.planned) {
            self.planned.insert(id.clone());
            self.add(Outcome::new(
                id,
                Verdict::Fail(why_missing.to_owned()),
                Duration::ZERO,
            ))?;
        }
        write_atomic(
            &folder.join("junit.xml"),
            junit(&self.outcomes).to_string()?.as_bytes(),
        )?;
        write_atomic(
            &folder.join("results.json"),
            &serde_json::to_vec_pretty(&self.outcomes)?,
        )?;
        let counts = Counts::of(&self.outcomes);
        writeln!(
            self.out,
            "{} passed, {} failed, {} skipped",
            counts.passed, counts.failed, counts.skipped
        )?;
        self.out.flush()?;
        Ok(())
    }
}

impl Counts {
    /// Counts results.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let of = |f: fn(&Verdict) -> bool| outcomes.iter().filter(|o| f(&o.verdict)).count();
        Self {
            passed: of(|v| *v == Verdict::Pass),
            failed: of(Verdict::is_bad),
            skipped: of(|v| matches!(v, Verdict::Skip(_))),
        }
    }

    /// Whether the run as a whole is good: nothing failed, and something passed.
    pub fn good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn junit(outcomes: &[Outcome]) -> Report {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for outcome in outcomes {
        let (group, name) = outcome.id.split_once('@').unwrap_or(("", &outcome.id));
        let mut status = match &outcome.verdict {
            Verdict::Pass => TestCaseStatus::success(),
            Verdict::Skip(_) => TestCaseStatus::skipped(),
            Verdict::Fail(_) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Verdict::Crash(_) => TestCaseStatus::non_success(NonSuccessKind::Error),
        };
        match &outcome.verdict {
            Verdict::Pass => {}
            Verdict::Skip(why) | Verdict::Fail(why) | Verdict::Crash(why) => {
                status.set_message(why.clone());
            }
        }
        let mut case = TestCase::new(name, status);
        case.set_classname(group);
        case.set_time(Duration::from_secs_f64(outcome.seconds.max(0.0)));
        if !outcome.output.is_empty() {
            case.set_system_out(outcome.output.join("\n"));
        }
        if let Some(command) = &outcome.command {
            case.set_system_err(command.clone());
        }
        suites
            .entry(group)
            .or_insert_with(|| TestSuite::new(group))
            .add_test_case(case);
    }
    let mut report = Report::new("p2pgpu");
    report.add_test_suites(suites.into_values());
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ids: &[&str], verdicts: Vec<(&str, Verdict)>) -> (Counts, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        let results = Results::new(&mut out, ids.iter().map(|s| (*s).to_owned())).unwrap();
        for (id, verdict) in verdicts {
            results
                .add(Outcome::new(id, verdict, Duration::from_millis(5)))
                .unwrap();
        }
        let outcomes = results.finish(dir.path(), "did not run").unwrap();
        let counts = Counts::of(&outcomes);
        let junit = std::fs::read_to_string(dir.path().join("junit.xml")).unwrap();
        (counts, String::from_utf8(out).unwrap(), junit)
    }

    #[test]
    fn a_later_failure_counts() {
        let failed = || Verdict::Fail("why".into());
        let (counts, text, _) = run(
            &["g@a", "g@b"],
            vec![
                ("g@a", Verdict::Pass),
                ("g@b", failed()),
                ("g@b", Verdict::Pass),
                ("g@a", failed()),
                ("g@a", failed()),
                ("other", failed()),
            ],
        );
        assert_eq!((counts.passed, counts.failed), (0, 2));
        assert_eq!(text.matches("not ok 1 g@a").count(), 1, "{text}");
        assert_eq!(text.matches("not ok 2 g@b").count(), 1, "{text}");
    }

    #[test]
    fn ktap_and_last_line() {
        let (counts, text, junit) = run(
            &["g@a", "g@b", "h@c", "h@d"],
            vec![
                ("g@a", Verdict::Pass),
                ("g@b", Verdict::Skip("no\nkvm".into())),
                ("h@c", Verdict::Crash("gone\nlast words".into())),
                ("other", Verdict::Pass),
                ("g@a", Verdict::Pass),
            ],
        );
        assert_eq!(
            counts,
            Counts {
                passed: 1,
                failed: 2,
                skipped: 1
            }
        );
        assert!(!counts.good());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "KTAP version 1",
                "1..4",
                "ok 1 g@a # time=0.005s",
                "ok 2 g@b # SKIP no kvm"
            ]
        );
        assert!(text.contains("# CRASH\n# gone\n# last words\nnot ok 3 h@c"));
        assert!(text.contains("# did not run\nnot ok 4 h@d"));
        assert_eq!(*lines.last().unwrap(), "1 passed, 2 failed, 1 skipped");
        assert!(
            junit.contains(r#"tests="4""#) && junit.contains("classname=\"h\""),
            "{junit}"
        );
    }

    #[test]
    fn nothing_passed_is_not_good() {
        assert!(
            !run(&["g@a"], vec![("g@a", Verdict::Skip("x".into()))])
                .0
                .good()
        );
        assert!(!run(&[], vec![]).0.good());
        assert!(run(&["g@a"], vec![("g@a", Verdict::Pass)]).0.good());
    }
}
