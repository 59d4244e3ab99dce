// SPDX-License-Identifier: GPL-2.0

//! One ring's registers and state, between the region handlers and the ring's worker.
//!
//! Handlers only set state and wake the worker; they never wait for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::aperture::Stopped;
use crate::regs::{
    BASE_ALIGN, COMMAND_BYTES, RING_ENABLE, RING_SIZE_MAX, RING_SIZE_MIN, RingReg, RingState,
    STATUS_ALIGN,
};
use crate::sync::{Bell, lock};

#[derive(Debug)]
struct State {
    base: u64,
    status: u64,
    /// log2 of the number of commands; 0 after a reset, which cannot be enabled.
    size: u32,
    ring: RingState,
    head: u32,
    tail: u32,
    bad_tail: bool,
    /// The worker has something in hand, so that a DMA may be in flight.
    busy: bool,
    quit: bool,
    /// Commands were let go since the newest one was taken.
    released: bool,
}

/// What the worker is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Execute the command at this DMA address; none if it lies beyond 64 bits.
    Command(Option<u64>),
    /// Halt with BAD_TAIL.
    BadTail,
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    state: Mutex<State>,
    wake: Condvar,
    bell: Arc<Bell>,
}

impl Ring {
    /// A disabled ring, which rings `bell` when it becomes disabled again.
    pub fn new(bell: Arc<Bell>) -> Self {
        let state = State {
            base: 0,
            status: 0,
            size: 0,
            ring: RingState::Disabled,
            head: 0,
            tail: 0,
            bad_tail: false,
            busy: false,
            quit: false,
            released: false,
        };
        Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            bell,
        }
    }

    /// Reads a register.
    pub fn read(&self, register: RingReg) -> u64 {
        let state = lock(&self.state);
        match register {
            RingReg::Base => state.base,
            RingReg::StatusAddr => state.status,
            RingReg::Size => state.size.into(),
            RingReg::Control => match state.ring {
                RingState::Running | RingState::Halted => RING_ENABLE,
                RingState::Disabled | RingState::Stopping => 0,
            },
            RingReg::Doorbell => 0,
            RingReg::State => state.ring as u64,
        }
    }

    /// Writes a register; an error says why the write is ignored.
    pub fn write(&self, register: RingReg, value: u64) -> Result<(), &'static str> {
        let mut state = lock(&self.state);
        let disabled = state.ring == RingState::Disabled;

        match register {
            RingReg::Base | RingReg::StatusAddr | RingReg::Size if !disabled => {
                return Err("the ring is not disabled");
            }
            RingReg::Base if value.is_multiple_of(BASE_ALIGN) => state.base = value,
            RingReg::StatusAddr if value.is_multiple_of(STATUS_ALIGN) => state.status = value,
            RingReg::Base | RingReg::StatusAddr => return Err("the address is not aligned"),
            RingReg::Size if (RING_SIZE_MIN..=RING_SIZE_MAX).contains(&value) => {
                // At most RING_SIZE_MAX.
                state.size = value as u32;
            }
            RingReg::Size => return Err("no such ring size"),
            RingReg::Control => return self.control(state, value),
            RingReg::Doorbell => return self.doorbell(state, value),
            RingReg::State => {}
        }
        Ok(())
    }

    fn control(&self, mut state: MutexGuard<'_, State>, value: u64) -> Result<(), &'static str> {
        if value & !RING_ENABLE != 0 {
            return Err("reserved bits are set");
        }
        match (value & RING_ENABLE != 0, state.ring) {
            (true, RingState::Disabled) if state.size == 0 => Err("SIZE was not written"),
            (true, RingState::Disabled) => {
                state.head = 0;
                state.tail = 0;
                state.bad_tail = false;
                state.ring = RingState::Running;
                Ok(())
            }
            (true, RingState::Stopping) => Err("the ring is stopping"),
            (false, _) => {
                self.stop_locked(state);
                Ok(())
            }
            (true, _) => Ok(()),
        }
    }

    fn doorbell(&self, mut state: MutexGuard<'_, State>, value: u64) -> Result<(), &'static str> {
        if state.ring != RingState::Running {
            return Err("the ring does not run");
        }
        // Registers of 32 bits are written with 32 bits.
        state.tail = value as u32;
        if state.tail.wrapping_sub(state.head) > 1 << state.size {
            state.bad_tail = true;
        }
        drop(state);
        self.wake.notify_all();
        Ok(())
    }

    fn stop_locked(&self, mut state: MutexGuard<'_, State>) {
        state.ring = match state.ring {
            RingState::Disabled => RingState::Disabled,
            _ if state.busy => RingState::Stopping,
            _ => RingState::Disabled,
        };
        drop(state);
        self.wake.notify_all();
    }

    /// As clearing ENABLE.
    pub fn stop(&self) {
        self.stop_locked(lock(&self.state));
    }

    /// Whether no DMA of this ring is in flight and none will be.
    pub fn is_disabled(&self) -> bool {
        lock(&self.state).ring == RingState::Disabled
    }

    /// Registers as after power on. The ring must be disabled.
    pub fn clear(&self) {
        let mut state = lock(&self.state);
        state.base = 0;
        state.status = 0;
        state.size = 0;
    }

    /// Lets the command go that is stalled or slow, or is about to be.
    pub fn release(&self) {
        let mut state = lock(&self.state);
        state.released = true;
        drop(state);
        self.wake.notify_all();
    }

    /// Ends the worker.
    pub fn quit(&self) {
        lock(&self.state).quit = true;
        self.wake.notify_all();
    }

    /// Worker: waits for a job; none when it is to end. Until [`done`](Self::done) the ring
    /// counts as busy.
    pub fn next(&self) -> Option<Job> {
        let idle = |state: &mut State| {
            let work = state.bad_tail || state.head != state.tail;
            !(state.quit || state.ring == RingState::Running && work)
        };
        let state = lock(&self.state);
        let mut state = self
            .wake
            .wait_while(state, idle)
            .unwrap_or_else(PoisonError::into_inner);
        if state.quit {
            return None;
        }
        state.busy = true;
        state.released = false;
        if state.bad_tail {
            return Some(Job::BadTail);
        }
        let index = u64::from(state.head & ((1 << state.size) - 1));
        Some(Job::Command(
            state.base.checked_add(index * COMMAND_BYTES as u64),
        ))
    }

    /// Worker: DMA address of the status block.
    pub fn status(&self) -> u64 {
        lock(&self.state).status
    }

    /// Worker: the command is executed; its place may be written again once software is told.
    pub fn advance(&self) {
        let mut state = lock(&self.state);
        state.head = state.head.wrapping_add(1);
    }

    /// Worker: a command failed.
    pub fn halt(&self) {
        let mut state = lock(&self.state);
        if state.ring == RingState::Running {
            state.ring = RingState::Halted;
        }
    }

    /// Worker: the job is through, and no DMA is in flight.
    pub fn done(&self) {
        let mut state = lock(&self.state);
        state.busy = false;
        if state.ring == RingState::Stopping {
            state.ring = RingState::Disabled;
        }
        drop(state);
        self.bell.reset();
    }

    /// Worker: whether the command may go on.
    pub fn check(&self) -> Result<(), Stopped> {
        let state = lock(&self.state);
        if state.quit || state.ring != RingState::Running {
            Err(Stopped)
        } else {
            Ok(())
        }
    }

    /// Worker: waits for `pause`, or until let go if there is none, or until told to stop.
    pub fn rest(&self, pause: Option<Duration>) -> Result<(), Stopped> {
        let until = pause.map(|pause| Instant::now() + pause);
        let mut state = lock(&self.state);
        loop {
            if state.quit || state.ring != RingState::Running {
                return Err(Stopped);
            }
            if state.released {
                return Ok(());
            }
            // Without an end it is woken by a stop or a release; the timeout is a safety net only.
            let left = until.map_or(Duration::from_secs(3600), |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(());
            }
            let waited = self.wake.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Ring {
        let ring = Ring::new(Arc::default());
        ring.write(RingReg::Size, 4).unwrap();
        ring.write(RingReg::Control, 1).unwrap();
        ring
    }

    fn state(ring: &Ring) -> u64 {
        ring.read(RingReg::State)
    }

    #[test]
    fn only_a_disabled_ring_is_set_up() {
        let ring = running();
        assert!(ring.write(RingReg::Base, 0x1000).is_err());
        assert!(ring.write(RingReg::StatusAddr, 0x1000).is_err());
        assert!(ring.write(RingReg::Size, 5).is_err());
        ring.write(RingReg::Control, 0).unwrap();
        assert!(ring.write(RingReg::Base, 0x1000).is_ok());
        assert!(ring.write(RingReg::Base, 0x1001).is_err());
        assert!(ring.write(RingReg::StatusAddr, 0x1020).is_err());
        assert!(ring.write(RingReg::Size, 13).is_err());
        assert!(ring.write(RingReg::Size, 3).is_err());
        assert!(ring.write(RingReg::Control, 2).is_err());
        assert_eq!(
            (ring.read(RingReg::Base), ring.read(RingReg::Size)),
            (0x1000, 4)
        );
    }

    #[test]
    fn a_ring_without_size_is_not_enabled() {
        let ring = Ring::new(Arc::default());
        assert!(ring.write(RingReg::Control, 1).is_err());
        assert_eq!(state(&ring), RingState::Disabled as u64);
    }

    #[test]
    fn a_busy_ring_stops_when_its_job_is_through() {
        let ring = running();
        ring.write(RingReg::Doorbell, 1).unwrap();
        assert_eq!(ring.next(), Some(Job::Command(Some(0))));
        ring.write(RingReg::Control, 0).unwrap();
        assert_eq!(state(&ring), RingState::Stopping as u64);
        assert_eq!(ring.read(RingReg::Control), 0);
        assert!(ring.write(RingReg::Control, 1).is_err());
        assert_eq!(ring.check(), Err(Stopped));
        ring.halt();
        ring.done();
        assert_eq!(state(&ring), RingState::Disabled as u64);
    }

    #[test]
    fn a_command_that_is_let_go_does_not_stall_later() {
        let ring = running();
        ring.write(RingReg::Doorbell, 2).unwrap();
        assert!(ring.next().is_some());
        ring.release();
        assert_eq!(ring.rest(None), Ok(()));
        ring.done();
        // The next one is another.
        assert!(ring.next().is_some());
        ring.write(RingReg::Control, 0).unwrap();
        assert_eq!(ring.rest(None), Err(Stopped));
    }

    #[test]
    fn commands_wrap_around_and_a_full_ring_is_good() {
        let ring = running();
        ring.write(RingReg::Doorbell, 16).unwrap();
        for n in 0..16 {
            assert_eq!(ring.next(), Some(Job::Command(Some(n * 64))));
            ring.advance();
            ring.done();
        }
        ring.write(RingReg::Doorbell, 17).unwrap();
        assert_eq!(ring.next(), Some(Job::Command(Some(0))));
    }

    #[test]
    fn a_tail_too_far_ahead_or_behind_is_bad() {
        for tail in [17, u32::MAX.into(), 1 << 31] {
            let ring = running();
            ring.write(RingReg::Doorbell, tail).unwrap();
            assert_eq!(ring.next(), Some(Job::BadTail), "{tail}");
        }
    }

    #[test]
    fn commands_beyond_64_bits_have_no_address() {
        let ring = Ring::new(Arc::default());
        ring.write(RingReg::Size, 12).unwrap();
        ring.write(RingReg::Base, 0u64.wrapping_sub(4096)).unwrap();
        ring.write(RingReg::Control, 1).unwrap();
        ring.write(RingReg::Doorbell, 65).unwrap();
        for _ in 0..64 {
            assert!(matches!(ring.next(), Some(Job::Command(Some(_)))));
            ring.advance();
        }
        assert_eq!(ring.next(), Some(Job::Command(None)));
    }
}
