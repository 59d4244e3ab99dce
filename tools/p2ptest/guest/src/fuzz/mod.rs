// SPDX-License-Identifier: GPL-2.0
//! A fuzzer of both drivers' uapi: sequences of ioctls, mappings, PRIME exports and
//! imports, moves and requests, made of the uapi's description ([`table`]) from a seed.
//!
//! A sequence runs in processes of its own, with files of its own, so that its end gives
//! everything back; several processes do it at once with different steps. It fails if a
//! call ends otherwise than the description allows, if something the drivers promise does
//! not hold, or if it leaves something behind. What the kernel's log and the devices say
//! is the harness's to judge.

pub mod generate;
pub mod machine;
mod operations;
pub mod points;
pub mod table;

use crate::debugfs::{Debugfs, Snapshot};
use crate::igt::{Child, Outcome, fork};
use crate::pattern::Pattern;
use generate::{Action, Value};
use machine::Machine;
use nix::sys::memfd::{MFdFlags, memfd_create};
use p2p_init::Sequence;
use points::{News, Points, Watch};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// How long what a sequence held may take to come back. Long, as nobody waits for it
/// unless it is lost.
const SETTLE: Duration = Duration::from_secs(30);

/// Places in a sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(Vec<RangeInclusive<usize>>);

impl Places {
    /// Whether it is one of them.
    pub fn contains(&self, at: usize) -> bool {
        self.0.iter().any(|range| range.contains(&at))
    }
}

/// Not a list of places.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPlaces;

impl fmt::Display for BadPlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected numbers and ranges, as 1,4-7")
    }
}

impl std::error::Error for BadPlaces {}

impl FromStr for Places {
    type Err = BadPlaces;

    fn from_str(text: &str) -> Result<Self, BadPlaces> {
        let number = |text: &str| text.parse().map_err(|_| BadPlaces);
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                Ok(number(first)?..=number(last)?)
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A sequence to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the numbers are made of
    pub seed: u64,
    /// Which of the seed's sequences
    pub sequence: Sequence,
    /// Steps
    pub len: usize,
    /// Processes that each run a sequence of their own at the same time
    pub processes: u64,
    /// Steps that are left out, in all processes
    pub without: Places,
    /// Print each step before it is done
    pub trace: bool,
}

impl Plan {
    /// The steps of a process.
    pub fn steps(&self, process: u64) -> Vec<Action> {
        generate::sequence(self.sequence.streams(self.len).map(|(stream, end)| {
            // Numbers far apart: no two streams of a seed share their steps.
            let number = stream.wrapping_mul(self.processes).wrapping_add(process);
            (Pattern(self.seed).word(number), end)
        }))
    }

    /// Does the steps of a process; `watch` sees what they reach.
    fn run_process(&self, process: u64, watch: &mut Option<Watch<'_>>) -> Result<(), String> {
        let open = Machine::open();
        let mut machine = open.map_err(|error| format!("opening the devices: {error}"))?;
        let (mut worked, mut done) = (0, 0);
        for (at, action) in self.steps(process).iter().enumerate() {
            if self.without.contains(at) {
                continue;
            }
            if self.trace {
                println!("{process}/{at}: {}", Shown(action));
            }
            let ended = machine
                .perform(at, action)
                .and_then(|ended| machine.check().map(|()| ended))
                .map_err(|wrong| format!("step {process}/{at}: {}: {}", wrong.0, Shown(action)))?;
            if let Some(watch) = watch {
                watch.step(at);
            }
            if self.trace {
                println!(
                    "{process}/{at}: {}",
                    ended.map_or_else(|e| e.to_string(), |()| "ok".into())
                );
            }
            done += 1;
            worked += usize::from(ended.is_ok());
        }
        println!("{worked} of {done} steps worked");
        Ok(())
    }

    /// Runs the sequence. What it reaches is added to `reached`, if that is wanted.
    ///
    /// # Errors
    ///
    /// What went wrong; processes have said more.
    pub fn run(&self, debugfs: &Debugfs, reached: Option<&mut Points>) -> Result<News, String> {
        let look = || Snapshot::take(debugfs).map_err(|error| error.to_string());
        let told = (0..self.processes).map(|_| memfd_create(c"told", MFdFlags::empty()));
        let told: Result<Vec<_>, _> = told.map(|file| file.map(File::from)).collect();
        let told = told.map_err(|errno| format!("memfd_create: {errno}"))?;
        let before = look()?;
        let children: Vec<Child> = (0..self.processes)
            .zip(&told)
            .map(|(process, told)| {
                fork(|| {
                    if let Err(why) = self.child(process, reached.as_deref(), told) {
                        println!("{why}");
                        // SAFETY: ends the process.
                        unsafe { nix::libc::_exit(1) }
                    }
                })
            })
            .collect();
        let ends: Vec<Outcome> = children.into_iter().map(Child::outcome).collect();
        if let Some(end) = ends.iter().find(|end| **end != Outcome::Passed) {
            return Err(format!("a process ended: {end:?}"));
        }
        let mut news = News::default();
        if let Some(reached) = reached {
            for file in &told {
                let added = reached.add(file);
                news = news.and(added.map_err(|error| format!("what was reached: {error}"))?);
            }
        }
        before
            .settle(debugfs, SETTLE)
            .map_err(|error| error.to_string())?
            .map_err(|difference| format!("not as it was before: {difference}"))?;
        Ok(news)
    }

    /// Does a process's part, in it, and tells what it reached that was not `known`.
    fn child(&self, process: u64, known: Option<&Points>, told: &File) -> Result<(), String> {
        let failed = |error: io::Error| format!("counting what is reached: {error}");
        let mut watch = known.map(Watch::start).transpose().map_err(failed)?;
        self.run_process(process, &mut watch)?;
        watch
            .map_or(Ok(()), |watch| watch.tell(told))
            .map_err(failed)
    }
}

/// A step as a person reads it.
struct Shown<'a>(&'a Action);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Action::Ioctl {
            call,
            file,
            values,
            memory,
        } = self.0
        else {
            return write!(f, "{:?}", self.0);
        };
        let call = &table::CALLS[*call];
        write!(f, "{} file {}", call.name, file.0)?;
        for (field, value) in call.fields.iter().zip(values) {
            if matches!(field.kind, table::Kind::Out | table::Kind::Made(_)) {
                continue;
            }
            match value {
                Value::Number(number) => write!(f, " {}={number:#x}", field.name)?,
                Value::Step(step) => write!(f, " {}=of step {step}", field.name)?,
            }
        }
        if values.len() > call.fields.len() {
            write!(f, " elements {:?}", &values[call.fields.len()..])?;
        }
        match memory {
            generate::Memory::Good => Ok(()),
            other => write!(f, " at {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64, number: u64) -> Plan {
        Plan {
            seed,
            sequence: Sequence::new(number),
            len: 300,
            processes: 2,
            without: Places::default(),
            trace: false,
        }
    }

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(plan(7, 3).steps(1), plan(7, 3).steps(1));
        assert_ne!(plan(7, 3).steps(1), plan(7, 3).steps(0));
        assert_ne!(plan(7, 3).steps(1), plan(7, 4).steps(0));
        assert_ne!(plan(7, 3).steps(0), plan(8, 3).steps(0));
        assert_eq!(plan(7, 3).steps(0).len(), 300);
    }

    #[test]
    fn a_sequence_goes_on_from_another() {
        let first = plan(7, 3);
        let mut next = plan(7, 0);
        next.sequence = first.sequence.continued(40, 9);
        for process in 0..2 {
            let (old, new) = (first.steps(process), next.steps(process));
            assert_eq!(new.len(), 300);
            assert_eq!(old[..40], new[..40]);
            assert_ne!(old[40..], new[40..]);
            // What comes then works on what is there.
            let names = |action: &Action| format!("{action:?}").contains("Step(");
            assert!(new[40..].iter().any(names));
        }
    }

    #[test]
    fn steps_name_earlier_ones() {
        let whole = (0..50).map(|seed| plan(seed, 0));
        let parts = (0..50).map(|seed| {
            let mut plan = plan(seed, 0);
            plan.sequence = plan.sequence.continued(seed as usize, 1).continued(90, 2);
            plan
        });
        for plan in whole.chain(parts) {
            for (at, action) in plan.steps(0).iter().enumerate() {
                if let Action::Ioctl { values, call, .. } = action {
                    assert!(values.len() >= table::CALLS[*call].fields.len());
                    for value in values {
                        assert!(!matches!(value, Value::Step(step) if *step >= at));
                    }
                }
            }
        }
    }

    #[test]
    fn all_calls_come_up() {
        let mut seen = vec![0; table::CALLS.len()];
        for seed in 0..20 {
            for action in plan(seed, 0).steps(0) {
                if let Action::Ioctl { call, .. } = action {
                    seen[call] += 1;
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }

    #[test]
    fn lists_of_places() {
        let places: Places = "1,4-7".parse().unwrap();
        let found: Vec<_> = (0..10).filter(|at| places.contains(*at)).collect();
        assert_eq!(found, [1, 4, 5, 6, 7]);
        assert_eq!("".parse(), Ok(Places::default()));
        assert_eq!("1,x".parse::<Places>(), Err(BadPlaces));
    }
}
