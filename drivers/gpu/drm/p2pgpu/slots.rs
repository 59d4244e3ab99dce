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
//! space of its CPU mappings. These files are compiled on the host too, for tests and proofs.

use core::ops::DerefMut;

// The host's crate finds the files by their path only.
#[path = "slots/cell.rs"]
mod cell;
#[path = "slots/free.rs"]
mod free;
#[path = "slots/lease.rs"]
pub(crate) mod lease;
#[path = "slots/promise.rs"]
mod promise;
#[path = "slots/state.rs"]
pub(crate) mod state;

use cell::{
    Cell,
    NONE, //
};
use free::FreeMap;
use promise::Promises;

/// Number of a slot, from 0.
pub(crate) type SlotId = u32;

/// Name of a page.
pub(crate) type PageName = u32;

/// What a slot that peers hold counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Of an object that is not promised: its peers can be told to let go.
    Lent,
    /// Of an object that is promised: part of its promise.
    Promised,
}

/// The state of one slot. An idle slot has its neighbours in the list of the idle ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Free,
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

/// Where the tables of the slots live.
pub(crate) trait Storage {
    /// Why there is no memory, or no such aperture.
    type Error;

    /// More slots than [`MAX_SLOTS`] were asked for.
    const TOO_MANY: Self::Error;

    /// A number that all may change at once.
    type Mark: lease::Mark;

    /// Memory that is given back when it is dropped.
    type Array<T: Copy>: DerefMut<Target = [T]>;

    /// Memory for `len` copies of `value`.
    fn filled<T: Copy>(value: T, len: usize) -> Result<Self::Array<T>, Self::Error>;
}

/// The most slots that an aperture can have: 2 TiB, less a slot.
pub(crate) const MAX_SLOTS: u32 = NONE;

/// The doubly linked list through the idle slots, coldest first.
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

/// The slots of an aperture, in storage `M`: about 12.3 bytes a slot.
pub(crate) struct Slots<M: Storage> {
    cells: M::Array<Cell>,
    /// A bit for each slot: whether it shows something, or drains. What is in `cells`, for many at
    /// once.
    used: M::Array<u64>,
    free: FreeMap<M>,
    idle: List,
    promises: Promises,
}

// For searches on the host, which go on from copies. It cannot be derived.
impl<M: Storage> Clone for Slots<M>
where
    M::Array<Cell>: Clone,
    M::Array<u64>: Clone,
    FreeMap<M>: Clone,
{
    fn clone(&self) -> Self {
        Self {
            cells: self.cells.clone(),
            used: self.used.clone(),
            free: self.free.clone(),
            idle: self.idle,
            promises: self.promises.clone(),
        }
    }
}

/// A slot or page as an index; one past everything if the machine cannot count that far.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<M: Storage> Slots<M> {
    /// `total` free slots, at most [`MAX_SLOTS`].
    pub(crate) fn new(total: u32) -> Result<Self, M::Error> {
        if total > MAX_SLOTS {
            return Err(M::TOO_MANY);
        }
        Ok(Self {
            cells: M::filled(Cell::EMPTY, index(total))?,
            used: M::filled(0, index(total.div_ceil(u64::BITS)))?,
            free: FreeMap::new(total)?,
            idle: List::EMPTY,
            promises: Promises::new(total),
        })
    }

    /// The state of a slot; `None` past the end.
    pub(crate) fn get(&self, id: SlotId) -> Option<Slot> {
        match self.cell(id)? {
            Slot::Taken if self.free.has(id) => Some(Slot::Free),
            slot => Some(slot),
        }
    }

    /// Whether a slot drains.
    fn drains(&self, id: SlotId) -> bool {
        matches!(self.cell(id), Some(Slot::Draining { .. }))
    }

    /// The state of a slot; a free one counts as taken.
    fn cell(&self, id: SlotId) -> Option<Slot> {
        self.cells.get(index(id)).copied().map(Slot::from)
    }

    fn set(&mut self, id: SlotId, slot: Slot) {
        let used = self.used.get_mut(index(id / u64::BITS));
        if let (Some(cell), Some(used)) = (self.cells.get_mut(index(id)), used) {
            *cell = slot.into();
            let bit = 1 << (id % u64::BITS);
            match cell.is_empty() {
                true => *used &= !bit,
                false => *used |= bit,
            }
        }
    }

    /// Number of slots.
    pub(crate) fn total(&self) -> usize {
        self.cells.len()
    }

    /// Slots by state; those taken are in none.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            free: self.free.count(),
            idle: self.idle.len,
            held: self.promises.held,
            lent: self.promises.lent,
            draining: self.promises.draining,
            promised: self.promises.promised,
        }
    }

    /// Slots that can be taken and then held as `class`. CPU mappings need what promised peers
    /// need: slots that can be taken.
    pub(crate) fn available(&self, class: Class) -> u32 {
        let takable = self.free.count().saturating_add(self.idle.len);
        match class {
            Class::Lent => takable.min(self.promises.unpromised()),
            Class::Promised => takable,
        }
    }

    /// Whether the promises allow `more` lent slots.
    ///
    /// These are slots that no peer holds yet: idle ones of the page count too.
    pub(crate) fn may_lend(&self, more: u32) -> bool {
        more <= self.promises.unpromised()
    }

    /// Whether the promises allow that `more` promised slots, which peers hold, are released: they
    /// drain while the object that they belonged to needs others.
    ///
    /// An object that loses its promise first, or is not promised, can always release its slots.
    pub(crate) fn may_drain(&self, more: u32) -> bool {
        more <= self.promises.unpromised()
    }

    /// Promises slots to an object of `pages` pages.
    ///
    /// If peers hold slots of it already, [`Slots::reclass`] those first, and back if this fails:
    /// they are part of the promise, and not in its way.
    pub(crate) fn promise(&mut self, pages: u32) -> Result<(), NoPromise> {
        self.promises.promise(pages)
    }

    /// Takes a promise to an object of `pages` pages back. The slots of it that peers hold become
    /// lent: [`Slots::reclass`] them next, which always fits.
    pub(crate) fn unpromise(&mut self, pages: u32) {
        self.promises.unpromise(pages);
    }

    /// A slot that peers hold, and that shows `page`, counts as `class` from now on: its object was
    /// given, or has lost, a promise.
    pub(crate) fn reclass(&mut self, id: SlotId, page: PageName, class: Class) {
        match self.cell(id) {
            Some(Slot::Peers {
                page: shown,
                peers,
                class: old,
            }) if shown == page => {
                self.promises.unhold(old);
                self.promises.hold(class);
                self.set(id, Slot::Peers { page, peers, class });
            }
            _ => {}
        }
    }

    /// The page that the slot shows, if it still belongs to it.
    fn page(&self, id: SlotId) -> Option<PageName> {
        match self.cell(id)? {
            Slot::Idle { page, .. } | Slot::Peers { page, .. } => Some(page),
            Slot::Free | Slot::Taken | Slot::Draining { .. } => None,
        }
    }

    /// Whether the slot shows the page; if it is idle, it becomes the warmest.
    pub(crate) fn touch(&mut self, id: SlotId, page: PageName) -> bool {
        if self.page(id) != Some(page) {
            return false;
        }
        if let Some(Slot::Idle { .. }) = self.cell(id) {
            self.unlink(id);
            self.link_idle(id, page);
        }
        true
    }

    fn take_idle(&mut self) -> Option<Took> {
        let id = self.idle.head;
        let page = self.page(id)?;
        self.unlink(id);
        Some(Took::Idle(id, page))
    }

    /// Takes `count` slots, the free ones first, then idle ones, the coldest first, and passes each
    /// on. Returns how many there were to take.
    pub(crate) fn take_many(&mut self, count: u32, mut each: impl FnMut(Took)) -> u32 {
        let free = self.free.take_each(count, |id| each(Took::Free(id)));
        for taken in free..count {
            match self.take_idle() {
                Some(took) => each(took),
                None => return taken,
            }
        }
        count
    }

    /// Takes the lowest `count` adjacent free slots, and returns the first; `None` if nowhere are
    /// so many.
    pub(crate) fn take_run(&mut self, count: u32) -> Option<SlotId> {
        self.free.take_run(count)
    }

    /// A taken slot shows `page` from now on.
    pub(crate) fn install(&mut self, id: SlotId, page: PageName) {
        if self.get(id) == Some(Slot::Taken) {
            self.link_idle(id, page);
        }
    }

    /// A taken slot that shows nothing becomes free.
    pub(crate) fn give_back(&mut self, id: SlotId) {
        self.give_back_many([id]);
    }

    /// Those of `ids` that are taken, and show nothing, become free.
    ///
    /// Costs less than as many calls of [`Slots::give_back`], the least if `ids` ascend.
    pub(crate) fn give_back_many(&mut self, ids: impl IntoIterator<Item = SlotId>) {
        let used = &self.used;
        let kept = |word| used.get(word).copied().unwrap_or(u64::MAX);
        self.free.give_each(ids, kept);
    }

    /// A peer holds the slot, which shows `page`; `false` if it does not, or if it would be lent
    /// and the promises do not allow it. A slot that peers hold already keeps its class.
    pub(crate) fn hold(&mut self, id: SlotId, page: PageName, class: Class) -> bool {
        match self.cell(id) {
            Some(Slot::Idle { page: shown, .. }) if shown == page => {
                if class == Class::Lent && !self.may_lend(1) {
                    return false;
                }
                self.unlink(id);
                let peers = 1;
                self.set(id, Slot::Peers { page, peers, class });
                self.promises.hold(class);
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
        match self.cell(id) {
            Some(Slot::Peers {
                page,
                peers: 1,
                class,
            }) => {
                self.promises.unhold(class);
                self.link_idle(id, page);
            }
            Some(Slot::Peers { page, peers, class }) => {
                let peers = peers - 1;
                self.set(id, Slot::Peers { page, peers, class });
            }
            Some(Slot::Draining { peers: 1 }) => {
                self.promises.draining -= 1;
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
        match self.cell(id) {
            Some(Slot::Idle { page: shown, .. }) if shown == page => {
                self.unlink(id);
                Released::Taken
            }
            Some(Slot::Peers {
                page: shown,
                peers,
                class,
            }) if shown == page => {
                self.promises.unhold(class);
                self.promises.draining += 1;
                self.set(id, Slot::Draining { peers });
                Released::Kept
            }
            _ => Released::Kept,
        }
    }

    /// The device has forgotten all translations: pages lose their slots, which become free, or
    /// drain while peers hold them, also those of promised objects. Nobody changes a slot at the
    /// time.
    pub(crate) fn forget(&mut self) {
        let mut id = 0;
        while let Some(slot) = self.get(id) {
            match slot {
                Slot::Idle { .. } => {
                    self.unlink(id);
                    self.give_back(id);
                }
                // Lost when its entry could not be changed.
                Slot::Taken => self.give_back(id),
                Slot::Peers { page, .. } => {
                    self.release(id, page);
                }
                Slot::Free | Slot::Draining { .. } => {}
            }
            id += 1;
        }
    }

    /// Makes a taken slot, which shows `page`, the warmest idle one.
    fn link_idle(&mut self, id: SlotId, page: PageName) {
        let prev = self.idle.tail;
        let next = NONE;
        self.set(id, Slot::Idle { page, prev, next });
        self.set_next(prev, id);
        self.idle.tail = id;
        self.idle.len += 1;
    }

    /// Removes an idle slot from the list; it is taken then.
    fn unlink(&mut self, id: SlotId) {
        let Some(Slot::Idle { prev, next, .. }) = self.cell(id) else {
            return;
        };
        self.set_next(prev, next);
        self.set_prev(next, prev);
        self.idle.len -= 1;
        self.set(id, Slot::Taken);
    }

    /// Makes `next` follow `id`, or be the first if there is no `id`.
    fn set_next(&mut self, id: SlotId, next: SlotId) {
        match self.cell(id) {
            Some(Slot::Idle { page, prev, .. }) => self.set(id, Slot::Idle { page, prev, next }),
            _ => self.idle.head = next,
        }
    }

    /// Makes `id` follow `prev`, or `prev` be the last if there is no `id`.
    fn set_prev(&mut self, id: SlotId, prev: SlotId) {
        match self.cell(id) {
            Some(Slot::Idle { page, next, .. }) => self.set(id, Slot::Idle { page, prev, next }),
            _ => self.idle.tail = prev,
        }
    }
}
