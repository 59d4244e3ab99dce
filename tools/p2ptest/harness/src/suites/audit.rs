// SPDX-License-Identifier: GPL-2.0
//! What a kernel is asked after a boot, after each group of tests and at a guest's end, as
//! tests of their own. The debug kernel: "debug-mapped/p2p_export@kmemleak" for what
//! leaked, "@checkers" for whether it could have been caught. The one that counts
//! lines: "coverage-mapped/p2p_export@counters", whether it tells them.
//!
//! kmemleak is sure of a leak when it has seen it in two scans of all memory. After a group
//! it does one: what the group leaked is told after the next one at the latest, or at the
//! guest's end, as "debug-mapped/boot@kmemleak". The report names the process.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use p2p_init::{Look, Status};

use crate::context::Flavour;
use crate::results::{Outcome, Results, Verdict};
use crate::session::{self, End, Session};

/// What the guest is good for afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// For further tests.
    Fit,
    /// A checker has stopped: further tests would miss what it finds.
    Blind,
    /// For nothing, and why.
    Dead(String),
}

/// The ids of a group's audit; none where the kernel has no checkers.
pub fn ids(flavour: Flavour, group: &str) -> Vec<String> {
    match flavour {
        Flavour::Release => Vec::new(),
        Flavour::Debug => vec![leaks(group), checkers(group)],
        Flavour::Coverage => vec![counters(group)],
    }
}

/// The ids of what is asked at the end of the guests of a boot.
pub fn end_ids(flavour: Flavour, boot: &str) -> Vec<String> {
    match flavour {
        Flavour::Release | Flavour::Coverage => Vec::new(),
        Flavour::Debug => vec![leaks(boot)],
    }
}

fn leaks(group: &str) -> String {
    format!("{group}@kmemleak")
}

fn checkers(group: &str) -> String {
    format!("{group}@checkers")
}

fn counters(group: &str) -> String {
    format!("{group}@counters")
}

/// Asks one group's questions, or those of a boot, which is a group as well.
pub struct Audit<'a, W> {
    pub flavour: Flavour,
    pub group: &'a str,
    pub results: &'a Results<W>,
}

impl<W: Write> Audit<'_, W> {
    /// Audits a boot.
    ///
    /// # Errors
    ///
    /// When the user stops the run, or a report cannot be written.
    pub fn boot(&self, session: &mut Session) -> Result<Guest> {
        let (id, outcome, found) = match self.flavour {
            Flavour::Release => return Ok(Guest::Fit),
            Flavour::Debug => (
                checkers(self.group),
                session.checkers()?,
                "a checker has stopped",
            ),
            Flavour::Coverage => (
                counters(self.group),
                session.count()?,
                "its counters cannot be read",
            ),
        };
        self.add(session, id, found, outcome)
    }

    /// Audits a group that has just run. What is told of leaks is forgotten, so that it is
    /// told once.
    ///
    /// # Errors
    ///
    /// As for [`Audit::boot`].
    pub fn run(&self, session: &mut Session) -> Result<Guest> {
        match self.find_leaks(session, Look::Glance)? {
            Guest::Dead(why) => Ok(Guest::Dead(why)),
            Guest::Fit | Guest::Blind => self.boot(session),
        }
    }

    /// Audits a guest for the last time, and powers it off: what was found in that, or why
    /// there is nothing left to power off. The group is the guest's boot.
    ///
    /// # Errors
    ///
    /// As for [`Audit::boot`].
    pub fn end(&self, mut session: Session, guest: Guest) -> Result<Result<Vec<String>, String>> {
        let guest = match guest {
            Guest::Dead(_) => guest,
            Guest::Fit | Guest::Blind => self.find_leaks(&mut session, Look::Thorough)?,
        };
        match guest {
            Guest::Dead(why) => Ok(Err(why)),
            Guest::Fit | Guest::Blind => session.power_off().map(Ok),
        }
    }

    /// What a group whose guest died gets.
    ///
    /// # Errors
    ///
    /// When a report cannot be written.
    pub fn skip(&self) -> Result<()> {
        for id in ids(self.flavour, self.group) {
            let why = "the group's guest died before".to_owned();
            self.results
                .add(Outcome::new(id, Verdict::Skip(why), Duration::ZERO))?;
        }
        Ok(())
    }

    fn find_leaks(&self, session: &mut Session, look: Look) -> Result<Guest> {
        match self.flavour {
            Flavour::Release | Flavour::Coverage => Ok(Guest::Fit),
            Flavour::Debug => {
                let outcome = session.leaks(look)?;
                self.add(session, leaks(self.group), "memory leaked", outcome)
            }
        }
    }

    fn add(
        &self,
        session: &Session,
        id: String,
        found: &str,
        outcome: session::Outcome,
    ) -> Result<Guest> {
        let (verdict, guest) = judge(&outcome, found);
        let mut output = outcome.output;
        output.extend(outcome.findings);
        let result = Outcome::new(id, verdict, outcome.time).output(output);
        self.results.add(match result.verdict {
            Verdict::Pass => result,
            _ => result.command(&session.command),
        })?;
        Ok(guest)
    }
}

fn judge(outcome: &session::Outcome, found: &str) -> (Verdict, Guest) {
    let status = match &outcome.end {
        End::Crash(why) => return (Verdict::Crash(why.clone()), Guest::Dead(why.clone())),
        End::Told(status) => status,
    };
    // Whether leaks leave the guest fit, the other question tells.
    let guest = match status {
        Status::Exit(0) => Guest::Fit,
        _ => Guest::Blind,
    };
    let verdict = match (status, outcome.findings.first()) {
        (_, Some(finding)) => Verdict::Fail(format!("kernel log or device: {finding}")),
        (Status::Exit(0), None) => Verdict::Pass,
        (Status::Exit(_), None) => Verdict::Fail(found.to_owned()),
        (other, None) => Verdict::Fail(format!("the guest cannot tell: {other:?}")),
    };
    (verdict, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End, findings: &[&str]) -> session::Outcome {
        session::Outcome {
            end,
            output: Vec::new(),
            findings: findings.iter().map(|s| (*s).to_owned()).collect(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts() {
        let told = |status| judge(&outcome(End::Told(status), &[]), "leaked");
        assert_eq!(told(Status::Exit(0)), (Verdict::Pass, Guest::Fit));
        let failed = Verdict::Fail("leaked".into());
        assert_eq!(told(Status::Exit(1)), (failed, Guest::Blind));
        let (verdict, guest) = told(Status::Failed("no kmemleak".into()));
        assert!(matches!(verdict, Verdict::Fail(why) if why.contains("no kmemleak")));
        assert_eq!(guest, Guest::Blind);

        let warned = outcome(End::Told(Status::Exit(0)), &["WARNING: x"]);
        assert!(matches!(judge(&warned, "").0, Verdict::Fail(_)));
        let died = outcome(End::Crash("gone".into()), &[]);
        let expected = (Verdict::Crash("gone".into()), Guest::Dead("gone".into()));
        assert_eq!(judge(&died, ""), expected);
    }

    #[test]
    fn who_is_asked_what() {
        assert!(ids(Flavour::Release, "mapped/boot").is_empty());
        let ids = ids(Flavour::Debug, "debug-mapped/boot");
        assert_eq!(
            ids,
            ["debug-mapped/boot@kmemleak", "debug-mapped/boot@checkers"]
        );
        let ids = super::ids(Flavour::Coverage, "coverage-mapped/boot");
        assert_eq!(ids, ["coverage-mapped/boot@counters"]);
    }
}
