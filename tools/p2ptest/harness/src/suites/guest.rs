// SPDX-License-Identifier: GPL-2.0
//! The tests that run in a guest, in both aperture modes: "mapped/p2p_gem@subtest"
//! behind a switch, "iommu-mapped/p2p_nic@subtest" in another topology, and
//! "debug-mapped/p2p_gem@subtest" on the debug kernel. A guest that dies takes one
//! test with it; the others go on in a fresh one.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use p2p_init::{CYCLES_PARAMETER, Status};

use crate::cargo::Programs;
use crate::context::{Flavour, Mode, Setup, Topology};
use crate::igt::{self, EXIT_FAIL, EXIT_SKIP, EXIT_SUCCESS};
use crate::initrd::in_guest;
use crate::pool::Job;
use crate::results::{Outcome, Results, Verdict};
use crate::select::Filter;
use crate::session::{self, End, Parts, Session};
use crate::stop;
use crate::suites::audit::{self, Guest};

/// A subtest may take so long; its guest may be slow and shared with others.
const LIMIT: Duration = Duration::from_secs(300);
/// Naming its subtests takes a program no time.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Guests that do not come up one after another, before the rest is given up.
pub const MAX_DEAD_BOOTS: usize = 2;
/// What runs on the debug kernel in every run, in mapped mode: the programs that
/// map, move and revoke most, and those with subtests that need it.
const DEBUG_PART: [(&str, Topology); 6] = [
    ("p2p_export", Topology::Switch),
    ("p2p_failnth", Topology::Switch),
    ("p2p_invalidate", Topology::Switch),
    ("p2p_iommu", Topology::Iommu),
    ("p2p_remove", Topology::Switch),
    ("p2p_simple", Topology::Switch),
];

/// The programs whose subject depends on the route between devices.
const ROUTED: [&str; 7] = [
    "p2p_contract",
    "p2p_export",
    "p2p_gpus",
    "p2p_invalidate",
    "p2p_nic",
    "p2p_simple",
    "p2p_vma",
];
/// Those that test the IOMMU, and run behind it only. All others see the same in all
/// topologies, and run behind the switch.
const TRANSLATED: [&str; 1] = ["p2p_iommu"];
/// Those to which the GPUs' apertures are nothing: they run in one mode.
const MODELESS: [&str; 1] = ["p2p_simple"];

/// Where tests run: a kernel, and devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The kernel.
    pub flavour: Flavour,
    /// The devices.
    pub setup: Setup,
}

impl Place {
    /// All, in the order in which they run.
    pub fn all() -> impl Iterator<Item = Self> {
        Flavour::ALL
            .into_iter()
            .flat_map(|flavour| Setup::all().map(move |setup| Self { flavour, setup }))
    }

    /// The name in test ids: "mapped", "debug-trapped", "debug-iommu-mapped".
    pub fn name(self) -> String {
        format!("{}{}", self.flavour.prefix(), self.setup.name())
    }

    /// Its guests' boot, as a group of tests.
    fn boot(self) -> String {
        format!("{}/boot", self.name())
    }

    fn boot_id(self) -> String {
        clean(&self.boot())
    }

    fn end_id(self) -> String {
        ends(&self.boot())
    }

    /// The ids that come with any test here.
    fn ids(self) -> Vec<String> {
        let mut ids = vec![self.boot_id(), self.end_id()];
        ids.extend(audit::ids(self.flavour, &self.boot()));
        ids
    }

    /// Whether a run tests a program here. Unless there is only one kernel to test, the
    /// debug kernel has a part of the tests, and the one that counts lines none.
    fn runs(self, program: &str, only: Option<Flavour>) -> bool {
        let topology = self.setup.topology;
        let has_subject = match TRANSLATED.contains(&program) {
            true => topology == Topology::Iommu,
            false => topology == Topology::Switch || ROUTED.contains(&program),
        };
        let has_mode = self.setup.mode == Mode::Mapped || !MODELESS.contains(&program);
        has_subject
            && has_mode
            && match (self.flavour, only) {
                (flavour, Some(only)) => flavour == only,
                (Flavour::Release, None) => true,
                (Flavour::Debug, None) => {
                    self.setup.mode == Mode::Mapped && DEBUG_PART.contains(&(program, topology))
                }
                (Flavour::Coverage, None) => false,
            }
    }
}

/// One subtest in one place.
#[derive(Debug, Clone)]
pub struct Case {
    place: Place,
    program: PathBuf,
    subtest: String,
}

impl Case {
    /// The test's id.
    pub fn id(&self) -> String {
        format!("{}@{}", self.group(), self.subtest)
    }

    /// The group that shares a program.
    fn group(&self) -> String {
        let program = self.program.file_name().unwrap_or_default();
        format!("{}/{}", self.place.name(), program.display())
    }
}

/// Asks the test programs, outside any guest, for their subtests.
///
/// # Errors
///
/// When one of them fails to tell.
pub fn list(programs: &Programs, only: Option<Flavour>) -> Result<Vec<Case>> {
    let mut listed = Vec::new();
    for program in &programs.tests {
        let mut command = Command::new(program);
        command.arg("--list-subtests");
        let told = stop::capture(&mut command, LIST_LIMIT)?;
        ensure!(told.status.success(), "{command:?}: {}", told.status);
        listed.push((program, told.lines));
    }
    let mut cases = Vec::new();
    for place in Place::all() {
        for (program, lines) in &listed {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            if !place.runs(&name, only) {
                continue;
            }
            for subtest in lines.iter().map(|line| line.trim()) {
                if !subtest.is_empty() {
                    cases.push(Case {
                        place,
                        program: (*program).clone(),
                        subtest: subtest.to_owned(),
                    });
                }
            }
        }
    }
    Ok(cases)
}

/// The chosen cases, and the ids of all results they lead to: those of their groups
/// and of the guests that they need as well.
pub fn choose(cases: Vec<Case>, filter: &Filter) -> (Vec<Case>, Vec<String>) {
    let places: BTreeSet<Place> = cases.iter().map(|case| case.place).collect();
    let chosen: Vec<Case> = cases
        .into_iter()
        .filter(|case| filter.takes(&case.id()))
        .collect();
    let mut ids: Vec<String> = Vec::new();
    for group in chosen.chunk_by(|a, b| a.group() == b.group()) {
        ids.extend(group.iter().map(Case::id));
        ids.extend(audit::ids(group[0].place.flavour, &group[0].group()));
    }
    for place in places {
        let needed = chosen.iter().any(|case| case.place == place);
        if needed || place.ids().iter().any(|id| filter.takes(id)) {
            ids.extend(place.ids());
        }
    }
    (chosen, ids)
}

/// The jobs that run the chosen cases of one kernel: one for each setup.
pub fn jobs<'a, W: Write + Send>(
    parts: &'a Parts<'a>,
    cases: &'a [Case],
    results: &'a Results<W>,
) -> impl Iterator<Item = Job<'a>> {
    Place::all()
        .filter(|place| place.flavour == parts.flavour && results.wants(&place.boot_id()))
        .map(move |place| {
            Box::new(move || {
                let cases = cases.iter().filter(|case| case.place == place).collect();
                run_place(parts, place, cases, results)
            }) as Job<'a>
        })
}

fn run_place<W: Write>(
    parts: &Parts<'_>,
    place: Place,
    cases: Vec<&Case>,
    results: &Results<W>,
) -> Result<()> {
    let mut left: VecDeque<&Case> = cases.into();
    let mut boots = 0;
    let mut dead = 0;
    let mut at_ends = Vec::new();
    loop {
        boots += 1;
        let name = format!("{}-{boots}", place.name());
        let booted = boot(parts, place.setup, &place.boot(), &name, results)?;
        let (mut session, guest) = match booted {
            Ok(booted) => booted,
            Err(why) => {
                dead += 1;
                if dead < MAX_DEAD_BOOTS {
                    continue;
                }
                return give_up(place, &left, &why, results);
            }
        };
        dead = 0;
        let sighted = guest == Guest::Fit;
        let mut guest = Guest::Fit;
        while let Some(first) = left.front()
            && guest != Guest::Blind
            && !session.retired
        {
            let group = first.group();
            guest = run_group(&mut session, place, &group, &mut left, results)?;
            if matches!(guest, Guest::Dead(_)) {
                break;
            }
            if !sighted {
                // A fresh guest would see no more.
                guest = Guest::Fit;
            }
        }
        if matches!(guest, Guest::Dead(_)) {
            if left.is_empty() {
                let why = Verdict::Skip("the last test's guest died before".to_owned());
                results.add(Outcome::new(place.end_id(), why, Duration::ZERO))?;
                return Ok(());
            }
        } else if left.is_empty() || session.retired {
            let command = session.command.clone();
            at_ends.extend(session.power_off()?);
            if left.is_empty() {
                let verdict = of_findings(&at_ends);
                let end = Outcome::new(place.end_id(), verdict, Duration::ZERO);
                return results.add(end.command(&command));
            }
        }
    }
}

/// Boots and audits one guest, or tells why there is none. `group` is what the boot is
/// called as a group of tests, `name` names its files.
///
/// # Errors
///
/// When the user stops the run, or a report cannot be written.
pub fn boot<W: Write>(
    parts: &Parts<'_>,
    setup: Setup,
    group: &str,
    name: &str,
    results: &Results<W>,
) -> Result<Result<(Session, Guest), String>> {
    let parameters = format!("kunit.enable=0 {CYCLES_PARAMETER}={}", parts.ctx.cycles);
    let mut session = match Session::start(parts, setup, name, &parameters) {
        Ok(session) => session,
        Err(e) => {
            stop::check()?;
            return Ok(Err(format!("{e:#}")));
        }
    };
    let verdict = of_findings(&session.boot);
    let boot = Outcome::new(clean(group), verdict, Duration::ZERO);
    results.add(boot.command(&session.command))?;
    match audit::run(&mut session, parts.flavour, group, results)? {
        Guest::Dead(why) => Ok(Err(why)),
        guest => Ok(Ok((session, guest))),
    }
}

/// A boot is a test itself: drivers loaded, nothing in the log.
pub fn clean(boot: &str) -> String {
    format!("{boot}@clean")
}

/// Powering off after the tests is one too.
pub fn ends(boot: &str) -> String {
    format!("{boot}@ends")
}

/// The verdict on what may not be found.
pub fn of_findings(findings: &[String]) -> Verdict {
    match findings.is_empty() {
        true => Verdict::Pass,
        false => Verdict::Fail(findings.join("\n")),
    }
}

/// No guest comes up: nothing that is left can run.
fn give_up<W: Write>(
    place: Place,
    left: &VecDeque<&Case>,
    why: &str,
    results: &Results<W>,
) -> Result<()> {
    let groups: BTreeSet<String> = left.iter().map(|case| case.group()).collect();
    let audits = groups
        .iter()
        .flat_map(|group| audit::ids(place.flavour, group));
    let ids = place.ids().into_iter().chain(audits);
    for id in ids.chain(left.iter().map(|case| case.id())) {
        let verdict = Verdict::Crash(why.to_owned());
        results.add(Outcome::new(id, verdict, Duration::ZERO))?;
    }
    Ok(())
}

/// Runs the cases at the front of the queue that are of this group, until one of
/// them ends the guest.
fn run_group<W: Write>(
    session: &mut Session,
    place: Place,
    group: &str,
    left: &mut VecDeque<&Case>,
    results: &Results<W>,
) -> Result<Guest> {
    while let Some(case) = left.pop_front_if(|case| case.group() == group) {
        let outcome = run_case(session, case)?;
        let died = match &outcome.verdict {
            Verdict::Crash(why) => Some(why.clone()),
            _ => None,
        };
        results.add(outcome)?;
        if let Some(why) = died {
            // The rest of the group is audited in another guest.
            if left.front().is_none_or(|next| next.group() != group) {
                audit::skip(place.flavour, group, results)?;
            }
            return Ok(Guest::Dead(why));
        }
        if session.retired && left.front().is_some_and(|next| next.group() == group) {
            // As above.
            return Ok(Guest::Fit);
        }
    }
    audit::run(session, place.flavour, group, results)
}

fn run_case(session: &mut Session, case: &Case) -> Result<Outcome> {
    let id = case.id();
    let argv = vec![
        in_guest(&case.program),
        "--run-subtest".into(),
        case.subtest.clone(),
    ];
    let outcome = session.run(&id, argv, LIMIT, &mut |_| {})?;
    let verdict = verdict(&outcome, &case.subtest);
    let mut output = outcome.output;
    output.extend(outcome.findings);
    let result = Outcome::new(id, verdict, outcome.time).output(output);
    Ok(match result.verdict {
        Verdict::Pass | Verdict::Skip(_) => result,
        Verdict::Fail(_) | Verdict::Crash(_) => result.command(&session.command),
    })
}

/// What an outcome means: whatever was found in the log or the devices fails the
/// test, however it ended; and so does what `igt_runner` would not understand.
fn verdict(outcome: &session::Outcome, subtest: &str) -> Verdict {
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
    if let Status::Exit(status) = status
        && let Some(why) = igt::contradiction(&outcome.output, subtest, *status)
    {
        return Verdict::Fail(format!("not as IGT's tests tell it: {why}"));
    }
    match status {
        Status::Exit(EXIT_SUCCESS) => Verdict::Pass,
        Status::Exit(EXIT_SKIP) => Verdict::Skip(igt::requirement(&outcome.output)),
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

    /// Of a program that said this of its subtest.
    fn outcome(end: End, said: &str, findings: &[&str]) -> session::Outcome {
        let output = format!(
            "IGT-Version: 1\nStarting subtest: a\nTest requirement: x\nSubtest a: {said} (0.1s)"
        );
        session::Outcome {
            end,
            output: output.lines().map(str::to_owned).collect(),
            findings: findings.iter().map(|s| (*s).to_owned()).collect(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts() {
        let verdict = |status, said, findings: &[&str]| {
            super::verdict(&outcome(End::Told(status), said, findings), "a")
        };
        assert_eq!(verdict(Status::Exit(0), "SUCCESS", &[]), Verdict::Pass);
        let skip = verdict(Status::Exit(77), "SKIP", &[]);
        assert_eq!(skip, Verdict::Skip("x".into()));
        for (status, said) in [
            (Status::Exit(98), "FAIL"),
            (Status::Exit(0), "FAIL"),
            (Status::Exit(77), "SUCCESS"),
            (Status::Exit(1), "SUCCESS"),
            (Status::Signal(6), "SUCCESS"),
            (Status::Timeout, "SUCCESS"),
        ] {
            assert!(matches!(verdict(status, said, &[]), Verdict::Fail(_)));
        }
        let stuck = verdict(Status::Stuck, "SUCCESS", &[]);
        assert!(matches!(stuck, Verdict::Crash(_)));
        let warned = verdict(Status::Exit(0), "SUCCESS", &["WARNING: x"]);
        assert!(matches!(warned, Verdict::Fail(_)));
        let skipped = verdict(Status::Exit(77), "SKIP", &["WARNING: x"]);
        assert!(matches!(skipped, Verdict::Fail(_)));
    }

    fn case(name: &str, subtest: &str) -> Case {
        Case {
            place: Place::all().find(|place| place.name() == name).unwrap(),
            program: "/b/p2p_gem".into(),
            subtest: subtest.into(),
        }
    }

    #[test]
    fn a_chosen_test_brings_its_boot() {
        let cases = vec![
            case("mapped", "a"),
            case("trapped", "a"),
            case("trapped", "b"),
        ];
        let filter = Filter::new(Some("trapped/*@b"), "").unwrap();
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

    #[test]
    fn on_the_debug_kernel_it_brings_its_audit() {
        let cases = vec![case("debug-mapped", "a"), case("debug-mapped", "b")];
        let filter = Filter::new(Some("debug-mapped/p2p_gem@a"), "").unwrap();
        let (chosen, ids) = choose(cases, &filter);
        assert_eq!(chosen.len(), 1);
        assert_eq!(
            ids,
            [
                "debug-mapped/p2p_gem@a",
                "debug-mapped/p2p_gem@kmemleak",
                "debug-mapped/p2p_gem@checkers",
                "debug-mapped/boot@clean",
                "debug-mapped/boot@ends",
                "debug-mapped/boot@kmemleak",
                "debug-mapped/boot@checkers",
            ]
        );
    }

    #[test]
    fn what_runs_where() {
        let places = |program: &str, only| {
            let runs = Place::all().filter(|place| place.runs(program, only));
            runs.map(Place::name).collect::<Vec<_>>()
        };
        let release = Some(Flavour::Release);
        let mut part = places("p2p_export", release);
        assert_eq!(part.len(), Setup::all().count());
        part.push("debug-mapped".into());
        assert_eq!(places("p2p_export", None), part);
        assert_eq!(places("p2p_gem", None), ["mapped", "trapped"]);
        let modeless = places("p2p_simple", release);
        assert_eq!(modeless.len(), Topology::ALL.len());
        assert!(modeless.iter().all(|place| place.ends_with("mapped")));
        let translated = ["iommu-mapped", "iommu-trapped"];
        assert_eq!(places("p2p_iommu", release), translated);
        let in_part = places("p2p_iommu", None);
        assert_eq!(in_part.last().unwrap(), "debug-iommu-mapped");
        let debug = ["debug-mapped", "debug-trapped"];
        assert_eq!(places("p2p_gem", Some(Flavour::Debug)), debug);
        let coverage = ["coverage-mapped", "coverage-trapped"];
        assert_eq!(places("p2p_gem", Some(Flavour::Coverage)), coverage);
    }
}
