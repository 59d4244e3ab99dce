// SPDX-License-Identifier: GPL-2.0

//! A clock that costs next to nothing to read, and goes on from tick to tick only.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use super::{
    ClockSource,
    NSEC_PER_SEC, //
};
use crate::bindings;

/// The time of [`Monotonic`](super::Monotonic) at the last tick: up to `1/HZ` seconds ago.
///
/// # Examples
///
/// ```
/// use kernel::time::{
///     coarse::MonotonicCoarse,
///     Instant, //
/// };
///
/// let start = Instant::<MonotonicCoarse>::now();
/// assert!(!start.elapsed().is_negative());
/// ```
pub struct MonotonicCoarse;

// SAFETY: The time since boot is positive; it is kept from exceeding `KTIME_MAX`.
unsafe impl ClockSource for MonotonicCoarse {
    // CAST: The number of a clock is small.
    const ID: bindings::clockid_t = bindings::CLOCK_MONOTONIC_COARSE as bindings::clockid_t;

    fn ktime_get() -> bindings::ktime_t {
        let mut time = bindings::timespec64::default();
        // SAFETY: The time is written there; it can be called at any time.
        unsafe { bindings::ktime_get_coarse_ts64(&mut time) };
        time.tv_sec
            .saturating_mul(NSEC_PER_SEC)
            // CAST: `c_long` is not longer than `i64`.
            .saturating_add(time.tv_nsec as i64)
    }
}
