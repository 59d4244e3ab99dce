// SPDX-License-Identifier: GPL-2.0
//! The lines of models, harness, slots and tools that the host's tests reach.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::llvm;
use super::report::Reached;
use crate::cargo;
use crate::context::Context;
use crate::stop;

/// One executable may take so long, all its tests together.
const LIMIT: Duration = Duration::from_secs(900);

/// Builds the host's tests with counters and runs them; `folder` is for what they write.
/// Says whether all passed.
///
/// # Errors
///
/// When they cannot be built, or the user stops the run.
pub fn run(ctx: &Context, folder: &Path) -> Result<(Reached, bool)> {
    fs::create_dir_all(folder)?;
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
    let mut raw = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "profraw") {
            raw.push(path);
        }
    }
    let objects = executables.iter().map(|e| e.path.as_path());
    let reached = llvm::reached(&raw, objects, folder, &|path| {
        path.strip_prefix(&ctx.top).ok().map(Path::to_owned)
    })?;
    Ok((reached, good))
}
