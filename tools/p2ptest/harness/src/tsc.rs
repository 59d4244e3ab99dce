// SPDX-License-Identifier: GPL-2.0
//! How fast the host's time stamp counter runs, which is the guest's under TCG.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for some millionths of what is measured to be an error.
const TIME: Duration = Duration::from_millis(100);
/// Looks at the two clocks, of which the quickest counts: others were interrupted.
const LOOKS: usize = 50;

/// In kHz; nothing where the processor has none.
pub fn khz() -> Option<u64> {
    let (start, first) = look()?;
    thread::sleep(TIME);
    let (end, last) = look()?;
    let nanoseconds = end.checked_duration_since(start)?.as_nanos();
    let ticks = u128::from(last.checked_sub(first)?);
    u64::try_from((ticks * 1_000_000).checked_div(nanoseconds)?).ok()
}

/// Both clocks at one time.
fn look() -> Option<(Instant, u64)> {
    let looks = (0..LOOKS).filter_map(|_| {
        let before = Instant::now();
        let ticks = ticks()?;
        Some((before.elapsed(), before, ticks))
    });
    let (_, time, ticks) = looks.min_by_key(|(took, ..)| *took)?;
    Some((time, ticks))
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: every processor of this architecture has the counter, and QEMU reads it too.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let Some([first, second]) = khz().zip(khz()).map(<[u64; 2]>::from) else {
            return;
        };
        // The kernel takes what is wrong by less than a hundredth.
        assert!(first.abs_diff(second) < first / 500, "{first} {second}");
    }
}
