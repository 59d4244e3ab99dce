// SPDX-License-Identifier: GPL-2.0
//! Settings of a device: files in its folder in sysfs.

use crate::drm::PciAddress;
use crate::refused;
use nix::errno::Errno;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// A file of a device in sysfs, which is as it was when this is dropped.
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// The file `name` of a device.
    #[track_caller]
    pub fn new(pci: PciAddress, name: &str) -> Self {
        let path = pci.sysfs().join(name);
        let before = fs::read_to_string(&path).expect("a file in sysfs");
        Self { path, before }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says, with the newline.
    pub fn read(&self) -> String {
        fs::read_to_string(&self.path).expect("a file in sysfs")
    }

    /// Writes it at once.
    pub fn __write(&self, text: &str) -> Result<(), Errno> {
        fs::write(&self.path, text)
            .map_err(|error: io::Error| Errno::from_raw(error.raw_os_error().expect("an errno")))
    }

    /// Writes it at once.
    #[track_caller]
    pub fn write(&self, text: &str) {
        assert_eq!(self.__write(text), Ok(()), "{text:?}");
    }

    /// Asserts that it is `now`, and takes the numbers of `range` and nothing else.
    #[track_caller]
    pub fn assert_takes(&self, now: u64, range: RangeInclusive<u32>) {
        assert_eq!(self.read(), format!("{now}\n"));
        let (min, max) = range.into_inner();
        for number in [min, 17, max] {
            self.write(&format!("{number}\n"));
            assert_eq!(self.read(), format!("{number}\n"));
        }
        let above = format!("{}", u64::from(max) + 1);
        let below = format!("{}", i64::from(min) - 1);
        for text in [&above, &below, "\n", "x", "1 2", "0x10"] {
            refused(self.__write(text), Errno::EINVAL);
            assert_eq!(self.read(), format!("{max}\n"), "after {text:?}");
        }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.__write(&self.before).expect("what was there before");
    }
}
