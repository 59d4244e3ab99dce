// SPDX-License-Identifier: GPL-2.0

//! The books of the promise: what is promised, lent and draining, all slots together.

use super::{
    Class,
    NoPromise, //
};

/// # Invariants
///
/// `promised + lent + draining <= total`, for callers that do as the methods of
/// [`Slots`](super::Slots) say. `promised <= total`, and `lent <= held`, for all.
#[derive(Clone)]
pub(super) struct Promises {
    total: u32,
    /// Pages of the promised objects.
    pub(super) promised: u32,
    /// Slots that peers hold.
    pub(super) held: u32,
    /// Those of them that are lent.
    pub(super) lent: u32,
    pub(super) draining: u32,
}

impl Promises {
    pub(super) fn new(total: u32) -> Self {
        Self {
            total,
            promised: 0,
            held: 0,
            lent: 0,
            draining: 0,
        }
    }

    /// Slots that are not promised, lent or draining.
    pub(super) fn unpromised(&self) -> u32 {
        [self.promised, self.lent, self.draining]
            .into_iter()
            .fold(self.total, u32::saturating_sub)
    }

    pub(super) fn promise(&mut self, pages: u32) -> Result<(), NoPromise> {
        let promised = self
            .promised
            .checked_add(pages)
            .filter(|&promised| promised <= self.total)
            .ok_or(NoPromise::TooMuch)?;
        let short = pages.saturating_sub(self.unpromised());
        if short != 0 {
            return Err(NoPromise::InTheWay(short));
        }
        self.promised = promised;
        Ok(())
    }

    pub(super) fn unpromise(&mut self, pages: u32) {
        self.promised = self.promised.saturating_sub(pages);
    }

    /// Peers hold a slot that they did not.
    pub(super) fn hold(&mut self, class: Class) {
        self.held += 1;
        if class == Class::Lent {
            self.lent += 1;
        }
    }

    /// Peers no longer hold a slot.
    pub(super) fn unhold(&mut self, class: Class) {
        self.held -= 1;
        if class == Class::Lent {
            self.lent -= 1;
        }
    }
}
