// SPDX-License-Identifier: GPL-2.0
//! Failures on demand: the nth allocation, or copy from or to userspace, that
//! the kernel does for this thread fails (Documentation/fault-injection). Only
//! the debug kernel can do that.

use crate::debugfs::{Debugfs, Snapshot};
use crate::igt;
use nix::errno::Errno;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const FAIL_NTH: &str = "/proc/thread-self/fail-nth";
const DEBUGFS: &str = "/sys/kernel/debug";

/// Allocations that may wait fail as well, and single pages; the kernel's log is
/// not filled with each of them.
const SETTINGS: [(&str, &str); 9] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("failslab/stacktrace-depth", "32"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_page_alloc/verbose", "0"),
    ("fail_page_alloc/stacktrace-depth", "32"),
    ("fail_usercopy/verbose", "0"),
];

/// Beginning and end of the kernel's code that keeps DMA-API debugging's books: it
/// stops for good when it gets no memory.
const BOOKKEEPING: [&str; 2] = ["debug_dma_map_single", "debug_dma_free_pages"];

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Allocations, and copies from and to userspace.
    All,
    /// Allocations. For calls whose result the core of DRM copies to userspace: when
    /// that fails, it forgets the handle or the descriptor that it has just made.
    Allocations,
}

/// What a failed allocation or copy may end in.
const CLEAN: [Errno; 2] = [Errno::ENOMEM, Errno::EFAULT];

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Of objects: more than a page, so that there are lists of pages.
pub const SIZE: u64 = 4 * PAGE;

/// More failures than any call has places for.
const MAX_FAILURES: u32 = 20_000;

/// How long resources may take to come back.
const SETTLE: Duration = Duration::from_secs(60);

/// The thread's switch.
#[derive(Debug)]
pub struct FailNth {
    file: File,
    debugfs: Debugfs,
}

/// What came of trying all failures of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The call returned an error.
    pub refused: u32,
    /// The call worked all the same.
    pub absorbed: u32,
}

#[track_caller]
fn configure(path: &str, value: &str) {
    let path = Path::new(DEBUGFS).join(path);
    if let Err(error) = fs::write(&path, value) {
        panic!("{}: {error}", path.display());
    }
}

/// Where the addresses of [`BOOKKEEPING`] are kept: they do not change as long as the kernel
/// runs, and it takes seconds to name all of its symbols.
const ADDRESSES: &str = "/tmp/failnth-addresses";

/// The addresses of [`BOOKKEEPING`].
#[track_caller]
fn bookkeeping() -> [u64; 2] {
    let kept = fs::read_to_string(ADDRESSES).unwrap_or_default();
    let kept: Vec<_> = kept
        .split(' ')
        .map_while(|word| word.parse().ok())
        .collect();
    if let [start, end] = kept[..] {
        return [start, end];
    }
    let [start, end] = addresses(BOOKKEEPING);
    // If it cannot be kept, it is looked for again.
    let _ = fs::write(ADDRESSES, format!("{start} {end}"));
    [start, end]
}

/// The addresses of two functions of the kernel, in this order.
#[track_caller]
fn addresses(names: [&str; 2]) -> [u64; 2] {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let found = names.map(|name| {
        let mut lines = symbols.lines().map(|line| line.split(' '));
        let line = lines.find(|line| line.clone().nth(2) == Some(name));
        line.and_then(|mut line| u64::from_str_radix(line.next()?, 16).ok())
    });
    match found {
        [Some(start), Some(end)] if start < end => [start, end],
        _ => panic!("the kernel does not tell where {names:?} are: {found:x?}"),
    }
}

impl FailNth {
    /// Skips the subtest where the kernel cannot make things fail.
    #[track_caller]
    pub fn open(what: What) -> Self {
        igt::require(
            Path::new(FAIL_NTH).exists(),
            "needs a kernel with fault injection, as the debug kernel (DEBUG=1)",
        );
        for (path, value) in SETTINGS {
            configure(path, value);
        }
        let [start, end] = bookkeeping().map(|address| address.to_string());
        for kind in ["failslab", "fail_page_alloc"] {
            configure(&format!("{kind}/reject-start"), &start);
            configure(&format!("{kind}/reject-end"), &end);
        }
        // Whoever calls, if all are rejected.
        let all = match what {
            What::All => 0,
            What::Allocations => u64::MAX,
        };
        configure("fail_usercopy/stacktrace-depth", "1");
        configure("fail_usercopy/reject-end", &all.to_string());
        match OpenOptions::new().read(true).write(true).open(FAIL_NTH) {
            Ok(file) => Self {
                file,
                debugfs: Debugfs::default(),
            },
            Err(error) => panic!("{FAIL_NTH}: {error}"),
        }
    }

    fn set(&self, nth: u32) -> io::Result<()> {
        // Decimal, in a buffer on the stack: nothing may be allocated from here on.
        let mut text = [0; 10];
        let mut at = text.len();
        let mut rest = nth;
        loop {
            at -= 1;
            text[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.file.write_all_at(&text[at..], 0)
    }

    /// Whether what was set has come to pass; and nothing fails any more.
    fn take(&self) -> bool {
        let mut text = [0; 16];
        // Reading copies to userspace, which may be what fails: then the call did not.
        let passed = matches!(self.file.read_at(&mut text, 0), Ok(n) if n > 0 && text[0] == b'0');
        // For the same reason twice.
        if self.set(0).is_err()
            && let Err(error) = self.set(0)
        {
            panic!("{FAIL_NTH}: {error}");
        }
        passed
    }

    /// Calls again and again, each time with a later failure, until a call comes
    /// to its end without one, and works. After each the devices' resources are as
    /// before.
    ///
    /// `prepare` makes what a call works on, and `check` looks at it afterwards. They
    /// never see a failure, nor does what drops it.
    #[track_caller]
    pub fn exhaust<P, T: Debug>(
        &self,
        prepare: impl Fn() -> P,
        call: impl Fn(&P) -> Result<T, Errno>,
        check: impl Fn(&P, Result<&T, &Errno>),
    ) -> Tried {
        let snapshot = || match Snapshot::take(&self.debugfs) {
            Ok(snapshot) => snapshot,
            Err(error) => panic!("debugfs is needed to find leaks: {error}"),
        };
        let mut tried = Tried {
            refused: 0,
            absorbed: 0,
        };
        let before = snapshot();
        for nth in 1..MAX_FAILURES {
            let prepared = prepare();
            if let Err(error) = self.set(nth) {
                panic!("{FAIL_NTH}: {error}");
            }
            let result = call(&prepared);
            let failed = self.take();
            check(&prepared, result.as_ref());
            match &result {
                Ok(_) if !failed => {
                    assert!(nth > 1, "the call has nothing that can fail");
                    return tried;
                }
                Ok(_) => tried.absorbed += 1,
                Err(errno) if !failed => panic!("without a failure: {errno}"),
                Err(errno) => {
                    assert!(CLEAN.contains(errno), "failure {nth} ends in {errno}");
                    tried.refused += 1;
                }
            }
            drop(result);
            drop(prepared);
            match before.settle(&self.debugfs, SETTLE) {
                Ok(Ok(())) => {}
                Ok(Err(difference)) => panic!("failure {nth} leaves behind: {difference}"),
                Err(error) => panic!("debugfs is gone: {error}"),
            }
        }
        panic!("the call has more than {MAX_FAILURES} failures");
    }
}

/// Tries all failures of a call and says how many there were.
#[track_caller]
pub fn exhaust<P, T: Debug>(
    what: &str,
    prepare: impl Fn() -> P,
    call: impl Fn(&P) -> Result<T, Errno>,
) {
    exhaust_and_check(What::All, what, prepare, call, |_, _| ());
}

/// The same, with a look at each result.
#[track_caller]
pub fn exhaust_and_check<P, T: Debug>(
    fails: What,
    what: &str,
    prepare: impl Fn() -> P,
    call: impl Fn(&P) -> Result<T, Errno>,
    check: impl Fn(&P, Result<&T, &Errno>),
) {
    let tried = FailNth::open(fails).exhaust(prepare, call, check);
    println!("{what}: {tried:?}");
}

/// An error of the standard library as the kernel gave it.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
