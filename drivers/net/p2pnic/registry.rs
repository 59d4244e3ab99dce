// SPDX-License-Identifier: GPL-2.0

//! The NICs of the system, by the name of their character device, and the debugfs folder of all.

use crate::nic::Nic;
use kernel::{
    debugfs,
    prelude::*,
    sync::{
        global_lock,
        Arc, //
    }, //
};

/// Names of character devices; their number limits that of NICs.
const NAMES: [&CStr; 16] = [
    c"p2pnic0",
    c"p2pnic1",
    c"p2pnic2",
    c"p2pnic3",
    c"p2pnic4",
    c"p2pnic5",
    c"p2pnic6",
    c"p2pnic7",
    c"p2pnic8",
    c"p2pnic9",
    c"p2pnic10",
    c"p2pnic11",
    c"p2pnic12",
    c"p2pnic13",
    c"p2pnic14",
    c"p2pnic15",
];

struct Registry {
    debugfs: Option<debugfs::Dir>,
    nics: [Option<Arc<Nic>>; NAMES.len()],
}

global_lock! {
    // SAFETY: Initialized by `Guard::new`, which the module calls before anything else.
    unsafe(uninit) static REGISTRY: Mutex<Registry> = Registry {
        debugfs: None,
        nics: [const { None }; NAMES.len()],
    };
}

/// Empties the registry when the module goes.
pub(crate) struct Guard(());

impl Guard {
    /// # Safety
    ///
    /// Called once, before anything else of this file.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: The caller promises that this is the first use and the only call.
        unsafe { REGISTRY.init() };
        REGISTRY.lock().debugfs = Some(debugfs::Dir::new(c"p2pnic"));
        Self(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let debugfs = REGISTRY.lock().debugfs.take();
        drop(debugfs);
    }
}

/// The debugfs folder of all NICs.
pub(crate) fn debugfs() -> Option<debugfs::Dir> {
    REGISTRY.lock().debugfs.clone()
}

/// The NIC whose character device has this name.
pub(crate) fn find(name: &CStr) -> Option<Arc<Nic>> {
    let place = NAMES.iter().position(|known| *known == name)?;
    REGISTRY.lock().nics.get(place)?.clone()
}

/// A NIC's place in the registry, given back when dropped.
pub(crate) struct Entry(usize);

impl Entry {
    /// Enters a NIC. `ENOSPC`: there are too many.
    pub(crate) fn new(nic: Arc<Nic>) -> Result<Self> {
        let mut registry = REGISTRY.lock();
        let (place, free) = registry
            .nics
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.is_none())
            .ok_or(ENOSPC)?;
        *free = Some(nic);
        Ok(Self(place))
    }

    /// The name of the character device.
    pub(crate) fn name(&self) -> Result<&'static CStr> {
        NAMES.get(self.0).copied().ok_or(ENOSPC)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let nic = REGISTRY.lock().nics.get_mut(self.0).and_then(Option::take);
        drop(nic);
    }
}
