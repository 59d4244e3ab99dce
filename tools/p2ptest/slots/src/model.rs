// SPDX-License-Identifier: GPL-2.0
//! What the slots must do, in its simplest form: a list of states and a queue.

use std::collections::VecDeque;

use crate::memory::HostMemory;
use crate::slots::{
    Class, Counts, MAX_SLOTS, NoPromise, PageName, Released, Slot, SlotId, Slots, Took,
};

impl Slots<HostMemory> {
    /// Takes one slot.
    pub fn take(&mut self) -> Option<Took> {
        let mut taken = None;
        self.take_many(1, |took| taken = Some(took));
        taken
    }
}

/// The state of a slot, without links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Free,
    Taken,
    Idle(PageName),
    Peers(PageName, u32, Class),
    Draining(u32),
}

impl From<Slot> for State {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Free => Self::Free,
            Slot::Taken => Self::Taken,
            Slot::Idle { page, .. } => Self::Idle(page),
            Slot::Peers { page, peers, class } => Self::Peers(page, peers, class),
            Slot::Draining { peers } => Self::Draining(peers),
        }
    }
}

/// The slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model {
    pub states: Vec<State>,
    /// Coldest first.
    idle: VecDeque<SlotId>,
    /// Pages promised.
    promised: u32,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Take,
    TakeRun(u32),
    TakeMany(u32),
    Install(SlotId, PageName),
    GiveBack(SlotId),
    /// These, in any order.
    GiveBackMany([SlotId; 3]),
    Hold(SlotId, PageName, Class),
    Unhold(SlotId),
    Release(SlotId, PageName),
    Touch(SlotId, PageName),
    Forget,
    Promise(u32),
    Unpromise(u32),
    Reclass(SlotId, PageName, Class),
}

/// What a call returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    Took(Option<Took>),
    Run(Option<SlotId>),
    Many(u32, Vec<Took>),
    Truth(bool),
    Released(Released),
    Promised(Result<(), NoPromise>),
}

impl Call {
    /// Makes the call to the kernel's slots.
    pub fn real(self, slots: &mut Slots<HostMemory>) -> Answer {
        match self {
            Self::Take => Answer::Took(slots.take()),
            Self::TakeRun(count) => Answer::Run(slots.take_run(count)),
            Self::Install(id, page) => {
                slots.install(id, page);
                Answer::Nothing
            }
            Self::GiveBack(id) => {
                slots.give_back(id);
                Answer::Nothing
            }
            Self::TakeMany(count) => {
                let mut taken = Vec::new();
                Answer::Many(slots.take_many(count, |took| taken.push(took)), taken)
            }
            Self::GiveBackMany(ids) => {
                slots.give_back_many(ids);
                Answer::Nothing
            }
            Self::Hold(id, page, class) => Answer::Truth(slots.hold(id, page, class)),
            Self::Unhold(id) => Answer::Released(slots.unhold(id)),
            Self::Release(id, page) => Answer::Released(slots.release(id, page)),
            Self::Touch(id, page) => Answer::Truth(slots.touch(id, page)),
            Self::Forget => {
                slots.forget();
                Answer::Nothing
            }
            Self::Promise(pages) => Answer::Promised(slots.promise(pages)),
            Self::Unpromise(pages) => {
                slots.unpromise(pages);
                Answer::Nothing
            }
            Self::Reclass(id, page, class) => {
                slots.reclass(id, page, class);
                Answer::Nothing
            }
        }
    }
}

impl Model {
    pub fn new(count: u32) -> Self {
        Self {
            states: (0..count).map(|_| State::Free).collect(),
            idle: VecDeque::new(),
            promised: 0,
        }
    }

    fn state(&self, id: SlotId) -> Option<State> {
        self.states.get(id as usize).copied()
    }

    /// Changes a state; the queue follows.
    fn set(&mut self, id: SlotId, state: State) {
        self.idle.retain(|&other| other != id);
        if let State::Idle(_) = state {
            self.idle.push_back(id);
        }
        self.states[id as usize] = state;
    }

    /// Makes the call to the model.
    pub fn call(&mut self, call: Call) -> Answer {
        match call {
            Call::Take => Answer::Took(self.take()),
            Call::TakeRun(count) => Answer::Run(self.take_run(count)),
            Call::Install(id, page) => {
                if self.state(id) == Some(State::Taken) {
                    self.set(id, State::Idle(page));
                }
                Answer::Nothing
            }
            Call::GiveBack(id) => {
                if self.state(id) == Some(State::Taken) {
                    self.set(id, State::Free);
                }
                Answer::Nothing
            }
            Call::GiveBackMany(ids) => {
                for id in ids {
                    self.call(Call::GiveBack(id));
                }
                Answer::Nothing
            }
            Call::TakeMany(count) => {
                let taken: Vec<_> = (0..count).map_while(|_| self.take()).collect();
                Answer::Many(taken.len() as u32, taken)
            }
            Call::Hold(id, page, class) => {
                let lendable = self.promised + self.lent_or_draining() < self.total();
                let (peers, class) = match self.state(id) {
                    Some(State::Idle(p)) if p == page && (class == Class::Promised || lendable) => {
                        (0, class)
                    }
                    Some(State::Peers(p, peers, class)) if p == page => (peers, class),
                    _ => return Answer::Truth(false),
                };
                self.set(id, State::Peers(page, peers + 1, class));
                Answer::Truth(true)
            }
            Call::Unhold(id) => {
                let next = match self.state(id) {
                    Some(State::Peers(page, 1, _)) => State::Idle(page),
                    Some(State::Peers(page, peers, class)) => State::Peers(page, peers - 1, class),
                    Some(State::Draining(1)) => State::Taken,
                    Some(State::Draining(peers)) => State::Draining(peers - 1),
                    _ => return Answer::Released(Released::Kept),
                };
                self.set(id, next);
                Answer::Released(match next {
                    State::Taken => Released::Taken,
                    _ => Released::Kept,
                })
            }
            Call::Release(id, page) => Answer::Released(match self.state(id) {
                Some(State::Idle(p)) if p == page => {
                    self.set(id, State::Taken);
                    Released::Taken
                }
                Some(State::Peers(p, peers, _)) if p == page => {
                    self.set(id, State::Draining(peers));
                    Released::Kept
                }
                _ => Released::Kept,
            }),
            Call::Forget => {
                for id in 0..self.states.len() {
                    let next = match self.states[id] {
                        State::Idle(_) | State::Taken => State::Free,
                        State::Peers(_, peers, _) => State::Draining(peers),
                        State::Free | State::Draining(_) => continue,
                    };
                    self.set(id as SlotId, next);
                }
                Answer::Nothing
            }
            Call::Touch(id, page) => Answer::Truth(match self.state(id) {
                Some(State::Idle(p)) if p == page => {
                    self.set(id, State::Idle(page));
                    true
                }
                Some(State::Peers(p, ..)) => p == page,
                _ => false,
            }),
            Call::Promise(pages) => Answer::Promised(self.promise(pages)),
            Call::Unpromise(pages) => {
                self.promised = self.promised.saturating_sub(pages);
                Answer::Nothing
            }
            Call::Reclass(id, page, class) => {
                match self.state(id) {
                    Some(State::Peers(p, peers, _)) if p == page => {
                        self.set(id, State::Peers(page, peers, class));
                    }
                    _ => {}
                }
                Answer::Nothing
            }
        }
    }

    fn take(&mut self) -> Option<Took> {
        let free = self.states.iter().position(|&state| state == State::Free);
        let id = free.map_or_else(|| self.idle.front().copied(), |id| Some(id as SlotId))?;
        let took = match self.states[id as usize] {
            State::Idle(page) => Took::Idle(id, page),
            _ => Took::Free(id),
        };
        self.set(id, State::Taken);
        Some(took)
    }

    fn take_run(&mut self, count: u32) -> Option<SlotId> {
        let count = count as usize;
        if count == 0 {
            return None;
        }
        let first = self
            .states
            .windows(count)
            .position(|run| run.iter().all(|&state| state == State::Free))?;
        for id in first..first + count {
            self.set(id as SlotId, State::Taken);
        }
        Some(first as SlotId)
    }

    fn total(&self) -> u32 {
        self.states.len() as u32
    }

    fn number(&self, want: fn(&State) -> bool) -> u32 {
        self.states.iter().filter(|&state| want(state)).count() as u32
    }

    fn lent_or_draining(&self) -> u32 {
        self.number(|state| matches!(state, State::Peers(_, _, Class::Lent) | State::Draining(_)))
    }

    fn promise(&mut self, pages: u32) -> Result<(), NoPromise> {
        // A promise of more pages than there are numbers is too much, too.
        let promised = self.promised.saturating_add(pages);
        if promised > self.total() {
            return Err(NoPromise::TooMuch);
        }
        // Promises of nothing always succeed, even where calls in a wrong order broke the promise.
        let free = self
            .total()
            .saturating_sub(self.promised + self.lent_or_draining());
        if pages > free {
            return Err(NoPromise::InTheWay(pages - free));
        }
        self.promised = promised;
        Ok(())
    }

    fn counts(&self) -> Counts {
        Counts {
            free: self.number(|state| matches!(state, State::Free)),
            idle: self.number(|state| matches!(state, State::Idle(_))),
            held: self.number(|state| matches!(state, State::Peers(..))),
            lent: self.number(|state| matches!(state, State::Peers(_, _, Class::Lent))),
            draining: self.number(|state| matches!(state, State::Draining(_))),
            promised: self.promised,
        }
    }

    /// Panics unless the slots are in the same state: slot by slot, the list in both
    /// directions, and all counters.
    pub fn assert_same(&self, slots: &Slots<HostMemory>) {
        let total = u32::try_from(slots.total()).unwrap();
        let found: Vec<Slot> = (0..total).map(|id| slots.get(id).unwrap()).collect();
        let states: Vec<State> = found.iter().copied().map(State::from).collect();
        assert_eq!(states, self.states);
        assert_eq!(slots.get(total), None);
        assert_eq!(slots.get(SlotId::MAX), None);
        let counts = self.counts();
        assert_eq!(slots.counts(), counts);
        let takable = counts.free + counts.idle;
        let used = counts.promised + counts.lent + counts.draining;
        let lendable = self.total().saturating_sub(used);
        assert_eq!(slots.available(Class::Promised), takable);
        assert_eq!(slots.available(Class::Lent), takable.min(lendable));
        for more in 0..=self.total() + 1 {
            assert_eq!(slots.may_lend(more), more <= lendable);
            assert_eq!(slots.may_drain(more), more <= lendable);
        }
        assert_links(&found, &self.idle);
    }
}

/// Panics unless the idle slots form the list `queue`.
fn assert_links(slots: &[Slot], queue: &VecDeque<SlotId>) {
    let links = |slot: &Slot| match *slot {
        Slot::Idle { prev, next, .. } => Some((prev, next)),
        _ => None,
    };
    assert_eq!(slots.iter().filter_map(links).count(), queue.len());
    let mut prev = MAX_SLOTS;
    for (index, &id) in queue.iter().enumerate() {
        let next = queue.get(index + 1).copied().unwrap_or(MAX_SLOTS);
        assert_eq!(links(&slots[id as usize]), Some((prev, next)), "slot {id}");
        prev = id;
    }
}
