// SPDX-License-Identifier: GPL-2.0
//! Building the workspace, and what came out of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::content::write_if_changed;
use crate::context::Context;
use crate::lock;
use crate::step::Step;

/// An executable that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// Name of the target: the program's, or the library's for its unit tests.
    pub name: String,
    /// Name of the package.
    pub package: String,
    /// "bin", "lib", "test" and so on.
    pub kind: String,
    /// The package's folder.
    pub folder: PathBuf,
    /// The file.
    pub path: PathBuf,
    /// Whether it was built as a test; programs and examples are built beside.
    pub test: bool,
}

/// The programs that a run needs, in the checkout's own build folder.
#[derive(Debug)]
pub struct Programs {
    /// The GPU's model.
    pub vgpu: PathBuf,
    /// The NIC's model.
    pub vnic: PathBuf,
    /// The guest's /init.
    pub init: PathBuf,
    /// The guest's test programs, sorted.
    pub tests: Vec<PathBuf>,
    /// The guest's demo, once it exists.
    pub demo: Option<PathBuf>,
    /// What else is in the guest: the tool that shows the apertures, its load, the fuzzer.
    pub tools: Vec<PathBuf>,
    /// What measures the mapping of dma-bufs in the guest.
    pub bench: PathBuf,
    /// Ends in each way that a test can.
    pub verdicts: PathBuf,
}

/// Builds the programs and copies them, so that another checkout's build does not
/// change what this run starts.
///
/// # Errors
///
/// When the build fails, or one of the programs is not among its results.
pub fn programs(ctx: &Context) -> Result<Programs> {
    let log = ctx.logs().join("programs.log");
    let _lock = lock::take(&ctx.cache.join("cargo.lock"), "builds programs")?;
    let built = build(
        ctx,
        "programs",
        &log,
        &["build", "--release", "--workspace", "--exclude", "p2ptest"],
    )?;
    let bin = ctx.build().join("bin");
    let copy = |e: &Executable| -> Result<PathBuf> {
        let to = bin.join(&e.name);
        let bytes = fs::read(&e.path).with_context(|| format!("reading {}", e.path.display()))?;
        write_if_changed(&to, &bytes)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(to)
    };
    let named = |name: &str| {
        built
            .iter()
            .find(|e| e.name == name && e.kind == "bin")
            .with_context(|| format!("the workspace builds no program {name}"))
            .and_then(copy)
    };
    let mut tests = built
        .iter()
        .filter(|e| e.kind == "bin" && e.name.starts_with("p2p_"))
        .map(copy)
        .collect::<Result<Vec<_>>>()?;
    tests.sort();
    Ok(Programs {
        vgpu: named("vgpu")?,
        vnic: named("vnic")?,
        init: named("p2p-init")?,
        demo: named("p2pdemo").ok(),
        tools: vec![named("p2ptop")?, named("p2pload")?, named("p2pfuzz")?],
        bench: named("p2pbench")?,
        verdicts: named("verdicts")?,
        tests,
    })
}

/// The packages all of whose programs may have unit tests.
const OTHERS: &[&str] = &["--workspace", "--exclude=p2pguest"];
/// Most of the guest's programs are tests themselves: each would be linked twice.
const GUEST: &[&str] = &["--package=p2pguest", "--lib", "--bin=p2pdemo", "--test=*"];

/// Builds all test executables of the workspace. Their names hold a hash of the
/// checkout's path: another checkout's build leaves them alone.
///
/// # Errors
///
/// When the build fails.
pub fn tests(ctx: &Context) -> Result<Vec<Executable>> {
    let log = ctx.logs().join("host-tests-build.log");
    let _lock = lock::take(&ctx.cache.join("cargo.lock"), "builds programs")?;
    let mut built = Vec::new();
    for packages in [OTHERS, GUEST] {
        built.extend(build(
            ctx,
            "host tests",
            &log,
            &[&["test", "--no-run"], packages].concat(),
        )?);
    }
    built.retain(|e| e.test);
    Ok(built)
}

/// Builds all test executables and the programs that they start with counters of lines.
/// Only the workspace's own crates have them: the others are those of the tests.
///
/// # Errors
///
/// When the build fails.
pub fn tests_with_counters(ctx: &Context) -> Result<Vec<Executable>> {
    let log = ctx.logs().join("coverage-build.log");
    let _lock = lock::take(&ctx.cache.join("cargo.lock"), "builds programs")?;
    let mut command = Command::new("cargo");
    command
        .args(["test", "--workspace", "--no-run"])
        .env(
            "RUSTC_WORKSPACE_WRAPPER",
            ctx.workspace().join("checks/count-lines"),
        )
        // Of build scripts, which would leave a file in the checkout.
        .env("LLVM_PROFILE_FILE", "/dev/null")
        .current_dir(ctx.workspace());
    let mut built = run(ctx, "tests with counters", &log, &mut command)?;
    built.retain(|e| e.test || e.kind == "bin");
    Ok(built)
}

/// Builds the targets of the `fuzz` folder, which is a workspace of its own, with these
/// flags for the compiler.
///
/// # Errors
///
/// When the build fails.
pub fn fuzz_targets(ctx: &Context, flags: &str) -> Result<Vec<PathBuf>> {
    let log = ctx.logs().join("fuzz-build.log");
    let _lock = lock::take(&ctx.cache.join("cargo.lock"), "builds programs")?;
    let mut command = Command::new("cargo");
    command
        // Named, so that build scripts and macros are built without the flags.
        .args(["build", "--release", "--target", "x86_64-unknown-linux-gnu"])
        .env("RUSTFLAGS", flags)
        .current_dir(ctx.workspace().join("fuzz"));
    let built = run(ctx, "fuzz targets", &log, &mut command)?;
    Ok(built
        .into_iter()
        .filter(|e| e.kind == "bin")
        .map(|e| e.path)
        .collect())
}

fn build(ctx: &Context, label: &str, log: &Path, arguments: &[&str]) -> Result<Vec<Executable>> {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(ctx.workspace());
    run(ctx, label, log, &mut command)
}

fn run(ctx: &Context, label: &str, log: &Path, command: &mut Command) -> Result<Vec<Executable>> {
    command
        .args(["--message-format=json-render-diagnostics"])
        .arg(format!("-j{}", ctx.jobs))
        .env("CARGO_TERM_COLOR", "never");
    let step = Step {
        label,
        log,
        expected: None,
        unit: "crates",
    };
    let done = step.run(command, |line| line.trim_start().starts_with("Compiling"))?;
    Ok(executables(&done.output))
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The executables that cargo's messages name; other lines are passed over.
fn executables(output: &str) -> Vec<Executable> {
    output
        .lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| {
            let target = message.target?;
            let folder = message.manifest_path?.parent()?.to_owned();
            Some(Executable {
                name: target.name,
                package: folder.file_name()?.to_string_lossy().into_owned(),
                kind: target.kind.into_iter().next()?,
                folder,
                path: message.executable?,
                test: message.profile.is_some_and(|p| p.test),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_executables_among_messages() {
        let output = concat!(
            "   Compiling x\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/vgpu/Cargo.toml","target":{"name":"vgpu","kind":["bin"]},"executable":"/t/vgpu"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/l/Cargo.toml","target":{"name":"l","kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/l/Cargo.toml","target":{"name":"l","kind":["lib"]},"profile":{"test":true},"executable":"/t/l-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n{not json\n"
        );
        let found = executables(output);
        assert_eq!(found.len(), 2);
        assert!(!found[0].test && found[1].test);
        assert_eq!(
            (found[0].name.as_str(), found[0].package.as_str()),
            ("vgpu", "vgpu")
        );
        assert_eq!(found[0].path, Path::new("/t/vgpu"));
    }
}
