// SPDX-License-Identifier: GPL-2.0
//! What the guest's test programs and the demo share.
//!
//! Calls come in pairs, as in IGT: `__foo()` returns the errno, `foo()`
//! asserts that the call works and names the caller's line when it does not.

// `__foo()` beside `foo()` is the convention here, not an unused binding.
#![allow(clippy::used_underscore_items)]

pub mod addresses;
pub mod binding;
pub mod cgroup;
pub mod debugfs;
pub mod dmabuf;
pub mod drm;
pub mod failnth;
pub mod flight;
pub mod foreign;
pub mod fuzz;
pub mod gpu;
pub mod host;
pub mod igt;
pub mod importer;
pub mod kcov;
pub mod map;
pub mod memory;
pub mod nic;
pub mod pattern;
pub mod primary;
pub mod rig;
pub mod setting;
pub mod shared;
pub mod signals;
pub mod simple;
pub mod stray;
pub mod submit;
pub mod swsync;
pub mod syncobj;
pub mod sys;
pub mod topology;
pub mod trace;
pub mod vfio;

use nix::errno::Errno;
use std::fmt;

/// Asserts that a call worked: the half that `foo()` adds to `__foo()`.
#[track_caller]
pub fn must<T>(result: Result<T, Errno>, what: fmt::Arguments<'_>) -> T {
    match result {
        Ok(value) => value,
        Err(errno) => panic!("{what} failed: {errno}"),
    }
}

/// Asserts that a call is refused, and why.
#[track_caller]
pub fn refused<T>(result: Result<T, Errno>, expected: Errno) {
    match result {
        Ok(_) => panic!("the call worked, expected {expected}"),
        Err(errno) => assert_eq!(errno, expected, "refused for another reason"),
    }
}
