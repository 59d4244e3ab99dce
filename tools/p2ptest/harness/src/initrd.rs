// SPDX-License-Identifier: GPL-2.0
//! The guest's file system: /init, busybox, the modules, the test programs and the
//! libraries that they need.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use p2p_init::{MODULE_LIST, TESTS};

use crate::cargo::Programs;
use crate::context::Context;
use crate::cpio::Archive;
use crate::igt;
use crate::kernel::Kernel;

/// Where the demo's input is in the guest.
pub const INPUT: &str = "/input";

/// The module that measures as soon as it is loaded: not at boot.
pub const BENCHMARK: &str = "/modules/p2pgpu_bench.ko";

const BUSYBOX: &str = "/usr/bin/busybox";

/// Makes the archive that all guests of this run and kernel boot from.
///
/// # Errors
///
/// When a part of it is missing or cannot be read.
pub fn build(ctx: &Context, kernel: &Kernel, programs: &Programs) -> Result<PathBuf> {
    let name = format!("{}initrd", kernel.flavour.prefix());
    let path = ctx.build().join(&name);
    let new = ctx.build().join(name + ".new");
    let mut archive = Archive::new(BufWriter::new(File::create(&new)?));
    archive.folder("dev")?;

    let mut dynamic = vec![programs.init.clone()];
    dynamic.extend(programs.demo.clone());
    dynamic.extend(programs.tools.iter().cloned());
    dynamic.extend(programs.tests.iter().cloned());
    dynamic.push(programs.bench.clone());
    for library in libraries(&dynamic)? {
        add(&mut archive, &library, &library.to_string_lossy(), true)?;
    }
    add(&mut archive, &programs.init, "init", true)?;
    for program in &dynamic[1..] {
        add(&mut archive, program, &in_guest(program), true)?;
    }

    add(&mut archive, Path::new(BUSYBOX), "bin/busybox", true)?;
    for applet in applets()? {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }

    let mut list = String::new();
    for module in &kernel.modules {
        let to = format!("/modules/{}", file_name(module));
        add(&mut archive, module, &to, false)?;
        if to == BENCHMARK {
            continue;
        }
        list.push_str(&to);
        list.push('\n');
    }
    archive.file(MODULE_LIST, list.as_bytes(), false)?;
    let tests = format!("{TESTS}/{}", igt::TEST_LIST);
    archive.file(&tests, igt::test_list(&programs.tests).as_bytes(), false)?;
    archive.finish()?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// Where files are added for a guest.
pub type Files = Archive<BufWriter<File>>;

/// Makes an archive of this name that holds `base` and what `add` adds; a file of the
/// same path takes the place of that in `base`.
///
/// # Errors
///
/// When it cannot be written, or `add` fails.
pub fn extended(
    ctx: &Context,
    base: &Path,
    name: &str,
    add: impl FnOnce(&mut Files) -> Result<()>,
) -> Result<PathBuf> {
    let path = ctx.build().join(name);
    let mut out = File::create(&path)?;
    std::io::copy(&mut File::open(base)?, &mut out)?;
    let mut archive = Archive::new(BufWriter::new(out));
    add(&mut archive)?;
    archive.finish()?;
    Ok(path)
}

/// Makes an archive that holds `base` and the demo's input. Returns it and the
/// input's path in the guest.
///
/// # Errors
///
/// When the input cannot be read or is too large.
pub fn with_input(
    ctx: &Context,
    base: &Path,
    name: &str,
    input: &mut impl Read,
    size: u64,
) -> Result<(PathBuf, String)> {
    let inside = format!("{INPUT}/{name}");
    let path = extended(ctx, base, "initrd.demo", |archive| {
        archive
            .stream(&inside, input, size, false)
            .with_context(|| format!("reading {name}"))
    })?;
    Ok((path, inside))
}

/// The path of a test program in the guest.
pub fn in_guest(program: &Path) -> String {
    format!("{TESTS}/{}", file_name(program))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Adds a copy of a file.
///
/// # Errors
///
/// When it cannot be read, or the archive not be written.
pub fn add(archive: &mut Files, from: &Path, to: &str, executable: bool) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    Ok(archive.file(to, &bytes, executable)?)
}

/// The dynamic linker and all libraries of the programs, at the paths where the
/// linker looks for them.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let output = Command::new("ldd")
            .arg(program)
            .output()
            .context("running ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(missing) = missing(&text) {
            bail!("{}: {missing}", program.display());
        }
        found.extend(library_paths(&text));
    }
    Ok(found)
}

/// The line of ldd's that tells of a library which is not there.
pub fn missing(ldd: &str) -> Option<&str> {
    let mut lines = ldd.lines();
    lines.find(|line| line.contains("not found")).map(str::trim)
}

/// The absolute paths in ldd's lines: "name => path (address)", "path (address)".
pub fn library_paths(ldd: &str) -> impl Iterator<Item = PathBuf> {
    ldd.lines().filter_map(|line| {
        let target = line.split_once("=>").map_or(line, |(_, path)| path);
        let path = target.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    })
}

fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .context("running busybox")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_libraries() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibdrm.so.2 => /lib/x/libdrm.so.2 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tstatically linked\n";
        let paths: Vec<_> = library_paths(ldd).collect();
        assert_eq!(
            paths,
            [
                PathBuf::from("/lib/x/libdrm.so.2"),
                "/lib64/ld-linux-x86-64.so.2".into()
            ]
        );
    }
}
