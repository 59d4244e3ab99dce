// SPDX-License-Identifier: GPL-2.0

//! A clock that costs next to nothing to read, and goes on from tick to tick only.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use super::{
    ClockSource,
    Instant,
    Monotonic,
    NSEC_PER_SEC, //
};
use crate::bindings;
use core::marker::PhantomData;

/// The time of [`Monotonic`] at the last tick: `1/HZ` seconds ago at most, where ticks come in time.
///
/// It stands still while the CPU that counts the ticks does not get to it, as that of a guest may
/// for long. Who sleeps for a time and expects it to have passed asks [`Monotonic`], to which these
/// instants can be converted.
///
/// # Examples
///
/// ```
/// use kernel::time::{
///     coarse::MonotonicCoarse,
///     Instant,
///     Monotonic, //
/// };
///
/// let start = Instant::<MonotonicCoarse>::now();
/// assert!(!start.elapsed().is_negative());
/// assert!(!Instant::<Monotonic>::from(start).elapsed().is_negative());
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

/// The instant that was read, which is earlier than that at which it was read, or the same.
impl From<Instant<MonotonicCoarse>> for Instant<Monotonic> {
    fn from(at: Instant<MonotonicCoarse>) -> Self {
        // INVARIANT: Both have the same range.
        Self {
            inner: at.inner,
            _c: PhantomData,
        }
    }
}
