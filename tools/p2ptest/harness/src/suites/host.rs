// SPDX-License-Identifier: GPL-2.0
//! The workspace's own unit and integration tests, which need no guest:
//! "host/package@test".

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cargo::{self, Executable};
use crate::context::Context;
use crate::results::{Outcome, Results, Verdict};
use crate::step::read_lines;
use crate::stop;

/// The prefix of the group's ids.
pub const PREFIX: &str = "host/";

/// One executable may take so long, all its tests together, while guests run beside.
const LIMIT: Duration = Duration::from_secs(600);

/// Naming its tests takes an executable no time.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// A test executable and its tests.
#[derive(Debug)]
pub struct Suite {
    executable: Executable,
    group: String,
    tests: Vec<String>,
}

/// Builds the executables and asks them for their tests.
///
/// # Errors
///
/// When the build fails or one cannot be asked.
pub fn list(ctx: &Context) -> Result<Vec<Suite>> {
    let mut suites = Vec::new();
    for executable in cargo::tests(ctx)? {
        let mut command = Command::new(&executable.path);
        command
            .args(["--list", "--format=terse"])
            .current_dir(&executable.folder);
        let tests = listed(&stop::capture(&mut command, LIST_LIMIT)?.lines);
        if !tests.is_empty() {
            suites.push(Suite {
                group: group(&executable),
                executable,
                tests,
            });
        }
    }
    Ok(suites)
}

/// The ids of a suite's tests.
pub fn ids(suite: &Suite) -> impl Iterator<Item = String> {
    suite
        .tests
        .iter()
        .map(|test| format!("{}@{test}", suite.group))
}

/// A package's library has the package's name, its other targets are told apart.
fn group(executable: &Executable) -> String {
    match executable.kind.as_str() {
        "lib" => format!("{PREFIX}{}", executable.package),
        kind => format!("{PREFIX}{}.{kind}.{}", executable.package, executable.name),
    }
}

fn listed(output: &[String]) -> Vec<String> {
    output
        .iter()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// Runs the wanted tests of one executable.
///
/// # Errors
///
/// When it cannot be started, or the user stops the run.
pub fn run<W: Write>(ctx: &Context, suite: &Suite, results: &Results<W>) -> Result<()> {
    let wanted: BTreeSet<&str> = suite
        .tests
        .iter()
        .filter(|test| results.wants(&format!("{}@{test}", suite.group)))
        .map(String::as_str)
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(&suite.executable.path);
    command
        // Here is all that an ignored test may ask for: QEMU is in this folder.
        .args(["--exact", "--color=never", "--include-ignored"])
        .args(&wanted)
        .env("P2P_QEMU_ROOT", "/")
        .env("CARGO_MANIFEST_DIR", &suite.executable.folder)
        .current_dir(&suite.executable.folder)
        .stdin(Stdio::null());
    // Two pipes: what a test's child writes must not tear the lines with results.
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = stop::spawn(&mut command)?;
    let out = child.child().stdout.take().context("no stdout")?;
    let err = child.child().stderr.take().context("no stderr")?;
    let (lines, errors) = (read_lines(out), read_lines(err));

    let start = Instant::now();
    let deadline = start + LIMIT.mul_f64(ctx.timeout_scale);
    let mut text = Vec::new();
    let mut reported = BTreeSet::new();
    let mut late = false;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                // A failure's reason follows at the end: only passes are news now.
                if let Some((test, verdict)) = parse(&line)
                    && wanted.contains(test)
                    && !matches!(verdict, Verdict::Fail(_))
                {
                    reported.insert(test.to_owned());
                    let id = format!("{}@{test}", suite.group);
                    results.add(Outcome::new(id, verdict, start.elapsed()))?;
                }
                text.push(line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                if stop::wanted() || Instant::now() >= deadline {
                    late = true;
                    child.end();
                    break;
                }
            }
        }
    }
    let status = child.wait()?;
    stop::check()?;
    text.extend(errors.try_iter());
    for test in wanted.iter().filter(|test| !reported.contains(**test)) {
        let failed = text
            .iter()
            .any(|line| matches!(parse(line), Some((name, Verdict::Fail(_))) if name == *test));
        let verdict = if failed {
            Verdict::Fail("failed".to_owned())
        } else if late {
            Verdict::Fail("its executable did not end in time".to_owned())
        } else {
            Verdict::Crash(format!("its executable ended ({status}) without a result"))
        };
        let output = if failed {
            said(&text, test)
        } else {
            text.clone()
        };
        let id = format!("{}@{test}", suite.group);
        results.add(Outcome::new(id, verdict, start.elapsed()).output(output))?;
    }
    Ok(())
}

/// "test a::b ... ok", "... FAILED", "... ignored, why".
fn parse(line: &str) -> Option<(&str, Verdict)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    let verdict = match result {
        "ok" => Verdict::Pass,
        "FAILED" => Verdict::Fail("failed".to_owned()),
        _ => {
            let why = result.strip_prefix("ignored")?;
            Verdict::Skip(why.trim_start_matches(',').trim().to_owned())
        }
    };
    Some((name, verdict))
}

/// What a failed test wrote: the section with its name, up to the next one.
fn said(text: &[String], test: &str) -> Vec<String> {
    let head = format!("---- {test} stdout ----");
    text.iter()
        .skip_while(|line| **line != head)
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines() {
        assert_eq!(parse("test a::b ... ok"), Some(("a::b", Verdict::Pass)));
        assert_eq!(
            parse("test a - should panic ... ok"),
            Some(("a", Verdict::Pass))
        );
        assert!(matches!(
            parse("test a ... FAILED"),
            Some(("a", Verdict::Fail(_)))
        ));
        assert_eq!(
            parse("test a ... ignored, slow"),
            Some(("a", Verdict::Skip("slow".into())))
        );
        assert_eq!(parse("test result: ok. 3 passed; 0 failed"), None);
        assert_eq!(parse("test a has been running for over 60 seconds"), None);
    }

    #[test]
    fn lists() {
        let lines = ["a::b: test", "bench: benchmark", "", "1 test, 1 benchmark"];
        assert_eq!(listed(&lines.map(str::to_owned)), ["a::b"]);
    }

    #[test]
    fn section_of_a_failed_test() {
        let text: Vec<String> =
            "x\n---- a stdout ----\nwhy a\n---- b stdout ----\nwhy b\n\nfailures:\n    a"
                .lines()
                .map(str::to_owned)
                .collect();
        assert_eq!(said(&text, "a"), ["why a"]);
        assert_eq!(said(&text, "b"), ["why b", ""]);
        assert!(said(&text, "c").is_empty());
    }
}
