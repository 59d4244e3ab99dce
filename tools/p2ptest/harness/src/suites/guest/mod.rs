// SPDX-License-Identifier: GPL-2.0
//! The tests that run in a guest, in both aperture modes: "mapped/p2p_gem@subtest"
//! behind a switch, "iommu-mapped/p2p_nic@subtest" in another topology, and
//! "debug-mapped/p2p_gem@subtest" on the debug kernel. A guest that dies takes one
//! test with it; the others go on in a fresh one.

mod run;
mod verdict;

pub use run::{boot, died_before, jobs, of_findings};

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cargo::Programs;
use crate::context::{Flavour, Mode, Setup, Topology};
use crate::select::Filter;
use crate::stop;
use crate::suites::audit;

/// Naming its subtests takes a program no time.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Guests that do not come up one after another, before the rest is given up.
pub const MAX_DEAD_BOOTS: usize = 2;
/// What runs on the debug kernel in every run, in mapped mode: the programs that
/// map, move and revoke most, and those with subtests that need it.
const DEBUG_PART: [(&str, Topology); 9] = [
    ("p2p_export", Topology::Switch),
    ("p2p_failnth", Topology::Switch),
    ("p2p_failnth_importer", Topology::Switch),
    ("p2p_failnth_nic", Topology::Switch),
    ("p2p_fuzz", Topology::Switch),
    ("p2p_invalidate", Topology::Switch),
    ("p2p_iommu", Topology::Iommu),
    ("p2p_remove", Topology::Switch),
    ("p2p_vma", Topology::Switch),
];
/// What is left out of that: it takes the debug kernel longest, and shows little that the
/// program's other subtests do not, or takes a guest of its own.
const LONG: [(&str, &[&str]); 5] = [
    ("p2p_export", &["scattered-objects-map"]),
    ("p2p_failnth", &["migrate-mapped"]),
    (
        "p2p_failnth_importer",
        &["ask-importer", "map-static", "map-takes-slots", "pin"],
    ),
    ("p2p_failnth_nic", &["register-user"]),
    ("p2p_remove", &["access-never-ends"]),
];
/// The programs that use up guests: several boot one after another, while the others' tests run.
const FIRST: [&str; 1] = ["p2p_remove"];

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

    /// Whether a run has a subtest here. Unless there is only one kernel to test, the
    /// debug kernel has a part of them, and the one that counts lines none.
    fn runs(self, program: &str, subtest: &str, only: Option<Flavour>) -> bool {
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
                    let left_out = |(of, subtests): &(&str, &[&str])| {
                        *of == program && subtests.contains(&subtest)
                    };
                    self.setup.mode == Mode::Mapped
                        && DEBUG_PART.contains(&(program, topology))
                        && !LONG.iter().any(left_out)
                }
                (Flavour::Coverage, None) => false,
            }
    }
}

/// One subtest in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        format!("{}/{}", self.place.name(), self.program())
    }

    fn program(&self) -> Cow<'_, str> {
        let name = self.program.file_name().unwrap_or_default();
        name.to_string_lossy()
    }

    /// Whether its group is one of those that run before others.
    fn comes_first(&self) -> bool {
        FIRST.contains(&&*self.program())
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
            let subtests = lines.iter().map(|line| line.trim());
            let all = subtests
                .filter(|line| !line.is_empty())
                .map(|subtest| Case {
                    place,
                    program: (*program).clone(),
                    subtest: subtest.to_owned(),
                });
            cases.extend(all.filter(|case| place.runs(&case.program(), &case.subtest, only)));
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

/// A boot is a test itself: drivers loaded, nothing in the log.
pub fn clean(boot: &str) -> String {
    format!("{boot}@clean")
}

/// Powering off after the tests is one too.
pub fn ends(boot: &str) -> String {
    format!("{boot}@ends")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn case(place: &str, program: &str, subtest: &str) -> Case {
        Case {
            place: Place::all().find(|p| p.name() == place).unwrap(),
            program: PathBuf::from("/b").join(program),
            subtest: subtest.into(),
        }
    }

    #[test]
    fn a_chosen_test_brings_its_boot() {
        let cases = vec![
            case("mapped", "p2p_gem", "a"),
            case("trapped", "p2p_gem", "a"),
            case("trapped", "p2p_gem", "b"),
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
        let cases = vec![
            case("debug-mapped", "p2p_gem", "a"),
            case("debug-mapped", "p2p_gem", "b"),
        ];
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
            let (program, subtest) = program.split_once('@').unwrap_or((program, "any"));
            let runs = Place::all().filter(|place| place.runs(program, subtest, only));
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
        let long = "p2p_export@scattered-objects-map";
        assert_eq!(places(long, None), places(long, release));
        let debug = ["debug-mapped", "debug-trapped"];
        assert_eq!(places("p2p_gem", Some(Flavour::Debug)), debug);
        assert_eq!(
            places("p2p_remove@access-never-ends", Some(Flavour::Debug)),
            debug
        );
        let coverage = ["coverage-mapped", "coverage-trapped"];
        assert_eq!(places("p2p_gem", Some(Flavour::Coverage)), coverage);
    }
}
