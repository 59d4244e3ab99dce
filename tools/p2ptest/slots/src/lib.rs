// SPDX-License-Identifier: GPL-2.0
//! Host tests of the driver's slot state machine: the very files that the kernel compiles.
//!
//! `model` is the same machine written as plainly as possible, `calls` compares the two call by
//! call, `rig` drives the machine as the aperture does and looks at who owns what, and `search` does
//! so in all situations that there are. `large` is about apertures of many slots.
#![cfg(test)]

mod calls;
mod large;
mod memory;
mod model;
mod rig;
mod search;
// In the kernel's own style.
#[rustfmt::skip]
#[path = "../../../../drivers/gpu/drm/p2pgpu/slots.rs"]
mod slots;
