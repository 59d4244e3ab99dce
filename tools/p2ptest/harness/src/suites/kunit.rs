// SPDX-License-Identifier: GPL-2.0
//! The KUnit suites that the repository's kernel files declare: "kunit/suite@test",
//! and on the debug kernel "debug-kunit/suite@test". One boot runs them; its log
//! counts as a test of its own.
//!
//! The examples in the documentation of Rust's `kernel` crate are one of the suites.
//! Those of the repository's files are tests each, and those of all others together
//! are one: [`OTHERS`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use p2p_init::Status;

use crate::context::{Flavour, Mode, Setup, Topology};
use crate::kernel::overlay::new_paths;
use crate::ktap;
use crate::results::{Outcome, Results, Verdict};
use crate::select::Filter;
use crate::session::{End, Parts, Session};
use crate::suites::audit::{self, Audit};

/// The ids' prefix, after the kernel's.
pub const NAME: &str = "kunit/";

/// The suite of documented examples, as the kernel's `rustdoc_test_gen` calls it.
const EXAMPLES: &str = "rust_doctests_kernel";

/// The test of the suite that stands for the examples of files that are not ours: our
/// patches must not break them.
const OTHERS: &str = "all_others";
/// Examples of Linux's that keep a timer on the stack. The abstraction has no function for that,
/// so that the debug kernel's ODEBUG takes each of them for a mistake, in two lines.
const TIMERS_ON_STACK: [&str; 2] = [
    "rust_doctest_kernel_time_hrtimer_rs_1",
    "rust_doctest_kernel_time_hrtimer_rs_2",
];

/// What the ids of this kernel's tests start with.
fn prefix(flavour: Flavour) -> String {
    format!("{}{NAME}", flavour.prefix())
}

/// The boot in which the suites run, as a group of tests.
fn boot(flavour: Flavour) -> String {
    prefix(flavour) + "boot"
}

fn boot_id(flavour: Flavour) -> String {
    boot(flavour) + "@clean"
}

/// What was chosen for one kernel.
#[derive(Debug)]
pub struct Chosen {
    flavour: Flavour,
    /// The ids of tests.
    tests: Vec<String>,
    /// Ours among the examples, chosen or not.
    examples: BTreeSet<String>,
    /// The ids of the boot in which they run; none if nothing was chosen.
    boot: Vec<String>,
}

impl Chosen {
    /// The ids of all results.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.tests.iter().chain(&self.boot)
    }
}

/// Chooses among the declared tests and their boot.
///
/// # Errors
///
/// When a file cannot be read.
pub fn choose(top: &Path, flavour: Flavour, filter: &Filter) -> Result<Chosen> {
    let prefix = prefix(flavour);
    let mut tests = Vec::new();
    let mut examples = BTreeSet::new();
    for path in new_paths(top) {
        let path = path?;
        if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            tests.extend(
                declared(&text)
                    .into_iter()
                    .map(|(suite, test)| format!("{prefix}{suite}@{test}")),
            );
            if let Ok(file) = path.strip_prefix(top.join("rust/kernel")) {
                examples.extend(documented(file, &text));
            }
        }
    }
    if !examples.is_empty() {
        let names = examples.iter().map(String::as_str).chain([OTHERS]);
        tests.extend(names.map(|name| format!("{prefix}{EXAMPLES}@{name}")));
    }
    let mut boot_ids = Vec::new();
    if !tests.is_empty() {
        boot_ids.push(boot_id(flavour));
        boot_ids.extend(audit::ids(flavour, &boot(flavour)));
    }
    tests.retain(|id| filter.takes(id));
    if tests.is_empty() && !boot_ids.iter().any(|id| filter.takes(id)) {
        boot_ids.clear();
    }
    Ok(Chosen {
        flavour,
        tests,
        examples,
        boot: boot_ids,
    })
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

/// What the kernel calls the examples in a file of `rust/kernel`: by the file, and numbers
/// from 0. Blocks of code that are not Rust, or say that they are not to be tried, have
/// a word after their fence.
fn documented(file: &Path, text: &str) -> Vec<String> {
    let fences = text.lines().filter_map(|line| {
        let line = line.trim();
        let comment = line.strip_prefix("///").or(line.strip_prefix("//!"))?;
        comment.trim().strip_prefix("```")
    });
    // The second of each pair ends the block.
    let blocks = fences
        .step_by(2)
        .filter(|word| matches!(*word, "" | "rust"));
    let file = file.to_string_lossy().replace(['/', '.', '-'], "_");
    (0..blocks.count())
        .map(|number| format!("rust_doctest_kernel_{file}_{number}"))
        .collect()
}

/// What came of the examples that are not ours, if the suite ran.
fn others(seen: &BTreeMap<String, ktap::Line>, ours: &BTreeSet<String>) -> Option<ktap::Line> {
    let others = seen
        .values()
        .filter(|line| line.suite == EXAMPLES && !ours.contains(&line.name));
    let mut output = Vec::new();
    let (mut passed, mut failed) = (0_usize, Vec::new());
    for line in others {
        match &line.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Skip(why) => output.push(format!("{} was skipped: {why}", line.name)),
            Verdict::Fail(_) | Verdict::Crash(_) => {
                output.extend(line.output.iter().cloned());
                failed.push(line.name.as_str());
            }
        }
    }
    output.push(format!("{passed} examples passed"));
    let verdict = match (passed, failed.is_empty()) {
        (0, true) => return None,
        (_, true) => Verdict::Pass,
        (_, false) => Verdict::Fail(format!("failed: {}", failed.join(", "))),
    };
    Some(ktap::Line {
        suite: EXAMPLES.to_owned(),
        name: OTHERS.to_owned(),
        verdict,
        output,
    })
}

/// Takes out what the debug kernel says of [`TIMERS_ON_STACK`], as often as these ran. More of
/// the kind stays: ODEBUG does not name who made the timer.
fn without_timers_on_stack(findings: &mut Vec<String>, seen: &BTreeMap<String, ktap::Line>) {
    let ran = seen
        .values()
        .filter(|line| TIMERS_ON_STACK.contains(&line.name.as_str()))
        .count();
    for part in [", but NOT annotated.", "WARNING: lib/debugobjects.c:"] {
        let mut left = ran;
        findings.retain(|finding| {
            let is_one = left > 0 && finding.contains(part);
            left -= usize::from(is_one);
            !is_one
        });
    }
}

/// Boots once with KUnit on and reports what was chosen.
///
/// # Errors
///
/// When the user stops the run, or a report cannot be written.
pub fn run<W: Write>(parts: &Parts<'_>, chosen: &Chosen, results: &Results<W>) -> Result<()> {
    if chosen.boot.is_empty() {
        return Ok(());
    }
    let flavour = chosen.flavour;
    let prefix = prefix(flavour);
    let glob = common_glob(&prefix, &chosen.tests);
    let parameters = format!("kunit.enable=1 kunit.autorun=1 kunit.filter_glob={glob}");
    let name = format!("{}kunit", flavour.prefix());
    let setup = Setup {
        topology: Topology::Switch,
        mode: Mode::Mapped,
    };
    let mut session = match Session::start(parts, setup, &name, &parameters) {
        Ok(session) => session,
        Err(e) => {
            crate::stop::check()?;
            for id in chosen.ids() {
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
        End::Told(Status::Exit(0)) => {
            let audit = Audit {
                flavour,
                group: &boot(flavour),
                results,
            };
            let guest = audit.boot(&mut session)?;
            match audit.end(session, guest)? {
                Ok(found) => findings.extend(found),
                Err(why) => findings.push(why),
            }
        }
        End::Told(other) => findings.push(format!("reading the results: {other:?}")),
        End::Crash(why) => findings.push(why),
    }
    let mut seen: BTreeMap<String, ktap::Line> = ktap::tests(&outcome.output.join("\n"))
        .into_iter()
        .map(|line| (format!("{prefix}{}@{}", line.suite, line.name), line))
        .collect();
    without_timers_on_stack(&mut findings, &seen);
    if let Some(line) = others(&seen, &chosen.examples) {
        seen.insert(format!("{prefix}{EXAMPLES}@{OTHERS}"), line);
    }
    for id in &chosen.tests {
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
    results.add(Outcome::new(boot_id(flavour), verdict, outcome.time).command(&command))
}

/// A glob that all wanted suites match: KUnit takes one only.
fn common_glob(prefix: &str, ids: &[String]) -> String {
    let mut suites = ids
        .iter()
        .filter_map(|id| id.strip_prefix(prefix)?.split('@').next());
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
    fn timers_on_the_stack_are_known_by_their_number() {
        let line = |name: &str| {
            let line = ktap::Line {
                suite: EXAMPLES.to_owned(),
                name: name.to_owned(),
                verdict: Verdict::Pass,
                output: Vec::new(),
            };
            (name.to_owned(), line)
        };
        let said = |object: u32| {
            [
                format!("ODEBUG: object {object:x} is on stack f000, but NOT annotated."),
                format!("WARNING: lib/debugobjects.c:672 at f+{object:#x}"),
            ]
        };
        let other = "BUG: KASAN: slab-use-after-free".to_owned();
        let all: Vec<String> = said(1)
            .into_iter()
            .chain([other.clone()])
            .chain(said(2))
            .chain(said(3))
            .collect();

        let both: BTreeMap<_, _> = TIMERS_ON_STACK.map(line).into();
        let mut findings = all.clone();
        without_timers_on_stack(&mut findings, &both);
        let third = said(3);
        assert_eq!(findings, [vec![other], third.to_vec()].concat());
        // Without them it is not theirs.
        let mut findings = all.clone();
        without_timers_on_stack(&mut findings, &BTreeMap::from([line("other")]));
        assert_eq!(findings, all);
    }

    #[test]
    fn examples() {
        let text = "
            //! ```
            //! first();
            //! ```
            //!
            //! ```text
            //! a picture
            //! ```
            /// ```rust
            /// second();
            /// ```
            /// ```ignore
            /// third();
            /// ```
            // ```
            // no documentation
            // ```
            fn f() {}";
        assert_eq!(
            documented(Path::new("mm/p2p_x.rs"), text),
            [
                "rust_doctest_kernel_mm_p2p_x_rs_0",
                "rust_doctest_kernel_mm_p2p_x_rs_1"
            ]
        );
        assert!(documented(Path::new("a.rs"), "fn f() {}").is_empty());
    }

    #[test]
    fn other_examples_are_one_test() {
        let line = |suite: &str, name: &str, verdict| {
            let line = ktap::Line {
                suite: suite.to_owned(),
                name: name.to_owned(),
                verdict,
                output: Vec::new(),
            };
            (format!("kunit/{suite}@{name}"), line)
        };
        let bad = || Verdict::Fail("bad".to_owned());
        let ours = BTreeSet::from(["ours".to_owned()]);
        let mut seen = BTreeMap::from([
            line(EXAMPLES, "ours", bad()),
            line("another", "test", bad()),
        ]);
        assert_eq!(others(&seen, &ours), None);
        seen.extend([line(EXAMPLES, "theirs", Verdict::Pass)]);
        let found = others(&seen, &ours).map(|line| line.verdict);
        assert_eq!(found, Some(Verdict::Pass));
        seen.extend([line(EXAMPLES, "broken", bad())]);
        let found = others(&seen, &ours).map(|line| line.verdict);
        assert_eq!(found, Some(Verdict::Fail("failed: broken".to_owned())));
    }

    #[test]
    fn one_glob_for_all() {
        let glob = |names: &[&str]| {
            let ids = names.iter().map(|n| format!("debug-kunit/{n}@t"));
            common_glob("debug-kunit/", &ids.collect::<Vec<_>>())
        };
        assert_eq!(glob(&["rust_dma", "rust_dma"]), "rust_dma");
        assert_eq!(glob(&["rust_dma_buf", "rust_drm"]), "rust_d*");
        assert_eq!(glob(&["a", "b"]), "*");
        assert_eq!(glob(&[]), "*");
    }
}
