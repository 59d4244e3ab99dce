// SPDX-License-Identifier: GPL-2.0
//! The program on a terminal: what it writes, and how it ends.

use nix::pty::{Winsize, openpty};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};
use tempfile::TempDir;

const LEAVE_SCREEN: &str = "\x1b[?1049l";

/// A debugfs with two devices of 4 slots.
fn debugfs() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for pci in ["0000:03:00.0", "0000:05:00.0"] {
        let folder = root.path().join("p2pgpu").join(pci);
        fs::create_dir_all(&folder).unwrap();
        let files = [
            ("aperture", "slots 4 size 4096: legend\n.cLP\n"),
            ("objects", ""),
            ("activity", "cpu_faults 7\n"),
            ("resources", "objects 0\n"),
        ];
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
    }
    root
}

/// p2ptop on a terminal of its own.
struct Session {
    child: Child,
    terminal: File,
    seen: String,
}

impl Session {
    fn start(root: &Path, term: &str, (columns, lines): (u16, u16)) -> Self {
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        // Not the terminal that the test may have been started from.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_p2ptop")])
            .args(["--interval", "0.1", "--debugfs"])
            .arg(root)
            .env("TERM", term)
            .env_remove("COLUMNS")
            .env_remove("LINES")
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave)
            .spawn()
            .unwrap();
        Self {
            child,
            terminal: pty.master.into(),
            seen: String::new(),
        }
    }

    /// Reads until this was written after what was awaited last.
    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            // The other end gone is an error here, and not the end of a file.
            let count = self.terminal.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "{text:?} did not come; {:?}", self.seen);
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn press(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads what is left, and returns it.
    fn end(mut self) -> String {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.terminal.read(&mut buffer) {
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        assert!(self.child.wait().unwrap().success(), "{:?}", self.seen);
        self.seen
    }
}

#[test]
fn a_serial_line_of_unknown_size() {
    let root = debugfs();
    let mut session = Session::start(root.path(), "vt100", (0, 0));
    session.wait_for("GPU 0000:03:00.0");
    // The last of 24 lines.
    session.wait_for("\x1b[24;1H");
    session.wait_for("q quit");
    // Only what changes is written again.
    session.press("\x1b[C");
    session.wait_for("5");
    session.press("p");
    session.wait_for("PAUSED");
    session.press("q");
    session.wait_for(LEAVE_SCREEN);
    session.end();
}

#[test]
fn a_terminal_that_tells_its_size() {
    let root = debugfs();
    let mut session = Session::start(root.path(), "xterm", (100, 40));
    session.wait_for("GPU 0000:03:00.0");
    session.wait_for("\x1b[40;1H");
    session.wait_for("q quit");
    // Control-C is a key: the terminal is raw.
    session.press("\x03");
    session.wait_for(LEAVE_SCREEN);
    session.end();
}

#[test]
fn a_dumb_terminal_gets_pictures_one_by_one() {
    let root = debugfs();
    let mut session = Session::start(root.path(), "dumb", (0, 0));
    for _ in 0..3 {
        session.wait_for("GPU 0000:03:00.0");
        session.wait_for("      0  .cLP\r\n");
    }
    session.press("q");
    assert!(!session.end().contains('\x1b'));
}

#[test]
fn no_terminal_is_told() {
    let root = debugfs();
    let output = Command::new("setsid")
        .args(["--wait", env!("CARGO_BIN_EXE_p2ptop"), "--debugfs"])
        .arg(root.path())
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--once"), "{errors}");
    assert!(output.stdout.is_empty());
}
