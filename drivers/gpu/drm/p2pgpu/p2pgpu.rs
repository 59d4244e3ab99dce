// SPDX-License-Identifier: GPL-2.0

//! DRM driver of a virtual GPU with a paged PCI aperture.
//!
//! - [`driver`]: probe and unbind; what belongs to a bound device and what to the DRM device.
//! - [`regs`], [`ring`], [`engine`]: the hardware, from registers to copies.
//! - [`vram`], [`slots`], [`aperture`]: memory, and the window to it.
//! - [`gem`], [`migrate`], [`export`], [`peer`]: objects, and who reaches them.
//! - [`file`], [`debugfs`]: what userspace sees.
//!
//! # Lock order
//!
//! `mmap_lock`, then the reservation lock of one object, then its state, then the aperture, then
//! the submission lock of a ring, then the ring's pending fences (interrupts off).

mod aperture;
mod debugfs;
mod driver;
mod engine;
mod export;
mod file;
mod gem;
mod migrate;
mod peer;
mod regs;
mod ring;
mod slots;
mod vram;

kernel::module_pci_driver! {
    type: driver::P2pGpu,
    name: "p2pgpu",
    authors: ["p2pgpu developers"],
    description: "Virtual GPU with a paged PCI aperture",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}
