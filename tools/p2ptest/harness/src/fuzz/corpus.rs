// SPDX-License-Identifier: GPL-2.0
//! Which sequence comes next: most go on from a part of one that reached something new.

use fastrand::Rng;
use p2p_init::Sequence;

/// One in so many sequences owes nothing to others: what they reach may lead nowhere.
const AFRESH: usize = 4;

/// What came of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
    /// Points of the code that no sequence had reached before.
    pub new: usize,
    /// Points that some sequence has reached.
    pub all: usize,
    /// How many of its steps it took until the last new one.
    pub steps: usize,
}

impl News {
    /// From the line that `p2pfuzz` ends with.
    pub fn of(line: &str) -> Option<Self> {
        let (new, rest) = line.split_once(" of ")?;
        let (all, steps) = rest.split_once(" points are new, the last by step ")?;
        Some(Self {
            new: new.parse().ok()?,
            all: all.parse().ok()?,
            steps: steps.parse().ok()?,
        })
    }
}

/// A sequence that reached something new.
#[derive(Debug)]
struct Entry {
    sequence: Sequence,
    /// How many of its steps that took; at least one.
    steps: usize,
    /// How many sequences went on from it.
    chosen: usize,
}

/// The sequences that reached something new.
#[derive(Debug)]
pub struct Corpus {
    /// Steps of each.
    len: usize,
    entries: Vec<Entry>,
    random: Rng,
}

impl Corpus {
    /// No sequences yet, of `len` steps each; the seed decides among those that come.
    pub fn new(seed: u64, len: usize) -> Self {
        Self {
            len,
            entries: Vec::new(),
            random: Rng::with_seed(seed),
        }
    }

    /// A sequence that ends with `stream`, which none has had before.
    pub fn next(&mut self, stream: u64) -> Sequence {
        let count = self.entries.len();
        if count == 0 || self.random.usize(..AFRESH) == 0 {
            return Sequence::new(stream);
        }
        // Of two the one that was tried less.
        let two = [self.random.usize(..count), self.random.usize(..count)];
        let least = two[usize::from(self.entries[two[1]].chosen < self.entries[two[0]].chosen)];
        let entry = &mut self.entries[least];
        entry.chosen += 1;
        // From where it found something, or to there by another way.
        let steps = match self.random.bool() {
            true => entry.steps,
            false => self.random.usize(1..=entry.steps),
        };
        // A quarter of the steps at least are new.
        let steps = steps.min(self.len - self.len / 4);
        entry.sequence.continued(steps, stream)
    }

    /// Tells what came of a sequence.
    pub fn add(&mut self, sequence: Sequence, news: News) {
        if news.new > 0 && news.steps > 0 {
            self.entries.push(Entry {
                sequence,
                steps: news.steps,
                chosen: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(new: usize, steps: usize) -> News {
        News { new, all: 9, steps }
    }

    #[test]
    fn what_the_program_says() {
        let line = "3 of 4021 points are new, the last by step 77";
        let expected = News {
            new: 3,
            all: 4021,
            steps: 77,
        };
        assert_eq!(News::of(line), Some(expected));
        assert_eq!(News::of("12 of 40 steps worked"), None);
    }

    #[test]
    fn what_reached_nothing_new_is_not_gone_on_from() {
        let mut corpus = Corpus::new(1, 150);
        corpus.add(Sequence::new(0), news(0, 0));
        for stream in 1..100 {
            assert_eq!(corpus.next(stream), Sequence::new(stream));
        }
    }

    #[test]
    fn sequences_go_on_from_those_that_found_something() {
        let mut corpus = Corpus::new(1, 150);
        corpus.add(Sequence::new(0), news(5, 40));
        corpus.add(Sequence::new(1), news(5, 50));
        let mut fresh = 0;
        for stream in 2..402 {
            let sequence = corpus.next(stream);
            let parts: Vec<_> = sequence.streams(150).collect();
            assert_eq!(parts.last(), Some(&(stream, 150)));
            match parts[..] {
                [_] => fresh += 1,
                [(0, end), _] => assert!((1..=40).contains(&end)),
                [(1, end), _] => assert!((1..=50).contains(&end)),
                _ => panic!("{sequence}"),
            }
        }
        assert!((50..150).contains(&fresh), "{fresh}");
        // All are tried.
        let chosen: Vec<_> = corpus.entries.iter().map(|entry| entry.chosen).collect();
        assert!(chosen[0].abs_diff(chosen[1]) < 50, "{chosen:?}");
    }

    #[test]
    fn what_was_found_late_is_left_early() {
        let mut corpus = Corpus::new(1, 100);
        corpus.add(Sequence::new(0), news(5, 100));
        for stream in 1..100 {
            let end = corpus.next(stream).streams(100).next().unwrap().1;
            assert!(end <= 75 || end == 100, "{end}");
        }
    }

    #[test]
    fn a_seed_decides() {
        let all = |seed| {
            let mut corpus = Corpus::new(seed, 150);
            corpus.add(Sequence::new(0), news(5, 40));
            (1..50).map(|s| corpus.next(s)).collect::<Vec<_>>()
        };
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
    }
}
