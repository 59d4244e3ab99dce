// SPDX-License-Identifier: GPL-2.0

//! MSI-X: the client's event file descriptors, and what is pending.
//!
//! The client emulates the table and its mask bits. Here a vector without a descriptor counts as
//! masked: what is raised meanwhile is delivered when the descriptor comes.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::bus::Interrupts;
use crate::wire::{SetIrqs, irq};

#[derive(Debug, Default)]
struct Vector {
    event: Option<OwnedFd>,
    pending: bool,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    vectors: Vec<Vector>,
}

/// All vectors of a device.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<State>,
}

impl Msix {
    /// With so many vectors, off.
    pub fn new(vectors: u16) -> Self {
        let vectors = (0..vectors).map(|_| Vector::default()).collect();
        Self {
            state: Mutex::new(State {
                enabled: false,
                vectors,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the enable bit of the capability. Nothing stays pending while it is off.
    pub fn set_enabled(&self, enabled: bool) {
        let mut state = self.state();
        state.enabled = enabled;
        if !enabled {
            state
                .vectors
                .iter_mut()
                .for_each(|vector| vector.pending = false);
        }
    }

    /// The client is gone. On return no descriptor of it is used.
    pub fn detach(&self) {
        let mut state = self.state();
        state.enabled = false;
        state
            .vectors
            .iter_mut()
            .for_each(|vector| *vector = Vector::default());
    }

    /// Serves `SET_IRQS` of the MSI-X index.
    pub fn set(&self, set: &SetIrqs, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let mut state = self.state();
        if set.flags & !irq::DATA_MASK != irq::ACTION_TRIGGER {
            return Err(Errno::OPNOTSUPP); // masking is the client's
        }
        let start = usize::try_from(set.start).map_err(|_| Errno::INVAL)?;
        let count = usize::try_from(set.count).map_err(|_| Errno::INVAL)?;
        let end = start.checked_add(count).ok_or(Errno::INVAL)?;
        let State { enabled, vectors } = &mut *state;
        let range = vectors.get_mut(start..end).ok_or(Errno::INVAL)?;
        match set.flags & irq::DATA_MASK {
            irq::DATA_NONE if !fds.is_empty() => Err(Errno::INVAL),
            irq::DATA_NONE if count == 0 && start == 0 => {
                vectors.iter_mut().for_each(|vector| vector.event = None);
                Ok(())
            }
            irq::DATA_NONE => {
                range.iter_mut().for_each(|vector| vector.raise(*enabled));
                Ok(())
            }
            irq::DATA_EVENTFD if fds.is_empty() => {
                range.iter_mut().for_each(|vector| vector.event = None);
                Ok(())
            }
            irq::DATA_EVENTFD if fds.len() == count => {
                for fd in &fds {
                    // A raise must never block, whatever the descriptor is.
                    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
                }
                for (vector, fd) in range.iter_mut().zip(fds) {
                    vector.event = Some(fd);
                    if vector.pending {
                        vector.raise(*enabled);
                    }
                }
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// The pending bits, as the array in the BAR has them: one bit a vector, in 64-bit words.
    pub fn pending_bits(&self) -> Vec<u8> {
        let state = self.state();
        let mut bits = vec![0; state.vectors.len().div_ceil(64) * 8];
        for (index, _) in state
            .vectors
            .iter()
            .enumerate()
            .filter(|(_, vector)| vector.pending)
        {
            bits[index / 8] |= 1 << (index % 8);
        }
        bits
    }
}

impl Vector {
    fn raise(&mut self, enabled: bool) {
        let Some(event) = &self.event else {
            self.pending = enabled;
            return;
        };
        self.pending = false;
        if !enabled {
            return;
        }
        match rustix::io::write(event, &1u64.to_ne_bytes()) {
            // A full counter says that the client has not looked yet: it will see this one too.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => log::warn!("MSI-X event descriptor: {errno}"),
        }
    }
}

impl Interrupts for Msix {
    fn raise(&self, vector: u16) {
        let mut state = self.state();
        let enabled = state.enabled;
        match state.vectors.get_mut(usize::from(vector)) {
            Some(vector) => vector.raise(enabled),
            None => log::error!("MSI-X vector {vector} does not exist"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    const TRIGGER: u32 = irq::ACTION_TRIGGER;

    fn set(flags: u32, start: u32, count: u32) -> SetIrqs {
        SetIrqs {
            flags,
            index: 2,
            start,
            count,
        }
    }

    /// An event descriptor and its twin for the device.
    fn event() -> (OwnedFd, OwnedFd) {
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let twin = event.try_clone().unwrap();
        (event, twin)
    }

    fn count(event: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(event, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    }

    #[test]
    fn raised_while_off_is_dropped() {
        let msix = Msix::new(2);
        let (event, twin) = event();
        msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 1, 1), vec![twin])
            .unwrap();
        msix.raise(1);
        msix.set_enabled(true);
        assert_eq!(count(&event), 0);
        msix.raise(1);
        msix.raise(0);
        assert_eq!(count(&event), 1);
    }

    #[test]
    fn raised_without_descriptor_is_delivered_later() {
        let msix = Msix::new(70);
        msix.set_enabled(true);
        msix.raise(65);
        assert_eq!(msix.pending_bits()[8], 2);
        let (event, twin) = event();
        msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 65, 1), vec![twin])
            .unwrap();
        assert_eq!(count(&event), 1);
        assert_eq!(msix.pending_bits(), [0; 16]);
    }

    #[test]
    fn off_forgets_what_is_pending() {
        let msix = Msix::new(1);
        msix.set_enabled(true);
        msix.raise(0);
        msix.set_enabled(false);
        assert_eq!(msix.pending_bits(), [0; 8]);
    }

    #[test]
    fn descriptors_are_taken_away() {
        let msix = Msix::new(2);
        msix.set_enabled(true);
        let (first, first_twin) = event();
        let (second, second_twin) = event();
        let both = vec![first_twin, second_twin];
        msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 0, 2), both)
            .unwrap();
        msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 1, 1), vec![])
            .unwrap();
        msix.raise(0);
        msix.raise(1);
        assert_eq!((count(&first), count(&second)), (1, 0));
        msix.set(&set(irq::DATA_NONE | TRIGGER, 0, 0), vec![])
            .unwrap();
        msix.raise(0);
        assert_eq!(count(&first), 0);
    }

    #[test]
    fn bad_ranges_are_refused() {
        let msix = Msix::new(2);
        for (start, count) in [(0, 3), (2, 1), (u32::MAX, u32::MAX), (0, u32::MAX)] {
            let set = set(irq::DATA_EVENTFD | TRIGGER, start, count);
            assert_eq!(msix.set(&set, vec![]), Err(Errno::INVAL), "{start} {count}");
        }
        let too_many = vec![event().1, event().1];
        assert!(
            msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 0, 1), too_many)
                .is_err()
        );
        assert!(
            msix.set(&set(irq::DATA_NONE | TRIGGER, 0, 1), vec![event().1])
                .is_err()
        );
        assert!(msix.set(&set(irq::DATA_NONE, 0, 0), vec![]).is_err());
        assert!(msix.set(&set(2 | TRIGGER, 0, 1), vec![]).is_err());
    }

    #[test]
    fn a_raise_never_blocks() {
        let msix = Msix::new(1);
        msix.set_enabled(true);
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        msix.set(&set(irq::DATA_EVENTFD | TRIGGER, 0, 1), vec![event])
            .unwrap();
        msix.raise(0);
    }
}
