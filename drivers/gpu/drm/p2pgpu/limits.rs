// SPDX-License-Identifier: GPL-2.0

//! Limits of what importers may pin in the aperture, so that no client can take it from all others.
//!
//! What is pinned counts for the process that flagged the object for peers. It counts once,
//! however many importers pin it, and until the last one lets go, even if the process has ended.

use crate::{
    driver::DrmDevice,
    settings::Number, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Mutex, //
    },
    task::Task, //
};

/// Who may pin how much, and who does.
#[pin_data]
pub(crate) struct Pins {
    #[pin]
    book: Mutex<Book>,
}

struct Book {
    /// Most slots that objects pinned by importers may have.
    device_limit: u32,
    /// Most of them that belong to one process.
    process_limit: u32,
    /// The objects that are pinned.
    entries: KVec<Entry>,
}

/// An object that is pinned.
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

impl Pins {
    /// Three quarters of `slots` can be pinned, half of them by one process.
    pub(crate) fn new(slots: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            book <- new_mutex!(
                Book {
                    device_limit: slots - slots / 4,
                    process_limit: slots / 2,
                    entries: KVec::new(),
                },
                "p2pgpu::limits::book"
            ),
        })
    }

    /// An object of `owner` with so many pages is pinned from now on. `ENOSPC`: past a limit.
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

    /// An object that was added is no longer pinned.
    pub(crate) fn remove(&self, owner: &Option<ARef<Task>>, slots: u32) {
        let mut book = self.book.lock();
        // Objects of one owner and size are alike.
        let found = book
            .entries
            .iter()
            .position(|entry| entry.slots == slots && is_same(&entry.owner, owner));
        let entry = found.and_then(|index| book.entries.remove(index).ok());
        drop(book);
        drop(entry);
    }
}

/// The limit of the device, as a setting. What is pinned already stays.
pub(crate) struct OfDevice;

impl Number for OfDevice {
    const NAME: &'static CStr = c"pin_limit";

    fn get(dev: &DrmDevice) -> u32 {
        dev.pins.book.lock().device_limit
    }

    fn set(dev: &DrmDevice, number: u32) {
        dev.pins.book.lock().device_limit = number;
    }
}

/// The limit of each process, as a setting. What is pinned already stays.
pub(crate) struct OfProcess;

impl Number for OfProcess {
    const NAME: &'static CStr = c"pin_limit_process";

    fn get(dev: &DrmDevice) -> u32 {
        dev.pins.book.lock().process_limit
    }

    fn set(dev: &DrmDevice, number: u32) {
        dev.pins.book.lock().process_limit = number;
    }
}
