// SPDX-License-Identifier: GPL-2.0
//! The pristine kernel tree: the packaged source unpacked, or a copy of the user's
//! own tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use walkdir::WalkDir;

use crate::content::{Key, Stamp};
use crate::context::Context;
use crate::kernel::overlay::Tree;
use crate::step::Step;

/// Members of the packaged source, about; only progress depends on it.
const MEMBERS: u64 = 99_000;

/// Makes sure that the tree is there, pristine or with what [`Tree::apply`] did
/// to it.  Returns a key of its origin.
///
/// # Errors
///
/// When there is no source, or it cannot be unpacked or copied.
pub fn ensure(ctx: &Context) -> Result<(Tree, String)> {
    let folder = ctx.cache.join("kernel");
    let name = if ctx.kernel_source.is_some() {
        "user"
    } else {
        "linux"
    };
    let tree = Tree {
        dir: folder.join(name),
        state: folder.join(format!("{name}.state")),
    };
    let stamp_path = folder.join(format!("{name}.stamp"));
    let stamp = Stamp(&stamp_path);
    let origin = match &ctx.kernel_source {
        Some(dir) => Origin::user(dir)?,
        None => Origin::packaged()?,
    };
    let key = origin.key();
    if !stamp.holds(&key) {
        stamp.clear()?;
        for old in [&tree.dir, &tree.state] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir_all(&tree.dir)?;
        origin.provide(ctx, &tree.dir)?;
        stamp.set(&key)?;
    }
    Ok((tree, key))
}

/// Where a pristine tree comes from.
enum Origin {
    /// A tar archive.
    Packaged {
        archive: PathBuf,
        size: u64,
        time: i64,
    },
    /// A user's tree, with size and time of each file.
    User {
        dir: PathBuf,
        files: BTreeMap<PathBuf, (u64, i64, i64)>,
    },
}

impl Origin {
    fn packaged() -> Result<Self> {
        let folder = Path::new("/usr/src");
        let archive = fs::read_dir(folder)?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .find(|p| {
                let name = p.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("linux-source-") && name.ends_with(".tar.xz")
            })
            .context("the toolchain folder holds no linux-source archive")?;
        let meta = fs::metadata(&archive)?;
        Ok(Self::Packaged {
            size: meta.size(),
            time: meta.mtime(),
            archive,
        })
    }

    fn user(dir: &Path) -> Result<Self> {
        if dir.join(".config").exists() || dir.join("include/generated").exists() {
            bail!(
                "{} was built in place: a separate build folder needs a clean tree; run: make -C {} mrproper",
                dir.display(),
                dir.display()
            );
        }
        let mut files = BTreeMap::new();
        for entry in WalkDir::new(dir)
            .into_iter()
            .filter_entry(|e| e.file_name() != ".git")
        {
            let entry = entry?;
            if entry.file_type().is_dir() {
                continue;
            }
            let meta = entry.metadata()?;
            let path = entry.path().strip_prefix(dir)?.to_owned();
            files.insert(path, (meta.size(), meta.mtime(), meta.mtime_nsec()));
        }
        Ok(Self::User {
            dir: dir.to_owned(),
            files,
        })
    }

    fn key(&self) -> String {
        let mut key = Key::default();
        match self {
            Self::Packaged {
                archive,
                size,
                time,
            } => {
                key.add(archive.as_os_str().as_encoded_bytes());
                key.add(format!("{size} {time}"));
            }
            Self::User { dir, files } => {
                key.add(dir.as_os_str().as_encoded_bytes());
                for (path, stat) in files {
                    key.add(path.as_os_str().as_encoded_bytes())
                        .add(format!("{stat:?}"));
                }
            }
        }
        key.hex()
    }

    fn provide(&self, ctx: &Context, to: &Path) -> Result<()> {
        let log = ctx.logs().join("kernel-source.log");
        let mut command = match self {
            Self::Packaged { archive, .. } => {
                let mut c = Command::new("tar");
                c.args(["--strip-components=1", "-xvf"])
                    .arg(archive)
                    .arg("-C")
                    .arg(to);
                c
            }
            Self::User { dir, .. } => {
                let mut c = Command::new("sh");
                c.args([
                    "-c",
                    "tar -C \"$1\" --exclude=./.git -cf - . | tar -C \"$2\" -xvf -",
                    "sh",
                ]);
                c.arg(dir).arg(to);
                c
            }
        };
        let expected = match self {
            Self::Packaged { .. } => MEMBERS,
            Self::User { files, .. } => files.len() as u64,
        };
        let step = Step {
            label: "kernel source",
            log: &log,
            expected: Some(expected),
            unit: "files",
        };
        step.run(&mut command, |_| true).map(|_| ())
    }
}
