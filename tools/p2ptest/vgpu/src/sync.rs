// SPDX-License-Identifier: GPL-2.0

//! Locking helpers, and the bell that wakes the service thread.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

/// Locks. A panic elsewhere does not make the state unusable: every critical section of this
/// crate leaves it consistent at each step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading, see [`lock`].
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing, see [`lock`].
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The work that a [`Bell`] announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The fault log has a new entry: raise its vector.
    pub fault: bool,
    /// A reset was asked for, or a ring became idle: see whether the reset can end.
    pub reset: bool,
    /// The device is going away.
    pub quit: bool,
}

/// Rung by region handlers and engines, awaited by the service thread. Rings of one kind merge.
#[derive(Debug, Default)]
pub struct Bell {
    calls: Mutex<Calls>,
    rung: Condvar,
}

impl Bell {
    /// The fault log has a new entry.
    pub fn fault(&self) {
        lock(&self.calls).fault = true;
        self.rung.notify_all();
    }

    /// A reset may be able to go on.
    pub fn reset(&self) {
        lock(&self.calls).reset = true;
        self.rung.notify_all();
    }

    /// The service thread is to end.
    pub fn quit(&self) {
        lock(&self.calls).quit = true;
        self.rung.notify_all();
    }

    /// Waits until there is something to do, and takes it.
    pub fn wait(&self) -> Calls {
        let calls = lock(&self.calls);
        let mut calls = self
            .rung
            .wait_while(calls, |calls| *calls == Calls::default())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *calls)
    }
}
