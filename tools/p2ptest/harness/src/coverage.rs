// SPDX-License-Identifier: GPL-2.0
//! `make coverage`: the lines of models, harness and slots that the host's tests reach,
//! and those that they never do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cargo;
use crate::context::Context;
use crate::packages;
use crate::stop;

/// One executable may take so long, all its tests together.
const LIMIT: Duration = Duration::from_secs(600);

/// Lines of a file and how often each was reached.
type Lines = BTreeMap<u32, u64>;

/// Builds the host's tests with counters, runs them, and reports.
///
/// # Errors
///
/// When they cannot be built, one fails, or the tools cannot be had.
pub fn run(ctx: &Context) -> Result<bool> {
    let tools = tools(ctx)?;
    let folder = ctx.build().join("coverage");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let executables = cargo::tests_with_counters(ctx)?;
    let mut good = true;
    for executable in executables.iter().filter(|e| e.test) {
        let mut command = Command::new(&executable.path);
        command
            .args(["--include-ignored", "--quiet"])
            .env("P2P_QEMU_ROOT", "/")
            .env("CARGO_MANIFEST_DIR", &executable.folder)
            .env("LLVM_PROFILE_FILE", folder.join("%p-%m.profraw"))
            .current_dir(&executable.folder);
        let ended = stop::capture(&mut command, LIMIT.mul_f64(ctx.timeout_scale))?;
        if !ended.status.success() {
            good = false;
            println!("{}: {}", executable.path.display(), ended.status);
            ended.lines.iter().for_each(|line| println!("{line}"));
        }
    }

    let profile = folder.join("all.profdata");
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge.args(["merge", "-sparse", "-o"]).arg(&profile);
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "profraw") {
            merge.arg(path);
        }
    }
    output(&mut merge)?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "--format=lcov", "--instr-profile"])
        .arg(&profile);
    for executable in &executables {
        export.arg("--object").arg(&executable.path);
    }
    let files = parse(&output(&mut export)?);
    let (report, unreached) = report(&ctx.top, &files);
    println!("{report}");
    let list = folder.join("unreached.txt");
    fs::write(&list, unreached)?;
    println!("lines never reached: {}", list.display());
    Ok(good)
}

/// The tools of the compiler's own LLVM: others do not read its counters.
fn tools(ctx: &Context) -> Result<PathBuf> {
    let about = output(Command::new("rustc").arg("-vV"))?;
    let major = about
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
        .context("rustc does not name its LLVM")?;
    let package = format!("llvm-{major}");
    let root = packages::ensure(ctx, "coverage", &[&package])?;
    let bin = root.join(format!("usr/lib/{package}/bin"));
    ensure!(bin.join("llvm-cov").exists(), "{package} has no llvm-cov");
    Ok(bin)
}

/// What a command prints. The tools find their library in the toolchain folder: rustc uses
/// the same.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files of an lcov trace. A line that several programs hold was reached if one of
/// them did.
fn parse(trace: &str) -> BTreeMap<PathBuf, Lines> {
    let mut files: BTreeMap<PathBuf, Lines> = BTreeMap::new();
    let mut current = None;
    for line in trace.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            current = Some(files.entry(path.into()).or_default());
        } else if let Some(data) = line.strip_prefix("DA:")
            && let Some(lines) = &mut current
            && let Some((number, count)) = data.split_once(',')
            && let (Ok(number), Ok(count)) = (number.parse(), count.parse::<u64>())
        {
            let reached = lines.entry(number).or_insert(0);
            *reached = (*reached).max(count);
        }
    }
    files
}

/// A table of the checkout's files, and the lines of them that were never reached. Tests
/// do not count as something that is to be tested.
fn report(top: &Path, files: &BTreeMap<PathBuf, Lines>) -> (String, String) {
    let (mut table, mut list) = (String::new(), String::new());
    let (mut all, mut all_reached) = (0, 0);
    for (path, lines) in files {
        let Ok(path) = path.strip_prefix(top) else {
            continue;
        };
        let is_test = path.components().any(|c| {
            let name = c.as_os_str();
            name == "tests" || name == "benches" || name == "build.rs"
        });
        if is_test || lines.is_empty() {
            continue;
        }
        let reached = lines.values().filter(|count| **count > 0).count();
        all += lines.len();
        all_reached += reached;
        row(
            &mut table,
            reached,
            lines.len(),
            &path.display().to_string(),
        );
        let missed: Vec<u32> = lines
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(number, _)| *number)
            .collect();
        for run in missed.chunk_by(|a, b| a + 1 == *b) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let _ = writeln!(list, "{}:{first}-{last}", path.display());
            }
        }
    }
    row(&mut table, all_reached, all, "all");
    (table, list)
}

fn row(table: &mut String, reached: usize, lines: usize, name: &str) {
    let percent = 100.0 * reached as f64 / lines.max(1) as f64;
    let _ = writeln!(table, "{percent:5.1} % {reached:6} of {lines:6} {name}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "SF:/w/a/src/x.rs\nDA:1,5\nDA:2,0\nDA:3,0\nDA:9,0\nend_of_record\n\
                         SF:/w/a/src/x.rs\nDA:2,1\nend_of_record\nSF:/w/a/tests/y.rs\nDA:1,0\n\
                         end_of_record\nSF:/registry/z.rs\nDA:1,0\n";

    #[test]
    fn a_line_is_reached_if_one_program_reaches_it() {
        let files = parse(TRACE);
        let lines: Vec<_> = files[Path::new("/w/a/src/x.rs")].values().collect();
        assert_eq!(lines, [&5, &1, &0, &0]);
    }

    #[test]
    fn only_what_is_to_be_tested_is_reported() {
        let (table, list) = report(Path::new("/w"), &parse(TRACE));
        assert_eq!(list, "a/src/x.rs:3-3\na/src/x.rs:9-9\n");
        assert_eq!(
            table,
            " 50.0 %      2 of      4 a/src/x.rs\n 50.0 %      2 of      4 all\n"
        );
    }
}
