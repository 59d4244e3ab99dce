// SPDX-License-Identifier: GPL-2.0
//! The states of a slot of the aperture.

use ratatui::style::Color;
use serde::{Deserialize, Serialize};

/// What a slot is used for. In this order: the later one tells more about a group
/// of slots that holds both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Shows nothing
    Free,
    /// Shows a page that no peer holds; CPUs may map it
    Cpu,
    /// Held by peers, who can be told to let go
    Lent,
    /// Held by peers of an object with a reservation
    Reserved,
    /// Held by peers of an object that an importer pins
    Pinned,
    /// No longer its page's, but peers have not let go yet
    Draining,
}

impl State {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Free,
        Self::Cpu,
        Self::Lent,
        Self::Reserved,
        Self::Pinned,
        Self::Draining,
    ];

    /// The character that stands for it in the driver's map and in ours: each is
    /// another one, so that the map needs no colour.
    pub fn symbol(self) -> char {
        match self {
            Self::Free => '.',
            Self::Cpu => 'c',
            Self::Lent => 'L',
            Self::Reserved => 'R',
            Self::Pinned => 'P',
            Self::Draining => 'd',
        }
    }

    /// The state that a character stands for.
    pub fn of_symbol(symbol: char) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.symbol() == symbol)
    }

    /// What it is called, also in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Cpu => "cpu",
            Self::Lent => "lent",
            Self::Reserved => "reserved",
            Self::Pinned => "pinned",
            Self::Draining => "draining",
        }
    }

    /// Its colour: one of those that every colour terminal has.
    pub fn color(self) -> Color {
        match self {
            Self::Free => Color::DarkGray,
            Self::Cpu => Color::Blue,
            Self::Lent => Color::Green,
            Self::Reserved => Color::Yellow,
            Self::Pinned => Color::Magenta,
            Self::Draining => Color::Red,
        }
    }
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; State::ALL.len()]);

impl Counts {
    /// Counts the slots of a map.
    pub fn of(slots: &[State]) -> Self {
        let mut counts = Self::default();
        for &state in slots {
            counts.0[state as usize] += 1;
        }
        counts
    }

    /// Slots in this state.
    pub fn get(&self, state: State) -> u64 {
        self.0[state as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn symbols_tell_the_states_apart() {
        for state in State::ALL {
            assert_eq!(State::of_symbol(state.symbol()), Some(state));
        }
        let symbols: BTreeSet<_> = State::ALL.map(State::symbol).into();
        assert_eq!(symbols.len(), State::ALL.len());
        assert_eq!(State::of_symbol('x'), None);
    }

    #[test]
    fn the_order_is_that_of_the_list() {
        assert!(State::ALL.is_sorted());
        for (index, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
    }

    #[test]
    fn slots_are_counted() {
        let counts = Counts::of(&[State::Lent, State::Free, State::Lent]);
        assert_eq!(counts.get(State::Lent), 2);
        assert_eq!(counts.get(State::Free), 1);
        assert_eq!(counts.get(State::Pinned), 0);
    }
}
