// SPDX-License-Identifier: GPL-2.0
//! IGT's own tests, driven by IGT's own `igt_runner`: "igt/core_auth@many-magics", and on
//! the debug kernel "debug-igt/…". It drives some of our programs as well, so that these
//! are seen to speak its protocol. Debian's packages of them run in a guest, with the
//! libraries that they need.

mod expected;
mod programs;
mod report;

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use p2p_init::Status;

use crate::cargo::Programs;
use crate::context::{Context, Flavour, Mode, Setup, Topology};
use crate::pool::Job;
use crate::results::{Outcome, Results, Verdict};
use crate::select::Filter;
use crate::session::{self, End, Parts, Session};
use crate::stop;
use crate::suites::audit::{self, Audit, Guest};
use crate::suites::guest::{self, MAX_DEAD_BOOTS};
use expected::{AGAIN, TIMED, VERDICTS};
use programs::{Group, RUNNER, TESTS};
use report::{Report, Told};

/// The ids' prefix, after the kernel's.
pub const NAME: &str = "igt/";

/// The driver that upstream's tests are to open; they know ours by no other way.
const DRIVER: &str = "IGT_FORCE_DRIVER=p2pgpu";
/// Where the guest has the list of subtests, and what came of them.
const LIST: &str = "/tmp/igt.testlist";
const RESULTS: &str = "/tmp/igt";
/// A program that is silent for so many seconds is killed by `igt_runner`.
const SILENCE: u64 = 120;
/// What a program's subtests may take together; its guest may be slow and shared.
const LIMIT: Duration = Duration::from_secs(400);
/// Nothing of the route between devices, or of the mode, is tested here.
const SETUP: Setup = Setup {
    topology: Topology::Switch,
    mode: Mode::Mapped,
};

impl Group {
    /// The group's name in ids.
    fn name(&self, flavour: Flavour) -> String {
        format!("{}{}", prefix(flavour), self.program)
    }
}

fn prefix(flavour: Flavour) -> String {
    format!("{}{NAME}", flavour.prefix())
}

fn boot_group(flavour: Flavour) -> String {
    prefix(flavour) + "boot"
}

fn id(group: &str, subtest: &str) -> String {
    format!("{group}@{subtest}")
}

/// Whether `igt_runner` ran a group as a whole, with nothing found in the log or the
/// devices.
fn runner_id(group: &str) -> String {
    id(group, "igt_runner")
}

/// Whether the packages are there and are what we take them for.
fn packages_id(flavour: Flavour) -> String {
    prefix(flavour) + "packages@usable"
}

/// What was chosen.
#[derive(Debug, Default)]
pub struct Chosen {
    /// The packages' folder.
    root: PathBuf,
    groups: Vec<Group>,
    ids: Vec<String>,
    /// What is told without a guest: of the packages, and what this kernel does not run.
    told: Vec<Outcome>,
}

impl Chosen {
    /// The ids of all results.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }
}

/// Chooses among the subtests, which the programs list themselves. For that the packages
/// are needed: where they cannot be had, one test says so and is skipped.
///
/// # Errors
///
/// When the user stops it.
pub fn choose(
    ctx: &Context,
    built: &Programs,
    flavour: Flavour,
    filter: &Filter,
) -> Result<Chosen> {
    if !filter.may_take(&prefix(flavour)) {
        return Ok(Chosen::default());
    }
    let id = packages_id(flavour);
    let told = |verdict| Outcome::new(id.clone(), verdict, Duration::ZERO);
    let unusable = |verdict| Chosen {
        ids: vec![id.clone()],
        told: vec![told(verdict)],
        ..Chosen::default()
    };
    let root = match programs::fetch(ctx) {
        Ok(root) => root,
        Err(e) => {
            stop::check()?;
            let why = format!("IGT cannot be fetched (is there a network?): {e:#}");
            return Ok(unusable(Verdict::Skip(why)));
        }
    };
    let mut groups = match programs::list(&root, built) {
        Ok(groups) => groups,
        Err(e) => {
            stop::check()?;
            return Ok(unusable(Verdict::Fail(format!("{e:#}"))));
        }
    };
    let mut outcomes: Vec<_> = filter
        .takes(&id)
        .then(|| told(Verdict::Pass))
        .into_iter()
        .collect();
    for group in &mut groups {
        let name = group.name(flavour);
        group.subtests.retain(|subtest| {
            let id = self::id(&name, subtest);
            if !filter.takes(&id) {
                return false;
            }
            let why = expected::too_slow(flavour, &group.program, subtest);
            let skip = |why: &str| Outcome::new(id, Verdict::Skip(why.into()), Duration::ZERO);
            outcomes.extend(why.map(skip));
            why.is_none()
        });
    }
    groups.retain(|group| !group.subtests.is_empty());
    let mut chosen = Chosen {
        root,
        groups,
        ..Chosen::default()
    };
    chosen.plan(flavour, outcomes);
    Ok(chosen)
}

impl Chosen {
    /// Sets the ids that follow from the groups, and what is told without a guest.
    fn plan(&mut self, flavour: Flavour, told: Vec<Outcome>) {
        self.ids.extend(told.iter().map(|told| told.id.clone()));
        self.told = told;
        for group in &self.groups {
            let name = group.name(flavour);
            self.ids.extend(group.subtests.iter().map(|s| id(&name, s)));
            self.ids.push(runner_id(&name));
            self.ids.extend(audit::ids(flavour, &name));
        }
        if !self.groups.is_empty() {
            let boot = boot_group(flavour);
            self.ids.extend([guest::clean(&boot), guest::ends(&boot)]);
            self.ids.extend(audit::ids(flavour, &boot));
        }
    }
}

/// The job that runs what was chosen, if anything was.
pub fn job<'a, W: Write + Send>(
    parts: &'a Parts<'a>,
    chosen: &'a Chosen,
    results: &'a Results<W>,
) -> Option<Job<'a>> {
    (!chosen.groups.is_empty()).then(|| Box::new(move || run(parts, chosen, results)) as Job<'a>)
}

/// Tells what needs no guest.
///
/// # Errors
///
/// When a report cannot be written.
pub fn tell<W: Write>(chosen: &Chosen, results: &Results<W>) -> Result<()> {
    chosen
        .told
        .iter()
        .try_for_each(|told| results.add(told.clone()))
}

fn run<W: Write>(parts: &Parts<'_>, chosen: &Chosen, results: &Results<W>) -> Result<()> {
    let flavour = parts.flavour;
    let parts = Parts {
        initrd: programs::build_initrd(
            parts.ctx,
            &parts.initrd,
            flavour,
            &chosen.root,
            &chosen.groups,
        )?,
        image: parts.image.clone(),
        counters: parts.counters.clone(),
        processors: parts.processors.clone(),
        ..*parts
    };
    let boot = boot_group(flavour);
    let mut left: VecDeque<_> = chosen.groups.iter().collect();
    let (mut boots, mut dead) = (0, 0);
    loop {
        boots += 1;
        let name = format!("{}igt-{boots}", flavour.prefix());
        let (mut session, first) = match guest::boot(&parts, SETUP, &boot, &name, results)? {
            Ok(booted) => booted,
            Err(why) => {
                dead += 1;
                if dead < MAX_DEAD_BOOTS {
                    continue;
                }
                let ids = chosen.ids.iter().filter(|id| results.wants(id));
                return ids.cloned().try_for_each(|id| {
                    let verdict = Verdict::Crash(why.clone());
                    results.add(Outcome::new(id, verdict, Duration::ZERO))
                });
            }
        };
        dead = 0;
        let mut last = Guest::Fit;
        while let Some(group) = left.pop_front() {
            last = run_group(&mut session, flavour, group, results)?;
            // Where the guest was blind from the start, a fresh one would see no more.
            if matches!(last, Guest::Dead(_)) || first == Guest::Fit && last == Guest::Blind {
                break;
            }
        }
        let command = session.command.clone();
        let audit = Audit {
            flavour,
            group: &boot,
            results,
        };
        match audit.end(session, last)? {
            Ok(found) if left.is_empty() || !found.is_empty() => {
                let verdict = guest::of_findings(&found);
                let end = Outcome::new(guest::ends(&boot), verdict, Duration::ZERO);
                results.add(end.command(&command))?;
            }
            Err(_) if left.is_empty() => {
                let told = guest::died_before(flavour, &boot);
                told.into_iter().try_for_each(|end| results.add(end))?;
            }
            Ok(_) | Err(_) => {}
        }
        if left.is_empty() {
            return Ok(());
        }
    }
}

/// Has `igt_runner` run a group, and reads what it reports.
fn run_group<W: Write>(
    session: &mut Session,
    flavour: Flavour,
    group: &Group,
    results: &Results<W>,
) -> Result<Guest> {
    let name = group.name(flavour);
    let runner = runner_id(&name);
    let processors = session.processors.clone();
    let (mut ran, mut report) =
        processors.beside_others(|| start(session, &runner, group, &group.subtests))?;
    for _ in 0..AGAIN {
        let failed: Vec<_> = match &report {
            Ok(report) => late(group, report).cloned().collect(),
            Err(_) => break,
        };
        if failed.is_empty() {
            break;
        }
        let (again, told) = processors.alone(|| start(session, &runner, group, &failed))?;
        ran.output.extend(again.output);
        ran.findings.extend(again.findings);
        ran.time += again.time;
        ran.end = again.end;
        report = report.and_then(|mut report| {
            report.replace(told?);
            Ok(report)
        });
    }
    for subtest in &group.subtests {
        let told = report
            .as_ref()
            .map(|report| report.of(&group.program, subtest));
        let outcome = outcome(id(&name, subtest), &ran.end, group, subtest, told);
        results.add(of_guest(outcome, session))?;
    }
    let verdict = match (&ran.end, ran.findings.first(), &report) {
        (End::Crash(why), _, _) => Verdict::Crash(why.clone()),
        (_, Some(finding), _) => Verdict::Fail(format!("kernel log or device: {finding}")),
        (End::Told(Status::Exit(0)), None, Ok(_)) => Verdict::Pass,
        (End::Told(Status::Exit(0)), None, Err(why)) => Verdict::Fail(why.clone()),
        (End::Told(status), None, _) => Verdict::Fail(format!("igt_runner: {status:?}")),
    };
    let mut output = ran.output;
    output.extend(ran.findings);
    let outcome = Outcome::new(runner, verdict, ran.time).output(output);
    results.add(of_guest(outcome, session))?;
    let audit = Audit {
        flavour,
        group: &name,
        results,
    };
    match ran.end {
        End::Crash(why) => {
            audit.skip()?;
            Ok(Guest::Dead(why))
        }
        End::Told(_) => audit.run(session),
    }
}

/// Those subtests of a group that may have failed because the guest was slow.
fn late<'a>(group: &'a Group, report: &'a Report) -> impl Iterator<Item = &'a String> {
    let timed = TIMED.contains(&group.program.as_str());
    group.subtests.iter().filter(move |subtest| {
        let told = report.of(&group.program, subtest);
        timed && told.is_some_and(Told::failed)
    })
}

/// Starts `igt_runner` once, and reads its report. That there is none is no error.
fn start(
    session: &mut Session,
    id: &str,
    group: &Group,
    subtests: &[String],
) -> Result<(session::Outcome, Result<Report, String>)> {
    let argv = command(&group.program, subtests);
    let mut ran = session.run(id, argv, LIMIT, &mut |_| {})?;
    if ran.end != End::Told(Status::Exit(0)) {
        return Ok((ran, Err("igt_runner did not come to its end".to_owned())));
    }
    let file = vec!["/bin/cat".into(), format!("{RESULTS}/results.json")];
    let read = session.run(id, file, LIMIT, &mut |_| {})?;
    ran.findings.extend(read.findings);
    ran.end = read.end;
    let report = Report::parse(&read.output).map_err(|e| format!("{e:#}"));
    Ok((ran, report))
}

/// What starts `igt_runner` in the guest, with a list of these subtests.
fn command(program: &str, subtests: &[String]) -> Vec<String> {
    // After a crash a program may not go on: then each subtest has a process of its own.
    let multiple = match program {
        VERDICTS => "",
        _ => "--multiple-mode",
    };
    let script = format!(
        "printf '%s\\n' \"$@\" >{LIST} && exec {RUNNER} --overwrite {multiple} \
         --log-level verbose --inactivity-timeout {SILENCE} --environment {DRIVER} \
         --test-list {LIST} {TESTS} {RESULTS}"
    );
    let mut argv = ["/bin/sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    argv.extend(subtests.iter().map(|name| format!("igt@{program}@{name}")));
    argv
}

/// The result of a subtest. Where there is no report, it says why.
fn outcome(
    id: String,
    end: &End,
    group: &Group,
    subtest: &str,
    told: Result<Option<&Told>, &String>,
) -> Outcome {
    let wanted = expected::wanted(&group.program, subtest);
    match (told, end) {
        (Ok(Some(told)), _) => {
            Outcome::new(id, told.verdict(wanted), told.time()).output(told.output())
        }
        (_, End::Crash(why)) => Outcome::new(id, Verdict::Crash(why.clone()), Duration::ZERO),
        (Ok(None), _) => {
            let why = "igt_runner tells no result of it".to_owned();
            Outcome::new(id, Verdict::Fail(why), Duration::ZERO)
        }
        (Err(why), _) => Outcome::new(id, Verdict::Fail(why.clone()), Duration::ZERO),
    }
}

/// One that did not pass tells what started its guest.
fn of_guest(outcome: Outcome, session: &Session) -> Outcome {
    match outcome.verdict {
        Verdict::Pass | Verdict::Skip(_) => outcome,
        Verdict::Fail(_) | Verdict::Crash(_) => outcome.command(&session.command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(program: &str) -> Group {
        Group {
            program: program.into(),
            path: format!("/r{TESTS}/{program}").into(),
            subtests: vec!["a".into(), "b".into()],
        }
    }

    #[test]
    fn ids_of_a_plan() {
        let mut chosen = Chosen {
            groups: vec![group("core_auth")],
            ..Chosen::default()
        };
        chosen.plan(Flavour::Debug, Vec::new());
        let expected = [
            "debug-igt/core_auth@a",
            "debug-igt/core_auth@b",
            "debug-igt/core_auth@igt_runner",
            "debug-igt/core_auth@kmemleak",
            "debug-igt/core_auth@checkers",
            "debug-igt/boot@clean",
            "debug-igt/boot@ends",
            "debug-igt/boot@kmemleak",
            "debug-igt/boot@checkers",
        ];
        assert_eq!(chosen.ids(), expected);
        let mut nothing = Chosen::default();
        nothing.plan(Flavour::Release, Vec::new());
        assert!(nothing.ids().is_empty());
    }

    #[test]
    fn a_subtest_without_a_report_fails() {
        let verdict = |end: End, told| {
            let group = group("core_auth");
            outcome("x".into(), &end, &group, "a", told).verdict
        };
        let ended = End::Told(Status::Exit(0));
        let why = "no file".to_owned();
        assert!(matches!(verdict(ended.clone(), Ok(None)), Verdict::Fail(_)));
        let failed = Verdict::Fail(why.clone());
        assert_eq!(verdict(ended, Err(&why)), failed);
        let died = End::Crash("gone".into());
        assert_eq!(verdict(died, Err(&why)), Verdict::Crash("gone".into()));
    }

    #[test]
    fn only_what_crashes_is_run_one_by_one() {
        let subtests = ["a", "b"].map(str::to_owned);
        let script = |program| command(program, &subtests)[2].clone();
        assert!(script("core_auth").contains("--multiple-mode"));
        assert!(!script(VERDICTS).contains("--multiple-mode"));
        let argv = command("core_auth", &subtests);
        assert_eq!(argv[4..], ["igt@core_auth@a", "igt@core_auth@b"]);
    }

    #[test]
    fn what_may_be_late() {
        let told = r#"{"tests": {"igt@sw_sync@a": {"result": "fail"},
            "igt@sw_sync@b": {"result": "warn"}, "igt@syncobj_wait@a": {"result": "pass"},
            "igt@core_auth@a": {"result": "fail"}}}"#;
        let report = Report::parse(&[told.to_owned()]).unwrap();
        let names = |program| late(&group(program), &report).cloned().collect::<Vec<_>>();
        assert_eq!(names("sw_sync"), ["a", "b"]);
        assert!(names("syncobj_wait").is_empty());
        assert!(names("core_auth").is_empty());
    }
}
