// SPDX-License-Identifier: GPL-2.0
//! Runs the cases of one kernel. Each place has a guest of its own, and more of them where
//! it still has groups to run when others have nothing left.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use p2p_init::CYCLES_PARAMETER;

use super::{Case, MAX_DEAD_BOOTS, Place, clean, ends, verdict};
use crate::context::{Flavour, Setup};
use crate::initrd::in_guest;
use crate::pool::Job;
use crate::results::{Outcome, Results, Verdict};
use crate::session::{Parts, Session};
use crate::stop;
use crate::suites::audit::{self, Audit, Guest};

/// A subtest may take so long; its guest may be slow and shared with others.
const LIMIT: Duration = Duration::from_secs(300);

/// Cases that share a program and are audited together; those that have run are gone.
type Group<'a> = VecDeque<&'a Case>;

/// What is to be done in a place.
struct Work<'a> {
    place: Place,
    state: Mutex<State<'a>>,
}

struct State<'a> {
    /// Those that no worker has taken.
    groups: VecDeque<Group<'a>>,
    /// Workers that are at it.
    active: usize,
    boots: usize,
    /// How guests ended that powered off; nothing if none has.
    ends: Option<Ends>,
}

struct Ends {
    findings: Vec<String>,
    /// The command of the last one that had some, or else of any.
    command: String,
}

impl<'a> Work<'a> {
    fn new(place: Place, cases: impl Iterator<Item = &'a Case>) -> Self {
        let cases: Vec<_> = cases.filter(|case| case.place == place).collect();
        let groups = cases.chunk_by(|a, b| a.group() == b.group());
        let mut groups: Vec<Group<'_>> = groups
            .map(|group| group.iter().copied().collect())
            .collect();
        groups.sort_by_key(|group| !group.front().is_some_and(|case| case.comes_first()));
        let state = State {
            groups: groups.into(),
            active: 0,
            boots: 0,
            ends: None,
        };
        Self {
            place,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker in and gives it a group, unless all are taken; a boot is wanted even
    /// if there is none.
    fn enter(&self) -> Option<Group<'a>> {
        let mut state = self.lock();
        let group = state.groups.pop_front();
        if group.is_none() && (state.active > 0 || state.boots > 0) {
            return None;
        }
        state.active += 1;
        Some(group.unwrap_or_default())
    }

    /// Another group for a worker that has none left.
    fn refill(&self, group: &mut Group<'a>) -> bool {
        if group.is_empty() {
            *group = self.lock().groups.pop_front().unwrap_or_default();
        }
        !group.is_empty()
    }

    /// What the files of the next boot are called.
    fn next_boot(&self) -> String {
        let mut state = self.lock();
        state.boots += 1;
        format!("{}-{}", self.place.name(), state.boots)
    }

    /// Keeps how a guest ended that powered off.
    fn powered_off(&self, findings: Vec<String>, command: String) {
        let mut state = self.lock();
        match &mut state.ends {
            None => state.ends = Some(Ends { findings, command }),
            Some(_) if findings.is_empty() => {}
            Some(ends) => {
                ends.findings.extend(findings);
                ends.command = command;
            }
        }
    }

    /// Lets a worker go. The last one tells how the guests ended.
    fn leave(&self) -> Vec<Outcome> {
        let mut state = self.lock();
        state.active -= 1;
        if state.active > 0 || !state.groups.is_empty() {
            return Vec::new();
        }
        let Some(ends) = state.ends.take() else {
            return died_before(self.place.flavour, &self.place.boot());
        };
        let verdict = of_findings(&ends.findings);
        let end = Outcome::new(self.place.end_id(), verdict, Duration::ZERO);
        vec![end.command(&ends.command)]
    }

    /// Takes all that is left, as no guest comes up.
    fn drain(&self) -> Vec<&'a Case> {
        self.lock().groups.drain(..).flatten().collect()
    }
}

/// The jobs that run the chosen cases of one kernel: those that come first start a guest
/// for each place, the others help where cases are left.
pub fn jobs<'a, W: Write + Send>(
    parts: &'a Parts<'a>,
    cases: &'a [Case],
    results: &'a Results<W>,
) -> impl Iterator<Item = Job<'a>> {
    let places: Vec<_> = Place::all()
        .filter(|place| place.flavour == parts.flavour && results.wants(&place.boot_id()))
        .map(|place| Arc::new(Work::new(place, cases.iter())))
        .collect();
    let guests = parts.ctx.guests(parts.flavour);
    let workers = (0..guests).flat_map(move |_| places.clone());
    workers.map(move |work| Box::new(move || run(parts, &work, results)) as Job<'a>)
}

/// Runs groups of a place as long as there are some.
fn run<W: Write>(parts: &Parts<'_>, work: &Work<'_>, results: &Results<W>) -> Result<()> {
    let Some(mut left) = work.enter() else {
        return Ok(());
    };
    let place = work.place;
    let mut dead = 0;
    loop {
        let name = work.next_boot();
        let booted = boot(parts, place.setup, &place.boot(), &name, results)?;
        let (mut session, guest) = match booted {
            Ok(booted) => booted,
            Err(why) => {
                dead += 1;
                if dead < MAX_DEAD_BOOTS {
                    continue;
                }
                left.extend(work.drain());
                give_up(place, &left, &why, results)?;
                break;
            }
        };
        dead = 0;
        let sighted = guest == Guest::Fit;
        let mut guest = Guest::Fit;
        while guest == Guest::Fit && !session.retired && work.refill(&mut left) {
            guest = run_group(&mut session, place, &mut left, results)?;
            if guest == Guest::Blind && !sighted {
                // A fresh guest would see no more.
                guest = Guest::Fit;
            }
        }
        let command = session.command.clone();
        let audit = Audit {
            flavour: place.flavour,
            group: &place.boot(),
            results,
        };
        if let Ok(findings) = audit.end(session, guest)? {
            work.powered_off(findings, command);
        }
        if !work.refill(&mut left) {
            break;
        }
    }
    work.leave()
        .into_iter()
        .try_for_each(|end| results.add(end))
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
    let cycles = parts.ctx.cycles.unwrap_or(parts.flavour.cycles());
    let parameters = format!("kunit.enable=0 {CYCLES_PARAMETER}={cycles}");
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
    let audit = Audit {
        flavour: parts.flavour,
        group,
        results,
    };
    match audit.boot(&mut session)? {
        Guest::Dead(why) => Ok(Err(why)),
        guest => Ok(Ok((session, guest))),
    }
}

/// What there is to tell of the end of guests that all died.
pub fn died_before(flavour: Flavour, boot: &str) -> Vec<Outcome> {
    let skip = |id| {
        let why = "the last test's guest died before".to_owned();
        Outcome::new(id, Verdict::Skip(why), Duration::ZERO)
    };
    let mut ids = vec![ends(boot)];
    ids.extend(audit::end_ids(flavour, boot));
    ids.into_iter().map(skip).collect()
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
    left: &Group<'_>,
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

/// Runs the cases of a group until one of them ends the guest, and audits it.
fn run_group<W: Write>(
    session: &mut Session,
    place: Place,
    left: &mut Group<'_>,
    results: &Results<W>,
) -> Result<Guest> {
    let group = left.front().map(|case| case.group()).unwrap_or_default();
    let audit = Audit {
        flavour: place.flavour,
        group: &group,
        results,
    };
    while let Some(case) = left.pop_front() {
        let outcome = run_case(session, case)?;
        let died = match &outcome.verdict {
            Verdict::Crash(why) => Some(why.clone()),
            _ => None,
        };
        results.add(outcome)?;
        if let Some(why) = died {
            // The rest of the group is audited in another guest.
            if left.is_empty() {
                audit.skip()?;
            }
            return Ok(Guest::Dead(why));
        }
        if session.retired && !left.is_empty() {
            // As above.
            return Ok(Guest::Fit);
        }
    }
    audit.run(session)
}

fn run_case(session: &mut Session, case: &Case) -> Result<Outcome> {
    let id = case.id();
    let argv = vec![
        in_guest(&case.program),
        "--run-subtest".into(),
        case.subtest.clone(),
    ];
    let processors = session.processors.clone();
    let outcome = processors.beside_others(|| session.run(&id, argv, LIMIT, &mut |_| {}))?;
    let verdict = verdict::of(&outcome, &case.subtest);
    let mut output = outcome.output;
    output.extend(outcome.findings);
    let result = Outcome::new(id, verdict, outcome.time).output(output);
    Ok(match result.verdict {
        Verdict::Pass | Verdict::Skip(_) => result,
        Verdict::Fail(_) | Verdict::Crash(_) => result.command(&session.command),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::case;
    use super::*;

    fn work(cases: &[Case]) -> Work<'_> {
        Work::new(cases[0].place, cases.iter())
    }

    #[test]
    fn workers_share_the_groups() {
        let cases = ["b", "c", "p2p_remove"].map(|program| case("mapped", program, "x"));
        let elsewhere = case("trapped", "a", "x");
        let cases = [&cases[..], &[elsewhere]].concat();
        let work = work(&cases);
        let mut first = work.enter().unwrap();
        let mut second = work.enter().unwrap();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert!(work.refill(&mut first));
        assert_eq!(first.pop_front().unwrap().group(), "mapped/p2p_remove");
        assert!(work.refill(&mut first));
        assert_eq!(first.pop_front().unwrap().group(), "mapped/c");
        assert!(!work.refill(&mut first));
        assert!(work.enter().is_none());
        // The second one is still at it.
        work.powered_off(vec!["found".into()], "one".into());
        assert!(work.leave().is_empty());
        second.clear();
        work.powered_off(Vec::new(), "two".into());
        let told = work.leave();
        let [end] = &told[..] else { panic!("{told:?}") };
        assert_eq!(end.id, "mapped/boot@ends");
        assert_eq!(end.verdict, Verdict::Fail("found".into()));
        assert_eq!(end.command.as_deref(), Some("one"));
        // Who comes late finds it done.
        let _ = work.next_boot();
        assert!(work.enter().is_none());
    }

    #[test]
    fn a_boot_alone_is_done_once() {
        let nothing = Work::new(case("debug-mapped", "a", "x").place, [].iter());
        assert_eq!(nothing.enter(), Some(Group::new()));
        assert!(nothing.enter().is_none());
        assert_eq!(nothing.next_boot(), "debug-mapped-1");
        let told = nothing.leave();
        let ids: Vec<_> = told.iter().map(|end| &end.id[..]).collect();
        assert_eq!(
            ids,
            ["debug-mapped/boot@ends", "debug-mapped/boot@kmemleak"]
        );
        assert!(
            told.iter()
                .all(|end| matches!(end.verdict, Verdict::Skip(_)))
        );
        assert!(nothing.enter().is_none());
    }
}
