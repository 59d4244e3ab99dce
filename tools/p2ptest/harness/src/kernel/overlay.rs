// SPDX-License-Identifier: GPL-2.0
//! Laying our files and patches over a pristine tree, and taking them away again:
//! only files whose content differs are written, so that kbuild rebuilds no more
//! than it must.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use walkdir::WalkDir;

use crate::content::{Key, read_optional, write_atomic, write_if_changed};

/// Top-level folders of a kernel tree that the repository may hold files for.
const FOLDERS: [&str; 14] = [
    "Documentation",
    "arch",
    "block",
    "drivers",
    "fs",
    "include",
    "init",
    "kernel",
    "lib",
    "mm",
    "net",
    "rust",
    "samples",
    "security",
];

/// A tree in the cache folder with what we know of it.
#[derive(Debug)]
pub struct Tree {
    /// The kernel tree that is built.
    pub dir: PathBuf,
    /// Originals of the files that we replaced, and the list of all we touched.
    pub state: PathBuf,
}

/// Keys of what we added to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Of everything that a build reads.
    pub all: String,
    /// Of what configuring reads.
    pub configuration: String,
}

impl Keys {
    fn new(files: &Files) -> Self {
        let (mut all, mut configuration) = (Key::default(), Key::default());
        for (path, bytes) in files {
            if path.starts_with("Documentation") {
                continue;
            }
            let name = path.as_os_str().as_encoded_bytes();
            all.add(name).add(bytes);
            if path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("Kconfig"))
            {
                configuration.add(name).add(bytes);
            }
        }
        Self {
            all: all.hex(),
            configuration: configuration.hex(),
        }
    }
}

/// New files and edited ones, by their path in the tree.
type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Tree {
    /// Makes the tree hold the repository's files and patches, and nothing of
    /// what earlier versions of them left.  Returns keys of what it now holds.
    ///
    /// # Errors
    ///
    /// When a file of ours exists in the kernel, or a patch does not apply.
    pub fn apply(&self, top: &Path, made_for: &str) -> Result<Keys> {
        let new = new_files(top)?;
        let patches = patches(top)?;
        let before = self.touched()?;

        let mut wanted = new.clone();
        for path in new.keys() {
            if !before.contains_key(path) && self.dir.join(path).exists() {
                bail!(
                    "{} is a file of Linux: change it by a patch",
                    path.display()
                );
            }
        }
        // Remember the originals before the first change, so that whatever
        // happens next they are still known.
        let edited = patches
            .iter()
            .flat_map(|p| touched_by(&p.text))
            .filter(|p| !new.contains_key(p))
            .collect::<BTreeSet<_>>();
        let mut touched = before.clone();
        for path in &edited {
            if !touched.contains_key(path) {
                let original = read_optional(&self.dir.join(path))?;
                if let Some(bytes) = &original {
                    write_atomic(&self.original(path), bytes)?;
                }
                touched.insert(path.clone(), original.is_some());
            }
        }
        for path in new.keys() {
            touched.entry(path.clone()).or_insert(false);
        }
        self.remember(&touched)?;

        wanted.extend(self.patched(&patches, &edited, &new, made_for)?);
        for (path, had_original) in &touched {
            let target = self.dir.join(path);
            if let Some(bytes) = wanted.get(path) {
                write_if_changed(&target, bytes)?;
            } else if *had_original {
                write_if_changed(&target, &fs::read(self.original(path))?)?;
            } else if target.exists() {
                fs::remove_file(&target)?;
            }
        }
        touched.retain(|path, had_original| wanted.contains_key(path) || *had_original);
        self.remember(&touched)?;

        Ok(Keys::new(&wanted))
    }

    /// The edited files with all patches applied, worked out beside the tree.
    fn patched(
        &self,
        patches: &[Patch],
        edited: &BTreeSet<PathBuf>,
        new: &Files,
        made_for: &str,
    ) -> Result<Files> {
        let scratch = self.state.join("scratch");
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch)?;
        for path in edited {
            if let Some(bytes) = read_optional(&self.original(path))? {
                write_atomic(&scratch.join(path), &bytes)?;
            }
        }
        for patch in patches {
            if let Some(path) = touched_by(&patch.text)
                .into_iter()
                .find(|p| new.contains_key(p))
            {
                bail!(
                    "{} changes {}, a file of this repository",
                    patch.name,
                    path.display()
                );
            }
            let output = Command::new("patch")
                .args([
                    "-p1",
                    "--batch",
                    "--forward",
                    "--fuzz=0",
                    "--no-backup-if-mismatch",
                    "-i",
                ])
                .arg(&patch.path)
                .current_dir(&scratch)
                .output()
                .context("running patch")?;
            ensure!(
                output.status.success(),
                "{} does not apply; it was made for Linux {made_for}:\n{}",
                patch.name,
                String::from_utf8_lossy(&output.stdout)
            );
        }
        let mut files = Files::new();
        for path in edited {
            if let Some(bytes) = read_optional(&scratch.join(path))? {
                files.insert(path.clone(), bytes);
            }
        }
        fs::remove_dir_all(&scratch)?;
        Ok(files)
    }

    fn original(&self, path: &Path) -> PathBuf {
        self.state.join("original").join(path)
    }

    /// Files that the tree has from us, and whether Linux has them too.
    fn touched(&self) -> Result<BTreeMap<PathBuf, bool>> {
        match read_optional(&self.state.join("touched.json"))? {
            Some(bytes) => serde_json::from_slice(&bytes).context("the tree's list is damaged"),
            None => Ok(BTreeMap::new()),
        }
    }

    fn remember(&self, touched: &BTreeMap<PathBuf, bool>) -> Result<()> {
        write_atomic(
            &self.state.join("touched.json"),
            &serde_json::to_vec(touched)?,
        )
    }
}

/// One file of `patches/`.
#[derive(Debug)]
struct Patch {
    name: String,
    path: PathBuf,
    text: String,
}

fn patches(top: &Path) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for path in patch_files(top)? {
        patches.push(Patch {
            name: path
                .strip_prefix(top)
                .unwrap_or(&path)
                .display()
                .to_string(),
            text: fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?,
            path,
        });
    }
    Ok(patches)
}

/// The patches in the order in which they apply: that of their names.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn patch_files(top: &Path) -> Result<Vec<PathBuf>> {
    let folder = top.join("patches");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The repository's files that belong into a kernel tree, by path, unread.
pub fn new_paths(top: &Path) -> impl Iterator<Item = Result<PathBuf>> {
    FOLDERS
        .iter()
        .map(|f| top.join(f))
        .filter(|f| f.is_dir())
        .flat_map(WalkDir::new)
        .filter_map(|entry| match entry {
            Ok(e) if e.file_type().is_file() && !is_leftover(e.path()) => Some(Ok(e.into_path())),
            Ok(_) => None,
            Err(e) => Some(Err(e.into())),
        })
}

/// Editors' and patch's leftovers are no part of the tree.
pub fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.')
        || name.ends_with('~')
        || name.ends_with(".orig")
        || name.ends_with(".rej")
}

fn new_files(top: &Path) -> Result<Files> {
    let mut files = Files::new();
    for path in new_paths(top) {
        let path = path?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        files.insert(path.strip_prefix(top)?.to_owned(), bytes);
    }
    Ok(files)
}

/// Linux's own versions of the files that patches edit, by path, from beside a tree that
/// [`Tree::apply`] was applied to.
///
/// # Errors
///
/// When one cannot be read.
pub fn originals<'p>(
    tree: &Path,
    patches: impl Iterator<Item = &'p PathBuf>,
) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let folder = tree.with_extension("state").join("original");
    let mut files = Files::new();
    for patch in patches {
        for path in touched_by(&fs::read_to_string(patch)?) {
            if let Some(bytes) = read_optional(&folder.join(&path))? {
                files.insert(path, bytes);
            }
        }
    }
    Ok(files)
}

/// The files that a patch in `git diff` form names.
fn touched_by(patch: &str) -> BTreeSet<PathBuf> {
    patch
        .lines()
        .filter_map(|line| {
            line.strip_prefix("--- a/")
                .or_else(|| line.strip_prefix("+++ b/"))
        })
        // A mailed patch may end a name with a tab and a date.
        .map(|name| PathBuf::from(name.split('\t').next().unwrap_or(name).trim_end()))
        .filter(|path| {
            path.components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "why\n---\n lib/a.c | 2 +-\n\n--- a/lib/a.c\n+++ b/lib/a.c\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n";

    struct Fixture {
        _dir: tempfile::TempDir,
        top: PathBuf,
        tree: Tree,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (top, linux) = (dir.path().join("top"), dir.path().join("linux"));
            write_atomic(&linux.join("lib/a.c"), b"one\ntwo\nthree\n").unwrap();
            write_atomic(&linux.join("lib/b.c"), b"b\n").unwrap();
            fs::create_dir_all(&top).unwrap();
            let tree = Tree {
                dir: linux,
                state: dir.path().join("state"),
            };
            Self {
                _dir: dir,
                top,
                tree,
            }
        }

        fn write(&self, path: &str, text: &str) {
            write_atomic(&self.top.join(path), text.as_bytes()).unwrap();
        }

        fn linux(&self, path: &str) -> Option<String> {
            read_optional(&self.tree.dir.join(path))
                .unwrap()
                .map(|b| String::from_utf8(b).unwrap())
        }

        fn apply(&self) -> Result<Keys> {
            self.tree.apply(&self.top, "7.3.4")
        }
    }

    #[test]
    fn names_of_a_patch() {
        let names =
            touched_by("--- a/x/y.c\t2026-01-01\n+++ b/x/y.c\n--- /dev/null\n+++ b/../etc\n");
        assert_eq!(names, BTreeSet::from([PathBuf::from("x/y.c")]));
    }

    #[test]
    fn new_file_and_patch_come_and_go() {
        let f = Fixture::new();
        f.write("drivers/x/new.rs", "new");
        f.write("patches/0001.patch", PATCH);
        f.write("tools/not-kernel.rs", "no");
        let key = f.apply().unwrap();
        assert_eq!(f.linux("drivers/x/new.rs").as_deref(), Some("new"));
        assert_eq!(f.linux("lib/a.c").as_deref(), Some("one\nTWO\nthree\n"));
        assert_eq!(f.linux("tools/not-kernel.rs"), None);
        f.write("Documentation/x.rst", "not built");
        assert_eq!(f.apply().unwrap(), key);
        f.write("drivers/x/Kconfig", "config X");
        assert_ne!(f.apply().unwrap().configuration, key.configuration);

        f.write("patches/0001.patch", &PATCH.replace("TWO", "zwei"));
        assert_ne!(f.apply().unwrap(), key);
        assert_eq!(f.linux("lib/a.c").as_deref(), Some("one\nzwei\nthree\n"));

        fs::remove_dir_all(f.top.join("patches")).unwrap();
        fs::remove_dir_all(f.top.join("drivers")).unwrap();
        f.apply().unwrap();
        assert_eq!(f.linux("lib/a.c").as_deref(), Some("one\ntwo\nthree\n"));
        assert_eq!(f.linux("drivers/x/new.rs"), None);
    }

    #[test]
    fn untouched_file_keeps_its_time() {
        let f = Fixture::new();
        f.write("drivers/x/new.rs", "new");
        f.write("patches/0001.patch", PATCH);
        f.apply().unwrap();
        let time = |p: &str| {
            fs::metadata(f.tree.dir.join(p))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = (time("lib/a.c"), time("drivers/x/new.rs"));
        f.write("drivers/x/other.rs", "other");
        f.apply().unwrap();
        assert_eq!((time("lib/a.c"), time("drivers/x/new.rs")), before);
    }

    #[test]
    fn file_of_linux_is_not_replaced() {
        let f = Fixture::new();
        f.write("lib/b.c", "ours");
        let error = f.apply().unwrap_err().to_string();
        assert!(error.contains("lib/b.c is a file of Linux"), "{error}");
        assert_eq!(f.linux("lib/b.c").as_deref(), Some("b\n"));
    }

    #[test]
    fn patch_that_does_not_apply_says_what_it_was_made_for() {
        let f = Fixture::new();
        f.write("patches/0001.patch", &PATCH.replace("-two", "-deux"));
        let error = f.apply().unwrap_err().to_string();
        assert!(error.contains("made for Linux 7.3.4"), "{error}");
        assert_eq!(f.linux("lib/a.c").as_deref(), Some("one\ntwo\nthree\n"));
    }

    #[test]
    fn patches_build_on_each_other_in_order_of_names() {
        let f = Fixture::new();
        f.write(
            "patches/0002.patch",
            &PATCH.replace("-two", "-TWO").replace("+TWO", "+three"),
        );
        f.write("patches/0001.patch", PATCH);
        f.apply().unwrap();
        assert_eq!(f.linux("lib/a.c").as_deref(), Some("one\nthree\nthree\n"));
    }
}
