// SPDX-License-Identifier: GPL-2.0
//! What the end of a subtest means.

use p2p_init::Status;

use crate::igt::{self, EXIT_FAIL, EXIT_SKIP, EXIT_SUCCESS};
use crate::results::Verdict;
use crate::session::{self, End};

/// What an outcome means: whatever was found in the log or the devices fails the
/// test, however it ended; and so does what `igt_runner` would not understand.
pub fn of(outcome: &session::Outcome, subtest: &str) -> Verdict {
    let status = match &outcome.end {
        End::Crash(why) => return Verdict::Crash(why.clone()),
        End::Told(Status::Stuck) => {
            return Verdict::Crash("it cannot be killed: the kernel holds it".into());
        }
        End::Told(status) => status,
    };
    if let Some(finding) = outcome.findings.first() {
        return Verdict::Fail(format!("kernel log or device: {finding}"));
    }
    if let Status::Exit(status) = status
        && let Some(why) = igt::contradiction(&outcome.output, subtest, *status)
    {
        return Verdict::Fail(format!("not as IGT's tests tell it: {why}"));
    }
    match status {
        Status::Exit(EXIT_SUCCESS) => Verdict::Pass,
        Status::Exit(EXIT_SKIP) => Verdict::Skip(igt::requirement(&outcome.output)),
        Status::Exit(EXIT_FAIL) => Verdict::Fail("the subtest failed".into()),
        Status::Exit(code) => Verdict::Fail(format!("exit code {code}")),
        Status::Signal(signal) => Verdict::Fail(format!("ended by signal {signal}")),
        Status::Timeout => Verdict::Fail("timeout".into()),
        Status::Stuck => Verdict::Crash("stuck".into()),
        Status::Failed(why) => Verdict::Fail(format!("could not be run: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Of a program that said this of its subtest.
    fn outcome(end: End, said: &str, findings: &[&str]) -> session::Outcome {
        let output = format!(
            "IGT-Version: 1\nStarting subtest: a\nTest requirement: x\nSubtest a: {said} (0.1s)"
        );
        session::Outcome {
            end,
            output: output.lines().map(str::to_owned).collect(),
            findings: findings.iter().map(|s| (*s).to_owned()).collect(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts() {
        let verdict =
            |status, said, findings: &[&str]| of(&outcome(End::Told(status), said, findings), "a");
        assert_eq!(verdict(Status::Exit(0), "SUCCESS", &[]), Verdict::Pass);
        let skip = verdict(Status::Exit(77), "SKIP", &[]);
        assert_eq!(skip, Verdict::Skip("x".into()));
        for (status, said) in [
            (Status::Exit(98), "FAIL"),
            (Status::Exit(0), "FAIL"),
            (Status::Exit(77), "SUCCESS"),
            (Status::Exit(1), "SUCCESS"),
            (Status::Signal(6), "SUCCESS"),
            (Status::Timeout, "SUCCESS"),
        ] {
            assert!(matches!(verdict(status, said, &[]), Verdict::Fail(_)));
        }
        let stuck = verdict(Status::Stuck, "SUCCESS", &[]);
        assert!(matches!(stuck, Verdict::Crash(_)));
        let warned = verdict(Status::Exit(0), "SUCCESS", &["WARNING: x"]);
        assert!(matches!(warned, Verdict::Fail(_)));
        let skipped = verdict(Status::Exit(77), "SKIP", &["WARNING: x"]);
        assert!(matches!(skipped, Verdict::Fail(_)));
    }
}
