// SPDX-License-Identifier: GPL-2.0
//! `make series`: what the repository adds to the kernel, as a series of mails.
//!
//! Each file of `patches/series` is one mail's message, and names at its end what the
//! mail holds: files of `patches/` ("Patch:") and new files or folders ("Adds:"). A file
//! of `patches/` that none names is a mail by itself, before all of them. The first
//! message is the cover letter.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::content::write_atomic;
use crate::context::{Context, Flavour};
use crate::kernel::{
    self,
    overlay::{new_paths, originals, patch_files},
};

/// Who the mails are from.
const AUTHOR: (&str, &str) = ("p2pgpu developers", "p2pgpu@localhost");

/// One mail.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mail {
    /// Subject and body.
    message: String,
    /// Files of `patches/`.
    patches: Vec<PathBuf>,
    /// New files, by their path in the tree.
    adds: Vec<PathBuf>,
}

/// Writes the series and checks it; says whether checkpatch found nothing.
///
/// # Errors
///
/// When a file belongs to no mail or to two, a patch does not apply, or the mails do not
/// make the tree that the kernel was built from.
pub fn run(ctx: &Context) -> Result<bool> {
    let built = kernel::ensure(ctx, Flavour::Release)?;
    let (cover, mails) = plan(&ctx.top)?;
    let out = ctx.build().join("series");
    let repository = ctx.build().join("series.git");
    for old in [&out, &repository] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        fs::create_dir_all(old)?;
    }

    let git = Git(&repository);
    git.run(&["init", "--quiet", "--initial-branch=base"])?;
    let touched = mails.iter().flat_map(|mail| &mail.patches);
    for (path, bytes) in originals(&built.tree, touched)? {
        write_atomic(&repository.join(path), &bytes)?;
    }
    let made_for = fs::read_to_string(ctx.kernel_files().join("made-for"))?;
    git.commit(&format!("Linux {}", made_for.trim()))?;
    git.run(&["checkout", "--quiet", "-b", "series"])?;
    for mail in &mails {
        for patch in &mail.patches {
            apply(&repository, patch)?;
        }
        for path in &mail.adds {
            write_atomic(&repository.join(path), &fs::read(ctx.top.join(path))?)?;
        }
        git.commit(&mail.message)?;
    }
    git.run(&[
        "format-patch",
        "--quiet",
        "--cover-letter",
        "--cover-from-description=none",
        "-o",
        &out.to_string_lossy(),
        "base",
    ])?;
    let mut files: Vec<PathBuf> = fs::read_dir(&out)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let letter = files.first().context("git wrote no mail")?;
    write_cover(letter, &cover)?;

    // What was mailed, put together again, is what was built.
    git.run(&["checkout", "--quiet", "-b", "mailed", "base"])?;
    for file in &files[1..] {
        git.run(&["am", "--quiet", &file.to_string_lossy()])
            .with_context(|| format!("{} does not apply", file.display()))?;
    }
    for path in git.run(&["ls-files"])?.lines() {
        let (ours, theirs) = (repository.join(path), built.tree.join(path));
        ensure!(
            fs::read(&ours)? == fs::read(&theirs).with_context(|| path.to_owned())?,
            "{path} is not what the kernel was built from"
        );
    }

    let good = checkpatch(&built.tree, &files[1..])?;
    println!("{} mails in {}", files.len(), out.display());
    Ok(good)
}

/// Applies a file of `patches/` as preparing a kernel does.
fn apply(folder: &Path, patch: &Path) -> Result<()> {
    let output = Command::new("patch")
        .args(["-p1", "--batch", "--forward", "--fuzz=0"])
        .args(["--no-backup-if-mismatch", "-i"])
        .arg(patch)
        .current_dir(folder)
        .output()
        .context("running patch")?;
    ensure!(
        output.status.success(),
        "{} does not apply in the series: {}",
        patch.display(),
        String::from_utf8_lossy(&output.stdout).trim()
    );
    Ok(())
}

/// The cover letter and the mails of this checkout.
fn plan(top: &Path) -> Result<(String, Vec<Mail>)> {
    let folder = top.join("patches/series");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    let texts = paths
        .iter()
        .map(fs::read_to_string)
        .collect::<Result<Vec<_>, _>>()?;
    let mut new: BTreeMap<PathBuf, bool> = BTreeMap::new();
    for path in new_paths(top) {
        new.insert(path?.strip_prefix(top)?.to_owned(), false);
    }
    let (cover, rest) = texts.split_first().context("there is no cover letter")?;
    let mut taken = Vec::new();
    let mut mails = Vec::new();
    for text in rest {
        let (message, patches, prefixes) = parse(text);
        let mut adds = Vec::new();
        for (path, taken) in &mut new {
            if prefixes.iter().any(|prefix| path.starts_with(prefix)) {
                ensure!(!*taken, "{} is in two mails", path.display());
                *taken = true;
                adds.push(path.clone());
            }
        }
        let patches: Vec<_> = patches
            .iter()
            .map(|p| top.join("patches").join(p))
            .collect();
        taken.extend(patches.clone());
        mails.push(Mail {
            message,
            patches,
            adds,
        });
    }
    if let Some((path, _)) = new.iter().find(|(_, taken)| !**taken) {
        bail!(
            "{} is in no mail: name it in patches/series",
            path.display()
        );
    }
    let mut alone = Vec::new();
    for patch in patch_files(top)? {
        if !taken.contains(&patch) {
            alone.push(Mail {
                message: message_of(&fs::read_to_string(&patch)?),
                patches: vec![patch],
                adds: Vec::new(),
            });
        }
    }
    alone.extend(mails);
    Ok((cover.clone(), alone))
}

/// A message, the patches and the new files that it names.
fn parse(text: &str) -> (String, Vec<&str>, Vec<&str>) {
    let named = |tag: &str| {
        text.lines()
            .filter_map(|line| Some(line.strip_prefix(tag)?.trim()))
            .collect()
    };
    let message: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("Patch:") && !line.starts_with("Adds:"))
        .collect();
    let message = message.join("\n").trim().to_owned();
    (message, named("Patch:"), named("Adds:"))
}

/// The message of a mail-ready patch, without what git adds when it is sent.
fn message_of(patch: &str) -> String {
    let head = patch.split("\n---\n").next().unwrap_or(patch);
    let lines = head
        .lines()
        .filter(|line| !line.starts_with("From: ") && !line.starts_with("Signed-off-by: "))
        .map(|line| line.strip_prefix("Subject: [PATCH] ").unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Puts the cover letter's words in the places that git left for them.
fn write_cover(path: &Path, cover: &str) -> Result<()> {
    let (subject, body) = cover
        .split_once("\n\n")
        .context("the cover letter is short")?;
    let letter = fs::read_to_string(path)?
        .replace("*** SUBJECT HERE ***", subject)
        .replace("*** BLURB HERE ***", body.trim());
    Ok(fs::write(path, letter)?)
}

/// Prints what checkpatch finds in the mails; nothing is good.
fn checkpatch(tree: &Path, mails: &[PathBuf]) -> Result<bool> {
    let mut good = true;
    for mail in mails {
        let output = Command::new("perl")
            .arg(tree.join("scripts/checkpatch.pl"))
            // MAINTAINERS has no entry for what is not in the kernel; rustfmt judges the
            // lines of Rust, and C files have checks of their own.
            .args(["--no-summary", "--terse", "--show-types", "--ignore"])
            .arg("FILE_PATH_CHANGES,LONG_LINE,LONG_LINE_COMMENT")
            .arg(mail)
            .current_dir(tree)
            .output()
            .context("running checkpatch")?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        good &= output.status.success() && text.trim().is_empty();
    }
    Ok(good)
}

/// git in one repository, with nothing of the user's settings.
struct Git<'a>(&'a Path);

impl Git<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let (name, email) = AUTHOR;
        let output = Command::new("git")
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_AUTHOR_NAME", name)
            .env("GIT_AUTHOR_EMAIL", email)
            .env("GIT_COMMITTER_NAME", name)
            .env("GIT_COMMITTER_EMAIL", email)
            .current_dir(self.0)
            .output()
            .context("running git")?;
        ensure!(
            output.status.success(),
            "git {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn commit(&self, message: &str) -> Result<()> {
        self.run(&["add", "--all", "--force"])?;
        self.run(&["commit", "--quiet", "--signoff", "--message", message])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_what_they_hold() {
        let text = "a: b\n\nWhy.\n\nPatch: 1.patch\nAdds: lib/a.c\nAdds: lib/b/\n";
        let (message, patches, adds) = parse(text);
        assert_eq!(message, "a: b\n\nWhy.");
        assert_eq!(
            (patches, adds),
            (vec!["1.patch"], vec!["lib/a.c", "lib/b/"])
        );
    }

    #[test]
    fn a_patch_has_a_message() {
        let patch =
            "From: x <y>\nSubject: [PATCH] a: b\n\nWhy.\n\nSigned-off-by: x <y>\n---\n a.c | 1 +\n";
        assert_eq!(message_of(patch), "a: b\n\nWhy.");
    }

    #[test]
    fn all_that_is_new_is_in_the_series() {
        let folder = tempfile::tempdir().unwrap();
        let new = |path: &str, text: &str| {
            write_atomic(&folder.path().join(path), text.as_bytes()).unwrap();
        };
        new("patches/series/0.txt", "cover\n\nbody\n");
        new(
            "patches/series/1.txt",
            "s\n\nb\n\nPatch: 2.patch\nAdds: lib/\n",
        );
        new("patches/1.patch", "Subject: [PATCH] one\n\nw\n---\n");
        new("patches/2.patch", "Subject: [PATCH] two\n\nw\n---\n");
        new("lib/a.c", "a");
        let (cover, mails) = plan(folder.path()).unwrap();
        assert_eq!(cover, "cover\n\nbody\n");
        let subjects: Vec<_> = mails
            .iter()
            .filter_map(|m| m.message.lines().next())
            .collect();
        assert_eq!(subjects, ["one", "s"]);
        assert_eq!(mails[1].adds, [Path::new("lib/a.c")]);
        new("kernel/b.c", "b");
        assert!(plan(folder.path()).is_err());
    }
}
