// SPDX-License-Identifier: GPL-2.0
//! What happens per second, from two looks at counters that only grow.

use crate::parse::Numbers;
use crate::source::Sample;
use std::collections::BTreeMap;

/// Events per second, by counter.
pub type Rates = BTreeMap<String, f64>;

/// The rates between two samples of a device. `None`: no time has passed, or the
/// counters began anew, as those of a device that was unbound and bound again do.
pub fn between(before: &Sample, now: &Sample) -> Option<Rates> {
    let seconds = now.time.checked_duration_since(before.time)?.as_secs_f64();
    rates(&before.activity, &now.activity, seconds)
}

fn rates(before: &Numbers, now: &Numbers, seconds: f64) -> Option<Rates> {
    if seconds <= 0.0 {
        return None;
    }
    now.iter()
        .map(|(name, &count)| {
            let added = count.checked_sub(before.get(name).copied().unwrap_or(0))?;
            // Exact up to 2^53 events in an interval.
            Some((name.clone(), added as f64 / seconds))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, parse};

    #[test]
    fn rates_are_per_second() {
        let before = parse::numbers(fixture::ACTIVITY).unwrap();
        let now = parse::numbers(fixture::ACTIVITY_LATER).unwrap();
        let found = rates(&before, &now, 2.0).unwrap();
        assert_eq!(found["cpu_faults"], 512.0);
        assert_eq!(found["invalidations"], 1.5);
        assert_eq!(found["refusals"], 0.0);
        assert_eq!(found.len(), 7);
    }

    #[test]
    fn counters_that_begin_anew_have_no_rates() {
        let before = parse::numbers(fixture::ACTIVITY_LATER).unwrap();
        let now = parse::numbers(fixture::ACTIVITY).unwrap();
        assert_eq!(rates(&before, &now, 1.0), None);
        assert_eq!(rates(&now, &before, 0.0), None);
    }

    #[test]
    fn a_counter_may_be_new() {
        let now = parse::numbers("new 3\n").unwrap();
        assert_eq!(rates(&Numbers::new(), &now, 1.5).unwrap()["new"], 2.0);
    }
}
