// SPDX-License-Identifier: GPL-2.0
//! What a program writes besides its tests' own output: the lines by which `igt_runner`
//! tells subtests apart in stdout, in stderr and in the kernel's log.

use super::{Verdict, crash};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Set by `igt_runner`: stderr has the lines as well, as it is read by itself.
const ON_STDERR: &str = "IGT_SENTINEL_ON_STDERR";

/// Where the lines go.
#[derive(Debug, Default)]
pub struct Journal {
    /// The program's name
    program: String,
    /// The kernel's log, which shows what ran when it had something to say
    kernel_log: Option<PathBuf>,
    stderr: bool,
}

impl Journal {
    /// Of this process, with the kernel's log at this path.
    pub fn new(kernel_log: PathBuf) -> Self {
        let path = PathBuf::from(std::env::args_os().next().unwrap_or_default());
        Self {
            program: path.file_name().unwrap_or_default().display().to_string(),
            kernel_log: Some(kernel_log),
            stderr: std::env::var_os(ON_STDERR).is_some(),
        }
    }

    /// Subtests follow.
    pub fn begin(&self, version: &str) {
        println!("{version}");
        self.mark("executing");
    }

    /// A subtest follows.
    pub fn start(&self, subtest: &str) {
        self.mark(&format!("starting subtest {subtest}"));
        self.line(&format!("Starting subtest: {subtest}"));
        crash::arm(subtest, self.stderr);
    }

    /// The subtest that was started last is over.
    pub fn finish(&self, subtest: &str, verdict: Verdict, time: Duration) {
        crash::disarm();
        let (verdict, seconds) = (verdict.text(), time.as_secs_f64());
        self.line(&format!("Subtest {subtest}: {verdict} ({seconds:.3}s)"));
        self.mark(&format!("finished subtest {subtest}, {verdict}"));
    }

    /// The program ends with this status.
    pub fn end(&self, status: u8) {
        self.mark(&format!("exiting, ret={status}"));
    }

    fn line(&self, text: &str) {
        println!("{text}");
        if self.stderr {
            eprintln!("{text}");
        }
    }

    fn mark(&self, text: &str) {
        let Some(path) = &self.kernel_log else {
            return;
        };
        // Opened anew: the kernel drops what comes too fast through one file. Without
        // the log, which only root may write, a test is as good.
        if let Ok(mut log) = OpenOptions::new().append(true).open(path) {
            let _ = log.write_all(format!("<6>[IGT] {}: {text}\n", self.program).as_bytes());
        }
    }
}
