// SPDX-License-Identifier: GPL-2.0
//! `make fuzz` and `make fuzz-models`.

pub mod guest;
mod minimise;
pub mod models;

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};

/// How long to go on, unless SECONDS says otherwise.
const SECONDS: u64 = 60;

/// A number of the user's.
fn setting<N: FromStr<Err: Display>>(name: &str, default: N) -> Result<N> {
    match std::env::var(name).ok().filter(|text| !text.is_empty()) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(number) => Ok(number),
            Err(error) => bail!("{name}={text}: {error}"),
        },
    }
}

fn duration() -> Result<Duration> {
    setting("P2PGPU_SECONDS", SECONDS).map(Duration::from_secs)
}
