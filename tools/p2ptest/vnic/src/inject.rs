// SPDX-License-Identifier: GPL-2.0

//! Fault injection: what the operator asked to go wrong, and how many times still.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

/// What can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A payload DMA takes longer, and is in flight meanwhile.
    DelayChunk,
    /// An interrupt is not raised.
    DropInterrupt,
    /// A queue pair's engine does nothing for a while before a chunk, with no DMA in flight.
    Stall,
    /// A payload DMA fails.
    DmaError,
    /// Resets do not end, as long as the rule is in force; its count is not used up.
    HangReset,
}

/// Kinds of rules.
const KINDS: usize = What::HangReset as usize + 1;

/// Longest delay: an operator's slip must not look like a hang.
const MAX_DELAY: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    left: u64,
    delay: Duration,
}

/// The rules in force, one for each kind.
#[derive(Debug, Default)]
pub struct Injector(Mutex<[Rule; KINDS]>);

impl Injector {
    /// Makes the next `count` occasions go wrong; `micros` is the length of a delay, at most a
    /// minute. Replaces the rule in force; a count of 0 ends it.
    pub fn set(&self, what: What, count: u64, micros: u64) {
        let delay = Duration::from_micros(micros).min(MAX_DELAY);
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules[what as usize] = Rule { left: count, delay };
    }

    /// Whether a rule is in force.
    pub(crate) fn holds(&self, what: What) -> bool {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules[what as usize].left > 0
    }

    /// Uses up one occasion: its delay, or `None` when nothing is asked for.
    pub(crate) fn take(&self, what: What) -> Option<Duration> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = &mut rules[what as usize];
        rule.left = rule.left.checked_sub(1)?;
        Some(rule.delay)
    }
}
