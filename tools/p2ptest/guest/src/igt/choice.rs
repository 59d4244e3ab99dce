// SPDX-License-Identifier: GPL-2.0
//! Which subtests `--run-subtest` asks for.

use glob::{Pattern, PatternError};
use std::str::FromStr;

/// Globs, separated by commas. The last one that a name matches decides: if it starts
/// with `!`, the subtest does not run. `igt_runner` goes on in this way after a subtest
/// that it had to kill: `*,!one,!two`.
#[derive(Debug, Clone)]
pub struct Choice(Vec<(bool, Pattern)>);

impl FromStr for Choice {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let rules = text.split(',').map(|rule| {
            let (takes, glob) = match rule.strip_prefix('!') {
                Some(glob) => (false, glob),
                None => (true, rule),
            };
            Ok((takes, Pattern::new(glob)?))
        });
        rules.collect::<Result<_, _>>().map(Self)
    }
}

impl Choice {
    /// Whether the subtest of this name is to run.
    pub fn takes(&self, name: &str) -> bool {
        let last = self.0.iter().rfind(|(_, glob)| glob.matches(name));
        last.is_some_and(|(takes, _)| *takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(choice: &str) -> Vec<&'static str> {
        let choice: Choice = choice.parse().unwrap();
        let names = ["one", "two", "two-more"].into_iter();
        names.filter(|name| choice.takes(name)).collect()
    }

    #[test]
    fn the_last_match_decides() {
        assert_eq!(taken("two"), ["two"]);
        assert_eq!(taken("two*"), ["two", "two-more"]);
        assert_eq!(taken("one,two"), ["one", "two"]);
        assert_eq!(taken("*,!two"), ["one", "two-more"]);
        assert_eq!(taken("*,!two*,two-more"), ["one", "two-more"]);
        assert!(taken("!one").is_empty());
        assert!(taken("").is_empty());
    }

    #[test]
    fn malformed_globs_are_refused() {
        assert!("[".parse::<Choice>().is_err());
    }
}
