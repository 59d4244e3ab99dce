// SPDX-License-Identifier: GPL-2.0
//! The lines of drivers and abstractions that the tests in guests reach.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;

use super::counters::Counters;
use super::llvm;
use super::report::Reached;
use crate::context::Context;

/// What the guests' counters tell; `folder` is for the profiles.
///
/// # Errors
///
/// When LLVM's tools do not understand what the compilers made.
pub fn read(ctx: &Context, counters: &Counters, folder: &Path) -> Result<Reached> {
    fs::create_dir_all(folder)?;
    let raw = counters.write(folder)?;
    llvm::reached(&raw, counters.files(), folder, &|path| {
        in_checkout(&ctx.top, path)
    })
}

/// The checkout's file that was compiled as `path`: there the tree is the kernel's, and
/// the path may be one from the build's folder.
fn in_checkout(top: &Path, path: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    (0..parts.len())
        .map(|from| parts[from..].iter().collect::<PathBuf>())
        .find(|path| path.components().count() > 1 && top.join(path).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_checkout() {
        let top = tempfile::tempdir().unwrap();
        let ours = Path::new("mm/p2p_vma.c");
        fs::create_dir_all(top.path().join("mm")).unwrap();
        fs::write(top.path().join(ours), "").unwrap();
        fs::write(top.path().join("lib.rs"), "").unwrap();
        let found = |path: &str| in_checkout(top.path(), Path::new(path));
        for path in [
            "mm/p2p_vma.c",
            "/c/linux/mm/p2p_vma.c",
            "../linux/mm/p2p_vma.c",
        ] {
            assert_eq!(found(path).as_deref(), Some(ours), "{path}");
        }
        assert_eq!(found("/c/linux/mm/slub.c"), None);
        assert_eq!(found("/c/linux/rust/lib.rs"), None);
    }
}
