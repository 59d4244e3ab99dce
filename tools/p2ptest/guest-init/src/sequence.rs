// SPDX-License-Identifier: GPL-2.0
//! What the fuzzer's sequences are called: the harness chooses them, the guest makes
//! them, and a person who wants to see one again names it.

use std::fmt;
use std::str::FromStr;

/// A sequence of steps. They are made of one stream of a seed's random numbers, or up to
/// a certain step of one and then of others: `12@40+57` goes on from the first 40 steps
/// of 12 with 57.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Streams and the steps at which the next one goes on, in ascending order.
    before: Vec<(u64, usize)>,
    last: u64,
}

impl Sequence {
    /// All of one stream.
    pub fn new(stream: u64) -> Self {
        Self {
            before: Vec::new(),
            last: stream,
        }
    }

    /// The first `steps` of this one, and then another stream.
    #[must_use]
    pub fn continued(&self, steps: usize, stream: u64) -> Self {
        if steps == 0 {
            return Self::new(stream);
        }
        let (kept, cut): (Vec<_>, Vec<_>) = self.before.iter().partition(|part| part.1 < steps);
        let at = cut.first().map_or(self.last, |(stream, _)| *stream);
        Self {
            before: kept.into_iter().chain([(at, steps)]).collect(),
            last: stream,
        }
    }

    /// The streams, each with the step at which it ends; the last one ends at `len`, and
    /// none later.
    pub fn streams(&self, len: usize) -> impl Iterator<Item = (u64, usize)> {
        let before = self.before.iter();
        let before = before.map(move |(stream, end)| (*stream, len.min(*end)));
        before.chain([(self.last, len)])
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stream, end) in &self.before {
            write!(f, "{stream}@{end}+")?;
        }
        write!(f, "{}", self.last)
    }
}

/// Not the name of a sequence.
#[derive(Debug, PartialEq, Eq)]
pub struct BadSequence;

impl fmt::Display for BadSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected the name of a sequence, as 12 or 12@40+57")
    }
}

impl std::error::Error for BadSequence {}

impl FromStr for Sequence {
    type Err = BadSequence;

    fn from_str(text: &str) -> Result<Self, BadSequence> {
        let number = |text: &str| text.parse().map_err(|_| BadSequence);
        let (before, last) = match text.rsplit_once('+') {
            Some((before, last)) => (before.split('+').collect(), last),
            None => (Vec::new(), text),
        };
        let before: Vec<(u64, usize)> = before
            .into_iter()
            .map(|part| {
                let (stream, end) = part.split_once('@').ok_or(BadSequence)?;
                Ok((number(stream)?, end.parse().map_err(|_| BadSequence)?))
            })
            .collect::<Result<_, _>>()?;
        let ends = before.iter().map(|(_, end)| *end);
        match ends.clone().is_sorted_by(|a, b| a < b) && !ends.clone().any(|end| end == 0) {
            true => Ok(Self {
                before,
                last: number(last)?,
            }),
            false => Err(BadSequence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["12", "12@40+57", "12@1+3@150+0"] {
            assert_eq!(name.parse::<Sequence>().unwrap().to_string(), name);
        }
        for name in [
            "",
            "x",
            "12@40",
            "12+57",
            "12@x+1",
            "1@5+2@5+3",
            "1@0+2",
            "1@9+2@8+3",
            "-1",
        ] {
            assert_eq!(name.parse::<Sequence>(), Err(BadSequence), "{name}");
        }
    }

    #[test]
    fn a_sequence_goes_on_from_a_part_of_another() {
        let start = Sequence::new(1);
        assert_eq!(start.continued(0, 2), Sequence::new(2));
        let two = start.continued(40, 2);
        assert_eq!(two.to_string(), "1@40+2");
        assert_eq!(two.continued(90, 3).to_string(), "1@40+2@90+3");
        assert_eq!(two.continued(41, 3).to_string(), "1@40+2@41+3");
        assert_eq!(two.continued(40, 3).to_string(), "1@40+3");
        assert_eq!(two.continued(12, 3).to_string(), "1@12+3");
    }

    #[test]
    fn streams_end_with_the_steps() {
        let sequence: Sequence = "1@40+2@90+3".parse().unwrap();
        let streams = |len| sequence.streams(len).collect::<Vec<_>>();
        assert_eq!(streams(150), [(1, 40), (2, 90), (3, 150)]);
        assert_eq!(streams(60), [(1, 40), (2, 60), (3, 60)]);
    }
}
