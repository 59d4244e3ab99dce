// SPDX-License-Identifier: GPL-2.0
//! What the drivers show under debugfs: resources in use, counters, faults.
//!
//! `p2pgpu/<PCI address>/` has `resources`, `counters`, `refusals` and `faults`;
//! `p2pnic/<PCI address>/` has `resources` and `counters`. A line is a name
//! and a number; `faults` has a line `count N`, then one line an entry, which
//! is shown once: reading takes it from the device's log.

use crate::drm::PciAddress;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, io, thread};

/// Names and numbers.
pub type Numbers = BTreeMap<String, u64>;

/// Where debugfs is mounted.
#[derive(Debug, Clone)]
pub struct Debugfs {
    root: PathBuf,
}

impl Default for Debugfs {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/sys/kernel/debug"),
        }
    }
}

/// The fault log of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Faults since power on
    pub count: u64,
    /// What the log held, as text
    pub entries: Vec<String>,
}

fn invalid(path: &Path, line: &str) -> io::Error {
    let text = format!("{}: not a name and a number: {line:?}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn name_and_number(line: &str) -> Option<(&str, u64)> {
    let (name, number) = line.split_once(char::is_whitespace)?;
    Some((name, number.trim().parse().ok()?))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

impl Debugfs {
    /// With another root than `/sys/kernel/debug`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn numbers(&self, driver: &str, pci: PciAddress, file: &str) -> io::Result<Numbers> {
        let path = self.root.join(driver).join(pci.to_string()).join(file);
        read(&path)?
            .lines()
            .map(|line| {
                let (name, number) = name_and_number(line).ok_or_else(|| invalid(&path, line))?;
                Ok((name.to_owned(), number))
            })
            .collect()
    }

    /// What of a device's resources is in use.
    pub fn resources(&self, driver: &str, pci: PciAddress) -> io::Result<Numbers> {
        self.numbers(driver, pci, "resources")
    }

    /// The counters of a device.
    pub fn counters(&self, driver: &str, pci: PciAddress) -> io::Result<Numbers> {
        self.numbers(driver, pci, "counters")
    }

    /// What has happened on a GPU, a number for each kind.
    pub fn activity(&self, pci: PciAddress) -> io::Result<Numbers> {
        self.numbers("p2pgpu", pci, "activity")
    }

    /// How often peers of a GPU were refused, by reason.
    pub fn refusals(&self, pci: PciAddress) -> io::Result<Numbers> {
        self.numbers("p2pgpu", pci, "refusals")
    }

    /// The fault log of a GPU.
    pub fn faults(&self, pci: PciAddress) -> io::Result<Faults> {
        let path = self
            .root
            .join("p2pgpu")
            .join(pci.to_string())
            .join("faults");
        let text = read(&path)?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        match name_and_number(first) {
            Some(("count", count)) => Ok(Faults {
                count,
                entries: lines.map(str::to_owned).collect(),
            }),
            _ => Err(invalid(&path, first)),
        }
    }

    /// The devices that a driver shows.
    pub fn devices(&self, driver: &str) -> io::Result<Vec<PciAddress>> {
        let path = self.root.join(driver);
        let entries = fs::read_dir(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let mut devices = Vec::new();
        for entry in entries {
            if let Ok(address) = entry?.file_name().to_string_lossy().parse() {
                devices.push(address);
            }
        }
        devices.sort();
        Ok(devices)
    }
}

/// The drivers that a snapshot looks at.
const DRIVERS: [&str; 2] = ["p2pgpu", "p2pnic"];

/// Everything that a test must leave as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    resources: BTreeMap<(String, PciAddress), Numbers>,
    faults: BTreeMap<PciAddress, Faults>,
}

/// What a test did not leave as it was, one difference a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference(Vec<String>);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl Snapshot {
    /// Looks at all devices of both drivers.
    pub fn take(debugfs: &Debugfs) -> io::Result<Self> {
        let mut snapshot = Self {
            resources: BTreeMap::new(),
            faults: BTreeMap::new(),
        };
        for driver in DRIVERS {
            for pci in debugfs.devices(driver)? {
                let numbers = debugfs.resources(driver, pci)?;
                snapshot.resources.insert((driver.to_owned(), pci), numbers);
                if driver == "p2pgpu" {
                    snapshot.faults.insert(pci, debugfs.faults(pci)?);
                }
            }
        }
        Ok(snapshot)
    }

    /// Looks for nothing of this device any more.
    pub fn forget(&mut self, device: PciAddress) {
        self.resources.retain(|(_, pci), _| *pci != device);
        self.faults.retain(|pci, _| *pci != device);
    }

    /// What is different in `now`.
    pub fn compare(&self, now: &Self) -> Result<(), Difference> {
        let mut lines = self.new_faults(now);
        lines.extend(self.changed_resources(now));
        if lines.is_empty() {
            Ok(())
        } else {
            Err(Difference(lines))
        }
    }

    fn changed_resources(&self, now: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (device, before) in &self.resources {
            let (driver, pci) = device;
            let Some(after) = now.resources.get(device) else {
                lines.push(format!("{driver} {pci} is gone"));
                continue;
            };
            for (name, number) in before {
                if after.get(name) != Some(number) {
                    let found = after.get(name).map_or("nothing".into(), u64::to_string);
                    lines.push(format!("{driver} {pci}: {name} was {number}, is {found}"));
                }
            }
        }
        lines
    }

    fn new_faults(&self, now: &Self) -> Vec<String> {
        let none = Faults::default();
        let mut lines = Vec::new();
        for (pci, before) in &self.faults {
            let after = now.faults.get(pci).unwrap_or(&none);
            if after.count != before.count {
                let (first, last) = (before.count, after.count);
                lines.push(format!("p2pgpu {pci}: faults went from {first} to {last}"));
                lines.extend(
                    after
                        .entries
                        .iter()
                        .map(|entry| format!("fault log: {entry}")),
                );
            }
        }
        lines
    }

    /// Waits until nothing is different: closed files and importers free what
    /// they held a moment later. A fault is there to stay, and not waited for.
    pub fn settle(&self, debugfs: &Debugfs, limit: Duration) -> io::Result<Result<(), Difference>> {
        let start = Instant::now();
        loop {
            let now = Self::take(debugfs)?;
            let result = self.compare(&now);
            let faulted = !self.new_faults(&now).is_empty();
            if result.is_ok() || faulted || start.elapsed() >= limit {
                return Ok(result);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "0000:03:00.0";
    const NIC: &str = "0000:04:00.0";

    /// A folder as debugfs has it, removed at the end.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir()
                .join(format!("p2pguest-debugfs-{name}-{}", std::process::id()));
            let fake = Self(root);
            fake.put("p2pgpu", GPU, "resources", "objects 1\nslots_used 2\n");
            fake.put("p2pgpu", GPU, "faults", "count 0\n");
            fake.put("p2pnic", NIC, "resources", "regions 0\nqueue_pairs 0\n");
            fake
        }

        fn put(&self, driver: &str, pci: &str, file: &str, text: &str) {
            let folder = self.0.join(driver).join(pci);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        }

        fn debugfs(&self) -> Debugfs {
            Debugfs::at(&self.0)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn nothing_changed() {
        let fake = Fake::new("same");
        let before = Snapshot::take(&fake.debugfs()).unwrap();
        assert_eq!(
            before.settle(&fake.debugfs(), Duration::ZERO).unwrap(),
            Ok(())
        );
    }

    #[test]
    fn a_leak_is_named() {
        let fake = Fake::new("leak");
        let before = Snapshot::take(&fake.debugfs()).unwrap();
        fake.put("p2pgpu", GPU, "resources", "objects 1\nslots_used 3\n");
        fake.put("p2pnic", NIC, "resources", "queue_pairs 0\n");
        let found = before
            .settle(&fake.debugfs(), Duration::ZERO)
            .unwrap()
            .unwrap_err();
        assert_eq!(
            found.to_string(),
            "p2pgpu 0000:03:00.0: slots_used was 2, is 3; \
             p2pnic 0000:04:00.0: regions was 0, is nothing"
        );
    }

    #[test]
    fn a_fault_is_named() {
        let fake = Fake::new("fault");
        let before = Snapshot::take(&fake.debugfs()).unwrap();
        fake.put("p2pgpu", GPU, "faults", "count 1\ninvalid_slot slot 3\n");
        let faults = fake.debugfs().faults(GPU.parse().unwrap()).unwrap();
        assert_eq!(
            faults,
            Faults {
                count: 1,
                entries: vec!["invalid_slot slot 3".into()]
            }
        );
        let found = before
            .settle(&fake.debugfs(), Duration::ZERO)
            .unwrap()
            .unwrap_err();
        assert_eq!(
            found.to_string(),
            "p2pgpu 0000:03:00.0: faults went from 0 to 1; fault log: invalid_slot slot 3"
        );
    }

    #[test]
    fn a_late_return_is_no_leak() {
        let fake = Fake::new("late");
        let before = Snapshot::take(&fake.debugfs()).unwrap();
        fake.put("p2pgpu", GPU, "resources", "objects 2\nslots_used 2\n");
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                fake.put("p2pgpu", GPU, "resources", "objects 1\nslots_used 2\n");
            });
            let settled = before
                .settle(&fake.debugfs(), Duration::from_secs(10))
                .unwrap();
            assert_eq!(settled, Ok(()));
        });
    }

    #[test]
    fn malformed_and_missing_files_are_errors() {
        let fake = Fake::new("bad");
        fake.put("p2pgpu", GPU, "counters", "flushes many\n");
        let pci = GPU.parse().unwrap();
        let error = fake.debugfs().counters("p2pgpu", pci).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(fake.debugfs().counters("p2pnic", pci).is_err());
        assert!(Snapshot::take(&Debugfs::at("/nonexistent")).is_err());
    }
}
