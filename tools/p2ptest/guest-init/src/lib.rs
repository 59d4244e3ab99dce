// SPDX-License-Identifier: GPL-2.0
//! What the harness and the guest's agent say to each other: one JSON object a
//! line, over a serial port.

#![forbid(unsafe_code)]

mod sequence;

pub use sequence::{BadSequence, Sequence};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the initrd lists the modules to load, one path a line.
pub const MODULE_LIST: &str = "/etc/p2p-modules";
/// Where the test programs and the demo are in the guest.
pub const TESTS: &str = "/tests";
/// Where a program in the guest asks the host to act: it writes one [`Ask`] as a
/// line of JSON and reads one [`Answer`], a line too.
pub const HOST_SOCKET: &str = "/tmp/p2p-host";
/// Longest line that asks, bytes with its end; the device models take no longer one.
pub const MAX_ASK: u64 = 4096;
/// Longest answer, bytes: one that is longer is an error.
pub const MAX_ANSWER: usize = 64 * 1024;
/// What shows the apertures, in the guest.
pub const TOP: &str = "/tests/p2ptop";
/// What keeps the devices busy while [`TOP`] shows them.
pub const LOAD: &str = "/tests/p2pload";
/// Kernel parameter that says what /init does; its values are [`Mode`]'s.
pub const MODE_PARAMETER: &str = "p2p.mode";

/// Kernel parameter that says how the devices are connected: switch, bridge, iommu or
/// none. For test programs, which expect another route in each.
pub const TOPOLOGY_PARAMETER: &str = "p2p.topology";

/// Kernel parameter that says how often a test that repeats itself does.
pub const CYCLES_PARAMETER: &str = "p2p.cycles";

/// The number that a kernel command line gives [`CYCLES_PARAMETER`].
pub fn cycles(command_line: &str) -> Option<u32> {
    command_line
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find(|(name, _)| *name == CYCLES_PARAMETER)?
        .1
        .parse()
        .ok()
}

/// What /init does once the drivers are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Serve the harness on the second serial port.
    Agent,
    /// A shell on the console.
    Shell,
    /// [`TOP`] on the console, while [`LOAD`] runs.
    Top,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Agent, Self::Shell, Self::Top];

    /// The value of [`MODE_PARAMETER`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Shell => "shell",
            Self::Top => "top",
        }
    }

    /// The mode that a kernel command line asks for: the agent, unless it names another.
    pub fn from_command_line(line: &str) -> Self {
        let wanted = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == MODE_PARAMETER)
            .and_then(|(_, value)| Self::ALL.into_iter().find(|mode| mode.name() == value));
        wanted.unwrap_or(Self::Agent)
    }
}

/// From the harness. Each is answered by [`Report::Kernel`] and [`Report::Output`]
/// lines, then by exactly one [`Report::Ended`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Runs a program.
    Run {
        /// Shown in the kernel log before it starts.
        id: String,
        /// Path and arguments.
        argv: Vec<String>,
        /// After so many seconds it is killed.
        timeout: u64,
    },
    /// Sends the results of the KUnit suites that ran.
    Kunit,
    /// The answer to [`Report::Ask`]; there is no answer to it.
    Answer {
        /// The number of what was asked.
        number: u64,
        /// What the host says.
        answer: Answer,
    },
    /// Asks whether the debug kernel's checkers still work; exit code 1 if one has
    /// stopped, which is then named.
    Checkers,
    /// Looks for memory that leaked and was not told yet; exit code 1 if there is some, with
    /// kmemleak's report.
    Leaks {
        /// How.
        look: Look,
    },
    /// Powers the guest off; there is no answer.
    PowerOff,
}

/// How to look for leaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Look {
    /// One scan. It finds what leaked before the last one; what leaked since, the next one
    /// will.
    Glance,
    /// Finds all that leaked.
    Thorough,
}

/// What a program in the guest asks the host for. The host does not trust it: it
/// reaches the devices of its own guest and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// A command of a device model's control socket.
    Control {
        /// "gpu0", "nic0", "gpu1" or "nic1".
        model: String,
        /// As the model has it.
        command: Value,
    },
    /// A command of QEMU's machine protocol: `query-*` without arguments, or
    /// `device_del` and `device_add` with a model's name as their only argument `id`.
    Qmp {
        /// With `execute` and `arguments`.
        command: Value,
    },
    /// Nothing more is run in this guest after the program: it does not leave the devices
    /// as they were.
    Retire,
    /// Ends a model and starts it anew, with nothing of what it held.
    Restart {
        /// As for a command of its control socket.
        model: String,
    },
}

/// What the host did, or why it did not.
pub type Answer = Result<Value, String>;

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Report {
    /// The guest is up: the first report of a boot.
    Ready {
        /// What went wrong on the way, for example a module that did not load.
        problems: Vec<String>,
    },
    /// A line of the kernel's log.
    Kernel {
        /// Without its time and level.
        text: String,
    },
    /// A line that the program wrote, or of a KUnit suite's results.
    Output {
        /// Invalid UTF-8 replaced.
        text: String,
    },
    /// A program asks the host to act; [`Request::Answer`] answers.
    Ask {
        /// Told apart from earlier ones by this.
        number: u64,
        /// What for.
        ask: Ask,
    },
    /// The request is done.
    Ended {
        /// How.
        status: Status,
    },
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed at its timeout.
    Timeout,
    /// It was killed at its timeout and is still there: the kernel holds it.
    Stuck,
    /// It could not be started.
    Failed(String),
}

/// The text of a `/dev/kmsg` record: what follows the first semicolon of the first
/// line. Continuation lines, which start with a blank, carry no message.
pub fn kmsg_text(record: &str) -> &str {
    let line = record.lines().next().unwrap_or_default();
    line.split_once(';').map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let request = Request::Run {
            id: "mapped/p2p_export@x".into(),
            argv: vec![
                "/tests/p2p_export".into(),
                "--run-subtest".into(),
                "x\ny".into(),
            ],
            timeout: 60,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);

        for status in [
            Status::Exit(77),
            Status::Signal(9),
            Status::Stuck,
            Status::Failed("no".into()),
        ] {
            let report = Report::Ended { status };
            let line = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        }
    }

    #[test]
    fn what_is_asked_survives_the_wire() {
        let ask = Ask::Control {
            model: "gpu0".into(),
            command: serde_json::json!({"cmd": "faults"}),
        };
        let report = Report::Ask { number: 7, ask };
        let line = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        for answer in [Ok(Value::Null), Err("no".to_owned())] {
            let request = Request::Answer { number: 7, answer };
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
        let strange = r#"{"ask":"restart","model":"gpu0","program":"/bin/sh"}"#;
        assert!(serde_json::from_str::<Ask>(strange).is_err());
    }

    #[test]
    fn text_of_kmsg_records() {
        assert_eq!(
            kmsg_text("6,339,5140900,-;NET: a;b\n SUBSYSTEM=net\n"),
            "NET: a;b"
        );
        assert_eq!(kmsg_text("no header"), "no header");
        assert_eq!(kmsg_text(""), "");
    }

    #[test]
    fn mode_of_a_command_line() {
        assert_eq!(
            Mode::from_command_line("console=ttyS0 p2p.mode=shell\n"),
            Mode::Shell
        );
        for mode in Mode::ALL {
            let line = format!("quiet {MODE_PARAMETER}={} TERM=vt100", mode.name());
            assert_eq!(Mode::from_command_line(&line), mode);
        }
        assert_eq!(Mode::from_command_line("p2p.mode=else"), Mode::Agent);
        assert_eq!(
            Mode::from_command_line("console=ttyS0 xp2p.mode=shell"),
            Mode::Agent
        );
        assert_eq!(Mode::from_command_line(""), Mode::Agent);
        assert_eq!(cycles("console=ttyS0 p2p.cycles=200\n"), Some(200));
        assert_eq!(cycles("p2p.cycles=x p2p.cycle=3"), None);
    }
}
