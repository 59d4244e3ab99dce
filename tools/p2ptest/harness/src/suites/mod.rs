// SPDX-License-Identifier: GPL-2.0
//! The groups of tests. Each lists its tests, then runs those that are wanted.

pub mod audit;
pub mod checks;
pub mod conformance;
pub mod guest;
pub mod host;
pub mod kunit;
