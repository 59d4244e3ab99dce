// SPDX-License-Identifier: GPL-2.0
//! Reading the driver's files, and what to do when they are not there.
//!
//! The fault log is left alone: reading it empties it, and it is not ours.

use crate::parse::{self, Aperture, Malformed, Numbers, Object};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Instant;
use thiserror::Error;

/// Where debugfs is mounted on all systems.
pub const DEBUGFS: &str = "/sys/kernel/debug";
/// The driver's folder there.
const DRIVER: &str = "p2pgpu";

/// Why there is nothing to show, and what to do about it.
#[derive(Debug, Error)]
pub enum Problem {
    /// The files are root's
    #[error("{0} may be read by root only: run p2ptop as root")]
    NotRoot(PathBuf),
    /// Nothing there
    #[error("debugfs is not mounted at {0}: as root, mount -t debugfs none {0}")]
    NotMounted(PathBuf),
    /// No folder of the driver
    #[error(
        "{0} does not exist: the driver p2pgpu is not loaded. Load it (modprobe p2pgpu), or see \
         in the kernel's log why it was not (dmesg)"
    )]
    NotLoaded(PathBuf),
    /// No device in it
    #[error(
        "{0} is empty: the driver is loaded and has no device. Look for one with \
         \"lspci -d 1234:2019\", and in the kernel's log why it was not taken (dmesg)"
    )]
    NoDevice(PathBuf),
    /// Not that one
    #[error("no p2pgpu device {wanted}: there is {there}")]
    NoSuchDevice {
        /// What the user asked for
        wanted: String,
        /// Those that there are
        there: String,
    },
    /// It was unbound while we looked
    #[error("device {0} is gone: it was removed, or its driver was unbound")]
    Gone(String),
    /// The driver is older
    #[error("{0} does not exist: the driver that is loaded is older than this p2ptop")]
    NoFile(PathBuf),
    /// The driver is newer, or something else
    #[error("{path}: {error}. Driver and p2ptop do not fit: use those of one version")]
    Malformed {
        /// The file
        path: PathBuf,
        /// What is wrong with it
        error: Malformed,
    },
    /// Anything else
    #[error("{path}: {error}")]
    Io {
        /// The file or folder
        path: PathBuf,
        /// As the system says
        error: io::Error,
    },
}

/// What a device shows at one moment. The files are read one after the other: in a
/// busy device they may differ by what happened between.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The device's PCI address
    pub pci: String,
    /// Who has which slot
    pub aperture: Aperture,
    /// What exists now
    pub resources: Numbers,
    /// What has happened so far
    pub activity: Numbers,
    /// Objects with importers or slots
    pub objects: Vec<Object>,
    /// When
    pub time: Instant,
}

/// The driver's folder in a debugfs.
#[derive(Debug, Clone)]
pub struct Source {
    root: PathBuf,
}

impl Source {
    /// With this debugfs, which need not be mounted.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn driver(&self) -> PathBuf {
        self.root.join(DRIVER)
    }

    /// The devices, by PCI address; at least one.
    pub fn devices(&self) -> Result<Vec<String>, Problem> {
        let folder = self.driver();
        let mut devices = match names(&folder) {
            Ok(devices) => devices,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.why_no_driver()),
            Err(error) => return Err(io_problem(&folder, error)),
        };
        if devices.is_empty() {
            return Err(Problem::NoDevice(folder));
        }
        devices.sort();
        Ok(devices)
    }

    /// One of the devices, as the user names it: without its domain if that is 0.
    pub fn find(&self, wanted: &str) -> Result<String, Problem> {
        let devices = self.devices()?;
        let long = format!("0000:{wanted}");
        match devices.iter().find(|pci| **pci == wanted || **pci == long) {
            Some(pci) => Ok(pci.clone()),
            None => Err(Problem::NoSuchDevice {
                wanted: wanted.to_owned(),
                there: devices.join(", "),
            }),
        }
    }

    /// The driver's folder is not there, or cannot be seen.
    fn why_no_driver(&self) -> Problem {
        match names(&self.root) {
            // A debugfs that is mounted is never empty.
            Ok(entries) if !entries.is_empty() => Problem::NotLoaded(self.driver()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Problem::NotRoot(self.root.clone())
            }
            Ok(_) | Err(_) => Problem::NotMounted(self.root.clone()),
        }
    }

    /// Looks at a device.
    pub fn sample(&self, pci: &str) -> Result<Sample, Problem> {
        let read = |file: &str| self.read(pci, file);
        let understood = |file: &str, error| {
            // A device that is being unbound shows nothing.
            if error == Malformed::Empty {
                return Problem::Gone(pci.to_owned());
            }
            let path = self.driver().join(pci).join(file);
            Problem::Malformed { path, error }
        };
        let aperture =
            parse::aperture(&read("aperture")?).map_err(|e| understood("aperture", e))?;
        let objects = parse::objects(&read("objects")?).map_err(|e| understood("objects", e))?;
        let activity = parse::numbers(&read("activity")?).map_err(|e| understood("activity", e))?;
        let time = Instant::now();
        let resources =
            parse::numbers(&read("resources")?).map_err(|e| understood("resources", e))?;
        Ok(Sample {
            pci: pci.to_owned(),
            aperture,
            resources,
            activity,
            objects,
            time,
        })
    }

    fn read(&self, pci: &str, file: &str) -> Result<String, Problem> {
        let folder = self.driver().join(pci);
        let path = folder.join(file);
        fs::read_to_string(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound if folder.exists() => Problem::NoFile(path),
            ErrorKind::NotFound => Problem::Gone(pci.to_owned()),
            _ => io_problem(&path, error),
        })
    }
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn io_problem(path: &Path, error: io::Error) -> Problem {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::PermissionDenied => Problem::NotRoot(path),
        _ => Problem::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, Fake};

    const PCI: &str = "0000:03:00.0";

    #[test]
    fn a_device_is_read() {
        let fake = Fake::new(1);
        let source = fake.source();
        assert_eq!(source.devices().unwrap(), [PCI]);
        let sample = source.sample(PCI).unwrap();
        assert_eq!(sample.aperture.slots, fixture::slots());
        assert_eq!(sample.objects.len(), 5);
        assert_eq!(sample.activity["cpu_faults"], 512);
        assert_eq!(sample.resources["vram_used"], 72_798_208);
    }

    #[test]
    fn devices_can_be_named_short() {
        let fake = Fake::new(1);
        let source = fake.source();
        assert_eq!(source.find("03:00.0").unwrap(), PCI);
        assert_eq!(source.find(PCI).unwrap(), PCI);
        let text = source.find("04:00.0").unwrap_err().to_string();
        assert_eq!(text, "no p2pgpu device 04:00.0: there is 0000:03:00.0");
    }

    #[test]
    fn problems_say_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let source = Source::new(root.path());
        let said = || source.devices().unwrap_err().to_string();
        assert!(said().contains("mount -t debugfs none"), "{}", said());
        fs::create_dir(root.path().join("dri")).unwrap();
        assert!(said().contains("modprobe p2pgpu"), "{}", said());
        fs::create_dir(root.path().join("p2pgpu")).unwrap();
        assert!(said().contains("lspci -d 1234:2019"), "{}", said());

        let none = Source::new("/nonexistent/debug");
        let text = none.devices().unwrap_err().to_string();
        assert!(text.contains("mount -t debugfs"), "{text}");
    }

    #[test]
    fn files_of_others_are_named() {
        let fake = Fake::new(1);
        let (folder, source) = (fake.folder(0), fake.source());
        let said = || source.sample(PCI).unwrap_err().to_string();

        fs::write(folder.join("objects"), "id=7\n").unwrap();
        assert!(said().contains("objects: it has no"), "{}", said());
        fs::remove_file(folder.join("objects")).unwrap();
        assert!(said().contains("older than this p2ptop"), "{}", said());
        fs::write(folder.join("objects"), "").unwrap();
        assert!(source.sample(PCI).unwrap().objects.is_empty());
        fs::write(folder.join("activity"), "").unwrap();
        assert!(said().contains("is gone"), "{}", said());
        fs::remove_dir_all(&folder).unwrap();
        assert!(said().contains("is gone"), "{}", said());
        let binary = folder.with_file_name("x");
        fs::create_dir(&binary).unwrap();
        fs::write(binary.join("aperture"), [0xff, 0xfe]).unwrap();
        assert!(matches!(source.sample("x"), Err(Problem::Io { .. })));
    }

    #[test]
    fn a_locked_folder_asks_for_root() {
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        let text = io_problem(Path::new("/sys/kernel/debug"), denied).to_string();
        assert!(text.contains("run p2ptop as root"), "{text}");
    }
}
