// SPDX-License-Identifier: GPL-2.0
//! What p2ptop is made of: reading what the driver shows in debugfs, and showing
//! it as a picture or as JSON.
//!
//! `parse` and `source` read, `map` and `rates` compute, `view`, `text` and
//! `json` show, `live` is the loop with keys.

#![forbid(unsafe_code)]

pub mod json;
pub mod live;
pub mod map;
pub mod parse;
pub mod rates;
pub mod source;
pub mod state;
pub mod terminal;
pub mod text;
pub mod view;

#[cfg(test)]
mod fixture;
