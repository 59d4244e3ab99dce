// SPDX-License-Identifier: GPL-2.0
//! Debian packages that only some tests need, of another suite than the toolchain
//! folder's: fetched when they are needed, from the mirror that this folder was made from,
//! and unpacked in a folder of their own. The toolchain folder stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::content::{Key, Stamp};
use crate::context::Context;
use crate::lock;
use crate::step::Step;

/// Where the toolchain folder's mirror is named.
const SOURCES: &str = "/etc/apt/sources.list";
/// Seconds that the mirror may stay silent, each of four times.
const SILENCE: &str = "20";

/// A folder that holds these packages and all that they depend on, down to the C library.
///
/// # Errors
///
/// When they cannot be fetched: there may be no network.
pub fn ensure(ctx: &Context, name: &str, suite: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = ctx.cache.join("target/packages").join(name);
    fs::create_dir_all(&folder)?;
    let _lock = lock::take(&folder.join("lock"), "fetches packages")?;
    let root = folder.join("root");
    let path = folder.join("stamp");
    let stamp = Stamp(&path);
    let mut key = Key::default();
    key.add(suite);
    for package in packages {
        key.add(package);
    }
    let key = key.hex();
    if stamp.holds(&key) {
        return Ok(root);
    }
    stamp.clear()?;
    let archives = folder.join("archives");
    for old in [&root, &archives] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(archives.join("partial"))?;
    fs::create_dir_all(&root)?;
    Apt {
        ctx,
        name,
        folder: &folder,
    }
    .fetch(suite, packages)?;
    let mut found = 0;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|e| e == "deb") {
            found += 1;
            unpack(&archive, &root)?;
        }
    }
    ensure!(found > 0, "apt-get fetched nothing for {packages:?}");
    fs::remove_dir_all(&archives)?;
    // Larger than the packages, and soon out of date.
    fs::remove_dir_all(folder.join("lists"))?;
    stamp.set(&key)?;
    Ok(root)
}

/// apt-get, which keeps what it fetches in a folder of ours.
struct Apt<'a> {
    ctx: &'a Context,
    name: &'a str,
    folder: &'a Path,
}

impl Apt<'_> {
    fn fetch(&self, suite: &str, packages: &[&str]) -> Result<()> {
        let sources = fs::read_to_string(SOURCES).with_context(|| format!("reading {SOURCES}"))?;
        let mirror = mirror(&sources).with_context(|| format!("{SOURCES} names no mirror"))?;
        let source = format!("deb {mirror} {suite} main\n");
        fs::write(self.folder.join("sources.list"), source)?;
        // As if nothing were installed.
        fs::write(self.folder.join("status"), "")?;
        fs::create_dir_all(self.folder.join("lists/partial"))?;
        let options = [
            self.option("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            self.option("Dir::State::status", "status"),
            self.option("Dir::State::lists", "lists"),
            self.option("Dir::Cache::archives", "archives"),
            // No cache of the lists: it would be in the toolchain folder.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            format!("Acquire::http::Timeout={SILENCE}"),
            format!("Acquire::https::Timeout={SILENCE}"),
            // Else what cannot be fetched is a warning, and "install" is left without it.
            "APT::Update::Error-Mode=any".to_owned(),
            // A suite in development promises new lists each week, and a mirror may stand
            // still for longer: old ones, with their signature, are as good.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        self.run("update", &options, &[])?;
        self.run("install", &options, packages)
    }

    fn option(&self, name: &str, file: &str) -> String {
        format!("{name}={}/{file}", self.folder.display())
    }

    fn run(&self, verb: &str, options: &[String], names: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "--download-only"]);
        for option in options {
            command.args(["-o", option]);
        }
        command.arg(verb).args(names);
        let name = self.name;
        let step = Step {
            label: &format!("packages for {name}: {verb}"),
            log: &self.ctx.logs().join(format!("packages-{name}-{verb}.log")),
            expected: None,
            unit: "files",
        };
        step.run(&mut command, |line| line.starts_with("Get:"))?;
        Ok(())
    }
}

/// The mirror of the first line of a list of sources: "deb [options] mirror suite main".
fn mirror(sources: &str) -> Option<&str> {
    let line = sources.lines().find_map(|line| line.strip_prefix("deb "))?;
    let rest = match line.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => line,
    };
    rest.split_whitespace().next()
}

fn unpack(archive: &Path, root: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .args([archive, root])
        .status()?;
    ensure!(
        status.success(),
        "unpacking {}: {status}",
        archive.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_of_a_list() {
        let list = "# x\ndeb file:/a/debian trixie main\ndeb file:/b/s trixie main\n";
        assert_eq!(mirror(list), Some("file:/a/debian"));
        let signed = "deb [signed-by=/k arch=amd64] file:/a/d trixie main\n";
        assert_eq!(mirror(signed), Some("file:/a/d"));
        assert_eq!(mirror("deb-src file:/a/debian trixie main\n"), None);
        assert_eq!(mirror(""), None);
    }
}
