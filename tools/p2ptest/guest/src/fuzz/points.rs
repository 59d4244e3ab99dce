// SPDX-License-Identifier: GPL-2.0
//! Which points of the drivers' code sequences have reached.

use crate::kcov::Kcov;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

/// Points, by their addresses.
#[derive(Debug, Clone, Default)]
pub struct Points(BTreeSet<u64>);

impl Points {
    /// Those that a file has; none if there is no such file.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn load(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self(words(&bytes).collect())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes them to a file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// What a process reaches that nobody has before.
#[derive(Debug)]
pub struct Watch<'a> {
    kcov: Kcov,
    before: &'a Points,
    new: Points,
    /// How many of the steps it took until the last of them.
    steps: usize,
}

impl<'a> Watch<'a> {
    /// Looks at what this thread does from now on.
    ///
    /// # Errors
    ///
    /// Those of [`Kcov::open`].
    pub fn start(before: &'a Points) -> io::Result<Self> {
        Ok(Self {
            kcov: Kcov::open()?,
            before,
            new: Points::default(),
            steps: 0,
        })
    }

    /// The step at `at` is done.
    pub fn step(&mut self, at: usize) {
        for point in self.kcov.take() {
            if !self.before.0.contains(&point) && self.new.0.insert(point) {
                self.steps = at + 1;
            }
        }
    }

    /// Tells the process that started this one, which shares the file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn tell(&self, mut file: &File) -> io::Result<()> {
        file.write_all(&(self.steps as u64).to_le_bytes())?;
        file.write_all(&self.new.bytes())
    }
}

/// What came of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct News {
    /// Points that had not been reached before.
    pub points: usize,
    /// How many of the steps it took until the last of them.
    pub steps: usize,
}

impl News {
    /// Of two processes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            points: self.points + other.points,
            steps: self.steps.max(other.steps),
        }
    }
}

impl Points {
    /// Adds what a process has told.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn add(&mut self, mut told: &File) -> io::Result<News> {
        let mut bytes = Vec::new();
        told.rewind()?;
        told.read_to_end(&mut bytes)?;
        let mut words = words(&bytes);
        let steps = words.next().unwrap_or_default();
        let before = self.len();
        self.0.extend(words);
        Ok(News {
            points: self.len() - before,
            steps: usize::try_from(steps).unwrap_or(usize::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_tell_is_added_up() {
        let mut all = Points([1, 2].into());
        let tell = |steps: u64, points: &[u64]| {
            let file = nix::sys::memfd::memfd_create(c"told", nix::sys::memfd::MFdFlags::empty());
            let mut file = File::from(file.unwrap());
            for word in [&[steps], points].concat() {
                file.write_all(&word.to_le_bytes()).unwrap();
            }
            file
        };
        let news = all.add(&tell(7, &[3, 4])).unwrap();
        assert_eq!((news.points, news.steps), (2, 7));
        // Somebody else has reached one as well.
        let news = all.add(&tell(9, &[4, 5])).unwrap();
        assert_eq!((news.points, news.steps), (1, 9));
        assert_eq!(all.add(&tell(0, &[])).unwrap(), News::default());
        assert_eq!(all.len(), 5);
    }
}
