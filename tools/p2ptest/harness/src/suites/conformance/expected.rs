// SPDX-License-Identifier: GPL-2.0
//! Which programs `igt_runner` drives, and what is expected of them but to pass.

use super::report::Wanted;
use crate::context::Flavour;

/// Upstream's generic tests that apply to a driver which renders and shows nothing, in the
/// order in which they run: those that take the device away come last.
pub const UPSTREAM: [&str; 15] = [
    "core_getversion",
    "core_getclient",
    "core_getstats",
    "core_auth",
    "core_setmaster",
    "core_debugfs",
    "core_sysfs",
    "syncobj_basic",
    "syncobj_wait",
    "syncobj_timeline",
    "syncobj_eventfd",
    "dmabuf",
    "sw_sync",
    "device_reset",
    "core_hotunplug",
];

/// Those of upstream's that give the kernel a tenth of a second and less, of a clock that
/// goes on while a guest waits for a processor. They test DRM's core and sw_sync more than
/// any driver; a subtest of theirs that fails is run again, with no other guest at work,
/// [`AGAIN`] times at most.
pub const TIMED: [&str; 4] = [
    "syncobj_wait",
    "syncobj_timeline",
    "syncobj_eventfd",
    "sw_sync",
];
pub const AGAIN: usize = 2;

/// Those of [`TIMED`] that give the kernel a tenth of a second of which the normal one has 6 ms
/// left where nothing else runs. The debug kernel does not run them: it has not enough as often
/// as it has.
pub const TIGHT: [&str; 4] = [
    "syncobj_timeline@wait-all-for-submit-snapshot",
    "syncobj_timeline@wait-for-submit-snapshot",
    "syncobj_wait@wait-all-for-submit-snapshot",
    "syncobj_wait@wait-for-submit-snapshot",
];

/// Why a kernel does not run a subtest, if so.
pub fn too_slow(flavour: Flavour, program: &str, subtest: &str) -> Option<&'static str> {
    let test = format!("{program}@{subtest}");
    let is_slow = flavour == Flavour::Debug && TIGHT.contains(&test.as_str());
    is_slow.then_some("the debug kernel is too slow for the time that it gives")
}

/// Ours, which speak the same protocol: a few that are as good as all.
pub const OURS: [&str; 2] = ["p2p_gem", "p2p_probe"];

/// Ours that ends in each way that a test can.
pub const VERDICTS: &str = "verdicts";

/// A test that upstream's program skips here, and passes nowhere we can go.
#[derive(Debug)]
pub struct Skip {
    /// The program and the subtest.
    pub test: &'static str,
    /// What the program says of it: if it says something else, the skip is another one.
    pub says: &'static str,
    /// Why that is so.
    pub why: &'static str,
}

/// All of them, with IGT 2.5. One that passes after all is to be taken off: it fails.
pub const SKIPS: [Skip; 3] = [
    Skip {
        test: "dmabuf@all-tests",
        says: "!igt_list_empty(&tests)",
        why: "it loads a module of self-tests, which Linux 7.3 has as KUnit suites instead",
    },
    Skip {
        test: "device_reset@unbind-cold-reset-rebind",
        says: NO_SLOT,
        why: NO_POWER,
    },
    Skip {
        test: "device_reset@cold-reset-bound",
        says: NO_SLOT,
        why: NO_POWER,
    },
];

const NO_SLOT: &str = "does not support any pcie slot for cold reset";
const NO_POWER: &str = "no PCIe slot here has its power switched by the guest: QEMU 11.1.3 \
                        aborts when the power of a vfio-user-pci device goes";

/// What `igt_runner` is to report of the subtests of [`VERDICTS`].
const REPORTS: [(&str, &str); 5] = [
    ("good", "pass"),
    ("not-here", "skip"),
    ("bad", "fail"),
    ("deadly", "crash"),
    ("good-too", "pass"),
];

/// What is expected of a subtest.
pub fn wanted(program: &str, subtest: &str) -> Wanted {
    if program == VERDICTS {
        let report = REPORTS.iter().find(|(name, _)| *name == subtest);
        return report.map_or(Wanted::Pass, |(_, result)| Wanted::Report(result));
    }
    let test = format!("{program}@{subtest}");
    let skip = SKIPS.iter().find(|skip| skip.test == test);
    skip.map_or(Wanted::Pass, Wanted::Skip)
}

/// What the tables here name of a program, and is none of its subtests.
pub fn unknown<'a>(
    program: &'a str,
    subtests: &'a [String],
) -> impl Iterator<Item = &'static str> + 'a {
    let skips = SKIPS.iter().map(|skip| skip.test);
    skips.chain(TIGHT).filter(move |test| {
        let named = test.split_once('@').filter(|(of, _)| *of == program);
        named.is_some_and(|(_, name)| !subtests.iter().any(|subtest| subtest == name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        assert!(matches!(wanted("core_auth", "many-magics"), Wanted::Pass));
        assert!(matches!(wanted("dmabuf", "all-tests"), Wanted::Skip(_)));
        assert!(matches!(wanted(VERDICTS, "bad"), Wanted::Report("fail")));
    }

    #[test]
    fn only_the_debug_kernel_is_too_slow() {
        let why = |flavour, subtest| too_slow(flavour, "syncobj_wait", subtest);
        let tight = "wait-for-submit-snapshot";
        assert!(why(Flavour::Debug, tight).is_some());
        assert!(why(Flavour::Release, tight).is_none());
        assert!(why(Flavour::Debug, "wait-snapshot").is_none());
    }

    #[test]
    fn tables_name_programs_that_run() {
        assert!(TIMED.iter().all(|program| UPSTREAM.contains(program)));
        for test in TIGHT {
            let (program, _) = test.split_once('@').unwrap();
            assert!(TIMED.contains(&program), "{test}");
        }
        for skip in &SKIPS {
            let (program, _) = skip.test.split_once('@').unwrap();
            assert!(UPSTREAM.contains(&program), "{}", skip.test);
        }
    }

    #[test]
    fn a_skip_of_no_subtest_is_told() {
        let listed = ["reset-bound", "cold-reset-bound"].map(str::to_owned);
        let unknown: Vec<_> = unknown("device_reset", &listed).collect();
        assert_eq!(unknown, ["device_reset@unbind-cold-reset-rebind"]);
    }
}
