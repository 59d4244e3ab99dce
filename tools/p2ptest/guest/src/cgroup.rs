// SPDX-License-Identifier: GPL-2.0
//! A cgroup with limits of device memory and of system memory, which the test puts
//! itself into.

use crate::drm::PciAddress;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the guest's init mounts the one hierarchy.
const ROOT: &str = "/sys/fs/cgroup";
/// The controllers of a cgroup, and how they are had and not had.
const CONTROLLERS: [&str; 2] = ["+dmem +memory", "-dmem -memory"];

/// Cgroups of this process so far, and those that are there.
static MADE: AtomicU32 = AtomicU32::new(0);
static THERE: AtomicU32 = AtomicU32::new(0);

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

/// The number that a file of a controller has for a key.
#[track_caller]
fn number(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).expect("a file of the controller");
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, number) = lines.find(|(found, _)| *found == key)?;
    Some(number.trim().parse().expect("a number"))
}

impl Cgroup {
    /// Makes one without limits.
    #[track_caller]
    pub fn new() -> Self {
        let root = Path::new(ROOT);
        write(&root.join("cgroup.subtree_control"), CONTROLLERS[0]);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("p2ptest-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        THERE.fetch_add(1, Ordering::Relaxed);
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

    /// Sets the limit of system memory, in bytes.
    #[track_caller]
    pub fn set_memory_max(&self, bytes: u64) {
        write(&self.0.join("memory.max"), &bytes.to_string());
    }

    /// What is charged of system memory, in bytes. Each CPU may have some charged in
    /// advance, less than [`Cgroup::SLACK`] in all.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.current"));
        let text = text.expect("a file of the controller");
        text.trim().parse().expect("a number")
    }

    /// See [`Cgroup::memory`]; what a small test touches itself is in it.
    pub const SLACK: u64 = 2 << 20;

    /// A number of `memory.stat`, which follows within two seconds.
    #[track_caller]
    pub fn memory_stat(&self, key: &str) -> u64 {
        number(&self.0.join("memory.stat"), key).expect("a key of memory.stat")
    }

    /// How often something has happened, of `memory.events`.
    #[track_caller]
    pub fn memory_events(&self, key: &str) -> u64 {
        number(&self.0.join("memory.events"), key).expect("a key of memory.events")
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
        let is_last = THERE.fetch_sub(1, Ordering::Relaxed) == 1;
        let controllers = CONTROLLERS[usize::from(is_last)];
        // The process may be elsewhere already.
        let gone = fs::write(root.join("cgroup.procs"), "0")
            .and_then(|()| fs::remove_dir(&self.0))
            .and_then(|()| fs::write(root.join("cgroup.subtree_control"), controllers));
        if let Err(error) = gone {
            // A panic in a drop would hide the reason for which the test fails.
            println!("{}: {error}", self.0.display());
        }
    }
}
