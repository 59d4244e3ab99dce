// SPDX-License-Identifier: GPL-2.0

//! Fault injection: what the next commands or interrupts of a ring, or resets, are to suffer.

use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;

use crate::regs::{RINGS, VECTORS};
use crate::sync::lock;

/// Rules that may wait at a time.
const MAX_RULES: usize = 64;
/// Longest delay, so that a mistyped one does not look like a stall.
const MAX_DELAY_MS: u64 = 600_000;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A command begins `ms` later.
    Delay,
    /// A command rests `ms` at each chunk boundary.
    Slow,
    /// A command fails with INJECTED.
    Error,
    /// A command never ends: until the ring is stopped, or the rules are cleared.
    Stall,
    /// An interrupt is not raised.
    DropInterrupt,
    /// Resets do not end: until the rules are cleared, or the machine goes off.
    HangReset,
}

/// A rule as the control socket and the command line take it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What happens.
    pub what: What,
    /// The ring whose commands suffer.
    #[serde(default)]
    pub ring: usize,
    /// For `drop-interrupt`: the vector, instead of the ring's own.
    pub vector: Option<usize>,
    /// Commands (or interrupts) that suffer.
    #[serde(default = "one")]
    pub count: u32,
    /// Commands (or interrupts) that pass before.
    #[serde(default)]
    pub after: u32,
    /// Milliseconds, for `delay` and `slow`.
    #[serde(default)]
    pub ms: u64,
}

fn one() -> u32 {
    1
}

/// Why a rule is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// No such ring.
    #[error("ring must be below {RINGS}")]
    Ring,
    /// No such vector, or not for this rule.
    #[error("vector goes with drop-interrupt and must be below {VECTORS}")]
    Vector,
    /// Nothing would happen.
    #[error("count must not be 0")]
    Count,
    /// Missing, too long, or not for this rule.
    #[error("ms goes with delay and slow, from 1 to {MAX_DELAY_MS}")]
    Milliseconds,
    /// Too many wait.
    #[error("{MAX_RULES} rules wait already")]
    Full,
}

/// What one command is to suffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Wait before it begins.
    pub delay: Option<Duration>,
    /// Wait at each chunk boundary.
    pub slow: Option<Duration>,
    /// Fail.
    pub error: bool,
    /// Never end.
    pub stall: bool,
}

/// The rules that wait.
#[derive(Debug, Default)]
pub struct Injections(Mutex<Vec<Rule>>);

impl Injections {
    /// Adds a rule.
    pub fn add(&self, rule: Rule) -> Result<(), RuleError> {
        let timed = matches!(rule.what, What::Delay | What::Slow);
        if rule.ring >= RINGS {
            return Err(RuleError::Ring);
        }
        if rule
            .vector
            .is_some_and(|v| v >= VECTORS || rule.what != What::DropInterrupt)
        {
            return Err(RuleError::Vector);
        }
        if rule.count == 0 {
            return Err(RuleError::Count);
        }
        if timed != (1..=MAX_DELAY_MS).contains(&rule.ms) || (!timed && rule.ms != 0) {
            return Err(RuleError::Milliseconds);
        }
        let mut rules = lock(&self.0);
        if rules.len() == MAX_RULES {
            return Err(RuleError::Full);
        }
        rules.push(rule);
        Ok(())
    }

    /// Drops all rules.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Drops the rules about resets.
    pub fn clear_resets(&self) {
        lock(&self.0).retain(|rule| rule.what != What::HangReset);
    }

    /// Whether no reset ends for now.
    pub fn hang_resets(&self) -> bool {
        lock(&self.0)
            .iter()
            .any(|rule| rule.what == What::HangReset)
    }

    /// Rules that wait.
    pub fn waiting(&self) -> usize {
        lock(&self.0).len()
    }

    /// A command of `ring` begins: what it suffers.
    pub fn command(&self, ring: usize) -> Plan {
        let mut plan = Plan::default();
        self.spend(
            |rule| !matches!(rule.what, What::DropInterrupt | What::HangReset) && rule.ring == ring,
            |rule| {
                let pause = Duration::from_millis(rule.ms);
                match rule.what {
                    What::Delay => plan.delay = Some(pause),
                    What::Slow => plan.slow = Some(pause),
                    What::Error => plan.error = true,
                    What::Stall => plan.stall = true,
                    What::DropInterrupt | What::HangReset => {}
                }
            },
        );
        plan
    }

    /// An interrupt is about to be raised: whether it is dropped.
    pub fn interrupt(&self, vector: u16) -> bool {
        let mut drop = false;
        self.spend(
            |rule| {
                rule.what == What::DropInterrupt
                    && rule.vector.unwrap_or(rule.ring) == usize::from(vector)
            },
            |_| drop = true,
        );
        drop
    }

    fn spend(&self, meant: impl Fn(&Rule) -> bool, mut apply: impl FnMut(&Rule)) {
        lock(&self.0).retain_mut(|rule| {
            if !meant(rule) {
                return true;
            }
            if rule.after > 0 {
                rule.after -= 1;
                return true;
            }
            apply(rule);
            rule.count -= 1;
            rule.count > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: &str) -> Rule {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_rule_passes_some_hits_some_and_goes() {
        let rules = Injections::default();
        rules
            .add(rule(r#"{"what":"error","ring":1,"after":1,"count":2}"#))
            .unwrap();
        let hits: Vec<bool> = (0..5).map(|_| rules.command(1).error).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(rules.waiting(), 0);
    }

    #[test]
    fn rings_and_interrupts_are_kept_apart() {
        let rules = Injections::default();
        rules.add(rule(r#"{"what":"stall","ring":1}"#)).unwrap();
        rules
            .add(rule(r#"{"what":"drop-interrupt","vector":2}"#))
            .unwrap();
        assert_eq!(rules.command(0), Plan::default());
        assert!(!rules.interrupt(0));
        assert!(rules.interrupt(2));
        assert!(!rules.interrupt(2));
        assert!(rules.command(1).stall);
    }

    #[test]
    fn senseless_rules_are_refused() {
        let rules = Injections::default();
        let add = |json: &str| rules.add(rule(json)).unwrap_err();
        assert_eq!(add(r#"{"what":"error","ring":2}"#), RuleError::Ring);
        assert_eq!(add(r#"{"what":"error","vector":1}"#), RuleError::Vector);
        assert_eq!(
            add(r#"{"what":"drop-interrupt","vector":3}"#),
            RuleError::Vector
        );
        assert_eq!(add(r#"{"what":"error","count":0}"#), RuleError::Count);
        assert_eq!(add(r#"{"what":"delay"}"#), RuleError::Milliseconds);
        assert_eq!(add(r#"{"what":"error","ms":5}"#), RuleError::Milliseconds);
        for _ in 0..MAX_RULES {
            rules.add(rule(r#"{"what":"error"}"#)).unwrap();
        }
        assert_eq!(add(r#"{"what":"error"}"#), RuleError::Full);
    }
}
