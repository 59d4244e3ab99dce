// SPDX-License-Identifier: GPL-2.0

//! Limits of what importers may pin in the aperture, and of what may be reserved, so that no client
//! can take it from all others.
//!
//! An object counts for the process that flagged it for peers, even if that has ended: once among
//! the pins, however many importers pin it, until the last one lets go, and once among the
//! reservations.

use crate::{
    driver::DrmDevice,
    settings::Number, //
};
use core::mem;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Mutex, //
    },
    task::Task, //
};

/// Who may have how much pinned, or reserved, and who has.
#[pin_data]
pub(crate) struct Limits {
    #[pin]
    book: Mutex<Book>,
}

struct Book {
    /// Most slots that all objects together may have.
    device_limit: u32,
    /// Most of them that belong to one process.
    process_limit: u32,
    /// The objects that are pinned, or reserved.
    entries: KVec<Entry>,
}

/// An object that is pinned, or reserved.
struct Entry {
    owner: Option<ARef<Task>>,
    slots: u32,
}

/// The process, as the kernel knows it: the first thread.
fn is_same(a: &Option<ARef<Task>>, b: &Option<ARef<Task>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => core::ptr::eq(&**a, &**b),
        (None, None) => true,
        _ => false,
    }
}

impl Limits {
    /// Three quarters of `slots` can be pinned, half of them for one process.
    pub(crate) fn of_pins(slots: u32) -> impl PinInit<Self> {
        Self::new(slots - slots / 4, slots / 2)
    }

    /// As much can be reserved as fits, by one process too.
    pub(crate) fn of_reservations() -> impl PinInit<Self> {
        Self::new(u32::MAX, u32::MAX)
    }

    fn new(device_limit: u32, process_limit: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            book <- new_mutex!(
                Book {
                    device_limit,
                    process_limit,
                    entries: KVec::new(),
                },
                "p2pgpu::limits::book"
            ),
        })
    }

    /// An object of `owner` with so many pages counts from now on. `ENOSPC`: past a limit.
    pub(crate) fn add(&self, owner: Option<ARef<Task>>, slots: u32) -> Result {
        let mut book = self.book.lock();
        let (mut all, mut own) = (slots, slots);
        for entry in &book.entries {
            all = all.saturating_add(entry.slots);
            if is_same(&entry.owner, &owner) {
                own = own.saturating_add(entry.slots);
            }
        }
        if all > book.device_limit || own > book.process_limit {
            return Err(ENOSPC);
        }
        Ok(book.entries.push(Entry { owner, slots }, GFP_KERNEL)?)
    }

    /// An object that was added no longer counts.
    pub(crate) fn remove(&self, owner: &Option<ARef<Task>>, slots: u32) {
        let mut book = self.book.lock();
        // Objects of one owner and size are alike.
        let found = book
            .entries
            .iter()
            .position(|entry| entry.slots == slots && is_same(&entry.owner, owner));
        let entry = found.and_then(|index| book.entries.remove(index).ok());
        // Nobody keeps the memory of the most that there ever were.
        let unused = book
            .entries
            .is_empty()
            .then(|| mem::take(&mut book.entries));
        drop(book);
        drop((entry, unused));
    }
}

macro_rules! settings {
    ($( $(#[$doc:meta])* $setting:ident, $name:literal, $limits:ident, $limit:ident; )+) => {$(
        $(#[$doc])*
        ///
        /// What is past a new limit already stays.
        pub(crate) struct $setting;

        impl Number for $setting {
            const NAME: &'static CStr = $name;

            fn get(dev: &DrmDevice) -> u32 {
                dev.$limits.book.lock().$limit
            }

            fn set(dev: &DrmDevice, number: u32) {
                dev.$limits.book.lock().$limit = number;
            }
        }
    )+};
}

settings! {
    /// Most slots that may be pinned.
    Pins, c"pin_limit", pins, device_limit;
    /// Most slots that may be pinned for one process.
    PinsOfProcess, c"pin_limit_process", pins, process_limit;
    /// Most slots that may be reserved.
    Reservations, c"reserve_limit", reservations, device_limit;
    /// Most slots that may be reserved for one process.
    ReservationsOfProcess, c"reserve_limit_process", reservations, process_limit;
}
