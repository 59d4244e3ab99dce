// SPDX-License-Identifier: GPL-2.0
//! Host tests of the driver's slot state machine: the very file that the kernel compiles.
//!
//! `model` is the same machine written as plainly as possible, `calls` compares the two call by
//! call, and `owners` drives the machine as the aperture does and looks at who owns what.
#![cfg(test)]

mod calls;
mod model;
mod owners;
// In the kernel's own style.
#[rustfmt::skip]
#[path = "../../../../drivers/gpu/drm/p2pgpu/slots.rs"]
mod slots;
