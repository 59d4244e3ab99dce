// SPDX-License-Identifier: GPL-2.0
//! Long steps: a command with its log in a file, progress on the terminal, and the
//! last lines of the log when it fails.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::stop;

/// Lines of a failed step's log that are shown, of its first error and its end.
const TAIL: usize = 20;
/// Longest line that is kept whole: a guest is not trusted to end its lines.
const MAX_LINE: u64 = 1 << 20;
/// Without a terminal, progress is a line at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// One long step.
#[derive(Debug)]
pub struct Step<'a> {
    /// What runs, for the user.
    pub label: &'a str,
    /// Where its output goes.
    pub log: &'a Path,
    /// How many lines that count are expected, if that is known.
    pub expected: Option<u64>,
    /// What is counted, for the user.
    pub unit: &'a str,
}

/// What a step that ended well tells.
#[derive(Debug)]
pub struct Done {
    /// Lines that counted.
    pub counted: u64,
    /// What the command wrote to stdout and stderr.
    pub output: String,
}

impl Step<'_> {
    /// Runs the command; `counts` says which lines of its output are progress.
    ///
    /// # Errors
    ///
    /// When it cannot start, fails, or the user stops the run.
    pub fn run(&self, command: &mut Command, counts: impl Fn(&str) -> bool) -> Result<Done> {
        let start = Instant::now();
        if let Some(parent) = self.log.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut log =
            File::create(self.log).with_context(|| format!("creating {}", self.log.display()))?;
        writeln!(log, "# {command:?}")?;

        let (reader, writer) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = stop::spawn(command)?;
        // Our copies of the pipe's end must go, or it never ends.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let mut show = Show::new(self, start);
        let (mut counted, mut output) = (0, String::new());
        let lines = read_lines(reader);
        loop {
            let line = match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if stop::wanted() => {
                    child.end();
                    break;
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            writeln!(log, "{line}")?;
            if counts(&line) {
                counted += 1;
                show.advance(counted, &line);
            }
            output.push_str(&line);
            output.push('\n');
        }
        let status = child.wait()?;
        show.finish();
        stop::check()?;
        if !status.success() {
            eprintln!("p2ptest: {} failed ({status}); from its log:", self.label);
            for line in telling(&output) {
                eprintln!("  | {line}");
            }
            bail!("{} failed; full log: {}", self.label, self.log.display());
        }
        if start.elapsed() >= Duration::from_secs(1) {
            eprintln!(
                "p2ptest: {}: {counted} {}, {:.0?}",
                self.label,
                self.unit,
                start.elapsed()
            );
        }
        Ok(Done { counted, output })
    }
}

/// The lines of a failed step's log that tell most: those from the first error on,
/// which may have long been followed by others' output, and the last ones.
fn telling(log: &str) -> Vec<&str> {
    let lines: Vec<_> = log.lines().collect();
    let last = lines.len().saturating_sub(TAIL);
    let error = lines
        .iter()
        .position(|line| line.starts_with("error") || line.contains(" error: "));
    match error {
        Some(first) if first < last => {
            let end = last.min(first + TAIL);
            let mut shown = lines[first..end].to_vec();
            if end < last {
                shown.push("...");
            }
            shown.extend(&lines[last..]);
            shown
        }
        _ => lines[last..].to_vec(),
    }
}

/// Reads in a thread of its own, so that waiting for a line can end. A line longer
/// than [`MAX_LINE`] comes in pieces.
pub fn read_lines(reader: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            let whole = line.strip_suffix(b"\n").unwrap_or(&line);
            if sender
                .send(String::from_utf8_lossy(whole).into_owned())
                .is_err()
            {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Progress as the user sees it: a bar on a terminal, now and then a line elsewhere.
enum Show {
    Bar(ProgressBar),
    Plain {
        prefix: String,
        total: String,
        start: Instant,
        last: Instant,
    },
}

impl Show {
    fn new(step: &Step<'_>, start: Instant) -> Self {
        if std::io::stderr().is_terminal() {
            let bar = match step.expected {
                Some(n) => ProgressBar::new(n).with_style(style(
                    "{prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}",
                )),
                None => ProgressBar::new_spinner()
                    .with_style(style("{prefix} {spinner} {pos} {elapsed} {wide_msg}")),
            };
            bar.set_prefix(step.label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            return Self::Bar(bar);
        }
        Self::Plain {
            prefix: step.label.to_owned(),
            total: step.expected.map_or_else(
                || format!(" {}", step.unit),
                |n| format!(" of about {n} {}", step.unit),
            ),
            start,
            last: start,
        }
    }

    fn advance(&mut self, counted: u64, line: &str) {
        match self {
            Self::Bar(bar) => {
                // An estimate that was too small grows; the bar never lies past its end.
                if bar.length().is_some_and(|len| counted > len) {
                    bar.set_length(counted);
                }
                bar.set_position(counted);
                bar.set_message(line.trim().to_owned());
            }
            Self::Plain {
                prefix,
                total,
                start,
                last,
            } => {
                if last.elapsed() >= PLAIN_EVERY {
                    *last = Instant::now();
                    eprintln!(
                        "p2ptest: {prefix}: {counted}{total}, {:.0?}",
                        start.elapsed()
                    );
                }
            }
        }
    }

    fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_the_first_error_and_the_end() {
        let mut log = vec!["  CC x".to_owned(); 10];
        log.push("error[E0308]: mismatched types".into());
        log.extend((0..100).map(|i| format!("line {i}")));
        let log = log.join("\n");
        let shown = telling(&log);
        assert_eq!(shown[0], "error[E0308]: mismatched types");
        assert_eq!(shown[TAIL], "...");
        assert_eq!((shown.len(), shown[2 * TAIL]), (2 * TAIL + 1, "line 99"));
    }

    #[test]
    fn failure_without_an_error_shows_the_end() {
        let log = (0..100).map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(telling(&log).len(), TAIL);
        assert_eq!(
            telling("x.c:1:2: error: short\nend"),
            ["x.c:1:2: error: short", "end"]
        );
    }
}
