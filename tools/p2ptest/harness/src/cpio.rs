// SPDX-License-Identifier: GPL-2.0
//! Archives in cpio's "newc" form, as the kernel unpacks them
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Archives may
//! follow one another: each is padded to four bytes.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Writes one archive.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder and those above it.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let folder = &path[..end];
            if !folder.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(folder, DIRECTORY, 0)?;
            }
        }
        Ok(())
    }

    /// Adds a file and the folders above it.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn file(&mut self, path: &str, bytes: &[u8], executable: bool) -> Result<()> {
        self.stream(path, &mut &*bytes, bytes.len() as u64, executable)
    }

    /// Adds a file of `size` bytes that `content` gives.
    ///
    /// # Errors
    ///
    /// When reading or writing fails, `content` is shorter, or it is too large for
    /// the format (4 GiB).
    pub fn stream(
        &mut self,
        path: &str,
        content: &mut impl Read,
        size: u64,
        executable: bool,
    ) -> Result<()> {
        self.above(path)?;
        let length = u32::try_from(size).map_err(|_| {
            Error::new(
                ErrorKind::FileTooLarge,
                "an archive holds files below 4 GiB",
            )
        })?;
        self.entry(
            path.trim_start_matches('/'),
            if executable { PROGRAM } else { FILE },
            length,
        )?;
        let copied = std::io::copy(&mut content.take(size), &mut self.out)?;
        if copied != size {
            return Err(Error::new(
                ErrorKind::UnexpectedEof,
                format!("{path} became shorter"),
            ));
        }
        self.pad(size)
    }

    /// Adds a symbolic link and the folders above it.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.above(path)?;
        let length = u32::try_from(target.len()).map_err(|_| ErrorKind::InvalidInput)?;
        self.entry(path.trim_start_matches('/'), LINK, length)?;
        self.out.write_all(target.as_bytes())?;
        self.pad(target.len() as u64)
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn finish(mut self) -> Result<W> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn above(&mut self, path: &str) -> Result<()> {
        match Path::new(path).parent().and_then(Path::to_str) {
            Some(parent) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, size: u32) -> Result<()> {
        self.inode += 1;
        self.header(name, mode, size)
    }

    fn header(&mut self, name: &str, mode: u32, size: u32) -> Result<()> {
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // magic, inode, mode, uid, gid, links, mtime, size, device (4), name, check
        let length = name.len() + 1;
        write!(
            self.out,
            "070701{:08x}{mode:08x}{z}{z}{links:08x}{z}{size:08x}{z}{z}{z}{z}{length:08x}{z}{name}\0",
            self.inode,
            z = "00000000",
        )?;
        self.pad(110 + length as u64)
    }

    fn pad(&mut self, written: u64) -> Result<()> {
        const ZEROS: [u8; 3] = [0; 3];
        let missing = (4 - written % 4) % 4;
        self.out.write_all(&ZEROS[..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn every_part_is_padded() {
        for (name, bytes) in [
            ("a", &b"x"[..]),
            ("ab", b""),
            ("abc", b"1234"),
            ("d/e", b"12345"),
        ] {
            let mut archive = Archive::new(Vec::new());
            archive.file(name, bytes, false).unwrap();
            let out = archive.finish().unwrap();
            assert_eq!(out.len() % 4, 0);
            let magics = out.chunks(4).filter(|c| c == b"0707").count();
            assert_eq!(magics, 2 + name.matches('/').count());
        }
    }

    #[test]
    fn short_content_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.stream("f", &mut &b"12"[..], 3, false).is_err());
    }

    #[test]
    fn cpio_reads_it() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/x", b"program", true).unwrap();
        archive.link("/bin", "usr/bin").unwrap();
        archive.folder("/usr/lib").unwrap();
        let bytes = archive.finish().unwrap();
        let Ok(mut child) = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            // Not every host has cpio; the toolchain folder does.
            return;
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let out = child.wait_with_output().unwrap();
        let names: Vec<_> = std::str::from_utf8(&out.stdout).unwrap().lines().collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x", "bin", "usr/lib"]);
    }
}
