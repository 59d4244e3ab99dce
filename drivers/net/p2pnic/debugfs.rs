// SPDX-License-Identifier: GPL-2.0

//! What tests and curious people read under `/sys/kernel/debug/p2pnic/<PCI address>/`: `resources`
//! (what exists now) and `counters` (what the device did), a name and a number a line.

use crate::{
    nic::Nic,
    registry, //
    regs::Counter,
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    sync::Arc, //
};

type NicFile = Pin<KBox<File<Arc<Nic>>>>;

/// The files of one NIC, removed when dropped.
pub(crate) struct Files {
    _resources: NicFile,
    _counters: NicFile,
    _dir: Dir,
}

impl Files {
    pub(crate) fn new(nic: &Arc<Nic>) -> Result<Self> {
        let dir = registry::debugfs()
            .ok_or(ENODEV)?
            .subdir(nic.pdev().as_ref().name());
        let resources = dir.read_callback_file(c"resources", nic.clone(), &write_resources);
        let resources = KBox::pin_init(resources, GFP_KERNEL)?;
        let counters = dir.read_callback_file(c"counters", nic.clone(), &write_counters);
        let counters = KBox::pin_init(counters, GFP_KERNEL)?;
        Ok(Self {
            _resources: resources,
            _counters: counters,
            _dir: dir,
        })
    }
}

fn write_resources(nic: &Arc<Nic>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "regions {}", nic.region_count())?;
    writeln!(f, "queue_pairs {}", nic.queue_pair_count())
}

fn write_counters(nic: &Arc<Nic>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let nic = nic.enter().map_err(|_| fmt::Error)?;
    for (counter, name) in Counter::ALL {
        let value = nic.counter(counter).map_err(|_| fmt::Error)?;
        writeln!(f, "{name} {value}")?;
    }
    Ok(())
}
