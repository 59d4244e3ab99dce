// SPDX-License-Identifier: GPL-2.0

//! A vfio-user server for PCI device models.
//!
//! A model implements [`Device`] and describes itself with a [`Config`]. Its engines run on threads
//! of their own and hold the [`Bus`](bus::Bus) and the [`Interrupts`](bus::Interrupts) of the
//! [`Server`]; both exist before the first client and outlive each. It is made for the client in
//! QEMU 11.1 (`-device vfio-user-pci`).
//!
//! What a model can rely on, and must heed:
//!
//! - The methods of [`Device`] run on one thread and never wait for an engine: see there.
//! - BARs answer (others read all ones) while the memory bit of the command register is set; DMA
//!   works while its bus-master bit is. The server keeps configuration space, and the MSI-X BAR
//!   [`MSIX_BAR`], to itself.
//! - Guest RAM is copied directly if the client sent a sealed memfd for it (QEMU's
//!   `memory-backend-memfd,share=on`), and goes by message else, as all other addresses do. No
//!   more than 32 KiB go in a message; larger transfers are split, and so is one that crosses
//!   from RAM to something else.
//! - An aligned DMA of 1, 2, 4 or 8 bytes to RAM is one load or store. A later write is not seen
//!   before an earlier one of the same thread.
//! - A write that returned is in RAM; in a trapped BAR of a peer it is posted, and a read of the
//!   same peer pushes it home. An interrupt raised after a write follows it.
//! - When the client unmaps memory, clears the bus-master bit, resets or goes, no copy to RAM goes
//!   on afterwards. A DMA by message may still be under way: the client judges it.
//! - Clients come one after another; each finds configuration space as at power on.
//!
//! ```no_run
//! use p2p_vfio_user::{Backing, Bar, Config, Device, Server};
//!
//! struct Model;
//!
//! impl Device for Model {
//!     fn read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
//!         data.fill(0);
//!     }
//!     fn write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}
//!     fn reset(&mut self) {}
//! }
//!
//! let registers = Bar {
//!     size: 4096,
//!     is_64bit: false,
//!     prefetchable: false,
//!     backing: Backing::Trapped,
//! };
//! let config = Config {
//!     vendor: 0x1234,
//!     device: 0x2019,
//!     class: 0x03_80_00,
//!     revision: 0,
//!     bars: [Some(registers), None, None, None, None, None],
//!     msix_vectors: 3,
//! };
//! let mut server = Server::bind("gpu.sock", config)?;
//! let (bus, interrupts) = (server.bus(), server.interrupts());
//! std::thread::spawn(move || {
//!     if bus.write(0x1000, &[1]).is_ok() {
//!         interrupts.raise(0);
//!     }
//! });
//! let stop = server.stop_handle(); // Clone + Send: for a signal handler or a control socket
//! # stop.stop();
//! server.run(&mut Model)?;
//! # Ok::<(), p2p_vfio_user::Error>(())
//! ```

pub mod bus;
mod config;
mod connection;
mod device;
mod dma;
mod msix;
mod pci;
mod server;
mod session;
mod shared;
mod version;
mod wire;

pub use config::{Backing, Bar, Config, ConfigError, MAX_VECTORS, MSIX_BAR};
pub use config::{MSIX_BAR_SIZE, MSIX_PBA};
pub use device::Device;
pub use server::{Error, Server, Stop};
pub use shared::{OutOfRange, SharedMemory};
