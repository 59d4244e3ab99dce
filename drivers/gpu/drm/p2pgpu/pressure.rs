// SPDX-License-Identifier: GPL-2.0

//! Slots that are lent, taken back: peers of objects without a promise are told to let go.
//!
//! The coldest object is told first, by the time when it was last mapped. One that was mapped a
//! moment ago is left alone, so that two objects do not take each other's slots in turns; a
//! promise is not made to wait for that. Who is told keeps its place in VRAM, and maps again when
//! it needs to.
//!
//! All this happens under the reservation lock of the object that needs slots. Those of others are
//! only tried.

use crate::{
    aperture::NamedPages,
    driver::DrmDevice,
    gem::{
        self,
        Object,
        State, //
    },
    migrate,
    settings::Number,
    slots::NoPromise,
    trace, //
};
use core::ops::RangeInclusive;
use kernel::{
    cgroup::dmem::Charge,
    dma_buf::resv::Held,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
    time::{
        coarse::MonotonicCoarse,
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// How long peers are left alone with what they mapped, in milliseconds.
pub(crate) struct Grace(Atomic<u32>);

impl Grace {
    const DEFAULT: u32 = 20;

    pub(crate) fn new() -> Self {
        Self(Atomic::new(Self::DEFAULT))
    }

    fn time(&self) -> Delta {
        Delta::from_millis(self.0.load(Relaxed).into())
    }
}

impl Number for Grace {
    const NAME: &'static CStr = c"peer_grace_ms";
    /// A CPU that touches a page may wait so long.
    const RANGE: RangeInclusive<u32> = 0..=60_000;

    fn get(dev: &DrmDevice) -> u32 {
        dev.grace.0.load(Relaxed)
    }

    fn set(dev: &DrmDevice, number: u32) {
        dev.grace.0.store(number, Relaxed);
    }
}

/// Wait so long for a lock that was only tried, or for a mapping that is being made or undone.
pub(crate) const CONTENTION: Delta = Delta::from_millis(1);
/// Times that a promise, or a mapping, waits for locks.
pub(crate) const ROUNDS: usize = 100;
/// Times that it waits for slots when nobody is left to be told.
const LAST_ROUNDS: usize = 10;

/// When an object was last mapped for a peer.
#[derive(Clone, Copy)]
pub(crate) struct LastMap {
    /// Orders the mappings of a device.
    turn: u64,
    at: Instant<MonotonicCoarse>,
}

impl LastMap {
    pub(crate) fn now(turn: u64) -> Self {
        let at = Instant::now();
        Self { turn, at }
    }

    /// The time since then, or a tick more.
    fn age(&self) -> Delta {
        // By the clock that sleeps go by.
        Instant::<Monotonic>::from(self.at).elapsed()
    }
}

/// Whether peers are left alone that have mapped a moment ago.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Grace,
    None,
}

/// What came of asking for slots.
pub(crate) enum Told {
    /// Peers of an object have let go, if they obey: there may be slots now.
    One,
    /// There is nobody left to be told.
    Nobody,
    /// There is nobody left but those whose locks are held: somebody maps or moves them at this
    /// moment.
    Contended,
    /// There is nobody left but those who are left alone for this time.
    Wait(Delta),
}

/// The objects whose peers can be told to let go, each one once, the coldest first.
pub(crate) struct Victims<'a> {
    dev: &'a DrmDevice,
    /// The object that needs slots; its own peers are told too if its lock is passed.
    own: &'a Object,
    held: Option<Held<'a>>,
    patience: Patience,
    /// Those of later turns have not been told.
    turn: u64,
    contended: bool,
}

impl<'a> Victims<'a> {
    pub(crate) fn new(own: &'a Object, held: Option<Held<'a>>, patience: Patience) -> Self {
        Self {
            dev: own.dev(),
            own,
            held,
            patience,
            turn: 0,
            contended: false,
        }
    }

    fn is_own(&self, obj: &Object) -> bool {
        core::ptr::eq(obj, self.own)
    }

    /// The coldest object that was not told yet, and when it was mapped.
    fn coldest(&self) -> Option<(ARef<Object>, LastMap)> {
        let mut coldest: Option<(ARef<Object>, LastMap)> = None;
        self.dev.for_each_attached(|obj| {
            if self.held.is_none() && self.is_own(obj) {
                return;
            }
            let Some(last) = lends(&obj.state.lock()) else {
                return;
            };
            let colder = coldest.as_ref().is_none_or(|(_, c)| last.turn < c.turn);
            if last.turn > self.turn && colder {
                coldest = Some((obj.clone(), last));
            }
        });
        coldest
    }

    /// Tells the peers of the next object to let go, and waits until their accesses have ended.
    pub(crate) fn tell_next(&mut self) -> Told {
        while let Some((victim, last)) = self.coldest() {
            self.turn = last.turn;
            let (age, grace) = (last.age(), self.dev.grace.time());
            if self.patience == Patience::Grace && age < grace {
                return Told::Wait(grace - age);
            }
            // An importer that does not let go just yields nothing: the next one is asked.
            if self.is_own(&victim) {
                if let Some(held) = self.held {
                    trace::pressure(self.own, &victim);
                    let _ = migrate::invalidate(&victim, held);
                    return Told::One;
                }
            } else if let Some(guard) = victim.resv().try_lock() {
                if lends(&victim.state.lock()).is_some() {
                    trace::pressure(self.own, &victim);
                    let _ = migrate::invalidate(&victim, guard.held());
                    return Told::One;
                }
            } else {
                self.contended = true;
            }
        }
        match self.contended {
            true => Told::Contended,
            false => Told::Nobody,
        }
    }
}

/// When the object was last mapped, if peers hold slots of it that can be taken back.
fn lends(state: &State) -> Option<LastMap> {
    if state.aperture_mappings == 0 || state.is_promised() {
        return None;
    }
    state.last_map
}

/// Promises the object slots for all its pages, for which a cgroup has been charged. Under its
/// reservation lock.
///
/// `ENOSPC`: the promises would not fit. `EBUSY`: they would, but peers do not let go of slots that
/// are in the way.
pub(crate) fn promise(obj: &Object, charge: Charge) -> Result {
    find_slots(obj)?;
    obj.state.lock().charge = Some(charge);
    Ok(())
}

fn find_slots(obj: &Object) -> Result {
    let aperture = &obj.dev().aperture;
    let placement = obj.placement();
    let shown = shown(obj, &placement)?;
    // One at a time: two that take slots back for each other could both fail.
    let _promising = obj.dev().promising.lock();
    let claim = aperture.claim(gem::page_count(obj)?);
    let mut last_rounds = 0;
    for _ in 0..ROUNDS {
        let mut victims = Victims::new(obj, None, Patience::None);
        let pause = loop {
            match aperture.promise(shown, &claim) {
                Ok(()) => return Ok(()),
                Err(NoPromise::TooMuch) => return Err(ENOSPC),
                Err(NoPromise::InTheWay(_)) => {}
            }
            match victims.tell_next() {
                Told::One => {}
                Told::Nobody if last_rounds == LAST_ROUNDS => return Err(EBUSY),
                Told::Nobody => {
                    last_rounds += 1;
                    break CONTENTION;
                }
                Told::Contended => break CONTENTION,
                Told::Wait(time) => break time,
            }
        };
        fsleep(pause);
    }
    Err(EBUSY)
}

/// Takes the object's promise back. Under its reservation lock, or when nobody uses it.
pub(crate) fn unpromise(obj: &Object) -> Result {
    let placement = obj.placement();
    let shown = shown(obj, &placement)?;
    obj.dev().aperture.unpromise(shown, gem::page_count(obj)?);
    let charge = obj.state.lock().charge.take();
    drop(charge);
    Ok(())
}

fn shown<'a>(obj: &Object, placement: &'a gem::Placement) -> Result<Option<NamedPages<'a>>> {
    Ok(match placement {
        gem::Placement::Vram(vram) => Some(gem::named(obj, vram)?),
        gem::Placement::System(_) | gem::Placement::Imported(_) => None,
    })
}
