// SPDX-License-Identifier: GPL-2.0
//! Content keys, and files written only when, and as a whole.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest, Sha256};

/// Builds a key from parts; the same parts in another order or split give another.
#[derive(Debug, Default, Clone)]
pub struct Key(Sha256);

impl Key {
    /// Adds one part.
    pub fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// The key as hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0
            .clone()
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

/// A file's bytes, or `None` if it does not exist.
///
/// # Errors
///
/// Any other reason that it cannot be read.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// Replaces a file in one step, so that no reader and no interrupted run sees a
/// part of it.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    fs::write(&new, bytes).with_context(context)?;
    fs::rename(&new, path).with_context(context)
}

/// Writes a file unless it holds these bytes already; says whether it did.
///
/// # Errors
///
/// When it cannot be read or written.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if read_optional(path)?.as_deref() == Some(bytes) {
        return Ok(false);
    }
    write_atomic(path, bytes)?;
    Ok(true)
}

/// A step's stamp: the key of the content for which it last ended well.
#[derive(Debug)]
pub struct Stamp<'a>(pub &'a Path);

impl Stamp<'_> {
    /// Whether the step ended well for this key.
    pub fn holds(&self, key: &str) -> bool {
        fs::read_to_string(self.0).is_ok_and(|s| s == key)
    }

    /// To call when the step starts: an interrupted one must not look done.
    ///
    /// # Errors
    ///
    /// When the stamp cannot be removed.
    pub fn clear(&self) -> Result<()> {
        match fs::remove_file(self.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }

    /// To call when the step has ended well.
    ///
    /// # Errors
    ///
    /// When the stamp cannot be written.
    pub fn set(&self, key: &str) -> Result<()> {
        write_atomic(self.0, key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_how_parts_are_split() {
        let mut a = Key::default();
        a.add("ab").add("c");
        let mut b = Key::default();
        b.add("a").add("bc");
        assert_ne!(a.hex(), b.hex());
        assert_eq!(a.hex().len(), 64);
    }

    #[test]
    fn unchanged_file_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/f");
        assert!(write_if_changed(&path, b"one").unwrap());
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!write_if_changed(&path, b"one").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
        assert!(write_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn cleared_stamp_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stamp");
        let stamp = Stamp(&path);
        assert!(!stamp.holds("k"));
        stamp.set("k").unwrap();
        assert!(stamp.holds("k") && !stamp.holds("other"));
        stamp.clear().unwrap();
        assert!(!stamp.holds("k"));
        stamp.clear().unwrap();
    }
}
