// SPDX-License-Identifier: GPL-2.0
//! A program is started as `igt_runner` of IGT does, which then knows what came of it by
//! its lines and its exit status only.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What `igt_runner` looks for at the beginning of a line.
const VERSION: &str = "IGT-Version: ";
const START: &str = "Starting subtest: ";
const RESULT: &str = "Subtest ";

/// The program under test, with a file in the place of the kernel's log.
struct Program {
    kernel_log: PathBuf,
}

impl Program {
    fn new(name: &str) -> Self {
        let name = format!("p2pguest-{name}-{}", std::process::id());
        let kernel_log = std::env::temp_dir().join(name);
        std::fs::write(&kernel_log, "").unwrap();
        Self { kernel_log }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_verdicts"))
            .arg("--no-debugfs")
            .arg(format!("--kernel-log={}", self.kernel_log.display()))
            .args(arguments)
            .env("IGT_SENTINEL_ON_STDERR", "1")
            .output()
            .unwrap()
    }

    fn marks(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.kernel_log).unwrap();
        let marks = log.lines().map(|line| {
            let mark = line.strip_prefix("<6>[IGT] verdicts: ");
            mark.unwrap_or_else(|| panic!("{line}")).to_owned()
        });
        marks.collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        std::fs::remove_file(&self.kernel_log).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The lines of a stream that matter to `igt_runner`, without times.
fn telling(stream: &[u8]) -> Vec<String> {
    let stream = text(stream);
    let lines = stream
        .lines()
        .filter(|line| line.starts_with(START) || line.starts_with(RESULT));
    let without_time = lines.map(|line| match line.split_once(" (") {
        Some((line, time)) => {
            let seconds = time.strip_suffix("s)").expect("seconds");
            assert!(seconds.parse::<f64>().unwrap() >= 0.0);
            line.to_owned()
        }
        None => {
            assert!(line.starts_with(START), "{line} has no time");
            line.to_owned()
        }
    });
    without_time.collect()
}

#[test]
fn lists_names_and_nothing_else() {
    let output = Program::new("list").run(&["--list-subtests"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        "good\nnot-here\nbad\ndeadly\ngood-too\n"
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn both_streams_tell_subtests_apart() {
    let program = Program::new("streams");
    let output = program.run(&["--run-subtest", "good,not-here,bad"]);
    let expected = [
        "Starting subtest: good",
        "Subtest good: SUCCESS",
        "Starting subtest: not-here",
        "Subtest not-here: SKIP",
        "Starting subtest: bad",
        "Subtest bad: FAIL",
    ];
    assert_eq!(telling(&output.stdout), expected);
    assert_eq!(telling(&output.stderr), expected);
    // What else is there makes a warning of a pass.
    assert_eq!(text(&output.stderr).lines().count(), expected.len());
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with(VERSION), "{stdout}");
    assert!(stdout.contains("\nTest requirement: there is none here\n"));
    assert!(stdout.contains("\nwhat good says\n"));
    assert_eq!(
        program.marks(),
        [
            "executing",
            "starting subtest good",
            "finished subtest good, SUCCESS",
            "starting subtest not-here",
            "finished subtest not-here, SKIP",
            "starting subtest bad",
            "finished subtest bad, FAIL",
            "exiting, ret=98",
        ]
    );
}

#[test]
fn statuses() {
    let program = Program::new("statuses");
    for (choice, status) in [
        ("good", 0),
        ("not-here", 77),
        ("good,not-here", 0),
        ("bad", 98),
        ("good,bad", 98),
        ("no-such-one", 79),
    ] {
        let output = program.run(&["--run-subtest", choice]);
        assert_eq!(output.status.code(), Some(status), "{choice}");
    }
}

#[test]
fn one_that_dies_has_a_result() {
    let program = Program::new("dies");
    let output = program.run(&["--run-subtest", "good,deadly,good-too"]);
    assert_eq!(output.status.signal(), Some(6));
    assert_eq!(
        telling(&output.stdout),
        [
            "Starting subtest: good",
            "Subtest good: SUCCESS",
            "Starting subtest: deadly",
            "Subtest deadly: CRASH",
        ]
    );
    assert_eq!(telling(&output.stderr), telling(&output.stdout));
    assert_eq!(program.marks().last().unwrap(), "starting subtest deadly");
}

#[test]
fn goes_on_after_one_that_died() {
    let program = Program::new("goes-on");
    let output = program.run(&["--run-subtest", "*,!good,!not-here,!bad,!deadly"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        telling(&output.stdout),
        ["Starting subtest: good-too", "Subtest good-too: SUCCESS"]
    );
}
