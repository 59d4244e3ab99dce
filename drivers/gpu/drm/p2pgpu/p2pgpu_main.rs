// SPDX-License-Identifier: GPL-2.0

//! DRM driver of a virtual GPU with a paged PCI aperture.
//!
//! - [`driver`], [`removal`]: probe and unbind; what belongs to a bound device and what to the DRM
//!   device; importers that do not let go.
//! - [`regs`], [`ring`], [`engine`]: the hardware, from registers to copies.
//! - [`vram`], [`slots`], [`aperture`], [`table`]: memory, and the window to it.
//! - [`gem`], [`migrate`], [`evict`], [`access`]: objects, and what the engine does with them.
//! - [`submit`], [`context`], [`job`], [`scheduler`], [`kick`]: jobs, and what moves them on.
//! - [`mod@export`], [`vma`], [`mapping`], [`peer`], [`import`]: who reaches them, by dma-buf and by
//!   user address, and whose they reach.
//! - [`pressure`], [`limits`], [`cgroup`], [`policy`], [`refusal`]: who must let go, and who is refused.
//! - [`mod@file`], [`fdinfo`], [`debugfs`], [`census`], [`activity`], [`trace`]: what userspace sees.
//!
//! # Lock order
//!
//! `mmap_lock`, then the reservation lock of one object, then the lock of who makes room in VRAM,
//! then the lock of promises, then the list of attached objects, that of those that may leave VRAM
//! or that of lost mappings, then the state of an object, then the aperture, then the order of a
//! context, then the queues of jobs, then the submission lock of a ring, then the ring's pending
//! fences, then the state of a job in a ring (both with interrupts off).

mod access;
mod activity;
mod aperture;
mod census;
mod cgroup;
mod context;
mod debugfs;
mod driver;
mod engine;
mod evict;
mod export;
mod fdinfo;
mod file;
mod gem;
mod import;
mod job;
mod kick;
mod limits;
mod mapping;
mod memory;
mod migrate;
mod patience;
mod peer;
mod policy;
mod pressure;
mod refusal;
mod regs;
mod removal;
mod ring;
mod scheduler;
mod settings;
mod slots;
mod submit;
mod table;
mod trace;
mod vma;
mod vram;

use kernel::{
    driver::Registration,
    pci,
    prelude::*,
    InPlaceModule, //
};

#[pin_data]
struct Module {
    // Field order: the devices are gone when their folder goes.
    #[pin]
    _driver: Registration<pci::Adapter<driver::P2pGpu>>,
    _debugfs: debugfs::Root,
    _devices: removal::Root,
}

impl InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: This runs once, and the driver is registered after it.
        let debugfs = unsafe { debugfs::Root::new() };
        // SAFETY: As above.
        let devices = unsafe { removal::Root::new() };

        try_pin_init!(Self {
            _driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            _debugfs: debugfs,
            _devices: devices,
        })
    }
}

module! {
    type: Module,
    name: "p2pgpu",
    authors: ["The p2pgpu developers"],
    description: "Virtual GPU with a paged PCI aperture",
    license: "GPL v2",
    imports_ns: ["DMA_BUF"],
}
