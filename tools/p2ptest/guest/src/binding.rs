// SPDX-License-Identifier: GPL-2.0
//! Devices and drivers that come and go, as sysfs and the module loader have it.

use crate::drm::PciAddress;
use crate::gpu::Gpu;
use crate::nic::Nic;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use p2p_init::MODULE_LIST;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, thread};

/// Longer than devtmpfs and sysfs take, and than a button's five seconds at a slot.
pub const LIMIT: Duration = Duration::from_secs(40);

/// A device taken from its driver; given back when dropped, so that a test
/// that fails in between does not fail those after it.
#[derive(Debug)]
pub struct Unbound {
    driver: &'static str,
    pci: PciAddress,
}

impl Unbound {
    /// Unbinds a device.
    #[track_caller]
    pub fn new(driver: &'static str, pci: PciAddress) -> Self {
        match Self::__new(driver, pci) {
            Ok(unbound) => unbound,
            Err(error) => panic!("{driver} could not be unbound from {pci}: {error}"),
        }
    }

    /// Unbinds a device.
    pub fn __new(driver: &'static str, pci: PciAddress) -> io::Result<Self> {
        let unbound = Self { driver, pci };
        unbound.tell("unbind").map(|()| unbound)
    }

    /// Tries to bind the device again; once more when this is dropped.
    pub fn __bind(&self) -> io::Result<()> {
        self.tell("bind")
    }

    fn tell(&self, file: &str) -> io::Result<()> {
        let folder = Path::new("/sys/bus/pci/drivers").join(self.driver);
        fs::write(folder.join(file), self.pci.to_string())
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if self.pci.sysfs().join("driver").exists() {
            return;
        }
        // Who waits for the device afterwards says that it is not there.
        if let Err(error) = self.tell("bind") {
            println!(
                "{} could not be bound to {}: {error}",
                self.driver, self.pci
            );
        }
    }
}

/// A device that the kernel has let go as it does when one is unplugged; found
/// again when this is dropped.
#[derive(Debug)]
pub struct Removed;

impl Removed {
    /// Takes a device from the bus.
    #[track_caller]
    pub fn new(pci: PciAddress) -> Self {
        let path = pci.sysfs().join("remove");
        if let Err(error) = fs::write(&path, "1") {
            panic!("{}: {error}", path.display());
        }
        wait_until("the device is gone", || !pci.sysfs().exists());
        Self
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        // Who waits for the device afterwards says that it is not there.
        if let Err(error) = fs::write("/sys/bus/pci/rescan", "1") {
            println!("the bus cannot be looked at: {error}");
        }
    }
}

/// Waits until something is so: devtmpfs and sysfs follow a moment later.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the GPU at this address has a node that can be opened.
pub fn gpu_is_there(pci: PciAddress) -> bool {
    Gpu::nodes().is_ok_and(|nodes| nodes.iter().any(|node| node.pci == pci))
}

/// How many NICs have a file that can be opened.
pub fn nics() -> usize {
    Nic::paths().map_or(0, |paths| paths.len())
}

/// Unloads a module, unless somebody uses it.
pub fn __unload(module: &str) -> nix::Result<()> {
    let name = CString::new(module).map_err(|_| nix::errno::Errno::EINVAL)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}

/// Loads a module of the guest, as /init does.
pub fn __load(module: &str) -> io::Result<()> {
    let list = fs::read_to_string(MODULE_LIST)?;
    let file = format!("/{module}.ko");
    let path = list.lines().find(|path| path.ends_with(&file));
    let path = path.ok_or(io::ErrorKind::NotFound)?;
    Ok(finit_module(
        File::open(path)?,
        c"",
        ModuleInitFlags::empty(),
    )?)
}

/// A module that is unloaded; loaded again when this is dropped.
#[derive(Debug)]
pub struct Unloaded(&'static str);

impl Unloaded {
    /// Unloads a module that nobody uses.
    #[track_caller]
    pub fn new(module: &'static str) -> Self {
        // Closed files are released a moment later.
        wait_until("the module can be unloaded", || __unload(module).is_ok());
        Self(module)
    }
}

impl Drop for Unloaded {
    fn drop(&mut self) {
        // Who waits for the devices afterwards says that they are not there.
        if let Err(error) = __load(self.0) {
            println!("{} could not be loaded: {error}", self.0);
        }
    }
}
