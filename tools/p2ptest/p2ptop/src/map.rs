// SPDX-License-Identifier: GPL-2.0
//! The aperture scaled to the room that there is: a cell stands for one slot or
//! for a group of adjacent ones.

use crate::state::State;

/// What a cell shows of its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The most telling state of the group, the last in the order of [`State`]
    pub state: State,
    /// Whether all slots of the group are in that state
    pub whole: bool,
}

/// A map: rows of cells, from slot 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Slots of a cell, a power of two; the last cell may have fewer
    pub group: usize,
    /// Cells of a row; the last row may have fewer
    pub width: usize,
    /// In the order of the slots
    pub cells: Vec<Cell>,
}

/// Scales an aperture to at most `rows` rows of at most `width` cells: to as many
/// as possible. Rows are a power of two long, so that they begin at round numbers.
/// There is at least room for one cell.
pub fn scale(slots: &[State], width: usize, rows: usize) -> Map {
    let width = floor_power(width.max(1));
    let room = width.saturating_mul(rows.max(1));
    let group = slots.len().div_ceil(room).max(1).next_power_of_two();
    let cells = slots.chunks(group).map(cell).collect();
    Map {
        group,
        width,
        cells,
    }
}

/// The largest power of two that is not larger.
fn floor_power(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

fn cell(group: &[State]) -> Cell {
    let state = group.iter().copied().max().unwrap_or(State::Free);
    Cell {
        state,
        whole: group.iter().all(|&other| other == state),
    }
}

impl Map {
    /// The rows, each with its first slot.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &[Cell])> {
        let step = self.width.saturating_mul(self.group);
        (0..).step_by(step).zip(self.cells.chunks(self.width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cell_a_slot_where_there_is_room() {
        let map = scale(&State::ALL, 80, 10);
        assert_eq!((map.group, map.width), (1, 64));
        let states: Vec<_> = map.cells.iter().map(|cell| cell.state).collect();
        assert_eq!(states, State::ALL);
        assert!(map.cells.iter().all(|cell| cell.whole));
    }

    #[test]
    fn a_group_shows_what_tells_most() {
        let mut slots = vec![State::Free; 4096];
        slots[17] = State::Draining;
        slots[16] = State::Pinned;
        slots[64..72].fill(State::Cpu);
        let map = scale(&slots, 79, 8);
        assert_eq!((map.group, map.width, map.cells.len()), (8, 64, 512));
        let cell = |state, whole| Cell { state, whole };
        assert_eq!(map.cells[2], cell(State::Draining, false));
        assert_eq!(map.cells[8], cell(State::Cpu, true));
        assert_eq!(map.cells[9], cell(State::Free, true));
        let starts: Vec<_> = map.rows().map(|(first, _)| first).collect();
        assert_eq!(starts, [0, 512, 1024, 1536, 2048, 2560, 3072, 3584]);
    }

    #[test]
    fn no_room_is_one_cell() {
        let map = scale(&State::ALL, 0, 0);
        assert_eq!(map.cells.len(), 1);
        assert_eq!(map.cells[0].state, State::Draining);
        assert!(scale(&[], 10, 10).cells.is_empty());
    }

    proptest! {
        /// Every slot is in a cell that shows its state or one that tells more, and
        /// nothing is shown that no slot of the group is.
        #[test]
        fn no_state_is_lost(
            slots in prop::collection::vec(prop::sample::select(&State::ALL[..]), 1..3_000),
            width in 0usize..200,
            rows in 0usize..40,
        ) {
            let map = scale(&slots, width, rows);
            prop_assert!(map.width <= width.max(1));
            prop_assert!(map.cells.len() <= map.width * rows.max(1));
            prop_assert_eq!(map.cells.len(), slots.len().div_ceil(map.group));
            for (index, &state) in slots.iter().enumerate() {
                let cell = map.cells[index / map.group];
                prop_assert!(cell.state >= state);
                prop_assert!(!cell.whole || cell.state == state);
            }
            for (cell, group) in map.cells.iter().zip(slots.chunks(map.group)) {
                prop_assert!(group.contains(&cell.state));
                prop_assert_eq!(cell.whole, group.iter().all(|state| *state == group[0]));
            }
            let shown: usize = map.rows().map(|(_, cells)| cells.len()).sum();
            prop_assert_eq!(shown, map.cells.len());
            for (first, cells) in map.rows() {
                prop_assert_eq!(cells[0], map.cells[first / map.group]);
            }
        }

        /// Half as many slots in a cell would not fit.
        #[test]
        fn the_room_is_used(count in 1usize..10_000, width in 1usize..200, rows in 1usize..40) {
            let map = scale(&vec![State::Free; count], width, rows);
            prop_assert!(map.width * 2 > width);
            prop_assert!(map.group == 1 || count.div_ceil(map.group / 2) > map.width * rows);
        }
    }
}
