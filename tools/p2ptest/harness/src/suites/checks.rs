// SPDX-License-Identifier: GPL-2.0
//! Static checks: "check/tool@what".

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::Context;
use crate::kernel::overlay::{new_paths, patch_files};
use crate::results::{Outcome, Results, Verdict};
use crate::stop;

/// The prefix of the group's ids.
pub const PREFIX: &str = "check/";

/// Linting compiles the workspace.
const LIMIT: Duration = Duration::from_secs(900);

/// One check.
#[derive(Debug)]
pub enum Check {
    /// The workspace's formatting.
    WorkspaceFormat,
    /// The workspace's lints.
    WorkspaceClippy,
    /// The kernel's formatting, one Rust file.
    KernelFormat(PathBuf),
    /// checkpatch on a patch.
    Patch(PathBuf),
    /// checkpatch on a new C file.
    Source(PathBuf),
    /// The kernel's own lints, on a crate that the build made.
    KernelClippy(&'static str),
    /// What rustdoc finds in the comments of a crate that the build made.
    KernelRustdoc(&'static str),
    /// The comments of a C file, as the kernel's documentation reads them.
    KernelDoc(PathBuf),
    /// A folder of the kernel's documentation that is ours.
    Sphinx(&'static str),
    /// A uapi header means the same to 32 and 64 bit programs.
    UapiLayout(PathBuf),
    /// A module of ours has no way into Rust's panic handler.
    NoPanic(&'static str),
}

/// What the checks look at besides the checkout.
#[derive(Clone, Copy, Debug)]
pub struct Built<'a> {
    /// The prepared kernel tree.
    pub tree: &'a Path,
    /// Where it was built.
    pub objects: &'a Path,
    /// The modules that were built.
    pub modules: &'a [PathBuf],
}

/// The drivers' modules.
const MODULES: [&str; 3] = ["p2pgpu", "p2pnic", "rust_p2p_simple"];

/// Folders of documentation.
const DOCUMENTATION: [&str; 1] = ["Documentation/gpu/p2pgpu"];

/// Crates of the kernel that hold code of ours.
const CRATES: [&str; 6] = [
    "rust/kernel",
    "drivers/dma-buf/p2p_importer_test/p2p_importer_test",
    "drivers/gpu/drm/p2pgpu/bench/p2pgpu_bench_main",
    "drivers/gpu/drm/p2pgpu/p2pgpu_main",
    "drivers/net/p2pnic/p2pnic",
    "samples/rust/rust_p2p_simple",
];

/// All checks that this checkout has something for.
///
/// # Errors
///
/// When a folder cannot be read.
pub fn list(ctx: &Context) -> Result<Vec<Check>> {
    let mut checks = vec![Check::WorkspaceFormat, Check::WorkspaceClippy];
    checks.extend(MODULES.map(Check::NoPanic));
    checks.extend(CRATES.map(Check::KernelClippy));
    checks.extend(CRATES.map(Check::KernelRustdoc));
    checks.extend(DOCUMENTATION.map(Check::Sphinx));
    let uapi = uapi_folder(&ctx.top);
    for path in new_paths(&ctx.top) {
        let path = path?;
        match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => checks.push(Check::KernelFormat(path)),
            Some("c" | "h") => {
                if path.starts_with(&uapi) {
                    checks.push(Check::UapiLayout(path.clone()));
                }
                checks.push(Check::KernelDoc(path.clone()));
                checks.push(Check::Source(path));
            }
            _ => {}
        }
    }
    checks.extend(patch_files(&ctx.top)?.into_iter().map(Check::Patch));
    Ok(checks)
}

impl Check {
    /// The test's id.
    pub fn id(&self, top: &Path) -> String {
        let of = |tool: &str, path: &Path| {
            format!(
                "{PREFIX}{tool}@{}",
                path.strip_prefix(top).unwrap_or(path).display()
            )
        };
        match self {
            Self::WorkspaceFormat => format!("{PREFIX}rustfmt@tools"),
            Self::WorkspaceClippy => format!("{PREFIX}clippy@tools"),
            Self::KernelFormat(path) => of("rustfmt", path),
            Self::Patch(path) | Self::Source(path) => of("checkpatch", path),
            Self::KernelClippy(name) => format!("{PREFIX}clippy@{name}"),
            Self::KernelRustdoc(name) => format!("{PREFIX}rustdoc@{name}"),
            Self::Sphinx(folder) => format!("{PREFIX}sphinx@{folder}"),
            Self::KernelDoc(path) => of("kernel-doc", path),
            Self::UapiLayout(path) => of("uapi-layout", path),
            Self::NoPanic(module) => format!("{PREFIX}no-panic@{module}"),
        }
    }

    /// Whether the check needs the prepared kernel tree.
    pub fn needs_tree(&self) -> bool {
        !matches!(self, Self::WorkspaceFormat | Self::WorkspaceClippy)
    }

    fn command(&self, ctx: &Context, built: Built<'_>) -> Command {
        let tree = built.tree;
        let checkpatch = |options: &[&str], path: &Path| {
            let mut c = Command::new("perl");
            c.arg(tree.join("scripts/checkpatch.pl"));
            c.args(["--no-summary", "--terse", "--show-types", "--no-signoff"]);
            c.args(["--ignore", "FILE_PATH_CHANGES,COMMIT_LOG_LONG_LINE"]);
            c.args(options).arg(path).current_dir(tree);
            c
        };
        let lint = |tool: &str, name: &str| {
            let (folder, object) = name.rsplit_once('/').unwrap_or((".", name));
            let mut c = Command::new(ctx.workspace().join("checks/kernel-lint"));
            c.arg(tool)
                .args([tree, built.objects])
                .arg(format!("{folder}/.{object}.o.cmd"));
            c
        };
        match self {
            Self::WorkspaceFormat => {
                let mut c = Command::new("cargo");
                c.args(["fmt", "--all", "--check", "--", "--color=never"])
                    .current_dir(ctx.workspace());
                c
            }
            Self::WorkspaceClippy => {
                let mut c = Command::new("cargo");
                c.args([
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ]);
                c.env("CARGO_TERM_COLOR", "never")
                    .current_dir(ctx.workspace());
                c
            }
            Self::KernelFormat(path) => {
                // rustfmt would follow "mod" lines into files of their own checks.
                let mut c = Command::new("sh");
                c.args(["-c", "rustfmt --edition 2021 --config-path \"$1\" --emit stdout <\"$2\" | diff -u \"$2\" -", "sh"]);
                c.arg(tree.join(".rustfmt.toml")).arg(path);
                c
            }
            Self::Patch(path) => checkpatch(&[], path),
            Self::Source(path) => checkpatch(&["--file"], path),
            Self::KernelClippy(name) => lint("clippy", name),
            Self::KernelRustdoc(name) => lint("rustdoc", name),
            Self::Sphinx(folder) => {
                let mut c = Command::new(ctx.workspace().join("checks/sphinx"));
                c.arg(tree).arg(folder);
                c
            }
            Self::KernelDoc(path) => {
                let mut c = Command::new("python3");
                c.arg(tree.join("tools/docs/kernel-doc"));
                c.args(["-none", "-Wall", "-Werror"]).arg(path);
                c
            }
            Self::UapiLayout(path) => {
                let uapi = uapi_folder(&ctx.top);
                let mut c = Command::new(ctx.workspace().join("checks/uapi-layout"));
                c.arg(&uapi).arg(path.strip_prefix(&uapi).unwrap_or(path));
                c
            }
            Self::NoPanic(name) => {
                // A panic is a call into core::panicking, which the module would import.
                let file = format!("{name}.ko");
                let module = built.modules.iter().find(|m| m.ends_with(&file));
                let mut c = Command::new("sh");
                c.args(["-euc", "imports=$(llvm-nm --undefined-only \"$1\"); ! printf '%s\\n' \"$imports\" | grep panicking", "sh"]);
                c.arg(module.map_or(Path::new(&file), PathBuf::as_path));
                c
            }
        }
    }
}

fn uapi_folder(top: &Path) -> PathBuf {
    top.join("include/uapi")
}

/// Runs the wanted checks.
///
/// # Errors
///
/// When a tool is missing, or the user stops the run.
pub fn run<'a, W: Write>(
    ctx: &Context,
    built: Built<'_>,
    checks: impl IntoIterator<Item = &'a Check>,
    results: &Results<W>,
) -> Result<()> {
    for check in checks {
        let id = check.id(&ctx.top);
        if !results.wants(&id) {
            continue;
        }
        stop::check()?;
        let start = Instant::now();
        let found = stop::capture(&mut check.command(ctx, built), LIMIT)?;
        let mut text = found.lines;
        text.retain(|line| !line.is_empty());
        // checkpatch ends well with mere warnings: here they count.
        let quiet =
            text.is_empty() || matches!(check, Check::WorkspaceFormat | Check::WorkspaceClippy);
        let verdict = if found.status.success() && quiet {
            Verdict::Pass
        } else {
            Verdict::Fail(format!("the tool found something ({})", found.status))
        };
        results.add(Outcome::new(id, verdict, start.elapsed()).output(text))?;
    }
    Ok(())
}
