// SPDX-License-Identifier: GPL-2.0

//! The state of a slot, in the form in which there is one for every slot of the aperture.

use super::{
    Class,
    Slot,
    SlotId, //
};

/// No slot: the end of a list. Above any slot, and below 2^29: it fits beside the kind.
pub(super) const NONE: SlotId = (1 << KIND_SHIFT) - 1;

const KIND_SHIFT: u32 = 29;

/// It shows nothing: free or taken, which the map of the free slots knows.
const NOTHING: u32 = 0;
const IDLE: u32 = 1;
const LENT: u32 = 2;
const PROMISED: u32 = 3;
const DRAINING: u32 = 4;

/// A packed [`Slot`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    page: u32,
    /// The kind, and below it the previous slot of the list if it is idle.
    kind_prev: u32,
    /// The next slot of the list if it is idle, else the number of peers.
    next_peers: u32,
}

impl Cell {
    /// A slot that shows nothing.
    pub(super) const EMPTY: Self = Self::new(NOTHING, 0, 0, 0);

    /// Whether the slot shows nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.kind_prev >> KIND_SHIFT == NOTHING
    }

    const fn new(kind: u32, page: u32, prev: SlotId, next_peers: u32) -> Self {
        Self {
            page,
            kind_prev: kind << KIND_SHIFT | (prev & NONE),
            next_peers,
        }
    }
}

impl From<Slot> for Cell {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Free | Slot::Taken => Self::EMPTY,
            Slot::Idle { page, prev, next } => Self::new(IDLE, page, prev, next),
            Slot::Peers { page, peers, class } => {
                let kind = match class {
                    Class::Lent => LENT,
                    Class::Promised => PROMISED,
                };
                Self::new(kind, page, 0, peers)
            }
            Slot::Draining { peers } => Self::new(DRAINING, 0, 0, peers),
        }
    }
}

impl From<Cell> for Slot {
    /// A slot that shows nothing counts as taken.
    fn from(cell: Cell) -> Self {
        let peers = cell.next_peers;
        let held = |class| {
            let page = cell.page;
            Slot::Peers { page, peers, class }
        };
        match cell.kind_prev >> KIND_SHIFT {
            IDLE => Slot::Idle {
                page: cell.page,
                prev: cell.kind_prev & NONE,
                next: cell.next_peers,
            },
            LENT => held(Class::Lent),
            PROMISED => held(Class::Promised),
            DRAINING => Slot::Draining { peers },
            _ => Slot::Taken,
        }
    }
}
