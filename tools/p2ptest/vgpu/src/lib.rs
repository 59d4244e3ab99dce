// SPDX-License-Identifier: GPL-2.0

//! The GPU of `Documentation/gpu/p2pgpu/hardware.rst`.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`regs`] | every number of the contract |
//! | [`state`] | the device's state, with reset |
//! | [`regions`] | what the guest's accesses to the BARs do; no bus in reach |
//! | [`ring`], [`worker`] | a ring's state; the threads, which alone hold the bus |
//! | [`command`], [`engine`] | commands as types; what they do |
//! | [`aperture`], [`tlb`], [`vram`] | slots, translations, pages |
//! | [`faults`], [`counters`] | what the device remembers |
//! | [`inject`], [`control`] | what a test does to it from outside |
//!
//! The guest is not trusted: whatever it writes ends in an error that the contract names, and costs
//! no more memory than VRAM, the aperture and a fixed amount.

#![forbid(unsafe_code)]

pub mod aperture;
pub mod command;
pub mod control;

pub mod counters;
pub mod engine;
pub mod faults;
pub mod inject;
mod ratelimit;
pub mod regions;
pub mod regs;
pub mod ring;
pub mod state;
mod sync;
pub mod tlb;
pub mod vram;
pub mod worker;
