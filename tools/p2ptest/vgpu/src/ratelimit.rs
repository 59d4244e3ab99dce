// SPDX-License-Identifier: GPL-2.0

//! Warnings that the guest can cause: a few each second, the rest counted.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Warnings let through in one [`PERIOD`].
const BURST: u32 = 10;
/// How long a burst lasts.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    passed: u32,
    held_back: u64,
}

/// What one place of the code may say.
#[derive(Debug)]
pub struct Limiter(Mutex<State>);

impl Limiter {
    /// A limiter that has let nothing through.
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            since: None,
            passed: 0,
            held_back: 0,
        }))
    }

    /// Whether a warning may pass at `now`, and how many were held back before it.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        if state
            .since
            .is_none_or(|since| now.duration_since(since) >= PERIOD)
        {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed == BURST {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

/// `log::warn!`, limited for the place where it stands.
macro_rules! warn_limited {
    ($($message:tt)*) => {{
        static LIMITER: $crate::ratelimit::Limiter = $crate::ratelimit::Limiter::new();
        if let Some(held_back) = LIMITER.pass(std::time::Instant::now()) {
            log::warn!($($message)*);
            if held_back > 0 {
                log::warn!("({held_back} more like this)");
            }
        }
    }};
}
pub(crate) use warn_limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_later() {
        let limiter = Limiter::new();
        let start = Instant::now();
        let passed = (0..100).filter(|_| limiter.pass(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.pass(start + PERIOD), Some(100 - u64::from(BURST)));
    }
}
