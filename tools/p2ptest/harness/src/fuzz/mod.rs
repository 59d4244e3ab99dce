// SPDX-License-Identifier: GPL-2.0
//! `make fuzz` and `make fuzz-models`.

mod corpus;
pub mod guest;
mod minimise;
pub mod models;

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::variable;

/// How long to go on, unless SECONDS says otherwise.
const SECONDS: u64 = 60;

/// What the user gave, if anything.
fn given<V: FromStr<Err: Display>>(name: &str) -> Result<Option<V>> {
    match variable::text(name) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => bail!("{name}={text}: {error}"),
        },
    }
}

/// What the user gave, or else `default`.
fn setting<V: FromStr<Err: Display>>(name: &str, default: V) -> Result<V> {
    Ok(given(name)?.unwrap_or(default))
}

fn duration() -> Result<Duration> {
    setting("SECONDS", SECONDS).map(Duration::from_secs)
}
