// SPDX-License-Identifier: GPL-2.0
//! LLVM's tools, which are of the version that rustc has: others do not read its counters.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::report::Reached;

/// What raw profiles say of the files that `ours` takes, and what it calls them.
/// `objects` map counters to lines.
///
/// # Errors
///
/// When a tool does not understand them.
pub fn reached<'p>(
    raw: &[PathBuf],
    objects: impl Iterator<Item = &'p Path>,
    folder: &Path,
    ours: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<Reached> {
    let profile = folder.join("all.profdata");
    let mut merge = Command::new("llvm-profdata");
    merge.args(["merge", "-sparse", "-o"]).arg(&profile);
    output(merge.args(raw))?;
    let objects: Vec<&Path> = objects.collect();
    let export = |format: &str| {
        let mut export = Command::new("llvm-cov");
        export
            .args(["export", "--instr-profile"])
            .arg(&profile)
            .arg(format!("--format={format}"));
        for object in &objects {
            export.arg("--object").arg(object);
        }
        output(&mut export)
    };
    let mut reached = Reached::of_lines(&export("lcov")?, ours);
    reached.add_regions(&export("text")?, ours)?;
    Ok(reached)
}

/// What a command prints.
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
