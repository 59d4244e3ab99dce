// SPDX-License-Identifier: GPL-2.0
//! Debian packages that only some commands need: fetched when they are, from the mirror
//! that the toolchain folder was made from, and unpacked in a folder of their own. The
//! toolchain folder stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::content::{Key, Stamp};
use crate::context::Context;
use crate::lock;
use crate::step::Step;

/// A folder that holds these packages and what they depend on, but for what the toolchain
/// folder has.
///
/// # Errors
///
/// When they cannot be fetched: there may be no network.
pub fn ensure(ctx: &Context, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = ctx.cache.join("target/packages").join(name);
    fs::create_dir_all(&folder)?;
    let _lock = lock::take(&folder.join("lock"), "fetches packages")?;
    let root = folder.join("root");
    let path = folder.join("stamp");
    let stamp = Stamp(&path);
    let mut key = Key::default();
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
    fetch(ctx, name, &folder, packages)?;
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
    stamp.set(&key)?;
    Ok(root)
}

fn fetch(ctx: &Context, name: &str, folder: &Path, packages: &[&str]) -> Result<()> {
    // Lists of its own: those of the toolchain folder may be old, and are not ours.
    fs::create_dir_all(folder.join("lists/partial"))?;
    let apt = |verb: &str, names: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-y", "--no-install-recommends", "--download-only"])
            .args(["-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"])
            .arg("-o")
            .arg(format!("Dir::State::lists={}/lists", folder.display()))
            .arg("-o")
            .arg(format!(
                "Dir::Cache::archives={}/archives",
                folder.display()
            ))
            .arg(verb)
            .args(names);
        let step = Step {
            label: &format!("packages for {name}: {verb}"),
            log: &ctx.logs().join(format!("packages-{name}-{verb}.log")),
            expected: None,
            unit: "files",
        };
        step.run(&mut command, |line| line.starts_with("Get:"))
    };
    apt("update", &[])?;
    apt("install", packages)?;
    Ok(())
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
