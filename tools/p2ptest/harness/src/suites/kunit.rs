// SPDX-License-Identifier: GPL-2.0
//! The KUnit suites that the repository's kernel files declare: "kunit/suite@test".
//! One boot runs them; its log counts as a test of its own.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use p2p_init::Status;

use crate::context::{Mode, Setup, Topology};
use crate::kernel::overlay::new_paths;
use crate::ktap;
use crate::results::{Outcome, Results, Verdict};
use crate::session::{End, Parts, Session};

/// The prefix of the group's ids.
pub const PREFIX: &str = "kunit/";
/// The boot in which the suites run.
pub const BOOT: &str = "kunit/boot@clean";

/// The ids of all declared tests, and of their boot if there are any.
///
/// # Errors
///
/// When a file cannot be read.
pub fn list(top: &Path) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for path in new_paths(top) {
        let path = path?;
        if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            ids.extend(
                declared(&text)
                    .into_iter()
                    .map(|(suite, test)| format!("{PREFIX}{suite}@{test}")),
            );
        }
    }
    if !ids.is_empty() {
        ids.push(BOOT.to_owned());
    }
    Ok(ids)
}

/// Suites and tests that a Rust file declares: `#[kunit_tests(suite)]` before a
/// module, `#[test]` before each of its functions.
fn declared(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut suite = None;
    let mut test = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line
            .split_once("kunit_tests(")
            .filter(|(head, _)| head.starts_with("#["))
        {
            suite = name.1.split(')').next().map(|s| s.trim().to_owned());
        } else if line == "#[test]" {
            test = true;
        } else if test && let Some((_, rest)) = line.split_once("fn ") {
            test = false;
            if let (Some(suite), Some(name)) = (&suite, rest.split('(').next()) {
                found.push((suite.clone(), name.trim().to_owned()));
            }
        }
    }
    found
}

/// Boots once with KUnit on and reports the wanted tests.
///
/// # Errors
///
/// When the user stops the run, or a report cannot be written.
pub fn run<W: Write>(parts: &Parts<'_>, wanted: &[String], results: &mut Results<W>) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let glob = common_glob(wanted);
    let parameters = format!("kunit.enable=1 kunit.autorun=1 kunit.filter_glob={glob}");
    let setup = Setup {
        topology: Topology::Switch,
        mode: Mode::Mapped,
    };
    let mut session = match Session::start(parts, setup, "kunit", &parameters) {
        Ok(session) => session,
        Err(e) => {
            crate::stop::check()?;
            for id in wanted {
                results.add(Outcome::new(
                    id,
                    Verdict::Crash(format!("{e:#}")),
                    Duration::ZERO,
                ))?;
            }
            return Ok(());
        }
    };
    let command = session.command.clone();
    let outcome = session.kunit()?;
    let mut findings = std::mem::take(&mut session.boot);
    findings.extend(outcome.findings);
    match outcome.end {
        End::Told(Status::Exit(0)) => findings.extend(session.power_off()?),
        End::Told(other) => findings.push(format!("reading the results: {other:?}")),
        End::Crash(why) => findings.push(why),
    }
    let mut seen: BTreeMap<String, ktap::Line> = ktap::tests(&outcome.output.join("\n"))
        .into_iter()
        .map(|line| (format!("{PREFIX}{}@{}", line.suite, line.name), line))
        .collect();
    for id in wanted.iter().filter(|id| *id != BOOT) {
        let result = match seen.remove(id) {
            Some(line) => Outcome::new(id, line.verdict, Duration::ZERO).output(line.output),
            None => Outcome::new(
                id,
                Verdict::Fail("the kernel did not run it".into()),
                Duration::ZERO,
            )
            .command(&command),
        };
        results.add(result)?;
    }
    let verdict = match findings.first() {
        None => Verdict::Pass,
        Some(_) => Verdict::Fail(findings.join("\n")),
    };
    results.add(Outcome::new(BOOT, verdict, outcome.time).command(&command))
}

/// A glob that all wanted suites match: KUnit takes one only.
fn common_glob(ids: &[String]) -> String {
    let mut suites = ids
        .iter()
        .filter(|id| *id != BOOT)
        .filter_map(|id| id.strip_prefix(PREFIX)?.split('@').next());
    let first = suites.next().unwrap_or_default();
    let (prefix, same) = suites.fold((first, true), |(prefix, same), suite| {
        let length = prefix
            .bytes()
            .zip(suite.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        (&prefix[..length], same && suite == first)
    });
    if same && !first.is_empty() {
        first.to_owned()
    } else {
        format!("{prefix}*")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations() {
        let text = "
            #[macros::kunit_tests(rust_a)]
            mod tests {
                #[test]
                fn one() {}
                fn helper() {}
                #[test]
                #[cfg(X)]
                fn two() -> Result {}
            }
            #[kunit_tests(rust_b)]
            mod more {
                #[test]
                fn three() {}
            }";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            declared(text),
            [
                pair("rust_a", "one"),
                pair("rust_a", "two"),
                pair("rust_b", "three")
            ]
        );
        assert!(declared("#[test]\nfn host_only() {}\n// kunit_tests(x)").is_empty());
    }

    #[test]
    fn one_glob_for_all() {
        let ids = |names: &[&str]| {
            names
                .iter()
                .map(|n| format!("{PREFIX}{n}@t"))
                .collect::<Vec<_>>()
        };
        assert_eq!(common_glob(&ids(&["rust_dma", "rust_dma"])), "rust_dma");
        assert_eq!(common_glob(&ids(&["rust_dma_buf", "rust_drm"])), "rust_d*");
        assert_eq!(common_glob(&ids(&["a", "b"])), "*");
        assert_eq!(common_glob(&[BOOT.to_owned()]), "*");
    }
}
