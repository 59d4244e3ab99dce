// SPDX-License-Identifier: GPL-2.0

//! The counters that the guest and the control socket read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::regs::Counter;

/// One number for each [`Counter`], from power on.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    /// Adds `n`.
    pub fn add(&self, counter: Counter, n: u64) {
        self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` back, which was added for what then did not happen.
    pub fn take_back(&self, counter: Counter, n: u64) {
        self.0[counter as usize].fetch_sub(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// All are 0 again.
    pub fn clear(&self) {
        self.0
            .iter()
            .for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// All of them by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL
            .iter()
            .map(|row| (row.name, self.get(row.register)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_its_own() {
        let counters = Counters::default();
        for (n, row) in Counter::ALL.iter().enumerate() {
            counters.add(row.register, n as u64 + 1);
        }
        let values: Vec<u64> = counters.all().map(|(_, value)| value).collect();
        assert_eq!(values, (1..=Counter::ALL.len() as u64).collect::<Vec<_>>());
    }
}
