// SPDX-License-Identifier: GPL-2.0

//! Driver for the virtual RDMA NIC that Documentation/gpu/p2pgpu/hardware.rst describes.
//!
//! The NIC moves data between memory regions of two systems. A region is a range of a dma-buf that
//! somebody else exports, VRAM behind a GPU's BAR for example, or of user addresses, and may move
//! while it is registered: the exporter, or the memory management, takes the mapping back, the
//! driver has the device let go of it, and maps again when a request next needs the region.
//!
//! # Ownership
//!
//! Open files outlive the binding of the device. [`nic::Nic`] is what they share; all that needs
//! the bound device lies behind its [`gate::Gate`], which unbinding closes before it takes
//! regions, queues and their DMA memory away.
//!
//! # Lock order
//!
//! 1. the gate (shared; only unbinding and resets wait for it, with nothing held)
//! 2. the event queue ([`events`]), then the queue of workers; neither while a region is mapped
//! 3. what a region is a range of
//! 4. the dma-buf's reservation lock; for a range of user addresses the locks of mm/p2p_vma.c,
//!    `mmap_lock` among them
//! 5. a region's state
//! 6. the mailbox
//!
//! 5 and 6 are taken where memory is reclaimed: with them held, none is allocated.
//! `mmap_lock` comes before the reservation lock, as everywhere. The table of regions, the table of
//! queue pairs, and a queue pair's locks are taken with at most the gate and the event queue held;
//! under a queue pair's locks only the mailbox is taken. Nothing is copied to or from user memory
//! with any of 1 to 6 held: whoever serves a page fault could keep the device from being unbound.

use kernel::{
    driver::Registration,
    pci,
    prelude::*,
    InPlaceModule, //
};

mod debugfs;
mod driver;
mod events;
mod file;
mod gate;
mod ioctl;
mod mailbox;
mod nic;
mod queue;
mod region;
mod registry;
mod regs;
mod settings;
mod signal;
mod slots;

#[pin_data]
struct Module {
    // Field order: the driver is gone when the registry is emptied.
    #[pin]
    _driver: Registration<pci::Adapter<driver::Driver>>,
    _registry: registry::Guard,
}

impl InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: This runs once, before anything else of the module.
        let registry = unsafe { registry::Guard::new() };

        try_pin_init!(Self {
            _driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            _registry: registry,
        })
    }
}

module! {
    type: Module,
    name: "p2pnic",
    authors: ["The p2pgpu developers"],
    description: "Virtual RDMA NIC that imports dma-bufs and user addresses",
    license: "GPL v2",
    imports_ns: ["DMA_BUF"],
}
