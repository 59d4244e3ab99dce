// SPDX-License-Identifier: GPL-2.0
//! A test program in IGT's style: a list of subtests, one line when one starts
//! and one with its result, and exit status 0, 77 or 98. `igt_runner` can drive it.
//!
//! Around each subtest the resources and the fault logs of all devices are
//! compared, so that each is also a test for leaks and for device faults.

mod choice;
mod crash;
mod journal;
mod process;

pub use process::{Child, Outcome, fork};

use crate::debugfs::{Debugfs, Snapshot};
use crate::drm::PciAddress;
use choice::Choice;
use clap::Parser;
use journal::Journal;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One subtest of a program. Made by [`subtests!`].
#[derive(Debug, Clone, Copy)]
pub struct Subtest {
    /// The function's name
    pub function: &'static str,
    /// What is tested, a sentence a line
    pub about: &'static [&'static str],
    /// The test: returns if it passed, panics if not
    pub run: fn(),
    /// What its name starts with, and what is done before it: see [`Subtest::of`]
    pub variant: (&'static str, fn()),
}

impl Subtest {
    /// The name on the command line: words joined by dashes.
    pub fn name(&self) -> String {
        let (prefix, _) = self.variant;
        format!("{prefix}{}", self.function.replace('_', "-"))
    }

    /// The same test of something else, which `set_up` sees to. Its name starts with
    /// `prefix`.
    pub fn of(self, prefix: &'static str, set_up: fn()) -> Self {
        Self {
            variant: (prefix, set_up),
            ..self
        }
    }
}

/// Lists the subtests of a program, in the order in which they run.
///
/// Each entry is a function's name, with a doc comment that says what it tests.
#[macro_export]
macro_rules! subtests {
    ($( $(#[doc = $about:literal])+ $run:ident, )+) => {
        &[$($crate::igt::Subtest {
            function: stringify!($run),
            about: &[$($about),+],
            run: $run,
            variant: ("", || ()),
        }),+]
    };
}

/// Ends a subtest early, with a reason; other subtests go on.
#[track_caller]
pub fn skip(reason: impl Into<String>) -> ! {
    panic::panic_any(Skip(reason.into()))
}

/// Skips unless what the subtest needs is there.
#[track_caller]
pub fn require(there: bool, what: &str) {
    if !there {
        skip(what);
    }
}

/// The subtest takes this device away for good: it is not missed afterwards.
pub fn expect_gone(device: PciAddress) {
    GONE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(device);
}

static GONE: Mutex<Vec<PciAddress>> = Mutex::new(Vec::new());

struct Skip(String);

/// How a subtest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Success,
    Skip,
    Fail,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::Skip => "SKIP",
            Self::Fail => "FAIL",
        }
    }
}

/// All subtests passed or were skipped, and not all were skipped.
const EXIT_SUCCESS: u8 = 0;
/// All subtests were skipped.
const EXIT_SKIP: u8 = 77;
/// No subtest has the name asked for.
const EXIT_INVALID: u8 = 79;
/// A subtest failed.
const EXIT_FAIL: u8 = 98;

/// How long resources may take to come back after a subtest.
const SETTLE: Duration = Duration::from_secs(20);

#[derive(Debug, Parser)]
struct Options {
    /// Print the names of the subtests and exit
    #[arg(long)]
    list_subtests: bool,
    /// Print the names of the subtests and what they test, and exit
    #[arg(long)]
    describe: bool,
    /// Run only the subtests with these names (globs, separated by commas; "!" before
    /// one leaves out what it matches, and the last match counts)
    #[arg(long, value_name = "GLOBS", overrides_with = "run_subtest")]
    run_subtest: Option<Choice>,
    /// Do not look for leaked resources and device faults in debugfs
    #[arg(long)]
    no_debugfs: bool,
    /// Where the kernel's log takes lines from userspace: which subtest runs
    #[arg(long, value_name = "PATH", default_value = "/dev/kmsg")]
    kernel_log: PathBuf,
}

/// The `main` of a test program.
pub fn main(subtests: &[Subtest]) -> ExitCode {
    let options = Options::parse();
    if options.list_subtests || options.describe {
        for subtest in subtests {
            println!("{}", subtest.name());
            if options.describe {
                subtest.about.iter().for_each(|line| println!("   {line}"));
            }
        }
        return ExitCode::SUCCESS;
    }
    let debugfs = (!options.no_debugfs).then(Debugfs::default);
    let runner = Runner {
        debugfs,
        settle: SETTLE,
        journal: Journal::new(options.kernel_log),
    };
    ExitCode::from(runner.run_matching(subtests, options.run_subtest.as_ref()))
}

/// Runs subtests, and remembers nothing between them.
struct Runner {
    debugfs: Option<Debugfs>,
    settle: Duration,
    journal: Journal,
}

impl Runner {
    fn run_matching(&self, subtests: &[Subtest], choice: Option<&Choice>) -> u8 {
        let wanted = |subtest: &&Subtest| choice.is_none_or(|choice| choice.takes(&subtest.name()));
        let chosen: Vec<_> = subtests.iter().filter(wanted).collect();
        if chosen.is_empty() {
            eprintln!("No subtest has that name.");
            return EXIT_INVALID;
        }
        self.journal.begin(&version_line());
        panic::set_hook(Box::new(print_panic));
        let verdicts: Vec<_> = chosen
            .into_iter()
            .map(|subtest| self.run_one(subtest))
            .collect();
        drop(panic::take_hook());
        let status = exit_status(&verdicts);
        self.journal.end(status);
        status
    }

    fn run_one(&self, subtest: &Subtest) -> Verdict {
        let name = subtest.name();
        self.journal.start(&name);
        let start = Instant::now();
        let (_, set_up) = subtest.variant;
        let verdict = self.guarded(|| {
            set_up();
            (subtest.run)();
        });
        self.journal.finish(&name, verdict, start.elapsed());
        verdict
    }

    /// Runs the subtest and compares resources before and after.
    fn guarded(&self, run: impl FnOnce()) -> Verdict {
        let Some(debugfs) = &self.debugfs else {
            return verdict_of(run);
        };
        let mut before = match Snapshot::take(debugfs) {
            Ok(before) => before,
            Err(error) => {
                critical(&format!("debugfs is needed to find leaks: {error}"));
                return Verdict::Fail;
            }
        };
        let verdict = verdict_of(run);
        for device in &*GONE.lock().unwrap_or_else(PoisonError::into_inner) {
            before.forget(*device);
        }
        match before.settle(debugfs, self.settle) {
            Ok(Ok(())) => verdict,
            Ok(Err(difference)) => {
                critical(&format!("not as it was before: {difference}"));
                Verdict::Fail
            }
            Err(error) => {
                critical(&format!("debugfs is gone: {error}"));
                Verdict::Fail
            }
        }
    }
}

fn verdict_of(run: impl FnOnce()) -> Verdict {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(()) => Verdict::Success,
        Err(payload) if payload.is::<Skip>() => Verdict::Skip,
        Err(_) => Verdict::Fail,
    }
}

fn exit_status(verdicts: &[Verdict]) -> u8 {
    if verdicts.contains(&Verdict::Fail) {
        EXIT_FAIL
    } else if verdicts.contains(&Verdict::Success) {
        EXIT_SUCCESS
    } else {
        EXIT_SKIP
    }
}

fn version_line() -> String {
    let arch = std::env::consts::ARCH;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "IGT-Version: {version}-p2pgpu ({arch}) (Linux: {} {arch})",
        release.trim()
    )
}

fn critical(message: &str) {
    println!("(p2ptest:{}) CRITICAL: {message}", std::process::id());
}

/// The message of an assertion, if that is what the payload is.
fn message_of(payload: &dyn Any) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}

fn print_panic(info: &PanicHookInfo<'_>) {
    let place = info
        .location()
        .map_or("an unknown place".into(), ToString::to_string);
    if let Some(Skip(reason)) = info.payload().downcast_ref() {
        println!("Test requirement not met, {place}:");
        println!("Test requirement: {reason}");
    } else {
        critical(&format!("Test assertion failure, {place}:"));
        critical(message_of(info.payload()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn passes() {}

    fn is_skipped() {
        require(1 + 1 == 3, "another arithmetic");
    }

    fn fails() {
        assert_eq!(1 + 1, 3, "arithmetic");
    }

    const LIST: &[Subtest] = subtests![
        /// Always passes.
        passes,
        /// Is always skipped.
        is_skipped,
        /// Always fails.
        /// On purpose.
        fails,
    ];

    fn runner(debugfs: Option<Debugfs>) -> Runner {
        Runner {
            debugfs,
            settle: Duration::ZERO,
            journal: Journal::default(),
        }
    }

    #[test]
    fn names_have_dashes() {
        let names: Vec<_> = LIST.iter().map(Subtest::name).collect();
        assert_eq!(names, ["passes", "is-skipped", "fails"]);
        assert_eq!(LIST[2].about, [" Always fails.", " On purpose."]);
    }

    #[test]
    fn a_subtest_without_debugfs_fails() {
        let runner = runner(Some(Debugfs::at("/nonexistent")));
        assert_eq!(runner.run_one(&LIST[0]), Verdict::Fail);
    }

    /// Where the fake device of [`leaks`] is.
    fn fake_root() -> PathBuf {
        std::env::temp_dir().join(format!("p2pguest-igt-{}", std::process::id()))
    }

    fn set_regions(count: u32) {
        let folder = fake_root().join("p2pnic/0000:04:00.0");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("resources"), format!("regions {count}\n")).unwrap();
    }

    fn leaks() {
        set_regions(1);
    }

    #[test]
    fn a_leak_fails_a_subtest_that_passed() {
        fs::create_dir_all(fake_root().join("p2pgpu")).unwrap();
        set_regions(0);
        let runner = runner(Some(Debugfs::at(fake_root())));
        let list: &[Subtest] = subtests![
            /// Leaves a region behind.
            leaks,
        ];
        let before = runner.run_one(&LIST[0]);
        let leaked = runner.run_one(&list[0]);
        fs::remove_dir_all(fake_root()).unwrap();
        assert_eq!((before, leaked), (Verdict::Success, Verdict::Fail));
    }
}
