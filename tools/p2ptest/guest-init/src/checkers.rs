// SPDX-License-Identifier: GPL-2.0
//! The debug kernel's own checkers: set so that they miss nothing, asked whether
//! they still work, and asked for memory that nobody refers to.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use p2p_init::Look;

const LOCKDEP: &str = "/proc/lockdep_stats";
const DMA_DISABLED: &str = "/sys/kernel/debug/dma-api/disabled";
const DMA_ALL_ERRORS: &str = "/sys/kernel/debug/dma-api/all_errors";
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Younger memory is no leak to kmemleak: its owner may still hold the address in
/// a register.
const MIN_AGE: Duration = Duration::from_secs(6);

/// Makes the kernel report all errors of DMA, where it looks for them: it would
/// show the first one only.
///
/// # Errors
///
/// When a checker that is there does not take its setting.
pub fn set_up() -> Result<()> {
    if fs::exists(DMA_ALL_ERRORS)? {
        fs::write(DMA_ALL_ERRORS, "1").with_context(|| format!("writing {DMA_ALL_ERRORS}"))?;
    }
    Ok(())
}

/// The checkers that have stopped: lockdep does after its first report, others
/// when memory is short.
///
/// # Errors
///
/// When this kernel has no such checkers.
pub fn stopped() -> Result<Vec<&'static str>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let mut stopped = Vec::new();
    if !lockdep_works(&read(LOCKDEP)?) {
        stopped.push("lockdep");
    }
    if read(DMA_DISABLED)?.trim() != "N" {
        stopped.push("DMA-API debugging");
    }
    Ok(stopped)
}

fn lockdep_works(stats: &str) -> bool {
    stats
        .lines()
        .filter_map(|line| line.trim().strip_prefix("debug_locks:"))
        .any(|value| value.trim() == "1")
}

/// kmemleak's report of leaks that it did not tell before, line by line. `seen`: all that may
/// have leaked was there when it last scanned.
///
/// # Errors
///
/// When this kernel has no kmemleak, or it has stopped.
pub fn leaks(look: Look, seen: bool) -> Result<Vec<String>> {
    let command = |text: &str| {
        fs::write(KMEMLEAK, text).with_context(|| format!("writing {text} to {KMEMLEAK}"))
    };
    if look == Look::Thorough {
        // A scan passes over what changed since the one before.
        if !seen {
            command("scan")?;
        }
        sleep(MIN_AGE);
    }
    command("scan")?;
    let report = fs::read(KMEMLEAK).with_context(|| format!("reading {KMEMLEAK}"))?;
    command("clear")?;
    let report = String::from_utf8_lossy(&report);
    Ok(report.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdep_tells_whether_it_works() {
        let stats = |value| {
            format!(
                " max bfs queue depth:  300\n\n debug_locks:        {value}\n\n zapped classes: 1\n"
            )
        };
        assert!(lockdep_works(&stats(1)));
        assert!(!lockdep_works(&stats(0)));
        assert!(!lockdep_works(""));
    }
}
