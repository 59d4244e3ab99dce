// SPDX-License-Identifier: GPL-2.0
//! The programs that `igt_runner` drives: which subtests they have, and what a guest needs
//! to run them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::expected::{self, OURS, UPSTREAM, VERDICTS};
use crate::cargo::Programs;
use crate::context::{Context, Flavour};
use crate::igt;
use crate::initrd;
use crate::packages;
use crate::stop;

/// Debian 13 has neither.
const SUITE: &str = "forky";
const PACKAGES: [&str; 2] = ["igt-gpu-tools", "igt-gpu-tools-tests"];

/// Where upstream's programs are, in the packages and in the guest; there ours are too.
pub const TESTS: &str = "/usr/libexec/igt-gpu-tools";
pub const RUNNER: &str = "/usr/bin/igt_runner";
/// Where the packages have libraries, and the guest's linker looks for them first.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const LOOKED_FOR: &str = "/lib/x86_64-linux-gnu";
const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Naming its subtests takes a program no time.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// A program, and those of its subtests that were chosen.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub program: String,
    /// The file.
    pub path: PathBuf,
    /// In the order in which it lists them.
    pub subtests: Vec<String>,
}

/// The folder of Debian's packages, fetched if it is not there.
///
/// # Errors
///
/// When they cannot be had.
pub fn fetch(ctx: &Context) -> Result<PathBuf> {
    packages::ensure(ctx, "igt", SUITE, &PACKAGES)
}

/// All programs with all their subtests, which they list themselves.
///
/// # Errors
///
/// When they are not what we take them for.
pub fn list(root: &Path, programs: &Programs) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for program in UPSTREAM {
        let path = inside(root, TESTS).join(program);
        ensure!(path.exists(), "{PACKAGES:?} have no {program}");
        let mut command = linker(root);
        command.arg(&path);
        groups.push(listed(program, path, &mut command)?);
    }
    for program in OURS {
        let mut tests = programs.tests.iter();
        let path = tests.find(|path| path.ends_with(program));
        let path = path.with_context(|| format!("the workspace builds no {program}"))?;
        let mut command = Command::new(path);
        groups.push(listed(program, path.clone(), &mut command)?);
    }
    let path = &programs.verdicts;
    groups.push(listed(VERDICTS, path.clone(), &mut Command::new(path))?);
    let unknown = groups
        .iter()
        .flat_map(|group| expected::unknown(&group.program, &group.subtests));
    let unknown: Vec<_> = unknown.collect();
    ensure!(
        unknown.is_empty(),
        "skips are expected of subtests that there are not: {unknown:?}"
    );
    Ok(groups)
}

fn listed(program: &str, path: PathBuf, command: &mut Command) -> Result<Group> {
    command.arg("--list-subtests");
    let told = stop::capture(command, LIST_LIMIT)?;
    ensure!(told.status.success(), "{command:?}: {}", told.status);
    let subtests = told.lines.iter().map(|line| line.trim());
    let subtests: Vec<_> = subtests.filter(|name| !name.is_empty()).collect();
    ensure!(!subtests.is_empty(), "{program} lists no subtests");
    Ok(Group {
        program: program.to_owned(),
        path,
        subtests: subtests.into_iter().map(str::to_owned).collect(),
    })
}

/// A path of the packages, which count from the root.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Starts a program of the packages with the libraries that they have.
fn linker(root: &Path) -> Command {
    let mut command = Command::new(inside(root, "usr").join(LINKER.trim_start_matches('/')));
    command.arg("--library-path").arg(inside(root, LIBRARIES));
    command
}

/// The libraries of these programs, in the packages.
fn libraries<'p>(
    root: &Path,
    programs: impl Iterator<Item = &'p PathBuf>,
) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let told = stop::capture(linker(root).arg("--list").arg(program), LIST_LIMIT)?;
        let text = told.lines.join("\n");
        ensure!(told.status.success(), "{}: {text}", program.display());
        if let Some(missing) = initrd::missing(&text) {
            bail!("{}: {missing}", program.display());
        }
        found.extend(initrd::library_paths(&text));
    }
    Ok(found)
}

/// Adds to `base` what `igt_runner` needs for these groups. The C library is the packages'
/// own, in the place of that of the toolchain folder: it is newer, and serves all.
///
/// # Errors
///
/// When a part of it is missing or cannot be read.
pub fn build_initrd(
    ctx: &Context,
    base: &Path,
    flavour: Flavour,
    root: &Path,
    groups: &[Group],
) -> Result<PathBuf> {
    let runner = inside(root, RUNNER);
    let upstream = |group: &&Group| group.path.starts_with(root);
    let theirs = groups.iter().filter(upstream);
    let dynamic = theirs.map(|group| &group.path).chain([&runner]);
    let libraries = libraries(root, dynamic)?;
    let name = format!("{}initrd.igt", flavour.prefix());
    initrd::extended(ctx, base, &name, |files| {
        initrd::add(files, &runner, RUNNER, true)?;
        for library in &libraries {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            let to = match LINKER.ends_with(&*name) {
                true => LINKER.to_owned(),
                false => format!("{LOOKED_FOR}/{name}"),
            };
            ensure!(
                library.starts_with(root),
                "{PACKAGES:?} bring no {name}, only the toolchain folder has it"
            );
            initrd::add(files, library, &to, true)?;
        }
        for group in groups {
            let program = format!("{TESTS}/{}", group.program);
            initrd::add(files, &group.path, &program, true)?;
        }
        let names: Vec<_> = groups.iter().map(|group| group.path.clone()).collect();
        let tests = format!("{TESTS}/{}", igt::TEST_LIST);
        Ok(files.file(&tests, igt::test_list(&names).as_bytes(), false)?)
    })
}
