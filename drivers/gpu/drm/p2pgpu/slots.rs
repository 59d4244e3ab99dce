// SPDX-License-Identifier: GPL-2.0

//! Who has which slot of the aperture: a state machine without hardware and without locks.
//!
//! ```text
//!            take, take_run            install              hold
//!   Free ──────────────────► Taken ─────────────► Idle ◄──────────► Peers
//!    ▲                        │ ▲                  │       unhold     │ release
//!    └────────────────────────┘ └──────────────────┘                  ▼
//!              give_back          take, release              Draining
//!                               ▲                                │ unhold of the last peer
//!                               └────────────────────────────────┘
//! ```
//!
//! A slot is *taken* while its page-table entry changes; whoever took it installs a page, or gives
//! it back after the old translation is flushed. An *idle* slot shows a page that no peer holds
//! (CPUs may map it); it can be taken from its page at any time, the coldest first. A *draining*
//! slot no longer belongs to its page, but peers may still use it.
//!
//! Slots can be *promised*: an object that is reserved or pinned is promised as many as it has
//! pages. Slots that peers of other objects hold are *lent*: their peers can be told to let go.
//! All that is promised, lent or draining fits in the aperture together, so that a promised object
//! can always be shown from free and idle slots: nobody has to be asked or waited for.
//!
//! Pages are named by a number that is unique in the device: the place of the page in the offset
//! space of its CPU mappings. This file is compiled on the host too, for property tests.

use core::ops::DerefMut;

/// Number of a slot, from 0.
pub(crate) type SlotId = u32;

/// Name of a page.
pub(crate) type PageName = u32;

/// No slot: the end of a list.
const NONE: SlotId = u32::MAX;

/// What a slot that peers hold counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Of an object that is not promised: its peers can be told to let go.
    Lent,
    /// Of an object that is promised: part of its promise.
    Promised,
}

/// The state of one slot. A slot of a list holds its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Free {
        prev: SlotId,
        next: SlotId,
    },
    Taken,
    Idle {
        page: PageName,
        prev: SlotId,
        next: SlotId,
    },
    Peers {
        page: PageName,
        peers: u32,
        class: Class,
    },
    Draining {
        peers: u32,
    },
}

const _: () = assert!(core::mem::size_of::<Slot>() == 16);

/// A doubly linked list through the slots: of the free ones, or of the idle ones, coldest first.
#[derive(Clone, Copy)]
struct List {
    head: SlotId,
    tail: SlotId,
    len: u32,
}

impl List {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        len: 0,
    };
}

/// How many slots are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) free: u32,
    pub(crate) idle: u32,
    /// Slots that peers hold, lent or promised.
    pub(crate) held: u32,
    /// Those of them that are lent.
    pub(crate) lent: u32,
    pub(crate) draining: u32,
    /// Pages of the promised objects, shown or not: no state of a slot.
    pub(crate) promised: u32,
}

/// Why pages cannot be promised slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPromise {
    /// The promises alone do not fit.
    TooMuch,
    /// So many lent or draining slots have to be let go of first.
    InTheWay(u32),
}

/// What a slot that was taken showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// Nothing.
    Free(SlotId),
    /// A page, whose CPU mappings must go before the slot is used.
    Idle(SlotId, PageName),
}

/// What became of a slot that its page or a peer let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// It is the caller's now, who clears its entry and gives it back.
    Taken,
    /// Others still use it, or it does not show that page.
    Kept,
}

/// The slots of an aperture, in storage `B`.
pub(crate) struct Slots<B> {
    slots: B,
    free: List,
    idle: List,
    counts: Counts,
    /// Where the next search for a run starts.
    cursor: SlotId,
}

impl<B: DerefMut<Target = [Slot]>> Slots<B> {
    /// All of `storage`, whatever it holds, becomes free slots; fewer than 2^32 - 1.
    pub(crate) fn new(storage: B) -> Option<Self> {
        let count = u32::try_from(storage.len()).ok().filter(|&n| n != NONE)?;
        let mut this = Self {
            slots: storage,
            free: List::EMPTY,
            idle: List::EMPTY,
            counts: Counts::default(),
            cursor: 0,
        };
        for id in 0..count {
            this.set(id, Slot::Taken);
            this.give_back(id);
        }
        Some(this)
    }

    /// The state of a slot; `None` past the end.
    pub(crate) fn get(&self, id: SlotId) -> Option<Slot> {
        self.slots.get(usize::try_from(id).ok()?).copied()
    }

    fn set(&mut self, id: SlotId, slot: Slot) {
        if let Some(place) = usize::try_from(id)
            .ok()
            .and_then(|index| self.slots.get_mut(index))
        {
            *place = slot;
        }
    }

    /// Number of slots.
    pub(crate) fn total(&self) -> usize {
        self.slots.len()
    }

    /// Slots by state; those taken are in none.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            free: self.free.len,
            idle: self.idle.len,
            ..self.counts
        }
    }

    /// Slots that can be taken and then held as `class`. CPU mappings need what promised peers
    /// need: slots that can be taken.
    pub(crate) fn available(&self, class: Class) -> u32 {
        let takable = self.free.len.saturating_add(self.idle.len);
        match class {
            Class::Lent => takable.min(self.unpromised()),
            Class::Promised => takable,
        }
    }

    /// Slots that are not promised, lent or draining.
    fn unpromised(&self) -> u32 {
        let counts = &self.counts;
        [counts.promised, counts.lent, counts.draining]
            .into_iter()
            .fold(self.count(), u32::saturating_sub)
    }

    fn count(&self) -> u32 {
        // `new` has checked that it fits.
        u32::try_from(self.slots.len()).unwrap_or(0)
    }

    /// Whether the promises allow `more` lent slots.
    ///
    /// These are slots that no peer holds yet: idle ones of the page count too.
    pub(crate) fn may_lend(&self, more: u32) -> bool {
        more <= self.unpromised()
    }

    /// Whether the promises allow that `more` promised slots, which peers hold, are released: they
    /// drain while the object that they belonged to needs others.
    ///
    /// An object that loses its promise first, or is not promised, can always release its slots.
    pub(crate) fn may_drain(&self, more: u32) -> bool {
        more <= self.unpromised()
    }

    /// Promises slots to an object of `pages` pages.
    ///
    /// If peers hold slots of it already, [`Slots::reclass`] those first, and back if this fails:
    /// they are part of the promise, and not in its way.
    pub(crate) fn promise(&mut self, pages: u32) -> Result<(), NoPromise> {
        let promised = self
            .counts
            .promised
            .checked_add(pages)
            .filter(|&promised| promised <= self.count())
            .ok_or(NoPromise::TooMuch)?;
        let short = pages.saturating_sub(self.unpromised());
        if short != 0 {
            return Err(NoPromise::InTheWay(short));
        }
        self.counts.promised = promised;
        Ok(())
    }

    /// Takes a promise to an object of `pages` pages back. The slots of it that peers hold become
    /// lent: [`Slots::reclass`] them next, which always fits.
    pub(crate) fn unpromise(&mut self, pages: u32) {
        self.counts.promised = self.counts.promised.saturating_sub(pages);
    }

    /// A slot that peers hold, and that shows `page`, counts as `class` from now on: its object was
    /// given, or has lost, a promise.
    pub(crate) fn reclass(&mut self, id: SlotId, page: PageName, class: Class) {
        match self.get(id) {
            Some(Slot::Peers {
                page: shown,
                peers,
                class: old,
            }) if shown == page => {
                self.uncount_held(old);
                self.count_held(class);
                self.set(id, Slot::Peers { page, peers, class });
            }
            _ => {}
        }
    }

    fn count_held(&mut self, class: Class) {
        self.counts.held += 1;
        if class == Class::Lent {
            self.counts.lent += 1;
        }
    }

    fn uncount_held(&mut self, class: Class) {
        self.counts.held -= 1;
        if class == Class::Lent {
            self.counts.lent -= 1;
        }
    }

    /// The page that the slot shows, if it still belongs to it.
    fn page(&self, id: SlotId) -> Option<PageName> {
        match self.get(id)? {
            Slot::Idle { page, .. } | Slot::Peers { page, .. } => Some(page),
            Slot::Free { .. } | Slot::Taken | Slot::Draining { .. } => None,
        }
    }

    /// Whether the slot shows the page; if it is idle, it becomes the warmest.
    pub(crate) fn touch(&mut self, id: SlotId, page: PageName) -> bool {
        if self.page(id) != Some(page) {
            return false;
        }
        if let Some(Slot::Idle { .. }) = self.get(id) {
            self.unlink(id);
            self.link_idle(id, page);
        }
        true
    }

    /// Takes a free slot, else the coldest idle one.
    pub(crate) fn take(&mut self) -> Option<Took> {
        if self.free.head != NONE {
            let id = self.free.head;
            self.unlink(id);
            return Some(Took::Free(id));
        }
        let id = self.idle.head;
        let page = self.page(id)?;
        self.unlink(id);
        Some(Took::Idle(id, page))
    }

    /// Takes `count` slots, the free ones first, then idle ones, the coldest first, and passes each
    /// on. Returns how many there were to take.
    pub(crate) fn take_many(&mut self, count: u32, mut each: impl FnMut(Took)) -> u32 {
        for taken in 0..count {
            match self.take() {
                Some(took) => each(took),
                None => return taken,
            }
        }
        count
    }

    /// Takes `count` adjacent free slots, if there are such, and returns the first.
    pub(crate) fn take_run(&mut self, count: u32) -> Option<SlotId> {
        if count == 0 || count > self.free.len {
            return None;
        }
        let total = u32::try_from(self.slots.len()).ok()?;
        let start = self.cursor;
        let first = self
            .find_run(start, total, count)
            .or_else(|| self.find_run(0, start.saturating_add(count).min(total), count))?;
        for id in first..first + count {
            self.unlink(id);
        }
        self.cursor = Some(first + count)
            .filter(|&next| next < total)
            .unwrap_or(0);
        Some(first)
    }

    fn find_run(&self, start: SlotId, end: SlotId, count: u32) -> Option<SlotId> {
        let mut len = 0;
        for id in start..end {
            len = match self.get(id) {
                Some(Slot::Free { .. }) => len + 1,
                _ => 0,
            };
            if len == count {
                return Some(id + 1 - count);
            }
        }
        None
    }

    /// A taken slot shows `page` from now on.
    pub(crate) fn install(&mut self, id: SlotId, page: PageName) {
        if self.get(id) == Some(Slot::Taken) {
            self.link_idle(id, page);
        }
    }

    /// A taken slot that shows nothing becomes free.
    pub(crate) fn give_back(&mut self, id: SlotId) {
        if self.get(id) == Some(Slot::Taken) {
            let prev = self.free.tail;
            self.set(id, Slot::Free { prev, next: NONE });
            self.link_after(prev, id, true);
        }
    }

    /// A peer holds the slot, which shows `page`; `false` if it does not, or if it would be lent
    /// and the promises do not allow it. A slot that peers hold already keeps its class.
    pub(crate) fn hold(&mut self, id: SlotId, page: PageName, class: Class) -> bool {
        match self.get(id) {
            Some(Slot::Idle { page: shown, .. }) if shown == page => {
                if class == Class::Lent && !self.may_lend(1) {
                    return false;
                }
                self.unlink(id);
                let peers = 1;
                self.set(id, Slot::Peers { page, peers, class });
                self.count_held(class);
                true
            }
            Some(Slot::Peers {
                page: shown,
                peers,
                class,
            }) if shown == page => match peers.checked_add(1) {
                Some(peers) => {
                    self.set(id, Slot::Peers { page, peers, class });
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    /// A peer lets go.
    pub(crate) fn unhold(&mut self, id: SlotId) -> Released {
        match self.get(id) {
            Some(Slot::Peers {
                page,
                peers: 1,
                class,
            }) => {
                self.uncount_held(class);
                self.link_idle(id, page);
            }
            Some(Slot::Peers { page, peers, class }) => {
                let peers = peers - 1;
                self.set(id, Slot::Peers { page, peers, class });
            }
            Some(Slot::Draining { peers: 1 }) => {
                self.counts.draining -= 1;
                self.set(id, Slot::Taken);
                return Released::Taken;
            }
            Some(Slot::Draining { peers }) => self.set(id, Slot::Draining { peers: peers - 1 }),
            _ => {}
        }
        Released::Kept
    }

    /// The page leaves VRAM, or ends: it lets go of the slot, if the slot shows it.
    ///
    /// For promised slots that peers hold, ask [`Slots::may_drain`] first.
    pub(crate) fn release(&mut self, id: SlotId, page: PageName) -> Released {
        match self.get(id) {
            Some(Slot::Idle { page: shown, .. }) if shown == page => {
                self.unlink(id);
                Released::Taken
            }
            Some(Slot::Peers {
                page: shown,
                peers,
                class,
            }) if shown == page => {
                self.uncount_held(class);
                self.counts.draining += 1;
                self.set(id, Slot::Draining { peers });
                Released::Kept
            }
            _ => Released::Kept,
        }
    }

    fn link_idle(&mut self, id: SlotId, page: PageName) {
        let prev = self.idle.tail;
        self.set(
            id,
            Slot::Idle {
                page,
                prev,
                next: NONE,
            },
        );
        self.link_after(prev, id, false);
    }

    fn list(&mut self, free: bool) -> &mut List {
        if free {
            &mut self.free
        } else {
            &mut self.idle
        }
    }

    /// Appends `id`, whose own links are set, after the tail `prev`.
    fn link_after(&mut self, prev: SlotId, id: SlotId, free: bool) {
        self.set_next(prev, id);
        let list = self.list(free);
        if prev == NONE {
            list.head = id;
        }
        list.tail = id;
        list.len += 1;
    }

    /// Removes a free or idle slot from its list; it is taken then.
    fn unlink(&mut self, id: SlotId) {
        let (prev, next, free) = match self.get(id) {
            Some(Slot::Free { prev, next }) => (prev, next, true),
            Some(Slot::Idle { prev, next, .. }) => (prev, next, false),
            _ => return,
        };
        self.set_next(prev, next);
        self.set_prev(next, prev);
        let list = self.list(free);
        if prev == NONE {
            list.head = next;
        }
        if next == NONE {
            list.tail = prev;
        }
        list.len -= 1;
        self.set(id, Slot::Taken);
    }

    fn set_next(&mut self, id: SlotId, next: SlotId) {
        let slot = match self.get(id) {
            Some(Slot::Free { prev, .. }) => Slot::Free { prev, next },
            Some(Slot::Idle { page, prev, .. }) => Slot::Idle { page, prev, next },
            _ => return,
        };
        self.set(id, slot);
    }

    fn set_prev(&mut self, id: SlotId, prev: SlotId) {
        let slot = match self.get(id) {
            Some(Slot::Free { next, .. }) => Slot::Free { prev, next },
            Some(Slot::Idle { page, next, .. }) => Slot::Idle { page, prev, next },
            _ => return,
        };
        self.set(id, slot);
    }
}
