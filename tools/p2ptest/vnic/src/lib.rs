// SPDX-License-Identifier: GPL-2.0

//! The NIC of Documentation/gpu/p2pgpu/hardware.rst.
//!
//! Threads: one for the mailbox and resets, one for events, two for each queue pair (what it asks
//! of the other end, what the other end asks of it), two for the wire. They share [`state::Shared`]
//! under one lock that none holds during a DMA; the region handlers ([`Registers`]) only ever take
//! that lock.

#![forbid(unsafe_code)]

pub mod control;
mod counters;
mod device;
mod engine;
mod events;
mod inject;
mod link;
mod mailbox;
mod message;
mod nic;
mod queue;
mod region;
pub mod regs;
mod requester;
mod responder;
mod state;
mod wire;

pub use counters::{Counter, Counters, NAMES};
pub use device::Registers;
pub use inject::{Injector, What};
pub use nic::Nic;
pub use state::Shared;
pub use wire::{Mode, WireError};
