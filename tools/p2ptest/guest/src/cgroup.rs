// SPDX-License-Identifier: GPL-2.0
//! A cgroup with limits of device memory, which the test puts itself into.

use crate::drm::PciAddress;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the guest's init mounts the one hierarchy.
const ROOT: &str = "/sys/fs/cgroup";

/// Memory of a GPU that the `dmem` controller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// VRAM
    Vram,
    /// Slots that are promised
    Aperture,
}

impl Memory {
    fn region(self, gpu: PciAddress) -> String {
        let memory = match self {
            Self::Vram => "vram",
            Self::Aperture => "aperture",
        };
        format!("drm/{gpu}/{memory}")
    }
}

/// A cgroup, until this is dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

#[track_caller]
fn write(path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        panic!("{text:?} to {}: {error}", path.display());
    }
}

/// The number that a file of the controller has for a region.
#[track_caller]
fn number(path: &Path, region: &str) -> Option<u64> {
    let text = fs::read_to_string(path).expect("a file of the controller");
    let line = text.lines().find_map(|line| line.strip_prefix(region))?;
    Some(line.trim().parse().expect("a number"))
}

impl Cgroup {
    /// Makes one without limits.
    #[track_caller]
    pub fn new() -> Self {
        let root = Path::new(ROOT);
        write(&root.join("cgroup.subtree_control"), "+dmem");
        let path = root.join(format!("p2ptest-{}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// Puts the calling process into it.
    #[track_caller]
    pub fn enter(&self) {
        write(&self.0.join("cgroup.procs"), "0");
    }

    /// Puts the calling process where it was before.
    #[track_caller]
    pub fn leave(&self) {
        write(&Path::new(ROOT).join("cgroup.procs"), "0");
    }

    /// Sets the limit of a memory, in bytes.
    #[track_caller]
    pub fn set_max(&self, gpu: PciAddress, memory: Memory, bytes: u64) {
        let limit = format!("{} {bytes}", memory.region(gpu));
        write(&self.0.join("dmem.max"), &limit);
    }

    /// All that there is of a memory, in bytes; known while there is a cgroup.
    #[track_caller]
    pub fn capacity(&self, gpu: PciAddress, memory: Memory) -> Option<u64> {
        number(&Path::new(ROOT).join("dmem.capacity"), &memory.region(gpu))
    }

    /// What is charged of a memory, in bytes.
    #[track_caller]
    pub fn current(&self, gpu: PciAddress, memory: Memory) -> u64 {
        number(&self.0.join("dmem.current"), &memory.region(gpu)).unwrap_or(0)
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let root = Path::new(ROOT);
        // The process may be elsewhere already.
        let gone = fs::write(root.join("cgroup.procs"), "0")
            .and_then(|()| fs::remove_dir(&self.0))
            .and_then(|()| fs::write(root.join("cgroup.subtree_control"), "-dmem"));
        if let Err(error) = gone {
            // A panic in a drop would hide the reason for which the test fails.
            println!("{}: {error}", self.0.display());
        }
    }
}
