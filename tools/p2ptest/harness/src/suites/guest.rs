// SPDX-License-Identifier: GPL-2.0
//! The tests that run in a guest, in both aperture modes: "mapped/p2p_gem@subtest"
//! behind a switch, "iommu-mapped/p2p_nic@subtest" in another topology.
//! A guest that dies takes one test with it; the others go on in a fresh one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use p2p_init::Status;

use crate::cargo::Programs;
use crate::context::{Setup, Topology};
use crate::initrd::in_guest;
use crate::results::{Outcome, Results, Verdict};
use crate::select::Filter;
use crate::session::{self, End, Parts, Session};
use crate::stop;

/// A subtest may take so long; its guest may be slow and shared with others.
const LIMIT: Duration = Duration::from_secs(120);
/// Naming its subtests takes a program no time.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Guests that do not come up one after another, before the rest is given up.
const MAX_DEAD_BOOTS: usize = 2;
/// IGT's exit codes.
const EXIT_SKIP: i32 = 77;
const EXIT_FAIL: i32 = 98;

/// The programs whose subject depends on the route between devices. The others see the
/// same in all topologies, and run behind the switch only.
const ROUTED: [&str; 3] = ["p2p_export", "p2p_invalidate", "p2p_nic"];

fn runs_in(program: &Path, topology: Topology) -> bool {
    let routed = || ROUTED.iter().any(|name| program.ends_with(name));
    topology == Topology::Switch || routed()
}

/// One subtest in one setup.
#[derive(Debug, Clone)]
pub struct Case {
    setup: Setup,
    program: PathBuf,
    subtest: String,
}

impl Case {
    /// The test's id.
    pub fn id(&self) -> String {
        let program = self
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        format!("{}/{program}@{}", self.setup.name(), self.subtest)
    }
}

/// The boot of a setup's guests is a test itself: drivers loaded, nothing in the log.
fn boot_id(setup: Setup) -> String {
    format!("{}/boot@clean", setup.name())
}

/// Powering off after the tests is one too.
fn end_id(setup: Setup) -> String {
    format!("{}/boot@ends", setup.name())
}

/// Asks the test programs, outside any guest, for their subtests.
///
/// # Errors
///
/// When one of them fails to tell.
pub fn list(programs: &Programs) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut subtests = Vec::new();
    for program in &programs.tests {
        let mut command = Command::new(program);
        command.arg("--list-subtests");
        let listed = stop::capture(&mut command, LIST_LIMIT)?;
        ensure!(listed.status.success(), "{command:?}: {}", listed.status);
        for subtest in listed.lines.iter().map(|line| line.trim()) {
            if !subtest.is_empty() {
                subtests.push((program, subtest.to_owned()));
            }
        }
    }
    for setup in Setup::all() {
        for (program, subtest) in &subtests {
            if runs_in(program, setup.topology) {
                cases.push(Case {
                    setup,
                    program: program.to_path_buf(),
                    subtest: subtest.clone(),
                });
            }
        }
    }
    Ok(cases)
}

/// The chosen cases, and the ids of all results they lead to: those of the guests
/// that they need as well.
pub fn choose(cases: Vec<Case>, filter: &Filter) -> (Vec<Case>, Vec<String>) {
    let boots = |setup| [boot_id(setup), end_id(setup)];
    let chosen: Vec<Case> = cases
        .into_iter()
        .filter(|case| filter.takes(&case.id()))
        .collect();
    let mut ids: Vec<String> = chosen.iter().map(Case::id).collect();
    for setup in Setup::all() {
        let needed = chosen.iter().any(|case| case.setup == setup);
        if needed || boots(setup).iter().any(|id| filter.takes(id)) {
            ids.extend(boots(setup));
        }
    }
    (chosen, ids)
}

/// Runs the chosen cases, setup by setup.
///
/// # Errors
///
/// When the user stops the run, or a report cannot be written.
pub fn run<W: Write>(parts: &Parts<'_>, cases: &[Case], results: &mut Results<W>) -> Result<()> {
    for setup in Setup::all() {
        if results.wants(&boot_id(setup)) {
            let cases = cases.iter().filter(|case| case.setup == setup).collect();
            run_setup(parts, setup, cases, results)?;
        }
    }
    Ok(())
}

fn run_setup<W: Write>(
    parts: &Parts<'_>,
    setup: Setup,
    cases: Vec<&Case>,
    results: &mut Results<W>,
) -> Result<()> {
    let mut left = cases.into_iter();
    let mut boots = 0;
    let mut dead = 0;
    loop {
        boots += 1;
        let name = format!("{}-{boots}", setup.name());
        let mut session = match Session::start(parts, setup, &name, "kunit.enable=0") {
            Ok(session) => session,
            Err(e) => {
                stop::check()?;
                dead += 1;
                let why = format!("{e:#}");
                if dead < MAX_DEAD_BOOTS {
                    continue;
                }
                for id in [boot_id(setup), end_id(setup)]
                    .into_iter()
                    .chain(left.map(Case::id))
                {
                    results.add(Outcome::new(
                        id,
                        Verdict::Crash(why.clone()),
                        Duration::ZERO,
                    ))?;
                }
                return Ok(());
            }
        };
        dead = 0;
        let verdict = match session.boot.is_empty() {
            true => Verdict::Pass,
            false => Verdict::Fail(session.boot.join("\n")),
        };
        results
            .add(Outcome::new(boot_id(setup), verdict, Duration::ZERO).command(&session.command))?;

        let mut died = false;
        for case in left.by_ref() {
            let outcome = run_case(&mut session, case)?;
            died = matches!(outcome.verdict, Verdict::Crash(_));
            results.add(outcome)?;
            if died {
                break;
            }
        }
        if !died {
            let command = session.command.clone();
            let findings = session.power_off()?;
            let verdict = match findings.is_empty() {
                true => Verdict::Pass,
                false => Verdict::Fail(findings.join("\n")),
            };
            results.add(Outcome::new(end_id(setup), verdict, Duration::ZERO).command(&command))?;
            return Ok(());
        }
        if left.len() == 0 {
            let why = "the last test's guest died before".to_owned();
            results.add(Outcome::new(
                end_id(setup),
                Verdict::Skip(why),
                Duration::ZERO,
            ))?;
            return Ok(());
        }
    }
}

fn run_case(session: &mut Session, case: &Case) -> Result<Outcome> {
    let id = case.id();
    let argv = vec![
        in_guest(&case.program),
        "--run-subtest".into(),
        case.subtest.clone(),
    ];
    let outcome = session.run(&id, argv, LIMIT, &mut |_| {})?;
    let verdict = verdict(&outcome);
    let mut output = outcome.output;
    output.extend(outcome.findings);
    let result = Outcome::new(id, verdict, outcome.time).output(output);
    Ok(match result.verdict {
        Verdict::Pass | Verdict::Skip(_) => result,
        Verdict::Fail(_) | Verdict::Crash(_) => result.command(&session.command),
    })
}

/// What an outcome means: whatever was found in the log or the devices fails the
/// test, however it ended.
fn verdict(outcome: &session::Outcome) -> Verdict {
    let status = match &outcome.end {
        End::Crash(why) => return Verdict::Crash(why.clone()),
        End::Told(Status::Stuck) => {
            return Verdict::Crash("it cannot be killed: the kernel holds it".into());
        }
        End::Told(status) => status,
    };
    if let Some(finding) = outcome.findings.first() {
        return Verdict::Fail(format!("kernel log or device: {finding}"));
    }
    match status {
        Status::Exit(0) => Verdict::Pass,
        Status::Exit(EXIT_SKIP) => {
            Verdict::Skip(outcome.output.last().cloned().unwrap_or_default())
        }
        Status::Exit(EXIT_FAIL) => Verdict::Fail("the subtest failed".into()),
        Status::Exit(code) => Verdict::Fail(format!("exit code {code}")),
        Status::Signal(signal) => Verdict::Fail(format!("ended by signal {signal}")),
        Status::Timeout => Verdict::Fail("timeout".into()),
        Status::Stuck => Verdict::Crash("stuck".into()),
        Status::Failed(why) => Verdict::Fail(format!("could not be run: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Mode;

    fn outcome(end: End, findings: &[&str]) -> session::Outcome {
        session::Outcome {
            end,
            output: vec!["SKIP: no device".into()],
            findings: findings.iter().map(|s| (*s).to_owned()).collect(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts() {
        let told = |status| outcome(End::Told(status), &[]);
        assert_eq!(verdict(&told(Status::Exit(0))), Verdict::Pass);
        assert_eq!(
            verdict(&told(Status::Exit(77))),
            Verdict::Skip("SKIP: no device".into())
        );
        for status in [
            Status::Exit(98),
            Status::Exit(1),
            Status::Signal(6),
            Status::Timeout,
        ] {
            assert!(matches!(verdict(&told(status)), Verdict::Fail(_)));
        }
        assert!(matches!(verdict(&told(Status::Stuck)), Verdict::Crash(_)));
        let warned = outcome(End::Told(Status::Exit(0)), &["WARNING: x"]);
        assert!(matches!(verdict(&warned), Verdict::Fail(_)));
        let skipped = outcome(End::Told(Status::Exit(77)), &["WARNING: x"]);
        assert!(matches!(verdict(&skipped), Verdict::Fail(_)));
    }

    #[test]
    fn a_chosen_test_brings_its_boot() {
        let case = |mode, subtest: &str| Case {
            setup: Setup {
                topology: Topology::Switch,
                mode,
            },
            program: "/b/p2p_gem".into(),
            subtest: subtest.into(),
        };
        let cases = vec![
            case(Mode::Mapped, "a"),
            case(Mode::Trapped, "a"),
            case(Mode::Trapped, "b"),
        ];
        let filter = Filter::new(Some("trapped/*@b")).unwrap();
        let (chosen, ids) = choose(cases, &filter);
        assert_eq!(chosen.len(), 1);
        assert_eq!(
            ids,
            [
                "trapped/p2p_gem@b",
                "trapped/boot@clean",
                "trapped/boot@ends"
            ]
        );
    }
}
